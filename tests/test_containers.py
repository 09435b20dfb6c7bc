"""The containers: their order, names, slices, connections and errors."""

from __future__ import annotations

import operator

import numpy as np
import pytest

import culux
from culux.errors import EntryError, LayerError, ShapeError
from culux.layers import (
    BatchNorm,
    BranchLayer,
    Chain,
    Dense,
    Dropout,
    NoOpLayer,
    Parallel,
    SkipConnection,
    WrappedFunction,
)
from culux.nn import relu, tanh
from tests.layers_support import Add, X, ran
from tests.support import requires

# Chain


def test_a_chain_runs_its_layers_in_order():
    model = Chain(Dense(3, 4, tanh), Dense(4, 2))
    y, ps, st = ran(model, X)
    hidden = np.tanh(X @ ps.layer_1.weight.T + ps.layer_1.bias)
    np.testing.assert_allclose(y, hidden @ ps.layer_2.weight.T + ps.layer_2.bias, rtol=1e-5)
    assert model(X, ps, st)[1] is st


def test_names_and_indices_of_a_chain():
    conv, head = Dense(3, 4), Dense(4, 2)
    model, named = Chain(conv, relu, head), Chain(conv=conv, act=relu, head=head)
    assert list(model.children()) == ["layer_1", "layer_2", "layer_3"]
    assert list(named.children()) == ["conv", "act", "head"]
    assert model[0] == model[-3] == model["layer_1"] == model.layer_1 == named.conv == named["conv"] == conv
    assert model[-1] == head
    assert model[1] == WrappedFunction(relu)
    assert (len(model), list(model)) == (3, [conv, WrappedFunction(relu), head])
    assert list(named[1:].children()) == ["act", "head"]
    assert list(model[1:].children()) == ["layer_2", "layer_3"]
    assert model[:2] == Chain(conv, relu)
    assert model[:0] == Chain()
    assert model != named
    assert Chain(a=conv, b=head) != Chain(b=head, a=conv)
    for index in (3, -4, "layer_4"):
        with pytest.raises(
            EntryError, match=r"expected the name or index of a layer, got .*layer_3; there are 3 layers"
        ):
            model[index]


def test_a_slice_runs_with_the_entries_of_the_whole():
    model = Chain(Dense(3, 4), Dropout(0.5), Dense(4, 2))
    y, ps, st = ran(model, X)
    hidden, new = model[:2](X, ps, st)
    assert list(new) == list(st)
    np.testing.assert_array_equal(model[2:](hidden, ps, new)[0], y)
    only = culux.tree.select(ps, "layer_3")
    np.testing.assert_array_equal(model[2:](hidden, only, {"layer_3": {}})[0], y)


def test_what_a_chain_takes():
    a, b = Dense(3, 3), Dense(3, 2)
    assert Chain([a, [b]], (relu,)) == Chain(a, b, relu)
    assert list(Chain(Chain(a, b), relu).children()) == ["layer_1", "layer_2"]
    assert Chain() == Chain(NoOpLayer())
    assert ran(Chain(), X)[0] is X
    with pytest.raises(LayerError, match="Chain: expected layers or functions, got int 3"):
        Chain(a, 3)
    with pytest.raises(LayerError, match=r"Chain: expected layers or functions, .*did you mean NoOpLayer\(...\)\?"):
        Chain(NoOpLayer)
    with pytest.raises(LayerError, match=r"Chain: expected layers, or layers by name, got both \(head by name\)"):
        Chain(a, head=b)


def test_the_state_of_a_chain_is_new_only_where_a_layer_changed_its_own():
    model = Chain(Dense(3, 4), Chain(Dropout(0.5), relu), BatchNorm(4))
    ps, st = culux.setup(0, model)
    _, new = model(X, ps, st)
    assert new is not st
    assert new.layer_1 is st.layer_1
    assert list(new) == list(st)
    assert not np.array_equal(new.layer_2.layer_1.rng.counter, st.layer_2.layer_1.rng.counter)
    test = culux.test_mode(st)
    assert model(X, ps, test)[1] is test


# Other containers


def test_parallel():
    a, b = Dense(3, 2), Dense(3, 2)
    y, ps, _ = ran(Parallel(None, a, b), X)
    assert type(y) is tuple
    np.testing.assert_array_equal(y[1], a(X, ps.layer_2, {})[0])
    y, ps, _ = ran(Parallel(lambda one, two: one - two, a, b), (X, 2 * X))
    np.testing.assert_array_equal(y, a(X, ps.layer_1, {})[0] - b(2 * X, ps.layer_2, {})[0])
    y, ps, _ = ran(Parallel(operator.add, left=a, right=relu), (X, X[:, :2]))
    assert list(ps) == ["left", "right"]
    np.testing.assert_array_equal(y, a(X, ps.left, {})[0] + np.maximum(X[:, :2], 0))


def test_a_layer_as_connection_gets_the_tuple():
    for model in (Parallel(Add(), Dense(3, 2), Dense(3, 2)), BranchLayer(Dense(3, 2), Dense(3, 2), fusion=Add())):
        name = "connection" if isinstance(model, Parallel) else "fusion"
        ps, st = culux.setup(0, model)
        assert list(ps) == list(st) == ["layer_1", "layer_2", name]
        y, new = model(X, ps, st)
        plain = [model.layer_1(X, ps[child], {})[0] for child in ("layer_1", "layer_2")]
        np.testing.assert_array_equal(y, plain[0] + plain[1])
        assert new[name].calls == 1
        assert new.layer_1 is st.layer_1
    with pytest.raises(LayerError, match="Parallel: 'connection' names both a layer and the connection"):
        Parallel(Add(), connection=Dense(3, 2))


def test_the_length_of_a_tuple_is_checked():
    model = Parallel(None, Dense(3, 2), Dense(3, 2))
    with pytest.raises(ShapeError, match=r"in Parallel\(.*\): expected a tuple of 2 inputs, one per layer, got 3"):
        ran(model, (X, X, X))


def test_a_branch_layer_gives_everything_to_all():
    class Second(culux.Layer):
        def __call__(self, x, ps, st):
            return x[1], st

    y, _, _ = ran(BranchLayer(Second(), Second()), (X, 2 * X))
    np.testing.assert_array_equal(y[0], 2 * X)
    y, _, _ = ran(BranchLayer(relu, tanh, fusion=np.multiply), X)
    np.testing.assert_allclose(y, np.maximum(X, 0) * np.tanh(X), rtol=1e-6)


def test_skip_connections():
    y, ps, _ = ran(SkipConnection(Dense(3, 3), operator.sub), X)
    np.testing.assert_array_equal(y, Dense(3, 3)(X, ps.layers, {})[0] - X)
    model = SkipConnection([Dense(3, 3), relu], Add())
    assert model.layers == Chain(Dense(3, 3), relu)
    y, ps, st = ran(model, X)
    assert list(ps) == ["layers", "connection"]
    np.testing.assert_array_equal(y, model.layers(X, ps.layers, st.layers)[0] + X)
    with pytest.raises(LayerError, match="SkipConnection: expected connection to be a function or a layer, got None"):
        SkipConnection(relu, None)
    with pytest.raises(
        LayerError, match="SkipConnection: expected connection to be None, a function or a layer, got str"
    ):
        SkipConnection(relu, "add")


def test_containers_without_layers_are_refused():
    for make in (lambda: Parallel(None), lambda: BranchLayer(fusion=operator.add)):
        with pytest.raises(LayerError, match="expected at least one layer"):
            make()


def test_gradients_pass_containers():
    torch = requires("torch")
    model = Chain(
        SkipConnection(Dense(3, 3, tanh), operator.add), BranchLayer(Dense(3, 2), Dense(3, 2), fusion=np.multiply)
    )
    ps, st = culux.setup(0, model, dtype="float64")
    found = culux.gradient(lambda ps, x: model(x, ps, st)[0].sum(), ps, X.astype(np.float64))
    leaves = [torch.tensor(leaf, requires_grad=True) for leaf in (*culux.tree.leaves(ps), X.astype(np.float64))]
    w0, b0, w1, b1, w2, b2, x = leaves
    hidden = torch.tanh(x @ w0.T + b0) + x
    ((hidden @ w1.T + b1) * (hidden @ w2.T + b2)).sum().backward()
    for ours, theirs in zip(culux.tree.leaves(found), leaves, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-10)
