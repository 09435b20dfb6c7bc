"""Trees in another float dtype, where they are: `f16`, `bf16`, `f32`, `f64`."""

from __future__ import annotations

from typing import Any

from culux import tree
from culux.backends.dtypes import float_dtype
from culux.core.convert import convert
from culux.devices.leaves import as_array, check_not_layer

__all__ = ["bf16", "f16", "f32", "f64"]


def f16(values: Any) -> Any:
    """The tree with every float in float16: arrays of any backend, on their device, and NumPy's scalars.

    Integers, bools, Python's numbers, strings and None stay, and so does an array that is float16 already. An array
    that is in the tree twice is converted once. In a differentiated function the gradient comes back in the dtype of
    the argument. Moments of an optimiser belong to the dtype of the parameters that `culux.optim.setup` got:
    convert `ps` first, then make the optimiser's state.

    Args:
        values: a tree of arrays: `ps`, `st`, a batch, a functor.

    Raises:
        LayerError: for a layer; its parameters and states are what is converted.
        DTypeError: for a leaf that is neither an array nor a number, with its path.
    """
    return _converted(values, "float16", "culux.f16")


def bf16(values: Any) -> Any:
    """The tree with every float in bfloat16; all else as in `f16`. It needs the package ml_dtypes."""
    return _converted(values, "bfloat16", "culux.bf16")


def f32(values: Any) -> Any:
    """The tree with every float in float32; all else as in `f16`."""
    return _converted(values, "float32", "culux.f32")


def f64(values: Any) -> Any:
    """The tree with every float in float64; all else as in `f16`."""
    return _converted(values, "float64", "culux.f64")


def _converted(values: Any, name: str, function: str) -> Any:
    dtype = float_dtype(name)
    converted: dict[int, Any] = {}

    def leaf_converted(path: str, leaf: Any) -> Any:
        if id(leaf) not in converted:
            check_not_layer(path, leaf, "convert", function)
            array = None if hasattr(leaf, "__culux_value__") else as_array(path, leaf)
            converted[id(leaf)] = convert(leaf if array is None else array, dtype)
        return converted[id(leaf)]

    return tree.map_with_path(leaf_converted, values)
