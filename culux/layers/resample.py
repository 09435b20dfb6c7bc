"""Resizing of images and other spatial data."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

from culux import nn
from culux.core import Layer
from culux.layers.checks import check_length, shape_of
from culux.nn.resample import check_resizing, resized, shuffled
from culux.tree import Tree

__all__ = ["PixelShuffle", "Upsample"]


class Upsample(Layer):
    """The input at other places along its spatial axes: ``y[i] = x[floor(i / scale)]``, or interpolated.

    The linear modes interpolate between the two neighbours along every axis, with torch's places: at
    ``(i + 0.5) / scale - 0.5``, or with `align_corners` at ``i * (in - 1) / (out - 1)``.

    Args:
        mode: "nearest", or for one, two and three spatial axes "linear", "bilinear" and "trilinear".
        scale: the factor of every spatial axis, or one for all; ``out = floor(in * scale)``.
        size: in its place the lengths of the spatial axes of y, or one for all.
        align_corners: whether the first and last elements of x and y are at the same places.

    Inputs:
        x: ``(batch, channels, *spatial)``, one to three spatial axes.

    Returns:
        y ``(batch, channels, *out)``, and the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` that they do not fit.
    """

    mode: str = "nearest"
    _: KW_ONLY
    scale: float | tuple[float, ...] | None = None
    size: int | tuple[int, ...] | None = None
    align_corners: bool = False

    def __post_init__(self) -> None:
        check_resizing("Upsample", self.mode, self.scale, self.size, self.align_corners)

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(batch, channels, *out)``."""
        return (*input_shape[:2], *resized("Upsample", tuple(input_shape), self.mode, self.scale, self.size))

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Resize."""
        shape_of(x)
        y = nn.upsample(x, mode=self.mode, scale=self.scale, size=self.size, align_corners=self.align_corners)
        return y, st


class PixelShuffle(Layer):
    """Channels laid out in space: ``y[n, c, h * r + i, w * r + j] = x[n, (c * r + i) * r + j, h, w]``, r the factor.

    Shi et al., "Real-time single image and video super-resolution using an efficient sub-pixel convolutional
    neural network", 2016; the order of channels is torch's.

    Args:
        factor: by how much every spatial axis grows.

    Inputs:
        x: ``(batch, channels * factor**k, *spatial)``, with k spatial axes, one at least.

    Returns:
        y ``(batch, channels, *out)``, ``out = size * factor``, and the states as they were.

    Parameters:
        None.

    States:
        None.

    Raises:
        LayerError: for a factor that is no positive int.
        ShapeError: when called, for an `x` without spatial axes, or whose channels the factor does not divide.
    """

    factor: int

    def __post_init__(self) -> None:
        check_length("PixelShuffle", "factor", self.factor)

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(batch, channels, *out)``."""
        return shuffled("PixelShuffle", tuple(input_shape), self.factor)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Move the channels."""
        shape_of(x)
        return nn.pixel_shuffle(x, self.factor), st
