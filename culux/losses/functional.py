"""Losses as functions: the prediction first, then the target; differentiable in both."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux import numpy as cnp
from culux.autodiff import stop_gradient
from culux.backends import Array, backend_of
from culux.backends.registry import namespace_of
from culux.errors import DTypeError, LayerError, ShapeError, describe, nearest
from culux.nn import log_softmax, one_hot
from culux.nn.cross_entropy import reduced, reduced_cross_entropy, require_classes
from culux.nn.fused import require_float
from culux.nn.softmax import require_integers

__all__ = ["binary_cross_entropy", "cross_entropy", "hinge", "huber", "mae", "mse", "negative_log_likelihood"]

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    weight: Array | None = None,
    reduction: str = "mean",
    from_probabilities: bool = False,
) -> Array:
    """``-sum_c target_c * log_softmax(logits)_c``, the mean over the examples; the classes lie along axis 1.

    Integer labels stand for one-hot targets. With `weight` every class's term is multiplied by its weight, and
    the mean for integer labels divides by the sum of the labels' weights (as torch's cross_entropy).

    Args:
        logits: (N, C) or (N, C, *spatial), float; probabilities with `from_probabilities`.
        labels: integers of shape (N, *spatial), or probabilities of the shape of `logits`.
        label_smoothing: eps in ``target = (1 - eps) * target + eps / C``.
        ignore_index: integer labels of this value count for nothing, in the mean neither (NaN if all do).
        weight: (C,), one number per class, an array or a sequence.
        reduction: "mean", "sum", or "none" for (N, *spatial).
        from_probabilities: the prediction holds probabilities, of which the logarithm is taken.

    Raises:
        ShapeError: for shapes that do not fit, a label that is no class (looked for on the host only), or the mean
            of an empty batch.
        DTypeError: for labels in the place of logits.
        LayerError: for an unknown reduction or a `label_smoothing` out of range.
    """
    name = "cross_entropy"
    _check_prediction(name, logits, labels, reduction)
    if weight is None and not from_probabilities:
        return reduced_cross_entropy(logits, labels, label_smoothing, ignore_index, reduction, name)
    require_float(name, logits)
    log_p = _log(logits) if from_probabilities else log_softmax(logits, axis=1)
    return _likelihood_loss(name, log_p, labels, label_smoothing, ignore_index, weight, reduction)


def negative_log_likelihood(
    log_probabilities: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    weight: Array | None = None,
    reduction: str = "mean",
) -> Array:
    """``-sum_c target_c * log_probabilities_c``, the mean over the examples: what follows a log_softmax.

    Args:
        log_probabilities: (N, C) or (N, C, *spatial), float.
        labels: integers of shape (N, *spatial), or probabilities of the shape of `log_probabilities`.
        label_smoothing: see `cross_entropy`.
        ignore_index: see `cross_entropy`.
        weight: see `cross_entropy`.
        reduction: "mean", "sum", or "none" for (N, *spatial).

    Raises:
        ShapeError, DTypeError, LayerError: as `cross_entropy`.
    """
    name = "negative_log_likelihood"
    _check_prediction(name, log_probabilities, labels, reduction)
    return _likelihood_loss(name, log_probabilities, labels, label_smoothing, ignore_index, weight, reduction)


def _likelihood_loss(
    name: str, log_probabilities: Array, labels: Array, label_smoothing: float, ignore_index: int | None,
    weight: Array | None, reduction: str,
) -> Array:  # fmt: skip
    """`negative_log_likelihood` of what was checked; errors call it `name`."""
    _check_smoothing(name, label_smoothing)
    classes = log_probabilities.shape[1]
    weight = _class_weights(name, weight, log_probabilities)
    sparse = tuple(labels.shape) != tuple(log_probabilities.shape)
    if sparse:
        _check_classes(name, log_probabilities, labels, ignore_index)
        targets = cnp.moveaxis(one_hot(labels, classes, stop_gradient(log_probabilities).dtype), -1, 1)
    else:
        _check_probabilities(name, labels, ignore_index)
        targets = labels
    counted = cnp.sum(targets * weight, axis=1) if sparse and weight is not None else None
    if label_smoothing:
        targets = targets * (1 - label_smoothing) + label_smoothing / classes
    terms = targets * log_probabilities if weight is None else targets * weight * log_probabilities
    losses = -cnp.sum(terms, axis=1)
    if sparse and ignore_index is not None:
        kept = (labels != ignore_index).astype(losses.dtype)
        losses = losses * kept
    if counted is None or reduction != "mean":
        return _mean_of_kept(losses, labels, ignore_index, reduction)
    return cnp.sum(losses) / cnp.sum(counted if ignore_index is None else counted * kept)


def binary_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    weight: Array | None = None,
    pos_weight: Array | float | None = None,
    reduction: str = "mean",
    from_probabilities: bool = False,
) -> Array:
    """``-y * log(sigmoid(x)) - (1 - y) * log(1 - sigmoid(x))``, the mean over all elements.

    Args:
        logits: any shape, float; probabilities with `from_probabilities`, whose logarithms are at least -100.
        labels: the same shape, 0 to 1; integers and booleans too.
        label_smoothing: eps in ``y = (1 - eps) * y + eps / 2``.
        weight: multiplies the losses; broadcasts to the shape of `logits`.
        pos_weight: multiplies the first term.
        reduction: "mean", "sum", or "none" for the shape of `logits`.
        from_probabilities: the prediction holds probabilities.

    Raises:
        ShapeError: for labels of another shape, or the mean of an empty batch.
        DTypeError: for labels in the place of logits.
        LayerError: for an unknown reduction or a `label_smoothing` out of range.
    """
    name = "binary_cross_entropy"
    _check_same_shape(name, logits, labels, reduction)
    _check_swapped(name, logits, labels)
    _check_smoothing(name, label_smoothing)
    if _is_integer(labels):
        labels = labels.astype(stop_gradient(logits).dtype)
    if label_smoothing:
        labels = labels * (1 - label_smoothing) + label_smoothing / 2
    if from_probabilities:
        positive, negative = -_log(logits), -_log(1 - logits)
    else:
        # -log(sigmoid(x)) = log(1 + exp(-x)), which logaddexp has without overflow
        positive, negative = cnp.logaddexp(-logits, 0.0), cnp.logaddexp(logits, 0.0)
    if pos_weight is not None:
        positive = positive * _beside(pos_weight, logits)
    losses = labels * positive + (1 - labels) * negative
    return reduced(losses if weight is None else losses * _beside(weight, logits), reduction)


def mse(y_hat: Array, y: Array, *, reduction: str = "mean") -> Array:
    """``(y_hat - y)^2``, the mean over all elements.

    Args:
        y_hat: the prediction, any shape.
        y: the target, the same shape.
        reduction: "mean", "sum", or "none" for the shape of `y_hat`.

    Raises:
        ShapeError: for a target of another shape (nothing is broadcast), or the mean of an empty batch.
        DTypeError: for what is no array.
        LayerError: for an unknown reduction.
    """
    _check_same_shape("mse", y_hat, y, reduction)
    residual = y_hat - y
    return reduced(residual * residual, reduction)


def mae(y_hat: Array, y: Array, *, reduction: str = "mean") -> Array:
    """``|y_hat - y|``, the mean over all elements; the derivative at 0 is 0.

    Args:
        y_hat: the prediction, any shape.
        y: the target, the same shape.
        reduction: "mean", "sum", or "none" for the shape of `y_hat`.

    Raises:
        ShapeError: for a target of another shape (nothing is broadcast), or the mean of an empty batch.
        DTypeError: for what is no array.
        LayerError: for an unknown reduction.
    """
    _check_same_shape("mae", y_hat, y, reduction)
    return reduced(cnp.abs(y_hat - y), reduction)


def huber(y_hat: Array, y: Array, *, delta: float = 1.0, reduction: str = "mean") -> Array:
    """``r^2 / 2`` where ``|r| <= delta``, ``delta * (|r| - delta / 2)`` elsewhere, r = y_hat - y; the mean.

    Huber, "Robust estimation of a location parameter", 1964.

    Args:
        y_hat: the prediction, any shape.
        y: the target, the same shape.
        delta: where the square goes over into a line.
        reduction: "mean", "sum", or "none" for the shape of `y_hat`.

    Raises:
        ShapeError: for a target of another shape (nothing is broadcast), or the mean of an empty batch.
        DTypeError: for what is no array.
        LayerError: for an unknown reduction, or a `delta` that is not positive.
    """
    _check_same_shape("huber", y_hat, y, reduction)
    if not delta > 0:
        raise LayerError(f"huber: expected delta > 0, got {delta}")
    residual = y_hat - y
    clipped = cnp.clip(residual, -delta, delta)  # c * (r - c / 2) is both branches
    return reduced(clipped * (residual - 0.5 * clipped), reduction)


def hinge(y_hat: Array, y: Array, *, reduction: str = "mean") -> Array:
    """``max(0, 1 - y * y_hat)``, the mean over all elements, for targets of -1 and 1.

    Args:
        y_hat: the prediction, any shape.
        y: the target, the same shape.
        reduction: "mean", "sum", or "none" for the shape of `y_hat`.

    Raises:
        ShapeError: for a target of another shape (nothing is broadcast), or the mean of an empty batch.
        DTypeError: for what is no array.
        LayerError: for an unknown reduction.
    """
    _check_same_shape("hinge", y_hat, y, reduction)
    if _is_integer(y):
        y = y.astype(stop_gradient(y_hat).dtype)
    return reduced(cnp.maximum(1 - y * y_hat, 0.0), reduction)


def _log(p: Array) -> Array:
    """``log(p)``, -100 at 0, where the gradient is 0."""
    positive = p > 0
    return cnp.where(positive, cnp.log(cnp.where(positive, p, 1.0)), -100.0)


def _check_reduction(name: str, reduction: str, prediction: Array, examples: tuple[int, ...]) -> None:
    """Raise where `reduction` is none, or is the mean of losses whose shape, `examples`, is empty."""
    if reduction == "mean" and 0 in examples:
        raise ShapeError(f"{name}: expected at least one example, got a prediction of shape {tuple(prediction.shape)}")
    if reduction not in REDUCTIONS:
        raise LayerError(
            f"expected reduction to be 'mean', 'sum' or 'none', got {reduction!r}{nearest(reduction, REDUCTIONS)}"
        )


def _mean_of_kept(losses: Array, labels: Array, ignore_index: int | None, reduction: str) -> Array:
    """The reduction of losses that are 0 where labels are ignored: those do not count in the mean."""
    if ignore_index is None or reduction != "mean":
        return reduced(losses, reduction)
    return cnp.sum(losses) / (labels != ignore_index).astype(losses.dtype).sum()


def _is_integer(x: Any) -> bool:
    """Whether `x` has integers or booleans."""
    return getattr(x.dtype, "kind", "f") in "iub"


def _check_arrays(name: str, prediction: Any, target: Any, target_role: str) -> None:
    for role, value in (("prediction", prediction), (target_role, target)):
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            raise DTypeError(f"{name}: expected an array for the {role}, got {describe(value)}")


def _check_swapped(name: str, prediction: Array, labels: Array) -> None:
    if _is_integer(prediction):
        hint = "the prediction comes first" if not _is_integer(labels) else "convert it with .astype('float32')"
        raise DTypeError(f"{name}: expected a float prediction, got {describe(prediction)}; {hint}: {name}(y_hat, y)")


def _check_prediction(name: str, prediction: Array, labels: Array, reduction: str) -> None:
    _check_arrays(name, prediction, labels, "labels")
    _check_swapped(name, prediction, labels)
    shape, labels_shape = tuple(prediction.shape), tuple(labels.shape)
    if len(shape) < 2:
        raise ShapeError(
            f"{name}: expected a prediction of shape (N, C) or (N, C, *spatial), got {shape}; "
            "the classes lie along axis 1 (for two classes in one number take binary_cross_entropy)"
        )
    expected = (shape[0], *shape[2:])
    if labels_shape not in (expected, shape):
        raise ShapeError(
            f"{name}: expected integer labels of shape {expected}, or probabilities of shape {shape}, got "
            f"{describe(labels)}"
        )
    if labels_shape == expected and not _is_integer(labels):
        raise DTypeError(
            f"{name}: expected integer labels of shape {expected}, got {describe(labels)}; "
            f"labels.astype('int64'), or probabilities of shape {shape}"
        )
    if labels_shape == shape and _is_integer(labels):
        raise DTypeError(
            f"{name}: labels of the prediction's shape {shape} are probabilities and floats, got {describe(labels)}; "
            f"labels.astype('float32'), or integer labels of shape {expected}"
        )
    _check_reduction(name, reduction, prediction, expected)


def _check_classes(name: str, prediction: Array, labels: Array, ignore_index: int | None) -> None:
    require_integers(name, labels)
    require_classes(labels, prediction.shape[1], ignore_index)


def _check_probabilities(name: str, labels: Array, ignore_index: int | None) -> None:
    if ignore_index is not None:
        raise LayerError(f"{name}: ignore_index is for integer labels; these are probabilities")


def _check_same_shape(name: str, y_hat: Array, y: Array, reduction: str) -> None:
    a: Any = getattr(y_hat, "shape", None)
    b: Any = getattr(y, "shape", None)
    if a is None or b is None:
        _check_arrays(name, y_hat, y, "target")
    if a != b:
        raise ShapeError(
            f"{name}: expected a prediction and a target of one shape, got {a} and {b}, which would "
            "broadcast against each other; reshape one of them"
        )
    _check_reduction(name, reduction, y_hat, a)


def _check_smoothing(name: str, label_smoothing: float) -> None:
    if not 0 <= label_smoothing <= 1:
        raise LayerError(f"{name}: expected 0 <= label_smoothing <= 1, got {label_smoothing}")


def _class_weights(name: str, weight: Array | None, prediction: Array) -> Array | None:
    """The weights of the classes so that they broadcast along axis 1."""
    if weight is None:
        return None
    classes = prediction.shape[1]
    weight = _beside(weight, prediction)
    if tuple(weight.shape) != (classes,):
        raise ShapeError(f"{name}: expected weight of shape ({classes},), one per class, got {tuple(weight.shape)}")
    return namespace_of(weight).reshape(weight, (classes,) + (1,) * (len(prediction.shape) - 2))


def _beside(numbers: Any, like: Array) -> Array:
    """Numbers in a sequence as an array of the dtype and device of `like`; an array as it is."""
    if hasattr(numbers, "shape"):
        return numbers
    array = stop_gradient(like)
    backend = backend_of(array)
    return backend.astype(backend.from_host(np.asarray(numbers, "float64"), backend.place_of(array).index), array.dtype)
