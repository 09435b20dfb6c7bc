"""Dense and scaling layers, and layers that reshape or wrap a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import Any

import numpy as np

from culux import nn
from culux.backends.registry import namespace_of
from culux.core import Layer
from culux.core.fields import named_or_repr
from culux.errors import LayerError, ShapeError, describe
from culux.layers.checks import (
    as_shape,
    check_activation,
    check_axis,
    check_axis_exists,
    check_initialiser,
    check_length,
    check_parameter,
    check_trailing,
    made,
    shape_of,
)
from culux.nn.activation import Activation, ActivationLike
from culux.nn.activations import identity
from culux.tree import Tree

__all__ = ["Dense", "FlattenLayer", "NoOpLayer", "ReshapeLayer", "Scale", "SelectDim", "WrappedFunction"]


class Dense(Layer):
    """A fully connected layer: ``y = activation(x @ weight.T + bias)``.

    Args:
        in_dims: the number of input features.
        out_dims: the number of output features.
        activation: a function of one array.
        use_bias: whether there is a bias.
        init_weight: an initialiser; None draws from U(-b, b) with ``b = 1 / sqrt(in_dims)``, as torch does.
        init_bias: an initialiser; None draws from the same distribution.

    Inputs:
        x: ``(..., in_dims)``.

    Returns:
        y ``(..., out_dims)``, and the states as they were.

    Parameters:
        weight: ``(out_dims, in_dims)``, float32.
        bias: ``(out_dims,)``, float32, with `use_bias`.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` of another length or parameters of another model.
    """

    in_dims: int
    out_dims: int
    activation: ActivationLike = identity
    _: KW_ONLY
    use_bias: bool = True
    init_weight: Callable[..., Any] | None = None
    init_bias: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_length("Dense", "in_dims", self.in_dims)
        check_length("Dense", "out_dims", self.out_dims)
        form = f"Dense({self.in_dims}, {self.out_dims}, use_bias={{}})"
        check_activation("Dense", self.activation, flag=f"the bias is switched by {form}")
        check_initialiser("Dense", "init_weight", self.init_weight)
        check_initialiser("Dense", "init_bias", self.init_bias)

    def initial_parameters(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Weight and bias."""
        ps = {"weight": made(rng, "init_weight", self.init_weight, (self.out_dims, self.in_dims), self.in_dims)}
        if self.use_bias:
            ps["bias"] = made(rng, "init_bias", self.init_bias, (self.out_dims,), self.in_dims)
        return ps

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(..., out_dims)``."""
        check_axis(input_shape, -1, self.in_dims)
        return (*input_shape[:-1], self.out_dims)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``activation(x @ weight.T + bias)``."""
        check_axis(shape_of(x), -1, self.in_dims)
        weight = check_parameter(ps, "weight", (self.out_dims, self.in_dims))
        bias = check_parameter(ps, "bias", (self.out_dims,)) if self.use_bias else None
        return nn.dense(x, weight, bias, activation=self.activation), st


class Scale(Layer):
    """A scale and shift of every element: ``y = activation(x * weight + bias)``.

    Args:
        shape: the shape of the trailing axes, each with its own scale; an int for one axis.
        activation: a function of one array.
        use_bias: whether there is a bias.
        init_weight: an initialiser; None gives ones.
        init_bias: an initialiser; None gives zeros.

    Inputs:
        x: ``(..., *shape)``.

    Returns:
        y of the shape of x, and the states as they were.

    Parameters:
        weight: `shape`, float32.
        bias: `shape`, float32, with `use_bias`.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` of another shape or parameters of another model.
    """

    shape: int | tuple[int, ...]
    activation: ActivationLike = identity
    _: KW_ONLY
    use_bias: bool = True
    init_weight: Callable[..., Any] | None = None
    init_bias: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        as_shape("Scale", self.shape)
        form = f"Scale({self.shape}, use_bias={{}})"
        check_activation("Scale", self.activation, flag=f"the bias is switched by {form}")
        check_initialiser("Scale", "init_weight", self.init_weight)
        check_initialiser("Scale", "init_bias", self.init_bias)

    def initial_parameters(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Weight and bias."""
        ps = {"weight": made(rng, "init_weight", self.init_weight or _ones, self._shape)}
        if self.use_bias:
            ps["bias"] = made(rng, "init_bias", self.init_bias or _zeros, self._shape)
        return ps

    @property
    def _shape(self) -> tuple[int, ...]:
        return as_shape("Scale", self.shape)

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's."""
        check_trailing(input_shape, self._shape)
        return input_shape

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``activation(x * weight + bias)``."""
        check_trailing(shape_of(x), self._shape)
        y = x * check_parameter(ps, "weight", self._shape)
        if self.use_bias:
            y = y + check_parameter(ps, "bias", self._shape)
        return self.activation(y), st


def _ones(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape, np.float32)


def _zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32)


class WrappedFunction(Layer):
    """A function as a layer: ``y = function(x)``.

    Args:
        function: a function of what the layer is given; differentiable if written in culux operations.

    Inputs:
        What the function takes.

    Returns:
        What the function returns, and the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        LayerError: for what cannot be called.
    """

    function: Callable[..., Any]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise LayerError(f"WrappedFunction: expected a function, got {describe(self.function)}")

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's, for an activation or a ufunc; not known for any other function."""
        if isinstance(self.function, Activation | np.ufunc):
            return input_shape
        raise LayerError(
            f"the output shape of the function {named_or_repr(self.function)} is not known without calling it; make it "
            "a layer that defines output_shape(self, input_shape)"
        )

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``function(x)``."""
        return self.function(x), st


class NoOpLayer(Layer):
    """The identity: ``y = x``.

    Inputs:
        Anything.

    Returns:
        x, and the states as they were.

    Parameters:
        None.

    States:
        None.
    """

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's."""
        return input_shape

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``x``."""
        return x, st


class FlattenLayer(Layer):
    """All axes but the batch in one: ``y = x.reshape(x.shape[0], -1)``.

    Inputs:
        x: ``(batch, ...)``.

    Returns:
        y ``(batch, the product of the others)``, and the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        ShapeError: when called, for an `x` without axes.
    """

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(batch, the product of the others)``."""
        check_axis_exists(input_shape, 0)
        return (input_shape[0], math.prod(input_shape[1:]))

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``x.reshape(x.shape[0], -1)``."""
        return namespace_of(x).reshape(x, self.output_shape(shape_of(x))), st


class ReshapeLayer(Layer):
    """Another shape for every sample: ``y = x.reshape(x.shape[0], *shape)``.

    Args:
        shape: the shape without the batch axis; one length may be -1.

    Inputs:
        x: ``(batch, ...)``.

    Returns:
        y ``(batch, *shape)``, and the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        LayerError: for a `shape` that is none.
        ShapeError: when called, for an `x` of another size.
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = self.shape if isinstance(self.shape, list | tuple) else [None]
        if not all(isinstance(n, int) and (n > 0 or n == -1) for n in lengths) or lengths.count(-1) > 1:
            raise LayerError(
                "ReshapeLayer: expected a tuple of lengths without the batch's, at most one of them -1, got "
                f"{describe(self.shape)}"
            )

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(batch, *shape)``."""
        check_axis_exists(input_shape, 0)
        size, known = math.prod(input_shape[1:]), math.prod(n for n in self.shape if n != -1)
        if (size % known if -1 in self.shape else size - known) != 0:
            raise ShapeError(
                f"expected samples of {known} elements{' or a multiple' if -1 in self.shape else ''} for the shape "
                f"{self.shape}, got {size} (x has shape {tuple(input_shape)})"
            )
        return (input_shape[0], *(size // known if n == -1 else n for n in self.shape))

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``x.reshape(x.shape[0], *shape)``."""
        return namespace_of(x).reshape(x, self.output_shape(shape_of(x))), st


class SelectDim(Layer):
    """One index of an axis: ``y = x[..., index, ...]``; the axis goes.

    Args:
        axis: which axis, the batch being axis 0; negative ones count from the end.
        index: which element of it.

    Inputs:
        x: any shape that has the axis.

    Returns:
        y of the shape of `x` without the axis, and the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        LayerError: for an axis or index that is no int.
        ShapeError: when called, for an `x` without this axis or index.
    """

    axis: int
    index: int

    def __post_init__(self) -> None:
        for name, value in (("axis", self.axis), ("index", self.index)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise LayerError(f"SelectDim: expected {name} to be an int, got {describe(value)}")

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's without the axis."""
        check_axis_exists(input_shape, self.axis)
        length, axis = input_shape[self.axis], self.axis % len(input_shape)
        if not -length <= self.index < length:
            raise ShapeError(
                f"expected x.shape[{self.axis}] > {self.index if self.index >= 0 else -self.index - 1}, got {length} "
                f"(x has shape {tuple(input_shape)})"
            )
        return (*input_shape[:axis], *input_shape[axis + 1 :])

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``x[..., index, ...]``."""
        self.output_shape(shape_of(x))
        return x[(slice(None),) * (self.axis % len(x.shape)) + (self.index,)], st
