"""Convolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import Any, ClassVar

import numpy as np

from culux import nn
from culux.core import Layer
from culux.errors import LayerError, describe
from culux.layers.checks import (
    check_activation,
    check_axis,
    check_initialiser,
    check_length,
    check_parameter,
    made,
    shape_of,
)
from culux.nn.activation import ActivationLike
from culux.nn.activations import identity
from culux.nn.conv import PADDING_MODES, check_groups
from culux.nn.conv_taps import Lengths, Padding, Spec, resolve
from culux.tree import Tree

__all__ = ["Conv", "ConvTranspose"]


class _Convolution(Layer):
    """What the layers have in common: their fields, checks and parameters."""

    kernel_size: tuple[int, ...]
    in_channels: int
    out_channels: int
    activation: ActivationLike = identity
    _: KW_ONLY
    stride: Lengths = 1
    padding: Padding = 0
    dilation: Lengths = 1
    groups: int = 1
    use_bias: bool = True
    padding_mode: str = "zeros"
    cross_correlation: bool = True
    init_weight: Callable[..., Any] | None = None
    init_bias: Callable[..., Any] | None = None

    _modes: ClassVar[tuple[str, ...]] = ("zeros",)

    def __post_init__(self) -> None:
        name, kernel = type(self).__name__, self.kernel_size
        fits = isinstance(kernel, tuple | list) and 1 <= len(kernel) <= 3
        if not fits or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in kernel):
            raise LayerError(
                f"{name}: expected kernel_size, the first argument, to be a tuple of 1 to 3 positive ints, one per "
                f"spatial axis, got {describe(kernel)}; a 3x3 kernel is {name}((3, 3), in_channels, out_channels)"
            )
        check_length(name, "in_channels", self.in_channels)
        check_length(name, "out_channels", self.out_channels)
        form = f"{name}({tuple(kernel)}, {self.in_channels}, {self.out_channels}"
        check_activation(
            name,
            self.activation,
            flag=f"the bias is switched by {form}, use_bias={{}})",
            number=f"{form}, stride={{}})",
        )
        for flag in ("use_bias", "cross_correlation"):
            if not isinstance(getattr(self, flag), bool):
                raise LayerError(f"{name}: expected {flag} to be a bool, got {describe(getattr(self, flag))}")
        if self.padding_mode not in self._modes:
            raise LayerError(
                f"{name}: expected padding_mode to be one of {', '.join(self._modes)}, "
                f"got {describe(self.padding_mode)}"
            )
        check_initialiser(name, "init_weight", self.init_weight)
        check_initialiser(name, "init_bias", self.init_bias)
        check_groups(name, self._spec.groups, in_channels=self.in_channels, out_channels=self.out_channels)

    @property
    def _spec(self) -> Spec:
        return resolve(
            type(self).__name__, tuple(self.kernel_size), self.stride, self.padding, self.dilation, self.groups
        )

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def initial_parameters(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Weight and bias."""
        shape = self._weight_shape
        fan_in = math.prod(shape[1:])
        ps = {"weight": made(rng, "init_weight", self.init_weight, shape, fan_in)}
        if self.use_bias:
            ps["bias"] = made(rng, "init_bias", self.init_bias, (self.out_channels,), fan_in)
        return ps

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(batch, out_channels, *lengths)``."""
        lengths = self._lengths(tuple(input_shape))
        check_axis(input_shape, 1, self.in_channels)
        return (input_shape[0], self.out_channels, *lengths)

    def _lengths(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The lengths of the output's spatial axes."""
        raise NotImplementedError(f"{type(self).__name__} defines _lengths(self, shape)")

    def _parameters(self, x: Any, ps: Tree) -> tuple[Any, Any]:
        """Weight and bias, checked as `x` is."""
        self.output_shape(shape_of(x))
        bias = check_parameter(ps, "bias", (self.out_channels,)) if self.use_bias else None
        return check_parameter(ps, "weight", self._weight_shape), bias


class Conv(_Convolution):
    """A convolution over one to three spatial axes: ``y = activation(weight * x + bias)``.

    ``y[n, o, i] = activation(bias[o] + sum over c, t of weight[o, c, t] * x[n, c, i * stride + t * dilation - p])``,
    c over the channels of the group of o: cross-correlation, as torch's Conv1d, Conv2d and Conv3d.

    Args:
        kernel_size: the lengths of the kernel, a tuple of one to three: one per spatial axis.
        in_channels: the number of input channels.
        out_channels: the number of output channels.
        activation: a function of one array.
        stride: the steps between windows, one int for all axes or one per axis.
        padding: what is added on both sides: an int, one per axis, or a (before, behind) pair per axis; "valid" for
            0; "same" for an output of the input's lengths, which needs ``stride=1``, an odd element going behind.
        dilation: the steps between the kernel's elements.
        groups: in how many groups the channels are convolved apart; it divides both numbers of channels.
        use_bias: whether there is a bias.
        padding_mode: what the padding holds: "zeros", "circular", "reflect" or "replicate".
        cross_correlation: False turns the kernel round: the convolution of mathematics, and Lux's default.
        init_weight: an initialiser; None draws from U(-b, b) with ``b = 1 / sqrt(in_channels / groups * taps)``, as
            torch does.
        init_bias: an initialiser; None draws from the same distribution.

    Inputs:
        x: ``(batch, in_channels, *spatial)``, as many spatial axes as the kernel has.

    Returns:
        y ``(batch, out_channels, *lengths)``,
        ``(size + before + behind - (kernel - 1) * dilation - 1) // stride + 1`` each, and the states as they were.

    Parameters:
        weight: ``(out_channels, in_channels / groups, *kernel_size)``, float32.
        bias: ``(out_channels,)``, float32, with `use_bias`.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` that the layer does not fit or parameters of another model.
    """

    _modes: ClassVar[tuple[str, ...]] = tuple(PADDING_MODES)

    def _lengths(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._spec.taps("Conv", shape, self.padding_mode).out

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The convolution."""
        weight, bias = self._parameters(x, ps)
        y = nn.conv(
            x, weight, bias, activation=self.activation, stride=self.stride, padding=self.padding,
            dilation=self.dilation, groups=self.groups, padding_mode=self.padding_mode,
            cross_correlation=self.cross_correlation,
        )  # fmt: skip
        return y, st


class ConvTranspose(_Convolution):
    """A transposed convolution, ``y = activation(conv.T(x) + bias)``: elements of x add multiples of the kernel to y.

    ``y[n, o, i * stride + t * dilation - padding] += weight[c, o, t] * x[n, c, i]``, then bias and activation: the
    derivative of `Conv` with respect to its input, as torch's ConvTranspose1d, 2d and 3d.

    Args:
        kernel_size: the lengths of the kernel, a tuple of one to three: one per spatial axis.
        in_channels: the number of input channels.
        out_channels: the number of output channels.
        activation: a function of one array.
        stride: the steps between windows, one int for all axes or one per axis.
        padding: what is cut off on both sides: an int, one per axis, or a (before, behind) pair per axis; "valid" for
            0; "same" for an output of `stride` times the input's lengths.
        output_padding: what is added behind, smaller than the stride or the dilation.
        dilation: the steps between the kernel's elements.
        groups: in how many groups the channels are convolved apart; it divides both numbers of channels.
        use_bias: whether there is a bias.
        padding_mode: "zeros", the only one that a transposed convolution has.
        cross_correlation: False turns the kernel round.
        init_weight: an initialiser; None draws from U(-b, b) with ``b = 1 / sqrt(out_channels / groups * taps)``, as
            torch does.
        init_bias: an initialiser; None draws from the same distribution.

    Inputs:
        x: ``(batch, in_channels, *spatial)``, as many spatial axes as the kernel has.

    Returns:
        y ``(batch, out_channels, *lengths)``,
        ``(size - 1) * stride - before - behind + (kernel - 1) * dilation + output_padding + 1`` each, and the states
        as they were.

    Parameters:
        weight: ``(in_channels, out_channels / groups, *kernel_size)``, float32.
        bias: ``(out_channels,)``, float32, with `use_bias`.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` that the layer does not fit or parameters of another model.
    """

    _: KW_ONLY
    output_padding: Lengths = 0

    @property
    def _spec(self) -> Spec:
        return resolve(
            "ConvTranspose", tuple(self.kernel_size), self.stride, self.padding, self.dilation, self.groups,
            self.output_padding,
        )  # fmt: skip

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    def _lengths(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._spec.transposed_taps("ConvTranspose", shape).size

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The transposed convolution."""
        weight, bias = self._parameters(x, ps)
        y = nn.conv_transpose(
            x, weight, bias, activation=self.activation, stride=self.stride, padding=self.padding,
            output_padding=self.output_padding, dilation=self.dilation, groups=self.groups,
            cross_correlation=self.cross_correlation,
        )  # fmt: skip
        return y, st
