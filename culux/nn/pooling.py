"""`maxpool` and `meanpool`: maxima and means over windows of the spatial axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback, plain
from culux.backends import Array, backend_of
from culux.backends.registry import namespace_of
from culux.errors import LayerError, ShapeError, describe
from culux.kernels import pooling as kernels
from culux.kernels.pooling import Windows
from culux.nn.fused import decompose, evaluate_by_rule, narrow, on_kernels, require_float, widen
from culux.numpy.indexing import take_along_axis

__all__ = ["check_windows", "maxpool", "meanpool", "windows_over"]

Lengths = int | tuple[int, ...]
"""A number for every spatial axis, or one for all."""


def maxpool(
    x: Array, window: Lengths, *, stride: Lengths | None = None, padding: Lengths | str = 0, dilation: Lengths = 1
) -> Array:
    """``y[..., i] = max over t of x[..., i * stride - padding + t * dilation]`` over every spatial axis.

    Padding counts as -inf. The gradient goes to the first of equal maxima; a window with a NaN has NaN.

    Args:
        x: (N, C, *spatial), float, with one to three spatial axes.
        window: the lengths of a window, t running from 0 to them.
        stride: the steps between windows; None for `window`.
        padding: what is added on both sides, at most half the window; "valid" for 0; "same" for an output of the
            input's lengths, which needs stride 1, an odd element going behind, as in torch's convolutions.
        dilation: the steps between the elements of a window.

    Returns:
        y (N, C, *out), ``out = (size + 2 * padding - dilation * (window - 1) - 1) // stride + 1``, of the dtype of `x`.

    Raises:
        LayerError: for windows, strides, paddings or dilations that are none of these.
        ShapeError: for an `x` that they do not fit.
        DTypeError: for an `x` that is no float array.
    """
    require_float("maxpool", x)
    return _maxpool(x, windows=windows_over("maxpool", tuple(x.shape), window, stride, padding, dilation))


def meanpool(
    x: Array, window: Lengths, *, stride: Lengths | None = None, padding: Lengths | str = 0, dilation: Lengths = 1
) -> Array:
    """``y[..., i] = mean over t of x[..., i * stride - padding + t * dilation]`` over every spatial axis.

    Padding counts as zeros, and they count in the mean: the sum is divided by the size of the window everywhere
    (torch's ``count_include_pad=True``, its default). float16 and bfloat16 are summed in float32.

    Args:
        x: (N, C, *spatial), float, with one to three spatial axes.
        window: the lengths of a window.
        stride: the steps between windows; None for `window`.
        padding: as `maxpool` has it.
        dilation: the steps between the elements of a window.

    Returns:
        y (N, C, *out), ``out = (size + 2 * padding - dilation * (window - 1) - 1) // stride + 1``, of the dtype of `x`.

    Raises:
        LayerError: for windows, strides, paddings or dilations that are none of these.
        ShapeError: for an `x` that they do not fit.
        DTypeError: for an `x` that is no float array.
    """
    require_float("meanpool", x)
    return _meanpool(x, windows=windows_over("meanpool", tuple(x.shape), window, stride, padding, dilation))


def check_windows(function: str, window: Any, stride: Any, padding: Any, dilation: Any) -> None:
    """Raise a `LayerError` where these are no window, stride, padding and dilation, whatever the input."""
    checked = [("window", window, 1), ("stride", stride, 1), ("dilation", dilation, 1)]
    if padding not in ("same", "valid"):
        checked.append(("padding", padding, 0))
    for name, value, least in checked:
        parts = value if isinstance(value, tuple | list) else (value,)
        fits = parts and all(isinstance(n, int) and not isinstance(n, bool) and n >= least for n in parts)
        if not fits and not (name == "stride" and value is None):
            also = ', or "same" or "valid"' if name == "padding" else ""
            raise LayerError(
                f"{function}: expected {name} to be an int of at least {least} or a tuple of them{also}, "
                f"got {describe(value)}"
            )


def windows_over(
    function: str,
    shape: tuple[int, ...],
    window: Lengths,
    stride: Lengths | None,
    padding: Lengths | str,
    dilation: Lengths = 1,
) -> Windows:
    """The windows over an input of this shape.

    Raises:
        LayerError: for arguments that are none.
        ShapeError: for a shape that they do not fit.
    """
    check_windows(function, window, stride, padding, dilation)
    size = shape[2:]
    if not 1 <= len(size) <= 3:
        raise ShapeError(
            f"{function}: expected x of shape (batch, channels, *spatial) with 1 to 3 spatial axes, got {shape}"
        )
    windows = _each(function, "window", window, shape)
    strides = windows if stride is None else _each(function, "stride", stride, shape)
    steps = _each(function, "dilation", dilation, shape)
    if padding == "same":
        if any(s != 1 for s in strides):
            raise LayerError(f'{function}: padding="same" needs stride=1, got {strides}; give the padding as a number')
        before = tuple((w - 1) * d // 2 for w, d in zip(windows, steps, strict=True))
        return Windows(size, windows, strides, before, steps, size)
    before = _each(function, "padding", 0 if isinstance(padding, str) else padding, shape)
    if any(2 * p > w for p, w in zip(before, windows, strict=True)):
        raise LayerError(f"{function}: expected padding of at most half the window, got {before} for {windows}")
    found = Windows(size, windows, strides, before, steps, ())
    out = tuple((n + 2 * p - r) // s + 1 for n, p, r, s in zip(size, before, found.reach, strides, strict=True))
    if any(n < 1 for n in out) or not all(size):
        dilated = f" at dilation {steps}" if any(d != 1 for d in steps) else ""
        raise ShapeError(
            f"{function}: expected spatial axes of at least the window {windows}{dilated} with padding {before}, got "
            f"{size} (x has shape {shape})"
        )
    return found._replace(out=out)


def _each(function: str, name: str, value: Lengths, shape: tuple[int, ...]) -> tuple[int, ...]:
    """One number per spatial axis."""
    count = len(shape) - 2
    if isinstance(value, int):
        return (value,) * count
    if len(value) != count:
        raise ShapeError(
            f"{function}: expected {name} to have {count} numbers, one per spatial axis, got {value} "
            f"(x has shape {shape})"
        )
    return tuple(value)


def _padded(x: Array, windows: Windows, fill: float) -> Array:
    """`x` with `fill` around it as far as windows reach, in operations of its namespace."""
    backend = backend_of(plain(x))
    ends = zip(windows.size, windows.stride, windows.before, windows.reach, windows.out, strict=True)
    for axis, (size, stride, before, reach, out) in enumerate(ends, 2):
        after = (out - 1) * stride + reach - before - size
        parts = [
            backend.xp.full((*x.shape[:axis], n, *x.shape[axis + 1 :]), fill, dtype=plain(x).dtype) if n > 0 else None
            for n in (before, after)
        ]
        around = [part for part in (parts[0], x, parts[1]) if part is not None]
        x = x if len(around) == 1 else namespace_of(x).concat(around, axis=axis)
    return x


def _pieces(padded: Array, windows: Windows) -> Iterator[Array]:
    """For every place in a window, the elements that all windows have there: (N, C, *out)."""
    for place in itertools.product(*map(range, windows.window)):
        ends = zip(place, windows.dilation, windows.stride, windows.out, strict=True)
        slices = [slice(i * d, i * d + stride * (out - 1) + 1, stride) for i, d, stride, out in ends]
        yield padded[(slice(None), slice(None), *slices)]


@primitive(composite=True)
def _maxpool(x: Array, *, windows: Windows) -> Array:
    """The portable form."""
    xp = namespace_of(x)
    pieces = _pieces(_padded(x, windows, -math.inf), windows)
    y = next(pieces)
    for piece in pieces:
        y = xp.where((plain(piece) > plain(y)) | (plain(piece) != plain(piece)), piece, y)
    return y


@_maxpool.rule
def _(needs: tuple[bool, ...], x: Array, *, windows: Windows) -> tuple[Array, Pullback]:
    if type(x) is np.ndarray:
        y, marks = _maxima(x, windows, marked=needs[0])
    elif on_kernels(x):
        y, marks = kernels.maxpool(x, windows, marked=needs[0])
    else:
        return decompose(_maxpool, needs, (x,), {"windows": windows})
    return y, lambda dy: (_unpool(dy, marks, windows=windows),)


evaluate_by_rule(_maxpool, "numpy", "cupy")


def _maxima(x: np.ndarray, windows: Windows, *, marked: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """The maxima and, with `marked`, their places in the windows: the first of equal ones, the last NaN."""
    pieces = list(_pieces(_padded(x, windows, -math.inf), windows))
    y = pieces[0].copy()
    if not marked:
        for piece in pieces[1:]:
            np.maximum(y, piece, out=y)
        return y, None
    # At an edge the first place that is not padding: a window of nothing but -inf has its maximum there.
    first = np.zeros((), windows.mark)
    for window, stride, before, dilation, out in zip(*windows[1:], strict=True):
        first = first[..., None] * window + np.maximum(-((stride * np.arange(out) - before) // dilation), 0)
    marks = np.empty(y.shape, windows.mark)
    marks[...] = first
    # A later place is a larger number: the maximum of numbers takes a tenth of the time of writing where a mask is.
    for place, piece in enumerate(pieces[1:], 1):
        np.maximum(marks, (piece > y).astype(windows.mark) * marks.dtype.type(place), out=marks)
        np.maximum(y, piece, out=y)
    if np.isnan(y).any():
        for place, piece in enumerate(pieces):
            np.maximum(marks, np.isnan(piece).astype(windows.mark) * marks.dtype.type(place), out=marks)
    return y, marks


@primitive
def _unpool(dy: Array, marks: Array, *, windows: Windows) -> Array:
    """dx: `dy` added to the places that are marked; written for NumPy."""
    wide = widen(dy)
    bits = wide.view(f"i{wide.dtype.itemsize}")
    dx = _room(wide, windows)
    for place, piece in enumerate(_pieces(dx, windows)):
        # All bits or none: a quarter of np.where's time, and unlike a product it keeps NaN and infinity in their place.
        chosen = (marks == place).astype(bits.dtype)
        np.negative(chosen, out=chosen)
        chosen &= bits
        piece += chosen.view(wide.dtype)
    return narrow(_inner(dx, windows), dy)


_unpool.implementation("cupy")(kernels.maxpool_backward)


@_unpool.rule
def _(needs: tuple[bool, ...], dy: Array, marks: Array, *, windows: Windows) -> tuple[Array, Pullback]:
    return _unpool(dy, marks, windows=windows), lambda d: (_marked(d, marks, windows), None)


def _marked(x: Array, marks: Array, windows: Windows) -> Array:
    """The elements of `x` at the marked places of the windows, in culux operations: the transpose of `_unpool`."""
    xp, index = backend_of(marks).xp, 0
    x = _padded(x, windows, 0.0)  # between the places of a window there may be no input at all
    ends = zip(windows.window, windows.stride, windows.dilation, windows.out, strict=True)
    for axis, (window, stride, dilation, out) in enumerate(ends):
        place = marks // math.prod(windows.window[axis + 1 :]) % window
        starts = xp.arange(out).reshape((-1,) + (1,) * (len(windows.out) - axis - 1)) * stride
        index = index * x.shape[axis + 2] + (starts + place.astype(starts.dtype) * dilation)
    flat = (*x.shape[:2], -1)
    chosen = take_along_axis(namespace_of(x).reshape(x, flat), xp.reshape(index, flat), axis=-1)
    return namespace_of(chosen).reshape(chosen, marks.shape)


@primitive(composite=True)
def _meanpool(x: Array, *, windows: Windows) -> Array:
    """The portable form."""
    pieces = _pieces(_padded(widen(x), windows, 0.0), windows)
    total = next(pieces)
    for piece in pieces:
        total = total + piece
    return narrow(total / math.prod(windows.window), x)


@_meanpool.rule
def _(needs: tuple[bool, ...], x: Array, *, windows: Windows) -> tuple[Array, Pullback]:
    if type(x) is np.ndarray:
        y = _means(x, windows)
    elif on_kernels(x):
        y = kernels.meanpool(x, windows)
    else:
        return decompose(_meanpool, needs, (x,), {"windows": windows})
    return y, lambda dy: (_spread(dy, windows=windows),)


evaluate_by_rule(_meanpool, "numpy", "cupy")


def _means(x: np.ndarray, windows: Windows) -> Array:
    pieces = _pieces(_padded(widen(x), windows, 0.0), windows)
    total = next(pieces).copy()
    for piece in pieces:
        total += piece
    total /= math.prod(windows.window)
    return narrow(total, x)


@primitive
def _spread(dy: Array, *, windows: Windows) -> Array:
    """dx: a share of `dy` for every place of its window; written for NumPy."""
    share = widen(dy) / math.prod(windows.window)
    dx = _room(share, windows)
    for piece in _pieces(dx, windows):
        piece += share
    return narrow(_inner(dx, windows), dy)


_spread.implementation("cupy")(kernels.meanpool_backward)


@_spread.rule
def _(needs: tuple[bool, ...], dy: Array, *, windows: Windows) -> tuple[Array, Pullback]:
    return _spread(dy, windows=windows), lambda d: (_meanpool(d, windows=windows),)


def _room(dy: np.ndarray, windows: Windows) -> np.ndarray:
    """Zeros for the input and as far around it as windows reach."""
    ends = zip(windows.size, windows.stride, windows.before, windows.reach, windows.out, strict=True)
    reach = [max(before + size, (out - 1) * stride + span) for size, stride, before, span, out in ends]
    return np.zeros((*dy.shape[:2], *reach), dy.dtype)


def _inner(dx: np.ndarray, windows: Windows) -> np.ndarray:
    """The input's part of `_room`."""
    slices = [slice(before, before + size) for before, size in zip(windows.before, windows.size, strict=True)]
    return dx[(slice(None), slice(None), *slices)]
