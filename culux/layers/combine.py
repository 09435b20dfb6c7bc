"""Layers of two inputs, of several branches, and around another layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import Any

import numpy as np

from culux import nn
from culux import numpy as cnp
from culux.backends.dtypes import float_dtype
from culux.backends.registry import namespace_of
from culux.core import Layer, WrapperLayer
from culux.core.fields import is_layer, named_or_repr
from culux.errors import LayerError, describe
from culux.layers.checks import (
    check_activation,
    check_axis,
    check_axis_exists,
    check_initialiser,
    check_length,
    check_parameter,
    made,
    shape_of,
)
from culux.layers.containers import BranchLayer, Parallel, as_layer, inputs_of, join_outputs, joined_shape, shape_below
from culux.nn.activation import ActivationLike
from culux.nn.activations import identity
from culux.nn.fused import require_float
from culux.tree import Tree

__all__ = ["AlternatePrecision", "Bilinear", "Maxout", "PairwiseFusion", "RepeatedLayer", "ReverseSequence"]


class Bilinear(Layer):
    """A layer of two inputs: ``z[o] = activation(x @ weight[o] @ y + bias[o])``.

    Args:
        in_dims: the numbers of features of both inputs, ``(in1, in2)``; an int for two alike.
        out_dims: the number of output features.
        activation: a function of one array.
        use_bias: whether there is a bias.
        init_weight: an initialiser; None draws from U(-b, b) with ``b = 1 / sqrt(in1)``, as torch does.
        init_bias: an initialiser; None draws from the same distribution.

    Inputs:
        x: the tuple of ``(..., in1)`` and ``(..., in2)`` with the same leading axes; one array is taken for both.

    Returns:
        z ``(..., out_dims)``, and the states as they were.

    Parameters:
        weight: ``(out_dims, in1, in2)``, float32.
        bias: ``(out_dims,)``, float32, with `use_bias`.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these; when called, for an `x` that is no pair.
        ShapeError: when called, for inputs of other lengths or parameters of another model.
    """

    in_dims: int | tuple[int, int]
    out_dims: int
    activation: ActivationLike = identity
    _: KW_ONLY
    use_bias: bool = True
    init_weight: Callable[..., Any] | None = None
    init_bias: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        pair = self.in_dims if isinstance(self.in_dims, tuple | list) else (self.in_dims, self.in_dims)
        if len(pair) != 2:
            raise LayerError(f"Bilinear: expected in_dims to be an int or a pair (in1, in2), got {self.in_dims}")
        for length in pair:
            check_length("Bilinear", "in_dims", length)
        check_length("Bilinear", "out_dims", self.out_dims)
        pairs = f"the lengths of both inputs are a pair: Bilinear(({self.in_dims}, {self.out_dims}), {{}})"
        flag = f"the bias is switched by Bilinear({self.in_dims}, {self.out_dims}, use_bias={{}})"
        check_activation("Bilinear", self.activation, flag=flag, number=pairs)
        check_initialiser("Bilinear", "init_weight", self.init_weight)
        check_initialiser("Bilinear", "init_bias", self.init_bias)

    def _pair(self) -> tuple[int, int]:
        return (self.in_dims, self.in_dims) if isinstance(self.in_dims, int) else self.in_dims

    def initial_parameters(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Weight and bias."""
        first, second = self._pair()
        ps = {"weight": made(rng, "init_weight", self.init_weight, (self.out_dims, first, second), first)}
        if self.use_bias:
            ps["bias"] = made(rng, "init_bias", self.init_bias, (self.out_dims,), first)
        return ps

    def output_shape(self, input_shape: tuple[Any, ...]) -> tuple[int, ...]:
        """``(..., out_dims)``; `input_shape` may be a pair of shapes."""
        pair = input_shape if any(isinstance(entry, tuple) for entry in input_shape) else (input_shape,) * 2
        for shape, length in zip(pair, self._pair(), strict=True):
            check_axis(shape, -1, length)
        return (*pair[0][:-1], self.out_dims)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``activation(x @ weight[o] @ y + bias[o])`` for every o."""
        pair = x if type(x) is tuple else (x, x)
        if len(pair) != 2:
            raise LayerError(f"expected x to be a pair of arrays, got a tuple of {len(pair)}")
        for array, length in zip(pair, self._pair(), strict=True):
            check_axis(shape_of(array), -1, length)
        weight = check_parameter(ps, "weight", (self.out_dims, *self._pair()))
        bias = check_parameter(ps, "bias", (self.out_dims,)) if self.use_bias else None
        return nn.bilinear(*pair, weight, bias, activation=self.activation), st


class Maxout(BranchLayer):
    """The largest output of several layers: ``y = max(layer_1(x), ..., layer_n(x))``, element by element.

    Goodfellow et al., "Maxout networks", 2013. The gradient is shared by equal maxima.

    Args:
        *layers: layers or functions; or a layer, or a function of no arguments that makes one, and the number of
            its copies, each with its own parameters: ``Maxout(Dense(2, 3), 4)``.

    Inputs:
        What every layer takes.

    Returns:
        y of the shape that the outputs broadcast to, and the new states.

    Parameters:
        ``layer_1``, ``layer_2``, ...

    States:
        ``layer_1``, ``layer_2``, ...

    Raises:
        LayerError: for what is neither a layer nor a function.
    """

    def __init__(self, *layers: Any) -> None:
        if len(layers) == 2 and isinstance(layers[1], int):
            check_length("Maxout", "the number of copies", layers[1])
            layer = layers[0] if is_layer(layers[0]) or not callable(layers[0]) else layers[0]()
            layers = (layer,) * layers[1]
        super().__init__(*layers)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Run every layer on `x` and take the maxima."""
        return self._run((x,) * len(self._layers), _largest, "maximum", ps, st)

    def output_shape(self, input_shape: tuple[int, ...]) -> Any:
        """The shape that those of the layers broadcast to."""
        return self._shapes((input_shape,) * len(self._layers), cnp.maximum, "maximum")

    def __repr__(self) -> str:
        return f"Maxout({', '.join(self._arguments())})"


def _largest(*arrays: Any) -> Any:
    return functools.reduce(cnp.maximum, arrays)


class PairwiseFusion(Parallel):
    """Layers in a row, each joined with the next input: ``y = connection(layer_i(y), x[i])`` for every layer i.

    It begins with ``y = x[0]``. A tuple `x` has one element more than there are layers; any other `x` is taken
    for all of them.

    Args:
        connection: a function of two outputs, or a layer, which gets the tuple of both.
        *layers: layers or functions.
        **named: the same by name.

    Inputs:
        A tuple with one input more than layers, or one input for all.

    Returns:
        The last y, and the new states.

    Parameters:
        One entry per layer, under its name, and ``connection`` where that is a layer.

    States:
        One entry per layer, under its name, and ``connection`` where that is a layer.

    Raises:
        LayerError: for what is neither a layer nor a function.
        ShapeError: when called, for a tuple of another length.
    """

    def __init__(self, connection: Any, /, *layers: Any, **named: Any) -> None:
        if connection is None:
            raise LayerError("PairwiseFusion: expected connection to be a function or a layer, got None")
        super().__init__(connection, *layers, **named)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Run the layers in order and join each output with the next input."""
        y, *others = self._inputs(x, type(x) is tuple)
        for name, layer, other in zip(self._names, self._layers, others, strict=True):
            below, new = layer(y, ps[name], st[name])
            y, st = join_outputs(self._connection, "connection", (below, other), ps, st, {name: new})
        return y, st

    def output_shape(self, input_shape: tuple[Any, ...]) -> Any:
        """That of the last connection; `input_shape` may be a tuple of shapes."""
        shape, *others = self._inputs(input_shape, any(isinstance(entry, tuple) for entry in input_shape))
        for name, layer, other in zip(self._names, self._layers, others, strict=True):
            below = shape_below(self, name, layer, shape)
            shape = joined_shape(self, self._connection, "connection", (below, other))
        return shape

    def _inputs(self, x: Any, tupled: bool) -> tuple[Any, ...]:
        return inputs_of(x, tupled, len(self._layers) + 1, "one more than there are layers")

    def __repr__(self) -> str:
        return f"PairwiseFusion({', '.join([named_or_repr(self._connection), *self._arguments()])})"


class RepeatedLayer(WrapperLayer):
    """A layer several times over: ``y = layer(layer(... layer(x)))``, always with the same parameters.

    The states go from call to call. With `input_injection` the layer gets the input again every time:
    ``y = layer((y, x))``, beginning with ``y = x``.

    Args:
        layer: a layer or function.
        repeats: how many times it is called.
        input_injection: whether it gets the tuple ``(y, x)``.

    Inputs:
        What `layer` takes; with `input_injection` what makes with itself the tuple that it takes.

    Returns:
        The last y, and the states after the last call.

    Parameters:
        Those of `layer`.

    States:
        Those of `layer`.

    Raises:
        LayerError: for arguments that are none of these.
    """

    def __init__(self, layer: Any, *, repeats: int = 10, input_injection: bool = False) -> None:
        check_length("RepeatedLayer", "repeats", repeats)
        self.layer: Layer = as_layer("RepeatedLayer", layer)
        self.repeats = repeats
        self.input_injection = input_injection

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Call the layer again and again."""
        y = x
        for _ in range(self.repeats):
            y, st = self.layer((y, x) if self.input_injection else y, ps, st)
        return y, st

    def output_shape(self, input_shape: Any) -> Any:
        """That of the last call."""
        shape = input_shape
        for _ in range(self.repeats):
            shape = self.layer.output_shape((shape, input_shape) if self.input_injection else shape)
        return shape


class ReverseSequence(Layer):
    """The elements of an axis in the opposite order: ``y[:, i] = x[:, n - 1 - i]``.

    Args:
        axis: which axis; None for axis 1, the time of ``(batch, time, features)``, and axis 0 of a vector.

    Inputs:
        x: any shape that has the axis.

    Returns:
        y of the shape of x, and the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        LayerError: for an axis that is neither None nor an int.
        ShapeError: when called, for an `x` without this axis.
    """

    axis: int | None = None

    def __post_init__(self) -> None:
        if self.axis is not None and (not isinstance(self.axis, int) or isinstance(self.axis, bool)):
            raise LayerError(f"ReverseSequence: expected axis to be None or an int, got {describe(self.axis)}")

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's."""
        check_axis_exists(input_shape, self._axis(input_shape))
        return input_shape

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The other way round."""
        axis = self._axis(shape_of(x))
        check_axis_exists(x.shape, axis)
        return namespace_of(x).flip(x, axis=axis), st

    def _axis(self, shape: tuple[int, ...]) -> int:
        return min(1, len(shape) - 1) if self.axis is None else self.axis


class AlternatePrecision(WrapperLayer):
    """A layer on its input in another float dtype: ``y = layer(x.astype(dtype)).astype(x.dtype)``.

    The parameters and states stay as they are, and mix with x by NumPy's promotion: a layer with float32 parameters
    computes in float32 what comes in float16.

    Args:
        dtype: "float16", "bfloat16", "float32" or "float64", or such a dtype.
        layer: a layer or function.

    Inputs:
        x: a float array that `layer` takes.

    Returns:
        y of `layer`, in the dtype of x, and the states of `layer`.

    Parameters:
        Those of `layer`.

    States:
        Those of `layer`.

    Raises:
        DTypeError: for a dtype that is no float; when called, for an `x` or y that is no float array.
        LayerError: for a `layer` that is none.
    """

    def __init__(self, dtype: Any, layer: Any) -> None:
        self.dtype = float_dtype(dtype).name
        self.layer: Layer = as_layer("AlternatePrecision", layer)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Convert, run, and convert back."""
        require_float("AlternatePrecision", x)
        y, st = self.layer(cnp.astype(x, float_dtype(self.dtype)), ps, st)
        require_float("AlternatePrecision", y, "the output")
        return cnp.astype(y, x.dtype), st
