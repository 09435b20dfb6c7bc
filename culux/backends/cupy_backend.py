"""The CuPy backend: arrays on CUDA devices. Importing this module imports CuPy; the registry does so on first use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import cupy
import cupyx
import numpy as np

from culux.backends.base import Array, Memory, Place
from culux.backends.checks import synchronized
from culux.backends.counting import note_launch, note_transfer
from culux.errors import DeviceError, DTypeError, KernelError

__all__ = ["CupyBackend", "CupyTimer", "CupyUpload", "backend"]

DEFAULT_SHARED = 48 * 1024  # bytes of dynamic shared memory that a kernel may have without asking
FIRST_WITH_TF32 = 80  # compute capability; below, CuPy warns
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
        note_transfer("to device", self._staged.nbytes)
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


class CupyTimer:
    """A `Timer`: events on the current stream of one device."""

    def __init__(self, index: int) -> None:
        runtime = cupy.cuda.runtime
        self._device = cupy.cuda.Device(index)
        self.device: str = runtime.getDeviceProperties(index)["name"].decode()
        self.versions: Mapping[str, str] = {
            "cuda": _dotted(runtime.runtimeGetVersion()),
            "driver": _dotted(runtime.driverGetVersion()),
        }

    def elapsed(self, run: Callable[[], object], repeats: int) -> float | None:
        """Microseconds of one of `repeats` calls, the host's time included where the device waits for it."""
        with self._device:
            stream = cupy.cuda.get_current_stream()
            if stream.is_capturing():
                return None
            start, stop = cupy.cuda.Event(), cupy.cuda.Event()
            start.record(stream)
            for _ in range(repeats):
                run()
            stop.record(stream)
            stop.synchronize()
            return float(cupy.cuda.get_elapsed_time(start, stop)) * 1000 / repeats


def _dotted(number: int) -> str:
    """A version of CUDA as people write it: 12090 is 12.9."""
    return f"{number // 1000}.{number % 1000 // 10}"


class _Kernel:
    """A kernel of a module, as lazy as the module: looked up, and so compiled, when launched."""

    def __init__(self, module: Any, name: str) -> None:
        self.name = name
        self._module = module
        self._function: Any = None
        self._shared: dict[int, int] = {}

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared: int) -> None:
        if self._function is None:
            self._function = self._module.get_function(self.name)
        if shared > DEFAULT_SHARED:  # to be asked for on each device
            device = cupy.cuda.runtime.getDevice()
            if shared > self._shared.get(device, 0):
                self._function.max_dynamic_shared_size_bytes = self._shared[device] = shared
        self._function(grid, block, args, shared_mem=shared)


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
        self._modules: dict[tuple[str, tuple[str, ...], str | None], Any] = {}
        self._timers: dict[int, CupyTimer] = {}
        self._shared_limits: dict[int, int] = {}

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
        note_transfer("to device", array.nbytes)
        with self._device(index):
            try:
                return cupy.asarray(array)
            except ValueError as error:
                raise DTypeError(f"CuPy has no arrays of dtype {array.dtype}; keep them on the host") from error

    def to_host(self, array: Array) -> np.ndarray:
        """A copy on the host; waits for the work on the array's device and current stream."""
        note_transfer("to host", array.nbytes)
        with array.device:
            host: np.ndarray = cupy.asnumpy(array)
        synchronized(self, array.data.device_id)
        return host

    def move(self, array: Array, index: int) -> Array:
        """A copy on another device; the same object where it already is."""
        device = self._device(index)
        if array.data.device_id == index:
            return array
        note_transfer("between devices", array.nbytes)
        # Streams of two devices know nothing of each other: the array must be complete before it leaves.
        with array.device:
            cupy.cuda.get_current_stream().synchronize()
        with device:
            copy = array.copy()
            copied = cupy.cuda.get_current_stream().record()
        with array.device:  # where the array's memory may be given to another one as soon as this returns
            cupy.cuda.get_current_stream().wait_event(copied)
        return copy

    def astype(self, array: Array, dtype: Any) -> Array:
        """The array in another dtype, on its device; the same object where it has it."""
        with array.device:
            return array.astype(dtype, copy=False)

    def synchronize(self, index: int) -> None:
        """Wait for all work on a device."""
        self._device(index).synchronize()
        synchronized(self, index)

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
        if not self._count or (name == "tf32" and int(cupy.cuda.Device().compute_capability) < FIRST_WITH_TF32):
            yield
            return
        before = cupy._core.get_compute_type("float32")
        cupy._core.set_compute_type("float32", _COMPUTE_TYPES[name])
        try:
            yield
        finally:
            cupy._core.set_compute_type("float32", before)

    def empty(self, like: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array of any content, from the memory pool of the device of `like`."""
        if self._count == 1:
            return cupy.empty(shape, dtype)
        with like.device:
            return cupy.empty(shape, dtype)

    def contiguous(self, array: Array) -> Array:
        """The array in row-major order without gaps, on its device; a copy where it is not so."""
        if array.flags.c_contiguous:
            return array
        note_launch("copy", (array,))
        with array.device:
            return cupy.ascontiguousarray(array)

    def allocations(self, note: Callable[[int], None]) -> AbstractContextManager[Any]:
        """A context in which `note` gets the bytes of everything that this thread asks of a memory pool."""

        class Hook(cupy.cuda.MemoryHook):  # type: ignore[misc]  # CuPy is untyped
            name = "culux"

            def malloc_postprocess(self, *, size: int, mem_ptr: int, **others: Any) -> None:
                if mem_ptr:  # 0 for one that failed
                    note(size)

        return Hook()

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> Any:
        """A kernel of this source, built at its first launch; `name` may be a template's: ``f<float>``.

        The kernels of one source are compiled together, once.
        """
        template = name if "<" in name else None
        key = (source, tuple(options), template)
        if key not in self._modules:
            asked = {} if template is None else {"name_expressions": (template,)}
            self._modules[key] = cupy.RawModule(code=source, options=("-std=c++17", *options), **asked)
        return _Kernel(self._modules[key], name)

    def launch(
        self, kernel: Any, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared: int = 0
    ) -> None:
        """Launch on the current stream of the device that the first array is on.

        Raises:
            KernelError: where the source does not compile, with the compiler's log, or the GPU refuses the launch.
        """
        if 0 in grid:
            return  # CuPy would raise it to one block
        note_launch(kernel.name, args)
        try:
            if self._count == 1:
                kernel(grid, block, tuple(args), shared)
            else:
                first = next((arg for arg in args if isinstance(arg, cupy.ndarray)), None)
                with contextlib.nullcontext() if first is None else first.device:
                    kernel(grid, block, tuple(args), shared)
        except cupy.cuda.compiler.CompileException as error:
            architecture = cupy.cuda.Device().compute_capability
            raise KernelError(f"kernel {kernel.name} does not compile for sm_{architecture}:\n{error}") from error
        except cupy.cuda.driver.CUDADriverError as error:
            raise KernelError(
                f"kernel {kernel.name}: the launch with grid {grid}, block {block} and {shared} bytes of dynamic "
                f"shared memory was refused: {error}"
            ) from error

    def shared_limit(self, index: int) -> int:
        """Bytes of shared memory that a block may have on device `index`: 64 KiB to 227 KiB; asked for once."""
        limit = self._shared_limits.get(index)
        if limit is None:
            limit = self._shared_limits[index] = self._device(index).attributes["MaxSharedMemoryPerBlockOptin"]
        return limit

    def timer(self, index: int) -> CupyTimer:
        """What times work on device `index`, by events on its current stream; made once."""
        if index not in self._timers:
            self._device(index)
            self._timers[index] = CupyTimer(index)
        return self._timers[index]

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
