"""Pooling."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

from culux import nn
from culux.core import Layer
from culux.layers.checks import shape_of
from culux.nn.adaptive import adaptive_out, check_order, check_output_size
from culux.nn.pooling import check_windows, windows_over
from culux.tree import Tree

__all__ = [
    "AdaptiveLPPool",
    "AdaptiveMaxPool",
    "AdaptiveMeanPool",
    "GlobalLPPool",
    "GlobalMaxPool",
    "GlobalMeanPool",
    "LPPool",
    "MaxPool",
    "MeanPool",
]


class _Pool(Layer):
    """What the layers have in common: their fields, and the shape that they lead to."""

    window: int | tuple[int, ...]
    _: KW_ONLY
    stride: int | tuple[int, ...] | None = None
    padding: int | tuple[int, ...] | str = 0
    dilation: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        check_windows(type(self).__name__, self.window, self.stride, self.padding, self.dilation)

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(batch, channels, *out)``."""
        windows = windows_over(
            type(self).__name__, tuple(input_shape), self.window, self.stride, self.padding, self.dilation
        )
        return (*input_shape[:2], *windows.out)


class MaxPool(_Pool):
    """The maximum of every window: ``y[..., i] = max over t of x[..., i * stride - padding + t * dilation]``.

    Padding counts as -inf; the gradient goes to the first of equal maxima, as in torch.

    Args:
        window: the lengths of a window, one per spatial axis, or one int for all; t runs from 0 to them.
        stride: the steps between windows; None for `window`.
        padding: what is added on both sides, at most half the window; "valid" for 0; "same" for an output of the
            input's lengths, which needs ``stride=1``, an odd element going behind.
        dilation: the steps between the elements of a window.

    Inputs:
        x: ``(batch, channels, *spatial)``, one to three spatial axes.

    Returns:
        y ``(batch, channels, *out)``, ``out = (size + 2 * padding - dilation * (window - 1) - 1) // stride + 1``, and
        the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` that the window does not fit.
    """

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The maxima."""
        shape_of(x)
        return nn.maxpool(x, self.window, stride=self.stride, padding=self.padding, dilation=self.dilation), st


class MeanPool(_Pool):
    """The mean of every window: ``y[..., i] = mean over t of x[..., i * stride - padding + t * dilation]``.

    Padding counts as zeros, which count in the mean, as in torch (``count_include_pad=True``).

    Args:
        window: the lengths of a window, one per spatial axis, or one int for all; t runs from 0 to them.
        stride: the steps between windows; None for `window`.
        padding: what is added on both sides, at most half the window; "valid" for 0; "same" for an output of the
            input's lengths, which needs ``stride=1``, an odd element going behind.
        dilation: the steps between the elements of a window.

    Inputs:
        x: ``(batch, channels, *spatial)``, one to three spatial axes.

    Returns:
        y ``(batch, channels, *out)``, ``out = (size + 2 * padding - dilation * (window - 1) - 1) // stride + 1``, and
        the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` that the window does not fit.
    """

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The means."""
        shape_of(x)
        return nn.meanpool(x, self.window, stride=self.stride, padding=self.padding, dilation=self.dilation), st


class LPPool(_Pool):
    """The power mean of every window, as a sum: ``y[..., i] = sum(x[..., window i] ** p) ** (1 / p)``.

    Window i has the elements ``i * stride - padding + t * dilation``. As in torch there is no absolute value: an odd
    `p` takes the sign along, and y is NaN where a sum is negative.

    Args:
        window: the lengths of a window, one per spatial axis, or one int for all; t runs from 0 to them.
        p: the power, a number > 0; 1 gives the sum, 2 the Euclidean norm.
        stride: the steps between windows; None for `window`.
        padding: zeros that are added on both sides, at most half the window; "valid" for 0; "same" for an output of
            the input's lengths, which needs ``stride=1``, an odd element going behind.
        dilation: the steps between the elements of a window.

    Inputs:
        x: ``(batch, channels, *spatial)``, one to three spatial axes.

    Returns:
        y ``(batch, channels, *out)``, ``out = (size + 2 * padding - dilation * (window - 1) - 1) // stride + 1``, and
        the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` that the window does not fit.
    """

    _: KW_ONLY
    p: float = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order("LPPool", self.p)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The power means."""
        shape_of(x)
        return nn.lppool(x, self.window, p=self.p, stride=self.stride, padding=self.padding, dilation=self.dilation), st


class _Adaptive(Layer):
    """What the pools with a given number of windows have in common."""

    output_size: int | tuple[int | None, ...] | None

    def __post_init__(self) -> None:
        check_output_size(type(self).__name__, self.output_size)

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(batch, channels, *output_size)``."""
        return (*input_shape[:2], *adaptive_out(type(self).__name__, tuple(input_shape), self.output_size))


class AdaptiveMeanPool(_Adaptive):
    """The means of a given number of windows: ``y[..., i] = mean(x[..., i * in // out : ceil((i + 1) * in / out)])``.

    The windows are torch's: they cover the input, and differ by one in length where `out` does not divide `in`.

    Args:
        output_size: the lengths of the spatial axes of y, one int for all; None keeps that of x.

    Inputs:
        x: ``(batch, channels, *spatial)``, one to three spatial axes.

    Returns:
        y ``(batch, channels, *output_size)``, and the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        LayerError: for an `output_size` that is none of these.
        ShapeError: when called, for an `x` that it does not fit.
    """

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The means."""
        shape_of(x)
        return nn.adaptive_meanpool(x, self.output_size), st


class AdaptiveMaxPool(_Adaptive):
    """The maxima of a given number of windows: ``y[..., i] = max(x[..., i * in // out : ceil((i + 1) * in / out)])``.

    The windows are those of `AdaptiveMeanPool`; the gradient goes to the first of equal maxima.

    Args:
        output_size: the lengths of the spatial axes of y, one int for all; None keeps that of x.

    Inputs:
        x: ``(batch, channels, *spatial)``, one to three spatial axes.

    Returns:
        y ``(batch, channels, *output_size)``, and the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        LayerError: for an `output_size` that is none of these.
        ShapeError: when called, for an `x` that it does not fit.
    """

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The maxima."""
        shape_of(x)
        return nn.adaptive_maxpool(x, self.output_size), st


class AdaptiveLPPool(_Adaptive):
    """The power means of a given number of windows, as sums: ``y[..., i] = sum(x[..., window i] ** p) ** (1 / p)``.

    The windows are those of `AdaptiveMeanPool`; the power is that of `LPPool`.

    Args:
        output_size: the lengths of the spatial axes of y, one int for all; None keeps that of x.
        p: the power, a number > 0.

    Inputs:
        x: ``(batch, channels, *spatial)``, one to three spatial axes.

    Returns:
        y ``(batch, channels, *output_size)``, and the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` that they do not fit.
    """

    _: KW_ONLY
    p: float = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order("AdaptiveLPPool", self.p)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The power means."""
        shape_of(x)
        return nn.adaptive_lppool(x, self.output_size, p=self.p), st


class _Global(Layer):
    """What the pools over everything have in common."""

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(batch, channels, 1, ...)``."""
        return (*input_shape[:2], *adaptive_out(type(self).__name__, tuple(input_shape), 1))


class GlobalMeanPool(_Global):
    """The mean over all spatial axes, which stay with the length 1: ``y[n, c, 0, 0] = mean(x[n, c])``.

    Args:
        None.

    Inputs:
        x: ``(batch, channels, *spatial)``, one to three spatial axes.

    Returns:
        y ``(batch, channels, 1, ...)``, and the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        ShapeError: when called, for an `x` without spatial axes, or an empty one.
    """

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The means."""
        shape_of(x)
        return nn.adaptive_meanpool(x, 1), st


class GlobalMaxPool(_Global):
    """The maximum over all spatial axes, which stay with the length 1: ``y[n, c, 0, 0] = max(x[n, c])``.

    The gradient goes to the first of equal maxima.

    Args:
        None.

    Inputs:
        x: ``(batch, channels, *spatial)``, one to three spatial axes.

    Returns:
        y ``(batch, channels, 1, ...)``, and the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        ShapeError: when called, for an `x` without spatial axes, or an empty one.
    """

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The maxima."""
        shape_of(x)
        return nn.adaptive_maxpool(x, 1), st


class GlobalLPPool(_Global):
    """The power mean over all spatial axes, as a sum: ``y[n, c, 0, 0] = sum(x[n, c] ** p) ** (1 / p)``.

    Args:
        p: the power, a number > 0; as for `LPPool`.

    Inputs:
        x: ``(batch, channels, *spatial)``, one to three spatial axes.

    Returns:
        y ``(batch, channels, 1, ...)``, and the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        LayerError: for a `p` that is no number > 0.
        ShapeError: when called, for an `x` without spatial axes, or an empty one.
    """

    _: KW_ONLY
    p: float = 2

    def __post_init__(self) -> None:
        check_order("GlobalLPPool", self.p)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The power means."""
        shape_of(x)
        return nn.adaptive_lppool(x, 1, p=self.p), st
