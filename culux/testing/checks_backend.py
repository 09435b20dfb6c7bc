"""`check_backend`: what the `Backend` protocol promises, asked of an array library and compared with NumPy."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from culux.backends import Backend, Memory, Place, backend_of, get_backend, is_array, is_float_array
from culux.backends.registry import array_namespace, registered
from culux.errors import DeviceError, DTypeError, KernelError, describe
from culux.testing.checks_namespace import (
    model_problems,
    namespace_problems,
    operator_problems,
    optim_problems,
    traced_problems,
)
from culux.testing.compare import TOLERANCE, mismatches
from culux.testing.report import CheckReport, Checks, LeftOut

__all__ = ["check_backend"]

NEEDED = ("bool", "uint8", "int32", "int64", "uint64", "float32")
OTHERS = ("int8", "int16", "uint16", "uint32", "float16", "float64")
KERNEL = """
extern "C" __global__ void scale(const float* x, float* y, float by, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = by * x[i];
}
"""


def check_backend(backend: Backend | str, *, tolerance: float = 1.0) -> CheckReport:
    """Check that a backend keeps the `culux.backends.Backend` protocol, against NumPy.

    That is: its members; arrays that are known by their type and place; transfers of every dtype, shape and layout both
    ways; moves, conversions, new arrays; streams, uploads, memory and allocations; writes in place where it claims
    them; kernels, or a KernelError from all that has to do with them; the functions and operators that culux needs;
    value, gradient and update of a small model; and an error that names both where arrays of two backends meet.

    Args:
        backend: the backend, or the name of a registered one. One that is not registered is for the time of the checks.
        tolerance: a factor on all tolerances.

    Returns:
        What was checked and what was left out, with the reason.

    Raises:
        CheckError: where a check fails (an AssertionError); it lists every one: expected, actual, what to do.
        DeviceError: where no backend has this name.
    """
    found = get_backend(backend) if isinstance(backend, str) else backend
    checks = Checks(f"check_backend({getattr(found, 'name', found)!r})")
    with checks("members", "see culux.backends.Backend for what each is") as wrong:
        for line in _missing(found):
            wrong(line)
    checks.stop_if_failed("members")
    with registered(found):
        case = _Case(checks, found, tolerance)
        with checks("devices", "device_count() says how many can be used here; 0 where none can") as wrong:
            if found.device_count() < 1:
                wrong(f"expected a device to check on, got device_count() = {found.device_count()}")
        checks.stop_if_failed("devices")
        for part in (_check_arrays, _check_transfers, _check_places, _check_conversions, _check_new_arrays):
            part(case)
        for part in (_check_in_place, _check_streams, _check_uploads, _check_memory, _check_kernels, _check_computing):
            part(case)
    return checks.report()


@dataclass(frozen=True)
class _Case:
    checks: Checks
    backend: Backend
    tolerance: float

    def array(self, *shape: int, dtype: str = "float32") -> Any:
        """Numbers from 1 on, on the backend's first device."""
        return self.backend.from_host(_numbers(shape, dtype), 0)

    def differences(self, found: Any, expected: np.ndarray, dtype: str = "float32") -> Iterator[str]:
        """What to say of an array of the backend that is not what NumPy has, dtype included."""
        if not isinstance(found, self.backend.array_types):
            yield f"expected an array of the backend, got {type(found).__name__}"
            return
        host = self.backend.to_host(found)
        if host.dtype != expected.dtype:
            yield f"expected {expected.dtype}, got {host.dtype}"
        yield from mismatches(host, expected, self.tolerance * TOLERANCE[dtype] if dtype in TOLERANCE else 0)


def _numbers(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.arange(1, 1 + int(np.prod(shape))).reshape(shape).astype(dtype)


def _missing(backend: Any) -> Iterator[str]:
    attributes = inspect.get_annotations(Backend)
    methods = [name for name, member in vars(Backend).items() if inspect.isfunction(member) and name[0] != "_"]
    for name in [*attributes, *methods]:
        if not hasattr(backend, name):
            yield f"expected {name}{'()' if name in methods else ''}, got no such member"
        elif name in methods and not callable(getattr(backend, name)):
            yield f"expected {name} to be a method, got {describe(getattr(backend, name))}"
    for name in ("writes_in_place", "has_float64", "has_streams"):
        if not isinstance(getattr(backend, name, True), bool):
            yield f"expected {name} to be True or False, got {describe(getattr(backend, name))}"


def _check_arrays(case: _Case) -> None:
    backend = case.backend
    with case.checks("arrays", "array_types are the types of from_host's arrays; is_float asks the dtype") as wrong:
        x = case.array(2, 3)
        if not (issubclass(type(x), backend.array_types) and is_array(x)):
            wrong(f"expected from_host to give one of array_types {backend.array_types}, got {type(x).__name__}")
            return
        if backend_of(x) is not backend or backend_of(x, 1, 2.0, None, np.float32(1)) is not backend:
            wrong(f"expected the registry to find {backend.name} for its array, got {backend_of(x).name}")
        if array_namespace(x) is not backend.xp:
            wrong("expected array_namespace to give xp for its array, got another namespace")
        if tuple(x.shape) != (2, 3) or x.ndim != 2 or x.size != 6:
            wrong(f"expected shape (2, 3), ndim 2, size 6, got {x.shape}, {x.ndim}, {x.size}")
        for dtype in ("bool", "int32", "float32"):
            if is_float_array(case.array(2, dtype=dtype)) != (dtype == "float32"):
                wrong(f"expected is_float to be {dtype == 'float32'} for {dtype}, got {dtype != 'float32'}")


def _check_transfers(case: _Case) -> None:
    hint = "from_host and to_host copy numbers as they are; a dtype that the library lacks is a DTypeError"
    needed = {*NEEDED, *(["float64"] if case.backend.has_float64 else [])}
    with case.checks("transfers", hint) as wrong:
        for dtype in (*NEEDED, *OTHERS):
            for host in _layouts(dtype):
                try:
                    there = case.backend.from_host(host, 0)
                except DTypeError as error:
                    if dtype in needed:
                        wrong(f"expected arrays of {dtype}, got {error}")
                    break
                for line in case.differences(there, host, "exact"):
                    wrong(f"{dtype} of shape {host.shape} and strides {host.strides} there and back: {line}")
                back = case.backend.to_host(there)
                if type(back) is not np.ndarray:
                    wrong(f"expected to_host to give a numpy.ndarray, got {type(back).__name__}")


def _layouts(dtype: str) -> list[np.ndarray]:
    x = _numbers((4, 6), dtype)
    fixed = x.copy()
    fixed.setflags(write=False)
    return [x, fixed, x.T, x[::2, ::-1], x[:0], x[0, :1].reshape(())]


def _check_places(case: _Case) -> None:
    backend = case.backend
    hint = "arrays stay on the device of the index, and an index without a device is a DeviceError"
    with case.checks("places", hint) as wrong:
        count = backend.device_count()
        for index in range(count):
            x = backend.from_host(_numbers((3,), "float32"), index)
            if backend.place_of(x) != Place(backend.kind, index):
                wrong(f"expected place_of {Place(backend.kind, index)!r}, got {backend.place_of(x)!r}")
            if backend.move(x, index) is not x:
                wrong(f"expected move to device {index}, where the array is, to give the same object, got a copy")
            moved = backend.move(x, (index + 1) % count)
            if backend.place_of(moved).index != (index + 1) % count:
                wrong(f"expected move to device {(index + 1) % count}, got {backend.place_of(moved)}")
            for line in case.differences(moved, _numbers((3,), "float32")):
                wrong(f"moved from device {index}: {line}")
            backend.synchronize(index)
        x = case.array(3)
        calls: dict[str, Callable[[], Any]] = {
            "move": lambda: backend.move(x, count),
            "from_host": lambda: backend.from_host(np.ones(3), count),
        }
        for name, call in calls.items():
            with contextlib.suppress(DeviceError):
                call()
                wrong(f"expected a DeviceError from {name} for index {count} of {count} devices, got none")


def _check_conversions(case: _Case) -> None:
    backend = case.backend
    hint = "take names and NumPy dtypes, and give the array itself where it has the dtype"
    with case.checks("astype", hint) as wrong:
        x = case.array(2, 3)
        for dtype in ("float32", np.dtype("float32")):
            if backend.astype(x, dtype) is not x:
                wrong(f"expected astype(x, {dtype!r}) of a float32 array to give the same object, got another")
        for name in ("int32", "bool", *(["float64"] if backend.has_float64 else [])):
            for dtype in (name, np.dtype(name)):
                for line in case.differences(backend.astype(x, dtype), _numbers((2, 3), name)):
                    wrong(f"astype(x, {dtype!r}): {line}")


def _check_new_arrays(case: _Case) -> None:
    backend, x = case.backend, case.array(4, 6)
    with case.checks("empty", "an array of this shape and dtype, where `like` is") as wrong:
        for shape in ((), (0, 3), (2, 5)):
            for dtype in ("float32", np.dtype("int32")):
                made = backend.empty(x, shape, dtype)
                found = tuple(made.shape), backend.to_host(made).dtype, backend.place_of(made)
                expected = shape, np.dtype(dtype), backend.place_of(x)
                if found != expected:
                    wrong(f"expected {expected} (shape, dtype, place), got {found}")
    with case.checks("contiguous", "the same numbers in row-major order without gaps") as wrong:
        for line in case.differences(backend.contiguous(x), _numbers((4, 6), "float32")):
            wrong(f"of a contiguous array: {line}")
        for line in case.differences(backend.contiguous(x[::2, ::-1]), _numbers((4, 6), "float32")[::2, ::-1]):
            wrong(f"of x[::2, ::-1]: {line}")


def _check_in_place(case: _Case) -> None:
    hint = "set writes_in_place = False where array[...] = value or out= does not work"
    with case.checks("writes in place", hint) as wrong:
        if not case.backend.writes_in_place:
            raise LeftOut("writes_in_place is False")
        x = case.array(2, 3)
        x[...] = case.array(2, 3) * 2
        x[0, :] = 1
        case.backend.xp.add(x, x, out=x)
        for line in case.differences(x, np.array([[2, 2, 2], [16, 20, 24]], np.float32)):
            wrong(f"after x[...] = value and add(x, x, out=x): {line}")


def _check_streams(case: _Case) -> None:
    backend = case.backend
    hint = "work in the context comes after what was enqueued before it, and before what comes after"
    with case.checks("streams", hint) as wrong:
        x = case.array(50) + 1
        with backend.stream(0):
            y = x * 2
        for line in case.differences(y + 1, _numbers((50,), "float32") * 2 + 3):
            wrong(f"(x + 1) * 2 in a stream, + 1 after it: {line}")
    hint = "a context for each of 'float32' and 'tf32', a null context where there is no choice"
    with case.checks("matmul precision", hint) as wrong:
        x, y = case.array(3, 4), case.array(4, 2)
        for name, tolerance in (("float32", TOLERANCE["float32"]), ("tf32", 1e-2)):
            with backend.matmul_precision(name):
                product = backend.to_host(x @ y)
            for line in mismatches(product, _numbers((3, 4), "float32") @ _numbers((4, 2), "float32"), tolerance):
                wrong(f"x @ y in {name}: {line}")


def _check_uploads(case: _Case) -> None:
    hint = "stage gives bytes to fill, start sends them into new memory, wait before they are read, close at the end"
    with case.checks("upload", hint) as wrong:
        upload = case.backend.upload(0)
        sent = []
        for fill, size in ((1, 100), (2, 40), (3, 200)):
            staged = upload.stage(size)
            if not isinstance(staged, np.ndarray) or staged.dtype != np.uint8 or staged.shape != (size,):
                wrong(f"expected stage({size}) to give uint8[{size}] of NumPy, got {describe(staged)}")
            staged[...] = fill
            sent.append((upload.start(), np.full(size, fill, np.uint8)))
            upload.wait()
        for there, expected in sent:
            for line in case.differences(there, expected, "exact"):
                wrong(f"uploaded bytes, after others were sent: {line}")
        upload.close()


def _check_memory(case: _Case) -> None:
    with case.checks("memory", "culux.backends.Memory of bytes, None where they are not known") as wrong:
        memory = case.backend.memory(0)
        numbers = (memory.used, memory.held, memory.total)
        if not isinstance(memory, Memory) or any(n is not None and n < 0 for n in numbers):
            wrong(f"expected a Memory of numbers from 0, got {memory!r}")
    hint = "note gets the bytes of each allocation while the context is open, and none after"
    with case.checks("allocations", hint) as wrong:
        noted: list[int] = []
        with case.backend.allocations(noted.append):
            case.backend.empty(case.array(1), (1000,), "float32")
        count = len(noted)
        case.backend.empty(case.array(1), (1000,), "float32")
        if len(noted) != count:
            wrong(f"expected no note after the context, got {len(noted) - count}")
        if noted and max(noted) < 4000:
            wrong(f"expected a note of 4000 bytes or more for 1000 floats, got {noted}")


def _check_kernels(case: _Case) -> None:
    backend = case.backend
    with case.checks("kernels", "compile, launch, shared_limit and timer work, or each raises a KernelError") as wrong:
        try:
            backend.shared_limit(0)
        except KernelError:
            calls: dict[str, Callable[[], Any]] = {
                "compile": lambda: backend.compile(KERNEL, "scale"),
                "launch": lambda: backend.launch(None, (1,), (1,), ()),
                "timer": lambda: backend.timer(0),
            }
            for name, call in calls.items():
                with contextlib.suppress(KernelError):
                    call()
                    wrong(f"expected a KernelError from {name}, as from shared_limit, got none")
            return
        x, y = case.array(40), backend.empty(case.array(1), (40,), "float32")
        kernel = backend.compile(KERNEL, "scale")
        args = (x, y, np.float32(3), np.int32(40))
        backend.launch(kernel, (2,), (32,), args)
        for line in case.differences(y, 3 * _numbers((40,), "float32")):
            wrong(f"launch of y = 3 x: {line}")
        backend.launch(kernel, (0,), (32,), (x, x, np.float32(3), np.int32(40)))
        for line in case.differences(x, _numbers((40,), "float32")):
            wrong(f"launch of an empty grid: {line}")
        taken = backend.timer(0).elapsed(lambda: backend.launch(kernel, (2,), (32,), args), 2)
        if taken is not None and not taken >= 0:
            wrong(f"expected microseconds from timer(0).elapsed, got {taken!r}")


def _check_computing(case: _Case) -> None:
    backend, tolerance = case.backend, case.tolerance
    with case.checks("namespace", "xp has these functions as the array API standard has them") as wrong:
        for line in namespace_problems(backend, tolerance):
            wrong(line)
    hint = "operators and indices of arrays as NumPy has them; Python numbers keep the dtype"
    with case.checks("operators", hint) as wrong:
        for line in operator_problems(backend, tolerance):
            wrong(line)
    hint = "an operator returns NotImplemented for a type that it does not know, so that a traced array takes over"
    with case.checks("traced arrays", hint) as wrong:
        for line in traced_problems(backend, tolerance):
            wrong(line)
    with case.checks("model", "see the namespace and the operators, which layers are made of") as wrong:
        for line in model_problems(backend, tolerance):
            wrong(line)
    with case.checks("optim", "see the namespace and the operators, which optimiser rules are made of") as wrong:
        if not hasattr(case.array(1).dtype, "itemsize"):
            raise LeftOut("culux.optim needs dtypes with itemsize, as NumPy's have it; p - 0.1 * g is checked in model")
        for line in optim_problems(backend, tolerance):
            wrong(line)
    with case.checks("mixed arrays", "array_types name this library's arrays alone") as wrong:
        if backend.name == "numpy":
            raise LeftOut("it is the one that others are mixed with")
        try:
            backend_of(case.array(2), np.ones(2, np.float32))
            wrong(f"expected a DeviceError for arrays of {backend.name} and numpy in one call, got none")
        except DeviceError as error:
            if backend.name not in str(error) or "numpy" not in str(error):
                wrong(f"expected the error to name {backend.name} and numpy, got {error}")
