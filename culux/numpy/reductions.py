"""Reductions over axes, each with its derivative beside it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback, plain
from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.numpy.broadcasting import (
    Axis,
    accumulate,
    axis_of,
    is_half,
    keep_axes,
    masked,
    normalize_axes,
    outline,
    refuse_out,
    shape_of,
)


def sum(a: Array, axis: Axis = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Array:
    """``sum_i a_i`` over the axes; float16 accumulates in float32 and keeps its dtype."""
    refuse_out(out)
    return _sum(a, axis=axis, dtype=dtype, keepdims=keepdims)


@primitive
def _sum(x: Array, *, axis: Axis, dtype: Any, keepdims: bool) -> Array:
    if dtype is None:
        return accumulate(x, axis, keepdims)
    return namespace_of(x).sum(x, axis=axis, dtype=dtype, keepdims=keepdims)


@_sum.rule
def _(needs: tuple[bool, ...], x: Array, *, axis: Axis, dtype: Any, keepdims: bool) -> tuple[Array, Pullback]:
    return _sum(x, axis=axis, dtype=dtype, keepdims=keepdims), partial(_spread, outline(x), axis)


def _spread(like: Any, axis: Axis, dy: Array) -> Array:
    """The cotangent of a sum, repeated over the axes that it went over."""
    if type(like) is float:
        return dy
    if dy.dtype != like.dtype:
        dy = dy.astype(like.dtype)
    return namespace_of(dy).broadcast_to(keep_axes(dy, like.shape, axis), like.shape)


def _count(x: Array, axis: Axis) -> int:
    shape = shape_of(x)
    return math.prod([shape[i] for i in normalize_axes(axis, len(shape))])


def mean(a: Array, axis: Axis = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Array:
    """``sum_i a_i / n`` over the axes; float16 is computed in float32 and keeps its dtype."""
    if dtype is None and is_half(a):
        return (sum(a, axis, np.float32, out, keepdims) / _count(a, axis)).astype(a.dtype)
    return sum(a, axis, dtype, out, keepdims) / _count(a, axis)


def var(
    a: Array, axis: Axis = None, dtype: Any = None, out: None = None, ddof: float = 0, keepdims: bool = False
) -> Array:
    """``sum_i (a_i - mean)^2 / (n - ddof)`` over the axes; float16 is computed in float32 and keeps its dtype."""
    if dtype is None and is_half(a):
        return var(a.astype(np.float32), axis, None, out, ddof, keepdims).astype(a.dtype)
    centred = a - mean(a, axis, dtype, keepdims=True)
    return sum(centred * centred, axis, dtype, out, keepdims) / (_count(a, axis) - ddof)


def std(
    a: Array, axis: Axis = None, dtype: Any = None, out: None = None, ddof: float = 0, keepdims: bool = False
) -> Array:
    """``sqrt(var)`` over the axes; where the variance is 0 the derivative is infinite."""
    if dtype is None and is_half(a):
        return std(a.astype(np.float32), axis, None, out, ddof, keepdims).astype(a.dtype)
    variance = var(a, axis, dtype, out, ddof, keepdims)
    return namespace_of(variance).sqrt(variance)


@primitive
def _max(x: Array, *, axis: Axis, keepdims: bool) -> Array:
    return namespace_of(x).max(x, axis=axis, keepdims=keepdims)


@_max.rule
def _(needs: tuple[bool, ...], x: Array, *, axis: Axis, keepdims: bool) -> tuple[Array, Pullback]:
    y = _max(x, axis=axis, keepdims=keepdims)
    return y, lambda dy: (_share(dy, x, y, axis),)


@primitive
def _min(x: Array, *, axis: Axis, keepdims: bool) -> Array:
    return namespace_of(x).min(x, axis=axis, keepdims=keepdims)


@_min.rule
def _(needs: tuple[bool, ...], x: Array, *, axis: Axis, keepdims: bool) -> tuple[Array, Pullback]:
    y = _min(x, axis=axis, keepdims=keepdims)
    return y, lambda dy: (_share(dy, x, y, axis),)


def _share(dy: Array, x: Array, y: Array, axis: Axis) -> Array:
    """The cotangent of max and min, shared by the elements that reach it."""
    shape = shape_of(x)
    reached = x == keep_axes(y, shape, axis)
    xp = namespace_of(reached)
    count = xp.sum(reached, axis=axis, keepdims=True, dtype=dy.dtype)
    shared = keep_axes(dy, shape, axis) / keep_axes(count, shape, axis)
    return masked(namespace_of(shared).broadcast_to(shared, shape), reached)


def max(a: Array, axis: Axis = None, out: None = None, keepdims: bool = False) -> Array:
    """The largest element over the axes; equal ones share the cotangent, as in torch's amax."""
    refuse_out(out)
    return _max(a, axis=axis, keepdims=keepdims)


def min(a: Array, axis: Axis = None, out: None = None, keepdims: bool = False) -> Array:
    """The smallest element over the axes; equal ones share the cotangent, as in torch's amax."""
    refuse_out(out)
    return _min(a, axis=axis, keepdims=keepdims)


def prod(a: Array, axis: Axis = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Array:
    """``prod_i a_i`` over the axes; the first derivative is right at zeros too."""
    refuse_out(out)
    return _prod(a if dtype is None else a.astype(dtype), axis=axis, keepdims=keepdims)


@primitive
def _prod(x: Array, *, axis: Axis, keepdims: bool) -> Array:
    return namespace_of(x).prod(x, axis=axis, keepdims=keepdims)


@_prod.rule
def _(needs: tuple[bool, ...], x: Array, *, axis: Axis, keepdims: bool) -> tuple[Array, Pullback]:
    y = _prod(x, axis=axis, keepdims=keepdims)

    def pullback(dy: Array) -> tuple[Array]:
        """The product of the others: y / x, or, where there is one zero, that of the rest at its place."""
        shape, zero = shape_of(x), plain(x) == 0
        rest = namespace_of(x).where(zero, 1, x)
        zeros = keep_axes(namespace_of(zero).sum(zero, axis=axis), shape, axis)
        others = keep_axes(_prod(rest, axis=axis, keepdims=False), shape, axis) / rest
        alone = (zeros == 0) | (zero & (zeros == 1))
        return (masked(keep_axes(dy, shape, axis) * others, alone),)

    return y, pullback


@primitive
def _cumsum(x: Array, *, axis: int) -> Array:
    return namespace_of(x).cumsum(x, axis=axis)


@_cumsum.rule
def _(needs: tuple[bool, ...], x: Array, *, axis: int) -> tuple[Array, Pullback]:
    def pullback(dy: Array) -> tuple[Array]:
        xp = namespace_of(dy)
        return (xp.flip(xp.cumsum(xp.flip(dy, axis=axis), axis=axis), axis=axis),)

    return _cumsum(x, axis=axis), pullback


def cumsum(a: Array, axis: int | None = None, dtype: Any = None, out: None = None) -> Array:
    """``y_k = sum_{i <= k} a_i`` along an axis; of the flattened array if None."""
    refuse_out(out)
    a = a if dtype is None else a.astype(dtype)
    if axis is None:
        return _cumsum(namespace_of(a).reshape(a, (-1,)), axis=0)
    return _cumsum(a, axis=axis_of(axis, a.ndim))
