"""`embedding`: rows of a matrix by their ids."""

from __future__ import annotations

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback, plain
from culux.backends import Array, backend_of, is_array
from culux.errors import DTypeError, ShapeError, describe
from culux.kernels import embedding as kernels
from culux.nn.fused import narrow, on_kernels, require_float, widen

__all__ = ["embedding"]


def embedding(ids: Array, weight: Array) -> Array:
    """``y = weight[ids]``: for every id its row.

    On a GPU the ids are not read by the host: the row of an id that `weight` has not is NaN there, and the next
    `culux.to_numpy` or `culux.synchronize` raises. The gradient of a row is the sum over the places of its
    id, in their order, so that every run has the same bits.

    Args:
        ids: any shape, integer, from 0 to rows - 1; negative ids do not count from the end.
        weight: (rows, dims), float.

    Returns:
        (*ids.shape, dims), of the dtype of `weight`.

    Raises:
        DTypeError: for ids that are no integer array, or a `weight` that is no float array.
        ShapeError: for a `weight` that is no matrix, or an id that it has no row for.
    """
    require_float("embedding", weight, "weight")
    if weight.ndim != 2:
        raise ShapeError(f"embedding: expected weight of shape (rows, dims), got {tuple(weight.shape)}")
    ids = plain(ids)
    if not is_array(ids) or str(ids.dtype).rpartition(".")[2].strip("0123456789") not in ("int", "uint"):
        raise DTypeError(f"embedding: expected an array of integer ids, got {describe(ids)}; ids.astype('int64')")
    if not on_kernels(plain(weight)):
        _check_range(ids, weight.shape[0])
    return _rows(weight, ids)


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
