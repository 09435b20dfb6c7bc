"""Setup and what reads its trees: lengths, modes, apply, output shapes."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux.errors import DTypeError, EntryError, LayerError, ShapeError
from tests.core_examples import Affine, ByHand, Memory, Plain, X, block
from tests.support import requires


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
