"""What layers ask of their arguments, inputs and parameters, and what they say when it is not so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from culux.errors import LayerError, ShapeError, describe
from culux.tree import Tree

__all__ = [
    "as_shape",
    "check_activation",
    "check_axis",
    "check_axis_exists",
    "check_flag",
    "check_initialiser",
    "check_length",
    "check_parameter",
    "check_probability",
    "check_trailing",
    "in_training",
    "made",
    "shape_of",
]


def check_activation(layer: str, activation: Any, *, flag: str = "", number: str = "") -> None:
    """Raise a `LayerError` where `activation` cannot be called.

    Args:
        layer: the layer's name.
        activation: what came in the activation's place.
        flag: what to write for the bool that other frameworks have there.
        number: what to write for the number that other frameworks have there.
    """
    if callable(activation):
        return
    hint = flag if isinstance(activation, bool) else number if isinstance(activation, int | float) else ""
    raise LayerError(
        f"{layer}: expected activation to be a function such as culux.relu, got {describe(activation)}"
        + (f"; {hint.format(activation)}" if hint else "")
    )


def check_initialiser(layer: str, name: str, init: Any) -> None:
    """Raise a `LayerError` where an initialiser is neither None nor a function."""
    if init is not None and not callable(init):
        raise LayerError(f"{layer}: expected {name} to be a function (rng, shape) -> array, got {describe(init)}")


def check_flag(layer: str, name: str, value: Any) -> None:
    """Raise a `LayerError` where `value` is no bool."""
    if not isinstance(value, bool):
        raise LayerError(f"{layer}: expected {name} to be a bool, got {describe(value)}")


def check_length(layer: str, name: str, value: Any) -> None:
    """Raise a `LayerError` where `value` is no positive int."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LayerError(f"{layer}: expected {name} to be a positive int, got {describe(value)}")


def check_probability(layer: str, name: str, value: Any) -> None:
    """Raise a `LayerError` where `value` is no number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise LayerError(f"{layer}: expected {name} to be a number between 0 and 1, got {describe(value)}")


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape of an input.

    Raises:
        LayerError: for an input that is no array.
    """
    shape = getattr(x, "shape", None)
    if shape is None:
        raise LayerError(f"expected x to be an array, got {describe(x)}; convert it with np.asarray(x, np.float32)")
    return shape  # type: ignore[no-any-return]  # a tuple, as every array's


def check_axis(shape: tuple[int, ...], axis: int, length: int) -> None:
    """Raise a `ShapeError` where an input of this shape has another length along `axis`."""
    if len(shape) <= axis or len(shape) < -axis:
        check_axis_exists(shape, axis)
    if shape[axis] != length:
        raise ShapeError(f"expected x.shape[{axis}] == {length}, got {shape[axis]} (x has shape {tuple(shape)})")


def check_axis_exists(shape: tuple[int, ...], axis: int) -> None:
    """Raise a `ShapeError` where an input of this shape has no such axis."""
    needed = axis + 1 if axis >= 0 else -axis
    if len(shape) < needed:
        raise ShapeError(f"expected x.ndim >= {needed}, got {len(shape)} (x has shape {tuple(shape)})")


def check_parameter(entries: Tree, name: str, shape: Sequence[int], kind: str = "ps") -> Any:
    """The entry `name` of a layer's parameters or states.

    Raises:
        ShapeError: where it is missing or has another shape: it belongs to another model.
    """
    value = entries.get(name)
    if value is not None and getattr(value, "shape", None) == shape:
        return value
    got = f"the entries {', '.join(entries) or 'none'}" if value is None else describe(value)
    raise ShapeError(
        f"expected {kind}.{name} of shape {tuple(shape)}, got {got}; {kind} is of another model: "
        "ps, st = culux.setup(rng, model)"
    )


def in_training(st: Tree) -> bool:
    """The mode of a layer's states.

    Raises:
        LayerError: for a mode that is neither a bool nor 0 or 1.
    """
    training = st["training"]
    if training is True or training is False:
        return training
    value = training.item() if getattr(training, "shape", None) == () else training  # NumPy's bools, and restored ones
    if not isinstance(value, int) or value not in (0, 1):
        raise LayerError(
            f"expected st.training to be a bool, got {describe(training)}; "
            "set it with culux.train_mode(st) or culux.test_mode(st)"
        )
    return bool(value)


def as_shape(layer: str, shape: Any, name: str = "shape") -> tuple[int, ...]:
    """The lengths of axes: a tuple of positive ints, or an int for one axis."""
    lengths = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    if not lengths or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in lengths):
        raise LayerError(f"{layer}: expected {name} to be a positive int or a tuple of them, got {describe(shape)}")
    return lengths


def check_trailing(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise a `ShapeError` where the trailing axes of an input of this shape are not `expected`."""
    count = len(expected)
    if len(shape) < count:
        check_axis_exists(shape, -count)
    if tuple(shape[-count:]) != expected:
        raise ShapeError(
            f"expected x.shape[-{count}:] == {expected}, got {tuple(shape[-count:])} (x has shape {tuple(shape)})"
        )


def made(
    rng: np.random.Generator, name: str, init: Callable[..., Any] | None, shape: tuple[int, ...], fan_in: int = 1
) -> Any:
    """What an initialiser makes, its shape checked; None draws from U(-b, b) with ``b = 1 / sqrt(fan_in)``."""
    if init is None:
        bound = fan_in**-0.5
        return rng.uniform(-bound, bound, shape).astype(np.float32)
    array = init(rng, shape)
    if getattr(array, "shape", None) != shape:
        raise ShapeError(f"expected {name}(rng, {shape}) to return an array of this shape, got {describe(array)}")
    return array
