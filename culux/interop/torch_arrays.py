"""Arrays as torch tensors and back, without copies where that is safe."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from culux.backends import Array, backend_of, get_backend, is_array
from culux.devices.leaves import float_dtype
from culux.errors import DeviceError

__all__ = ["stream_of", "to_array", "to_torch"]


def to_torch(value: Any) -> Any:
    """A NumPy or CuPy array as a tensor over the same memory; what is no array as it is.

    NumPy arrays that torch cannot represent or must not write to are copied: negative strides, read-only ones.

    Raises:
        DeviceError: for an array of another backend.
    """
    import torch

    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not is_array(value):
        return value
    if value.dtype.name == "bfloat16":  # NumPy's is an extension type: torch takes the bits
        return to_torch(value.view("int16")).view(torch.bfloat16)
    backend = backend_of(value)
    if backend.name == "numpy":
        return torch.from_numpy(np.asarray(value) if value.flags.carray else np.array(value, order="C"))
    if backend.name == "cupy":
        return torch.from_dlpack(backend.xp.ascontiguousarray(value))
    raise DeviceError(f"torch modules compute on NumPy and CuPy arrays, got one of the backend {backend.name!r}")


def to_array(tensor: Any) -> Array:
    """A tensor as an array over the same memory: NumPy's on the host, CuPy's on a GPU."""
    import torch

    tensor = tensor.detach().contiguous()  # an expanded tensor has overlapping elements: nobody may write there
    if tensor.dtype == torch.bfloat16:
        return to_array(tensor.view(torch.int16)).view(float_dtype("bfloat16"))
    return get_backend("cupy").xp.from_dlpack(tensor) if tensor.is_cuda else tensor.numpy()


def stream_of(values: Any) -> AbstractContextManager[Any]:
    """A context in which torch computes on CuPy's current stream, where there are CuPy arrays among the values.

    Both libraries reuse freed memory in the order of a stream, so they have to share it.
    """
    arrays = [value for value in values if is_array(value) and backend_of(value).name == "cupy"]
    if not arrays:
        return contextlib.nullcontext()
    import torch

    with arrays[0].device:
        stream = backend_of(arrays[0]).xp.cuda.get_current_stream()
    external = torch.cuda.ExternalStream(stream.ptr, device=arrays[0].device.id)
    return torch.cuda.stream(external)  # type: ignore[no-any-return]  # torch is Any
