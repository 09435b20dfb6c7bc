"""The transforms: trees, aux, cotangents and nesting."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest

import culux
import culux.numpy as cnp
from culux.errors import DifferentiationError, ShapeError

X = np.random.default_rng(0).standard_normal((3, 4))
Point = namedtuple("Point", "x y")
pytestmark = pytest.mark.usefixtures("level_is_restored")


# What a gradient looks like.


def test_one_argument_gives_its_gradient_and_several_a_tuple():
    np.testing.assert_array_equal(culux.gradient(lambda x: (x * x).sum(), X), 2 * X)
    dx, dy = culux.gradient(lambda x, y: (x * y).sum(), X, X + 1)
    np.testing.assert_array_equal(dx, X + 1)
    np.testing.assert_array_equal(dy, X)
    value, (da, db) = culux.value_and_gradient(lambda a, b: a * b, 2.0, 3.0)
    assert (value, da, db) == (6.0, 3.0, 2.0)


def test_a_gradient_has_the_tree_of_its_argument():
    ps = {"b": [X, (X[0], None)], "a": culux.Tree(w=X), "p": Point(2.0, {"k": X[:, 0]})}
    found = culux.gradient(lambda ps: (3 * ps["b"][0]).sum() + ps["p"].x * ps["a"].w.sum() + ps["b"][1][0].sum(), ps)
    assert culux.tree.structure(found) == culux.tree.structure(ps)
    assert type(found["a"]) is culux.Tree
    assert type(found["p"]) is Point
    np.testing.assert_array_equal(found["b"][0], np.full_like(X, 3))
    np.testing.assert_array_equal(found["a"].w, np.full_like(X, 2))
    assert found["p"].x == pytest.approx(X.sum())
    assert type(found["p"].x) is float
    np.testing.assert_array_equal(found["p"].y["k"], np.zeros(3))


def test_leaves_that_cannot_be_differentiated_get_none_and_unused_ones_zeros():
    ps = culux.Tree(
        w=X, unused=X.astype(np.float32), labels=np.arange(3), flag=True, count=3, name="n", nothing=None, scalar=1.5
    )
    found = culux.gradient(lambda ps: (ps.w * ps.count).sum(), ps)
    np.testing.assert_array_equal(found.w, np.full_like(X, 3))
    np.testing.assert_array_equal(found.unused, np.zeros((3, 4)))
    assert found.unused.dtype == np.float32
    assert found.scalar == 0.0
    assert [found[name] for name in ("labels", "flag", "count", "name", "nothing")] == [None] * 5
    assert list(found) == list(ps)


def test_python_floats_and_numpy_scalars():
    assert culux.gradient(lambda a: a * a, 3.0) == 6.0
    assert type(culux.gradient(lambda a: a * a, 3.0)) is float
    assert culux.gradient(lambda a: a * a, np.float32(3)).dtype == np.float32
    assert type(culux.value_and_gradient(lambda a: a * a, 3.0)[0]) is float


def test_the_argument_itself_and_a_constant():
    assert culux.gradient(lambda a: a, 3.0) == 1.0
    np.testing.assert_array_equal(culux.gradient(lambda x: np.float64(2.0), X), np.zeros_like(X))
    assert culux.gradient(lambda x: 5, 2.0) == 0.0


@culux.functor
class Model:
    weight: np.ndarray
    bias: np.ndarray
    labels: np.ndarray

    def __call__(self, x):
        return x @ self.weight + self.bias


def test_the_gradient_of_a_functor_is_the_tree_of_what_it_trains():
    model = Model(X, X[0], np.arange(3))
    found = culux.gradient(lambda m: m(np.ones((2, 3))).sum(), model)
    assert type(found) is culux.Tree
    assert list(found) == ["weight", "bias"]
    np.testing.assert_array_equal(found.weight, np.full_like(X, 2))
    np.testing.assert_array_equal(found.bias, np.full(4, 2.0))
    assert model.weight is X


def test_aux_comes_back_plain():
    def f(x):
        return (x * x).sum(), {"y": x * 2, "n": 3, "label": "aux"}

    (value, aux), found = culux.value_and_gradient(f, X, has_aux=True)
    assert type(aux["y"]) is np.ndarray
    np.testing.assert_array_equal(aux["y"], 2 * X)
    assert value == pytest.approx((X * X).sum())
    np.testing.assert_array_equal(found, 2 * X)


def test_aux_is_plain_at_every_level():
    def outer(x):
        (_, aux), _ = culux.value_and_gradient(lambda y: ((x * y).sum(), (x, y, x * y)), X, has_aux=True)
        return (aux[2] * aux[0]).sum(), aux

    (_, aux), found = culux.value_and_gradient(outer, X + 1, has_aux=True)
    assert [type(a) for a in aux] == [np.ndarray] * 3
    np.testing.assert_allclose(found, 2 * (X + 1) * X)


def test_jaxs_forms():
    def f(x, y, *, scale):
        return (x * y * y).sum() * scale

    np.testing.assert_allclose(culux.grad(f)(X, X, scale=2.0), 2 * X * X)
    np.testing.assert_allclose(culux.grad(f, argnums=1)(X, X, scale=1.0), 2 * X * X)
    np.testing.assert_allclose(culux.grad(f, argnums=-1)(X, X, scale=1.0), 2 * X * X)
    dy, dx = culux.grad(f, argnums=(1, 0))(X, X + 1, scale=1.0)
    np.testing.assert_allclose(dx, (X + 1) ** 2)
    np.testing.assert_allclose(dy, 2 * X * (X + 1))
    value, (dx,) = culux.value_and_grad(f, argnums=[0])(X, X, scale=1.0)
    assert value == pytest.approx((X**3).sum())
    dx, aux = culux.grad(lambda x: (x.sum(), "aux"), has_aux=True)(X)
    assert aux == "aux"
    with pytest.raises(DifferentiationError, match="argnums=2 with 2 positional arguments"):
        culux.grad(f, argnums=2)(X, X, scale=1.0)


# vjp.


def test_vjp_of_a_tree():
    y, pullback = culux.vjp(lambda x, s: {"a": x * s, "b": [x[0]]}, X, 2.0)
    np.testing.assert_array_equal(y["a"], 2 * X)
    dx, ds = pullback({"a": np.ones_like(X), "b": [np.full(4, 3.0)]})
    expected = np.full_like(X, 2)
    expected[0] += 3
    np.testing.assert_array_equal(dx, expected)
    assert ds == pytest.approx(X.sum())
    assert type(ds) is float
    np.testing.assert_array_equal(pullback({"a": np.zeros_like(X), "b": [np.ones(4)]})[0][0], np.ones(4))


def test_vjp_with_aux():
    y, pullback, aux = culux.vjp(lambda x: (x * x, x + 1), X, has_aux=True)
    assert type(y) is type(aux) is np.ndarray
    np.testing.assert_array_equal(pullback(np.ones_like(X))[0], 2 * X)


def test_a_cotangent_takes_the_dtype_of_the_output():
    y, pullback = culux.vjp(lambda x: cnp.sin(x), X.astype(np.float32))
    assert y.dtype == np.float32
    assert pullback(np.ones((3, 4)))[0].dtype == np.float32
    _, pullback = culux.vjp(lambda x: cnp.sum(x), X.astype(np.float32))
    assert pullback(2.0)[0].dtype == np.float32


def test_the_pullback_checks_its_cotangent():
    _, pullback = culux.vjp(lambda x: {"a": x, "b": x[0]}, X)
    with pytest.raises(
        ShapeError, match=r"expected a cotangent of shape \(4,\) at b, got float64 array of shape \(3,\)"
    ):
        pullback({"a": X, "b": np.ones(3)})
    with pytest.raises(ShapeError, match="different entries; missing: b"):
        pullback({"a": X})


# Nesting.


def test_perturbations_are_not_confused():
    assert culux.gradient(lambda x: x * culux.gradient(lambda y: x + y, 1.0), 1.0) == 1.0
    assert culux.gradient(lambda x: culux.gradient(lambda y: x * y * y, x * 2), 3.0) == 24.0


def test_three_levels():
    def f(x):
        return x**4

    def third(a):
        return culux.gradient(lambda b: culux.gradient(lambda c: culux.gradient(f, c), b), a)

    assert third(2.0) == 48.0
    cubes = culux.gradient(lambda b: culux.gradient(lambda c: cnp.sin(c).sum(), b).sum(), X)
    np.testing.assert_allclose(cubes, -np.sin(X))


def test_gradient_through_vjp_and_vjp_of_a_gradient():
    def through(x):
        y, pullback = culux.vjp(lambda z: z**3, x)
        return (pullback(x * x)[0] * y).sum()  # 3 x^4 x^3

    np.testing.assert_allclose(culux.gradient(through, X), 21 * X**6)
    _, pullback = culux.vjp(lambda x: culux.gradient(lambda z: (z**3).sum(), x), X)
    np.testing.assert_allclose(pullback(np.ones_like(X))[0], 6 * X)


def test_a_pullback_takes_a_cotangent_of_a_later_trace():
    _, pullback = culux.vjp(lambda x: cnp.exp(x), X)
    np.testing.assert_allclose(culux.gradient(lambda dy: (pullback(dy)[0] ** 2).sum(), X), 2 * X * np.exp(2 * X))


def test_inner_functions_close_over_outer_tracers():
    def outer(x):
        return culux.gradient(lambda y: (x * y * y).sum(), X).sum() + culux.gradient(lambda y: y * x.sum(), 1.0)

    np.testing.assert_allclose(culux.gradient(outer, X + 1), 2 * X + 1)


def test_hessian_vector_products():
    v = np.random.default_rng(1).standard_normal(4)
    a = np.random.default_rng(2).standard_normal((4, 4))

    def f(x):
        return (cnp.tanh(a @ x) ** 2).sum()

    found = culux.gradient(lambda x: (culux.gradient(f, x) * v).sum(), X[0])
    step = 1e-5
    expected = (culux.gradient(f, X[0] + step * v) - culux.gradient(f, X[0] - step * v)) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_stop_gradient():
    np.testing.assert_array_equal(culux.gradient(lambda x: (culux.stop_gradient(x) * x).sum(), X), X)
    stopped = []
    culux.gradient(lambda x: stopped.append(culux.stop_gradient({"a": x, "b": 2})) or x.sum(), X)
    assert type(stopped[0]["a"]) is np.ndarray
    assert culux.gradient(lambda a: culux.gradient(lambda b: culux.stop_gradient(a) * a * b, 1.0), 3.0) == 3.0


def test_deep_chains_do_not_recurse():
    def f(x):
        for _ in range(100_000):
            x = x * 1.0
        return x.sum()

    np.testing.assert_array_equal(culux.gradient(f, np.ones(2)), [1, 1])


def test_a_value_used_often_sums_its_cotangents():
    def f(x):
        y = x * 2
        return sum((y * k).sum() for k in range(100)) + y.sum() + x.sum()

    np.testing.assert_array_equal(culux.gradient(f, X), np.full_like(X, 2 * 4950 + 3))


def test_what_the_user_holds_is_never_written():
    x, w = X.copy(), X.copy()
    y, pullback = culux.vjp(lambda x: x + w, x)
    dy = np.ones_like(X)
    (dx,) = pullback(dy)
    (again,) = pullback(dy)
    for array, was in ((x, X), (w, X), (y, 2 * X), (dy, np.ones_like(X)), (dx, dy), (again, dy)):
        np.testing.assert_array_equal(array, was)


def test_gradients_are_arrays_of_their_own():
    x, y = np.ones(3), np.ones(3)
    first, second = culux.gradient(lambda x, y: (x + y).sum(), x, y)
    first *= 2.0
    assert second.tolist() == [1.0, 1.0, 1.0]
    total = culux.gradient(lambda x: x.sum(), x)
    total += 1.0
    assert total.tolist() == [2.0, 2.0, 2.0]


def test_a_pullback_gives_nothing_of_its_cotangent_away():
    x = np.ones((2, 3))
    for f in (lambda x: x + 1.0, lambda x: x.reshape(3, 2), lambda x: x.T):
        y, pullback = culux.vjp(f, x)
        dy = np.ones(y.shape)
        (dx,) = pullback(dy)
        dx *= 5.0
        assert (dy == 1.0).all()
