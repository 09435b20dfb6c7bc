"""Losses of classes: the prediction first, then the labels; differentiable in both."""

from __future__ import annotations

from culux import numpy as cnp
from culux.autodiff import stop_gradient
from culux.backends import Array
from culux.losses.checks import (
    beside,
    class_weights,
    float_target,
    refuse_ignore_index,
    require_class_labels,
    require_classification,
    require_float_prediction,
    require_same_shape,
    require_smoothing,
)
from culux.nn import log_softmax, one_hot
from culux.nn.cross_entropy import reduced, reduced_cross_entropy
from culux.nn.fused import require_float

__all__ = ["binary_cross_entropy", "cross_entropy", "kl_divergence", "log_probability", "negative_log_likelihood"]


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
    require_classification(name, logits, labels, reduction)
    if weight is None and not from_probabilities:
        return reduced_cross_entropy(logits, labels, label_smoothing, ignore_index, reduction, name)
    require_float(name, logits)
    log_p = log_probability(logits) if from_probabilities else log_softmax(logits, axis=1)
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
    require_classification(name, log_probabilities, labels, reduction)
    return _likelihood_loss(name, log_probabilities, labels, label_smoothing, ignore_index, weight, reduction)


def _likelihood_loss(
    name: str, log_probabilities: Array, labels: Array, label_smoothing: float, ignore_index: int | None,
    weight: Array | None, reduction: str,
) -> Array:  # fmt: skip
    """`negative_log_likelihood` of what was checked; errors call it `name`."""
    require_smoothing(name, label_smoothing)
    classes = log_probabilities.shape[1]
    weight = class_weights(name, weight, log_probabilities)
    sparse = tuple(labels.shape) != tuple(log_probabilities.shape)
    if sparse:
        require_class_labels(name, log_probabilities, labels, ignore_index)
        targets = cnp.moveaxis(one_hot(labels, classes, stop_gradient(log_probabilities).dtype), -1, 1)
    else:
        refuse_ignore_index(name, ignore_index)
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
    require_same_shape(name, logits, labels, reduction)
    require_float_prediction(name, logits, labels)
    require_smoothing(name, label_smoothing)
    labels = float_target(labels, logits)
    if label_smoothing:
        labels = labels * (1 - label_smoothing) + label_smoothing / 2
    if from_probabilities:
        positive, negative = -log_probability(logits), -log_probability(1 - logits)
    else:
        # -log(sigmoid(x)) = log(1 + exp(-x)), which logaddexp has without overflow
        positive, negative = cnp.logaddexp(-logits, 0.0), cnp.logaddexp(logits, 0.0)
    if pos_weight is not None:
        positive = positive * beside(pos_weight, logits)
    losses = labels * positive + (1 - labels) * negative
    return reduced(losses if weight is None else losses * beside(weight, logits), reduction)


def kl_divergence(
    logits: Array,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    from_probabilities: bool = False,
) -> Array:
    """``sum_c y_c * (log(y_c) - log_softmax(logits)_c)``, the mean over the examples; the classes lie along axis 1.

    Logarithms of probabilities are logits too, so torch's `kl_div` with "batchmean" takes the same prediction.
    Kullback and Leibler, "On information and sufficiency", 1951.

    Args:
        logits: (N, C) or (N, C, *spatial), float; probabilities with `from_probabilities`.
        labels: probabilities of the shape of `logits`; classes of probability 0 count for nothing.
        label_smoothing: eps in ``y = (1 - eps) * y + eps / C``.
        reduction: "mean", "sum", or "none" for (N, *spatial).
        from_probabilities: the prediction holds probabilities, of which the logarithm is taken, -100 at 0.

    Raises:
        ShapeError: for labels of another shape, a prediction without classes, or the mean of an empty batch.
        DTypeError: for integers.
        LayerError: for an unknown reduction or a `label_smoothing` out of range.
    """
    name = "kl_divergence"
    require_same_shape(name, logits, labels, reduction)
    require_classification(name, logits, labels, reduction)
    require_smoothing(name, label_smoothing)
    if label_smoothing:
        labels = labels * (1 - label_smoothing) + label_smoothing / labels.shape[1]
    log_p = log_probability(logits) if from_probabilities else log_softmax(logits, axis=1)
    return reduced(cnp.sum(labels * (log_probability(labels) - log_p), axis=1), reduction)


def _mean_of_kept(losses: Array, labels: Array, ignore_index: int | None, reduction: str) -> Array:
    """The reduction of losses that are 0 where labels are ignored: those do not count in the mean."""
    if ignore_index is None or reduction != "mean":
        return reduced(losses, reduction)
    return cnp.sum(losses) / (labels != ignore_index).astype(losses.dtype).sum()


def log_probability(p: Array) -> Array:
    """``log(p)``, -100 at 0, where the gradient is 0."""
    positive = p > 0
    return cnp.where(positive, cnp.log(cnp.where(positive, p, 1.0)), -100.0)
