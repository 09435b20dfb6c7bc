"""The transforms: trees, nesting, exceptions, threads, and every error by its text."""

from __future__ import annotations

import threading
from collections import namedtuple

import numpy as np
import pytest

import culux
import culux.numpy as cnp
from culux.autodiff.tracer import nesting_level
from culux.errors import CuluxError, DifferentiationError, ShapeError
from tests.support import requires

X = np.random.default_rng(0).standard_normal((3, 4))
Point = namedtuple("Point", "x y")


@pytest.fixture(autouse=True)
def level_is_restored():
    yield
    assert nesting_level() == 0


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
    f = lambda x, y, *, scale: (x * y * y).sum() * scale  # noqa: E731
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
    f = lambda x: x**4  # noqa: E731
    third = lambda a: culux.gradient(lambda b: culux.gradient(lambda c: culux.gradient(f, c), b), a)  # noqa: E731
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
    f = lambda x: (cnp.tanh(a @ x) ** 2).sum()  # noqa: E731
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


# Exceptions and threads.


class Mine(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit, Mine, StopIteration])
def test_an_exception_leaves_no_trace_open(error):
    def bad(x):
        raise error

    def nested(x):
        return culux.gradient(lambda y: culux.gradient(bad, y), x)

    for f in (bad, nested):
        for _ in range(3):
            with pytest.raises(error):
                culux.gradient(f, 1.0)
            assert nesting_level() == 0
    assert culux.gradient(lambda x: x * culux.gradient(lambda y: x + y, 1.0), 1.0) == 1.0


def test_an_exception_that_an_outer_function_catches():
    def outer(x):
        try:
            culux.gradient(lambda y: 1 / 0, 1.0)
        except ZeroDivisionError:
            assert nesting_level() == 1
        return x * culux.gradient(lambda y: x * y, 2.0)

    assert culux.gradient(outer, 3.0) == 6.0


def test_generators_inside_a_function():
    def pieces(x):
        try:
            for row in x:
                yield culux.gradient(lambda z, row=row: (z * row).sum(), np.ones(4)).sum()
        finally:
            assert nesting_level() in (0, 1)

    def f(x):
        several = pieces(x)
        return next(several) + next(several)  # the generator is left unfinished

    expected = np.zeros_like(X)
    expected[:2] = 1
    np.testing.assert_array_equal(culux.gradient(f, X), expected)


def test_threads_differentiate_independently():
    results, barrier = {}, threading.Barrier(4)

    def work(k):
        def f(x):
            barrier.wait(10)
            y = x * k
            for _ in range(50):
                y = y + culux.gradient(lambda z: (z * k).sum(), x)
            barrier.wait(10)
            return (y * y).sum()

        results[k] = culux.gradient(f, X)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(1, 5):
        np.testing.assert_allclose(results[k], 2 * (X * k + 50 * k) * k)


def test_a_traced_array_in_another_thread_is_refused():
    caught = []

    def f(x):
        def other():
            try:
                x + 1
            except CuluxError as error:
                caught.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return x.sum()

    culux.gradient(f, X)
    assert caught == ["add got a traced array of another thread; a trace belongs to one thread"]


def test_a_traced_array_after_its_trace_is_refused():
    kept = []
    culux.gradient(lambda x: kept.append(x) or x.sum(), X)
    for use in (lambda: kept[0] + 1, lambda: kept[0].sum(), lambda: np.sin(kept[0]), lambda: cnp.exp(kept[0])):
        with pytest.raises(DifferentiationError, match=r"traced array after its trace ended.*stop_gradient\(value\)"):
            use()
    with pytest.raises(DifferentiationError, match=r"^reshape got a traced array after its trace ended"):
        kept[0].reshape(-1)
    with pytest.raises(DifferentiationError, match="after its trace ended"):
        culux.gradient(lambda x: (x * kept[0]).sum(), X)


# Errors of the arguments and the result.


@pytest.mark.parametrize(
    ("f", "args", "message"),
    [
        (lambda x: x, (X,), r"expected a scalar result, got shape \(3, 4\); reduce it .*culux.vjp"),
        (lambda x: None, (X,), "expected a scalar result, got NoneType None; is a return missing"),
        (lambda x: (x.sum(), x), (X,), r"expected a scalar result, got tuple .*pass has_aux=True"),
        (lambda x: "text", (X,), "expected a scalar result, got str 'text'"),
        (lambda x: x.sum() > 0, (X,), "expected a scalar result, got"),
        (lambda x: True, (X,), "expected a scalar result, got bool True"),
        (
            lambda x: x.sum(),
            (np.arange(3),),
            r"the argument is int64 array of shape \(3,\): only floats have a gradient",
        ),
        (lambda x, y: x.sum(), (X, np.arange(3)), "argument 2 is int64 array.*close over it"),
        (lambda x: x * 1.0, (np.int64(3),), "the argument is int64 array of shape .*: only floats have a gradient"),
        (lambda x: x * 1.0, (True,), "the argument is bool True: only floats have a gradient"),
        (lambda x: x * 1.0, (3,), r"the argument is int 3: only floats have a gradient; convert it .*3\.0"),
        (lambda x: x.sum(), (X > 0,), "the argument is bool array"),
        (lambda x: x.real.sum(), (X + 1j,), r"(the argument is complex128 array|complex arrays have no rules)"),
        (lambda ps: ps.w.real.sum(), (culux.Tree(w=X + 1j),), r"complex arrays have no rules.*pass real and imaginary"),
        (lambda: 1.0, (), "expected at least one argument"),
        (lambda m: 1.0, (culux.Dense(1, 2),), r"the argument is the layer Dense.*gradient\(lambda ps.*StatefulLayer"),
        (
            lambda models: 1.0,
            ([culux.StatefulLayer(culux.Dense(1, 2), {}, {})],),
            "a StatefulLayer inside of an argument has no gradient; pass it as an argument of its own",
        ),
        (lambda x: x.sum(), (np.ma.array(X),), r"float64 MaskedArray of shape .* is no array of NumPy or CuPy"),
        (lambda ps: 1.0, ([np.ma.array(X)],), r"is no array of NumPy or CuPy.*numpy.asarray"),
    ],
)
def test_arguments_and_results_that_do_not_fit(f, args, message):
    with pytest.raises(DifferentiationError, match=message):
        culux.gradient(f, *args)
    assert nesting_level() == 0


def test_a_torch_tensor_is_no_argument():
    torch = requires("torch")
    with pytest.raises(DifferentiationError, match=r"torch.float32 Tensor of shape \(3,\) .*culux.cpu_device\(\)\(x\)"):
        culux.gradient(lambda ps: 1.0, culux.Tree(w=torch.ones(3)))


def test_has_aux_needs_a_pair():
    with pytest.raises(DifferentiationError, match=r"with has_aux=True the function returns \(value, aux\), got"):
        culux.value_and_gradient(lambda x: x.sum(), X, has_aux=True)
    with pytest.raises(DifferentiationError, match=r"returns \(value, aux\), got tuple"):
        culux.vjp(lambda x: (x, x, x), X, has_aux=True)


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
