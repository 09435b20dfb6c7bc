"""Pooling."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

from culux import nn
from culux.core import Layer
from culux.layers.checks import shape_of
from culux.nn.pooling import check_windows, windows_over
from culux.tree import Tree

__all__ = ["MaxPool", "MeanPool"]


class _Pool(Layer):
    """What the layers have in common: their fields, and the shape that they lead to."""

    window: int | tuple[int, ...]
    _: KW_ONLY
    stride: int | tuple[int, ...] | None = None
    padding: int | tuple[int, ...] | str = 0

    def __post_init__(self) -> None:
        check_windows(type(self).__name__, self.window, self.stride, self.padding)

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(batch, channels, *out)``."""
        windows = windows_over(type(self).__name__, tuple(input_shape), self.window, self.stride, self.padding)
        return (*input_shape[:2], *windows.out)


class MaxPool(_Pool):
    """The maximum of every window: ``y[..., i] = max(x[..., i * stride - padding : ... + window])``.

    Padding counts as -inf; the gradient goes to the first of equal maxima, as in torch.

    Args:
        window: the lengths of a window, one per spatial axis, or one int for all.
        stride: the steps between windows; None for `window`.
        padding: what is added on both sides, at most half the window; "valid" for 0; "same" for an output of the
            input's lengths, which needs ``stride=1``, an odd element going behind.

    Inputs:
        x: ``(batch, channels, *spatial)``, one to three spatial axes.

    Returns:
        y ``(batch, channels, *out)``, ``out = (size + 2 * padding - window) // stride + 1``, and the states as they
        were.

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
        return nn.maxpool(x, self.window, stride=self.stride, padding=self.padding), st


class MeanPool(_Pool):
    """The mean of every window: ``y[..., i] = mean(x[..., i * stride - padding : ... + window])``.

    Padding counts as zeros, which count in the mean, as in torch (``count_include_pad=True``).

    Args:
        window: the lengths of a window, one per spatial axis, or one int for all.
        stride: the steps between windows; None for `window`.
        padding: what is added on both sides, at most half the window; "valid" for 0; "same" for an output of the
            input's lengths, which needs ``stride=1``, an odd element going behind.

    Inputs:
        x: ``(batch, channels, *spatial)``, one to three spatial axes.

    Returns:
        y ``(batch, channels, *out)``, ``out = (size + 2 * padding - window) // stride + 1``, and the states as they
        were.

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
        return nn.meanpool(x, self.window, stride=self.stride, padding=self.padding), st
