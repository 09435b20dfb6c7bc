"""`check_primitive`: every check is seen to fail by a primitive with one fault, and those of culux pass."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import numpy as cnp
from culux.errors import DifferentiationError, DTypeError
from culux.testing import check_primitive
from tests.checks_support import assert_named, failures
from tests.test_catalogue import CASES

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((2, 3)), RNG.standard_normal((2, 3))
KEPT = []


@pytest.fixture(autouse=True)
def _nothing_kept():
    KEPT.clear()
    yield
    KEPT.clear()


def product(needs, x, y):
    """The right rule of ``x y``."""
    return x * y, lambda dz: (dz * y if needs[0] else None, dz * x if needs[1] else None)


def primitive_with(rule, body=lambda x, y: x * y):
    def times(x, y):
        return body(x, y)

    times = culux.primitive(times)
    times.rule(rule)
    return times


def rule_with(pullback):
    """The rule of ``x y`` with another pullback, ``pullback(dz, needs, x, y)``."""
    return lambda needs, x, y: (x * y, lambda dz: pullback(dz, needs, x, y))


def once(needs, x, y):
    saved = [x, y]
    return x * y, lambda dz: (dz * saved.pop() if needs[0] else None, dz * saved.pop(0) if needs[1] else None)


def writes_cotangent(dz, needs, x, y):
    found = product(needs, x, y)[1](dz)
    if type(dz) is np.ndarray:
        dz *= 2
    return found


def writes_value(needs, x, y):
    z = x * y

    def pullback(dz):
        if type(z) is np.ndarray:
            z[...] = 0
        return product(needs, x, y)[1](dz)

    return z, pullback


def adds(dz, needs, x, y):
    return tuple(None if c is None else c + 1e-7 for c in product(needs, x, y)[1](dz))


def wide(dz, needs, x, y):
    return tuple(None if c is None else c * np.ones(3) for c in product(needs, x, y)[1](dz))


FAULTS = {
    "a wrong second argument": (
        rule_with(lambda dz, needs, x, y: (dz * y if needs[0] else None, dz * x * 1.01 if needs[1] else None)),
        "gradient", r"^y\[\d, \d\]: expected .* by central differences, got .*; 6 of 6",
    ),
    "ignores needs": (
        rule_with(lambda dz, needs, x, y: (dz * y, dz * x if needs[1] else None)),
        "needs", r"needs=\(False, True\): expected None for x, whose cotangent is not wanted, got float64 array",
    ),
    "wrong where all are wanted": (
        rule_with(lambda dz, needs, x, y: product(needs, x, y)[1](dz * 2 if all(needs) else dz)),
        "gradient of all", r"x\[\d, \d\]: expected .*, got .*all arguments together against each alone",
    ),
    "called once only": (once, "pullback", "IndexError: pop from empty list"),
    "writes into the cotangent": (rule_with(writes_cotangent), "pullback", "expected the cotangent to stay as it was"),
    "writes into its value": (writes_value, "pullback", "expected the value to stay as it was, got a write to it"),
    "adds to the cotangent": (rule_with(adds), "pullback", r"2 dy \+ dz, 0\[\d, \d\]"),
    "a wide cotangent": (rule_with(wide), "dtypes", "the cotangent of x: expected float16 for .*, got float64"),
    "another value": (
        lambda needs, x, y: (x * y + 0.1, product(needs, x, y)[1]),
        "under a trace", r"expected .*, got .*\(with x traced\)",
    ),
    "a wrong second derivative": (
        rule_with(lambda dz, needs, x, y: product(needs, *map(culux.stop_gradient, (x, y)))[1](dz)),
        "second order", "by central differences, got 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "check", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_a_rule_is_named(rule, check, message):
    found = failures(check_primitive, primitive_with(rule), X, Y)
    if check in ("gradient", "pullback", "needs"):
        found = {
            name: lines for name, lines in found.items() if name != "second order"
        }  # goes through the same pullback
    assert_named(found, check, message)


def test_the_other_argument_is_not_blamed():
    found = failures(check_primitive, primitive_with(FAULTS["a wrong second argument"][0]), X, Y)
    assert len(found["gradient"]) == 1


def test_too_many_cotangents():
    rule = rule_with(lambda dz, needs, x, y: (*product(needs, x, y)[1](dz), None))
    found = failures(check_primitive, primitive_with(rule), X, Y)
    assert "expected 2 cotangents, one for each argument, got 3" in found["needs"][0]


def writes(x, y):
    z = x * y
    if type(x) is np.ndarray:
        x[0] += 1
    return z


def first_differs(x, y):
    KEPT.append(0)
    return x * y + (len(KEPT) == 1)


def keeps_traced(x, y):
    KEPT.append(x)
    return x * y


BODIES = {
    "another result": (first_differs, "same again", r"\[\d, \d\]: expected .*, got"),
    "raises": (
        lambda x, y: {}["here"],
        "call",
        r"KeyError: 'here' \(.*test_checks_primitive.py:\d+\); the function must",
    ),
    "keeps a traced array": (
        keeps_traced,
        "under a trace",
        r"a traced float64 array of shape \(2, 3\) is kept by a list",
    ),
    "upcasts": (lambda x, y: x * y * np.ones(3), "dtypes", "the value: expected float16 .*, got float64"),
}


@pytest.mark.parametrize(("body", "check", "message"), BODIES.values(), ids=BODIES)
def test_a_fault_of_a_plain_function_is_named(body, check, message):
    assert_named(failures(check_primitive, body, X, Y), check, message)


def test_a_write_to_an_argument_is_named():
    found = failures(check_primitive, writes, X, Y)
    assert found["arguments"][0].startswith("expected x to stay as it was, got a write to it; compute new arrays")


def test_a_cotangent_of_another_shape():
    def summed(c):
        return None if c is None else cnp.sum(c, axis=0)

    rule = rule_with(lambda dz, needs, x, y: tuple(map(summed, product(needs, x, y)[1](dz))))
    found = failures(check_primitive, primitive_with(rule), X, Y)
    assert any(
        "expected a cotangent of shape (2, 3) for x, got float64 array of shape (3,)" in s for s in found["needs"]
    )
    assert any("x: expected a gradient of shape (2, 3), got (3,)" in line for line in found["gradient"])


def test_a_write_of_a_pullback_is_named():
    def pullback(dz, needs, x, y):
        found = product(needs, x, y)[1](dz)
        if type(x) is np.ndarray:
            x += 1
        return found

    found = failures(check_primitive, primitive_with(rule_with(pullback)), X, Y)
    assert any("expected x to stay as it was, got a write to it by the pullback" in line for line in found["pullback"])


def test_a_right_one_passes():
    report = check_primitive(primitive_with(product), X, Y, reference=np.multiply)
    assert report.left_out == ()
    assert set(report.passed) == {
        "call", "arguments", "same again", "reference", "under a trace", "gradient", "gradient of all", "second order",
        "pullback", "needs", "dtypes",
    }  # fmt: skip
    found = failures(check_primitive, primitive_with(product), X, Y, reference=lambda x, y: x * y + 1e-4)
    assert_named(found, "reference", r"expected .*; 6 of 6 elements .* \(in float64\)")


def test_a_custom_gradient():
    @culux.custom_gradient
    def clipped(x, *, by):
        return x * by, lambda dy: (dy * by,)

    assert "needs" in check_primitive(clipped, X, by=3.0).passed

    @culux.custom_gradient
    def wrong(x, y):
        return x * y, lambda dz: (dz * y, -dz * x)

    found = failures(check_primitive, wrong, X, Y, second_order=False)
    assert_named(found, "gradient", r"^y\[\d, \d\]")


def test_several_results_are_asked_for_alone():
    @culux.primitive
    def parts(x):
        return x * 2, x * x

    @parts.rule
    def _(needs, x):
        def pullback(dy):
            return (sum(d * k for d, k in zip(dy, (2, 2 * x), strict=True) if d is not None),)

        return parts(x), pullback

    check_primitive(parts, X)
    parts.rule(lambda needs, x: (parts(x), lambda dy: (dy[0] * 2 + dy[1] * 2 * x,)))
    assert "TypeError: unsupported operand" in failures(check_primitive, parts, X)["gradient"][0]

    def wrong_alone(dy):
        return (sum(d * k for d, k in zip(dy, (2, 2 if dy[0] is None else 2 * X), strict=True) if d is not None),)

    parts.rule(lambda needs, x: (parts(x), wrong_alone))
    found = failures(check_primitive, parts, X, dtypes=("float64",), second_order=False)
    assert_named(found, "gradient", r"^output 2 alone, x\[\d, \d\]: expected .* by central differences, got")


def test_what_is_left_out_is_said():
    left_out = dict(check_primitive(lambda x: x * x, X).left_out)
    assert left_out == {
        "gradient of all": "one argument is differentiated",
        "needs": "it is differentiated through its body: no primitive, or one without a rule",
    }
    left_out = dict(check_primitive(lambda i: i + 1, np.arange(3)).left_out)
    assert left_out["gradient"] == left_out["under a trace"] == left_out["dtypes"] == "no argument is a float array"
    left_out = dict(check_primitive(cnp.exp, X, second_order=False, dtypes=("float32",)).left_out)
    assert "float64, which is not among dtypes" in left_out["gradient"]
    assert ("second order", "second_order=False") in check_primitive(cnp.exp, X, second_order=False).left_out


def with_implementation(function):
    times = primitive_with(product)
    times.implementation("cupy")(function)
    return times


IMPLEMENTATIONS = {
    "wrong": (lambda x, y: x * y * 1.001, r"value: \[\d, \d\]: expected .*, got .* \(in float32\)"),
    "wrong where strided": (
        lambda x, y: x * y + (not x.flags.c_contiguous), r"value of strided arrays: \[\d, \d\]: expected",
    ),
    "on the host": (lambda x, y: x.get() * y.get(), "value: expected an array of cupy, got float16 array"),
    "writes": (lambda x, y: x.__imul__(y), "expected x to stay as it was, got a write to it by the implementation"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "message"), IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def test_a_fault_of_an_implementation_is_named(standin_cupy, function, message):
    assert_named(failures(check_primitive, with_implementation(function), X, Y), "implementation for cupy", message)


def test_a_rule_that_is_wrong_elsewhere_is_named(standin_cupy):
    times = with_implementation(lambda x, y: y * x)

    def factor(dz):
        return 2 if type(dz) is standin_cupy.ndarray else 1

    times.rule(rule_with(lambda dz, needs, x, y: product(needs, x, y)[1](factor(dz) * dz)))
    found = failures(check_primitive, times, X, Y, second_order=False)
    assert_named(found, "implementation for cupy", r"gradient: x\[\d, \d\]: expected .* \(in float16\)")


def test_implementations_are_compared(standin_cupy):
    report = check_primitive(with_implementation(lambda x, y: y * x), X, Y)
    assert "implementation for cupy" in report.passed
    times = primitive_with(product)
    times.implementation("opencl")(lambda x, y: x)
    left_out = dict(check_primitive(times, X, Y).left_out)
    assert "no backend 'opencl' is registered" in left_out["implementation for opencl"]


PRIMITIVES = [case for case in CASES if hasattr(case.call, "operation") and case.positions() and case.smooth]


@pytest.mark.parametrize("case", PRIMITIVES, ids=str)
def test_the_primitives_of_culux_pass(case):
    dtypes, factor = case.dtypes if case.keeps_dtype else ("float64",), max(case.tolerance, case.gradient_tolerance)
    check_primitive(
        case.call, *case.arrays(), reference=case.reference, second_order=False, dtypes=dtypes, tolerance=factor
    )


def test_the_primitives_are_many():
    assert len(PRIMITIVES) > 30


def test_what_is_no_function_or_dtype():
    with pytest.raises(
        DifferentiationError, match=r"expected a function, got float64 array .*check_primitive\(f, x, y"
    ):
        check_primitive(X, Y)
    with pytest.raises(DTypeError, match="expected the float dtypes that are taken and kept, got none"):
        check_primitive(cnp.exp, X, dtypes=())
