"""The transforms where something goes wrong: exceptions, threads, and every error by its text."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import culux
import culux.numpy as cnp
from culux.autodiff.tracer import nesting_level
from culux.errors import CuluxError, DifferentiationError
from tests.support import requires

X = np.random.default_rng(0).standard_normal((3, 4))
pytestmark = pytest.mark.usefixtures("level_is_restored")


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
