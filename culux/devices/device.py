"""Devices: values that say where arrays go, called on trees to bring them there."""

from __future__ import annotations

import os
import threading
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from culux import tree
from culux.backends import Backend, Memory, Place, backend_of, get_backend, installed, is_array
from culux.backends.registry import mixed_message
from culux.core.fields import untraced
from culux.devices.leaves import check_not_layer, float_dtype, move
from culux.errors import DeviceError, DTypeError, describe

__all__ = ["Device", "cpu_device", "device", "get_device", "gpu_device", "synchronize"]

_VARIABLE = "CULUX_DEVICE"
_BACKENDS = {"cpu": "numpy", "cuda": "cupy"}
_warning_lock = threading.Lock()
_warned = False


@dataclass(frozen=True, repr=False)
class Device:
    """Where arrays go: ``device(tree)`` is the tree with every array there.

    Devices compare and hash by place; `dtype` does not count. Make them with `cpu_device`, `gpu_device`
    and `device`.

    Args:
        kind: ``"cpu"`` or ``"cuda"`` (or the name of a backend that has devices of its own kind).
        index: which one of its kind, from 0.
        dtype: what arrays of real floats are converted to; None keeps their dtype.
    """

    kind: str
    index: int = 0
    dtype: np.dtype[Any] | None = field(default=None, compare=False)

    def __call__(self, values: Any) -> Any:
        """The tree with every array on this device; an array that already is there stays the same object.

        Numbers, strings and None stay. Arrays of torch, JAX and other libraries are taken in through
        DLPack. An array that is in the tree twice is moved once.

        Raises:
            LayerError: for a layer; its parameters and states are what moves.
            DifferentiationError: for a traced array.
            DTypeError: for anything else that is no array of numbers, with its path.
        """
        backend = self.backend
        moved: dict[int, Any] = {}

        def leaf_there(path: str, leaf: Any) -> Any:
            if id(leaf) not in moved:
                moved[id(leaf)] = move(path, leaf, backend, self.index, self.dtype)
            return moved[id(leaf)]

        return tree.map_with_path(leaf_there, values)

    @property
    def name(self) -> str:
        """``"cpu"``, ``"cuda:0"``, ..."""
        return str(Place(self.kind, self.index))

    @property
    def backend(self) -> Backend:
        """The backend whose arrays live here."""
        return get_backend(_BACKENDS.get(self.kind, self.kind))

    @property
    def xp(self) -> Any:
        """The array namespace: numpy, cupy, ..."""
        return self.backend.xp

    def synchronize(self) -> None:
        """Wait until all work on this device is done."""
        self.backend.synchronize(self.index)

    def memory(self) -> Memory:
        """Memory in bytes: used, held by the pool, and the device's total."""
        return self.backend.memory(self.index)

    def __repr__(self) -> str:
        makers = {"cpu": "cpu_device(", "cuda": f"gpu_device({self.index}"}
        call = makers.get(self.kind, f"device({self.name!r}")
        if self.dtype is None:
            return f"{call})"
        return f"{call}{'' if call.endswith('(') else ', '}dtype={self.dtype.name!r})"


def cpu_device(dtype: Any = None) -> Device:
    """The host.

    Args:
        dtype: a real floating dtype that floats are converted to; None keeps their dtype.

    Raises:
        DTypeError: where `dtype` is no real floating dtype.
    """
    return Device("cpu", dtype=None if dtype is None else float_dtype(dtype))


def gpu_device(device_id: int | None = None, dtype: Any = None, *, force: bool = False) -> Device:
    """A GPU where there is one, else the CPU, which it says once per process in a UserWarning.

    Without a `device_id` the environment variable CULUX_DEVICE decides, where it is set: ``cpu`` is the
    CPU without a warning, ``cuda`` or ``cuda:1`` a GPU or an error.

    Args:
        device_id: which GPU, from 0; None is the first.
        dtype: a real floating dtype that floats are converted to; None keeps their dtype.
        force: raise where there is no usable GPU.

    Raises:
        DeviceError: for an index without a GPU, and with `force` where there is none at all.
        DTypeError: where `dtype` is no real floating dtype, or `device_id` no integer.
    """
    return _gpu_device(device_id, dtype, force)


def _gpu_device(device_id: int | None = None, dtype: Any = None, force: bool = False) -> Device:
    converted = None if dtype is None else float_dtype(dtype)
    named = os.environ.get(_VARIABLE, "")
    if device_id is None and named:
        found = _named(named, f"the environment variable {_VARIABLE}")
        if force and found.kind == "cpu":
            raise DeviceError(f"gpu_device(force=True) needs a GPU, and {_VARIABLE}={named} asks for the CPU")
        return replace(found, dtype=converted)
    if isinstance(device_id, bool) or not isinstance(device_id, int | np.integer | None):
        raise DTypeError(f"expected device_id to be an integer from 0, got {describe(device_id)}; see culux.device")
    index = 0 if device_id is None else int(device_id)
    count, missing = _gpus()
    if index < 0 or 0 < count <= index:
        raise DeviceError(f"expected a GPU index from 0, got {index}; {_count(count)}")
    if count:
        return Device("cuda", index, converted)
    if force:
        raise DeviceError(f"no GPU can be used: {missing}")
    _warn_once(f"no GPU can be used, computing on the CPU: {missing}")
    return cpu_device(dtype)


def device(name: str | None = None) -> Device:
    """The device of this name: ``"cpu"``, ``"cuda"`` (the first GPU), ``"cuda:1"``.

    Without a name it is what the environment variable CULUX_DEVICE names, else `gpu_device`'s choice.

    Raises:
        DeviceError: for a name that is none, or a device that is not there.
    """
    return _gpu_device() if name is None else _named(name, "a device name")


def _named(name: str, origin: str) -> Device:
    kind, _, digits = str(name).partition(":")
    known = kind in _BACKENDS or (kind in installed() and get_backend(kind).kind == kind)
    if not known or (":" in name and not digits.isdecimal()):
        raise DeviceError(f"expected {origin} to be 'cpu', 'cuda' or 'cuda:<index>', got {name!r}")
    index = int(digits or 0)
    if kind == "cuda":
        count, missing = _gpus()
        if not count:
            raise DeviceError(f"{name!r} was asked for and no GPU can be used: {missing}")
    else:
        count = get_backend(_BACKENDS.get(kind, kind)).device_count()
    if index >= count:
        raise DeviceError(f"expected an index below {count} for {kind!r}, got {name!r}; {_count(count, kind)}")
    return Device(kind, index)


def _gpus() -> tuple[int, str]:
    """How many GPUs can be used; if none, what is missing and how to get it."""
    try:
        count = get_backend("cupy").device_count()
    except DeviceError as error:
        return 0, (
            f"CuPy cannot be imported ({error.__cause__ or error}); install it with"
            " pip install 'culux[cuda12]' or 'culux[cuda13]', whichever CUDA the driver has"
        )
    return count, "" if count else (
        "CuPy is installed and finds no CUDA device; see whether nvidia-smi lists one and whether its CUDA"
        " version is at least that of the installed CuPy"
    )


def _count(count: int, kind: str = "GPU") -> str:
    return f"there is 1 {kind}" if count == 1 else f"there are {count} {kind}s"


def _warn_once(message: str) -> None:
    global _warned
    with _warning_lock:
        first, _warned = not _warned, True
    if first:
        # the line that called the public function, which called _gpu_device
        warnings.warn(message, UserWarning, stacklevel=4)


def get_device(values: Any) -> Device:
    """The device that holds all arrays of a tree; the CPU where it holds none.

    Raises:
        DeviceError: for arrays of two devices; it names both and their paths.
        LayerError: for a layer, which holds no arrays.
    """
    found: Place | None = None
    first: tuple[str, Any] = ("", None)
    for path, leaf in tree.leaves_with_path(values):
        check_not_layer(path, leaf)
        array = untraced(leaf)
        if not is_array(array):
            continue
        place = backend_of(array).place_of(array)
        if found is None:
            found, first = place, (path, array)
        elif place != found:
            raise DeviceError(mixed_message([first[1], array], (first[0], path)))
    return cpu_device() if found is None else Device(found.kind, found.index)


def synchronize(tree_or_device: Any = None) -> None:
    """Wait for the work on a device, on the devices of a tree's arrays, or on all devices.

    Args:
        tree_or_device: a device; a tree; None for every device that can be used.
    """
    if isinstance(tree_or_device, Device):
        tree_or_device.synchronize()
    elif tree_or_device is None:
        for name in [name for name, problem in installed().items() if not problem]:
            backend = get_backend(name)
            for index in range(backend.device_count()):
                backend.synchronize(index)
    else:
        arrays = [array for leaf in tree.leaves(tree_or_device) if is_array(array := untraced(leaf))]
        for place in {backend_of(array).place_of(array) for array in arrays}:
            Device(place.kind, place.index).synchronize()
