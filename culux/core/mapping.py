"""`layer_map`: a function over the layers of a model, each with its parameters and states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from culux.core.fields import CHILDREN, is_layer, layers_in
from culux.core.layer import Layer
from culux.errors import LayerError, describe
from culux.tree import Tree, as_tree, trusted

__all__ = ["layer_map"]


def layer_map(f: Callable[..., tuple[Any, Any, Any]], layer: Layer, ps: Any, st: Any) -> tuple[Layer, Tree, Tree]:
    """The model with every layer that has no layers inside replaced: ``layer, ps, st = f(path, layer, ps, st)``.

    A layer whose sublayers do not stand in its fields as they are (`LSTM` makes them), or that keeps their parameters
    in another form (`WeightNorm`, `Frozen`, `Shared`), is taken whole. What `f` returns unchanged stays the same
    object.

    Args:
        f: called with the names that lead to the layer, joined by dots, and the layer with its `ps` and `st`.
        layer: the model.
        ps: its parameters.
        st: its states.

    Returns:
        ``(layer, ps, st)`` of the new model; nothing is written to the old one.

    Raises:
        LayerError: for a `layer` that is none, and where `f` returns something else.
    """
    if not is_layer(layer):
        raise LayerError(f"expected layer_map(f, layer, ps, st), got {describe(layer)} for the layer")
    return _mapped(f, "", layer, as_tree(ps), as_tree(st))


def _mapped(f: Callable[..., Any], path: str, layer: Layer, ps: Tree, st: Tree) -> tuple[Layer, Tree, Tree]:
    if not _shows_children(layer):
        return _applied(f, path, layer, ps, st)
    children: dict[str, Layer] = layer.__dict__[CHILDREN]
    if not layer._nests_children:
        (child,) = children.values()
        new, ps, st = _mapped(f, path, child, ps, st)
        return _with_children(layer, [new]), ps, st
    layers: list[Layer] = []
    new_ps, new_st = dict(ps), dict(st)
    for name, child in children.items():
        below = f"{path}.{name}" if path else name
        new, new_ps[name], new_st[name] = _mapped(f, below, child, ps[name], st[name])
        layers.append(new)
    return _with_children(layer, layers), trusted(new_ps), trusted(new_st)


def _applied(f: Callable[..., Any], path: str, layer: Layer, ps: Tree, st: Tree) -> tuple[Layer, Tree, Tree]:
    result = f(path, layer, ps, st)
    if type(result) is not tuple or len(result) != 3 or not is_layer(result[0]):
        raise LayerError(
            f"expected f(path, layer, ps, st) to return (layer, ps, st), got {describe(result)} for {path}"
        )
    return result[0], as_tree(result[1]), as_tree(result[2])


def _shows_children(layer: Layer) -> bool:
    """Whether the children stand in the fields, in their order, with parameters that are their own."""
    held = [value for name, field in layer._fields().items() for _, value in layers_in(name, field)]
    children = list(layer.__dict__[CHILDREN].values())
    same = len(held) == len(children) and all(a is b for a, b in zip(held, children, strict=True))
    return bool(held) and same and type(layer)._gather is Layer._gather


def _with_children(layer: Layer, layers: list[Layer]) -> Layer:
    """The layer with others in place of its children; itself where they are the same objects."""
    if all(new is old for new, old in zip(layers, layer.__dict__[CHILDREN].values(), strict=True)):
        return layer
    waiting = iter(layers)
    new: Layer = object.__new__(type(layer))
    new.__dict__.update({name: _replaced(field, waiting) for name, field in layer._fields().items()})
    new._freeze()
    return new


def _replaced(value: Any, waiting: Iterator[Layer]) -> Any:
    """A field with the next layers in place of those in it, in the order of `layers_in`."""
    if is_layer(value):
        return next(waiting)
    if type(value) is tuple:
        return tuple(_replaced(item, waiting) for item in value)
    if type(value) is Tree:
        return trusted({name: _replaced(item, waiting) for name, item in value.items()})
    return value
