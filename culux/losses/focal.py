"""Focal losses: cross entropies in which what is predicted well counts less."""

from __future__ import annotations

from culux import numpy as cnp
from culux.autodiff import stop_gradient
from culux.backends import Array
from culux.errors import LayerError
from culux.losses.checks import (
    class_weights,
    float_target,
    require_class_labels,
    require_classification,
    require_float_prediction,
    require_same_shape,
)
from culux.losses.entropy import log_probability
from culux.nn import log_softmax, one_hot
from culux.nn.cross_entropy import reduced
from culux.nn.fused import narrow, widen

__all__ = ["binary_focal", "focal"]


def focal(
    logits: Array,
    labels: Array,
    *,
    gamma: float = 2.0,
    weight: Array | None = None,
    reduction: str = "mean",
    from_probabilities: bool = False,
) -> Array:
    """``-sum_c y_c * (1 - p_c)^gamma * log(p_c)`` with ``p = softmax(logits)``, the mean over the examples.

    The classes lie along axis 1. Lin et al., "Focal loss for dense object detection", 2017.

    Args:
        logits: (N, C) or (N, C, *spatial), float; probabilities with `from_probabilities`.
        labels: integers of shape (N, *spatial), or probabilities of the shape of `logits`.
        gamma: how little counts what is predicted well; 0 is the cross entropy.
        weight: (C,), one number per class (the paper's alpha); the mean does not divide by it.
        reduction: "mean", "sum", or "none" for (N, *spatial).
        from_probabilities: the prediction holds probabilities, whose logarithm is -100 at 0.

    Raises:
        ShapeError, DTypeError, LayerError: as `cross_entropy`; LayerError also for a negative `gamma`.
    """
    name = "focal"
    require_classification(name, logits, labels, reduction)
    _require_gamma(name, gamma)
    if tuple(labels.shape) != tuple(logits.shape):
        require_class_labels(name, logits, labels, None)
        labels = cnp.moveaxis(one_hot(labels, logits.shape[1], stop_gradient(logits).dtype), -1, 1)
    weight = class_weights(name, weight, logits)
    wide = widen(logits)
    log_p = log_probability(wide) if from_probabilities else log_softmax(wide, axis=1)
    # A floor below every other 1 - p keeps the derivative of the power finite at p = 1.
    rest = cnp.maximum(1 - wide if from_probabilities else -cnp.expm1(log_p), 1e-30)
    terms = -widen(labels) * rest**gamma * log_p
    return narrow(reduced(cnp.sum(terms if weight is None else terms * weight, axis=1), reduction), logits)


def binary_focal(
    logits: Array,
    labels: Array,
    *,
    gamma: float = 2.0,
    reduction: str = "mean",
    from_probabilities: bool = False,
) -> Array:
    """``-y * (1 - p)^gamma * log(p) - (1 - y) * p^gamma * log(1 - p)``, ``p = sigmoid(logits)``; the mean.

    Lin et al., "Focal loss for dense object detection", 2017.

    Args:
        logits: any shape, float; probabilities with `from_probabilities`, whose logarithms are at least -100.
        labels: the same shape, 0 to 1; integers and booleans too.
        gamma: how little counts what is predicted well; 0 is the binary cross entropy.
        reduction: "mean", "sum", or "none" for the shape of `logits`.
        from_probabilities: the prediction holds probabilities.

    Raises:
        ShapeError, DTypeError, LayerError: as `binary_cross_entropy`; LayerError also for a negative `gamma`.
    """
    name = "binary_focal"
    require_same_shape(name, logits, labels, reduction)
    require_float_prediction(name, logits, labels)
    _require_gamma(name, gamma)
    labels = float_target(labels, logits)
    if from_probabilities:
        positive, negative = -log_probability(logits), -log_probability(1 - logits)
    else:
        positive, negative = cnp.logaddexp(-logits, 0.0), cnp.logaddexp(logits, 0.0)
    # (1 - p)^gamma = exp(-gamma * negative), which is right where 1 - p is lost to rounding
    losses = labels * cnp.exp(-gamma * negative) * positive + (1 - labels) * cnp.exp(-gamma * positive) * negative
    return reduced(losses, reduction)


def _require_gamma(name: str, gamma: float) -> None:
    if not gamma >= 0:
        raise LayerError(f"{name}: expected gamma >= 0, got {gamma}")
