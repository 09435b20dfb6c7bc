"""Losses of numbers: the prediction first, then the target of the same shape; differentiable in both."""

from __future__ import annotations

from collections.abc import Callable

from culux import numpy as cnp
from culux.backends import Array
from culux.errors import LayerError, describe
from culux.losses.checks import float_target, require_positive, require_same_shape
from culux.nn.cross_entropy import reduced

__all__ = [
    "dice",
    "elementwise",
    "hinge",
    "huber",
    "mae",
    "mse",
    "msle",
    "poisson",
    "siamese_contrastive",
    "squared_hinge",
]


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
    require_same_shape("mse", y_hat, y, reduction)
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
    require_same_shape("mae", y_hat, y, reduction)
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
    require_same_shape("huber", y_hat, y, reduction)
    require_positive("huber", delta=delta)
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
    require_same_shape("hinge", y_hat, y, reduction)
    y = float_target(y, y_hat)
    return reduced(cnp.maximum(1 - y * y_hat, 0.0), reduction)


def squared_hinge(y_hat: Array, y: Array, *, reduction: str = "mean") -> Array:
    """``max(0, 1 - y * y_hat)^2``, the mean over all elements, for targets of -1 and 1.

    Args:
        y_hat: the prediction, any shape.
        y: the target, the same shape.
        reduction: "mean", "sum", or "none" for the shape of `y_hat`.

    Raises:
        ShapeError, DTypeError, LayerError: as `hinge`.
    """
    require_same_shape("squared_hinge", y_hat, y, reduction)
    short = cnp.maximum(1 - float_target(y, y_hat) * y_hat, 0.0)
    return reduced(short * short, reduction)


def msle(y_hat: Array, y: Array, *, epsilon: float = 1e-7, reduction: str = "mean") -> Array:
    """``(log(y_hat + epsilon) - log(y + epsilon))^2``, the mean over all elements.

    Args:
        y_hat: the prediction, any shape, not negative.
        y: the target, the same shape, not negative.
        epsilon: keeps the logarithm of 0 finite; 1 gives the squares of ``log(1 + y_hat) - log(1 + y)``.
        reduction: "mean", "sum", or "none" for the shape of `y_hat`.

    Raises:
        ShapeError, DTypeError, LayerError: as `mse`; LayerError also for an `epsilon` that is not positive.
    """
    require_same_shape("msle", y_hat, y, reduction)
    require_positive("msle", epsilon=epsilon)
    residual = cnp.log(y_hat + epsilon) - cnp.log(float_target(y, y_hat) + epsilon)
    return reduced(residual * residual, reduction)


def poisson(y_hat: Array, y: Array, *, log_input: bool = True, epsilon: float = 1e-8, reduction: str = "mean") -> Array:
    """``exp(y_hat) - y * y_hat``, the mean over all elements: counts `y` of a Poisson distribution, up to a constant.

    With ``log_input=False`` the prediction is the rate itself: ``y_hat - y * log(y_hat + epsilon)``.

    Args:
        y_hat: the logarithm of the rate, any shape.
        y: the counts, the same shape; integers too.
        log_input: whether the prediction is a logarithm.
        epsilon: keeps the logarithm of a rate of 0 finite.
        reduction: "mean", "sum", or "none" for the shape of `y_hat`.

    Raises:
        ShapeError, DTypeError, LayerError: as `mse`; LayerError also for an `epsilon` that is not positive.
    """
    require_same_shape("poisson", y_hat, y, reduction)
    require_positive("poisson", epsilon=epsilon)
    y = float_target(y, y_hat)
    return reduced(cnp.exp(y_hat) - y * y_hat if log_input else y_hat - y * cnp.log(y_hat + epsilon), reduction)


def siamese_contrastive(y_hat: Array, y: Array, *, margin: float = 1.0, reduction: str = "mean") -> Array:
    """``(1 - y) * d^2 + y * max(0, margin - d)^2`` of a distance ``d = y_hat``, the mean over all elements.

    Hadsell et al., "Dimensionality reduction by learning an invariant mapping", 2006.

    Args:
        y_hat: the distances of pairs, any shape.
        y: 0 for pairs that belong together, 1 for the others; the same shape.
        margin: from which distance on pairs that do not belong together count for nothing.
        reduction: "mean", "sum", or "none" for the shape of `y_hat`.

    Raises:
        ShapeError, DTypeError, LayerError: as `mse`; LayerError also for a `margin` that is not positive.
    """
    require_same_shape("siamese_contrastive", y_hat, y, reduction)
    require_positive("siamese_contrastive", margin=margin)
    y, short = float_target(y, y_hat), cnp.maximum(margin - y_hat, 0.0)
    return reduced((1 - y) * (y_hat * y_hat) + y * (short * short), reduction)


def dice(y_hat: Array, y: Array, *, smooth: float = 1.0, reduction: str = "mean") -> Array:
    """``1 - (2 sum(y_hat * y) + smooth) / (sum(y_hat^2) + sum(y^2) + smooth)`` per example, and the mean of that.

    Milletari et al., "V-Net: fully convolutional neural networks for volumetric medical image segmentation", 2016.

    Args:
        y_hat: probabilities (N, ...); a vector is one example.
        y: the target, the same shape, 0 to 1; integers and booleans too.
        smooth: keeps the quotient of empty masks finite.
        reduction: "mean", "sum", or "none" for (N,).

    Raises:
        ShapeError, DTypeError, LayerError: as `mse`; LayerError also for a `smooth` that is not positive.
    """
    require_same_shape("dice", y_hat, y, reduction)
    require_positive("dice", smooth=smooth)
    y = float_target(y, y_hat)
    axes = tuple(range(1, len(y_hat.shape))) or None
    common, total = cnp.sum(y_hat * y, axis=axes), cnp.sum(y_hat * y_hat + y * y, axis=axes)
    return reduced(1 - (2 * common + smooth) / (total + smooth), reduction)


def elementwise(y_hat: Array, y: Array, *, f: Callable[[Array, Array], Array], reduction: str = "mean") -> Array:
    """``f(y_hat, y)``, the mean over all elements: a loss of one's own, with the checks of the others.

    Args:
        y_hat: the prediction, any shape.
        y: the target, the same shape.
        f: the loss of every element, written in operators and `culux.numpy`.
        reduction: "mean", "sum", or "none" for what `f` returns.

    Raises:
        ShapeError, DTypeError, LayerError: as `mse`; LayerError also for an `f` that is no function.
    """
    require_same_shape("elementwise", y_hat, y, reduction)
    if not callable(f):
        raise LayerError(f"elementwise: expected f to be a function of (y_hat, y), got {describe(f)}")
    return reduced(f(y_hat, y), reduction)
