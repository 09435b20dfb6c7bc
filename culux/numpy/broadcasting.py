"""What the rules share: axes, sums, and cotangents in the shape and dtype of what they belong to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from culux.autodiff import Tracer
from culux.backends import Array
from culux.backends.registry import backend_of, namespace_of
from culux.errors import DifferentiationError, ShapeError

__all__ = [
    "Axis",
    "Outline",
    "accumulate",
    "axis_of",
    "common_namespace",
    "fit",
    "is_half",
    "keep_axes",
    "masked",
    "normalize_axes",
    "outline",
    "refuse_out",
    "shape_of",
]

Axis = int | tuple[int, ...] | None
"""The axes that a reduction goes over; None for all."""

_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def common_namespace(*values: Any) -> Any:
    """The namespace to compute with on several values: culux.numpy's where one is traced."""
    for value in values:
        if type(value) is Tracer:
            return namespace_of(value)
    return backend_of(*values).xp


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape of an array or of a Python number."""
    return getattr(x, "shape", ())


def is_half(x: Any) -> bool:
    """Whether `x` is a float16 or bfloat16 array: one that accumulates in float32."""
    dtype = getattr(x, "dtype", None)
    return getattr(dtype, "itemsize", 0) == 2 and getattr(dtype, "kind", "") in "fV"


def accumulate(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The sum over axes in the dtype of `x`; float16 and bfloat16 accumulate in float32."""
    xp = namespace_of(x)
    if is_half(x):
        return xp.sum(x, axis=axis, dtype=np.float32, keepdims=keepdims).astype(x.dtype)
    return xp.sum(x, axis=axis, keepdims=keepdims)


def refuse_out(out: Any) -> None:
    """Raise where `out` is given: it is a parameter only so that others have the places that they have in NumPy."""
    if out is not None:
        raise DifferentiationError("out= would overwrite a value that a gradient needs; use the result instead")


class Outline(NamedTuple):
    """Shape and dtype of an array: what a cotangent is fitted to when the array itself need not be kept alive."""

    shape: tuple[int, ...]
    dtype: Any


def outline(x: Any) -> Any:
    """The `Outline` of an array; a Python float stands for itself."""
    return x if type(x) is float else Outline(x.shape, x.dtype)


def fit(cotangent: Array, like: Any) -> Array:
    """A cotangent summed over the axes along which `like` (an array or its outline) was broadcast, in its dtype."""
    if type(like) is float:
        return accumulate(cotangent) if shape_of(cotangent) else cotangent
    shape = like.shape
    if cotangent.shape != shape:
        extra = len(cotangent.shape) - len(shape)
        axes = tuple(range(extra)) + tuple(
            i + extra for i, n in enumerate(shape) if n == 1 and cotangent.shape[i + extra] != 1
        )
        summed = accumulate(cotangent, axes)
        cotangent = namespace_of(summed).reshape(summed, shape)
    if cotangent.dtype != like.dtype:
        cotangent = cotangent.astype(like.dtype)
    return cotangent


def masked(cotangent: Array, mask: Array) -> Array:
    """`cotangent` where the booleans of `mask` are true, 0 elsewhere, also in place of infinities."""
    if type(cotangent) is np.ndarray and cotangent.itemsize in _BITS:
        # The bits times 0 or 1: np.where takes 15 times as long, and inf * False is NaN.
        return (cotangent.view(_BITS[cotangent.itemsize]) * mask).view(cotangent.dtype)
    chosen = common_namespace(cotangent, mask).where(mask, cotangent, 0)
    return chosen if chosen.dtype == cotangent.dtype else chosen.astype(cotangent.dtype)  # CuPy's bfloat16


def axis_of(axis: int, ndim: int) -> int:
    """An axis as a non-negative number.

    Raises:
        ShapeError: for an axis that an array of `ndim` axes does not have.
    """
    if not -ndim <= axis < ndim:
        raise ShapeError(f"expected an axis of an array with {ndim} axes, {-ndim} to {ndim - 1}, got {axis}")
    return axis % ndim


def normalize_axes(axis: Axis | list[int], ndim: int) -> tuple[int, ...]:
    """Axes as non-negative numbers in order; all of them for None."""
    if axis is None or not ndim:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    return tuple(sorted(axis_of(a, ndim) for a in axes))


def keep_axes(reduced: Array, shape: tuple[int, ...], axis: Axis) -> Array:
    """A reduction's result with the axes that it lost put back with length 1."""
    axes = normalize_axes(axis, len(shape))
    return namespace_of(reduced).reshape(reduced, tuple(1 if i in axes else n for i, n in enumerate(shape)))
