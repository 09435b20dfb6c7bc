"""Convolution by NumPy: products of weights and columns, in blocks that threads share."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from culux.backends import Array
from culux.backends.threads import for_each
from culux.nn.conv_columns import COLUMNS, Block, Columns, Scratch, apart, blocks, of_rows, of_taps
from culux.nn.conv_taps import Taps

__all__ = ["correlate", "spread", "weight_gradient"]

_THREAD = 10**8  # multiplications that are worth a thread
_SUM = 10**4  # elements of a sum from which on it is added to tap by tap
_PARTS = 4  # of a sum, for each thread, so that a slow one takes fewer
_PRODUCT = 10**6  # multiplications of one product, at most, where that leaves as many columns, terms or filters:
_COLUMNS, _TERMS, _FILTERS = COLUMNS, 512, 8

_Phase = tuple[slice, slice, int, int, int]  # elements of an axis, their taps, and dilation, before, out of `Taps`


def correlate(x: np.ndarray, weight: np.ndarray, taps: Taps, bias: np.ndarray | None = None) -> Array:
    """``y[n, o, i] = bias[o] + sum over c, t of weight[o, c, t] * x[n, c, i * stride + t * dilation - before]``.

    Args:
        x: (N, in, *size).
        weight: (out, in / groups, *kernel).
        taps: the geometry.
        bias: (out,) or None.

    Returns:
        (N, out, *taps.out).
    """
    if len(taps.kernel) == 1:
        return correlate(x[:, :, None], weight[:, :, None], _in_a_plane(taps), bias)[:, :, 0]
    groups, filters = taps.groups, len(weight) // taps.groups
    result: Array = np.empty((len(x), len(weight), *taps.out), np.result_type(x, weight))
    y = result.reshape(len(x), groups, filters, *taps.out)
    factors = np.ascontiguousarray(weight.swapaxes(1, 2)).reshape(groups, 1, filters, -1)
    if _is_pointwise(taps):
        places = math.prod(taps.out)
        grouped = x.reshape(len(x), groups, factors.shape[3], places)
        np.matmul(factors[:, 0], grouped, out=y.reshape(len(x), groups, filters, places))
        if bias is not None:
            y += bias.reshape(groups, filters, *[1] * len(taps.out))
        return result

    def worker() -> Callable[[Block], None]:
        scratch = Scratch()
        columns_of = Columns(x, of_rows, scratch).of

        def multiply(block: Block) -> None:
            columns, own = columns_of(block), y[block.images, ..., *block.part]
            shape = (groups, filters, columns.shape[1], columns.shape[3])
            if len(own) == 1:  # the products of one image are written where they belong
                products = own.reshape(shape).swapaxes(1, 2)
            else:
                products = scratch.take("products", (groups, shape[2], filters, shape[3]), y.dtype)
            _multiply(factors, columns, products)
            if bias is not None:
                products += bias.reshape(groups, 1, filters, 1)
            if len(own) > 1:
                own[...] = apart(products, block).swapaxes(2, 3)

        return multiply

    parts = functools.partial(blocks, x, y, taps, math.prod(taps.out[1:]))
    for_each(parts, worker, y.size * factors.shape[3] // _THREAD)
    return result


def weight_gradient(x: np.ndarray, dy: np.ndarray, taps: Taps) -> Array:
    """``sum over n, i of dy[n, o, i] * x[n, c, i * stride + t * dilation - before]`` for every o, c and t.

    Args:
        x: (N, in, *size).
        dy: (N, out, *taps.out).
        taps: the geometry.

    Returns:
        (out, in / groups, *kernel).
    """
    if len(taps.kernel) == 1:
        return weight_gradient(x[:, :, None], dy[:, :, None], _in_a_plane(taps))[:, :, 0]
    groups, filters, width = taps.groups, dy.shape[1] // taps.groups, x.shape[1] // taps.groups
    grouped: Array = dy.reshape(len(dy), groups, filters, *taps.out)
    first, *others = taps.kernel
    # Transposed: BLAS takes up to a third less time with the longer factor first.
    shape = (groups, first, width * math.prod(others), filters)
    size, dtype = math.prod(shape), np.result_type(x, dy)
    most = max(x.size, dy.size) // (2 * size)  # sums, in as much memory as half the larger operand
    sums: list[Array] = []

    def parts(threads: int) -> Iterator[tuple[Array, list[Block]]]:
        every = list(blocks(x, grouped, taps, math.prod(taps.out), threads, beside=2 * size * dtype.itemsize))
        # Each part has its sum: rounding shall not depend on which thread takes it.
        count = min(len(every), _PARTS * threads, most) if threads > 1 else 1
        sums.extend(np.zeros(shape, dtype) for _ in range(count))
        return ((total, every[i::count]) for i, total in enumerate(sums))

    def worker() -> Callable[[tuple[Array, list[Block]]], None]:
        scratch = Scratch()
        columns_of = Columns(x, of_taps, scratch).of

        def add(part: tuple[Array, list[Block]]) -> None:
            for block in part[1]:
                _add_products(columns_of(block), _outputs(grouped, block, scratch), part[0])

        return add

    for_each(parts, worker, min(most, dy.size * width * math.prod(taps.kernel) // _THREAD))
    total, *more = sums
    for other in more:
        total += other
    split = total.reshape(groups, first, width, *others, filters)
    result: Array = np.empty((dy.shape[1], width, *taps.kernel), dtype)
    result.reshape(groups, filters, width, *taps.kernel)[...] = np.moveaxis(split, (-1, 1), (1, 3))
    return result


def spread(dy: np.ndarray, weight: np.ndarray, taps: Taps) -> Array:
    """The transpose of `correlate`: every element of `dy` times the weight, added where its taps lie.

    Args:
        dy: (N, out, *taps.out).
        weight: (out, in / groups, *kernel).
        taps: the geometry.

    Returns:
        (N, in, *size).
    """
    phases = itertools.product(*map(_phases, taps.size, taps.kernel, taps.stride, taps.dilation, taps.before))
    if max(taps.stride) == 1:
        return _reached(dy, weight, taps, next(phases))
    dx: Array = np.zeros((len(dy), taps.groups * weight.shape[1], *taps.size), np.result_type(dy, weight))
    for phase in phases:
        dx[(..., *(own for own, *_ in phase))] = _reached(dy, weight, taps, phase)
    return dx


def _reached(dy: np.ndarray, weight: np.ndarray, taps: Taps, phase: tuple[_Phase, ...]) -> Array:
    """The elements of `spread` in a phase: a correlation with its taps, turned round, the channels swapped."""
    _, chosen, dilation, before, out = zip(*phase, strict=True)
    filters = len(weight) // taps.groups
    turned: Array = weight.reshape(taps.groups, filters, *weight.shape[1:]).swapaxes(1, 2)
    turned = turned[(..., *chosen)]
    kernel = turned.shape[3:]
    back = Taps(taps.out, kernel, (1,) * len(kernel), dilation, before, out, taps.groups)
    return correlate(dy, turned.reshape(-1, filters, *kernel), back)


def _phases(size: int, kernel: int, stride: int, dilation: int, before: int) -> Iterator[_Phase]:
    """The elements of an axis by the taps that reach them: every `stride`-th is reached by the same ones."""
    period = stride // math.gcd(stride, dilation)
    for first in range(min(stride, size)):
        last = next((t for t in reversed(range(kernel)) if (first + before - t * dilation) % stride == 0), None)
        if last is not None:
            own, chosen = slice(first, None, stride), slice(last, None, -period)
            ahead = (last * dilation - first - before) // stride
            yield own, chosen, period * dilation // stride, ahead, len(range(first, size, stride))


def _in_a_plane(taps: Taps) -> Taps:
    """The taps along a line as those along a row of an image of one row."""
    return Taps(
        size=(1, *taps.size),
        kernel=(1, *taps.kernel),
        stride=(1, *taps.stride),
        dilation=(1, *taps.dilation),
        before=(0, *taps.before),
        out=(1, *taps.out),
        groups=taps.groups,
    )


def _multiply(factors: np.ndarray, columns: np.ndarray, products: np.ndarray) -> None:
    """``products = factors @ columns``: (groups, 1, filters, k), (groups, rows, k, n), (groups, rows, filters, n)."""
    filters, depth = factors.shape[2:]
    for span in _spans(columns.shape[3], factors[0].size, _COLUMNS):
        for some in _spans(filters, depth * (span.stop - span.start), _FILTERS):
            np.matmul(factors[:, :, some], columns[..., span], out=products[:, :, some, span])


def _outputs(dy: Array, block: Block, scratch: Scratch) -> Array:
    """The outputs of a block in the order of its columns, (groups, 1, filters, rows * N * rest)."""
    own: Array = dy[block.images, ..., *block.part]
    if len(own) == 1:
        return own.reshape(*own.shape[1:2], 1, own.shape[2], -1)
    rows, *rest = own.shape[3:]
    outputs = scratch.take("outputs", (*own.shape[1:3], rows, len(own) * math.prod(rest)), dy.dtype)
    apart(outputs, block)[...] = own
    return outputs.reshape(own.shape[1], 1, own.shape[2], -1)


def _add_products(columns: np.ndarray, outputs: np.ndarray, total: np.ndarray) -> None:
    """``total += columns @ outputs.T``: (groups, taps, k, n), (groups, 1, filters, n), (groups, taps, k, filters)."""
    for span in _spans(columns.shape[3], total[0, 0].size, _TERMS):
        factors = outputs[..., span].swapaxes(2, 3)
        if total.size < _SUM:
            total += (columns[..., span] @ factors).reshape(total.shape)
            continue
        # One tap at a time: a product of all would take as much memory as the sum.
        by_tap = columns.reshape(*total.shape[:3], columns.shape[3])
        for tap in range(total.shape[1]):
            total[:, tap] += by_tap[:, tap, :, span] @ factors[:, 0]


def _spans(length: int, size: int, least: int) -> Iterator[slice]:
    """Parts of the columns, terms or filters of a product that takes `size` multiplications for each.

    Measured with OpenBLAS 0.3.31 on one core of Zen 4: up to 10^6 multiplications it does not pack the factors, and
    (32, 288) times (288, 64) runs at 109 GFLOP/s, times (288, 128) at 76; (22, 576) times (576, 64) at 116, three
    times as many filters at 92; few filters gain a factor of 2 to 4.
    """
    most = _PRODUCT // size
    count = -(-length // most) if most >= least else 1
    step = max(1, -(-length // count))
    return (slice(start, start + step) for start in range(0, length, step))


def _is_pointwise(taps: Taps) -> bool:
    """Whether an input is its own columns."""
    return {*taps.kernel, *taps.stride} == {1} and taps.out == taps.size and not any(taps.before)
