"""Primitives with their rules and implementations, and `custom_gradient` with its checks."""

from __future__ import annotations

import numpy as np
import pytest

import culux
import culux.numpy as cnp
from culux.errors import DeviceError, DifferentiationError
from tests.standin_cupy.fixture import standin_cupy  # noqa: F401 (a fixture)

X = np.random.default_rng(0).standard_normal((3, 4))


def test_a_primitive_with_several_results():
    @culux.primitive
    def parts(x):
        return x * 2, x + 1, x * x

    @parts.rule
    def _(needs, x):
        seen.append(needs)

        def pullback(dy):
            seen.append([None if d is None else "given" for d in dy])
            return (sum(d * k for d, k in zip(dy, (2, 1, 2 * x), strict=True) if d is not None),)

        return parts(x), pullback

    seen = []
    y = parts(X)
    assert type(y) is tuple
    np.testing.assert_array_equal(culux.gradient(lambda x: parts(x)[0].sum() + parts(x)[2].sum(), X), 2 + 2 * X)
    assert ["given", None, None] in seen
    assert [None, None, "given"] in seen
    np.testing.assert_array_equal(culux.gradient(lambda x: sum(p.sum() for p in parts(x)), X), 3 + 2 * X)
    np.testing.assert_array_equal(
        culux.gradient(lambda x: culux.gradient(lambda z: parts(z)[2].sum(), x).sum(), X), np.full_like(X, 2)
    )


def test_a_rule_is_told_what_is_wanted():
    seen = []

    @culux.primitive
    def scaled(x, y, z, *, by):
        return x * y * z * by

    @scaled.rule
    def _(needs, x, y, z, *, by):
        seen.append(needs)
        return scaled(x, y, z, by=by), lambda dw: (dw * y * z * by, dw * x * z * by if needs[1] else None, None)

    np.testing.assert_array_equal(culux.gradient(lambda x: scaled(x, X, 2.0, by=3).sum(), X), 6 * X)
    culux.gradient(lambda x, y: scaled(x, y, 2.0, by=3).sum(), X, X)
    assert seen == [(True, False, False), (True, True, False)]


def test_a_cotangent_of_none_leaves_others_alone():
    @culux.primitive
    def constant(x):
        return x * 0

    constant.rule(lambda needs, x: (constant(x), lambda dy: (None,)))
    for f in (lambda x: constant(x).sum() + (2 * x).sum(), lambda x: (2 * x).sum() + constant(x).sum()):
        np.testing.assert_array_equal(culux.gradient(f, X), np.full_like(X, 2))


def test_a_primitive_without_a_rule_goes_through_its_body():
    @culux.primitive
    def cubed(x):
        return x * x * x

    np.testing.assert_allclose(culux.gradient(lambda x: cubed(x).sum(), X), 3 * X * X)
    np.testing.assert_allclose(culux.gradient(lambda x: culux.gradient(lambda z: cubed(z).sum(), x).sum(), X), 6 * X)


def test_a_primitive_that_is_no_composition_says_how_to_add_a_rule():
    @culux.primitive
    def opaque(x):
        return opaque(x)

    with pytest.raises(DifferentiationError, match=r"opaque has no rule.*@opaque.rule.*custom_gradient.*stop_gradient"):
        culux.gradient(lambda x: opaque(x).sum(), X)


def test_a_composite_primitive_sees_plain_arrays_only():
    kinds = []

    @culux.primitive(composite=True)
    def gated(x, y):
        return cnp.tanh(x) * y

    @gated.rule
    def _(needs, x, y):
        kinds.append((type(x), type(y)))
        t = np.tanh(x)
        return t * y, lambda dz: (dz * (1 - t * t) * y, dz * t)

    first = culux.gradient(lambda x: gated(x, X + 1).sum(), X)
    np.testing.assert_allclose(first, (1 - np.tanh(X) ** 2) * (X + 1))
    second = culux.gradient(lambda x: culux.gradient(lambda z: gated(z, X + 1).sum(), x).sum(), X)
    np.testing.assert_allclose(second, -2 * np.tanh(X) * (1 - np.tanh(X) ** 2) * (X + 1))
    assert set(kinds) == {(np.ndarray, np.ndarray)}


def test_an_implementation_for_cupy(standin_cupy):  # noqa: F811 (the fixture)
    calls = []

    @culux.primitive
    def doubled(x):
        calls.append("portable")
        return x * 2

    @doubled.implementation("cupy")
    def _(x):
        calls.append("cupy")
        return x + x

    @doubled.rule
    def _(needs, x):
        return doubled(x), lambda dy: (doubled(dy),)

    np.testing.assert_array_equal(doubled(X), 2 * X)
    device = standin_cupy.asarray(X)
    np.testing.assert_array_equal(doubled(device).get(), 2 * X)
    assert calls == ["portable", "cupy"]
    found = culux.gradient(lambda x: doubled(x).sum(), device)
    np.testing.assert_array_equal(found.get(), np.full_like(X, 2))
    assert calls == ["portable", "cupy", "cupy", "cupy"]


def test_primitives_keep_the_name_and_the_docstring():
    assert cnp.add.__name__ == "add"
    assert "x + y" in cnp.add.__doc__


def test_arrays_of_two_backends_name_the_arguments(standin_cupy):  # noqa: F811 (the fixture)
    @culux.primitive
    def product(left, right):
        return left * right

    product.rule(lambda needs, x, y: (x * y, lambda dz: (dz * y, dz * x)))
    device = standin_cupy.asarray(X)
    for call in (lambda: product(device, X), lambda: culux.gradient(lambda x: product(x, X).sum(), device)):
        with pytest.raises(DeviceError, match=r"product: .*left is on cuda:0 \(cupy\), right is on cpu \(numpy\)"):
            call()


# custom_gradient.


@culux.custom_gradient
def clipped(x, *, limit=1.0):
    """Its gradient is cut."""
    return x * x, lambda dy: np.clip(dy * 2 * x, -limit, limit)


def test_custom_gradient():
    np.testing.assert_array_equal(clipped(X), X * X)
    np.testing.assert_array_equal(culux.gradient(lambda x: clipped(x, limit=0.5).sum(), X), np.clip(2 * X, -0.5, 0.5))
    assert clipped.__name__ == "clipped"
    assert clipped.__doc__ == "Its gradient is cut."


def test_custom_gradient_of_several_arrays():
    seen = []

    @culux.custom_gradient
    def product(x, y):
        seen.append((type(x), type(y)))
        return x * y, lambda dy: (dy * y, dy * x * 10)

    dx, dy = culux.gradient(lambda x, y: product(x, y).sum(), X, X + 1)
    np.testing.assert_array_equal(dx, X + 1)
    np.testing.assert_array_equal(dy, 10 * X)
    np.testing.assert_array_equal(culux.gradient(lambda x: product(x, X).sum(), X), X)
    assert set(seen) == {(np.ndarray, np.ndarray)}


def test_second_order_of_a_custom_gradient():
    @culux.custom_gradient
    def square(x):
        return x * x, lambda dy: (dy * 2 * x,)

    found = culux.gradient(lambda x: culux.gradient(lambda z: (square(z) * z).sum(), x).sum(), X)
    np.testing.assert_allclose(found, 6 * X)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x * x, r"a custom gradient returns \(y, pullback\), got float64 array"),
        (lambda x: (x, x), r"a custom gradient returns \(y, pullback\), got tuple"),
        (lambda x: (x, lambda dy: (dy, dy)), "expected 1 cotangents from the pullback, one per array, got 2"),
        (lambda x: (x, lambda dy: ()), "expected 1 cotangents from the pullback, one per array, got 0"),
        (
            lambda x: (x, lambda dy: dy[0]),
            r"cotangent of shape \(3, 4\) and dtype float64 for array 1, got .*shape \(4,\)",
        ),
        (lambda x: (x, lambda dy: dy.astype(np.float32)), r"dtype float64 for array 1, got float32 array"),
        (lambda x: (x, lambda dy: 3.0), r"for array 1, got float 3.0"),
    ],
)
def test_custom_gradients_are_checked(function, message):
    with pytest.raises(DifferentiationError, match=message):
        culux.gradient(lambda x: culux.custom_gradient(function)(x).sum(), X)


def test_a_custom_gradient_takes_arrays_by_position():
    """By keyword they would be static, and the derivative that the user wrote would be passed over."""
    with pytest.raises(DifferentiationError, match=r"clipped: x is a traced array .*by position"):
        culux.gradient(lambda x: clipped(x=x).sum(), X)
