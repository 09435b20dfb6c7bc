"""Softmax, its logarithm, the logarithm of the sum of exponentials, and one-hot labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from culux.autodiff import Primitive, primitive
from culux.autodiff.tracer import Pullback
from culux.backends import Array, backend_of
from culux.backends.registry import namespace_of
from culux.errors import DTypeError, describe
from culux.kernels import softmax as kernels
from culux.nn.fused import narrow, on_kernels, require_float, widen

__all__ = ["bounded_max", "log_softmax", "logsumexp", "one_hot", "require_integers", "softmax"]


def softmax(x: Array, axis: int = -1) -> Array:
    """``exp(x_i) / sum_j exp(x_j)`` along an axis, without overflow; NaN where all elements are -inf.

    Args:
        x: any shape with the axis, float.
        axis: the axis that sums to 1.
    """
    require_float("softmax", x)
    return _softmax(x, axis=axis)


def log_softmax(x: Array, axis: int = -1) -> Array:
    """``x_i - log(sum_j exp(x_j))`` along an axis, without overflow; NaN where all elements are -inf.

    Args:
        x: any shape with the axis, float.
        axis: the axis that is normalised.
    """
    require_float("log_softmax", x)
    return _log_softmax(x, axis=axis)


def logsumexp(x: Array, axis: int = -1, keepdims: bool = False) -> Array:
    """``log(sum_j exp(x_j))`` along an axis, without overflow; -inf where all elements are -inf.

    Args:
        x: any shape with the axis, float.
        axis: the axis that is summed over.
        keepdims: leave it with length 1.
    """
    require_float("logsumexp", x)
    y = _logsumexp(x, axis=axis)
    return y if keepdims else namespace_of(y).squeeze(y, axis=axis)


def bounded_max(x: Array, axis: int) -> Array:
    """The largest element along the axis, a finite number where that is infinite."""
    if type(x) is np.ndarray:
        bounds = np.finfo(x.dtype)
        largest = np.maximum.reduce(x, axis=axis, keepdims=True, initial=bounds.min)
        return np.minimum(largest, bounds.max, out=largest)
    xp = namespace_of(x)
    largest = xp.max(x, axis=axis, keepdims=True)
    return xp.where(xp.isfinite(largest), largest, xp.zeros_like(largest))


def _shifted_exp(x: Array, axis: int) -> tuple[Array, Array]:
    """``exp(x - shift)`` and the shift."""
    shift = bounded_max(x, axis)
    shifted = x - shift
    return np.exp(shifted, out=shifted) if type(shifted) is np.ndarray else namespace_of(x).exp(shifted), shift


@primitive
def _softmax(x: Array, *, axis: int) -> Array:
    e, _ = _shifted_exp(widen(x), axis)
    with np.errstate(invalid="ignore"):  # 0 / 0 in rows of -inf
        e /= namespace_of(e).sum(e, axis=axis, keepdims=True)
    return narrow(e, x)


@_softmax.rule
def _(needs: tuple[bool, ...], x: Array, *, axis: int) -> tuple[Array, Pullback]:
    y = _softmax(x, axis=axis)

    def pullback(dy: Array) -> tuple[Array]:
        if on_kernels(y) and on_kernels(dy):
            return (kernels.backward(dy, y, axis % y.ndim, log=False),)
        wide = widen(y)
        along = widen(dy) * wide
        return (narrow(along - wide * namespace_of(along).sum(along, axis=axis, keepdims=True), y),)

    return y, pullback


@primitive
def _log_softmax(x: Array, *, axis: int) -> Array:
    wide = widen(x)
    e, shift = _shifted_exp(wide, axis)
    xp = namespace_of(e)
    with np.errstate(divide="ignore", invalid="ignore"):  # log(0) in rows of -inf
        # In this order no digits are lost where all logits are large.
        return narrow((wide - shift) - xp.log(xp.sum(e, axis=axis, keepdims=True)), x)


@_log_softmax.rule
def _(needs: tuple[bool, ...], x: Array, *, axis: int) -> tuple[Array, Pullback]:
    y = _log_softmax(x, axis=axis)

    def pullback(dy: Array) -> tuple[Array]:
        if on_kernels(y) and on_kernels(dy):
            return (kernels.backward(dy, y, axis % y.ndim, log=True),)
        wide, dy = widen(y), widen(dy)
        total = namespace_of(dy).sum(dy, axis=axis, keepdims=True)
        return (narrow(dy - namespace_of(wide).exp(wide) * total, y),)

    return y, pullback


def _use_kernels(operation: Primitive, log: bool) -> None:
    """Let CuPy arrays take the kernels, where those have the dtype."""

    def evaluate(x: Array, *, axis: int) -> Array:
        if not on_kernels(x):
            return operation.operation.portable(x, axis=axis)
        return kernels.forward(x, normalize_axis_index(axis, x.ndim), log=log)

    operation.implementation("cupy")(evaluate)


_use_kernels(_softmax, log=False)
_use_kernels(_log_softmax, log=True)


@primitive
def _logsumexp(x: Array, *, axis: int) -> Array:
    e, shift = _shifted_exp(widen(x), axis)
    xp = namespace_of(e)
    with np.errstate(divide="ignore"):  # log(0) in rows of -inf
        return narrow(xp.log(xp.sum(e, axis=axis, keepdims=True)) + shift, x)


@_logsumexp.rule
def _(needs: tuple[bool, ...], x: Array, *, axis: int) -> tuple[Array, Pullback]:
    return _logsumexp(x, axis=axis), lambda dy: (dy * _softmax(x, axis=axis),)


def one_hot(labels: Array, num_classes: int, dtype: Any = np.float32) -> Array:
    """1 at each label and 0 elsewhere, in a new last axis; a label out of range gives zeros.

    Args:
        labels: any shape, integers.
        num_classes: the length of the new axis.
        dtype: of the result.

    Returns:
        labels.shape + (num_classes,).

    Raises:
        DTypeError: for labels that are no integers.
    """
    require_integers("one_hot", labels)
    backend = backend_of(labels)
    xp = backend.xp
    classes = backend.from_host(np.arange(num_classes), backend.place_of(labels).index)
    hot = xp.astype(labels, classes.dtype)[..., None] == classes
    return backend.astype(hot, dtype)


def require_integers(function: str, labels: Array, name: str = "labels") -> None:
    """Raise a `DTypeError` where labels, called `name` there, are no integers."""
    if type(labels) is np.ndarray and labels.dtype.kind in "iu":
        return
    xp = backend_of(labels).xp
    if not hasattr(labels, "dtype") or not xp.isdtype(labels.dtype, "integral"):
        raise DTypeError(f"{function}: expected integer {name}, got {describe(labels)}; {name}.astype('int64')")
