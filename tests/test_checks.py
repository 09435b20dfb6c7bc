"""`check_layer`: every check is seen to fail by a layer with one fault, and the layers of culux pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import culux
from culux import numpy as cnp
from culux.errors import DTypeError, LayerError
from culux.testing import check_layer
from tests.checks_support import assert_named, failures
from tests.test_catalogue import LAYERS

X = np.random.default_rng(0).standard_normal((5, 3))
KEPT = []


class Good(culux.Layer):
    """``y = x w + shift``, with a count of the calls."""

    width: int = 3

    def initial_parameters(self, rng):
        return {"w": rng.standard_normal(self.width).astype(np.float32), "b": np.zeros(self.width, np.float32)}

    def initial_states(self, rng):
        return {"shift": np.ones(self.width, np.float32), "calls": 0}

    def output_shape(self, input_shape):
        return input_shape

    def value(self, x, ps, st):
        return x * ps.w + ps.b + st.shift

    def __call__(self, x, ps, st):
        return self.value(x, ps, st), st.replace(calls=st.calls + 1)


class ModeDependent(Good):
    def initial_states(self, rng):
        return {**super().initial_states(rng), "training": True}


@culux.custom_gradient
def affine(x, w, b):
    return x * w + b, lambda dy: (dy * w, cnp.sum(dy * x, axis=0), 2 * cnp.sum(dy, axis=0))


@culux.custom_gradient
def squared(x):
    return x * x, lambda dy: (dy * 2 * culux.stop_gradient(x),)


class Opaque:
    def __eq__(self, other):
        return isinstance(other, Opaque)

    def __hash__(self):
        return 1

    def __repr__(self):
        return "Opaque()"

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        raise ValueError("not me")


class Nameless:
    """Equal to itself alone."""


class Shuffled(Opaque):
    """Equal, with another hash each time."""

    __eq__, __repr__ = Opaque.__eq__, Opaque.__repr__

    def __hash__(self):
        KEPT.append(0)
        return len(KEPT)


class Printed(Opaque):
    """Equal, with another repr each time."""

    def __repr__(self):
        KEPT.append(0)
        return f"Printed({len(KEPT)})"


class Holds(Good):
    other: Any = None


def keeps_traced(self, x, ps, st):
    KEPT.append(x)
    return x * ps.w


def first_call_differs(self, x, ps, st):
    KEPT.append(0)
    return x * ps.w + (len(KEPT) == 1)


def writes(name):
    def value(self, x, ps, st):
        y, array = x * ps.w, {"x": x, "w": ps.w, "shift": st.shift}[name]
        if type(array) is np.ndarray:
            array[0] += 1
        return y

    return value


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "keeps a traced array": (
        {"value": keeps_traced}, "under a gradient", r"a traced float64 array of shape \(5, 3\) is kept by a list",
    ),
    "writes into x": (
        {"value": writes("x")}, "arguments", r"x: expected .*, got a write to 3 elements, the first at \[0, 0\]",
    ),
    "writes into ps": ({"value": writes("w")}, "arguments", r"ps.w: expected .* a write to 1 elements"),
    "writes into st": ({"value": writes("shift")}, "arguments", "st.shift: expected the layer to leave"),
    "another result": ({"value": first_call_differs}, "same again", r"y\[.*\]: expected .*, got .*the second call"),
    "other keys": ({"__call__": lambda self, x, ps, st: (x, {"calls": 1})}, "call", "entries shift, calls, got calls"),
    "no pair": ({"__call__": lambda self, x, ps, st: x}, "call", r"expected __call__ to return \(y, st\)"),
    "another structure": (
        {"__call__": lambda self, x, ps, st: (x, st.replace(shift=(st.shift,)))},
        "call", r"same containers, shift, calls, got shift.0, calls",
    ),
    "a wider state": (
        {"__call__": lambda self, x, ps, st: (x, st.replace(shift=st.shift.astype("float64")))},
        "call", "st.shift: expected float32 as it came, got float64 array",
    ),
    "a state of another kind": (
        {"__call__": lambda self, x, ps, st: (x, st.replace(calls=st.calls + 1.0))},
        "call", "st.calls: expected int as it came, got float 1.0",
    ),
    "raises": (
        {"value": lambda self, x, ps, st: {}["here"]}, "call", r"KeyError: 'here' \(.*test_checks.py:\d+\); a layer",
    ),
    "lies about its shape": (
        {"output_shape": lambda self, shape: (*shape, 1)}, "output_shape", r"expected \(5, 3\), .*, got \(5, 3, 1\)",
    ),
    "upcasts": (
        {"value": lambda self, x, ps, st: x * ps.w * np.full(3, 0.5)}, "dtypes",
        "y: expected float16 for x and ps of float16, got float64",
    ),
    "parameters in float64": (
        {"initial_parameters": lambda self, rng: {"w": np.ones(3), "b": np.zeros(3, "f")}},
        "dtype of setup", "ps.w: expected float32, got float64",
    ),
    "numbers of its own": (
        {"initial_parameters": lambda self, rng: {"w": np.random.default_rng().random(3, "f"), "b": np.zeros(3, "f")}},
        "setup", "ps.w: expected the same numbers",
    ),
    "entries of its own": (
        {"initial_states": lambda self, rng: {f"calls_{len(KEPT)}": KEPT.append(0)}},
        "setup", "expected the same entries",
    ),
    "a wrong gradient": (
        {"value": lambda self, x, ps, st: affine(x, ps.w, ps.b)}, "gradient",
        r"ps.b\[\d\]: expected (\S+) by central differences, got",
    ),
    "a lost gradient": (
        {"value": lambda self, x, ps, st: x + culux.stop_gradient(ps.w) + ps.b}, "gradient", r"ps.w\[\d\]: .*, got 0; ",
    ),
    "a wrong second derivative": ({"value": lambda self, x, ps, st: squared(x) * ps.w}, "second order", r"x\[\d, \d\]"),
    "another value under a trace": (
        {"value": lambda self, x, ps, st: x * ps.w + 0.1 * hasattr(x, "__culux_value__")},
        "under a gradient", r"y\[.*traced against plain",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_kept():
    KEPT.clear()
    yield
    KEPT.clear()


@pytest.mark.parametrize(("overrides", "check", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named(overrides, check, message):
    assert_named(failures(check_layer, type("Faulty", (Good,), overrides)(), X), check, message)


def test_a_fault_of_one_mode_is_named():
    class Faulty(ModeDependent):
        def value(self, x, ps, st):
            y = super().value(x, ps, st)
            return y if st.training else y.astype("float64")

    found = failures(check_layer, Faulty(), X)
    assert_named(found, "dtypes in test mode", "y: expected float32 for x and ps of float32, got float64")


def test_all_faults_are_listed():
    class Faulty(Good):
        def output_shape(self, input_shape):
            return 7

        def value(self, x, ps, st):
            return affine(x, ps.w, ps.b) * np.ones(3)

    assert list(failures(check_layer, Faulty(), X)) == ["output_shape", "dtypes", "gradient"]


def test_a_layer_that_numpy_takes_out_of_the_trace():
    faulty = type("Faulty", (Good,), {"value": lambda self, x, ps, st: x * np.asarray(ps.w)})()
    found = failures(check_layer, faulty, X)
    assert list(found) == ["under a gradient", "dtypes", "gradient", "second order"]
    assert all("cannot become a NumPy array" in line for lines in found.values() for line in lines)


def test_layers_are_values():
    assert_named(failures(check_layer, Holds(other=Opaque()), X), "pickles", "ValueError: not me")
    found = failures(check_layer, Holds(other=Nameless()), X)
    assert "expected the layer of copy.deepcopy to equal the first" in found["is a value"][0]
    found = failures(check_layer, Holds(other=Shuffled()), X)
    assert "expected the layer of copy.copy to have the same hash, got" in found["is a value"][0]
    found = failures(check_layer, Holds(other=Printed()), X)
    assert "expected the layer of copy.copy to have the repr Holds(other=Printed(" in found["is a value"][0]
    found = failures(check_layer, Holds(other={1}), X)
    assert "TypeError: unhashable type: 'set'; a layer compares, hashes" in found["is a value"][0]


def test_a_reference():
    def right(x, ps, st):
        assert x.dtype == ps.w.dtype == np.float64
        return x * ps.w + ps.b + st.shift

    report = check_layer(Good(), X, reference=right)
    assert "reference" in report.passed
    found = failures(check_layer, Good(), X, reference=lambda x, ps, st: (x, x))
    assert_named(found, "reference", r"expected 2 arrays, got 1 \(in float16\)")
    found = failures(check_layer, Good(), X, reference=lambda x, ps, st: x[:2])
    assert_named(found, "reference", r"y: expected shape \(2, 3\), got \(5, 3\)")
    found = failures(check_layer, Good(), X, reference=lambda x, ps, st: right(x, ps, st) + 1e-3 * (x == X[2, 1]))
    assert_named(found, "reference", r"y\[2, 1\]: expected .*; 1 of 15 elements are not equal .* \(in float64\)")


def test_what_is_left_out_is_said():
    class Silent(Good):
        output_shape = culux.Layer.output_shape

    assert dict(check_layer(Silent(), X).left_out) == {
        "pickles": dict(check_layer(Silent(), X).left_out)["pickles"],
        "output_shape": "in Silent(): Silent() does not say its output shape; define output_shape(self, input_shape)",
        "other devices": "there is no GPU",
    }
    report = check_layer(culux.Dense(3, 2), X, second_order=False, dtypes=("float32", "float64"))
    assert ("second order", "second_order=False") in report.left_out
    assert ("gradient", "gradients=False") in check_layer(culux.Dense(3, 2), X, gradients=False).left_out
    report = check_layer(culux.Dense(3, 2), X, dtypes=("float32",))
    assert "float64, in which central differences are taken, is not among dtypes" in dict(report.left_out)["gradient"]
    assert ("dtypes", "neither x nor ps holds floats") in check_layer(culux.NoOpLayer(), np.arange(3)).left_out
    assert "check_layer(Good()): passed\n  is a value" in str(check_layer(Good(), X))


def test_integers_and_tuples_are_inputs():
    assert "gradient" in check_layer(culux.Embedding(7, 3), np.array([1, 5, 5])).passed
    assert "gradient" in check_layer(culux.Bilinear((3, 2), 4), (X, X[:, :2])).passed


@pytest.mark.parametrize("case", [case for case in LAYERS if not case.test_mode], ids=str)
def test_the_layers_of_culux_pass(case):
    inputs = [make(np.random.default_rng(0)) for make in case.inputs]
    factor = max(case.tolerance, case.gradient_tolerance)
    check_layer(
        case.layer, inputs[0] if len(inputs) == 1 else tuple(inputs),
        gradients=case.smooth, second_order=False, dtypes=case.dtypes, tolerance=factor,
    )  # fmt: skip


def test_other_devices_are_compared(standin_cupy):
    report = check_layer(Good(), X)
    assert "on cuda:0" in report.passed

    def on_the_host(self, x, ps, st):
        return culux.to_numpy(culux.stop_gradient(Good.value(self, x, ps, st)))

    found = failures(check_layer, type("Faulty", (Good,), {"value": on_the_host})(), X, gradients=False)
    assert_named(found, "on cuda:0", "y: expected an array on cuda:0, got one on cpu")

    def other_there(self, x, ps, st):
        return Good.value(self, x, ps, st) + (culux.array_namespace(culux.stop_gradient(x)) is standin_cupy)

    found = failures(check_layer, type("Faulty", (Good,), {"value": other_there})(), X)
    assert_named(found, "on cuda:0", r"Faulty\(\): y\[.*\] is .* on cpu and .* on cuda:0")
    assert ("other devices", "there is no GPU") in check_layer(Good(), X, devices=()).left_out


def test_what_is_no_layer_or_dtype():
    with pytest.raises(LayerError, match=r"expected a layer, got _LayerMeta .*; check_layer\(Dense\(3, 4\), x\)"):
        check_layer(Good, X)
    with pytest.raises(DTypeError, match="expected the float dtypes that are taken and kept, got none"):
        check_layer(Good(), X, dtypes=())
