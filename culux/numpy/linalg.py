"""Differentiable functions of ``numpy.linalg``."""

from __future__ import annotations

import math
from typing import Any

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback
from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.errors import ShapeError
from culux.numpy.broadcasting import Axis, accumulate, keep_axes, normalize_axes, shape_of

__all__ = ["norm"]


def norm(x: Array, ord: float | None = None, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """``sqrt(sum_i x_i^2)`` over the axes, all of them if None; the derivative at 0 is 0.

    Args:
        x: vectors, or arrays taken as vectors.
        ord: None or 2; 1 for ``sum_i |x_i|``, infinity for ``max_i |x_i|``, both over one axis.
        axis: the axes of the norm.
        keepdims: keep them with length 1.

    Raises:
        ShapeError: for another order, or for a norm of matrices other than None.
    """
    over = normalize_axes(axis, len(shape_of(x)))
    if ord is None or (ord == 2 and len(over) == 1):
        return _norm(x, axis=axis, keepdims=keepdims)
    if len(over) != 1 or ord not in (1, math.inf):
        raise ShapeError(f"norm: expected ord 1, 2 or inf over one axis, or None, got ord={ord} over axes {over}")
    xp = namespace_of(x)
    reduce = xp.sum if ord == 1 else xp.max
    return reduce(xp.abs(x), axis=axis, keepdims=keepdims)


@primitive
def _norm(x: Array, *, axis: Axis, keepdims: bool) -> Array:
    squares = accumulate(x * x, axis, keepdims)
    return namespace_of(squares).sqrt(squares)


@_norm.rule
def _(needs: tuple[bool, ...], x: Array, *, axis: Axis, keepdims: bool) -> tuple[Array, Pullback]:
    y = _norm(x, axis=axis, keepdims=keepdims)

    def pullback(dy: Array) -> tuple[Any]:
        scale = dy / namespace_of(y).where(y == 0, 1, y)
        return (x * keep_axes(scale, shape_of(x), axis),)

    return y, pullback
