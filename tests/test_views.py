"""Containers and the views that their forward gets, and the stateful style."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import culux
from culux.errors import LayerError
from tests.core_examples import Affine, Memory, Plain, Wrap, X, block

# Containers and views


def test_children_are_named_by_their_fields():
    ps, st = culux.setup(0, block())
    assert list(ps) == list(st) == ["conv", "norm", "tail_1", "tail_2", "heads_a"]
    assert list(block().children()) == list(ps)
    assert ps.norm.w.shape == (3,)
    assert culux.parameter_length(block()) == 15
    assert culux.state_length(block()) == 3 * 4


def test_forward_is_pure_from_outside():
    ps, st = culux.setup(0, block())
    y, new = block()(X, ps, st)
    expected = ((X * ps.conv.w + 1) * ps.norm.w * ps.tail_1.w + 1) * ps.tail_2.w + 1
    np.testing.assert_allclose(y, expected * ps.heads_a.w + X, rtol=1e-6)
    assert (st.conv.calls, new.conv.calls, new.tail_2.calls) == (0, 1, 1)
    assert new.norm == {}


def test_own_entries_beside_children():
    model = Memory(Affine(3))
    ps, st = culux.setup(0, model)
    assert (list(ps), list(st)) == (["inner", "gain"], ["inner", "last", "calls"])
    y, new = model(X, ps, st)
    np.testing.assert_allclose(y, 2 * (X * ps.inner.w + 1), rtol=1e-6)
    np.testing.assert_array_equal(new.last, y)
    assert (new.calls, new.inner.calls, st.calls) == (1, 1, 0)
    twice, _ = model(X, ps, new)
    np.testing.assert_allclose(twice, 2 * y, rtol=1e-6)


def test_a_child_called_twice_moves_its_state_twice():
    class Twice(culux.ContainerLayer):
        inner: culux.Layer

        def forward(self, m, x):
            return m.inner(m.inner(x))

    model = Twice(Affine(3))
    ps, st = culux.setup(0, model)
    assert model(X, ps, st)[1].inner.calls == 2


def test_a_wrapper_does_not_nest():
    model = Wrap(Affine(3))
    ps, st = culux.setup(0, model)
    assert (list(ps), list(st)) == (["w"], ["shift", "calls"])
    y, new = model(X, ps, st)
    np.testing.assert_array_equal(y, X * ps.w + 1)
    assert new.calls == 1
    assert culux.output_shape(model, (2, 3)) == (2, 3)

    class Twice(culux.WrapperLayer):
        layer: culux.Layer

        def forward(self, m, x):
            return m.layer(m.layer(x))

    twice = Twice(Affine(3))
    assert twice(X, ps, st)[1].calls == 2
    with pytest.raises(LayerError, match="a WrapperLayer has one layer, got none"):
        Wrap(3)


def test_the_view_reads_fields_and_refuses_what_is_no_state():
    class Careless(culux.ContainerLayer):
        inner: culux.Layer
        name: str = ""

        def initial_parameters(self, rng):
            return {"gain": np.ones(3)}

        def forward(self, m, x):
            setattr(m, self.name, 1)
            return x

    for name in ("gain", "inner", "name", "new"):
        layer = Careless(Plain(), name)
        with pytest.raises(LayerError, match=f"'{name}' is no state of .*add it to initial_states"):
            layer(X, *culux.setup(0, layer))

    class Asks(culux.ContainerLayer):
        inner: culux.Layer
        factor: float = 3.0

        def forward(self, m, x):
            return m.inner(x) * m.factor + m.offst

    with pytest.raises(AttributeError, match="has no attribute 'offst'"):
        Asks(Plain())(X, *culux.setup(0, Asks(Plain())))


def test_one_layer_under_two_names_has_two_parameters():
    shared = Affine(3)
    ps, _ = culux.setup(0, culux.Chain(shared, shared))
    assert not np.array_equal(ps.layer_1.w, ps.layer_2.w)


# The stateful style


def test_a_stateful_layer_moves_its_states_on():
    model = block()
    ps, st = culux.setup(0, model)
    m = culux.StatefulLayer(model, ps, st)
    y = m(X)
    np.testing.assert_array_equal(y, model(X, ps, st)[0])
    assert m.layer is model
    assert m.ps is ps
    assert (m.st.conv.calls, st.conv.calls) == (1, 0)
    zeros = culux.tree.map(np.zeros_like, ps)
    np.testing.assert_array_equal(m(X, zeros), X)
    np.testing.assert_array_equal(m(X, {name: dict(entries) for name, entries in zeros.items()}), X)
    assert (m.st.conv.calls, m.ps) == (3, ps)
    assert not isinstance(m, culux.Layer)
    assert repr(m) == f"StatefulLayer({model!r})"


def test_children_of_a_stateful_layer_are_views():
    model = Memory(block())
    m = culux.StatefulLayer(model, *culux.setup(0, model))
    m.inner.conv(X)
    m.inner.tail[1](X)
    m.calls = 5
    m.inner.conv.calls = m.inner.conv.calls + 10
    assert (m.st.calls, m.st.inner.conv.calls, m.st.inner.tail_2.calls) == (5, 11, 1)
    np.testing.assert_array_equal(m.gain, m.ps.gain)
    np.testing.assert_array_equal(m.inner.conv.w, m.ps.inner.conv.w)


def test_the_gradient_of_a_stateful_layer_is_the_tree_of_its_ps():
    model = Memory(Affine(3))
    ps, st = culux.setup(0, model)
    m = culux.StatefulLayer(model, ps, st)
    value, found = culux.value_and_gradient(lambda m: m(X).sum(), m)
    expected = culux.gradient(lambda ps: model(X, ps, st)[0].sum(), ps)
    assert type(found) is culux.Tree
    assert culux.tree.structure(found) == culux.tree.structure(ps)
    for a, b in zip(culux.tree.leaves(found), culux.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(value, model(X, ps, st)[0].sum())
    assert (m.st.calls, m.st.inner.calls) == (1, 1)
    assert type(m.st.last) is np.ndarray
    assert m.ps is ps


def test_an_updated_stateful_layer_is_one_of_its_own():
    model = Affine(3)
    m = culux.StatefulLayer(model, *culux.setup(0, model))
    opt = culux.optim.setup(culux.optim.Descent(0.1), m)
    opt, new = culux.optim.update(opt, m, culux.gradient(lambda m: m(X).sum(), m))
    new(X)
    assert (type(new), m.st.calls, new.st.calls) == (culux.StatefulLayer, 1, 2)
    assert pickle.loads(pickle.dumps(new)).st.calls == 2
    assert not np.array_equal(m.ps.w, new.ps.w)


def test_a_stateful_layer_that_leaves_as_aux_is_plain():
    model = Affine(3)
    m = culux.StatefulLayer(model, *culux.setup(0, model))
    (_, out), _ = culux.value_and_gradient(lambda m: (m(X).sum(), m), m, has_aux=True)
    assert (type(out), type(out.ps.w), out.st.calls) == (culux.StatefulLayer, np.ndarray, 1)


def test_wrong_parts_of_a_stateful_layer():
    ps, st = culux.setup(0, Affine(3))
    with pytest.raises(LayerError, match=r"expected StatefulLayer\(layer, ps, st\), got .* for the layer"):
        culux.StatefulLayer(ps, st, Affine(3))
    with pytest.raises(LayerError, match=r"expected StatefulLayer\(layer, ps, st\), got ps tuple"):
        culux.StatefulLayer(Affine(3), (ps, st), {})


def test_a_stateful_layer_pickles_and_copies():
    m = culux.StatefulLayer(block(), *culux.setup(0, block()))
    for other in (pickle.loads(pickle.dumps(m)), copy.deepcopy(m)):
        np.testing.assert_array_equal(other(X), m(X))
        assert other.layer == m.layer
