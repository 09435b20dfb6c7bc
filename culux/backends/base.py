"""What culux needs of an array library: the `Backend` protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

__all__ = ["Array", "Backend", "Memory", "Place", "Timer", "Upload"]

Array: TypeAlias = Any
"""An array of a registered backend, or a traced one: shape, dtype and operators as NumPy has them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array lives: a kind of device and its 0-based index."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a device in bytes; None where the backend cannot tell."""

    used: int | None = None
    held: int | None = None
    total: int | None = None


class Upload(Protocol):
    """Host memory that is copied to a device beside the device's computation, again and again.

    ``stage`` gives bytes to fill, ``start`` sends them off, ``wait`` makes the current stream wait for
    them. The copies run on a side stream of their own; each lands in new memory, ordered after the work
    that was enqueued on the current stream before ``start``, so memory that this work still reads is
    never overwritten.
    """

    def stage(self, nbytes: int) -> np.ndarray:
        """Page-locked bytes to fill, uint8[nbytes]; waits until the copy before has left them."""
        ...

    def start(self) -> Array:
        """The staged bytes on the device, uint8[nbytes]; to be read only after `wait`."""
        ...

    def wait(self) -> None:
        """Let the work that the current stream gets from now on see the copy; the host goes on."""
        ...

    def close(self) -> None:
        """Wait on the host until no copy is under way; to be called before the object is dropped."""
        ...


class Timer(Protocol):
    """Times work on one device, so that `culux.kernels.tuning` can choose between implementations."""

    device: str
    """The device's name, e.g. ``"NVIDIA H100 80GB HBM3"``."""
    versions: Mapping[str, str]
    """The versions that the times depend on beside culux's own, by name."""

    def elapsed(self, run: Callable[[], object], repeats: int) -> float | None:
        """Microseconds that one of `repeats` calls of `run` takes on the device's current stream.

        None where nothing can be timed because the stream is being captured; `run` is not called then.
        """
        ...


class Backend(Protocol):
    """An array library seen through one small interface.

    NumPy and CuPy are two files beside this one; another library registers an object like this with
    `register_backend`, or from outside through the entry-point group ``culux.backends``, where the
    entry's name is the top-level module of its array type.
    """

    name: str
    """The registered name, e.g. ``"numpy"``; implementations of primitives are registered under it."""
    kind: str
    """The kind of its devices: ``"cpu"``, ``"cuda"`` or, for a device of its own kind, its own name."""
    array_types: tuple[type, ...]
    """Its array types; subclasses are taken too, unless `accepts` refuses them."""
    xp: Any
    """Its namespace, as the array API standard has it (``xp.exp``, ``xp.sum``, ...)."""
    writes_in_place: bool
    """Whether ``array[...] = value`` and ``out=`` work."""
    has_float64: bool
    has_streams: bool

    def accepts(self, array: Array) -> bool:
        """Whether this array, an instance of `array_types`, is one culux computes with."""
        ...

    def is_float(self, array: Array) -> bool:
        """Whether the dtype is a real floating one (bfloat16 included)."""
        ...

    def device_count(self) -> int:
        """How many devices there are; 0 where the library is installed but cannot be used."""
        ...

    def place_of(self, array: Array) -> Place:
        """The device that holds an array."""
        ...

    def from_host(self, array: np.ndarray, index: int) -> Array:
        """A NumPy array on device `index`."""
        ...

    def to_host(self, array: Array) -> np.ndarray:
        """An array as a NumPy array on the host; waits for pending work on it."""
        ...

    def move(self, array: Array, index: int) -> Array:
        """An array of this backend on another device of it; the same object where it already is."""
        ...

    def astype(self, array: Array, dtype: Any) -> Array:
        """An array converted to the dtype of this name or NumPy dtype; the same object where it has it."""
        ...

    def synchronize(self, index: int) -> None:
        """Wait for all work on a device."""
        ...

    def memory(self, index: int) -> Memory:
        """Memory of a device."""
        ...

    def stream(self, index: int) -> AbstractContextManager[Any]:
        """A context in which work goes to a new side stream; a null context without streams.

        The side stream starts after the work enqueued before the context, and the work enqueued after
        it starts after the side stream's.
        """
        ...

    def upload(self, index: int) -> Upload:
        """A reusable copy from page-locked host memory to a device (see `Upload`)."""
        ...

    def matmul_precision(self, name: str) -> AbstractContextManager[Any]:
        """A context in which float32 matrix products compute in ``"float32"`` or in ``"tf32"``."""
        ...

    def empty(self, like: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array of any content, on the device of `like`."""
        ...

    def contiguous(self, array: Array) -> Array:
        """The array in row-major order without gaps, on its device; a copy where it is not so."""
        ...

    def allocations(self, note: Callable[[int], None]) -> AbstractContextManager[Any]:
        """A context in which `note` gets the bytes of every allocation on the devices, where these are known."""
        ...

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> Any:
        """A raw CUDA kernel of this source; KernelError where the backend runs none."""
        ...

    def launch(
        self, kernel: Any, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared: int = 0
    ) -> None:
        """Launch a compiled kernel on the current stream; an empty grid launches nothing."""
        ...

    def shared_limit(self, index: int) -> int:
        """Bytes of shared memory that a block may have on a device; KernelError where the backend runs no kernels."""
        ...

    def timer(self, index: int) -> Timer:
        """What times work on a device; KernelError where the backend runs no kernels."""
        ...
