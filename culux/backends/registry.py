"""The registry: which backend an array belongs to."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from culux.backends.base import Array, Backend, Place
from culux.backends.numpy_backend import SCALARS, NumpyBackend
from culux.errors import DeviceError, DeviceMemoryError, describe

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

__all__ = ["array_namespace", "backend_of", "get_backend", "is_array", "is_float_array", "register_backend"]

ENTRY_POINTS = "culux.backends"

_BUILT_IN = {"cupy": "culux.backends.cupy_backend"}
_lock = threading.RLock()
_backends: dict[str, Backend] = {}
_by_type: dict[type, Backend | None] = {}
_namespaces: dict[type, Any] = {}


def register_backend(backend: Backend) -> None:
    """Register a backend; one of the same name is replaced."""
    with _lock:
        _backends[backend.name] = backend
        _forget(backend)


@contextmanager
def registered(backend: Backend) -> Iterator[None]:
    """A context in which a backend is registered, in place of one of its name; then all is as it was."""
    with _lock:
        before = _backends.get(backend.name)
        register_backend(backend)
    try:
        yield
    finally:
        with _lock:
            del _backends[backend.name]
            _forget(backend)
            if before is not None:
                register_backend(before)


def _forget(backend: Backend) -> None:
    """Find anew which types belong to which backend."""
    _by_type.clear()
    for kind in [kind for kind, found in _namespaces.items() if found is backend.xp]:
        del _namespaces[kind]


def register_namespace(kind: type, namespace: Any) -> None:
    """Make `namespace` what `namespace_of` answers for values of type `kind`."""
    _namespaces[kind] = namespace


def get_backend(name: str) -> Backend:
    """The backend of this name, imported on first use.

    Raises:
        DeviceError: where no backend of this name is registered or its library is missing.
    """
    with _lock:
        backend = _backends.get(name)
        if backend is None and name in _BUILT_IN:
            try:
                module = importlib.import_module(_BUILT_IN[name])
            except ImportError as error:
                raise DeviceError(f"the backend {name!r} needs its library: {error}") from error
            backend = _backends[name] = module.backend()
        if backend is None:
            for entry in _entry_points().select(name=name):
                loaded = entry.load()
                backend = _backends[name] = loaded() if callable(loaded) else loaded
        if backend is None:
            raise DeviceError(f"no backend {name!r} is registered; there are: {', '.join(sorted(_backends))}")
        return backend


def _entry_points() -> EntryPoints:
    """Backends that other packages bring."""
    from importlib.metadata import entry_points  # 20 ms, which `import culux` need not take

    return entry_points(group=ENTRY_POINTS)


def loaded() -> list[Backend]:
    """The backends that are in use; one whose library was not needed so far is not among them."""
    with _lock:
        return list(_backends.values())


def _find(kind: type) -> Backend | None:
    """The backend for an array type: a registered one, or one that the type's module brings in."""
    with _lock:
        for backend in _backends.values():
            if issubclass(kind, backend.array_types):
                return backend
        for base in kind.__mro__:
            root = base.__module__.partition(".")[0]
            if root in _backends or root in ("builtins", "culux"):
                continue
            if root in _BUILT_IN or _entry_points().select(name=root):
                backend = get_backend(root)
                if issubclass(kind, backend.array_types):
                    return backend
        return None


def _lookup(value: Any) -> Backend | None:
    kind = type(value)
    try:
        backend = _by_type[kind]
    except KeyError:
        backend = _by_type[kind] = None if kind in SCALARS else _find(kind)
    return backend


def is_array(value: Any) -> bool:
    """Whether `value` is an array of a registered backend (a memmap is; a masked array or matrix is not)."""
    backend = _lookup(value)
    return backend is not None and backend.accepts(value)


def is_float_array(value: Any) -> bool:
    """Whether `value` is an array with a real floating dtype."""
    if type(value) is np.ndarray and value.dtype.kind == "f":  # asked for every leaf of every gradient
        return True
    backend = _lookup(value)
    return backend is not None and backend.accepts(value) and backend.is_float(value)


def backend_of(*values: Any) -> Backend:
    """The backend of the arrays among `values`; NumPy's where there is none (scalars fit every backend).

    Raises:
        DeviceError: for arrays of two backends, or of two devices of one; it names both.
    """
    found: Backend | None = None
    first: Any = None
    for value in values:
        backend = _lookup(value)
        if backend is None:
            continue
        if found is None:
            found, first = backend, value
        elif backend is not found or (backend.device_count() > 1 and backend.place_of(value) != found.place_of(first)):
            raise DeviceError(mixed_message([first, value]))
    return found if found is not None else _backends["numpy"]


def mixed_message(values: list[Any], names: tuple[str, ...] = ()) -> str:
    """What to say of arrays that live in different places."""
    parts = []
    for i, value in enumerate(values):
        backend = _lookup(value)
        if backend is not None:
            name = names[i] if i < len(names) else f"argument {i + 1}"
            parts.append(f"{name} is on {backend.place_of(value)} ({backend.name})")
    return (
        "expected all arrays on one device, got: "
        + ", ".join(parts)
        + "; move them together: device = culux.gpu_device(); ps, st, x = device(ps), device(st), device(x)"
    )


def out_of_memory(where: str, values: Iterable[Any], error: MemoryError) -> DeviceMemoryError:
    """The error to raise for a library's own: what was computed, what was asked, and what is held."""
    backend, array = next(((b, v) for v in values if (b := _lookup(v)) is not None), (_backends["numpy"], None))
    place = Place("cpu") if array is None else backend.place_of(array)
    memory = backend.memory(place.index)
    amounts = [
        f"{amount:,} bytes {what}"
        for amount, what in ((memory.used, "in use"), (memory.held, "held"), (memory.total, "in all"))
        if amount is not None
    ]
    return DeviceMemoryError(
        f"{where}: out of memory on {place}: {error} There are {', '.join(amounts)}; "
        "take smaller batches, or delete what is not needed any more"
    )


def is_mixed(values: list[Any]) -> bool:
    """Whether `values` hold arrays of more than one backend or device."""
    places = {(b.name, b.place_of(v)) for v in values if (b := _lookup(v)) is not None}
    return len(places) > 1


def namespace_of(value: Any) -> Any:
    """The namespace to compute on `value` with: its backend's, or culux.numpy for a traced array."""
    kind = type(value)
    try:
        return _namespaces[kind]
    except KeyError:
        backend = _lookup(value)
        namespace = _namespaces[kind] = (backend or _backends["numpy"]).xp
        return namespace


def array_namespace(*arrays: Array) -> Any:
    """The namespace of the arrays' backend: numpy, cupy, ... (scalars are passed over).

    Raises:
        DeviceError: for arrays of two backends or devices.
    """
    return backend_of(*arrays).xp


def installed() -> dict[str, str]:
    """Every backend that is known by name, and why it cannot be used, or ``""``."""
    names = {*_backends, *_BUILT_IN, *(entry.name for entry in _entry_points())}
    found: dict[str, str] = {}
    for name in sorted(names):
        try:
            found[name] = "" if get_backend(name).device_count() else "no device can be used"
        except Exception as error:  # a broken backend must not hide the others
            found[name] = f"{type(error).__name__}: {error}"
    return found


register_backend(NumpyBackend())


def describe_place(value: Any) -> str:
    """An array in a few words, with its place."""
    backend = _lookup(value)
    return describe(value) if backend is None else f"{describe(value)} on {backend.place_of(value)}"
