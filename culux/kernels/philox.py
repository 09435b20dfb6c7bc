"""Philox random numbers and dropout, one launch each, the counter moved on in the same launch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from culux.backends import Array
from culux.kernels.launcher import MOST_BLOCKS, contiguous, empty, get_kernel
from culux.kernels.source import ActivationCode, Program, program

__all__ = ["dropout", "programs", "uniform"]

THREADS = 256
BYTES = 32  # of random numbers that a thread makes at a time


def uniform(key: Array, counter: Array, n: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """`n` uniform numbers in [0, 1), float32 or float64, and the counter after them.

    They are those of ``Generator(Philox(key=key, counter=counter)).random(n, dtype)``, bit for bit.

    Args:
        key: uint64[2].
        counter: uint64[4].
        n: how many.
        dtype: float32 or float64.
    """
    x = empty(key, (n,), dtype)
    if n == 0:
        return x, counter
    after = empty(counter)
    kernel = get_kernel("philox", "philox_uniform", dtype)
    kernel(_grid(n, BYTES // dtype.itemsize), (THREADS,), contiguous(key), contiguous(counter), x, after, n)
    return x, after


def dropout(x: Array, key: Array, counter: Array, p: float, *, advance: bool) -> tuple[Array, Array | None]:
    """``y = x * (u >= p) / (1 - p)``, u being the float32 numbers of `uniform`; zeros for p = 1.

    The mask is nowhere in memory: dx is this of dy, with the same key and counter.

    Args:
        x: any shape, float; a copy in row-major order is taken where it is not so.
        key: uint64[2].
        counter: uint64[4].
        p: the probability of dropping, from 0 to 1; rounded to float32 for the comparison.
        advance: whether the counter after the draw is wanted.

    Returns:
        y of the shape and dtype of `x`; the counter after the draw, None unless `advance`.
    """
    x = contiguous(x)
    y = empty(x)
    if x.size == 0:
        return y, counter if advance else None
    after = empty(counter) if advance else None
    # u is a multiple of 2**-24: compared as integers, a p that is too small for a normal float counts too.
    threshold = math.ceil(float(np.float32(p)) * 2**24)
    scale = 1 / (1 - p) if p < 1 else 0.0
    kernel = get_kernel("philox", "philox_dropout", x.dtype)
    key, counter = contiguous(key), contiguous(counter)
    kernel(_grid(x.size, 8), (THREADS,), key, counter, x, y, after, x.size, threshold, scale)
    return y, after


def _grid(n: int, each: int) -> tuple[int]:
    return (min(-(-n // (THREADS * each)), MOST_BLOCKS),)


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: every dtype."""
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        yield program("philox", dtype)
