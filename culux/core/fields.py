"""What a layer's fields may hold, and how a layer prints as its constructor call."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from typing import Any

import numpy as np

from culux import tree
from culux.backends import is_array
from culux.errors import CuluxError, LayerError, check_keywords, describe
from culux.tree import Tree, as_tree, trusted

CHILDREN = "_culux_children"  # set when a layer freezes: its sublayers by name


def is_layer(value: Any) -> bool:
    """Whether `value` is a finished layer."""
    return CHILDREN in getattr(value, "__dict__", ())


def layers_in(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The layers in a field with their names: `name`, or `name_1`, `name_key` in tuples and mappings."""
    if is_layer(value):
        yield name, value
    elif type(value) is tuple:
        for i, item in enumerate(value):
            yield from layers_in(f"{name}_{i + 1}", item)
    elif isinstance(value, Tree):
        for key, item in value.items():
            yield from layers_in(f"{name}_{key}", item)


def child_name(layer: Any, ps: Any, child: int, child_ps: int) -> str | None:
    """The name under which `layer` called the layer of id `child`; the id of its parameters tells a layer used twice.

    None for a layer that is no child, and under a wrapper, whose child has no name.
    """
    if not layer._nests_children:
        return None
    names = [name for name, value in layer.__dict__[CHILDREN].items() if id(value) == child]
    same = [name for name in names if isinstance(ps, Tree) and name in ps and id(ps[name]) == child_ps]
    found = same or names
    return str(found[0]) if found else None


def frozen(value: Any) -> Any:
    """`value` with lists turned into tuples and dicts into Trees, so that a layer hashes and cannot change."""
    if type(value) in (list, tuple):
        return tuple(frozen(item) for item in value)
    if isinstance(value, Mapping):
        return Tree({name: frozen(item) for name, item in value.items()})
    return value


_PLAIN: set[type] = {np.ndarray, bool, int, float, str, type(None)}  # never traced, never with anything in them


def is_plain(value: Any) -> bool:
    """Whether a state is plain for certain: Trees of nothing but plain leaves. It is asked at every call."""
    kind = type(value)
    if kind is Tree:
        for item in value.values():
            if not is_plain(item):
                return False
        return True
    return kind in _PLAIN


def without_traces(value: Any) -> Any:
    """States with plain arrays for the traced ones and Trees for the mappings: nothing traced leaves a layer."""
    if is_plain(value):
        return value
    if isinstance(value, Mapping):
        return trusted({name: without_traces(item) for name, item in Tree(value).items()})
    if is_array(value):
        _PLAIN.add(type(value))
    return tree.map(untraced, as_tree(value))


def untraced(value: Any) -> Any:
    """The value itself, or the plain one that a traced value stands for."""
    while hasattr(value, "__culux_value__"):
        value = value.__culux_value__
    return value


def refuse_arrays(owner: str, name: str, value: Any) -> None:
    """Raise a `LayerError` where a field holds an array: culux's, a traced one, another library's, a model's."""
    for leaf in tree.leaves(value):
        if hasattr(leaf, "__culux_trainable__"):
            raise LayerError(
                f"{owner}.{name} holds a {type(leaf).__name__}, which holds arrays, and a layer holds none; "
                "put the layer in it there: m.layer"
            )
        if is_array(leaf) or hasattr(leaf, "__culux_value__") or hasattr(leaf, "__dlpack__"):
            raise LayerError(
                f"{owner}.{name} holds a {describe(leaf)}; a layer holds no arrays. Keep a function that makes it, "
                f"and return it from initial_parameters(self, rng) if it is trained, {{'{name}': ...}}, "
                "or from initial_states(self, rng) if it is not"
            )


def constructor_call(record: Any) -> str:
    """The call that makes this object: required arguments, and the others where they are not the default.

    An argument that a hand-written `__init__` keeps under no attribute of its name is shown as ``...``.
    """
    cls = type(record)
    arguments: list[str] = []
    by_name = False
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        default = _default(cls, parameter)
        value = getattr(record, parameter.name, ... if default is parameter.empty else default)
        if parameter.kind is parameter.VAR_POSITIONAL:
            arguments += [named_or_repr(item) for item in (value if isinstance(value, tuple) else ())]
        elif parameter.kind is parameter.VAR_KEYWORD:
            continue
        elif default is not parameter.empty and _same(value, default):
            by_name = True
        elif by_name or parameter.kind is parameter.KEYWORD_ONLY:
            arguments.append(f"{parameter.name}={named_or_repr(value)}")
        else:
            arguments.append(named_or_repr(value))
    return f"{cls.__name__}({', '.join(arguments)})"


def explain_call(cls: type, error: TypeError, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise a `LayerError` where a `TypeError` of ``cls(*args, **kwargs)`` comes from arguments that do not fit."""
    init: Any = cls.__init__  # type: ignore[misc]  # the class's own, as it was called
    signature = inspect.signature((lambda self: None) if init is object.__init__ else init)
    parameters = list(signature.parameters.values())[1:]
    if isinstance(error, CuluxError):
        return
    try:
        signature.bind(None, *args, **kwargs)
    except TypeError as misfit:
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            check_keywords(cls.__name__, kwargs, [p.name for p in parameters])
        bare = [p.replace(annotation=p.empty) for p in parameters]
        form = str(signature.replace(parameters=bare, return_annotation=signature.empty))
        raise LayerError(f"{cls.__name__}: {misfit}; it is {cls.__name__}{form}") from error


def _default(cls: type, parameter: inspect.Parameter) -> Any:
    """The default of an argument of `__init__`, as it is kept in a layer."""
    described = getattr(cls, "__dataclass_fields__", {}).get(parameter.name)
    if described is not None and described.default_factory is not MISSING:
        return frozen(described.default_factory())
    return frozen(parameter.default)


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


def named_or_repr(value: Any) -> str:
    """A value as it is written in a call: functions by their names, all else by its repr."""
    if type(value) is tuple:
        return f"({', '.join(named_or_repr(item) for item in value)}{',' if len(value) == 1 else ''})"
    if value is ...:
        return "..."
    if type(value) is Tree:
        return f"{{{', '.join(f'{name!r}: {named_or_repr(item)}' for name, item in value.items())}}}"
    name = getattr(value, "__name__", None) if callable(value) else None
    return name if isinstance(name, str) else repr(value)
