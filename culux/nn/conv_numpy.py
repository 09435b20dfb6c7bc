"""Convolution by NumPy: a product for every row of outputs, with columns in blocks that fit a cache.

A column holds the elements that an output reads, those of one row of the input after those of the row before. The
columns of all rows of outputs then lie in one run of memory, and those of the next row of outputs start a stride later:
nothing is copied for the taps of the first axis, 3 elements instead of 9 for a 3x3 kernel.
Source: Cho and Brand, "MEC: Memory-efficient Convolution for Deep Neural Network", ICML 2017.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from culux.backends import Array
from culux.nn.conv_taps import Taps

__all__ = ["correlate", "spread", "weight_gradient"]

_BYTES = (2**18, 2**20, 2**22)  # of a block, at most: beside small operands, of several images, of one
_PRODUCT = 10**6  # multiplications of one product, at most, where that leaves as many columns, terms or filters:
_COLUMNS, _TERMS, _FILTERS = 64, 512, 8
_SHORT = 16  # the length of rows up to which images are innermost where that gives runs twice as long

_Axis = tuple[int, int]  # its length, and the bytes between its elements
_Phase = tuple[slice, slice, int, int, int]  # elements of an axis, their taps, and dilation, before, out of `Taps`


class _Block(NamedTuple):
    """A part of a convolution.

    Attributes:
        images: which images.
        part: which of their outputs.
        taps: the taps of those outputs.
        images_last: whether the images are innermost among the columns: many short rows would take long to copy.
    """

    images: slice
    part: tuple[slice, ...]
    taps: Taps
    images_last: bool


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
    y: Array = np.empty((len(x), groups, filters, *taps.out), np.result_type(x, weight))
    factors = np.ascontiguousarray(weight.swapaxes(1, 2)).reshape(groups, 1, filters, -1)
    if _is_pointwise(taps):
        places = math.prod(taps.out)
        grouped = x.reshape(len(x), groups, factors.shape[3], places)
        np.matmul(factors[:, 0], grouped, out=y.reshape(len(x), groups, filters, places))
        if bias is not None:
            y += bias.reshape(groups, filters, *[1] * len(taps.out))
        return y.reshape(len(x), len(weight), *taps.out)
    scratch = _Scratch()
    for block in _blocks(x, y, taps, math.prod(taps.out[1:])):
        columns = _columns_of_rows(x[block.images], block, scratch)
        length = columns.shape[3]
        products = scratch.take("products", (groups, block.taps.out[0], filters, length), y.dtype)
        for span in _spans(length, factors[0].size, _COLUMNS):
            for rows in _spans(filters, factors.shape[3] * (span.stop - span.start), _FILTERS):
                np.matmul(factors[:, :, rows], columns[..., span], out=products[:, :, rows, span])
        if bias is not None:
            products += bias.reshape(groups, 1, filters, 1)
        y[block.images, ..., *block.part] = _apart(products, block).swapaxes(2, 3)
    return y.reshape(len(x), len(weight), *taps.out)


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
    first, *others = taps.kernel
    # Transposed: BLAS takes up to a third less time with the longer factor first.
    total: Array = np.zeros((groups, first, width * math.prod(others), filters), np.result_type(x, dy))
    grouped: Array = dy.reshape(len(dy), groups, filters, *taps.out)
    scratch = _Scratch()
    for block in _blocks(x, grouped, taps, math.prod(taps.out)):
        columns, rows = _columns_of_taps(x[block.images], block, scratch), block.taps.out[0]
        length = columns.shape[3]
        outputs = scratch.take("outputs", (groups, filters, rows, length // rows), dy.dtype)
        _apart(outputs, block)[...] = grouped[block.images, ..., *block.part]
        factors = outputs.reshape(groups, 1, filters, length).swapaxes(2, 3)
        for span in _spans(length, total[0, 0].size, _TERMS):
            total += (columns[..., span] @ factors[:, :, span]).reshape(total.shape)
    apart = total.reshape(groups, first, width, *others, filters)
    return np.moveaxis(apart, (-1, 1), (1, 3)).reshape(groups * filters, width, *taps.kernel)


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


def _blocks(x: np.ndarray, y: np.ndarray, taps: Taps, columns: int) -> Iterator[_Block]:
    """The blocks of a convolution.

    Several images where a block of them fits a cache, or to have 64 columns in a product, below which products are
    slow. Outputs that take too much memory are cut along their first axis, which repeats the rows where parts meet.
    Images are innermost where rows are short. Measured on one core of Zen 4, forward, with rows and with images
    innermost: rows of 10 (6 channels to 16, 5x5 taps) 0.98 and 0.81 ms, of 14 (16 to 6) 2.4 and 1.7, of 28 (1 to 6)
    0.63 and 0.80.

    Args:
        x: (N, in, *size).
        y: outputs, (N, ..., *taps.out).
        taps: the geometry.
        columns: the columns, or terms, of one product for one image.
    """
    # Columns that do not overlap have the rows of all taps.
    lines = (taps.out[0] - 1) * (1 if taps.stride[0] == taps.dilation[0] == 1 else taps.kernel[0]) + taps.kernel[0]
    repeated = lines * math.prod(taps.kernel[1:]) * math.prod(taps.out[1:])
    whole = x.shape[1] * (repeated + math.prod(taps.reach)) * x.itemsize + y[:1].nbytes
    limit = min(max(x.nbytes, y.nbytes, _BYTES[0]), _BYTES[2])
    count = max(1, min(len(x), max(min(limit, _BYTES[1]) // whole, _COLUMNS // columns)))
    run = count * (taps.out[-1] if taps.stride[-1] == 1 else 1)
    images_last = taps.out[-1] <= _SHORT and run >= 2 * _SHORT
    axis = next((i for i, n in enumerate(taps.out) if n > 1), 0)
    rows = max(1, min(taps.out[axis], taps.out[axis] * limit // (whole * count)))
    for start in range(0, taps.out[axis], rows):
        stop = min(start + rows, taps.out[axis])
        before, out = list(taps.before), list(taps.out)
        before[axis] -= start * taps.stride[axis]
        out[axis] = stop - start
        piece = taps._replace(before=tuple(before), out=tuple(out))
        part = tuple(slice(start, stop) if i == axis else slice(None) for i in range(len(out)))
        for first in range(0, len(x), count):
            yield _Block(slice(first, first + count), part, piece, images_last)


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


class _Scratch:
    """Memory that all blocks of a call use: fresh pages take longer than what is written to them.

    The first block is the largest.
    """

    def __init__(self) -> None:
        self._memory: dict[str, np.ndarray] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array with anything in it, where the last one of this name was."""
        size = math.prod(shape)
        if name not in self._memory:
            self._memory[name] = np.empty(size, dtype)
        return self._memory[name][:size].reshape(shape)


def _columns_of_rows(x: np.ndarray, block: _Block, scratch: _Scratch) -> np.ndarray:
    """The columns of each row of outputs, (groups, rows, taps of the first axis * in / groups * others, N * rest)."""
    taps, room = block.taps, _padded(x, block, scratch)
    group, channel, (taps_down, rows_down), others, columns = _axes(room, block)
    kernel, rows, stride = taps.kernel[0], taps.out[0], taps.stride[0]
    overlapping = taps.dilation[0] == 1 and stride < kernel
    lines = [((rows - 1) * stride + kernel, taps_down[1])] if overlapping else [rows_down, taps_down]
    copied = _copied(room, [group, *lines, channel, *others, *columns], scratch)
    length = math.prod(n for n, _ in columns)
    line = channel[0] * math.prod(taps.kernel[1:]) * length * copied.itemsize
    step = (stride if overlapping else kernel) * line
    shape = (taps.groups, rows, kernel * channel[0] * math.prod(taps.kernel[1:]), length)
    return as_strided(copied, shape, (copied.strides[0], step, length * copied.itemsize, copied.itemsize))


def _columns_of_taps(x: np.ndarray, block: _Block, scratch: _Scratch) -> np.ndarray:
    """The columns of each tap of the first axis, (groups, taps, in / groups * others, rows * N * rest).

    With a stride along that axis these do not overlap; all taps are then in the third axis of the result.
    """
    taps, room = block.taps, _padded(x, block, scratch)
    group, channel, (taps_down, rows_down), others, columns = _axes(room, block)
    kernel, rows, dilation = taps.kernel[0], taps.out[0], taps.dilation[0]
    width, length = channel[0] * math.prod(taps.kernel[1:]), math.prod(n for n, _ in columns)
    if taps.stride[0] > 1:
        copied = _copied(room, [group, taps_down, channel, *others, rows_down, *columns], scratch)
        return copied.reshape(taps.groups, 1, kernel * width, rows * length)
    lines = rows + (kernel - 1) * dilation
    copied = _copied(room, [group, channel, *others, (lines, rows_down[1]), *columns], scratch)
    line = length * copied.itemsize
    strides = (copied.strides[0], dilation * line, lines * line, copied.itemsize)
    return as_strided(copied, (taps.groups, kernel, width, rows * length), strides)


def _padded(x: np.ndarray, block: _Block, scratch: _Scratch) -> Array:
    """What the taps reach, (N, in, *reach)."""
    own, reached, reach = _overlap(block.taps)
    inside = x[(slice(None), slice(None), *own)]
    fits = inside.shape[2:] == reach
    if fits and not block.images_last:
        return inside
    if block.images_last:
        room: Array = scratch.take("room", (x.shape[1], *reach, len(x)), x.dtype)
        room = room.transpose(-1, *range(room.ndim - 1))
    else:
        room = scratch.take("room", (*x.shape[:2], *reach), x.dtype)
    if not fits:
        room[...] = 0
    room[(..., *reached)] = inside
    return room


@functools.lru_cache(maxsize=64)
def _overlap(taps: Taps) -> tuple[tuple[slice, ...], tuple[slice, ...], tuple[int, ...]]:
    """`Taps.overlap` and `Taps.reach`, once for all blocks."""
    return *taps.overlap(), taps.reach


def _axes(room: np.ndarray, block: _Block) -> tuple[_Axis, _Axis, tuple[_Axis, _Axis], list[_Axis], list[_Axis]]:
    """The axes of the columns of `room`: groups, channels, (taps, rows) of the first axis, other taps, and columns."""
    taps, (image, channel, *steps) = block.taps, room.strides
    width = room.shape[1] // taps.groups
    kernel = [(k, d * step) for k, d, step in zip(taps.kernel, taps.dilation, steps, strict=True)]
    out = [(n, s * step) for n, s, step in zip(taps.out, taps.stride, steps, strict=True)]
    rest, images = out[1:], [(len(room), image)]
    columns = rest + images if block.images_last else images + rest
    return (taps.groups, width * channel), (width, channel), (kernel[0], out[0]), kernel[1:], columns


def _copied(room: np.ndarray, axes: list[_Axis], scratch: _Scratch) -> np.ndarray:
    """The elements of `room` along these axes, one after the other in memory."""
    shape, strides = zip(*axes, strict=True)
    copied = scratch.take("columns", shape, room.dtype)
    copied[...] = as_strided(room, shape, strides)
    return copied


def _apart(array: np.ndarray, block: _Block) -> Array:
    """A view of (a, b, c, columns) as (N, a, b, c, *rest of the outputs)."""
    rest = block.taps.out[1:]
    if block.images_last:
        apart: Array = array.reshape(*array.shape[:3], *rest, -1)
        return apart.transpose(-1, *range(apart.ndim - 1))
    apart = array.reshape(*array.shape[:3], -1, *rest)
    return apart.transpose(3, 0, 1, 2, *range(4, apart.ndim))
