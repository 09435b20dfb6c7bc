"""The layer contract: custom layers, containers, views, functors, setup, and what never leaves a trace."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pytest

import culux
from culux.autodiff.tracer import Tracer
from culux.errors import DTypeError, EntryError, LayerError, ShapeError
from tests.support import requires

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


class Affine(culux.Layer):
    """A layer by fields, with a trained and an untrained array and a counter."""

    width: int
    offset: float = 1.0

    def initial_parameters(self, rng):
        return {"w": rng.standard_normal(self.width).astype(np.float32)}

    def initial_states(self, rng):
        return {"shift": np.full(self.width, self.offset, np.float32), "calls": 0}

    def output_shape(self, input_shape):
        return input_shape

    def __call__(self, x, ps, st):
        return x * ps.w + st.shift, {**st, "calls": st.calls + 1}


class ByHand(culux.Layer):
    def __init__(self, width, *, twice=False):
        self.width = width * (2 if twice else 1)
        self.twice = twice

    def initial_parameters(self, rng):
        return {"w": np.ones(self.width, np.float32)}

    def __call__(self, x, ps, st):
        return x * ps["w"], st


class Plain(culux.Layer):
    def __call__(self, x, ps, st):
        return x, st


class Block(culux.ContainerLayer):
    conv: culux.Layer
    norm: culux.Layer
    tail: tuple = ()
    heads: Any = field(default_factory=dict)

    def forward(self, m, x):
        y = m.norm(m.conv(x))
        for layer in m.tail:
            y = layer(y)
        for layer in m.heads.values():
            y = layer(y)
        return y + x


class Memory(culux.ContainerLayer):
    """Own parameters and states beside a child, written and read through the view."""

    inner: culux.Layer

    def initial_parameters(self, rng):
        return {"gain": np.full(3, 2, np.float32)}

    def initial_states(self, rng):
        return {"last": np.zeros((2, 3), np.float32), "calls": 0}

    def forward(self, m, x):
        y = m.gain * m.inner(x) + m.last
        m.last = y
        m.calls = m.calls + 1
        return y


class Wrap(culux.WrapperLayer):
    layer: culux.Layer


class Raises(culux.Layer):
    error: Any

    def __call__(self, x, ps, st):
        raise self.error("oh")


def block():
    return Block(Affine(3), ByHand(3), tail=[Affine(3), Affine(3)], heads={"a": ByHand(3)})


# Custom layers


def test_the_layer_of_the_readme():
    class LuxLinear(culux.Layer):
        init_A: Callable
        init_B: Callable

        def initial_parameters(self, rng):
            return {"B": self.init_B()}

        def initial_states(self, rng):
            return {"A": self.init_A()}

        def __call__(self, x, ps, st):
            return st.A @ ps.B @ x, st

    a, b = np.eye(3), np.full((3, 3), 2.0)
    model = LuxLinear(lambda: a, lambda: b)
    ps, st = culux.setup(0, model)
    y, new = model(np.ones(3), ps, st)
    np.testing.assert_array_equal(y, [6, 6, 6])
    assert new is st
    np.testing.assert_array_equal(culux.gradient(lambda ps: model(np.ones(3), ps, st)[0].sum(), ps).B, np.ones((3, 3)))


def test_fields_defaults_and_keywords():
    class Deep(culux.Layer):
        width: int
        _: KW_ONLY
        depth: int = 2
        names: list[str] = field(default_factory=list)
        count: ClassVar[int] = 7

    class Later(culux.Layer, kw_only=True):
        width: int

    assert (Deep(3).width, Deep(3).depth, Deep(3, names=["a"]).names) == (3, 2, ("a",))
    assert Deep(3, depth=4) != Deep(3)
    assert repr(Deep(3, depth=4)) == "Deep(3, depth=4)"
    with pytest.raises(LayerError, match=r"Deep: .*; it is Deep\(width, \*, depth=2, names="):
        Deep(3, 4)
    assert Later(width=2).width == 2
    with pytest.raises(LayerError, match="Later"):
        Later(2)


def test_subclass_of_a_subclass():
    class Wider(Affine):
        factor: float = 2.0

        def __call__(self, x, ps, st):
            y, st = super().__call__(x, ps, st)
            return self.factor * y, st

    class Same(Wider):
        pass

    for layer in (Wider(3, 0.0, 4.0), Same(3, offset=0.0, factor=4.0)):
        ps, st = culux.setup(0, layer)
        y, new = layer(X, ps, st)
        np.testing.assert_allclose(y, 4 * X * ps.w)
        assert new.calls == 1
    assert Wider(3) != Same(3)


def test_an_init_written_by_hand_runs_and_freezes_at_its_end():
    class WithConstant(ByHand):
        kind: ClassVar[str] = "constant"

    assert ByHand(3, twice=True).width == 6
    assert WithConstant(3, twice=True).width == 6
    with pytest.raises(LayerError, match=r"ByHand.* is frozen; make another one with the new width"):
        ByHand(3).width = 4
    with pytest.raises(LayerError, match="frozen"):
        del ByHand(3).width
    with pytest.raises(LayerError, match="adds the fields extra to ByHand, whose __init__ is written by hand"):

        class Lost(ByHand):
            extra: int


def test_lists_and_dicts_in_fields_cannot_change():
    layer = Block(Plain(), Plain(), tail=[Plain()], heads={"a": Plain()})
    assert type(layer.tail) is tuple
    assert type(layer.heads) is culux.Tree
    hash(layer)


@pytest.mark.parametrize("kind", [dict, culux.Tree])
def test_ps_and_st_come_as_dict_or_tree(kind):
    ps, st = culux.setup(0, block())
    as_given = kind(culux.tree.map(lambda leaf: leaf, ps)), kind(st)
    y, new = block()(X, *as_given)
    expected, _ = block()(X, ps, st)
    np.testing.assert_array_equal(y, expected)
    assert type(new) is culux.Tree
    assert type(new.conv) is culux.Tree


def test_nested_dicts_are_seen_as_trees():
    ps, st = culux.setup(0, Affine(3))
    y, new = culux.Chain(Affine(3))(X, {"layer_1": dict(ps)}, {"layer_1": dict(st)})
    np.testing.assert_array_equal(y, X * ps.w + 1)
    assert new.layer_1.calls == 1


def test_a_returned_state_has_the_keys_it_had():
    class Forgets(Affine):
        def __call__(self, x, ps, st):
            return x, {"calls": 1}

    class NoTree(Affine):
        def __call__(self, x, ps, st):
            return x, None

    class NoPair(Affine):
        def __call__(self, x, ps, st):
            return x

    message = r"expected the returned state to have the entries shift, calls, got calls; return st, or st.replace"
    with pytest.raises(LayerError, match=message):
        Forgets(3)(X, *culux.setup(0, Forgets(3)))
    with pytest.raises(LayerError, match="expected the returned state to be a Tree or a dict, got NoneType None"):
        NoTree(3)(X, *culux.setup(0, NoTree(3)))
    with pytest.raises(LayerError, match=r"expected __call__ to return \(y, st\), got float32 array of shape \(2, 3\)"):
        NoPair(3)(X, *culux.setup(0, NoPair(3)))


def test_a_returned_state_keeps_its_order():
    class Reorders(Affine):
        def __call__(self, x, ps, st):
            return x, {"calls": 1, "shift": st.shift}

    ps, st = culux.setup(0, Reorders(3))
    assert list(Reorders(3)(X, ps, st)[1]) == list(st)


def test_a_call_without_ps_and_st_says_the_call():
    for arguments in ((X,), (X, None, None), (X, np.ones(3), {}), (X, {}, 3)):
        with pytest.raises(LayerError, match=r"expected (ps|st) to be a Tree or a dict.*y, st = model\(x, ps, st\)"):
            Plain()(*arguments)


def test_a_layer_without_a_computation_says_so():
    class Nothing(culux.Layer):
        pass

    with pytest.raises(LayerError, match="Nothing defines neither __call__"):
        Nothing()(X, {}, {})


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


# Functors


@culux.functor
class Model:
    A: Any
    B: Any
    name: str = "m"

    def __call__(self, x):
        return self.A @ self.B @ x

    def trainable(self):
        return {"B": self.B}


@culux.functor
@dataclass(frozen=True)
class Frozen:
    w: Any
    nested: Any
    labels: Any


@culux.functor
class Outer:
    inner: Any
    scale: Any


def test_a_functor_is_differentiated_by_its_trainable():
    m = Model(np.eye(3), np.full((3, 3), 2.0))
    found = culux.gradient(lambda m: m(np.arange(3.0)).sum(), m)
    assert list(found) == ["B"]
    np.testing.assert_array_equal(found.B, np.tile(np.arange(3.0), (3, 1)))
    assert type(m.B) is np.ndarray
    assert not isinstance(m, culux.Layer)


def test_a_functor_without_trainable_gives_all_float_arrays():
    m = Frozen(np.ones(3), {"a": np.ones(3), "i": np.arange(2)}, np.arange(3))
    found = culux.gradient(lambda m: (m.w * m.nested["a"] * 3.0).sum(), m)
    assert list(found) == ["w", "nested"]
    np.testing.assert_array_equal(found.nested.a, [3, 3, 3])
    assert found.nested.i is None


def test_a_functor_is_a_tree_node():
    m = {"models": [Model(np.eye(2), np.ones((2, 2)), "x")]}
    moved = culux.tree.map(lambda a: a + 1, m)["models"][0]
    assert type(moved) is Model
    assert moved.name == "x"
    np.testing.assert_array_equal(moved.B, np.full((2, 2), 2.0))
    np.testing.assert_array_equal(m["models"][0].B, np.ones((2, 2)))
    assert [path for path, _ in culux.tree.leaves_with_path(m)] == ["models.0.A", "models.0.B"]
    assert culux.cpu_device(dtype="float32")(m)["models"][0].A.dtype == np.float32


def test_functors_in_functors_say_themselves_what_is_trained():
    m = Outer(Model(np.eye(2), np.ones((2, 2))), np.float64(2) * np.ones(2))
    found = culux.gradient(lambda m: (m.scale * m.inner(np.ones(2))).sum(), m)
    assert [path for path, _ in culux.tree.leaves_with_path(found)] == ["inner.B", "scale"]
    np.testing.assert_array_equal(found.inner.B, np.full((2, 2), 2.0))


def test_a_functor_comes_out_of_a_trace_with_plain_arrays():
    m = Model(np.eye(2), np.ones((2, 2)))
    (_, seen), _ = culux.value_and_gradient(lambda m: (m(np.ones(2)).sum(), [m]), m, has_aux=True)
    assert type(seen[0]) is Model
    assert type(seen[0].B) is np.ndarray


def test_a_subclass_of_a_functor_has_its_own_fields():
    @culux.functor
    class More(Model):
        C: Any = None

    m = More(np.eye(2), np.ones((2, 2)), "x", np.ones(2))
    assert [path for path, _ in culux.tree.leaves_with_path(m)] == ["A", "B", "C"]
    assert m == m
    assert m != copy.copy(m)


def test_wrong_functors():
    with pytest.raises(LayerError, match="is a Layer, which holds no arrays; a functor is a class of its own"):
        culux.functor(Affine)

    @culux.functor
    class Wrong:
        A: Any

        def trainable(self):
            return {"B": self.A}

    with pytest.raises(LayerError, match=r"Wrong.trainable\(\) names B, which it has no field for; its fields are: A"):
        culux.gradient(lambda m: m.A.sum(), Wrong(np.ones(2)))


# Setup and what reads its trees


def test_the_same_seed_gives_the_same_numbers():
    one, _ = culux.setup(3, block())
    two, _ = culux.setup(np.random.default_rng(3), block())
    other, _ = culux.setup(4, block())
    assert culux.tree.reduce(lambda ok, same: ok and same, culux.tree.map(np.array_equal, one, two))
    assert not np.array_equal(one.conv.w, other.conv.w)
    rng = np.random.default_rng(3)
    culux.setup(rng, block())
    assert not np.array_equal(culux.setup(rng, block())[0].conv.w, one.conv.w)
    np.testing.assert_array_equal(culux.initial_parameters(np.int64(3), block()).conv.w, one.conv.w)


def test_a_negative_seed_is_refused():
    with pytest.raises(ShapeError, match=r"expected a seed from 0, got rng=-1"):
        culux.setup(-1, Affine(3))


@pytest.mark.parametrize("rng", [None, 1.5, True, "0", np.random.RandomState(0)])
def test_a_wrong_rng_is_a_type_error_with_the_spelling(rng):
    with pytest.raises(TypeError, match=r"expected rng to be .*: culux.setup\(np.random.default_rng\(0\), layer\)"):
        culux.setup(rng, Affine(3))


def test_wrong_arguments_of_setup():
    with pytest.raises(LayerError, match="rng comes first"):
        culux.setup(Affine(3), 0)
    with pytest.raises(LayerError, match=r"expected a layer, got the class Affine; make one: Affine\(...\)"):
        culux.setup(0, Affine)
    with pytest.raises(LayerError, match=r"expected a layer, got int 3; the call is culux.setup\(rng, layer\)"):
        culux.setup(0, 3)
    with pytest.raises(LayerError, match=r"expected device=culux\.device"):
        culux.setup(0, Affine(3), device="cuda")
    with pytest.raises(DTypeError, match="expected one of float16, float32, float64, bfloat16, got int32"):
        culux.setup(0, Affine(3), dtype=np.int32)


@pytest.mark.parametrize("dtype", ["float64", np.float16, np.dtype("float32")])
def test_setup_converts_floats_only(dtype):
    ps, st = culux.setup(0, Affine(3), dtype=dtype)
    assert ps.w.dtype == st.shift.dtype == np.dtype(dtype)
    assert st.calls == 0


def test_setup_converts_to_bfloat16():
    requires("ml_dtypes")
    assert culux.setup(0, Affine(3), dtype="bfloat16")[0].w.dtype.name == "bfloat16"


def test_setup_moves_to_a_device():
    ps, st = culux.setup(0, Affine(3), device=culux.cpu_device(dtype="float64"))
    assert ps.w.dtype == st.shift.dtype == np.float64


def test_initial_values_of_the_wrong_kind():
    class Wrong(culux.Layer):
        def initial_parameters(self, rng):
            return np.ones(3)

    with pytest.raises(LayerError, match=r"Wrong\.initial_parameters returns a dict of arrays, got float64 array"):
        culux.setup(0, Wrong())


def test_lengths():
    ps, st = culux.setup(0, Memory(Affine(3)))
    assert culux.parameter_length(Memory(Affine(3))) == culux.parameter_length(ps) == 6
    assert culux.state_length(Memory(Affine(3))) == culux.state_length(st) == 11
    assert culux.parameter_length(Plain()) == 0
    with pytest.raises(LayerError, match=r"expected a layer, got the class Plain; make one: Plain\(\.\.\.\)"):
        culux.parameter_length(Plain)


def test_modes_and_other_states_are_set_at_every_depth():
    class Modal(culux.Layer):
        def initial_states(self, rng):
            return {"training": True, "rate": 1.0}

        def __call__(self, x, ps, st):
            return x, st

    model = culux.Chain(Modal(), culux.Chain(Modal(), Plain()))
    ps, st = culux.setup(0, model)
    test = culux.test_mode(st)
    assert (test.layer_1.training, test.layer_2.layer_1.training) == (False, False)
    assert (st.layer_1.training, culux.train_mode(test)) == (True, st)
    assert culux.update_state(st, "rate", 2.0).layer_2.layer_1.rate == 2.0
    assert culux.test_mode({"training": True}) == {"training": False}
    assert culux.test_mode(culux.Tree()) == {}
    m = culux.test_mode(culux.StatefulLayer(model, ps, st))
    assert isinstance(m, culux.StatefulLayer)
    assert m.st == test
    listed = culux.test_mode({"cells": [{"training": True}, {"training": True}], "pair": ({"training": True}, 1)})
    assert listed == {"cells": [{"training": False}, {"training": False}], "pair": ({"training": False}, 1)}
    assert culux.update_state({"cells": [{"rate": 1.0}]}, "rate", 2.0).cells[0].rate == 2.0
    with pytest.raises(EntryError, match=r"no state is named 'rte' \(did you mean 'rate'\?\); there are: .*training"):
        culux.update_state(st, "rte", 1.0)
    with pytest.raises(LayerError, match="modes live in st, not in the layer"):
        culux.test_mode(model)


def test_apply():
    ps, st = culux.setup(0, Affine(3))
    y, new = culux.apply(Affine(3), X, ps, st)
    np.testing.assert_array_equal(y, X * ps.w + 1)
    assert new.calls == 1
    np.testing.assert_array_equal(culux.stateless_apply(ByHand(3), X, {"w": np.full(3, 2.0)}), 2 * X)
    with pytest.raises(LayerError, match=r"Affine\(3\) has states \(shift, calls\); call y, st = layer"):
        culux.stateless_apply(Affine(3), X, ps)


def test_output_shape_of_a_layer_that_does_not_say():
    assert culux.output_shape(Affine(3), [5, 3]) == (5, 3)
    with pytest.raises(LayerError, match=r"expected input_shape to be a tuple such as \(batch, features\), got int 5"):
        culux.output_shape(Affine(3), 5)
    with pytest.raises(LayerError, match=r"in Plain\(\): Plain\(\) does not say its output shape; define output_shape"):
        culux.output_shape(Plain(), (1,))


# What a layer may hold, and its names


@pytest.mark.parametrize("value", [np.ones(2), [np.ones(2)], {"a": {"b": np.ones(2)}}])
def test_arrays_in_fields_are_refused(value):
    with pytest.raises(LayerError, match=r"holds a float64 array.*initial_parameters\(self, rng\).*initial_states"):
        Affine(3, value)


def test_a_stateful_layer_is_no_child():
    m = culux.StatefulLayer(Affine(3), *culux.setup(0, Affine(3)))
    for make in (lambda: culux.Chain(m), lambda: culux.WrappedFunction(m)):
        with pytest.raises(LayerError, match=r"holds a StatefulLayer, which holds arrays.*m\.layer"):
            make()
    with pytest.raises(LayerError, match="expected a layer, got StatefulLayer"):
        culux.setup(0, m)


def test_traced_and_foreign_arrays_in_fields_are_refused():
    with pytest.raises(LayerError, match="a layer holds no arrays"):
        culux.gradient(lambda x: Affine(3, x).offset.sum(), np.ones(2))
    torch = requires("torch")
    with pytest.raises(LayerError, match="a layer holds no arrays"):
        Affine(3, torch.ones(2))


@pytest.mark.parametrize("value", [Plain(), (Plain(),), {"a": Plain()}])
def test_layers_in_fields_of_plain_layers_are_refused(value):
    with pytest.raises(LayerError, match=r"Affine\.offset holds a layer, .*subclass culux.ContainerLayer"):
        Affine(3, value)


@pytest.mark.parametrize("name", ["keys", "values", "items", "update", "copy", "get", "pop", "a.b", ""])
def test_names_of_dict_methods_and_dots_are_refused(name):
    with pytest.raises(LayerError, match="cannot name an entry or a layer"):
        culux.Chain(**{name: Plain()})

    class Named(culux.Layer):
        def initial_states(self, rng):
            return {name: 1}

    with pytest.raises(LayerError, match="cannot name an entry or a layer"):
        culux.setup(0, Named())


def test_names_that_would_hide_a_method_are_refused():
    with pytest.raises(LayerError, match="the name 'children' would hide the method of a layer"):
        culux.Chain(children=Plain())

    class Hides(culux.Layer):
        output_shape: int

    with pytest.raises(LayerError, match=r"Hides\.output_shape would hide the method output_shape"):
        Hides(3)

    class Fine(culux.Layer):
        values: int

    assert Fine(3).values == 3


# Values


T = TypeVar("T")


class Parametrised(culux.Layer, Generic[T]):
    width: int


def test_generic_layers():
    assert Parametrised[int](3) == Parametrised(3)


@pytest.mark.parametrize("layer", [Affine(3), ByHand(3, twice=True), Block(Affine(2), Plain()), Wrap(Plain()), Plain()])
def test_layers_are_values(layer):
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), copy.copy(layer)):
        assert other == layer
        assert hash(other) == hash(layer)
        assert repr(other) == repr(layer)
        assert list(other.children()) == list(layer.children())
    assert layer != Affine(4)
    assert layer != 3
    assert len({layer, copy.deepcopy(layer)}) == 1


def test_a_layer_is_compared_without_its_arrays():
    class Never:
        def __eq__(self, other):
            raise AssertionError("arrays were compared")

        __hash__ = object.__hash__

    shared = Never()
    assert Affine(3, shared) == Affine(3, shared)


@pytest.mark.parametrize(
    "layer",
    [
        Affine(3),
        Affine(3, 2.0),
        Affine(3, offset=1.0),
        Block(Affine(2), Plain(), (Plain(),)),
        Block(Affine(2), Plain(), heads={"a": [Plain()]}),
        ByHand(3),
    ],
)
def test_the_repr_is_the_constructor_call(layer):
    assert eval(repr(layer)) == layer


def test_the_repr_of_a_layer_that_keeps_an_argument_under_another_name():
    class Hidden(culux.Layer):
        def __init__(self, width, *, scale=2):
            self.size = width

    assert repr(Hidden(3)) == "Hidden(...)"


def test_print_shows_the_tree_with_counts():
    text = str(culux.Chain(body=Block(Affine(1000), Plain()), head=Plain()))
    assert text.splitlines() == [
        "Chain(",
        "    body = Block(",
        "        conv = Affine(1000)  # 1,000 parameters, plus 1,001 states",
        "        norm = Plain()",
        "    )",
        "    head = Plain()",
        ")",
        "total: 1,000 parameters, plus 1,001 states",
    ]
    assert str(Plain()) == "Plain()\ntotal: no parameters"


# Errors of the user's own code


class Shelf(Exception):
    __slots__ = ()


@dataclass(frozen=True)
class Sealed(Exception):
    text: str


@pytest.mark.parametrize("kind", [ValueError, KeyError, ZeroDivisionError, Shelf])
def test_an_exception_keeps_its_type_and_gets_the_path(kind):
    inner = culux.Chain(Plain(), Wrap(Raises(kind)))
    model = culux.Chain(Plain(), Block(Plain(), inner))
    with pytest.raises(kind) as caught:
        model(X, *culux.setup(0, model))
    assert type(caught.value) is kind
    assert caught.value.args == ("oh",)
    assert caught.value.__notes__ == [f"in layer_2.norm.layer_2 (Raises({kind.__name__}))"]


def test_an_exception_that_takes_no_attributes_goes_on():
    model = culux.Chain(Raises(Sealed))
    with pytest.raises(Sealed, match="oh"):
        model(X, *culux.setup(0, model))


def test_a_type_error_in_init_is_the_users():
    class Wrong(culux.Layer):
        def __init__(self, width):
            self.width = width + "x"

    with pytest.raises(TypeError, match="unsupported operand") as caught:
        Wrong(3)
    assert type(caught.value) is TypeError


# Nothing traced gets out


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


# Types


def test_a_type_checker_reads_custom_layers():
    requires("mypy")
    root = Path(__file__).parents[1]
    arguments = ["--strict", "--follow-imports=silent", "--cache-dir", str(root / ".mypy_cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments, str(root / "tests/typing/custom_layers.py")],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
