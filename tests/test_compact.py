"""`culux.compact`: what an entry is by its kind, and that the result is a layer as any other."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import culux
from culux import Chain, Dense
from culux.errors import LayerError, ShapeError

X = np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32)


@culux.compact(
    d=Dense(3, 5),
    w=lambda rng: rng.standard_normal(5, dtype=np.float32),
    n=2,
    act=culux.relu,
    tail=[Dense(5, 5), culux.Dropout(0.5)],
    states={"count": lambda rng: np.zeros((), np.int64)},
    output_shape=lambda shape: (*shape[:-1], 5),
)
def model(m, x):
    x = m.d(x) * m.w
    for _ in range(m.n):
        x = m.act(x)
    for layer in m.tail:
        x = layer(x)
    m.count = m.count + 1
    return x


def test_layers_parameters_states_and_constants():
    ps, st = culux.setup(0, model)
    assert list(ps) == ["d", "tail_1", "tail_2", "w"]
    assert list(st) == ["d", "tail_1", "tail_2", "count"]
    y, after = model(X, ps, culux.test_mode(st))
    expected = np.maximum((X @ ps.d.weight.T + ps.d.bias) * ps.w, 0) @ ps.tail_1.weight.T + ps.tail_1.bias
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert (st["count"], after["count"]) == (0, 1)
    _, after = model(X, ps, st)
    assert (after.tail_2.rng.counter != st.tail_2.rng.counter).any()


def test_gradients_reach_its_parameters():
    ps, st = culux.setup(0, model)
    grads = culux.gradient(lambda ps: model(X, ps, culux.test_mode(st))[0].sum(), ps)
    y = X @ ps.d.weight.T + ps.d.bias
    np.testing.assert_allclose(grads.w, ((y * ps.w > 0) * y * ps.tail_1.weight.sum(0)).sum(0), rtol=1e-4)


def test_it_is_a_layer_like_any_other():
    assert isinstance(model, culux.Layer)
    assert pickle.loads(pickle.dumps(model)) is model
    assert copy.deepcopy(Chain(model)) == Chain(model)
    assert hash(model) == hash(copy.copy(model))
    assert culux.output_shape(model, (2, 3)) == (2, 5)
    assert repr(model) == (
        "compact(d=Dense(3, 5), w=<lambda>, n=2, act=relu, tail=(Dense(5, 5), Dropout(0.5)), "
        "states={'count': <lambda>})(model)"
    )
    assert "CompactLayer(\n    d = Dense(3, 5)" in str(model)
    assert model.n == 2
    assert model.d == Dense(3, 5)
    ps, st = culux.setup(0, Chain(model, Dense(5, 1)))
    assert Chain(model, Dense(5, 1))(X, ps, st)[0].shape == (2, 1)


def test_the_example_of_its_documentation():
    @culux.compact(d=Dense(3, 5), w=lambda rng: np.ones(5, np.float32))
    def f(m, x):
        return m.d(x) * m.w

    ps, st = culux.setup(0, f)
    y, _ = f(X, ps, st)
    np.testing.assert_allclose(y, X @ ps.d.weight.T + ps.d.bias, rtol=1e-6)


def test_errors_inside_have_the_path():
    layer = Chain(Dense(4, 4), model)
    ps, st = culux.setup(0, layer)
    with pytest.raises(ShapeError, match=r"in layer_2\.d \(Dense\(3, 5\)\): expected x\.shape\[-1\] == 3, got 4"):
        layer(np.ones((2, 4), np.float32), ps, st)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: culux.compact(w=np.ones(3))(lambda m, x: x),
            r"w is an array, and a layer holds none; write w=lambda ",
        ),
        (lambda: culux.compact(a=1)(lambda x: x), r"expected a function f\(m, x\), got function .*it is a decorator"),
        (lambda: culux.compact(a=1)(3), r"expected a function f\(m, x\), got int 3"),
        (lambda: culux.compact(children=1)(lambda m, x: x), "the name 'children' is taken"),
        (lambda: culux.compact(a=1, states={"a": lambda rng: 0})(lambda m, x: x), "the name 'a' is taken"),
        (lambda: culux.compact(states={"a": 1}), r"expected states\['a'\] to be a function of rng, got int 1"),
        (
            lambda: culux.output_shape(culux.compact(d=Dense(3, 5))(lambda m, x: m.d(x)), (2, 3)),
            r"the function does not say its output shape; give it: @culux\.compact\(\.\.\., output_shape=lambda",
        ),
    ],
)
def test_what_is_no_compact_layer(make, message):
    with pytest.raises(LayerError, match=message):
        make()


def test_a_layer_without_a_name_in_its_module_does_not_pickle():
    @culux.compact(d=Dense(3, 5))
    def inner(m, x):
        return m.d(x)

    with pytest.raises(pickle.PicklingError, match=r"is not .*inner; a compact layer pickles by its name in a module"):
        pickle.dumps(inner)
