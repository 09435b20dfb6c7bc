"""The gradient of convolutions in their weight, in one launch or two; the second also ends the bias's gradient."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from culux.backends import Array
from culux.kernels.conv import Taps, in_three_axes
from culux.kernels.launcher import MULTIPROCESSORS, Kernel, compute_dtype, contiguous, empty, get_kernel
from culux.kernels.source import ActivationCode, Program, program

__all__ = ["gradient", "programs", "total"]

COLUMNS = {1: 9, 4: 9, 32: 32, 64: 64}  # of a block by its rows, as the source has them
THREADS = {1: 128, 4: 128, 32: 64, 64: 64}
MOST_DIRECT = 8  # rows that two blocks without tiles in shared memory make
# By reasoning, not measured: threads that a multiprocessor is to have, and the least positions that a part is worth.
RESIDENT, SHORTEST = 512, {1: 512, 4: 512, 32: 256, 64: 256}
SUM_THREADS, MOST_PARTS_AT_ONCE = 512, 32

_GEOMETRY = np.dtype(
    [(name, np.int32, 3) for name in ("size", "kernel", "stride", "dilation", "before", "out")]
    + [(name, np.int32) for name in ("batch", "groups", "filters", "width", "parts")]
)


class _Launch(NamedTuple):
    kernel: Kernel
    grid: tuple[int]
    block: tuple[int]
    geometry: np.ndarray
    part: int  # positions
    parts: int


def gradient(x: Array, dy: Array, taps: Taps, bias_partials: Array | None = None) -> tuple[Array, Array | None]:
    """dweight, ``sum over n, i of dy[n, o, i] * x[n, c, i * stride + t * dilation - before]``, and dbias.

    Args:
        x: (N, in, *size).
        dy: (N, out, *taps.out), of the dtype of `x`.
        taps: the geometry.
        bias_partials: what `culux.kernels.conv_epilogue.backward` left to sum for the bias, or None.

    Returns:
        dweight (out, in / groups, *kernel), and dbias, the sum of `bias_partials` over its first axis, or None.
    """
    x, dy = contiguous(x), contiguous(dy)
    outer, width = dy.shape[1], x.shape[1] // taps[6]
    launch = _launch(len(x), outer, width, taps, x.dtype)
    dweight = empty(x, (outer, width, *taps[1]))
    partials = None if launch.parts == 1 else empty(x, (launch.parts, dweight.size), compute_dtype(x))
    launch.kernel(launch.grid, launch.block, dy, x, partials, dweight, launch.geometry, launch.part)
    return dweight, _sum(x, partials, bias_partials, dweight)


def total(like: Array, bias_partials: Array) -> Array:
    """The gradient of the bias alone: the sum of `bias_partials` over its first axis, in the dtype of `like`."""
    return _sum(like, None, bias_partials, None)


def _sum(like: Array, partials: Array | None, bias_partials: Array | None, dweight: Array | None) -> Array | None:
    """Fill `dweight` with the sum of its partials, and return that of the bias's; None of either is nothing to do."""
    parts, size = (0, 0) if partials is None else partials.shape
    bias_parts, channels = (0, 0) if bias_partials is None else bias_partials.shape
    dbias = None if bias_partials is None else empty(like, (channels,))
    if parts or bias_parts:
        across = min(1 << (max(parts, bias_parts) - 1).bit_length(), MOST_PARTS_AT_ONCE)
        each = SUM_THREADS // across
        begin = -(-size // each)
        get_kernel("conv_weight", "conv_weight_sum", like.dtype, constants=(("ROWS", 64),))(
            (begin + -(-channels // each),), (each, across),
            partials, bias_partials, dweight, dbias, size, parts, channels, bias_parts, begin,
        )  # fmt: skip
    return dbias


@functools.lru_cache(maxsize=4096)
def _launch(batch: int, outer: int, width: int, taps: Taps, dtype: Any) -> _Launch:
    groups, filters, three = taps[6], outer // taps[6], in_three_axes(taps)
    columns, positions = width * math.prod(taps[1]), batch * math.prod(taps[5])
    rows = _rows(filters, columns)
    blocks = -(-filters // rows) * -(-columns // COLUMNS[rows]) * groups
    wanted = MULTIPROCESSORS * RESIDENT // THREADS[rows] // blocks
    parts = max(1, min(wanted, positions // SHORTEST[rows]))
    part = -(-positions // parts)
    geometry = np.array([(*three, batch, groups, filters, width, parts)], _GEOMETRY)
    kernel = get_kernel("conv_weight", "conv_weight_gradient", dtype, constants=(("ROWS", rows),))
    return _Launch(kernel, (blocks * parts,), (THREADS[rows],), geometry, part, parts)


def _rows(filters: int, columns: int) -> int:
    """The rows of a block: a larger tile only where it has no more to spare."""
    if filters <= MOST_DIRECT:
        return 1 if filters == 1 else 4
    spare = {rows: -(-filters // rows) * -(-columns // rows) * rows**2 for rows in (64, 32)}
    return min(spare, key=spare.__getitem__)


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: every dtype and tile."""
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for rows in COLUMNS:
            yield program("conv_weight", dtype, constants=(("ROWS", rows),))
