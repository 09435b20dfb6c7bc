"""Softmax, its logarithm, and cross entropy from logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux import numpy as cnp
from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback, Tracer
from culux.backends import Array, backend_of
from culux.backends.registry import namespace_of
from culux.errors import DTypeError, LayerError, ShapeError, describe
from culux.nn.fused import decompose, evaluate_by_rule, narrow, require_float, widen

__all__ = [
    "log_softmax",
    "logsumexp",
    "one_hot",
    "reduced",
    "reduced_cross_entropy",
    "require_classes",
    "require_integers",
    "softmax",
    "softmax_cross_entropy",
]


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


def _shift(x: Array, axis: int) -> Array:
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
    shift = _shift(x, axis)
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
        wide, dy = widen(y), widen(dy)
        total = namespace_of(dy).sum(dy, axis=axis, keepdims=True)
        return (narrow(dy - namespace_of(wide).exp(wide) * total, y),)

    return y, pullback


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


def softmax_cross_entropy(
    logits: Array, labels: Array, *, label_smoothing: float = 0.0, ignore_index: int | None = None
) -> Array:
    """``-sum_c target_c * log_softmax(logits)_c`` per example, the classes along axis 1.

    Args:
        logits: (N, C) or (N, C, *spatial), float.
        labels: integers of shape (N, *spatial), or probabilities of the shape of `logits`.
        label_smoothing: eps in ``target = (1 - eps) * target + eps / C``.
        ignore_index: integer labels of this value have loss 0 and no gradient.

    Returns:
        (N, *spatial). For the mean over what is not ignored divide by ``(labels != ignore_index).sum()``.

    Raises:
        ShapeError: for shapes that do not fit, or (where the labels are on the host) a label that is no class;
            on a GPU such a label is not looked for.
        DTypeError: for labels that are neither integers nor floats.
    """
    return reduced_cross_entropy(logits, labels, label_smoothing, ignore_index, "none", "softmax_cross_entropy")


def reduced_cross_entropy(
    logits: Array, labels: Array, label_smoothing: float, ignore_index: int | None, reduction: str, name: str
) -> Array:
    """`softmax_cross_entropy`, or its mean over what is not ignored ("mean") or its sum ("sum").

    Errors call it `name`, which is what the user called.
    """
    require_float(name, logits)
    shape, labels_shape = tuple(logits.shape), tuple(labels.shape)
    if len(shape) < 2:
        raise ShapeError(f"expected logits of shape (N, C, *spatial), got {shape}")
    if not 0 <= label_smoothing <= 1:
        raise LayerError(f"expected 0 <= label_smoothing <= 1, got {label_smoothing}")
    if labels_shape == shape:
        require_float(f"{name} with labels of the logits' shape", labels)
        if ignore_index is not None:
            raise LayerError("ignore_index is for integer labels; these are probabilities")
        return reduced(_cross_entropy(logits, labels, smoothing=label_smoothing), reduction)
    expected = (shape[0], *shape[2:])
    if labels_shape != expected:
        raise ShapeError(f"expected labels of shape {expected}, or probabilities of shape {shape}, got {labels_shape}")
    require_integers(name, labels)
    require_classes(labels, shape[1], ignore_index)
    return _sparse_cross_entropy(
        logits, labels, smoothing=label_smoothing, ignore_index=ignore_index, reduction=reduction
    )


def reduced(losses: Array, reduction: str) -> Array:
    """The losses themselves ("none"), their mean or their sum."""
    return losses if reduction == "none" else cnp.mean(losses) if reduction == "mean" else cnp.sum(losses)


def require_integers(function: str, labels: Array) -> None:
    """Raise a `DTypeError` where labels are no integers."""
    if type(labels) is np.ndarray and labels.dtype.kind in "iu":
        return
    xp = backend_of(labels).xp
    if not hasattr(labels, "dtype") or not xp.isdtype(labels.dtype, "integral"):
        raise DTypeError(f"{function}: expected integer labels, got {describe(labels)}; labels.astype('int64')")


def require_classes(labels: Array, classes: int, ignore_index: int | None) -> None:
    """Raise a `ShapeError` for a label on the host that is no class."""
    if type(labels) is not np.ndarray or not labels.size or (labels.min() >= 0 and labels.max() < classes):
        return
    wrong = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    positions = np.argwhere(wrong)
    if len(positions):
        where = tuple(int(i) for i in positions[0])
        hint = "" if ignore_index is not None else "; ignore_index= leaves a label out"
        raise ShapeError(
            f"expected labels from 0 to {classes - 1} ({classes} classes), got {labels[where]} at "
            f"labels[{', '.join(map(str, where))}]{hint}"
        )


def _smoothed(targets: Array, smoothing: float) -> Array:
    return targets * (1 - smoothing) + smoothing / targets.shape[1] if smoothing else targets


@primitive
def _cross_entropy(logits: Array, targets: Array, *, smoothing: float) -> Array:
    """The loss with probabilities as targets, differentiable in both."""
    terms = _smoothed(widen(targets), smoothing) * _log_softmax(widen(logits), axis=1)
    return narrow(-namespace_of(terms).sum(terms, axis=1), logits)


@_cross_entropy.rule
def _(needs: tuple[bool, ...], logits: Array, targets: Array, *, smoothing: float) -> tuple[Array, Pullback]:
    log_p = _log_softmax(widen(logits), axis=1)

    def pullback(dy: Array) -> tuple[Any, Any]:
        xp = namespace_of(dy)
        dy = xp.expand_dims(widen(dy), axis=1)
        dlogits = dtargets = None
        if needs[0]:
            target = _smoothed(widen(targets), smoothing)
            total = namespace_of(target).sum(target, axis=1, keepdims=True)
            dlogits = narrow(dy * (namespace_of(log_p).exp(log_p) * total - target), logits)
        if needs[1]:
            dtargets = narrow(dy * log_p * (smoothing - 1), targets)
        return dlogits, dtargets

    return _cross_entropy(logits, targets, smoothing=smoothing), pullback


@primitive(composite=True)
def _sparse_cross_entropy(
    logits: Array, labels: Array, *, smoothing: float, ignore_index: int | None, reduction: str
) -> Array:
    """The loss with integer labels; the portable form."""
    wide = widen(logits)
    xp = namespace_of(labels)
    dtype = _dtype_name(wide)
    targets = _smoothed(xp.moveaxis(one_hot(labels, logits.shape[1], dtype), -1, 1), smoothing)
    if ignore_index is None:
        return narrow(reduced(_cross_entropy(wide, targets, smoothing=0), reduction), logits)
    kept = backend_of(labels).astype(labels != ignore_index, dtype)
    losses = _cross_entropy(wide, targets * xp.expand_dims(kept, axis=1), smoothing=0)
    if reduction == "mean":
        return narrow(cnp.sum(losses) / cnp.sum(kept), logits)
    return narrow(reduced(losses, reduction), logits)


def _dtype_name(x: Array) -> str:
    return str(x.dtype).rpartition(".")[2]


@_sparse_cross_entropy.rule
def _(needs: tuple[bool, ...], logits: Array, labels: Array, **static: Any) -> tuple[Array, Pullback]:
    if not backend_of(logits).writes_in_place:
        return decompose(_sparse_cross_entropy, needs, (logits, labels), static)
    smoothing, ignore_index = static["smoothing"], static["ignore_index"]
    wide = widen(logits)
    xp = namespace_of(wide)
    kept = None if ignore_index is None else labels != ignore_index
    at = _positions(labels if kept is None else xp.where(kept, labels, 0))
    # Differences from the shift, so that no digits are lost where all logits are large.
    p = wide - _shift(wide, 1)
    picked = p[at]
    if smoothing:
        picked = picked * (1 - smoothing) + p.mean(axis=1) * smoothing
    total = xp.exp(p, out=p).sum(axis=1, keepdims=True)
    losses = xp.log(total[:, 0]) - picked
    if kept is not None:
        losses = xp.where(kept, losses, 0)
    count = 1 if static["reduction"] != "mean" else losses.size if kept is None else kept.astype(losses.dtype).sum()
    y = losses if static["reduction"] == "none" else losses.sum() / count
    p /= total

    def pullback(dy: Array) -> tuple[Any, None]:
        if type(dy) is Tracer:  # a derivative of this derivative is being taken
            return decompose(_sparse_cross_entropy, needs, (logits, labels), static)[1](dy)
        dy = widen(dy) / count if kept is None else widen(dy) / count * kept
        along = dy[:, None] if dy.ndim else dy
        dlogits = p * along
        dlogits[at] -= dy * (1 - smoothing)
        if smoothing:
            dlogits -= along * (smoothing / p.shape[1])
        return narrow(dlogits, logits), None

    return narrow(y, logits), pullback


evaluate_by_rule(_sparse_cross_entropy, "numpy", "cupy")


def _positions(labels: Array) -> tuple[Array, ...]:
    """The index of the labels' elements in an array (N, C, *spatial)."""
    xp = namespace_of(labels)
    if labels.ndim == 1:
        return xp.arange(len(labels)), labels
    grid = [
        xp.arange(n).reshape([-1 if i == axis else 1 for i in range(labels.ndim)])
        for axis, n in enumerate(labels.shape)
    ]
    return (grid[0], labels, *grid[1:])
