"""The suites over the catalogue: every entry of `tests.catalogue` gets every test that its record allows."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

import culux
from culux import tree
from culux.backends import backend_of, get_backend, is_float_array
from tests.catalogue import entries
from tests.catalogue.case import TOLERANCE, Case, InitCase, LayerCase, RuleCase
from tests.support import requires

ENTRIES = entries()
LAYERS = [entry for entry in ENTRIES if isinstance(entry, LayerCase)]
CASES = [entry for entry in ENTRIES if isinstance(entry, Case)] + [layer.as_case() for layer in LAYERS]
RULES = [entry for entry in ENTRIES if isinstance(entry, RuleCase)]
INITS = [entry for entry in ENTRIES if isinstance(entry, InitCase)]
DIFFERENTIABLE = [entry for entry in CASES if entry.positions()]
SMOOTH = [entry for entry in DIFFERENTIABLE if entry.smooth and "float64" in entry.dtypes]

STEP = 1e-5
MANY = 60  # inputs of more elements are differenced along random directions only


def over(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def host(x):
    """An array of any backend as a NumPy array."""
    backend = backend_of(x)
    return np.asarray(x if backend.name == "numpy" else backend.to_host(x))


def assert_same(found, expected, tolerance, what=""):
    found, expected = tree.leaves(found), tree.leaves(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            host(one).astype(np.float64) if host(one).dtype.kind == "f" else host(one),
            other, rtol=tolerance, atol=tolerance, err_msg=what,
        )  # fmt: skip
        assert np.shape(host(one)) == np.shape(other)


def of_differentiable(case, arrays):
    """The case as a function of its differentiable inputs alone."""

    def f(*values):
        full = list(arrays)
        for i, value in zip(case.positions(), values, strict=True):
            full[i] = value
        return case.call(*full)

    return f, [arrays[i] for i in case.positions()]


def weights(y, seed):
    """Fixed random numbers in the shape, dtype and place of `y`."""
    y = culux.stop_gradient(y)
    values = np.random.default_rng(seed).standard_normal(getattr(y, "shape", ()))
    return backend_of(y).from_host(np.asarray(values, getattr(y, "dtype", float)), 0)


def scalar(f):
    """A function with its float outputs projected on fixed random directions."""

    def projected(*values):
        total = 0.0
        for seed, y in enumerate(tree.leaves(f(*values))):
            total = total + (y * weights(y, seed)).sum()
        return total

    return projected


def gradient(f, values):
    found = culux.gradient(f, *values)
    return list(found) if len(values) > 1 else [found]


def differences(f, values, i):
    """Central differences of a scalar function along every axis of argument i, or along some directions."""
    rng = np.random.default_rng(7)
    n = values[i].size
    directions = np.eye(n) if n <= MANY else rng.standard_normal((4, n)) / math.sqrt(n)

    def at(step):
        moved = list(values)
        moved[i] = values[i] + step.reshape(values[i].shape)
        return float(f(*moved))

    slopes = [(at(STEP * d) - at(-STEP * d)) / (2 * STEP) for d in directions]
    return directions, np.array(slopes)


def check_gradient(f, values, factor):
    for i, found in enumerate(gradient(f, values)):
        assert found.shape == values[i].shape
        directions, slopes = differences(f, values, i)
        np.testing.assert_allclose(
            directions @ found.ravel() if found.size else slopes, slopes, rtol=1e-6 * factor, atol=1e-7 * factor
        )


# Values.


@over(CASES)
def test_has_a_reference(case):
    assert case.reference is not None or case.torch is not None
    reasons = not case.second_order or not case.smooth or case.differentiable is not None
    assert case.why or not reasons, f"{case}: say why a check is left out"


@pytest.mark.parametrize(
    ("case", "dtype"), [(case, dtype) for case in CASES if case.reference for dtype in case.dtypes], ids=str
)
def test_value_against_the_reference(case, dtype):
    arrays = case.arrays(dtype)
    before = [x.copy() for x in arrays]
    found = case.call(*arrays)
    wide = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in before]
    assert_same(found, case.reference(*wide), TOLERANCE[dtype] * case.tolerance)
    for x, was in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(x, was)


@pytest.mark.parametrize(("case", "dtype"), [(case, dtype) for case in CASES for dtype in case.dtypes], ids=str)
def test_dtype_is_kept(case, dtype):
    arrays = case.arrays(dtype)
    if case.keeps_dtype:
        found = [y for y in tree.leaves(case.call(*arrays)) if getattr(y, "dtype", np.dtype(int)).kind == "f"]
        assert [y.dtype for y in found] == [np.dtype(dtype)] * len(found)
    if case.positions():
        f, values = of_differentiable(case, arrays)
        assert [g.dtype for g in gradient(scalar(f), values)] == [x.dtype for x in values]
        assert [g.shape for g in gradient(scalar(f), values)] == [x.shape for x in values]


@over([case for case in CASES if case.torch])
def test_value_and_gradient_against_torch(case):
    torch = requires("torch")
    dtype = "float64" if "float64" in case.dtypes else case.dtypes[-1]
    arrays = case.arrays(dtype)
    f, values = of_differentiable(case, arrays)
    tensors = [torch.tensor(x) for x in arrays]
    for i in case.positions():
        tensors[i].requires_grad_()
    expected = case.torch(torch, *tensors)
    tolerance = TOLERANCE[dtype] * case.tolerance
    assert_same(case.call(*arrays), [y.detach().numpy() for y in tree.leaves(expected)], tolerance)
    if values:
        found = gradient(scalar(f), values)
        total = sum(
            (y * torch.tensor(weights(y.detach().numpy(), k))).sum() for k, y in enumerate(tree.leaves(expected))
        )
        wanted = [tensors[i] for i in case.positions()]
        slopes = torch.autograd.grad(total, wanted, allow_unused=True)
        slopes = [np.zeros(x.shape) if s is None else s.numpy() for s, x in zip(slopes, values, strict=True)]
        assert_same(found, slopes, tolerance)


# Derivatives.


@over(SMOOTH)
def test_gradient_against_finite_differences(case):
    f, values = of_differentiable(case, case.arrays())
    check_gradient(scalar(f), values, case.gradient_tolerance)


@over([case for case in SMOOTH if case.second_order])
def test_second_order_against_finite_differences(case):
    f, values = of_differentiable(case, case.arrays())

    def directional(*at):
        return sum((g * weights(g, 10 + i)).sum() for i, g in enumerate(gradient(scalar(f), list(at))))

    check_gradient(directional, values, 10 * case.gradient_tolerance)


@over([case for case in DIFFERENTIABLE if "float64" in case.dtypes])
def test_vjp_is_linear_and_callable_again(case):
    f, values = of_differentiable(case, case.arrays())
    y, pullback = culux.vjp(f, *values)
    assert_same(y, f(*values), 0)
    one, other = (tree.map(lambda leaf, s=seed: weights(leaf, s), y) for seed in (1, 2))
    first, second = pullback(one), pullback(other)
    assert len(first) == len(values)
    both = pullback(tree.map(lambda a, b: 2 * a + b, one, other))
    for a, b, c in zip(first, second, both, strict=True):
        np.testing.assert_allclose(c, 2 * a + b, rtol=1e-9, atol=1e-9)
    for a, again in zip(first, pullback(one), strict=True):
        np.testing.assert_array_equal(a, again)


# Backends.


def on(backend, arrays):
    return [backend.from_host(x, 0) for x in arrays]


@over([case for case in CASES if case.cupy])
def test_cupy_against_numpy(case, standin_cupy):
    dtype = "float32" if "float32" in case.dtypes else case.dtypes[0]
    backend, arrays = get_backend("cupy"), case.arrays(dtype)
    found = case.call(*on(backend, arrays))
    leaves = [y for y in tree.leaves(found) if hasattr(y, "dtype") and hasattr(y, "shape")]
    assert all(isinstance(y, (standin_cupy.ndarray, np.generic)) for y in leaves)
    assert_same(found, tree.map(np.asarray, case.call(*arrays)), TOLERANCE[dtype] * case.tolerance)
    f, values = of_differentiable(case, arrays)
    if values:
        g, moved = of_differentiable(case, on(backend, arrays))
        slopes = gradient(scalar(g), moved)
        assert all(isinstance(s, standin_cupy.ndarray) for s in slopes)
        assert [s.dtype for s in slopes] == [x.dtype for x in values]
        assert_same(slopes, gradient(scalar(f), values), TOLERANCE[dtype] * case.tolerance)


@over([case for case in CASES if case.strict])
def test_array_api_strict_against_numpy(case, strict):
    arrays = case.arrays("float32")
    found = case.call(*on(strict, arrays))
    assert type(found) in strict.array_types
    assert_same(found, case.call(*arrays), TOLERANCE["float32"])


# Layers.


@over(LAYERS)
def test_layer_has_the_parameters_and_states(case):
    ps, st = case.setup()
    assert {path: np.shape(leaf) for path, leaf in tree.leaves_with_path(ps)} == case.parameters
    assert {path for path, _ in tree.leaves_with_path(st)} == set(case.states)
    for _, leaf in tree.leaves_with_path(ps):
        assert leaf.dtype == np.float32
    assert culux.parameter_length(case.layer) == sum(math.prod(shape) for shape in case.parameters.values())


@over(LAYERS)
def test_layer_says_its_output_shape(case):
    inputs = [make(np.random.default_rng(0)) for make in case.inputs]
    inputs = [x.astype(np.float32) if x.dtype.kind == "f" else x for x in inputs]
    x = inputs[0] if len(inputs) == 1 else tuple(inputs)
    ps, st = case.setup()
    y, new = case.layer(x, ps, st)
    expected = culux.output_shape(case.layer, tree.map(np.shape, x) if isinstance(x, tuple) else x.shape)
    assert tree.map(np.shape, y) == expected
    assert tree.structure(new) == tree.structure(st)


@over(LAYERS)
def test_layer_is_a_value(case):
    for other in (copy.deepcopy(case.layer), pickle.loads(pickle.dumps(case.layer))):
        assert other == case.layer
        assert hash(other) == hash(case.layer)
        assert repr(other) == repr(case.layer)


# Optimiser rules.


SHAPES = culux.Tree(a=(3, 4), b=culux.Tree(c=(5,), d=(1,)))


def random_tree(rng, dtype="float64"):
    return tree.map(
        lambda shape: rng.standard_normal(shape).astype(dtype), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def taken(case, ps, gradients):
    """`ps` after the steps."""
    state = culux.optim.setup(case.rule, ps)
    for i, gradient in enumerate(gradients):
        if i == len(gradients) // 2:
            state = copy.deepcopy(state)
        state, ps = culux.optim.update(state, ps, gradient)
    return ps


@over(RULES)
def test_rule_steps_against_the_reference(case):
    rng = np.random.default_rng(0)
    ps, gradients = random_tree(rng), [random_tree(rng) for _ in range(20)]
    before = tree.map(np.copy, ps)
    found = taken(case, ps, gradients)
    assert case.reference or case.torch
    tree.map(np.testing.assert_array_equal, ps, before)
    if case.reference:
        columns = zip(tree.leaves(ps), *[tree.leaves(g) for g in gradients], strict=True)
        expected = [case.reference(x.copy(), list(steps)) for x, *steps in columns]
        assert_same(found, expected, 1e-9 * case.tolerance)
    if case.torch:
        torch = requires("torch")
        tensors = [torch.tensor(x, requires_grad=True) for x in tree.leaves(ps)]
        optimizer = case.torch(torch, tensors)
        for gradient in gradients:
            for tensor, g in zip(tensors, tree.leaves(gradient), strict=True):
                tensor.grad = torch.tensor(g)
            optimizer.step()
        assert_same(found, [tensor.detach().numpy() for tensor in tensors], 1e-9 * case.tolerance)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@over(RULES)
def test_rule_keeps_the_structure_and_dtype(case, dtype):
    rng = np.random.default_rng(0)
    ps = random_tree(rng, dtype)
    found = taken(case, ps, [random_tree(rng, dtype) for _ in range(4)])
    assert tree.structure(found) == tree.structure(ps)
    for x, y in zip(tree.leaves(ps), tree.leaves(found), strict=True):
        assert y.dtype == np.dtype(dtype)
        assert y.shape == x.shape
        assert np.isfinite(y).all()


# Initialisers.


@over(INITS)
def test_initialiser(case):
    for dtype in ("float32", "float64"):
        x = case.init(np.random.default_rng(0), case.shape, np.dtype(dtype))
        assert x.shape == case.shape
        assert x.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(x, case.init(np.random.default_rng(0), case.shape, np.dtype(dtype)))
    spread = 5 * (case.std if case.std is not None else 1) / math.sqrt(x.size)
    if case.mean is not None:
        assert abs(x.mean() - case.mean) <= spread
    if case.std is not None:
        assert x.std() == pytest.approx(case.std, rel=0.1)
    if case.low is not None:
        assert x.min() >= case.low
    if case.high is not None:
        assert x.max() <= case.high
    if case.check:
        case.check(x)


@over(INITS)
def test_initialiser_is_a_value(case):
    assert pickle.loads(pickle.dumps(case.init)) == case.init
    assert case.init(np.random.default_rng(0), case.shape).dtype == np.float32


def test_the_suites_are_not_empty():
    assert LAYERS
    assert RULES
    assert INITS
    assert len(CASES) > 200
    assert len(SMOOTH) > 200
    assert len([case for case in CASES if case.strict]) > 20
    assert len([case for case in CASES if case.torch]) > 50
    assert all(is_float_array(case.arrays()[i]) for case in CASES for i in case.positions())
