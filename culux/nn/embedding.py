"""`embedding`: rows of a matrix by their ids."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback, plain
from culux.backends import Array, backend_of, is_array
from culux.backends.registry import namespace_of
from culux.errors import DTypeError, ShapeError, describe
from culux.kernels import embedding as kernels
from culux.nn.fused import narrow, on_kernels, require_float, widen

__all__ = ["embedding"]


def embedding(ids: Array | tuple[Array, ...], weight: Array) -> Array:
    """``y = weight[ids]``: for every id its row; for a tuple of ids, one for each axis but the last of `weight`.

    On a GPU the ids are not read by the host: the row of an id that `weight` has not is NaN there, and the next
    `culux.to_numpy` or `culux.synchronize` raises. The gradient of a row is the sum over the places of its
    id, in their order, so that every run has the same bits.

    Args:
        ids: any shape, integer, from 0 to rows - 1; negative ids do not count from the end. A tuple of them, of one
            shape, for a `weight` with as many axes before the last.
        weight: (rows, dims), or (*rows, dims), float.

    Returns:
        (*ids.shape, dims), of the dtype of `weight`.

    Raises:
        DTypeError: for ids that are no integer array, or a `weight` that is no float array.
        ShapeError: for a `weight` of other axes, ids of several shapes, or an id that `weight` has no row for.
    """
    require_float("embedding", weight, "weight")
    parts = tuple(plain(part) for part in (ids if isinstance(ids, tuple) else (ids,)))
    if weight.ndim != len(parts) + 1:
        form = "(rows, dims)" if len(parts) == 1 else f"({'rows, ' * len(parts)}dims) for a tuple of {len(parts)} ids"
        raise ShapeError(f"embedding: expected weight of shape {form}, got {tuple(weight.shape)}")
    for part, rows in zip(parts, weight.shape, strict=False):
        if not is_array(part) or str(part.dtype).rpartition(".")[2].strip("0123456789") not in ("int", "uint"):
            raise DTypeError(f"embedding: expected an array of integer ids, got {describe(part)}; ids.astype('int64')")
        if part.shape != parts[0].shape:
            raise ShapeError(f"embedding: expected ids of one shape, got {parts[0].shape} and {part.shape}")
        if not on_kernels(plain(weight)):
            _check_range(part, rows)
    if len(parts) == 1:
        return _rows(weight, parts[0])
    flat = namespace_of(weight).reshape(weight, (-1, weight.shape[-1]))
    return _rows(flat, _numbered(parts, weight.shape[:-1]))


def _numbered(parts: tuple[Array, ...], rows: tuple[int, ...]) -> Array:
    """The row-major numbers of ids, one for each axis; -1 where one is out of its range."""
    xp = backend_of(*parts).xp
    number: Any = 0
    inside: Any = True
    for part, count in zip(parts, rows, strict=True):
        number = number * count + part.astype(np.int64)
        inside = inside & (part >= 0) & (part < count)
    return xp.where(inside, number, -1)


def _check_range(ids: Array, rows: int) -> None:
    """Raise where an id has no row."""
    host = backend_of(ids).to_host(ids)
    if host.size and (host.min() < 0 or host.max() >= rows):
        at = np.argwhere((host < 0) | (host >= rows))[0].tolist()
        raise ShapeError(
            f"embedding: expected ids from 0 to {rows - 1} for the {rows} rows of weight, got {host[tuple(at)]} at "
            f"ids[{', '.join(map(str, at))}]; negative ids do not count from the end"
        )


@primitive
def _rows(weight: Array, ids: Array) -> Array:
    """``weight[ids]``, the ids being known to be right."""
    xp = backend_of(weight).xp
    return xp.reshape(xp.take(weight, xp.reshape(ids, (-1,)), axis=0), (*ids.shape, weight.shape[1]))


_rows.implementation("cupy")(kernels.gather)


@_rows.rule
def _(needs: tuple[bool, ...], weight: Array, ids: Array) -> tuple[Array, Pullback]:
    rows = weight.shape[0]
    return _rows(weight, ids), lambda dy: (_sum_by_id(dy, ids, rows=rows), None)


@primitive
def _sum_by_id(dy: Array, ids: Array, *, rows: int) -> Array:
    """The sum of the rows of `dy` that have the same id, as a matrix with `rows` rows."""
    xp = backend_of(dy).xp
    wide = widen(dy)
    named = xp.reshape(ids, (1, -1)) == xp.reshape(xp.arange(rows, dtype=ids.dtype), (-1, 1))
    return narrow(xp.astype(named, wide.dtype) @ xp.reshape(wide, (-1, dy.shape[-1])), dy)


_sum_by_id.implementation("cupy")(kernels.scatter_add)


@_sum_by_id.implementation("numpy")
def _(dy: Array, ids: Array, *, rows: int) -> Array:
    # np.add.at has a fast loop for one-dimensional arrays only: measured, a third of the time of the loop over rows.
    dims = dy.shape[-1]
    wide = widen(dy)
    total = np.zeros(rows * dims, wide.dtype)
    places = ids.reshape(-1, 1).astype(np.int64) * dims + np.arange(dims)
    np.add.at(total, places.reshape(-1), wide.reshape(-1))
    return narrow(total.reshape(rows, dims), dy)


@_sum_by_id.rule
def _(needs: tuple[bool, ...], dy: Array, ids: Array, *, rows: int) -> tuple[Array, Pullback]:
    return _sum_by_id(dy, ids, rows=rows), lambda dweight: (_rows(dweight, ids), None)
