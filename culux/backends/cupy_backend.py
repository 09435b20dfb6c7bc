"""The CuPy backend: arrays on CUDA devices. Importing this module imports CuPy; the registry does so on first use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import cupy
import cupyx
import numpy as np

from culux.backends.base import Array, Memory, Place
from culux.errors import DeviceError, DTypeError, KernelError

__all__ = ["CupyBackend", "CupyUpload", "backend"]

_COMPUTE_TYPES = {"float32": 1, "tf32": 7}  # CuPy's COMPUTE_TYPE_DEFAULT and COMPUTE_TYPE_TF32


class CupyUpload:
    """An `Upload`: one page-locked buffer, a non-blocking stream, and the events that order them.

    The device memory is new for every copy and comes from the current stream's part of the memory pool,
    where the batch before the last may have left it. The side stream therefore waits for an event that is
    recorded after the allocation: everything that read the memory before was enqueued before it.
    """

    def __init__(self, index: int) -> None:
        self._device = cupy.cuda.Device(index)
        with self._device:
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self._free = cupy.cuda.Event(disable_timing=True)
            self._copied = cupy.cuda.Event(disable_timing=True)
        self._buffer = np.empty(0, np.uint8)
        self._staged = self._buffer

    def stage(self, nbytes: int) -> np.ndarray:
        """Page-locked bytes to fill; waits until the copy before has left them."""
        self.close()
        if self._buffer.nbytes < nbytes:
            self._buffer = cupyx.empty_pinned(nbytes, np.uint8)
        self._staged = self._buffer[:nbytes]
        return self._staged

    def start(self) -> Array:
        """The staged bytes on the device; to be read only after `wait`."""
        with self._device:
            target = cupy.empty(self._staged.nbytes, np.uint8)
            self._free.record(cupy.cuda.get_current_stream())
            self._stream.wait_event(self._free)
            target.set(self._staged, stream=self._stream)
            self._copied.record(self._stream)
        return target

    def wait(self) -> None:
        """Let the current stream wait for the copy."""
        with self._device:
            cupy.cuda.get_current_stream().wait_event(self._copied)

    def close(self) -> None:
        """Wait on the host until no copy is under way."""
        self._stream.synchronize()


class _Template:
    """An instance of a kernel template, as lazy as a RawKernel: looked up, and so compiled, when launched."""

    def __init__(self, source: str, name: str, options: tuple[str, ...]) -> None:
        self._module = cupy.RawModule(code=source, options=("-std=c++17", *options), name_expressions=(name,))
        self._name = name
        self._kernel: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if self._kernel is None:
            self._kernel = self._module.get_function(self._name)
        self._kernel(*args, **kwargs)


class CupyBackend:
    """CuPy arrays on the CUDA devices of this machine."""

    name = "cupy"
    kind = "cuda"
    array_types: tuple[type, ...] = (cupy.ndarray,)
    xp: Any = cupy
    writes_in_place = True
    has_float64 = True
    has_streams = True

    def __init__(self) -> None:
        self._count = _usable_devices()

    def accepts(self, array: Array) -> bool:
        """Every CuPy array."""
        return True

    def is_float(self, array: Array) -> bool:
        """Whether the dtype is float16, float32, float64 or bfloat16."""
        return bool(array.dtype.kind == "f" or array.dtype.name == "bfloat16")

    def device_count(self) -> int:
        """The number of CUDA devices; 0 without a GPU or a driver that CuPy can use."""
        return self._count

    def place_of(self, array: Array) -> Place:
        """The CUDA device that holds the array's memory."""
        return Place("cuda", array.data.device_id)

    def from_host(self, array: np.ndarray, index: int) -> Array:
        """A copy of a NumPy array on device `index`, on its current stream.

        As with ``cupy.asarray``, the host does not wait: page-locked memory may be written again only after
        the copy is done. Other host memory has been read when this returns.
        """
        with self._device(index):
            try:
                return cupy.asarray(array)
            except ValueError as error:
                raise DTypeError(f"CuPy has no arrays of dtype {array.dtype}; keep them on the host") from error

    def to_host(self, array: Array) -> np.ndarray:
        """A copy on the host; waits for the work on the array's device and current stream."""
        with array.device:
            return cupy.asnumpy(array)  # type: ignore[no-any-return]  # CuPy is untyped

    def move(self, array: Array, index: int) -> Array:
        """A copy on another device; the same object where it already is."""
        device = self._device(index)
        if array.data.device_id == index:
            return array
        # Streams of two devices know nothing of each other: the array must be complete before it leaves.
        with array.device:
            cupy.cuda.get_current_stream().synchronize()
        with device:
            return array.copy()

    def astype(self, array: Array, dtype: Any) -> Array:
        """The array in another dtype, on its device; the same object where it has it."""
        with array.device:
            return array.astype(dtype, copy=False)

    def synchronize(self, index: int) -> None:
        """Wait for all work on a device."""
        self._device(index).synchronize()

    def memory(self, index: int) -> Memory:
        """Used and held by CuPy's default pool on a device; total: the device's memory."""
        with self._device(index):
            pool = cupy.get_default_memory_pool()
            return Memory(used=pool.used_bytes(), held=pool.total_bytes(), total=cupy.cuda.runtime.memGetInfo()[1])

    @contextlib.contextmanager
    def _side_stream(self, index: int) -> Iterator[Any]:
        with self._device(index):
            outer = cupy.cuda.get_current_stream()
            side = cupy.cuda.Stream(non_blocking=True)
            side.wait_event(outer.record())
            try:
                with side:
                    yield side
            finally:
                outer.wait_event(side.record())

    def stream(self, index: int) -> AbstractContextManager[Any]:
        """A context in which work goes to a new non-blocking stream."""
        return self._side_stream(index)

    def upload(self, index: int) -> CupyUpload:
        """A reusable copy from page-locked memory, on a stream of its own."""
        self._device(index)
        return CupyUpload(index)

    @contextlib.contextmanager
    def matmul_precision(self, name: str) -> Iterator[None]:
        """Float32 products with or without TF32, by CuPy's setting, of which there is one for the process."""
        if not self.device_count():
            yield
            return
        before = cupy._core.get_compute_type("float32")
        cupy._core.set_compute_type("float32", _COMPUTE_TYPES[name])
        try:
            yield
        finally:
            cupy._core.set_compute_type("float32", before)

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> Any:
        """A kernel of this source, built at its first launch; `name` may be a template's: ``f<float>``."""
        kind = _Template if "<" in name else cupy.RawKernel
        return kind(source, name, options=tuple(options))

    def launch(
        self, kernel: Any, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared: int = 0
    ) -> None:
        """Launch on the current stream of the device that the first array is on.

        Raises:
            KernelError: where the source does not compile; the compiler's log is the message.
        """
        if 0 in grid:
            return  # CuPy would raise it to one block
        first = next((arg for arg in args if isinstance(arg, cupy.ndarray)), None)
        with contextlib.nullcontext() if first is None else first.device:
            try:
                kernel(grid, block, tuple(args), shared_mem=shared)
            except cupy.cuda.compiler.CompileException as error:
                raise KernelError(f"a CUDA kernel does not compile:\n{error}") from error

    def _device(self, index: int) -> Any:
        if not 0 <= index < self._count:
            raise DeviceError(f"expected the index of a CUDA device, got {index}; CuPy can use {self._count} here")
        return cupy.cuda.Device(index)


def _usable_devices() -> int:
    # CuPy imports without a driver; what a broken driver raises depends on how it is broken.
    try:
        return int(cupy.cuda.runtime.getDeviceCount()) if cupy.cuda.is_available() else 0
    except Exception:  # unusable for any reason is no device
        return 0


def backend() -> CupyBackend:
    """The backend object that the registry keeps."""
    return CupyBackend()
