"""Layers made of layers: chains, parallel branches and skip connections."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from culux import numpy as cnp
from culux.core import ContainerLayer, Layer
from culux.core.fields import is_layer, named_or_repr
from culux.errors import EntryError, LayerError, ShapeError, describe, locate
from culux.layers.basic import NoOpLayer, WrappedFunction
from culux.tree import Tree, trusted

__all__ = [
    "BranchLayer",
    "Chain",
    "Parallel",
    "SkipConnection",
    "as_layer",
    "join_outputs",
    "joined_shape",
    "shape_below",
]


class _Sequence(ContainerLayer):
    """Layers in order with their names: what `Chain`, `Parallel` and `BranchLayer` share."""

    def __init__(self, layers: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        kind = type(self).__name__
        if layers and named:
            raise LayerError(
                f"{kind}: expected layers, or layers by name, got both ({', '.join(named)} by name); "
                f"{kind}(..., conv=layer, head=layer) names all of them"
            )
        self._layers: tuple[Layer, ...] = tuple(as_layer(kind, layer) for layer in (*_spliced(layers), *named.values()))
        self._names: tuple[str, ...] = tuple(named) or _numbered(len(self._layers))
        if not self._layers:
            raise LayerError(f"{kind}: expected at least one layer")

    def children(self) -> Mapping[str, Layer]:
        """The layers by name."""
        return dict(zip(self._names, self._layers, strict=True))

    def _run(self, inputs: Iterable[Any], join: Any, name: str, ps: Tree, st: Tree) -> tuple[Any, Tree]:
        """Every layer on its input, and `join`, called `name`, on the outputs."""
        outputs: list[Any] = []
        states: dict[str, Tree] = {}
        for child, layer, x in zip(self._names, self._layers, inputs, strict=True):
            y, states[child] = layer(x, ps[child], st[child])
            outputs.append(y)
        return join_outputs(join, name, tuple(outputs), ps, st, states)

    def _shapes(self, shapes: Iterable[Any], join: Any, name: str) -> Any:
        found = [
            shape_below(self, child, layer, shape)
            for child, layer, shape in zip(self._names, self._layers, shapes, strict=True)
        ]
        return joined_shape(self, join, name, tuple(found))

    def _arguments(self) -> list[str]:
        if self._names == _numbered(len(self._layers)):
            return [repr(layer) for layer in self._layers]
        return [f"{name}={layer!r}" for name, layer in zip(self._names, self._layers, strict=True)]


class Chain(_Sequence):
    """Layers one after the other: ``y = layer_n(... layer_2(layer_1(x)))``.

    ``Chain(a, b)`` names them ``layer_1``, ``layer_2``; ``Chain(conv=a, head=b)`` gives them names. Functions are
    wrapped in `WrappedFunction`, lists and tuples of layers are spliced in, Chains inside stay Chains, and
    ``Chain()`` is ``Chain(NoOpLayer())``. ``m[0]``, ``m["head"]`` and ``m.head`` are layers, ``m[1:]`` is a Chain of
    layers with the names that they had, which runs with the `ps` and `st` of the whole, too.

    Args:
        *layers: layers, functions of one array, and lists or tuples of them.
        **named: the same by name.

    Inputs:
        What the first layer takes.

    Returns:
        What the last layer returns, and the new states.

    Parameters:
        One entry per layer, under its name.

    States:
        One entry per layer, under its name.

    Raises:
        LayerError: for what is neither a layer nor a function.
    """

    def __init__(self, /, *layers: Any, **named: Any) -> None:
        super().__init__(layers if layers or named else (NoOpLayer(),), named)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Run the layers in order."""
        changed: dict[str, Tree] = {}
        for name, layer in zip(self._names, self._layers):  # noqa: B905 (equally long, and this loop is hot)
            old = st[name]
            x, new = layer(x, ps[name], old)
            if new is not old:
                changed[name] = new
        return x, trusted({**st, **changed}) if changed else st

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of the last layer."""
        for name, layer in zip(self._names, self._layers, strict=True):
            input_shape = shape_below(self, name, layer, input_shape)
        return input_shape

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers)

    def __getitem__(self, index: int | slice | str) -> Any:
        if isinstance(index, slice):
            return Chain(**dict(zip(self._names[index], self._layers[index], strict=True)))
        try:
            return self._layers[self._names.index(index) if isinstance(index, str) else index]
        except (IndexError, ValueError) as error:
            names = f"{', '.join(self._names)}; there are {len(self)} layers"
            raise EntryError(f"expected the name or index of a layer, got {index!r}; the names are: {names}") from error

    def __repr__(self) -> str:
        return f"Chain({', '.join(self._arguments())})"


class Parallel(_Sequence):
    """Layers side by side: ``y = connection(layer_1(x[0]), ..., layer_n(x[n - 1]))``.

    A tuple `x` has one element per layer; any other `x` goes to all of them. With ``connection=None`` the
    outputs stay a tuple; a function gets them as arguments; a layer gets the tuple.

    Args:
        connection: None, a function of all outputs, or a layer.
        *layers: layers or functions.
        **named: the same by name.

    Inputs:
        A tuple with one input per layer, or one input for all.

    Returns:
        What `connection` makes of the outputs, and the new states.

    Parameters:
        One entry per layer, under its name, and ``connection`` where that is a layer.

    States:
        One entry per layer, under its name, and ``connection`` where that is a layer.

    Raises:
        LayerError: for what is neither a layer nor a function.
        ShapeError: when called, for a tuple of another length.
    """

    def __init__(self, connection: Any, /, *layers: Any, **named: Any) -> None:
        super().__init__(layers, named)
        self._connection = _joining("Parallel", "connection", connection, self._names)

    def children(self) -> Mapping[str, Layer]:
        """The layers by name, and the connection where it is one."""
        return {**super().children(), **_as_child("connection", self._connection)}

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Run the layers and connect their outputs."""
        return self._run(self._inputs(x, type(x) is tuple), self._connection, "connection", ps, st)

    def output_shape(self, input_shape: tuple[int, ...]) -> Any:
        """That of the connection, a tuple of shapes without one; `input_shape` may be a tuple of shapes."""
        tupled = any(isinstance(entry, tuple) for entry in input_shape)
        return self._shapes(self._inputs(input_shape, tupled), self._connection, "connection")

    def _inputs(self, x: Any, tupled: bool) -> tuple[Any, ...]:
        return inputs_of(x, tupled, len(self._layers), "one per layer", "; BranchLayer gives x to all")

    def __repr__(self) -> str:
        return f"Parallel({', '.join([named_or_repr(self._connection), *self._arguments()])})"


class BranchLayer(_Sequence):
    """One input, several layers: ``y = fusion(layer_1(x), ..., layer_n(x))``.

    With ``fusion=None`` the outputs are a tuple; a function gets them as arguments; a layer gets the tuple. A
    tuple `x` goes to every layer as it is: that is the difference from `Parallel`.

    Args:
        *layers: layers or functions.
        fusion: None, a function of all outputs, or a layer.

    Inputs:
        What every layer takes.

    Returns:
        What `fusion` makes of the outputs, and the new states.

    Parameters:
        ``layer_1``, ``layer_2``, ... and ``fusion`` where that is a layer.

    States:
        ``layer_1``, ``layer_2``, ... and ``fusion`` where that is a layer.

    Raises:
        LayerError: for what is neither a layer nor a function.
    """

    def __init__(self, *layers: Any, fusion: Any = None) -> None:
        super().__init__(layers, {})
        self._fusion = _joining("BranchLayer", "fusion", fusion, self._names)

    def children(self) -> Mapping[str, Layer]:
        """The layers by name, and the fusion where it is one."""
        return {**super().children(), **_as_child("fusion", self._fusion)}

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Run every layer on `x` and fuse their outputs."""
        return self._run((x,) * len(self._layers), self._fusion, "fusion", ps, st)

    def output_shape(self, input_shape: tuple[int, ...]) -> Any:
        """That of the fusion; a tuple of shapes without one."""
        return self._shapes((input_shape,) * len(self._layers), self._fusion, "fusion")

    def __repr__(self) -> str:
        fusion = [] if self._fusion is None else [f"fusion={named_or_repr(self._fusion)}"]
        return f"BranchLayer({', '.join([*self._arguments(), *fusion])})"


class SkipConnection(ContainerLayer):
    """A shortcut past layers: ``y = connection(layers(x), x)``.

    Args:
        layers: a layer or function, or a list or tuple of them, which becomes a `Chain`.
        connection: a function of both, such as ``operator.add``, or a layer, which gets the tuple of both.

    Inputs:
        What `layers` takes.

    Returns:
        What `connection` makes of the output and the input, and the new states.

    Parameters:
        ``layers``, and ``connection`` where that is a layer.

    States:
        ``layers``, and ``connection`` where that is a layer.

    Raises:
        LayerError: for what is neither a layer nor a function.
    """

    def __init__(self, layers: Any, connection: Any) -> None:
        several = isinstance(layers, list | tuple)
        self.layers: Layer = Chain(*layers) if several else as_layer("SkipConnection", layers)
        self.connection = _joining("SkipConnection", "connection", connection, ())
        if connection is None:
            raise LayerError("SkipConnection: expected connection to be a function or a layer, got None")

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Run the layers and connect their output with `x`."""
        y, below = self.layers(x, ps["layers"], st["layers"])
        return join_outputs(self.connection, "connection", (y, x), ps, st, {"layers": below})

    def output_shape(self, input_shape: tuple[int, ...]) -> Any:
        """That of the connection."""
        shapes = (shape_below(self, "layers", self.layers, input_shape), input_shape)
        return joined_shape(self, self.connection, "connection", shapes)


# Connections that work element by element: their output shape is known without calling them.
_ELEMENTWISE = frozenset(
    {operator.add, operator.sub, operator.mul, operator.truediv}
    | {cnp.add, cnp.subtract, cnp.multiply, cnp.divide, cnp.maximum, cnp.minimum}
)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"layer_{i + 1}" for i in range(count))


def _spliced(layers: Iterable[Any]) -> Iterator[Any]:
    for layer in layers:
        if isinstance(layer, list | tuple):
            yield from _spliced(layer)
        else:
            yield layer


def as_layer(kind: str, value: Any) -> Layer:
    """A layer as it is, a function wrapped in one.

    Raises:
        LayerError: for anything else.
    """
    if is_layer(value):
        return value  # type: ignore[no-any-return]  # just checked
    if callable(value) and not isinstance(value, type):
        return WrappedFunction(value)
    hint = f"; did you mean {value.__name__}(...)?" if isinstance(value, type) else ""
    raise LayerError(f"{kind}: expected layers or functions, got {describe(value)}{hint}")


def _joining(kind: str, name: str, value: Any, names: tuple[str, ...]) -> Any:
    """A connection or fusion, checked."""
    if value is not None and not callable(value):
        raise LayerError(f"{kind}: expected {name} to be None, a function or a layer, got {describe(value)}")
    if is_layer(value) and name in names:
        raise LayerError(f"{kind}: {name!r} names both a layer and the {name}; choose another name")
    return value


def _as_child(name: str, value: Any) -> dict[str, Layer]:
    return {name: value} if is_layer(value) else {}


def inputs_of(x: Any, tupled: bool, count: int, rule: str, hint: str = "") -> tuple[Any, ...]:
    """A tuple of `count` inputs: `x`, or where it is no tuple, `x` for each.

    Raises:
        ShapeError: for a tuple of another length.
    """
    if not tupled:
        return (x,) * count
    if len(x) != count:
        raise ShapeError(f"expected a tuple of {count} inputs, {rule}, got {len(x)}{hint}")
    return x  # type: ignore[no-any-return]  # a tuple


def join_outputs(
    join: Any, name: str, outputs: tuple[Any, ...], ps: Tree, st: Tree, states: dict[str, Tree]
) -> tuple[Any, Tree]:
    """``(y, st)`` of a connection: None, a function, or the layer called `name`."""
    y: Any = outputs
    if is_layer(join):
        y, states[name] = join(outputs, ps[name], st[name])
    elif join is not None:
        y = join(*outputs)
    changed = any(new is not st[child] for child, new in states.items())
    return y, trusted({**st, **states}) if changed else st


def shape_below(parent: Layer, name: str, layer: Layer, shape: Any) -> Any:
    """The child's output shape; an error in it gets the child's name."""
    try:
        return layer.output_shape(shape)
    except Exception as error:
        locate(error, layer, None, lambda *_: None)
        locate(error, parent, None, lambda *_: name)
        raise


def joined_shape(parent: Layer, join: Any, name: str, shapes: tuple[Any, ...]) -> Any:
    """The output shape of a connection of outputs of these shapes.

    Raises:
        LayerError: for a function whose output shape is not known without calling it.
        ShapeError: for shapes that it does not take.
    """
    if join is None:
        return shapes
    if is_layer(join):
        return shape_below(parent, name, join, shapes)
    if join in _ELEMENTWISE or isinstance(join, np.ufunc):
        try:
            return np.broadcast_shapes(*shapes)
        except ValueError as error:
            raise ShapeError(f"expected outputs that broadcast for {named_or_repr(join)}, got {shapes}") from error
    raise LayerError(
        f"the output shape of the function {named_or_repr(join)} is not known without calling it; make it a layer that "
        "defines output_shape(self, input_shapes)"
    )
