"""Convolution by NumPy: columns of taps in blocks that fit a cache, one product each; never those of a whole batch.

Where the stride is 1, a padded image is read as one line: a tap of all outputs is then one run of memory, copied at
the speed of memory, and the few outputs between the rows are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from culux.backends import Array
from culux.nn.conv_taps import Taps

__all__ = ["correlate", "spread", "weight_gradient"]

_COLUMNS = (2**18, 2**22)  # bytes of a block of columns, at least and at most; half the input's between them
_WASTE = 1.2  # outputs computed for every one that is kept, at most, where images are read as lines


def correlate(x: np.ndarray, weight: np.ndarray, taps: Taps, bias: np.ndarray | None = None) -> np.ndarray:
    """``y[n, o, i] = bias[o] + sum over c, t of weight[o, c, t] * x[n, c, i * stride + t * dilation - before]``.

    Args:
        x: (N, in, *size).
        weight: (out, in / groups, *kernel).
        taps: the geometry.
        bias: (out,) or None.

    Returns:
        (N, out, *taps.out).
    """
    channels = len(weight)
    y = np.empty((len(x), channels, *taps.out), np.result_type(x, weight))
    plan, factors = _plan(x, taps), _grouped(weight, taps)
    shift = np.zeros(1, y.dtype) if bias is None else bias
    memory = np.empty(channels * plan.images * math.prod(plan.grid), y.dtype)
    for images, columns in _blocks(x, taps, plan):
        field = _field(memory, channels, images, plan)
        products = field.reshape(taps.groups, -1, field[0].size)
        for part, taken in columns:
            np.matmul(factors, taken, out=products[:, :, part])
        kept = field[(..., *plan.kept)].swapaxes(0, 1)
        np.add(kept, shift.reshape(-1, *[1] * len(taps.out)), out=y[images])
    return y


def weight_gradient(x: np.ndarray, dy: np.ndarray, taps: Taps) -> Array:
    """``sum over n, i of dy[n, o, i] * x[n, c, i * stride + t * dilation - before]`` for every o, c and t.

    Args:
        x: (N, in, *size).
        dy: (N, out, *taps.out).
        taps: the geometry.

    Returns:
        (out, in / groups, *kernel).
    """
    channels, width = dy.shape[1], x.shape[1] // taps.groups
    # Transposed: BLAS takes up to a third less time with the longer factor first.
    shape = (taps.groups, width * math.prod(taps.kernel), channels // taps.groups)
    total: Array = np.zeros(shape, np.result_type(x, dy))
    plan = _plan(x, taps)
    memory = np.empty(channels * plan.images * math.prod(plan.grid), dy.dtype)
    for images, columns in _blocks(x, taps, plan):
        field = _field(memory, channels, images, plan)
        field[...] = 0  # the outputs that are not kept count for nothing
        field[(..., *plan.kept)] = dy[images].swapaxes(0, 1)
        factors = field.reshape(taps.groups, -1, field[0].size)
        for part, taken in columns:
            total += taken @ factors[:, :, part].swapaxes(1, 2)
    return total.swapaxes(1, 2).reshape(channels, width, *taps.kernel)


def spread(dy: np.ndarray, weight: np.ndarray, taps: Taps) -> Array:
    """The transpose of `correlate`: every element of `dy` times the weight, added where its taps lie.

    Args:
        dy: (N, out, *taps.out).
        weight: (out, in / groups, *kernel).
        taps: the geometry.

    Returns:
        (N, in, *size).
    """
    width = weight.shape[1]
    if all(s == 1 for s in taps.stride):  # a correlation with the kernel turned round, channels swapped
        turned: Array = weight.reshape(taps.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
        turned = turned[(..., *(slice(None, None, -1) for _ in taps.kernel))]
        axes = zip(taps.kernel, taps.dilation, taps.before, strict=True)
        before = tuple((k - 1) * d - b for k, d, b in axes)
        back = taps._replace(size=taps.out, out=taps.size, before=before)
        return correlate(dy, turned.reshape(-1, len(weight) // taps.groups, *taps.kernel), back)
    channels = width * taps.groups
    dx = np.zeros((len(dy), channels, *taps.size), np.result_type(dy, weight))
    own, reached = taps.overlap()
    factors = np.ascontiguousarray(_grouped(weight, taps).swapaxes(1, 2))
    row = channels * math.prod(taps.kernel) * math.prod(taps.out[1:]) * dx.itemsize
    rows, count = _cut(len(dy), taps.out[0], row, max(dy.nbytes, dx.nbytes))
    for first in range(0, len(dy), count):
        images = dy[first : first + count].swapaxes(0, 1)
        room: Array = np.zeros((channels, images.shape[1], *taps.reach), dx.dtype)
        for start in range(0, taps.out[0], rows):
            part = images[:, :, start : start + rows]
            columns = factors @ part.reshape(taps.groups, -1, part[0].size)
            pieces = columns.reshape(channels, -1, *part.shape[1:])
            head = slice(start * taps.stride[0], None)
            for number, place in enumerate(taps._replace(out=part.shape[2:]).places()):
                room[:, :, head][(..., *place)] += pieces[:, number]
        dx[(slice(first, first + count), slice(None), *own)] = room[(..., *reached)].swapaxes(0, 1)
    return dx


def _grouped(weight: np.ndarray, taps: Taps) -> np.ndarray:
    """A weight as a matrix (out / groups, in / groups * taps) per group."""
    return weight.reshape(taps.groups, len(weight) // taps.groups, -1)


class _Plan(NamedTuple):
    """How the columns of an input are cut into blocks.

    Attributes:
        line: whether an image is read as one line.
        grid: the lengths of the outputs that are computed.
        kept: the slices of those that are kept.
        rows: how many rows (of the grid's first axis) a block has.
        images: how many images a block has: several only with all their rows.
    """

    line: bool
    grid: tuple[int, ...]
    kept: tuple[slice, ...]
    rows: int
    images: int


def _field(memory: np.ndarray, channels: int, images: slice, plan: _Plan) -> Array:
    """Room in `memory` for the outputs of some images, (channels, images, *grid)."""
    shape = (channels, images.stop - images.start, *plan.grid)
    return memory[: math.prod(shape)].reshape(shape)


def _cut(images: int, rows: int, row: int, operand: int) -> tuple[int, int]:
    """How many rows of columns, of `row` bytes each, and of how many images make a block."""
    limit = min(max(operand // 2, _COLUMNS[0]), _COLUMNS[1])
    return min(rows, max(1, limit // row)), max(1, min(images, limit // (row * rows)))


def _plan(x: np.ndarray, taps: Taps) -> _Plan:
    lines = (taps.out[0], *taps.reach[1:])
    line = all(s == 1 for s in taps.stride) and math.prod(lines) <= _WASTE * math.prod(taps.out)
    grid = lines if line else taps.out
    row = x.shape[1] * math.prod(taps.kernel) * math.prod(grid[1:]) * x.itemsize
    return _Plan(line, grid, tuple(slice(n) for n in taps.out), *_cut(len(x), grid[0], row, x.nbytes))


def _blocks(x: np.ndarray, taps: Taps, plan: _Plan) -> Iterator[tuple[slice, Iterator[tuple[slice, np.ndarray]]]]:
    """The blocks: which images, and the parts of their columns as (where in the outputs, columns per group)."""
    own, reached = taps.overlap()
    size = x.shape[1] * math.prod(taps.reach)
    # The last outputs of a line read past its end: what they read is dropped, but has to be there.
    memory = np.zeros(plan.images * size + math.prod(taps.reach[1:]), x.dtype)
    room = memory[: plan.images * size].reshape(plan.images, x.shape[1], *taps.reach)
    buffer = np.empty(plan.images * plan.rows * math.prod(plan.grid[1:]) * x.shape[1] * math.prod(taps.kernel), x.dtype)
    for first in range(0, len(x), plan.images):
        images = slice(first, min(first + plan.images, len(x)))
        room[(slice(images.stop - first), slice(None), *reached)] = x[(images, slice(None), *own)]
        yield images, _parts(_windows(room[: images.stop - first], taps, plan), taps, plan, buffer)


def _windows(room: np.ndarray, taps: Taps, plan: _Plan) -> np.ndarray:
    """The columns of padded images as a view, (groups, in / groups, *kernel, images, rows, *rest of the grid)."""
    width, (image, channel, *steps) = room.shape[1] // taps.groups, room.strides
    kernel = [d * step for d, step in zip(taps.dilation, steps, strict=True)]
    grid, moves = plan.grid, [s * step for s, step in zip(taps.stride, steps, strict=True)]
    if plan.line:
        grid, moves = (plan.grid[0], math.prod(plan.grid[1:])), [steps[0], room.itemsize]
    shape = (taps.groups, width, *taps.kernel, len(room), *grid)
    return as_strided(room, shape, (width * channel, channel, *kernel, image, *moves), writeable=False)


def _parts(windows: np.ndarray, taps: Taps, plan: _Plan, buffer: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The columns of some images, a number of rows at a time, copied into `buffer`."""
    leading = 3 + len(taps.kernel)  # the axes before the rows
    rest = math.prod(plan.grid[1:]) * windows.shape[leading - 1]
    for start in range(0, plan.grid[0], plan.rows):
        part = windows[(slice(None),) * leading + (slice(start, start + plan.rows),)]
        columns = buffer[: part.size].reshape(part.shape)
        columns[...] = part
        length = part.shape[leading] * rest
        yield slice(start * rest, start * rest + length), columns.reshape(taps.groups, -1, length)
