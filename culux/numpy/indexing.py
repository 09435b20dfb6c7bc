"""Reading parts of an array, and putting them in order; the derivative adds into the places that were read."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux.autodiff import Tracer, primitive
from culux.autodiff.tracer import Pullback, plain
from culux.backends import Array
from culux.backends.registry import backend_of, namespace_of
from culux.errors import DifferentiationError, ShapeError
from culux.numpy.broadcasting import axis_of, refuse_out

__all__ = ["diag", "diagonal", "diff", "getitem", "sort", "take", "take_along_axis", "trace", "tril", "triu"]


@primitive
def _getitem(x: Array, *, key: Any) -> Array:
    return x[key]


@_getitem.rule
def _(needs: tuple[bool, ...], x: Array, *, key: Any) -> tuple[Array, Pullback]:
    shape = x.shape
    return x[key], lambda dy: (_scatter(dy, key=key, shape=shape),)


@primitive
def _scatter(y: Array, *, key: Any, shape: tuple[int, ...]) -> Array:
    """Zeros of `shape` with `y` added at `key`; elements that `key` names twice get both."""
    xp = backend_of(y).xp
    total = xp.zeros(shape, dtype=y.dtype)
    if _is_basic(key):
        total[key] = y
    else:
        xp.add.at(total, key, y)
    return total


@_scatter.rule
def _(needs: tuple[bool, ...], y: Array, *, key: Any, shape: tuple[int, ...]) -> tuple[Array, Pullback]:
    return _scatter(y, key=key, shape=shape), lambda dx: (_getitem(dx, key=key),)


def _is_basic(key: Any) -> bool:
    """Whether a key names every element once: slices and integers, or one boolean mask."""
    if getattr(key, "dtype", None) == np.bool_:
        return True
    parts = key if isinstance(key, tuple) else (key,)
    return all(part is None or part is ... or isinstance(part, (int, np.integer, slice)) for part in parts)


def getitem(x: Array, key: Any) -> Array:
    """``x[key]``: slices, integers, None, ..., integer arrays and boolean masks, as in NumPy."""
    parts = key if isinstance(key, tuple) else (key,)
    if any(type(part) is Tracer for part in parts):
        raise DifferentiationError("x[key]: the key is a traced float array; index with integers or booleans")
    return _getitem(x, key=key)


def take(a: Array, indices: Array, axis: int | None = None, out: None = None) -> Array:
    """The elements at integer `indices` along an axis; of the flattened array if None."""
    refuse_out(out)
    if axis is None:
        return getitem(namespace_of(a).reshape(a, (-1,)), indices)
    return getitem(a, (slice(None),) * axis_of(axis, a.ndim) + (indices,))


def take_along_axis(arr: Array, indices: Array, axis: int | None = -1) -> Array:
    """``arr[..., indices[...], ...]``: for every place the element at its own index along `axis`."""
    if axis is None:
        return getitem(namespace_of(arr).reshape(arr, (-1,)), indices)
    axis = axis_of(axis, arr.ndim)
    xp = backend_of(indices).xp
    key = []
    for i, n in enumerate(indices.shape):
        spread = tuple(-1 if j == i else 1 for j in range(indices.ndim))
        key.append(indices if i == axis else xp.reshape(xp.arange(n), spread))
    return getitem(arr, tuple(key))


def sort(a: Array, axis: int | None = -1) -> Array:
    """The elements in ascending order along an axis; of the flattened array if None."""
    if axis is None:
        a, axis = namespace_of(a).reshape(a, (-1,)), -1
    value = plain(a)
    return take_along_axis(a, backend_of(value).xp.argsort(value, axis=axis), axis)


def diff(a: Array, n: int = 1, axis: int = -1) -> Array:
    """``a[i + 1] - a[i]`` along an axis, `n` times."""
    lead = (slice(None),) * axis_of(axis, a.ndim)
    for _ in range(n):
        a = getitem(a, (*lead, slice(1, None))) - getitem(a, (*lead, slice(None, -1)))
    return a


def diagonal(a: Array, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Array:
    """``a[i, i + offset]`` of two axes, as the last axis of the result."""
    first, second = axis_of(axis1, a.ndim), axis_of(axis2, a.ndim)
    others = [i for i in range(a.ndim) if i not in (first, second)]
    matrices = namespace_of(a).transpose(a, (*others, first, second))
    return getitem(matrices, (..., *_diagonal(a, a.shape[first], a.shape[second], offset)))


def _diagonal(like: Array, rows: int, columns: int, offset: int) -> tuple[Array, Array]:
    """The indices of the rows and columns of a diagonal, where `like` is."""
    i = backend_of(plain(like)).xp.arange(max(0, min(rows + min(offset, 0), columns - max(offset, 0))))
    return i - min(offset, 0), i + max(offset, 0)


def diag(v: Array, k: int = 0) -> Array:
    """The `k`-th diagonal of a matrix, or the matrix with the vector `v` there and zeros elsewhere."""
    if v.ndim == 2:
        return diagonal(v, k)
    if v.ndim != 1:
        raise ShapeError(f"diag: expected a vector or a matrix, got shape {tuple(v.shape)}")
    n = v.shape[0] + abs(k)
    return _scatter(v, key=_diagonal(v, n, n, k), shape=(n, n))


def trace(a: Array, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Array:
    """``sum_i a[i, i + offset]`` of two axes."""
    found = diagonal(a, offset, axis1, axis2)
    return namespace_of(found).sum(found, axis=-1)


def tril(m: Array, k: int = 0) -> Array:
    """`m` with zeros above the `k`-th diagonal of its last two axes."""
    return namespace_of(m).where(_below(m, k), m, 0)


def triu(m: Array, k: int = 0) -> Array:
    """`m` with zeros below the `k`-th diagonal of its last two axes."""
    return namespace_of(m).where(_below(m, k - 1), 0, m)


def _below(m: Array, k: int) -> Array:
    """Where the last two axes are on or below the `k`-th diagonal."""
    if m.ndim < 2:
        raise ShapeError(f"tril, triu: expected at least two axes, got shape {tuple(m.shape)}")
    xp = backend_of(plain(m)).xp
    rows, columns = xp.arange(m.shape[-2]), xp.arange(m.shape[-1])
    return columns[None, :] <= rows[:, None] + k
