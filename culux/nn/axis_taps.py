"""`tapped`: weighted sums of a few neighbours along one axis, what linear interpolation and adaptive means are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback
from culux.backends import Array, backend_of
from culux.numpy.products import matmul

__all__ = ["AxisTaps", "tapped"]


class AxisTaps(NamedTuple):
    """The elements along an axis that every output is made of.

    Args:
        axis: the axis.
        size: its length in the input.
        out: its length in the output.
        kind: "nearest" and "linear", as torch's resizing has them; "corners", linear with the first and last
            elements in their places; "mean", the mean from ``i * size // out`` to ``ceil((i + 1) * size / out)``.
        step: the distance of two outputs in elements of the input, for "nearest" and "linear".
    """

    axis: int
    size: int
    out: int
    kind: str
    step: float = 0.0


@primitive
def tapped(x: Array, *, taps: AxisTaps) -> Array:
    """``y[i] = sum_j weight[j, i] * x[index[j, i]]`` along an axis."""
    xp, total = backend_of(x).xp, None
    column = (-1,) + (1,) * (x.ndim - taps.axis - 1)
    for index, weight in _pairs(taps, xp):
        part = xp.take(x, index, axis=taps.axis)
        if weight is not None:
            part = part * xp.reshape(xp.asarray(weight, dtype=x.dtype), column)
        total = part if total is None else total + part
    return total


@tapped.rule
def _(needs: tuple[bool, ...], x: Array, *, taps: AxisTaps) -> tuple[Array, Pullback]:
    return tapped(x, taps=taps), lambda dy: (_untapped(dy, taps=taps),)


@primitive
def _untapped(dy: Array, *, taps: AxisTaps) -> Array:
    """The transpose of `tapped`, as a product with its matrix: in the same order on every run, and fast by BLAS."""
    xp = backend_of(dy).xp
    places, matrix = xp.arange(taps.size), xp.zeros((taps.out, taps.size), dtype=dy.dtype)
    for index, weight in _pairs(taps, xp):
        chosen = xp.asarray(xp.reshape(index, (-1, 1)) == places, dtype=dy.dtype)
        matrix = matrix + (
            chosen if weight is None else chosen * xp.asarray(xp.reshape(weight, (-1, 1)), dtype=dy.dtype)
        )
    moved: Any = matmul(xp.moveaxis(dy, taps.axis, -1), matrix)
    return xp.moveaxis(moved, -1, taps.axis)


@_untapped.rule
def _(needs: tuple[bool, ...], dy: Array, *, taps: AxisTaps) -> tuple[Array, Pullback]:
    return _untapped(dy, taps=taps), lambda d: (tapped(d, taps=taps),)


def _pairs(taps: AxisTaps, xp: Any) -> Iterator[tuple[Array, Array | None]]:
    """The indices of the outputs' elements and their weights (None: 1), made where the array is."""
    i = xp.arange(taps.out)
    if taps.kind == "mean":
        # The host knows how long the longest window is; the ends of all are made on the device.
        start, end = i * taps.size // taps.out, -(-(i + 1) * taps.size // taps.out)
        longest = max(-(-(k + 1) * taps.size // taps.out) - k * taps.size // taps.out for k in range(taps.out))
        for j in range(longest):
            inside = xp.asarray(start + j < end, dtype=xp.float64)
            yield xp.minimum(start + j, end - 1), inside / xp.asarray(end - start, dtype=xp.float64)
    elif taps.kind == "nearest":  # torch's places are products in float32
        near = xp.floor(xp.asarray(i, dtype=xp.float32) * taps.step)
        yield xp.clip(xp.asarray(near, dtype=xp.int64), 0, taps.size - 1), None
    else:
        step = (taps.size - 1) / max(taps.out - 1, 1) if taps.kind == "corners" else taps.step
        exact = xp.asarray(i, dtype=xp.float64)
        place = exact * step if taps.kind == "corners" else xp.clip((exact + 0.5) * step - 0.5, 0, None)
        low = xp.clip(xp.floor(place), 0, taps.size - 1)
        share = xp.clip(place - low, 0, 1)
        index = xp.asarray(low, dtype=xp.int64)
        yield index, 1 - share
        yield xp.clip(index + 1, 0, taps.size - 1), share
