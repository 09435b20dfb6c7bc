"""Cross entropy from logits: softmax and the negative logarithm of what the labels say, as one operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from culux import numpy as cnp
from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback, Tracer
from culux.backends import Array, backend_of
from culux.backends.registry import namespace_of
from culux.errors import LayerError, ShapeError
from culux.kernels import cross_entropy as kernels
from culux.nn.fused import decompose, evaluate_by_rule, narrow, on_kernels, require_float, widen
from culux.nn.softmax import bounded_max, log_softmax, one_hot, require_integers

__all__ = ["reduced", "reduced_cross_entropy", "require_classes", "softmax_cross_entropy"]


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
            on a GPU such a label gives a loss and a gradient of NaN.
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
    terms = _smoothed(widen(targets), smoothing) * log_softmax(widen(logits), axis=1)
    return narrow(-namespace_of(terms).sum(terms, axis=1), logits)


@_cross_entropy.rule
def _(needs: tuple[bool, ...], logits: Array, targets: Array, *, smoothing: float) -> tuple[Array, Pullback]:
    log_p = log_softmax(widen(logits), axis=1)

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
    if on_kernels(logits):
        y, pullback = _on_gpu(needs[0], logits, labels, **static)
    elif type(logits) is np.ndarray:
        y, pullback = _on_host(logits, labels, **static)
    else:
        return decompose(_sparse_cross_entropy, needs, (logits, labels), static)

    def differentiable(dy: Any) -> tuple[Any, None]:
        if type(dy) is Tracer:  # a derivative of this derivative is being taken
            return decompose(_sparse_cross_entropy, needs, (logits, labels), static)[1](dy)
        return pullback(dy), None

    return y, differentiable


def _on_gpu(
    keep: bool, logits: Array, labels: Array, *, smoothing: float, ignore_index: int | None, reduction: Any
) -> tuple[Array, Callable[[Array], Array]]:
    options: dict[str, Any] = {"smoothing": smoothing, "ignore_index": ignore_index}
    y, saved = kernels.forward(logits, labels, reduction=reduction, keep=keep, **options)
    return y, lambda dy: kernels.backward(dy, saved, **options)


def _on_host(
    logits: np.ndarray, labels: np.ndarray, *, smoothing: float, ignore_index: int | None, reduction: str
) -> tuple[Any, Callable[[Any], Any]]:
    kept = None if ignore_index is None else labels != ignore_index
    at = _positions(labels if kept is None else np.where(kept, labels, 0))
    # Differences from the shift, so that no digits are lost where all logits are large.
    wide = widen(logits)
    p = wide - bounded_max(wide, 1)
    picked = p[at]
    if smoothing:
        picked = picked * (1 - smoothing) + p.mean(axis=1) * smoothing
    total = np.exp(p, out=p).sum(axis=1, keepdims=True)
    losses = np.log(total[:, 0]) - picked
    if kept is not None:
        losses = np.where(kept, losses, 0)
    count = 1 if reduction != "mean" else losses.size if kept is None else kept.astype(losses.dtype).sum()
    y = losses if reduction == "none" else losses.sum() / count
    p /= total

    def pullback(dy: Any) -> Any:
        dy = widen(dy) / count if kept is None else widen(dy) / count * kept
        along = dy[:, None] if dy.ndim else dy
        dlogits = p * along
        dlogits[at] -= dy * (1 - smoothing)
        if smoothing:
            dlogits -= along * (smoothing / p.shape[1])
        return narrow(dlogits, logits)

    return narrow(y, logits), pullback


evaluate_by_rule(_sparse_cross_entropy, "numpy", "cupy")


def _positions(labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """The index of the labels' elements in an array (N, C, *spatial)."""
    if labels.ndim == 1:
        return np.arange(len(labels)), labels
    grid = [
        np.arange(n).reshape([-1 if i == axis else 1 for i in range(labels.ndim)])
        for axis, n in enumerate(labels.shape)
    ]
    return (grid[0], labels, *grid[1:])
