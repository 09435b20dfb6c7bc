"""`functor`: a user's own class of arrays as a model, for the stateful style."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

from culux import tree
from culux.backends import is_array, is_float_array
from culux.core.layer import Layer
from culux.errors import LayerError
from culux.tree import Tree, trusted

__all__ = ["functor"]

T = TypeVar("T")


@dataclass_transform()
def functor(cls: type[T]) -> type[T]:
    """Make a class of arrays a model: a class decorator.

    The class becomes a dataclass if it is none, and a tree node: its arrays (in nested containers too) are
    leaves, so that ``device(m)`` moves them into a new object. ``gradient(lambda m: loss(m(x)), m)`` is
    the Tree of ``m.trainable()``, by default all its float arrays. A functor is not a Layer.

    Raises:
        LayerError: for a Layer class, or a `trainable` that names no field.
    """
    if issubclass(cls, Layer):
        raise LayerError(f"{cls.__name__} is a Layer, which holds no arrays; a functor is a class of its own")
    if "__dataclass_fields__" not in vars(cls):  # a base's fields do not make it one
        cls = dataclasses.dataclass(eq=False)(cls)
    members = (_trainable, _culux_trainable, _culux_replace, _tree_flatten)
    names = ("trainable", "__culux_trainable__", "__culux_replace__", "__tree_flatten__")
    for name, member in zip(names, members, strict=True):
        if not hasattr(cls, name):
            setattr(cls, name, member)
    cls.__tree_unflatten__ = staticmethod(_tree_unflatten)  # type: ignore[attr-defined]  # the node protocol
    return cls


def _trainable(self: Any) -> Mapping[str, Any]:
    """The trained arrays by field name: all float arrays."""
    return {
        name: value
        for name, value in vars(self).items()
        if any(is_float_array(leaf) or _is_traced(leaf) for leaf in tree.leaves(value))
    }


def _is_traced(leaf: Any) -> bool:
    return hasattr(leaf, "__culux_value__")


def _culux_trainable(self: Any) -> Tree:
    trained = Tree(self.trainable())
    unknown = [name for name in trained if name not in vars(self)]
    if unknown:
        raise LayerError(
            f"{type(self).__name__}.trainable() names {', '.join(unknown)}, which it has no field for; "
            f"its fields are: {', '.join(vars(self))}"
        )
    # A functor in a field says itself what of it is trained.
    return trusted({name: _trained_part(value) for name, value in trained.items()})


def _trained_part(value: Any) -> Any:
    return value.__culux_trainable__() if hasattr(value, "__culux_trainable__") else value


def _culux_replace(self: Any, entries: Mapping[str, Any]) -> Any:
    new = copy.copy(self)
    for name, value in entries.items():
        old = getattr(self, name)
        nested = hasattr(old, "__culux_replace__")
        object.__setattr__(new, name, old.__culux_replace__(value) if nested else value)
    return new


def _tree_flatten(self: Any) -> tuple[dict[str, Any], Any]:
    children = {
        name: value
        for name, value in vars(self).items()
        if any(is_array(leaf) or _is_traced(leaf) for leaf in tree.leaves(value))
    }
    rest = tuple((name, value) for name, value in vars(self).items() if name not in children)
    return children, (type(self), tuple(vars(self)), rest)


def _tree_unflatten(static: Any, children: Mapping[str, Any]) -> Any:
    cls, order, rest = static
    values = {**children, **dict(rest)}
    new = object.__new__(cls)
    for name in order:
        object.__setattr__(new, name, values[name])
    return new
