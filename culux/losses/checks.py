"""What the losses ask of their arguments, and what they do with numbers beside a prediction."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux.autodiff import stop_gradient
from culux.backends import Array, backend_of
from culux.backends.registry import namespace_of
from culux.errors import DTypeError, LayerError, ShapeError, describe, nearest
from culux.nn.cross_entropy import require_classes
from culux.nn.softmax import require_integers

__all__ = [
    "beside",
    "class_weights",
    "float_target",
    "is_integer",
    "refuse_ignore_index",
    "require_arrays",
    "require_class_labels",
    "require_classification",
    "require_float_prediction",
    "require_positive",
    "require_reduction",
    "require_same_shape",
    "require_smoothing",
]

REDUCTIONS = ("mean", "sum", "none")


def require_reduction(name: str, reduction: str, prediction: Array, examples: tuple[int, ...]) -> None:
    """Raise where `reduction` is none, or is the mean of losses whose shape, `examples`, is empty."""
    if reduction == "mean" and 0 in examples:
        raise ShapeError(f"{name}: expected at least one example, got a prediction of shape {tuple(prediction.shape)}")
    if reduction not in REDUCTIONS:
        raise LayerError(
            f"expected reduction to be 'mean', 'sum' or 'none', got {reduction!r}{nearest(reduction, REDUCTIONS)}"
        )


def is_integer(x: Any) -> bool:
    """Whether `x` has integers or booleans."""
    return getattr(x.dtype, "kind", "f") in "iub"


def float_target(y: Array, prediction: Array) -> Array:
    """The target; one of integers or booleans in the dtype of the prediction."""
    return y.astype(stop_gradient(prediction).dtype) if is_integer(y) else y


def require_arrays(name: str, prediction: Any, target: Any, target_role: str) -> None:
    """Raise a `DTypeError` where one of the two is no array."""
    for role, value in (("prediction", prediction), (target_role, target)):
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            raise DTypeError(f"{name}: expected an array for the {role}, got {describe(value)}")


def require_float_prediction(name: str, prediction: Array, labels: Array) -> None:
    """Raise a `DTypeError` where the prediction has integers, as labels do."""
    if is_integer(prediction):
        hint = "the prediction comes first" if not is_integer(labels) else "convert it with .astype('float32')"
        raise DTypeError(f"{name}: expected a float prediction, got {describe(prediction)}; {hint}: {name}(y_hat, y)")


def require_classification(name: str, prediction: Array, labels: Array, reduction: str) -> None:
    """Raise where shapes and dtypes are not those of a prediction of classes along axis 1 and its labels."""
    require_arrays(name, prediction, labels, "labels")
    require_float_prediction(name, prediction, labels)
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
    if labels_shape == expected and not is_integer(labels):
        raise DTypeError(
            f"{name}: expected integer labels of shape {expected}, got {describe(labels)}; "
            f"labels.astype('int64'), or probabilities of shape {shape}"
        )
    if labels_shape == shape and is_integer(labels):
        raise DTypeError(
            f"{name}: labels of the prediction's shape {shape} are probabilities and floats, got {describe(labels)}; "
            f"labels.astype('float32'), or integer labels of shape {expected}"
        )
    require_reduction(name, reduction, prediction, expected)


def require_class_labels(name: str, prediction: Array, labels: Array, ignore_index: int | None) -> None:
    """Raise where a label is no class."""
    require_integers(name, labels)
    require_classes(labels, prediction.shape[1], ignore_index)


def refuse_ignore_index(name: str, ignore_index: int | None) -> None:
    """Raise a `LayerError` for an `ignore_index` beside probabilities."""
    if ignore_index is not None:
        raise LayerError(f"{name}: ignore_index is for integer labels; these are probabilities")


def require_same_shape(name: str, y_hat: Array, y: Array, reduction: str) -> None:
    """Raise where prediction and target are not two arrays of one shape."""
    a: Any = getattr(y_hat, "shape", None)
    b: Any = getattr(y, "shape", None)
    if a is None or b is None:
        require_arrays(name, y_hat, y, "target")
    if a != b:
        raise ShapeError(
            f"{name}: expected a prediction and a target of one shape, got {a} and {b}, which would "
            "broadcast against each other; reshape one of them"
        )
    require_reduction(name, reduction, y_hat, a)


def require_smoothing(name: str, label_smoothing: float) -> None:
    """Raise a `LayerError` for a `label_smoothing` out of range."""
    if not 0 <= label_smoothing <= 1:
        raise LayerError(f"{name}: expected 0 <= label_smoothing <= 1, got {label_smoothing}")


def require_positive(name: str, **options: float) -> None:
    """Raise a `LayerError` for an option that is not above 0."""
    for option, value in options.items():
        if not value > 0:
            raise LayerError(f"{name}: expected {option} > 0, got {value}")


def class_weights(name: str, weight: Array | None, prediction: Array) -> Array | None:
    """The weights of the classes so that they broadcast along axis 1."""
    if weight is None:
        return None
    classes = prediction.shape[1]
    weight = beside(weight, prediction)
    if tuple(weight.shape) != (classes,):
        raise ShapeError(f"{name}: expected weight of shape ({classes},), one per class, got {tuple(weight.shape)}")
    return namespace_of(weight).reshape(weight, (classes,) + (1,) * (len(prediction.shape) - 2))


def beside(numbers: Any, like: Array) -> Array:
    """Numbers in a sequence as an array of the dtype and device of `like`; an array as it is."""
    if hasattr(numbers, "shape"):
        return numbers
    array = stop_gradient(like)
    backend = backend_of(array)
    return backend.astype(backend.from_host(np.asarray(numbers, "float64"), backend.place_of(array).index), array.dtype)
