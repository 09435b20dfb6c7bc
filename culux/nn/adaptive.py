"""Pooling into a given number of windows, and by the power mean."""

from __future__ import annotations

import math
from typing import Any

from culux.autodiff.tracer import plain
from culux.backends import Array, backend_of
from culux.backends.registry import namespace_of
from culux.errors import LayerError, ShapeError, describe
from culux.nn.axis_taps import AxisTaps, tapped
from culux.nn.fused import narrow, require_float, widen
from culux.nn.pooling import Lengths, meanpool, windows_over
from culux.numpy.elementwise import power
from culux.numpy.indexing import take_along_axis

__all__ = [
    "adaptive_lppool",
    "adaptive_maxpool",
    "adaptive_meanpool",
    "adaptive_out",
    "check_order",
    "check_output_size",
    "lppool",
]

OutputSize = int | None | tuple[int | None, ...]
"""A length for every spatial axis of the output, or one for all; None keeps the input's."""


def adaptive_meanpool(x: Array, output_size: OutputSize) -> Array:
    """``y[..., i] = mean(x[..., i * in // out : ceil((i + 1) * in / out)])`` over every spatial axis.

    float16 and bfloat16 are summed in float32. The windows are torch's: they differ by one in length, and overlap,
    where `out` does not divide `in`.

    Args:
        x: (N, C, *spatial), float, with one to three spatial axes.
        output_size: the lengths of the spatial axes of y, or one for all; None keeps that of `x`.

    Returns:
        y (N, C, *output_size), of the dtype of `x`.

    Raises:
        LayerError: for an `output_size` that is none.
        ShapeError: for an `x` that it does not fit.
        DTypeError: for an `x` that is no float array.
    """
    require_float("adaptive_meanpool", x)
    out = adaptive_out("adaptive_meanpool", tuple(x.shape), output_size)
    return narrow(_means(widen(x), out), x)


def adaptive_maxpool(x: Array, output_size: OutputSize) -> Array:
    """``y[..., i] = max(x[..., i * in // out : ceil((i + 1) * in / out)])`` over every spatial axis.

    The gradient goes to the first of equal maxima; a window with a NaN has NaN.

    Args:
        x: (N, C, *spatial), float, with one to three spatial axes.
        output_size: as `adaptive_meanpool` has it.

    Returns:
        y (N, C, *output_size), of the dtype of `x`.

    Raises:
        LayerError: for an `output_size` that is none.
        ShapeError: for an `x` that it does not fit.
        DTypeError: for an `x` that is no float array.
    """
    require_float("adaptive_maxpool", x)
    out = adaptive_out("adaptive_maxpool", tuple(x.shape), output_size)
    # The last axis first: then the first of equal maxima is the first in the order of memory, as torch has it.
    for axis in range(x.ndim - 1, 1, -1):
        if out[axis - 2] != x.shape[axis]:
            x = _maxima(x, axis, out[axis - 2])
    return x


def _maxima(x: Array, axis: int, out: int) -> Array:
    """The maxima of the adaptive windows along an axis."""
    value, size = plain(x), x.shape[axis]
    xp = backend_of(value).xp
    i = xp.arange(out)
    start, end = i * size // out, -(-(i + 1) * size // out)
    longest = max(-(-(k + 1) * size // out) - k * size // out for k in range(out))
    # Shorter windows have their last element twice, which is never the first maximum.
    index = xp.minimum(xp.reshape(start, (-1, 1)) + xp.arange(longest), xp.reshape(end, (-1, 1)) - 1)
    windows = xp.reshape(
        xp.take(value, xp.reshape(index, (-1,)), axis=axis), (*x.shape[:axis], out, longest, *x.shape[axis + 1 :])
    )
    first = xp.argmax(windows, axis=axis + 1)
    return take_along_axis(x, first + xp.reshape(start, (-1,) + (1,) * (x.ndim - axis - 1)), axis)


def adaptive_lppool(x: Array, output_size: OutputSize, *, p: float = 2) -> Array:
    """``y[..., i] = sum(x[..., window i] ** p) ** (1 / p)`` over the windows of `adaptive_meanpool`.

    Args:
        x: (N, C, *spatial), float, with one to three spatial axes.
        output_size: as `adaptive_meanpool` has it.
        p: the power, a number > 0; as for `lppool`.

    Returns:
        y (N, C, *output_size), of the dtype of `x`.

    Raises:
        LayerError: for an `output_size` or `p` that is none.
        ShapeError: for an `x` that it does not fit.
        DTypeError: for an `x` that is no float array.
    """
    require_float("adaptive_lppool", x)
    check_order("adaptive_lppool", p)
    out = adaptive_out("adaptive_lppool", tuple(x.shape), output_size)
    wide = _means(power(widen(x), p), out)
    xp = backend_of(plain(wide)).xp
    for axis, (size, length) in enumerate(zip(x.shape[2:], out, strict=True), 2):
        i = xp.arange(length)
        counts = -(-(i + 1) * size // length) - i * size // length
        wide = wide * xp.reshape(xp.asarray(counts, dtype=plain(wide).dtype), (-1,) + (1,) * (x.ndim - axis - 1))
    return narrow(_root(wide, p), x)


def lppool(
    x: Array,
    window: Lengths,
    *,
    p: float = 2,
    stride: Lengths | None = None,
    padding: Lengths | str = 0,
    dilation: Lengths = 1,
) -> Array:
    """``y[..., i] = sum over t of x[..., i * stride - padding + t * dilation] ** p``, to the power of 1 / p.

    As in torch there is no absolute value: an odd `p` takes the sign along, and where a sum is negative, or a
    power of a negative number is none, y is NaN. The gradient of a window of zeros is zero.

    Args:
        x: (N, C, *spatial), float, with one to three spatial axes.
        window: the lengths of a window, t running from 0 to them.
        p: the power, a number > 0; 1 gives the sum, 2 the Euclidean norm.
        stride: the steps between windows; None for `window`.
        padding: as `maxpool` has it; it counts as zeros.
        dilation: the steps between the elements of a window.

    Returns:
        y (N, C, *out), ``out = (size + 2 * padding - dilation * (window - 1) - 1) // stride + 1``, of the dtype of `x`.

    Raises:
        LayerError: for a `p`, windows, strides, paddings or dilations that are none of these.
        ShapeError: for an `x` that they do not fit.
        DTypeError: for an `x` that is no float array.
    """
    require_float("lppool", x)
    check_order("lppool", p)
    count = math.prod(windows_over("lppool", tuple(x.shape), window, stride, padding, dilation).window)
    means = meanpool(power(widen(x), p), window, stride=stride, padding=padding, dilation=dilation)
    return narrow(_root(means * count, p), x)


def _root(total: Array, p: float) -> Array:
    """``total ** (1 / p)``, with the derivative 0 at 0 in place of infinity."""
    xp = namespace_of(total)
    nothing = plain(total) == 0
    return xp.where(nothing, 0, power(xp.where(nothing, 1, total), 1 / p))


def check_order(function: str, p: Any) -> None:
    """Raise a `LayerError` where `p` is no power of a mean."""
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 < p < math.inf:
        raise LayerError(f"{function}: expected p to be a number > 0, got {describe(p)}; for the maximum use maxpool")


def check_output_size(function: str, output_size: Any) -> None:
    """Raise a `LayerError` where `output_size` is none, whatever the input."""
    parts = output_size if isinstance(output_size, tuple | list) else (output_size,)
    if not parts or not all(n is None or (isinstance(n, int) and not isinstance(n, bool) and n > 0) for n in parts):
        raise LayerError(
            f"{function}: expected output_size to be a positive int, None for the input's length, or a tuple of them, "
            f"got {describe(output_size)}"
        )


def adaptive_out(function: str, shape: tuple[int, ...], output_size: OutputSize) -> tuple[int, ...]:
    """The spatial axes of an adaptive pool's output for an input of this shape.

    Raises:
        LayerError: for an `output_size` that is none.
        ShapeError: for a shape that it does not fit.
    """
    check_output_size(function, output_size)
    spatial = shape[2:]
    if not 1 <= len(spatial) <= 3 or not all(spatial):
        raise ShapeError(
            f"{function}: expected x of shape (batch, channels, *spatial) with 1 to 3 spatial axes, none of them "
            f"empty, got {shape}"
        )
    if isinstance(output_size, int | None):
        return tuple(n if output_size is None else output_size for n in spatial)
    if len(output_size) != len(spatial):
        raise ShapeError(
            f"{function}: expected output_size to have {len(spatial)} numbers, one per spatial axis, got "
            f"{tuple(output_size)} (x has shape {shape})"
        )
    return tuple(size if n is None else n for n, size in zip(output_size, spatial, strict=True))


def _means(x: Array, out: tuple[int, ...]) -> Array:
    """The means over adaptive windows, whose weights are products of one factor per axis."""
    for axis, length in enumerate(out, 2):
        size, xp = x.shape[axis], namespace_of(x)
        if size == length:
            continue
        if size % length == 0:
            windows = xp.reshape(x, (*x.shape[:axis], length, size // length, *x.shape[axis + 1 :]))
            x = xp.mean(windows, axis=axis + 1)
        else:
            x = tapped(x, taps=AxisTaps(axis, size, length, "mean"))
    return x
