"""Convolutions and their transposes with bias and activation, one launch each, over one to three spatial axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from culux.backends import Array
from culux.kernels.launcher import MULTIPROCESSORS, Kernel, contiguous, empty, get_kernel
from culux.kernels.source import IDENTITY, ActivationCode, Program, program

__all__ = ["Lengths", "Taps", "forward", "in_three_axes", "programs"]

Lengths: TypeAlias = tuple[int, ...]
Taps: TypeAlias = tuple[Lengths, Lengths, Lengths, Lengths, Lengths, Lengths, int]
"""Size, kernel, stride, dilation, before and out, a number for each of one to three axes, and the groups.

Output i reads the input at ``i * stride + tap * dilation - before``; what is outside of `size` reads as 0.
"""

MOST_DIRECT = 16  # channels that a block makes without tiles in shared memory
COLUMNS, DIRECT_COLUMNS = 64, 256  # positions of a block with tiles and without, as the source has them
# The part of a multiprocessor's arithmetic that a tile can use, and the least number of blocks that use it. By
# reasoning, not measured: what is read from shared memory for a multiply-add, and the warps of a block.
RATES = {32: 0.6, 64: 0.75, 128: 0.85}
AT_ONCE = {32: 4, 64: 4, 128: 2}

_GEOMETRY = np.dtype(
    [(name, np.int32, 3) for name in ("size", "kernel", "stride", "dilation", "before", "out", "period")]
    + [(name, np.int32) for name in ("batch", "groups", "filters", "width", "tiles")]
)


class _Launch(NamedTuple):
    kernel: Kernel
    grid: tuple[int]
    block: tuple[int]
    geometry: np.ndarray


def forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    code: ActivationCode,
    taps: Taps,
    *,
    transposed: bool = False,
    keep: bool = False,
) -> tuple[Array, Array | None]:
    """``y = activation(conv(x, weight) + bias)``, and what the backward pass of the activation reads of it.

    `transposed` it is that of the convolution's derivative in its input: every element of x times the weight, added
    where the taps lie. Each output gathers what belongs to it, in an order that is always the same.

    Args:
        x: (N, in, *size), or (N, out, *taps.out) where `transposed`; of the dtype of all arrays.
        weight: (out, in / groups, *kernel).
        bias: a number per channel of the result, or None.
        code: the activation.
        taps: the geometry.
        transposed: whether it is the transpose.
        keep: whether a backward pass will come.

    Returns:
        y (N, out, *taps.out), or (N, in, *size) where `transposed`; and y, the sum before the activation or None, as
        the code says.
    """
    x, weight = contiguous(x), contiguous(weight)
    size, out, groups = taps[0], taps[5], taps[6]
    shape = (len(x), weight.shape[1] * groups, *size) if transposed else (len(x), weight.shape[0], *out)
    y = empty(x, shape)
    z = empty(x, shape) if keep and code.saves == "x" else None
    launch = _launch(len(x), *weight.shape[:2], taps, transposed, x.dtype, code)
    shift = None if bias is None else contiguous(bias)
    launch.kernel(launch.grid, launch.block, x, weight, shift, z, y, launch.geometry)
    return y, z if z is not None else y if keep and code.saves == "y" else None


@functools.lru_cache(maxsize=4096)
def _launch(
    batch: int, outer: int, width: int, taps: Taps, transposed: bool, dtype: Any, code: ActivationCode
) -> _Launch:
    groups, filters, three = taps[6], outer // taps[6], in_three_axes(taps)
    size, _, stride, dilation, _, out = three
    # A transposed result is made in as many phases as a step of the stride has places.
    phases = math.prod(stride) if transposed else 1
    lengths = [-(-n // s) for n, s in zip(size, stride, strict=True)] if transposed else out
    positions, channels = batch * math.prod(lengths), width if transposed else filters
    rows = _rows(channels, positions, groups * phases, dtype)
    columns = DIRECT_COLUMNS if rows <= MOST_DIRECT else COLUMNS
    tiles = -(-positions // columns)
    period = [s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True)]
    geometry = np.array([(*three, period, batch, groups, filters, width, tiles)], _GEOMETRY)
    constants = (("TRANSPOSED", int(transposed)), ("ROWS", rows))
    kernel = get_kernel("conv", "conv_gather", dtype, activation=code, constants=constants)
    return _Launch(kernel, (-(-channels // rows) * groups * tiles * phases,), (_threads(rows, dtype),), geometry)


def _rows(channels: int, positions: int, times: int, dtype: Any) -> int:
    """The channels of a block."""
    if channels <= MOST_DIRECT:
        return 1 << (channels - 1).bit_length()

    def time(rows: int) -> float:
        """As long as one block, and as all blocks on all multiprocessors, in multiply-adds for a step of the sum."""
        work = rows * COLUMNS / RATES[rows]
        blocks = -(-channels // rows) * -(-positions // COLUMNS) * times
        return work * max(blocks / MULTIPROCESSORS, AT_ONCE[rows])

    return min((rows for rows in RATES if rows < 128 or dtype.itemsize < 8), key=time)


def _threads(rows: int, dtype: Any) -> int:
    """The threads of a block, as the source has them."""
    if rows <= MOST_DIRECT:
        return DIRECT_COLUMNS
    each = 16 if dtype.itemsize == 8 else 32 if rows == 32 else 64  # results of a thread
    return rows * COLUMNS // each


def in_three_axes(taps: Taps) -> tuple[Lengths, ...]:
    """All of the taps but the groups, with three numbers each: the missing axes are of length 1, and in front."""
    missing = 3 - len(taps[0])
    ones, zeros = (1,) * missing, (0,) * missing
    size, kernel, stride, dilation, before, out, _ = taps
    return (*ones, *size), (*ones, *kernel), (*ones, *stride), (*ones, *dilation), (*zeros, *before), (*ones, *out)


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: every dtype and tile both ways, and activations that keep nothing, x and y."""
    tiles = {
        "float32": (1, 2, 4, 8, 16, 32, 64, 128),
        "float64": (4, 16, 32, 64),
        "float16": (4, 128),
        "bfloat16": (16, 64),
    }
    for dtype, sizes in tiles.items():
        for rows in sizes:
            for transposed in (0, 1):
                code = IDENTITY if transposed else activations["gelu"]
                constants = (("TRANSPOSED", transposed), ("ROWS", rows))
                yield program("conv", dtype, activation=code, constants=constants)
    yield program("conv", "float32", activation=activations["tanh"], constants=(("TRANSPOSED", 1), ("ROWS", 64)))
