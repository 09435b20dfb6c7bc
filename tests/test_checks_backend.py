"""`check_backend`: every check is seen to fail by a backend with one fault, and those of culux pass."""

from __future__ import annotations

import contextlib
import types

import array_api_strict
import numpy as np
import pytest

from culux import tree
from culux.autodiff import Tracer
from culux.backends import Memory, Place, backend_of, get_backend, installed
from culux.backends.numpy_backend import HostUpload, NumpyBackend
from culux.errors import DeviceError, DTypeError
from culux.testing import check_backend, checks_namespace
from tests.checks_support import assert_named, failures
from tests.strict_backend import StrictBackend
from tests.support import requires


def narrow(self, array, index):
    moved = NumpyBackend().from_host(array, index)
    return moved.astype(np.float32) if array.dtype == np.float64 else moved


def untouched(self, array, index):
    return array


class OneBuffer(HostUpload):
    """Overwrites what was sent before."""

    buffer = np.empty(1000, np.uint8)

    def stage(self, nbytes):
        self._staged = self.buffer[:nbytes]
        return self._staged


class Signed(HostUpload):
    """Stages signed bytes."""

    def stage(self, nbytes):
        self._staged = np.empty(nbytes, np.int8)
        return self._staged


class Telling(NumpyBackend):
    """Goes on to tell of allocations after the context."""

    note = None

    def allocations(self, note):
        self.note = note
        return contextlib.nullcontext()

    def empty(self, like, shape, dtype):
        if self.note:
            self.note(10000)
        return super().empty(like, shape, dtype)


def no_uint64(self, array, index):
    if array.dtype == np.uint64:
        raise DTypeError("no uint64 here")
    return NumpyBackend().from_host(array, index)


def told_late(self, note):
    note(4)
    return contextlib.nullcontext()


def namespace_without(*names, **others):
    kept = {name: getattr(np, name) for name in dir(np) if name not in names}
    return types.SimpleNamespace(**{**kept, **others})


def only_float32(self, name):
    return {"float32": contextlib.nullcontext()}[name]


FAULTS = {
    "integers for floats": (
        {"is_float": lambda self, x: True},
        "arrays",
        "expected is_float to be False for bool, got True",
    ),
    "other numbers": (
        {"from_host": narrow},
        "transfers",
        r"float64 of shape \(4, 6\) .*: expected float64, got float32",
    ),
    "a list": ({"to_host": lambda self, x: x.view(np.memmap)}, "transfers", "expected to_host to give a numpy.ndarray"),
    "a copy that moves": (
        {"move": lambda self, x, i: x.copy() if not i else NumpyBackend().move(x, i)},
        "places",
        "expected move to device 0, .*copy",
    ),
    "any index": (
        {"move": untouched, "from_host": untouched},
        "places",
        "expected a DeviceError from move for index 1 of 1",
    ),
    "a copy in the same dtype": (
        {"astype": lambda self, x, dtype: x.astype(dtype)},
        "astype",
        r"expected astype\(x, 'float32'\) of a float32 array",
    ),
    "one dtype": (
        {"empty": lambda self, like, shape, dtype: np.empty(shape, np.float32)},
        "empty",
        "expected .*int32.*, got .*float32",
    ),
    "other order": (
        {"contiguous": lambda self, x: np.ascontiguousarray(x[::-1])},
        "contiguous",
        r"of x\[::2, ::-1\]: \[0, 5\]: expected 1, got 13",
    ),
    "wrong where there is nothing to do": (
        {"contiguous": lambda self, x: np.ascontiguousarray(x) + x.flags.c_contiguous},
        "contiguous",
        r"of a contiguous array: \[0, 0\]: expected 1, got 2",
    ),
    "a list for an array": (
        {"contiguous": lambda self, x: x.tolist()},
        "contiguous",
        "expected an array of the backend, got list",
    ),
    "a dtype too few": ({"from_host": no_uint64}, "transfers", "expected arrays of uint64, got no uint64 here"),
    "one dtype of all": (
        {"astype": lambda self, x, dtype: x if x.dtype == np.dtype(dtype) else x.astype("float64")},
        "astype",
        r"astype\(x, 'int32'\): expected int32, got float64",
    ),
    "no out": (
        {"xp": namespace_without(add=lambda x, y, out=None: x + y)},
        "writes in place",
        r"after x\[...\] = value and add.*: \[1, 2\]: expected 24, got 12",
    ),
    "signed bytes": (
        {"upload": lambda self, index: Signed()},
        "upload",
        r"expected stage\(100\) to give uint8\[100\] of NumPy, got int8 array",
    ),
    "no stream": (
        {"stream": lambda self, index: None},
        "streams",
        "TypeError: 'NoneType' object does not support the context",
    ),
    "one precision": ({"matmul_precision": only_float32}, "matmul precision", "KeyError: 'tf32'"),
    "one buffer": (
        {"upload": lambda self, index: OneBuffer()},
        "upload",
        r"uploaded bytes, .*: \[0\]: expected 1, got 3",
    ),
    "no memory": (
        {"memory": lambda self, index: Memory(used=-1)},
        "memory",
        r"expected a Memory of numbers from 0, got .*-1",
    ),
    "other bytes": ({"allocations": told_late}, "allocations", r"expected a note of 4000 bytes or more .*, got \[4\]"),
    "any kernel": (
        {"compile": lambda self, source, name, options=(): None},
        "kernels",
        "expected a KernelError from compile, as from shared",
    ),
    "a function too few": (
        {"xp": namespace_without("log1p", "stack")},
        "namespace",
        "^expected xp.log1p, xp.stack, got no such functions",
    ),
    "a wrong function": ({"xp": namespace_without(sign=np.abs)}, "namespace", r"^xp.sign: \[\d, \d\]: expected 1, got"),
    "a function that raises": (
        {"xp": namespace_without(log10=lambda x: 1 / 0)},
        "namespace",
        r"xp.log10: expected float32 array of shape \(3, 4\), got ZeroDivisionError",
    ),
    "a function with a list": (
        {"xp": namespace_without(log10=lambda x: x.tolist())},
        "namespace",
        "xp.log10: expected an array of the backend, got list",
    ),
    "a wider function": (
        {"xp": namespace_without(log2=lambda x: np.log2(x, dtype=np.float64))},
        "namespace",
        "xp.log2: expected float32, got float64",
    ),
}


@pytest.mark.parametrize(("overrides", "check", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named(overrides, check, message):
    assert_named(failures(check_backend, type("Faulty", (NumpyBackend,), overrides)()), check, message)


def test_the_wrong_place_is_named():
    faulty = type("Faulty", (NumpyBackend,), {"place_of": lambda self, x: Place("cpu", 1)})
    assert "expected place_of Place(kind='cpu', index=0), got" in failures(check_backend, faulty())["places"][0]


def test_telling_for_ever_is_named():
    assert_named(failures(check_backend, Telling()), "allocations", "expected no note after the context, got 1")


def test_arrays_of_another_backend_are_named():
    other = {"name": "other", "xp": namespace_without()}
    found = failures(check_backend, type("Faulty", (NumpyBackend,), other)())["arrays"]
    assert found[0] == "expected the registry to find other for its array, got numpy"
    assert found[1].startswith("expected array_namespace to give xp for its array, got another namespace")
    flat = {"from_host": lambda self, x, index: NumpyBackend().from_host(x, index).reshape(-1)}
    found = failures(check_backend, type("Faulty", (NumpyBackend,), flat)())["arrays"]
    assert found[0].startswith("expected shape (2, 3), ndim 2, size 6, got (6,), 1, 6")
    lists = {"from_host": lambda self, x, index: x.tolist()}
    found = failures(check_backend, type("Faulty", (NumpyBackend,), lists)())["arrays"]
    assert "expected from_host to give one of array_types (<class 'numpy.ndarray'>,), got list" in found[0]


def never_empty(self, kernel, grid, block, args, shared=0):
    type(self).__mro__[1].launch(self, kernel, tuple(max(n, 2) for n in grid), block, args, shared)


KERNELS = {
    "an empty grid": ("launch", never_empty, "launch of an empty grid: "),
    "launch": ("launch", lambda self, *args, **kwargs: None, "launch of y = 3 x: "),
    "timer": (
        "timer",
        lambda self, index: types.SimpleNamespace(elapsed=lambda run, repeats: -1.0),
        "expected microseconds",
    ),
}


@pytest.mark.parametrize(("name", "member", "message"), KERNELS.values(), ids=KERNELS)
def test_a_fault_of_kernels_is_named(standin_cupy, name, member, message):
    requires("compiler")
    faulty = type("Faulty", (type(get_backend("cupy")),), {name: member})
    assert any(message in line for line in failures(check_backend, faulty())["kernels"])


def test_missing_members_are_all_named():
    members = {name: member for name, member in vars(StrictBackend).items() if name not in ("timer", "kind")}
    members["stream"], members["has_streams"] = None, 1
    found = failures(check_backend, type("Faulty", (), members)())
    assert list(found) == ["members"]
    assert found["members"] == [
        "expected kind, got no such member",
        "expected stream to be a method, got NoneType None",
        "expected timer(), got no such member",
        "expected has_streams to be True or False, got int 1; see culux.backends.Backend for what each is",
    ]


def test_claims_are_taken_at_their_word():
    class Claims(StrictBackend):
        writes_in_place = True

    found = failures(check_backend, Claims())
    assert list(found) == ["writes in place", "traced arrays"]
    assert "set writes_in_place = False" in found["writes in place"][-1]
    none = type("None_", (NumpyBackend,), {"device_count": lambda self: 0})
    assert_named(failures(check_backend, none()), "devices", r"expected a device to check on, got device_count\(\) = 0")


def test_a_backend_from_outside():
    """array_api_strict keeps all but one promise: its operators refuse types that they do not know."""
    found = failures(check_backend, StrictBackend())
    assert_named(
        found, "traced arrays", r"x \+ y with y traced: .*got TypeError..Expected Array or Python scalar; got .*Tracer"
    )
    assert len(found["traced arrays"]) == 5
    assert "array_api_strict" not in installed()
    with pytest.raises(DeviceError, match="no backend 'array_api_strict'"):
        get_backend("array_api_strict")


def test_a_backend_whose_operators_leave_others_to_themselves(monkeypatch):
    def deferring(operator):
        return lambda self, other: NotImplemented if isinstance(other, Tracer) else operator(self, other)

    array = type(array_api_strict.zeros(1))
    for name in ("__add__", "__sub__", "__mul__", "__truediv__", "__matmul__"):
        monkeypatch.setattr(array, name, deferring(getattr(array, name)))
    report = check_backend(StrictBackend())
    assert [name for name, _ in report.left_out] == ["writes in place", "optim"]
    assert "mixed arrays" in report.passed


def test_wrong_operators_are_named(monkeypatch):
    array = type(array_api_strict.zeros(1))
    subtract = array.__sub__
    with monkeypatch.context() as patch:
        patch.setattr(array, "__sub__", lambda self, other: subtract(self, other) * 2.0)
        found = failures(check_backend, StrictBackend())
        assert any(line.startswith("x - y: [") for line in found["operators"])
        assert any(line.startswith("step.layer_1.") for line in found["model"])
    monkeypatch.setattr(array, "__add__", lambda self, other: other)
    found = failures(check_backend, StrictBackend())
    assert any(line.startswith("x + y with y traced: 0: expected ") for line in found["traced arrays"])


def test_wrong_updates_are_named(monkeypatch):
    update, calls = checks_namespace.optim_update, []

    def twice_as_far(state, ps, grads):
        calls.append(0)
        state, ps = update(state, ps, grads)
        return state, tree.map(lambda p: p * (2 if len(calls) > 3 else 1), ps)  # three steps are NumPy's own

    monkeypatch.setattr(checks_namespace, "optim_update", twice_as_far)
    assert_named(failures(check_backend, "numpy"), "optim", r"layer_1.weight\[\d, \d\]: expected .*, got")


def test_mixed_arrays_must_be_refused(monkeypatch):
    def answers(answer):
        def asked(*values):
            return answer(values) if any(type(value) is np.ndarray for value in values) else backend_of(*values)

        monkeypatch.setattr("culux.testing.checks_backend.backend_of", asked)
        return failures(check_backend, StrictBackend())["mixed arrays"][0]

    def refuses(values):
        raise DeviceError("no")

    assert "expected a DeviceError for arrays of array_api_strict and numpy in one call" in answers(lambda values: None)
    assert "expected the error to name array_api_strict and numpy, got no" in answers(refuses)


def test_moves_between_devices_are_compared(standin_cupy):
    standin_cupy.set_device_count(2)
    kind = type(get_backend("cupy"))
    stays = type("Faulty", (kind,), {"move": lambda self, x, index: x})
    found = failures(check_backend, stays())["places"]
    assert found[0] == "expected move to device 1, got cuda:0"

    def moves(self, x, i):
        return x if self.place_of(x).index == i else kind.move(self, x * 0, i)

    loses = type("Faulty", (kind,), {"move": moves})
    assert failures(check_backend, loses())["places"][0].startswith("moved from device 0: [2]: expected 3, got 0")


def test_the_backends_of_culux_pass(standin_cupy):
    assert dict(check_backend("numpy").left_out) == {"mixed arrays": "it is the one that others are mixed with"}
    requires("compiler")
    assert check_backend("cupy").left_out == ()


def test_a_registered_backend_comes_back():
    before = get_backend("numpy")
    with contextlib.suppress(AssertionError):
        check_backend(type("Faulty", (NumpyBackend,), {"stream": None})())
    assert backend_of(np.ones(2)) is before


def test_an_unknown_name():
    with pytest.raises(DeviceError, match="no backend 'opencl' is registered; there are:"):
        check_backend("opencl")
