"""The NumPy backend: arrays on the host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import numpy as np

from culux.backends.base import Array, Memory, Place
from culux.errors import DeviceError, KernelError

__all__ = ["SCALARS", "HostUpload", "NumpyBackend"]

SCALARS: frozenset[type] = frozenset({bool, int, float, complex, str, bytes, type(None)})
"""Types that belong to no backend: they mix with the arrays of every one."""

# glibc hands freed memory back to the system at once, a thousand page faults per training step, until it has
# seen a large block freed; then it keeps as much. This one is never touched. Measured: a quarter of a gradient.
np.empty(2**25 - 2**13, np.uint8)


class HostUpload:
    """An `Upload` to the host itself: nothing moves, so every `stage` gives new memory."""

    def __init__(self) -> None:
        self._staged = np.empty(0, np.uint8)

    def stage(self, nbytes: int) -> np.ndarray:
        """New bytes to fill."""
        self._staged = np.empty(nbytes, np.uint8)
        return self._staged

    def start(self) -> Array:
        """The staged bytes."""
        return self._staged

    def wait(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing under way."""


class NumpyBackend:
    """NumPy arrays on the host, memmaps included; masked arrays and matrices are refused."""

    name = "numpy"
    kind = "cpu"
    array_types: tuple[type, ...] = (np.ndarray,)
    xp: Any = np
    writes_in_place = True
    has_float64 = True
    has_streams = False

    def accepts(self, array: Array) -> bool:
        """Whether `array` is an ndarray that computes as one: no masked array, no matrix, no objects."""
        return type(array) is np.ndarray or not isinstance(array, (np.ma.MaskedArray, np.matrix))

    def is_float(self, array: Array) -> bool:
        """Whether the dtype is float16, float32, float64 or bfloat16."""
        return bool(array.dtype.kind == "f" or array.dtype.name == "bfloat16")

    def device_count(self) -> int:
        """One: the host."""
        return 1

    def place_of(self, array: Array) -> Place:
        """The host."""
        return Place("cpu")

    def from_host(self, array: np.ndarray, index: int) -> Array:
        """The same array."""
        return self.move(array, index)

    def to_host(self, array: Array) -> np.ndarray:
        """The same array."""
        return array  # type: ignore[no-any-return]  # an ndarray, as this backend's arrays are

    def move(self, array: Array, index: int) -> Array:
        """The same array: there is one host."""
        if index:
            raise DeviceError(f"expected cpu:0, got cpu:{index}; there is one host")
        return array

    def astype(self, array: Array, dtype: Any) -> Array:
        """The array in another dtype; the same object where it has it."""
        return array.astype(dtype, copy=False)

    def synchronize(self, index: int) -> None:
        """Nothing to wait for."""

    def memory(self, index: int) -> Memory:
        """Used: this process's resident set; total: the machine's memory."""
        page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
        try:
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[1]) * page
            return Memory(used=used, held=used, total=os.sysconf("SC_PHYS_PAGES") * page)
        except (OSError, ValueError):
            return Memory()

    def stream(self, index: int) -> AbstractContextManager[Any]:
        """A null context: the host has no streams."""
        return contextlib.nullcontext()

    def upload(self, index: int) -> HostUpload:
        """An upload that copies nothing: the staged bytes are the array."""
        return HostUpload()

    def matmul_precision(self, name: str) -> AbstractContextManager[Any]:
        """A null context: the host computes in full precision."""
        return contextlib.nullcontext()

    def empty(self, like: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array of any content."""
        return np.empty(shape, dtype)

    def contiguous(self, array: Array) -> Array:
        """The array in row-major order without gaps."""
        return np.ascontiguousarray(array)

    def allocations(self, note: Callable[[int], None]) -> AbstractContextManager[Any]:
        """A null context: NumPy does not tell."""
        return contextlib.nullcontext()

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> NoReturn:
        """NumPy runs no CUDA kernels."""
        raise KernelError(f"the numpy backend cannot compile the CUDA kernel {name!r}; move the arrays to a GPU")

    def launch(
        self, kernel: Any, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared: int = 0
    ) -> NoReturn:
        """NumPy runs no CUDA kernels."""
        raise KernelError("the numpy backend cannot launch CUDA kernels; move the arrays to a GPU")

    def shared_limit(self, index: int) -> NoReturn:
        """NumPy runs no CUDA kernels."""
        raise KernelError(
            "the numpy backend has no CUDA kernels, and no shared memory for them; move the arrays to a GPU"
        )

    def timer(self, index: int) -> NoReturn:
        """NumPy runs no CUDA kernels."""
        raise KernelError("the numpy backend has no CUDA kernels to time; move the arrays to a GPU")
