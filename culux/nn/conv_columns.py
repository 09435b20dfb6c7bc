"""The columns of convolutions, in blocks that fit a cache.

A column holds the elements that an output reads, those of one row of the input after those of the row before. The
columns of all rows of outputs then lie in one run of memory, and those of the next row of outputs start a stride later:
nothing is copied for the taps of the first axis, 3 elements instead of 9 for a 3x3 kernel.
Source: Cho and Brand, "MEC: Memory-efficient Convolution for Deep Neural Network", ICML 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from culux.backends import Array
from culux.nn.conv_taps import Taps

__all__ = ["COLUMNS", "Block", "Columns", "Scratch", "apart", "blocks", "of_rows", "of_taps"]

COLUMNS = 64
"""How many columns a product has at least, if there are as many: with fewer it is slow."""

_BYTES = (2**18, 2**20, 2**22)  # of a block, at most: beside small operands, of several images, of one
_SHORT = 16  # the length of rows up to which images are innermost where that gives runs twice as long

_Axis = tuple[int, int]  # its length, and the bytes between its elements


class Block(NamedTuple):
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


def blocks(x: np.ndarray, y: np.ndarray, taps: Taps, columns: int, threads: int, *, beside: int = 0) -> Iterator[Block]:
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
        threads: how many share the blocks: each has memory for one.
        beside: bytes that are needed beside that.
    """
    # Columns that do not overlap have the rows of all taps.
    lines = (taps.out[0] - 1) * (1 if taps.stride[0] == taps.dilation[0] == 1 else taps.kernel[0]) + taps.kernel[0]
    repeated = lines * math.prod(taps.kernel[1:]) * math.prod(taps.out[1:])
    whole = x.shape[1] * (repeated + math.prod(taps.reach)) * x.itemsize + y[:1].nbytes
    limit = min(max(max(x.nbytes, y.nbytes) - beside, _BYTES[0]) // threads, _BYTES[2])
    count = max(1, min(len(x), max(min(limit, _BYTES[1]) // whole, COLUMNS // columns)))
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
            yield Block(slice(first, first + count), part, piece, images_last)


def apart(array: np.ndarray, block: Block) -> Array:
    """A view of (a, b, c, columns) as (N, a, b, c, *rest of the outputs)."""
    rest = block.taps.out[1:]
    if block.images_last:
        view: Array = array.reshape(*array.shape[:3], *rest, -1)
        return view.transpose(-1, *range(view.ndim - 1))
    view = array.reshape(*array.shape[:3], -1, *rest)
    return view.transpose(3, 0, 1, 2, *range(4, view.ndim))


class Scratch:
    """Memory that all blocks of a thread use: fresh pages take longer than what is written to them."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array with anything in it, where the last one of this name was."""
        size = math.prod(shape)
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = np.empty(size, dtype)
        return self._arrays[name][:size].reshape(shape)


class _Views(NamedTuple):
    """How blocks of one shape become columns.

    Attributes:
        own: what they read of their images.
        room: what the taps reach, padding included; None where that is what they read, as it lies in `x`.
        inside: where what they read goes in `room`.
        source: what the taps reach, along the axes of the columns.
        copied: where `source` goes.
        columns: a view of `copied`.
    """

    own: tuple[slice, ...]
    room: np.ndarray | None
    inside: np.ndarray
    source: np.ndarray
    copied: np.ndarray
    columns: np.ndarray


_Layout = Callable[[np.ndarray, Block, Scratch], tuple[np.ndarray, np.ndarray, np.ndarray]]


class Columns:
    """The columns of one block after the other, all in the same memory.

    Args:
        x: (N, in, *size).
        layout: `of_rows` or `of_taps`.
        scratch: of the thread.
    """

    def __init__(self, x: np.ndarray, layout: _Layout, scratch: Scratch) -> None:
        self._x, self._layout, self._scratch = x, layout, scratch
        self._views: dict[tuple[Taps, int], _Views] = {}
        self._latest: _Views | None = None

    def of(self, block: Block) -> np.ndarray:
        """The columns of a block, until those of the next are asked for."""
        x = self._x[block.images]
        key = block.taps, len(x)
        if key not in self._views:
            self._views[key] = self._prepare(x, block)
        views = self._views[key]
        source, own = views.source, x[views.own]
        if views.room is None:
            source = as_strided(own, source.shape, source.strides)
        else:
            if views is not self._latest:  # blocks of another shape may have written where this one has zeros
                views.room[...] = 0
            views.inside[...] = own
        views.copied[...] = source
        self._latest = views
        return views.columns

    def _prepare(self, x: np.ndarray, block: Block) -> _Views:
        own, reached = block.taps.overlap()
        reach, everything = block.taps.reach, (slice(None), slice(None), *own)
        inside = x[everything]
        if inside.shape[2:] == reach and not block.images_last:
            return _Views(everything, None, inside, *self._layout(inside, block, self._scratch))
        if block.images_last:
            room: Array = self._scratch.take("room", (x.shape[1], *reach, len(x)), x.dtype)
            room = room.transpose(-1, *range(room.ndim - 1))
        else:
            room = self._scratch.take("room", (*x.shape[:2], *reach), x.dtype)
        return _Views(everything, room, room[(..., *reached)], *self._layout(room, block, self._scratch))


def of_rows(room: np.ndarray, block: Block, scratch: Scratch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The columns of each row of outputs, (groups, rows, taps of the first axis * in / groups * others, N * rest).

    Args:
        room: what the taps of the block reach, (N, in, *reach).
        block: the block.
        scratch: where the columns go.

    Returns:
        `room` along the axes of the columns, where to copy it, and the columns, a view of that.
    """
    taps = block.taps
    group, channel, (taps_down, rows_down), others, columns = _axes(room, block)
    kernel, rows, stride = taps.kernel[0], taps.out[0], taps.stride[0]
    overlapping = taps.dilation[0] == 1 and stride < kernel
    lines = [((rows - 1) * stride + kernel, taps_down[1])] if overlapping else [rows_down, taps_down]
    source, copied = _along(room, [group, *lines, channel, *others, *columns], scratch)
    length = math.prod(n for n, _ in columns)
    line = channel[0] * math.prod(taps.kernel[1:]) * length * copied.itemsize
    step = (stride if overlapping else kernel) * line
    shape = (taps.groups, rows, kernel * channel[0] * math.prod(taps.kernel[1:]), length)
    strides = (copied.strides[0], step, length * copied.itemsize, copied.itemsize)
    return source, copied, as_strided(copied, shape, strides)


def of_taps(room: np.ndarray, block: Block, scratch: Scratch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The columns of each tap of the first axis, (groups, taps, in / groups * others, rows * N * rest).

    With a stride along that axis these do not overlap; all taps are then in the third axis of the result.
    Arguments and results are those of `of_rows`.
    """
    taps = block.taps
    group, channel, (taps_down, rows_down), others, columns = _axes(room, block)
    kernel, rows, dilation = taps.kernel[0], taps.out[0], taps.dilation[0]
    width, length = channel[0] * math.prod(taps.kernel[1:]), math.prod(n for n, _ in columns)
    if taps.stride[0] > 1:
        source, copied = _along(room, [group, taps_down, channel, *others, rows_down, *columns], scratch)
        return source, copied, copied.reshape(taps.groups, 1, kernel * width, rows * length)
    lines = rows + (kernel - 1) * dilation
    source, copied = _along(room, [group, channel, *others, (lines, rows_down[1]), *columns], scratch)
    line = length * copied.itemsize
    strides = (copied.strides[0], dilation * line, lines * line, copied.itemsize)
    return source, copied, as_strided(copied, (taps.groups, kernel, width, rows * length), strides)


def _axes(room: np.ndarray, block: Block) -> tuple[_Axis, _Axis, tuple[_Axis, _Axis], list[_Axis], list[_Axis]]:
    """The axes of the columns of `room`: groups, channels, (taps, rows) of the first axis, other taps, and columns."""
    taps, (image, channel, *steps) = block.taps, room.strides
    width = room.shape[1] // taps.groups
    kernel = [(k, d * step) for k, d, step in zip(taps.kernel, taps.dilation, steps, strict=True)]
    out = [(n, s * step) for n, s, step in zip(taps.out, taps.stride, steps, strict=True)]
    rest, images = out[1:], [(len(room), image)]
    columns = rest + images if block.images_last else images + rest
    return (taps.groups, width * channel), (width, channel), (kernel[0], out[0]), kernel[1:], columns


def _along(room: np.ndarray, axes: list[_Axis], scratch: Scratch) -> tuple[np.ndarray, np.ndarray]:
    """A view of `room` along these axes, and memory for as many elements."""
    shape, strides = zip(*axes, strict=True)
    return as_strided(room, shape, strides), scratch.take("columns", shape, room.dtype)
