"""The layer contract: a frozen description that holds no array.

`Layer` is the base of all layers, `ContainerLayer` of those with children, `WrapperLayer` of those with
one child whose parameters and states are not nested. A layer's ``__call__(x, ps, st) -> (y, st)`` is a
pure function; the wrapper put around it here is the one place where dicts become Trees, where a returned
state is checked and cut from the tape, and where errors get the layer's path.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABCMeta
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, dataclass_transform

from culux import tree
from culux.backends import is_float_array
from culux.backends.registry import is_mixed, mixed_message
from culux.core.fields import (
    CHILDREN,
    child_name,
    constructor_call,
    explain_call,
    frozen,
    is_plain,
    layers_in,
    refuse_arrays,
    without_traces,
)
from culux.core.summary import summary
from culux.core.view import View
from culux.core.watch import current
from culux.errors import (
    CuluxError,
    DeviceError,
    EntryError,
    FrozenError,
    LayerError,
    describe,
    is_located,
    locate,
    missing_attribute,
)
from culux.tree import Tree, check_name, trusted

__all__ = ["ContainerLayer", "Layer", "WrapperLayer"]


@dataclass_transform(frozen_default=True)
class _LayerMeta(ABCMeta):
    """Freezes a layer when its `__init__` has ended, and explains a call that does not fit it."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            layer = super().__call__(*args, **kwargs)
        except TypeError as error:
            explain_call(cls, error, args, kwargs)
            raise
        layer._freeze()
        return layer


def _checked(call: Callable[..., Any]) -> Callable[..., tuple[Any, Tree]]:
    """`call` with what the contract promises around it; ps and st may be missing only to be asked for."""

    @functools.wraps(call)
    def checked(self: Layer, x: Any, ps: Any = None, st: Any = None) -> tuple[Any, Tree]:
        try:
            if type(ps) is not Tree:
                ps = _entries("ps", ps)
            if type(st) is not Tree:
                st = _entries("st", st)
            watcher = current.watcher
            result = call(self, x, ps, st) if watcher is None else watcher.call(call, self, x, ps, st)
            y, new = result if type(result) is tuple and len(result) == 2 else _no_pair(result)
            return y, st if new is st else _checked_state(st, new)
        except Exception as error:
            if isinstance(error, EntryError):
                _explain_missing(error, self, ps, st)
            located = _device_error(error, x, ps, st) or error
            locate(located, self, ps, functools.partial(child_name, self, ps))
            if located is error:
                raise
            raise located from error

    return checked


def _entries(name: str, value: Any) -> Tree:
    if not isinstance(value, Mapping):
        raise LayerError(
            f"expected {name} to be a Tree or a dict, got {describe(value)}; "
            "ps, st = culux.setup(rng, model); y, st = model(x, ps, st)"
        )
    return Tree(value)


def _no_pair(result: Any) -> NoReturn:
    raise LayerError(f"expected __call__ to return (y, st), got {describe(result)}")


def _explain_missing(error: EntryError, layer: Layer, ps: Any, st: Any) -> None:
    """Say of a missing entry that the parameters or states have none for a child: they are another model's."""
    if is_located(error) or not layer._nests_children:
        return
    for kind, entries in (("ps", ps), ("st", st)):
        missing = [name for name in layer.__dict__[CHILDREN] if isinstance(entries, Tree) and name not in entries]
        if missing:
            error.args = (
                f"expected {kind} to have the entries {', '.join(layer.__dict__[CHILDREN])}, got "
                f"{', '.join(entries) or 'none'}; {kind} is of another model: ps, st = culux.setup(rng, model)",
            )
            return


def _device_error(error: Exception, x: Any, ps: Any, st: Any) -> DeviceError | None:
    """What to say in place of a complaint about arrays of two libraries or devices: where in x, ps and st they are.

    An operation's own `DeviceError` knows its arguments by number only.
    """
    foreign = isinstance(error, TypeError | ValueError | RuntimeError) and not isinstance(error, CuluxError)
    if is_located(error) or not (foreign or isinstance(error, DeviceError)):
        return None
    named = [(path, without_traces(leaf)) for path, leaf in tree.leaves_with_path({"x": x, "ps": ps, "st": st})]
    floats = [(path, leaf) for path, leaf in named if is_float_array(leaf)]
    elsewhere = [entry for entry in floats if is_mixed([floats[0][1], entry[1]])]
    if not elsewhere:
        return None
    paths, leaves = zip(floats[0], elsewhere[0], strict=True)
    return DeviceError(mixed_message(list(leaves), paths))


def _checked_state(st: Tree, new: Any) -> Tree:
    """A returned state: a Tree with the keys that `st` has, in its order, and nothing traced in it."""
    if type(new) is not Tree and not isinstance(new, Mapping):
        raise LayerError(f"expected the returned state to be a Tree or a dict, got {describe(new)}")
    if list(new) != list(st):
        if new.keys() != st.keys():
            raise LayerError(
                f"expected the returned state to have the entries {', '.join(st) or 'none'}, "
                f"got {', '.join(new) or 'none'}; return st, or st.replace(name=value)"
            )
        new = {name: new[name] for name in st}  # another order would be another structure
    for name, entry in new.items():
        if entry is not st[name] and not is_plain(entry):
            break
    else:
        return new if type(new) is Tree else trusted(dict(new))
    return trusted({name: entry if entry is st[name] else without_traces(entry) for name, entry in new.items()})


def _make_dataclass(cls: type[Layer], kw_only: bool) -> None:
    """Make the annotations of `cls` fields, unless a base's hand-written `__init__` would be lost."""
    base = next(b for b in cls.__mro__[1:] if "__init__" in vars(b))
    if base is object or "__dataclass_fields__" in vars(base):
        dataclass(cls, eq=False, repr=False, kw_only=kw_only)
        return
    new = [name for name, kind in inspect.get_annotations(cls).items() if "ClassVar" not in str(kind)]
    if new:
        raise LayerError(
            f"{cls.__name__} adds the fields {', '.join(new)} to {base.__name__}, whose __init__ is written by hand "
            f"and would not run; write {cls.__name__}.__init__ too, and call super().__init__ in it"
        )


class Layer(metaclass=_LayerMeta):
    """A layer: a frozen description of a computation, without arrays.

    Subclassing makes a frozen dataclass; a hand-written `__init__` works and the layer freezes at its end.
    Override `initial_parameters`, `initial_states` and ``__call__(self, x, ps, st) -> (y, st)``, or, in place
    of `__call__`, ``forward(self, m, x) -> y`` on a bound view `m` of the layer, its `ps` and its `st`.

    Layers compare, hash, pickle and copy; `repr` is the constructor call, `print` shows parameter counts.

    Raises:
        LayerError: for an array in a field, or a layer in a field of a layer that is no container.
    """

    _nests_children: ClassVar[bool] = True

    def __init_subclass__(cls, *, kw_only: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if inspect.get_annotations(cls) and "__init__" not in own:
            _make_dataclass(cls, kw_only)
        if "__call__" in own:
            cls.__call__ = _checked(own["__call__"])  # type: ignore[method-assign]  # the contract's wrapper

    def initial_parameters(self, rng: Any) -> Mapping[str, Any]:
        """The layer's own trained arrays by name, made on the host from a `numpy.random.Generator`."""
        return {}

    def initial_states(self, rng: Any) -> Mapping[str, Any]:
        """The layer's own states by name: what is carried from call to call and not trained."""
        return {}

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of `y` for an `x` of this shape, batch axis included; nothing is computed."""
        raise LayerError(f"{self!r} does not say its output shape; define output_shape(self, input_shape)")

    def children(self) -> Mapping[str, Layer]:
        """The sublayers by the name that their parameters and states have; none for a plain layer."""
        return {}

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``y, st = layer(x, ps, st)``: `forward` on a bound view, unless a subclass defines `__call__`."""
        forward: Callable[[View, Any], Any] | None = getattr(self, "forward", None) if _has_forward(self) else None
        if forward is None:
            raise LayerError(f"{type(self).__name__} defines neither __call__(self, x, ps, st) nor forward(self, m, x)")
        view = View(self, ps, st)
        y = forward(view, x)
        return y, view._st

    def _gather(self, rng: Any, method: str) -> Tree:
        """What `initial_parameters` or `initial_states` gives for this layer and its children.

        An own entry named like a child takes the place of what the child would have made.
        """
        own = getattr(self, method)(rng)
        if not isinstance(own, Mapping):
            raise LayerError(f"{type(self).__name__}.{method} returns a dict of arrays, got {describe(own)}")
        children: Mapping[str, Layer] = self.__dict__[CHILDREN]
        if not children:
            return Tree(own)
        if not self._nests_children:
            (child,) = children.values()
            return Tree({**child._gather(rng, method), **own})
        below = {name: own[name] if name in own else child._gather(rng, method) for name, child in children.items()}
        return Tree({**below, **own})

    def _freeze(self) -> None:
        state, kind = self.__dict__, type(self).__name__
        for name in list(state):
            if hasattr(Layer, name):
                raise LayerError(f"{kind}.{name} would hide the method {name} of a layer; choose another name")
            refuse_arrays(kind, name, state[name])
            state[name] = frozen(state[name])
        children = dict(self.children())
        for name in children:
            check_name(name)
            if hasattr(Layer, name):
                raise LayerError(f"{kind}: the name {name!r} would hide the method of a layer; choose another name")
        if not children:
            for name, value in state.items():
                if any(True for _ in layers_in(name, value)):
                    raise LayerError(
                        f"{kind}.{name} holds a layer, whose parameters setup would not find; "
                        "subclass culux.ContainerLayer (or culux.WrapperLayer for one layer) in place of culux.Layer"
                    )
        state[CHILDREN] = children

    def _fields(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != CHILDREN}

    def __setattr__(self, name: str, value: Any) -> None:
        if CHILDREN in self.__dict__:
            raise FrozenError(
                f"{self!r} is frozen; make another one with the new {name}, and keep what changes in ps (trained) "
                "or st (not trained)"
            )
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenError(f"{self!r} is frozen")

    def __getattr__(self, name: str) -> Any:
        children = self.__dict__.get(CHILDREN, {})
        if name not in children:
            raise missing_attribute(f"the layer {type(self).__name__}", name, children)
        return children[name]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layer):
            return NotImplemented
        return type(self) is type(other) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), tuple(self._fields().items())))

    def __repr__(self) -> str:
        return constructor_call(self)

    def __str__(self) -> str:
        return summary(self)


class ContainerLayer(Layer):
    """A layer with children: fields that are layers, also in tuples, lists and dicts.

    A field ``conv`` is the child ``conv``; a tuple ``tail`` has the children ``tail_1``, ``tail_2``, a dict
    ``heads`` the children ``heads_<key>``. `ps` and `st` have one entry per child, beside the container's own.
    """

    def children(self) -> Mapping[str, Layer]:
        """The sublayers in the fields, by name."""
        return {child: layer for name, value in self._fields().items() for child, layer in layers_in(name, value)}


class WrapperLayer(ContainerLayer):
    """A layer with one child whose parameters and states are its own: `ps` and `st` are not nested."""

    _nests_children: ClassVar[bool] = False

    def children(self) -> Mapping[str, Layer]:
        """The one child, under its field's name."""
        found = super().children()
        if len(found) != 1:
            raise LayerError(
                f"{type(self).__name__}: a WrapperLayer has one layer, got {', '.join(found) or 'none'}; "
                "use culux.ContainerLayer for several"
            )
        return found

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """`forward` on a bound view where it is defined; else the child on the same `ps` and `st`."""
        if _has_forward(self):
            return super().__call__(x, ps, st)
        (child,) = self.__dict__[CHILDREN].values()
        return child(x, ps, st)  # type: ignore[no-any-return]  # children are layers

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The child's."""
        (child,) = self.__dict__[CHILDREN].values()
        return child.output_shape(input_shape)  # type: ignore[no-any-return]  # children are layers


def _has_forward(layer: Layer) -> bool:
    return hasattr(type(layer), "forward")


Layer.__call__ = _checked(Layer.__call__)  # type: ignore[method-assign]  # the contract's wrapper
