"""Losses of embeddings: how alike vectors are, along their last axis."""

from __future__ import annotations

from culux import numpy as cnp
from culux.autodiff import stop_gradient
from culux.backends import Array
from culux.errors import LayerError, ShapeError, describe
from culux.losses.checks import require_arrays, require_float_prediction, require_reduction, require_same_shape
from culux.nn.cross_entropy import reduced
from culux.nn.fused import narrow, widen

__all__ = ["cosine_distance", "cosine_embedding", "cosine_similarity", "triplet_margin"]


def cosine_similarity(a: Array, b: Array, *, axis: int = -1, epsilon: float = 1e-8) -> Array:
    """``sum(a * b) / (|a| * |b|)`` along an axis: 1 for the same direction, 0 for orthogonal vectors.

    Args:
        a: any shape with the axis, float.
        b: the same shape.
        axis: the axis of the vectors.
        epsilon: the smallest norm that is divided by.

    Returns:
        The shape without the axis.

    Raises:
        ShapeError: for vectors of another shape.
        DTypeError: for what is no array, or integers.
    """
    return _cosine("cosine_similarity", a, b, axis, epsilon, "none")


def cosine_distance(y_hat: Array, y: Array, *, axis: int = -1, reduction: str = "mean") -> Array:
    """``1 - cosine_similarity(y_hat, y)``, the mean over the vectors.

    Args:
        y_hat: the prediction, any shape with the axis, float.
        y: the target, the same shape.
        axis: the axis of the vectors.
        reduction: "mean", "sum", or "none" for the shape without the axis.

    Raises:
        ShapeError: for a target of another shape, or the mean of an empty batch.
        DTypeError: for what is no array, or integers.
        LayerError: for an unknown reduction.
    """
    return reduced(1 - _cosine("cosine_distance", y_hat, y, axis, 1e-8, reduction), reduction)


def cosine_embedding(a: Array, b: Array, y: Array, *, margin: float = 0.0, reduction: str = "mean") -> Array:
    """``1 - cos(a, b)`` of pairs that belong together, ``max(0, cos(a, b) - margin)`` of the others; the mean.

    Args:
        a: the first of every pair, (..., features), float.
        b: the second, the same shape.
        y: 1 for pairs that belong together, -1 for the others; (...), not differentiated.
        margin: the similarity from which on other pairs count; -1 to 1.
        reduction: "mean", "sum", or "none" for (...).

    Raises:
        ShapeError: for shapes that do not fit, or the mean of an empty batch.
        DTypeError: for what is no array, or integers.
        LayerError: for an unknown reduction or a `margin` out of range.
    """
    name = "cosine_embedding"
    cosine = _cosine(name, a, b, -1, 1e-8, reduction)
    require_arrays(name, a, y, "target")
    if tuple(y.shape) != tuple(cosine.shape):
        raise ShapeError(f"{name}: expected y of shape {tuple(cosine.shape)}, one number per pair, got {describe(y)}")
    if not -1 <= margin <= 1:
        raise LayerError(f"{name}: expected -1 <= margin <= 1, got {margin}")
    return reduced(cnp.where(stop_gradient(y) > 0, 1 - cosine, cnp.maximum(cosine - margin, 0.0)), reduction)


def triplet_margin(
    anchor: Array,
    positive: Array,
    negative: Array,
    *,
    margin: float = 1.0,
    p: float = 2.0,
    swap: bool = False,
    epsilon: float = 1e-6,
    reduction: str = "mean",
) -> Array:
    """``max(0, |anchor - positive|_p - |anchor - negative|_p + margin)``, the mean over the triplets.

    Balntas et al., "Learning local feature descriptors with triplets and shallow convolutional neural networks",
    2016. Like torch's, the distances are of differences to which `epsilon` is added.

    Args:
        anchor: (..., features), float.
        positive: what is to be near, the same shape.
        negative: what is to be far, the same shape.
        margin: by how much farther.
        p: the order of the norm, at least 1.
        swap: take the distance from `positive` to `negative` where it is shorter.
        epsilon: what is added to the differences.
        reduction: "mean", "sum", or "none" for (...).

    Raises:
        ShapeError: for arrays of several shapes, or the mean of an empty batch.
        DTypeError: for what is no array, or integers.
        LayerError: for an unknown reduction, or a `margin` or `p` out of range.
    """
    name = "triplet_margin"
    for other in (positive, negative):
        _require_vectors(name, anchor, other, -1, reduction)
    if not margin > 0 or not p >= 1:
        raise LayerError(f"{name}: expected margin > 0 and p >= 1, got margin={margin}, p={p}")
    far = _distance(anchor, negative, p, epsilon)
    if swap:
        far = cnp.minimum(far, _distance(positive, negative, p, epsilon))
    near = _distance(anchor, positive, p, epsilon)
    return narrow(reduced(cnp.maximum(near - far + margin, 0.0), reduction), anchor)


def _distance(a: Array, b: Array, p: float, epsilon: float) -> Array:
    difference = widen(a) - widen(b) + epsilon
    if p == 2:
        return cnp.linalg.norm(difference, axis=-1)
    return cnp.sum(cnp.abs(difference) ** p, axis=-1) ** (1 / p)


def _cosine(name: str, a: Array, b: Array, axis: int, epsilon: float, reduction: str) -> Array:
    """`cosine_similarity`; errors call it `name`."""
    _require_vectors(name, a, b, axis, reduction)
    wide_a, wide_b = widen(a), widen(b)
    # The bound is on the squares: the square root has no derivative at 0.
    squares = [cnp.maximum(cnp.sum(x * x, axis=axis), epsilon * epsilon) for x in (wide_a, wide_b)]
    return narrow(cnp.sum(wide_a * wide_b, axis=axis) / (cnp.sqrt(squares[0]) * cnp.sqrt(squares[1])), a)


def _require_vectors(name: str, a: Array, b: Array, axis: int, reduction: str) -> None:
    require_same_shape(name, a, b, "none")
    require_float_prediction(name, a, b)
    shape = tuple(a.shape)
    if not -len(shape) <= axis < len(shape):
        raise ShapeError(f"{name}: expected vectors along axis {axis}, got arrays of shape {shape}")
    require_reduction(name, reduction, a, shape[: axis % len(shape)] + shape[axis % len(shape) + 1 :])
