"""Rows of a matrix by their ids in one launch, and the sum of rows by id in two or three, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from weakref import WeakKeyDictionary

import numpy as np

from culux.backends import Array, Backend, backend_of
from culux.backends.checks import expect_check, on_synchronize
from culux.errors import ShapeError
from culux.kernels.launcher import MOST_BLOCKS, Kernel, compute_dtype, contiguous, empty, get_kernel
from culux.kernels.source import ActivationCode, Program, program

__all__ = ["gather", "programs", "scatter_add"]

THREADS = 256
CHUNK = 32  # as in the source
MOST_TO_RANK = 2**15  # ids; the comparisons grow with the square
_alarms: WeakKeyDictionary[Backend, dict[int, Array]] = WeakKeyDictionary()  # by device: int64[4], see the source


def gather(weight: Array, ids: Array) -> Array:
    """``weight[ids]``; the row of an id that no row has is NaN, and the next synchronisation raises a `ShapeError`.

    Args:
        weight: (rows, dims), float; a copy in row-major order is taken where it is not so.
        ids: any shape, integer; converted to int64 unless int32.

    Returns:
        (*ids.shape, dims), of the dtype of `weight`.
    """
    weight, ids = contiguous(weight), _as_ids(ids)
    rows, dims = weight.shape
    y = empty(weight, (*ids.shape, dims))
    if y.size == 0:
        return y
    block = _block(weight, dims)
    grid = (min(-(-ids.size // block[1]), MOST_BLOCKS),)
    _kernel("embedding_gather", weight, ids)(grid, block, weight, ids, y, _alarm(weight), ids.size, dims, rows)
    return y


def scatter_add(dy: Array, ids: Array, *, rows: int) -> Array:
    """``dweight[i] = sum of dy[j] over ids[j] == i``, added in the order of `ids`; other ids count for nothing.

    Args:
        dy: (*ids.shape, dims), float; a copy in row-major order is taken where it is not so.
        ids: any shape, integer.
        rows: how many rows `dweight` has.

    Returns:
        (rows, dims), of the dtype of `dy`; summed in float32, of float64 in float64.
    """
    dy, ids = contiguous(dy), _as_ids(ids)
    n, dims = ids.size, dy.shape[-1]
    dweight = empty(dy, (rows, dims))
    if dweight.size == 0:
        return dweight
    words = empty(dy, (n,), np.uint64)
    ranked = n <= MOST_TO_RANK
    blocks = -(-dweight.nbytes // (16 * THREADS)) if ranked else -(-max(dweight.nbytes // 16, n) // THREADS)
    grid = (max(min(blocks, MOST_BLOCKS), -(-n // 32) if ranked else 1),)
    first = _kernel("embedding_rank" if ranked else "embedding_words", dy, ids)
    first(grid, (THREADS,), ids, words, dweight, n, rows, dweight.size)
    if n == 0:
        return dweight
    if not ranked:
        with words.device:
            words = backend_of(words).xp.sort(words)
    chunks = -(-n // CHUNK)
    partials = empty(dy, (chunks, 2, dims), compute_dtype(dy))
    block = _block(dy, dims)
    grid = (min(-(-chunks // block[1]), MOST_BLOCKS),)
    _kernel("embedding_sum", dy, ids)(grid, block, words, dy, dweight, partials, n, dims, rows)
    if chunks > 1:
        wide = (min(dims, THREADS), max(1, THREADS // dims))
        _kernel("embedding_join", dy, ids)(grid, wide, words, partials, dweight, n, dims, rows)
    return dweight


def _as_ids(ids: Array) -> Array:
    if ids.dtype != np.int32:
        ids = backend_of(ids).astype(ids, "int64")
    return contiguous(ids)


def _kernel(name: str, x: Array, ids: Array) -> Kernel:
    return get_kernel("embedding", name, x.dtype, constants=(("ID_BYTES", ids.dtype.itemsize),))


def _block(x: Array, dims: int) -> tuple[int, int]:
    """Threads along a row, 16 bytes each where rows are aligned, and rows of a block."""
    lanes = max(1, 16 // x.dtype.itemsize)
    columns = min(THREADS, dims // lanes if dims % lanes == 0 else dims)
    return columns, THREADS // columns


def _alarm(like: Array) -> Array:
    """Where a kernel tells of an id that no row has, on the device of `like`; looked at when the host next waits."""
    backend = backend_of(like)
    index = backend.place_of(like).index
    alarms = _alarms.setdefault(backend, {})
    if index not in alarms:
        alarms[index] = backend.from_host(np.zeros(4, np.int64), index)
        backend.synchronize(index)  # whatever stream a kernel is launched on, it finds zeros
    expect_check(backend, index)
    return alarms[index]


@on_synchronize
def _check(backend: Backend, index: int) -> None:
    """Raise where a kernel that has run on the device met an id that no row has."""
    alarm = _alarms.get(backend, {}).get(index)
    if alarm is None:
        return
    backend.synchronize(index)  # kernels of other streams are done too
    told, found, position, rows = backend.to_host(alarm).tolist()
    if told:
        with alarm.device:
            alarm.fill(0)
        backend.synchronize(index)
        raise ShapeError(
            f"embedding: expected ids from 0 to {rows - 1} for the {rows} rows of weight, got {found} at position "
            f"{position} of the flattened ids; negative ids do not count from the end"
        )


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: every dtype with both kinds of ids."""
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for size in (4, 8):
            yield program("embedding", dtype, constants=(("ID_BYTES", size),))
