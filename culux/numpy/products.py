"""Matrix products, each with its derivative beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback
from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.errors import ShapeError, describe
from culux.numpy.broadcasting import axis_of, common_namespace, fit, is_half, shape_of
from culux.numpy.shaping import expand_dims, reshape, squeeze, swapaxes, transpose

__all__ = ["dot", "einsum", "inner", "matmul", "outer", "tensordot", "vdot"]


@primitive
def _matmul(a: Array, b: Array) -> Array:
    y = a @ b
    return y.astype(a.dtype) if is_half(a) and a.dtype == b.dtype and y.dtype != a.dtype else y  # bfloat16 by NumPy


@_matmul.rule
def _(needs: tuple[bool, ...], a: Array, b: Array) -> tuple[Array, Pullback]:
    def pullback(dy: Array) -> tuple[Any, Any]:
        da = fit(dy @ swapaxes(b, -1, -2), a) if needs[0] else None
        return da, fit(swapaxes(a, -1, -2) @ dy, b) if needs[1] else None

    return _matmul(a, b), pullback


def matmul(a: Array, b: Array) -> Array:
    """``a @ b``: matrices in the last two axes, the others broadcast; vectors as in NumPy.

    Raises:
        ShapeError: for scalars, or lengths that do not fit.
    """
    if not shape_of(a) or not shape_of(b):
        raise ShapeError(f"matmul: expected arrays with at least one axis, got {describe(a)} and {describe(b)}; use *")
    if a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ShapeError(
            f"matmul: expected a.shape[-1] == b.shape[{-2 if b.ndim > 1 else 0}], got {a.shape} and {b.shape}"
        )
    if a.ndim > 1 and b.ndim > 1:
        return _matmul(a, b)
    y = _matmul(a if a.ndim > 1 else expand_dims(a, 0), b if b.ndim > 1 else expand_dims(b, 1))
    lost = ((-2,) if a.ndim == 1 else ()) + ((-1,) if b.ndim == 1 else ())
    return squeeze(y, lost)


def dot(a: Array, b: Array) -> Array:
    """NumPy's dot: the sum over the last axis of `a` and the last but one of `b`; a product for scalars."""
    if not shape_of(a) or not shape_of(b):
        return a * b
    if b.ndim <= 2:
        return matmul(a, b)
    return tensordot(a, b, axes=((a.ndim - 1,), (b.ndim - 2,)))


def inner(a: Array, b: Array) -> Array:
    """The sum over the last axes of both; a product for scalars."""
    if not shape_of(a) or not shape_of(b):
        return a * b
    return tensordot(a, b, axes=((a.ndim - 1,), (b.ndim - 1,)))


def outer(a: Array, b: Array) -> Array:
    """``a_i b_j`` of the flattened arrays."""
    return reshape(a, (-1, 1)) * reshape(b, (1, -1))


def vdot(a: Array, b: Array) -> Array:
    """``sum_i a_i b_i`` of the flattened arrays."""
    return matmul(reshape(a, (-1,)), reshape(b, (-1,)))


def tensordot(a: Array, b: Array, axes: Any = 2) -> Array:
    """The sum of products over pairs of axes; an int n stands for the last n of `a` and the first n of `b`."""
    if isinstance(axes, int):
        left, right = tuple(range(a.ndim - axes, a.ndim)), tuple(range(axes))
    else:
        left, right = (tuple(np.atleast_1d(side).tolist()) for side in axes)
    left, right = tuple(axis_of(i, a.ndim) for i in left), tuple(axis_of(i, b.ndim) for i in right)
    if [a.shape[i] for i in left] != [b.shape[i] for i in right]:
        raise ShapeError(f"tensordot: axes {left} of shape {a.shape} do not fit axes {right} of shape {b.shape}")
    kept_a = [i for i in range(a.ndim) if i not in left]
    kept_b = [i for i in range(b.ndim) if i not in right]
    outer_a, outer_b, shared = ([x.shape[i] for i in over] for x, over in ((a, kept_a), (b, kept_b), (a, left)))
    rows = reshape(transpose(a, [*kept_a, *left]), (math.prod(outer_a), math.prod(shared)))
    columns = reshape(transpose(b, [*right, *kept_b]), (math.prod(shared), math.prod(outer_b)))
    return reshape(matmul(rows, columns), (*outer_a, *outer_b))


def einsum(subscripts: str, *operands: Array, optimize: bool = True) -> Array:
    """Einstein summation, ``einsum("bij,bjk->bik", a, b)``; one letter per axis and operand, no ellipsis.

    Products of two operands are matrix products; `optimize` changes nothing.

    Raises:
        ShapeError: for subscripts that do not fit the operands.
    """
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:
        output = "".join(sorted(c for c in set(inputs) - {","} if inputs.count(c) == 1))
    if len(terms) != len(operands) or any(len(t) != x.ndim for t, x in zip(terms, operands, strict=False)):
        shapes = ", ".join(str(tuple(x.shape)) for x in operands)
        raise ShapeError(f"einsum: the subscripts {subscripts!r} do not fit operands of shapes {shapes}")
    if "." in subscripts or any(len(set(t)) != len(t) for t in [*terms, output]):
        raise ShapeError(f"einsum: one letter per axis and operand, no ellipsis, got {subscripts!r}")
    return _einsum(*operands, terms=tuple(terms), output=output)


@primitive
def _einsum(*operands: Array, terms: tuple[str, ...], output: str) -> Array:
    return common_namespace(*operands).einsum(f"{','.join(terms)}->{output}", *operands, optimize=True)


@_einsum.rule
def _(needs: tuple[bool, ...], *operands: Array, terms: tuple[str, ...], output: str) -> tuple[Array, Pullback]:
    sizes = {c: n for term, x in zip(terms, operands, strict=True) for c, n in zip(term, x.shape, strict=True)}

    def cotangent(i: int, dy: Array) -> Array:
        """The other operands and dy summed to the axes of operand i; axes that only it has are repeated."""
        others = [x for j, x in enumerate(operands) if j != i]
        rest = [t for j, t in enumerate(terms) if j != i]
        known = "".join(c for c in terms[i] if c in output or any(c in t for t in rest))
        found = _einsum(dy, *others, terms=(output, *rest), output=known)
        shape = tuple(sizes[c] if c in known else 1 for c in terms[i])
        xp = namespace_of(found)
        return fit(xp.broadcast_to(xp.reshape(found, shape), tuple(sizes[c] for c in terms[i])), operands[i])

    def pullback(dy: Array) -> tuple[Any, ...]:
        return tuple(cotangent(i, dy) if need else None for i, need in enumerate(needs))

    return _einsum(*operands, terms=terms, output=output), pullback
