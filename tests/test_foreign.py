"""Traced arrays in NumPy's and CuPy's hands: operators, methods, functions, and what is refused."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest

import culux
import culux.numpy as cnp
from culux.errors import DifferentiationError
from tests.standin_cupy.fixture import standin_cupy  # noqa: F401 (a fixture)

X = np.random.default_rng(0).uniform(0.5, 2.0, (3, 4))
W = np.random.default_rng(1).standard_normal((4, 4))


def both(form, same):
    """Value and gradient of two spellings, weighted so that every element counts differently."""

    def scalar(f):
        def g(t):
            y = f(t)
            return (y * np.arange(1.0, 1.0 + np.size(y)).reshape(np.shape(y))).sum()

        return g

    return culux.value_and_gradient(scalar(form), X), culux.value_and_gradient(scalar(same), X)


SPELLINGS = {
    "x + t": (lambda t: X + t, lambda t: cnp.add(X, t)),
    "x - t": (lambda t: X - t, lambda t: cnp.subtract(X, t)),
    "x * t": (lambda t: W[:3] * t, lambda t: cnp.multiply(W[:3], t)),
    "x / t": (lambda t: X / t, lambda t: cnp.divide(X, t)),
    "x ** t": (lambda t: X**t, lambda t: cnp.power(X, t)),
    "x % t": (lambda t: (X + 3) % t, lambda t: cnp.mod(X + 3, t)),
    "x @ t": (lambda t: X.T @ t, lambda t: cnp.matmul(X.T, t)),
    "t @ x": (lambda t: t @ W, lambda t: cnp.matmul(t, W)),
    "t % 0.4": (lambda t: t % 0.4, lambda t: cnp.mod(t, 0.4)),
    "2 ** t": (lambda t: 2**t, lambda t: cnp.power(2, t)),
    "1 - t": (lambda t: 1 - t, lambda t: cnp.subtract(1, t)),
    "1 / t": (lambda t: 1 / t, lambda t: cnp.divide(1, t)),
    "-t": (lambda t: -t, cnp.negative),
    "+t": (lambda t: +t, cnp.positive),
    "abs(t)": (lambda t: abs(t), cnp.abs),
    "np.float64 * t": (lambda t: np.float64(3) * t, lambda t: cnp.multiply(3.0, t)),
    "np.float32 + t": (lambda t: np.float32(3) + t, lambda t: cnp.add(3.0, t)),
    "t * np.float64": (lambda t: t * np.float64(3), lambda t: cnp.multiply(t, 3.0)),
    "0-d array * t": (lambda t: np.array(3.0) * t, lambda t: cnp.multiply(3.0, t)),
    "np.add": (lambda t: np.add(X, t), lambda t: cnp.add(X, t)),
    "np.sin": (lambda t: np.sin(t), cnp.sin),
    "np.sum": (lambda t: np.sum(t), cnp.sum),
    "np.sum axis": (lambda t: np.sum(t, axis=0, keepdims=True), lambda t: cnp.sum(t, axis=0, keepdims=True)),
    "np.sum positional": (lambda t: np.sum(t, 0), lambda t: cnp.sum(t, 0)),
    "np.sum a=": (lambda t: np.sum(a=t, axis=-1), lambda t: cnp.sum(t, axis=-1)),
    "np.mean a=": (lambda t: np.mean(a=t, axis=(0, 1)), lambda t: cnp.mean(t, axis=(0, 1))),
    "np.max": (lambda t: np.max(t, axis=1), lambda t: cnp.max(t, axis=1)),
    "np.amin": (lambda t: np.amin(a=t), cnp.min),
    "np.std": (lambda t: np.std(t, axis=0, ddof=1), lambda t: cnp.std(t, axis=0, ddof=1)),
    "np.prod": (lambda t: np.prod(t, axis=0), lambda t: cnp.prod(t, axis=0)),
    "np.cumsum": (lambda t: np.cumsum(t, axis=1), lambda t: cnp.cumsum(t, axis=1)),
    "np.where": (lambda t: np.where(X > 1, t, 0), lambda t: cnp.where(X > 1, t, 0)),
    "np.where of t": (lambda t: np.where(t > 1, X, t), lambda t: cnp.where(X > 1, X, t)),
    "np.clip": (lambda t: np.clip(t, 0.8, 1.5), lambda t: cnp.clip(t, 0.8, 1.5)),
    "np.clip a_max=": (lambda t: np.clip(a=t, a_min=None, a_max=1.5), lambda t: cnp.minimum(t, 1.5)),
    "np.concatenate": (lambda t: np.concatenate([X, t]), lambda t: cnp.concatenate([X, t])),
    "np.concatenate list": (
        lambda t: np.concatenate([t[0], [1.0]]),
        lambda t: cnp.pad(t[0], (0, 1), constant_values=1),
    ),
    "np.stack": (lambda t: np.stack([t, X], axis=-1), lambda t: cnp.stack([t, X], axis=-1)),
    "np.vstack": (lambda t: np.vstack([t, X]), lambda t: cnp.concatenate([t, X])),
    "np.split": (lambda t: np.split(t, 2, axis=1)[0], lambda t: t[:, :2]),
    "np.reshape": (lambda t: np.reshape(t, (4, 3)), lambda t: cnp.reshape(t, (4, 3))),
    "np.transpose": (lambda t: np.transpose(t, (1, 0)), lambda t: cnp.transpose(t, (1, 0))),
    "np.expand_dims": (lambda t: np.expand_dims(t, axis=1), lambda t: cnp.expand_dims(t, 1)),
    "np.matmul": (lambda t: np.matmul(t, W), lambda t: cnp.matmul(t, W)),
    "np.dot": (lambda t: np.dot(t, W), lambda t: cnp.dot(t, W)),
    "np.einsum": (lambda t: np.einsum("ij,jk->ik", t, W), lambda t: cnp.matmul(t, W)),
    "np.tensordot": (lambda t: np.tensordot(t, W, axes=1), lambda t: cnp.matmul(t, W)),
    "np.outer": (lambda t: np.outer(t, [1.0, 2.0]), lambda t: cnp.reshape(t, (-1, 1)) * np.array([1.0, 2.0])),
    "np.linalg.norm": (lambda t: np.linalg.norm(t, axis=1), lambda t: cnp.linalg.norm(t, axis=1)),
    "np.pad": (lambda t: np.pad(t, 1), lambda t: cnp.pad(t, 1)),
    "np.tile": (lambda t: np.tile(t, (2, 1)), lambda t: cnp.tile(t, (2, 1))),
    "np.sort": (lambda t: np.sort(t, axis=0), lambda t: cnp.sort(t, axis=0)),
    "np.tril": (lambda t: np.tril(t), cnp.tril),
    "np.trace": (lambda t: np.trace(t), cnp.trace),
    "np.copy": (lambda t: np.copy(t), cnp.positive),
    "np.take": (lambda t: np.take(t, [2, 0, 0], axis=1), lambda t: cnp.take(t, [2, 0, 0], axis=1)),
    "np.add.reduce": (lambda t: np.add.reduce(t), lambda t: cnp.sum(t, axis=0)),
    "np.add.reduce axis": (lambda t: np.add.reduce(t, axis=None), cnp.sum),
    "np.maximum.reduce": (lambda t: np.maximum.reduce(t, axis=1), lambda t: cnp.max(t, axis=1)),
    "np.multiply.reduce": (lambda t: np.multiply.reduce(t), lambda t: cnp.prod(t, axis=0)),
    "t.sum": (lambda t: t.sum(0), lambda t: cnp.sum(t, axis=0)),
    "t.mean": (lambda t: t.mean(axis=-1, keepdims=True), lambda t: cnp.mean(t, axis=-1, keepdims=True)),
    "t.var": (lambda t: t.var(ddof=1), lambda t: cnp.var(t, ddof=1)),
    "t.max": (lambda t: t.max(1), lambda t: cnp.max(t, axis=1)),
    "t.clip": (lambda t: t.clip(0.8, max=1.5), lambda t: cnp.clip(t, 0.8, 1.5)),
    "t.dot": (lambda t: t.dot(W), lambda t: cnp.dot(t, W)),
    "t.T": (lambda t: t.T, cnp.transpose),
    "t.mT": (lambda t: t.mT, cnp.matrix_transpose),
    "t.transpose": (lambda t: t.transpose(1, 0), cnp.transpose),
    "t.transpose()": (lambda t: t.transpose(), cnp.transpose),
    "t.reshape": (lambda t: t.reshape(2, -1), lambda t: cnp.reshape(t, (2, -1))),
    "t.reshape tuple": (lambda t: t.reshape((2, 6)), lambda t: cnp.reshape(t, (2, 6))),
    "t.ravel": (lambda t: t.ravel(), cnp.ravel),
    "t.flatten": (lambda t: t.flatten(), cnp.ravel),
    "t.astype": (lambda t: t.astype(np.float32).astype(float), lambda t: cnp.astype(cnp.astype(t, np.float32), float)),
    "t.copy": (lambda t: t.copy(), cnp.positive),
    "t[1]": (lambda t: t[1], lambda t: cnp.getitem(t, 1)),
    "t[mask]": (lambda t: t[t > 1], lambda t: cnp.getitem(t, X > 1)),
    "t[np.newaxis, ..., 0]": (lambda t: t[np.newaxis, ..., 0], lambda t: cnp.getitem(t, (None, ..., 0))),
    "t[repeated]": (lambda t: t[[0, 0, 2]], lambda t: cnp.take(t, np.array([0, 0, 2]), axis=0)),
    "for row in t": (lambda t: sum(row * (i + 1) for i, row in enumerate(t)), lambda t: t[0] + 2 * t[1] + 3 * t[2]),
    "np.sign(t) * t": (lambda t: np.sign(t) * t, cnp.abs),
    "t // 1": (lambda t: t // 1 + t, lambda t: np.floor(X) + t),
    "np.zeros_like": (lambda t: np.zeros_like(t) + t, cnp.positive),
    "np.argmax": (lambda t: t[0][np.argmax(t[0])] * np.ones(2), lambda t: t[0][int(X[0].argmax())] * np.ones(2)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_equals_the_culux_form(spelling):
    (value, slope), (expected, expected_slope) = both(*SPELLINGS[spelling])
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-12)
    assert np.abs(expected_slope).sum() > 0


def test_augmented_assignment_makes_a_new_array():
    def f(t):
        u = t
        u += 1
        u *= t
        u -= X
        u /= 2
        u **= 2
        return u.sum() + t.sum()

    slope = culux.gradient(f, X)
    np.testing.assert_allclose(slope, ((X + 1) * X - X) / 2 * (2 * X + 1) + 1)


@pytest.mark.parametrize("change", ["x += t", "x -= t", "x *= t", "x /= t", "x **= t", "x[0] = t[0]", "x[...] = t"])
def test_a_plain_array_cannot_take_a_traced_one_in_place(change):
    x = X.copy()
    with pytest.raises(DifferentiationError, match=r"out= would overwrite|cannot become"):
        culux.gradient(lambda t: exec(change, {}, {"x": x, "t": t}) or t.sum(), X)
    np.testing.assert_array_equal(x, X)


def test_out_is_refused():
    for call in (
        lambda t: np.sin(t, out=np.empty_like(X)),
        lambda t: np.add(t, 1, out=np.empty_like(X)),
        lambda t: np.sum(t, axis=0, out=np.empty(4)),
        lambda t: np.add.reduce(t, out=np.empty(4)),
    ):
        with pytest.raises(DifferentiationError, match=r"numpy.(sin|add|sum): out= would overwrite.*use the result"):
            culux.gradient(lambda t, call=call: call(t).sum(), X)


def test_comparisons_and_truth():
    def f(t):
        assert isinstance(t > 1, np.ndarray)
        np.testing.assert_array_equal(X < t, np.zeros_like(X, bool))
        np.testing.assert_array_equal(np.less_equal(X, t), np.ones_like(X, bool))
        np.testing.assert_array_equal(t == t, np.ones_like(X, bool))
        np.testing.assert_array_equal(1 < t, X > 1)
        assert (np.float64(100) > t).all()
        assert np.isfinite(t).all()
        assert np.allclose(t, X)
        assert np.array_equal(t, X)
        assert (np.ndim(t), np.shape(t), np.size(t), len(t), t.ndim, t.size) == (2, (3, 4), 12, 3, 2, 12)
        assert t.any()
        return t.sum() if t.sum() > 0 else -t.sum()

    np.testing.assert_array_equal(culux.gradient(f, X), np.ones_like(X))


def test_traced_arrays_in_lists_of_numpy_functions():
    slope = culux.gradient(lambda t: np.concatenate([t[0], np.ones(2), t[1]]).sum() + np.hstack([t, X])[0].sum(), X)
    np.testing.assert_array_equal(slope, [[2.0] * 4, [1.0] * 4, [0.0] * 4])


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda t: np.linalg.svd(t), "numpy.linalg.svd"),
        (lambda t: np.heaviside(t, 0.5), "numpy.heaviside"),
        (lambda t: np.add.accumulate(t), "numpy.add.accumulate"),
        (lambda t: np.fft.fft(t), "numpy.fft.fft"),
        (lambda t: np.median(t), "numpy.median"),
        (lambda t: np.add.outer(t, t), "numpy.add.outer"),
    ],
)
def test_a_function_without_a_rule_is_named(call, name):
    with pytest.raises(DifferentiationError, match=rf"{name} has no rule.*culux.numpy.*custom_gradient.*stop_gradient"):
        culux.gradient(lambda t: call(t).sum(), X)


@pytest.mark.parametrize(
    ("use", "into"),
    [
        (float, "a Python number"),
        (int, "a Python number"),
        (complex, "a Python number"),
        (lambda t: t.item(), "a Python number"),
        (lambda t: t.tolist(), "a Python number"),
        (np.asarray, "a NumPy array"),
        (np.array, "a NumPy array"),
        (lambda t: np.array([t, t]), "a NumPy array"),
        (copy.deepcopy, "a deep copy"),
        (pickle.dumps, "a pickle"),
        (lambda t: np.zeros(3)[t], "a Python number|a NumPy array"),
    ],
)
def test_a_traced_array_does_not_leave(use, into):
    with pytest.raises(DifferentiationError, match=rf"a traced array cannot become ({into}).*stop_gradient.*has_aux"):
        culux.gradient(lambda t: use(t[0, 0]) * t.sum(), X)


def test_a_traced_array_is_formatted_as_its_value():
    shown = []
    culux.gradient(lambda t: shown.append(f"{t.sum():.3f}") or t.sum(), np.ones(4))
    culux.gradient(lambda t: shown.append(f"{t}"[:6]) or t.sum(), np.ones(4))
    assert shown == ["4.000", "Tracer"]


def test_writes_say_what_to_do():
    def write(t):
        t[0] = 1
        return t.sum()

    with pytest.raises(DifferentiationError, match=r"cannot be written to; use culux.numpy.where\(mask, new, x\)"):
        culux.gradient(write, X)
    with pytest.raises(DifferentiationError, match="index with integers or booleans"):
        culux.gradient(lambda t: t[t].sum(), X)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("backward", r"a traced array has no \.backward\(\): .*culux.gradient\(loss, ps\)"),
        ("detach", r"stop_gradient"),
        ("numpy", r"culux.to_numpy"),
        ("nothing", r"a traced array has no attribute 'nothing'$"),
        ("sort", r"no attribute 'sort': .* none that write; .*culux.numpy.*culux.stop_gradient\(x\).sort"),
    ],
)
def test_spellings_of_other_frameworks(name, answer):
    with pytest.raises(AttributeError, match=answer):
        culux.gradient(lambda t: getattr(t, name)(), X)


def test_a_foreign_function_that_chokes_is_explained():
    def loss(t):
        return np.frombuffer(t).sum()

    with pytest.raises(
        DifferentiationError, match=r"np.frombuffer cannot take a traced array .*test_foreign.py:\d+"
    ) as e:
        culux.gradient(loss, X)
    assert "return np.frombuffer(t).sum()" in str(e.value)
    assert "custom_gradient" in str(e.value)
    assert isinstance(e.value.__cause__, Exception)


def test_errors_of_the_user_are_left_alone():
    def f(t):
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        culux.gradient(f, X)
    with pytest.raises(KeyError):
        culux.gradient(lambda t: {}["no"], X)
    with pytest.raises(ValueError, match="broadcast"):
        culux.gradient(lambda t: (t + np.ones(5)).sum(), X)


def test_no_library_takes_the_data_unseen():
    def f(t):
        for name in ("__cuda_array_interface__", "__dlpack__", "__array_interface__", "__cupy_get_ndarray__"):
            assert not hasattr(t, name)
        return t.sum()

    culux.gradient(f, X)


def positional(function):
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [(p.name, p.kind) for p in inspect.signature(function).parameters.values() if p.kind in kinds]


def test_parameters_have_numpys_names_and_places():
    """NumPy hands calls over as they were written, so a name or a place of our own would be an error or worse."""
    checked = 0
    for name in cnp.__all__:
        function, numpys = getattr(cnp, name), getattr(np, name, None)
        if not inspect.isfunction(function) or isinstance(numpys, np.ufunc | type | None) or function is numpys:
            continue
        try:
            theirs, ours = positional(numpys), positional(function)
        except ValueError:  # NumPy's concatenate, where, dot, ... are written in C and show no signature
            continue
        for (own, _), (other, kind) in zip(ours, theirs, strict=False):
            if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
                assert own == other, f"{name}: {own} stands where NumPy has {other}"
                checked += 1
    assert checked > 60


CUPY_SPELLINGS = {
    "cp.sin": (lambda cp, x, t: cp.sin(t), lambda x, t: cnp.sin(t)),
    "cp.add": (lambda cp, x, t: cp.add(x, t), lambda x, t: cnp.add(x, t)),
    "cp.divide": (lambda cp, x, t: cp.divide(x, t), lambda x, t: cnp.divide(x, t)),
    "cp.remainder": (lambda cp, x, t: cp.remainder(x, t), lambda x, t: cnp.mod(x, t)),
    "cp.absolute": (lambda cp, x, t: cp.absolute(t), lambda x, t: cnp.abs(t)),
    "cp.maximum": (lambda cp, x, t: cp.maximum(t, 1), lambda x, t: cnp.maximum(t, 1)),
    "cp.sum": (lambda cp, x, t: cp.sum(t, axis=0), lambda x, t: cnp.sum(t, axis=0)),
    "x + t": (lambda cp, x, t: x + t, lambda x, t: cnp.add(x, t)),
    "x * t": (lambda cp, x, t: x * t, lambda x, t: cnp.multiply(x, t)),
    "x @ t": (lambda cp, x, t: x.T @ t, lambda x, t: cnp.matmul(x.T, t)),
    "np.sin": (lambda cp, x, t: np.sin(t), lambda x, t: cnp.sin(t)),
    "np.concatenate": (lambda cp, x, t: np.concatenate([x, t]), lambda x, t: cnp.concatenate([x, t])),
    "x > t": (lambda cp, x, t: (x >= t) * t, lambda x, t: cnp.positive(t)),
}


class TestCupy:
    """The same through CuPy's hook, on the stand-in."""

    @pytest.mark.parametrize("spelling", CUPY_SPELLINGS)
    def test_equals_the_culux_form(self, spelling, standin_cupy):  # noqa: F811 (the fixture)
        form, same = CUPY_SPELLINGS[spelling]
        x = standin_cupy.asarray(X)
        value, slope = culux.value_and_gradient(lambda t: form(standin_cupy, x, t).sum(), x)
        expected, expected_slope = culux.value_and_gradient(lambda t: same(X, t).sum(), X)
        assert isinstance(slope, standin_cupy.ndarray)
        np.testing.assert_allclose(value.get(), expected)
        np.testing.assert_allclose(slope.get(), expected_slope)

    def test_out_and_unknown_kernels_are_refused(self, standin_cupy):  # noqa: F811 (the fixture)
        x = standin_cupy.asarray(X)
        with pytest.raises(DifferentiationError, match=r"cupy.sin: out= would overwrite"):
            culux.gradient(lambda t: standin_cupy.sin(t, out=x).sum(), x)
        with pytest.raises(DifferentiationError, match="'cupy_heaviside' has no rule"):
            culux.gradient(lambda t: standin_cupy.heaviside(t, 0.5).sum(), x)

        def add_into(t):
            y = x
            y += t
            return y.sum()

        with pytest.raises(DifferentiationError, match=r"cupy.add: out= would overwrite"):
            culux.gradient(add_into, x)
        np.testing.assert_array_equal(x.get(), X)
