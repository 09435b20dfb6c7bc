"""What may be a leaf of a tree that moves between devices, and how one leaf moves."""

from __future__ import annotations

import sys
from numbers import Number
from typing import Any

import numpy as np

from culux import tree
from culux.backends import Array, Backend, backend_of, get_backend, is_array
from culux.backends.dtypes import float_dtype
from culux.core import StatefulLayer
from culux.core.convert import convert
from culux.errors import DifferentiationError, DTypeError, LayerError, describe

__all__ = ["as_array", "check_not_layer", "float_dtype", "move", "to_numpy"]

_PASSED = (Number, str, bytes, np.generic)
_NOT_NUMBERS = frozenset("OSUMm")
_DLPACK_CUDA = (2, 13)  # kDLCUDA and kDLCUDAManaged of dlpack.h


def as_array(path: str, leaf: Any) -> Array | None:
    """The leaf as an array of a registered backend; None for a number, a string and the like, which stay.

    Arrays of other libraries are taken in through DLPack, without a copy where their memory allows it.

    Args:
        path: where the leaf is in its tree, for the message.
        leaf: the leaf.

    Raises:
        DifferentiationError: for a traced array.
        LayerError: for a layer.
        DTypeError: for anything else that is no array of numbers (a TypeError, as the others are).
    """
    if hasattr(leaf, "__culux_value__"):
        raise DifferentiationError(
            f"{_at(path)}a traced array stays where it is; move the arrays before the differentiated function"
        )
    if is_array(leaf):
        dtype = leaf.dtype
        if getattr(dtype, "kind", "") in _NOT_NUMBERS or getattr(dtype, "type", None) is np.void:
            raise DTypeError(f"{_at(path)}expected an array of numbers, got {describe(leaf)}; keep it out of the tree")
        return leaf
    if isinstance(leaf, _PASSED):
        return None
    check_not_layer(path, leaf)
    if hasattr(leaf, "__dlpack__") and not isinstance(leaf, np.ndarray):
        return _from_dlpack(path, leaf)
    raise DTypeError(
        f"{_at(path)}expected an array, a number, a string or None, got {describe(leaf)} ({type(leaf).__name__});"
        " convert it with np.asarray, or keep it out of the tree"
    )


def check_not_layer(path: str, leaf: Any, verb: str = "move", call: str = "device") -> None:
    """Raise a `LayerError` where the leaf is a layer: layers hold no arrays, and `call` takes what they make."""
    if isinstance(leaf, StatefulLayer):
        raise LayerError(
            f"{_at(path)}expected arrays, got {leaf!r}; {verb} its parts:"
            f" m = culux.StatefulLayer(m.layer, {call}(m.ps), {call}(m.st))"
        )
    if hasattr(leaf, "initial_parameters"):
        raise LayerError(
            f"{_at(path)}expected arrays, got the layer {type(leaf).__name__}; a layer holds no arrays:"
            f" {verb} its parameters and states, ps, st = {call}(ps), {call}(st)"
        )


def move(path: str, leaf: Any, target: Backend, index: int, dtype: np.dtype[Any] | None) -> Any:
    """One leaf on device `index` of `target`, floats converted to `dtype`; the same object where nothing changes."""
    array = as_array(path, leaf)
    if array is None:
        return leaf
    source = backend_of(array)
    if dtype is not None:
        array = convert(array, dtype)
    try:
        if source.kind == target.kind:
            return source.move(array, index)
        return target.from_host(source.to_host(array), index)
    except DTypeError as error:
        raise DTypeError(f"{_at(path)}{error}") from error


def to_numpy(values: Any) -> Any:
    """The tree with every array as a NumPy array on the host; numbers, strings and None stay.

    Args:
        values: a tree of arrays of any backend or device.

    Raises:
        DifferentiationError: for a traced array.
        DTypeError: for a leaf that is neither an array nor a number, with its path.
    """
    return tree.map_with_path(_leaf_to_numpy, values)


def _leaf_to_numpy(path: str, leaf: Any) -> Any:
    array = as_array(path, leaf)
    return leaf if array is None else backend_of(array).to_host(array)


def _from_dlpack(path: str, value: Any) -> Array:
    """An array of another library: a NumPy array over host memory, a CuPy array over CUDA memory."""
    if getattr(value, "requires_grad", False):
        value = value.detach()
    try:
        on_cuda = value.__dlpack_device__()[0] in _DLPACK_CUDA
        xp = get_backend("cupy").xp if on_cuda else np
        if str(value.dtype).endswith("bfloat16"):  # neither library imports it: take the bits
            torch = sys.modules.get("torch")
            bits = np.int16 if torch is None or not isinstance(value, torch.Tensor) else torch.int16
            array = xp.from_dlpack(value.view(bits)).view(float_dtype("bfloat16"))
        else:
            array = xp.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise DTypeError(f"{_at(path)}expected an array of numbers, got {describe(value)}: {error}") from error
    # NumPy marks memory as read only that its owner does not share: such an array is copied.
    return array if on_cuda or array.flags.writeable else array.copy()


def _at(path: str) -> str:
    return f"at {path}: " if path else ""
