"""Nothing traced gets out: not in states, not in a stateful layer, not with an exception."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import culux
from culux.autodiff.tracer import Tracer
from tests.core_examples import Memory, Raises, X


def traced_in(value):
    """The traced arrays that can be reached from a value."""
    seen, stack, found = set(), [value], []
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, type):
            continue
        seen.add(id(item))
        if isinstance(item, Tracer):
            found.append(item)
        stack += gc.get_referents(item) if isinstance(item, dict | list | tuple) or hasattr(item, "__dict__") else []
    return found


class Keeps(culux.Layer):
    """Puts its output into its state, in every container that a state may be."""

    def initial_parameters(self, rng):
        return {"w": np.ones(3, np.float32)}

    def initial_states(self, rng):
        return {"y": None, "list": [], "deep": {"pair": ()}}

    def __call__(self, x, ps, st):
        y = x * ps.w
        return y, {"y": y, "list": [y, {"y": y}], "deep": {"pair": (y, y)}}


def test_no_traced_value_leaves_in_st():
    model = culux.Chain(Keeps(), Memory(Keeps()))
    ps, st = culux.setup(0, model)
    kept = []

    def loss(ps):
        y, new = model(X, ps, st)
        kept.append(new)
        return y.sum()

    culux.gradient(loss, ps)
    culux.gradient(lambda ps: sum(g.sum() for g in culux.tree.leaves(culux.gradient(loss, ps))), ps)
    assert len(kept) == 2
    for new in kept:
        assert traced_in(new) == []
        leaves = [new.layer_1.y, *new.layer_1.deep.pair, new.layer_1.list[1].y, new.layer_2.last, new.layer_2.inner.y]
        assert {type(leaf) for leaf in leaves} == {np.ndarray}


def test_no_traced_value_stays_in_a_stateful_layer():
    model = Memory(Keeps())
    m = culux.StatefulLayer(model, *culux.setup(0, model))

    def loss(traced):
        y = m(X, traced.ps) + traced(X)
        m.inner.list = [traced.inner(X)]
        m.inner.deep = {"pair": (y, 2 * y)}
        traced.last = 2 * y
        traced.inner.y = y
        return y.sum()

    culux.gradient(loss, m)
    assert traced_in(m.st) == []
    assert type(m.st.last) is type(m.st.inner.y) is np.ndarray
    assert traced_in(m.ps) == []


def test_no_traced_value_leaves_with_an_exception():
    model = culux.Chain(Keeps(), Raises(ValueError))
    ps, st = culux.setup(0, model)
    m = culux.StatefulLayer(model, ps, st)
    with pytest.raises(ValueError, match="oh") as caught:
        culux.gradient(lambda m: m(X).sum(), m)
    assert traced_in(caught.value.__dict__) == []
    assert m.st == st
    np.testing.assert_array_equal(culux.gradient(lambda w: (w * w).sum(), np.ones(2)), [2, 2])
