"""The suites over the catalogue: every entry of `tests.catalogue` gets every test that its record allows."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

import culux
from culux import tree
from culux.backends import get_backend, is_float_array
from culux.testing.compare import TOLERANCE, assert_same, require
from culux.testing.derivatives import directional, gradients, pullback_problems, scalar, slope_problems
from tests import torch_values
from tests.catalogue import entries
from tests.catalogue.case import Case, InitCase, LayerCase, RuleCase, random_tree
from tests.support import requires

ENTRIES = entries()
LAYERS = [entry for entry in ENTRIES if isinstance(entry, LayerCase)]
CASES = [entry for entry in ENTRIES if isinstance(entry, Case)] + [layer.as_case() for layer in LAYERS]
RULES = [entry for entry in ENTRIES if isinstance(entry, RuleCase)]
INITS = [entry for entry in ENTRIES if isinstance(entry, InitCase)]
DIFFERENTIABLE = [entry for entry in CASES if entry.positions()]
SMOOTH = [entry for entry in DIFFERENTIABLE if entry.smooth and "float64" in entry.dtypes]


def over(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def of_differentiable(case, arrays):
    """The case as a function of its differentiable inputs alone."""

    def f(*values):
        full = list(arrays)
        for i, value in zip(case.positions(), values, strict=True):
            full[i] = value
        return case.call(*full)

    return f, [arrays[i] for i in case.positions()]


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
        assert [g.dtype for g in gradients(scalar(f), values)] == [x.dtype for x in values]
        assert [g.shape for g in gradients(scalar(f), values)] == [x.shape for x in values]


@over([case for case in CASES if case.torch])
def test_value_and_gradient_against_torch(case):
    arrays = case.arrays(case.widest)
    f, values = of_differentiable(case, arrays)
    found = [*tree.leaves(case.call(*arrays)), *(gradients(scalar(f), values) if values else [])]
    assert_same(found, torch_values.expected(case), TOLERANCE[case.widest] * case.tolerance)


def test_the_stored_values_are_those_of_torch():
    torch = requires("torch")
    stale = []
    for case in torch_values.compared():
        try:
            assert_same(torch_values.stored(case), torch_values.computed(case, torch), 1e-9)
        except AssertionError:
            stale.append(str(case))
    assert not stale, f"write the file anew, python -m tests.torch_values; it has other values of {', '.join(stale)}"


# Derivatives.


@over(SMOOTH)
def test_gradient_against_finite_differences(case):
    f, values = of_differentiable(case, case.arrays())
    require(slope_problems(scalar(f), values, case.gradient_tolerance))


@over([case for case in SMOOTH if case.second_order])
def test_second_order_against_finite_differences(case):
    f, values = of_differentiable(case, case.arrays())
    require(slope_problems(directional(scalar(f)), values, 10 * case.gradient_tolerance))


@over([case for case in DIFFERENTIABLE if "float64" in case.dtypes])
def test_vjp_is_linear_and_callable_again(case):
    f, values = of_differentiable(case, case.arrays())
    assert_same(culux.vjp(f, *values)[0], f(*values), 0)
    require(pullback_problems(f, values))


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
        slopes = gradients(scalar(g), moved)
        assert all(isinstance(s, standin_cupy.ndarray) for s in slopes)
        assert [s.dtype for s in slopes] == [x.dtype for x in values]
        assert_same(slopes, gradients(scalar(f), values), TOLERANCE[dtype] * case.tolerance)


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
    ps, gradients = torch_values.steps()
    before = tree.map(np.copy, ps)
    found = taken(case, ps, gradients)
    assert case.reference or case.torch
    tree.map(np.testing.assert_array_equal, ps, before)
    if case.reference:
        columns = zip(tree.leaves(ps), *[tree.leaves(g) for g in gradients], strict=True)
        expected = [case.reference(x.copy(), list(steps)) for x, *steps in columns]
        assert_same(found, expected, 1e-9 * case.tolerance)
    if case.torch:
        assert_same(found, torch_values.expected(case), 1e-9 * case.tolerance)


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
