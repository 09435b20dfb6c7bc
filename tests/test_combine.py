"""Layers of two inputs, of branches, and around a layer: parameters, states, shapes, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import numpy as cnp
from culux.errors import DTypeError, LayerError, ShapeError
from culux.layers import (
    AlternatePrecision,
    BatchNorm,
    Bilinear,
    Dense,
    Dropout,
    Maxout,
    PairwiseFusion,
    RepeatedLayer,
    ReverseSequence,
    Scale,
)
from tests.arrays import normal
from tests.layers_support import Add, ran


def test_bilinear_against_torch():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Bilinear(3, 4, 5)
    layer = Bilinear((3, 4), 5)
    ps, st = culux.setup(0, layer)
    assert {name: tuple(p.shape) for name, p in theirs.named_parameters()} == {k: v.shape for k, v in ps.items()}
    bound = 1 / np.sqrt(3)
    for value in ps.values():
        assert 0.7 * bound < np.abs(value).max() <= bound
    x, y = normal(2, 6, 3, dtype=np.float32), normal(2, 6, 4, seed=1, dtype=np.float32)
    ps = culux.Tree({name: p.detach().numpy() for name, p in theirs.named_parameters()})
    expected = theirs(torch.tensor(x), torch.tensor(y))
    (expected**2).sum().backward()
    np.testing.assert_allclose(layer((x, y), ps, st)[0], expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    grads = culux.gradient(lambda ps: (layer((x, y), ps, st)[0] ** 2).sum(), ps)
    for name, p in theirs.named_parameters():
        np.testing.assert_allclose(grads[name], p.grad.numpy(), rtol=1e-3, atol=1e-4)


def test_bilinear_shapes():
    assert culux.output_shape(Bilinear((3, 4), 5), ((2, 6, 3), (2, 6, 4))) == (2, 6, 5)
    assert culux.output_shape(Bilinear(3, 5), (2, 3)) == (2, 5)
    assert ran(Bilinear((3, 4), 5), (np.ones(3), np.ones(4)))[0].shape == (5,)
    assert ran(Bilinear((3, 4), 5), (np.ones((0, 3)), np.ones((0, 4))))[0].shape == (0, 5)


def test_maxout_has_copies():
    copies = Maxout(lambda: Dense(3, 4), 2)
    assert copies == Maxout(Dense(3, 4), 2) == Maxout(Dense(3, 4), Dense(3, 4))
    assert repr(copies) == "Maxout(Dense(3, 4), Dense(3, 4))"
    x = normal(5, 3, dtype=np.float32)
    y, ps, _ = ran(copies, x)
    assert np.any(ps.layer_1.weight != ps.layer_2.weight)
    outputs = [x @ p.weight.T + p.bias for p in ps.values()]
    np.testing.assert_allclose(y, np.maximum(*outputs), rtol=1e-5, atol=1e-6)
    assert culux.output_shape(copies, (5, 3)) == (5, 4)
    np.testing.assert_array_equal(ran(Maxout(cnp.sin, cnp.cos), x)[0], np.maximum(np.sin(x), np.cos(x)))


def test_maxout_shares_the_gradient_of_ties():
    layer = Maxout(lambda x: 2 * x, lambda x: x + 1)
    ps, st = culux.setup(0, layer)
    found = culux.gradient(lambda x: layer(x, ps, st)[0].sum(), np.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(found, [1, 1.5, 2])


def test_maxout_keeps_states():
    layer = Maxout(BatchNorm(3), Dropout(0.5))
    y, _, st = ran(layer, normal(5, 3, dtype=np.float32))
    _, after = layer(normal(5, 3, dtype=np.float32), culux.setup(0, layer)[0], st)
    assert y.shape == (5, 3)
    assert np.any(after.layer_1.running_mean)
    assert after.layer_2.rng.counter[0] == 2


def test_pairwise_fusion():
    layer = PairwiseFusion(cnp.subtract, left=Dense(3, 4), right=np.sin)
    x, y, z = (normal(2, n, seed=n, dtype=np.float32) for n in (3, 4, 1))
    found, ps, _ = ran(layer, (x, y, z))
    expected = np.sin(x @ ps.left.weight.T + ps.left.bias - y) - z
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert culux.output_shape(layer, ((2, 3), (2, 4), (2, 1))) == (2, 4)
    assert repr(layer) == "PairwiseFusion(subtract, left=Dense(3, 4), right=WrappedFunction(sin))"
    x = normal(2, 3)
    np.testing.assert_allclose(ran(PairwiseFusion(cnp.multiply, cnp.sin), x)[0], np.sin(x) * x)


def test_pairwise_fusion_by_a_layer_threads_its_state():
    layer = PairwiseFusion(Add(), Scale(3), Scale(3))
    x = normal(2, 3, dtype=np.float32)
    ps, st = culux.setup(0, layer)
    y, after = layer(x, ps, st)
    np.testing.assert_allclose(y, 3 * x, rtol=1e-6)
    assert list(ps) == ["layer_1", "layer_2", "connection"]
    assert after.connection.calls == 2


def test_repeated_layers_share_parameters_and_thread_states():
    x = normal(6, 3, dtype=np.float32)
    layer = RepeatedLayer(Dense(3, 3), repeats=3)
    y, ps, _ = ran(layer, x)
    expected = x
    for _ in range(3):
        expected = expected @ ps.weight.T + ps.bias
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert culux.output_shape(layer, (6, 3)) == (6, 3)
    dropout = RepeatedLayer(Dropout(0.5))
    ps, st = culux.setup(0, dropout)
    assert dropout(x, ps, st)[1].rng.counter[0] == 10 * -(-x.size // 8)
    assert repr(RepeatedLayer(Dense(3, 3), repeats=2, input_injection=True)) == (
        "RepeatedLayer(Dense(3, 3), repeats=2, input_injection=True)"
    )


def test_reverse_sequence():
    x = normal(2, 3, 4)
    np.testing.assert_array_equal(ran(ReverseSequence(), x)[0], x[:, ::-1])
    np.testing.assert_array_equal(ran(ReverseSequence(-1), x)[0], x[..., ::-1])
    np.testing.assert_array_equal(ran(ReverseSequence(), x[0, 0])[0], x[0, 0, ::-1])


def test_alternate_precision():
    seen = []

    def note(x):
        seen.append(culux.stop_gradient(x).dtype.name)
        return x * 2

    layer = AlternatePrecision(np.float16, note)
    ps, st = culux.setup(0, layer)
    x = np.array([1.0001, 3.0], np.float32)
    y, _ = layer(x, ps, st)
    assert (seen, y.dtype) == (["float16"], np.float32)
    np.testing.assert_array_equal(y, [2, 6])
    assert culux.gradient(lambda x: layer(x, ps, st)[0].sum(), x).dtype == np.float32
    assert AlternatePrecision("float16", Dense(2, 3)) == AlternatePrecision(np.dtype("float16"), Dense(2, 3))
    assert repr(AlternatePrecision("float16", Dense(2, 3))) == "AlternatePrecision('float16', Dense(2, 3))"
    assert culux.output_shape(AlternatePrecision("float64", Dense(2, 3)), (5, 2)) == (5, 3)


def test_refused_arguments():
    with pytest.raises(LayerError, match=r"the lengths of both inputs are a pair: Bilinear\(\(3, 4\), 5\)"):
        Bilinear(3, 4, 5)
    with pytest.raises(LayerError, match=r"Bilinear: expected in_dims to be an int or a pair \(in1, in2\), got \(1, 2"):
        Bilinear((1, 2, 3), 4)
    with pytest.raises(LayerError, match="Bilinear: expected in_dims to be a positive int, got int 0"):
        Bilinear((3, 0), 4)
    with pytest.raises(LayerError, match="Maxout: expected the number of copies to be a positive int, got int 0"):
        Maxout(Dense(2, 3), 0)
    with pytest.raises(LayerError, match="Maxout: expected at least one layer"):
        Maxout()
    with pytest.raises(LayerError, match="PairwiseFusion: expected connection to be a function or a layer, got None"):
        PairwiseFusion(None, Dense(2, 3))
    with pytest.raises(LayerError, match="RepeatedLayer: expected repeats to be a positive int, got int 0"):
        RepeatedLayer(Dense(2, 2), repeats=0)
    with pytest.raises(LayerError, match="RepeatedLayer: expected layers or functions, got int 3"):
        RepeatedLayer(3)
    with pytest.raises(LayerError, match="ReverseSequence: expected axis to be None or an int, got str 'time'"):
        ReverseSequence("time")
    with pytest.raises(DTypeError, match=r"expected one of float16, .*, got int32: only floats are converted"):
        AlternatePrecision("int32", Dense(2, 2))
    with pytest.raises(LayerError, match="AlternatePrecision: expected layers or functions, got str 'float16'"):
        AlternatePrecision("float16", "float16")


def test_refused_inputs():
    with pytest.raises(LayerError, match="expected x to be a pair of arrays, got a tuple of 3"):
        ran(Bilinear(3, 4), (np.ones(3),) * 3)
    with pytest.raises(ShapeError, match=r"expected x.shape\[-1\] == 4, got 5 \(x has shape \(2, 5\)\)"):
        ran(Bilinear((3, 4), 2), (np.ones((2, 3)), np.ones((2, 5))))
    with pytest.raises(ShapeError, match=r"with the same leading axes, got \(2, 3\) and \(1, 4\)"):
        ran(Bilinear((3, 4), 2), (np.ones((2, 3)), np.ones((1, 4))))
    with pytest.raises(DTypeError, match="bilinear: expected y to be a float array, got int64"):
        ran(Bilinear((3, 4), 2), (np.ones((2, 3)), np.ones((2, 4), np.int64)))
    with pytest.raises(ShapeError, match="expected a tuple of 3 inputs, one more than there are layers, got 2"):
        ran(PairwiseFusion(cnp.add, Dense(3, 3), Dense(3, 3)), (np.ones(3), np.ones(3)))
    with pytest.raises(ShapeError, match=r"expected x.ndim >= 3, got 2 \(x has shape \(2, 3\)\)"):
        ran(ReverseSequence(2), np.ones((2, 3)))
    with pytest.raises(DTypeError, match="AlternatePrecision: expected x to be a float array, got int64"):
        ran(AlternatePrecision("float16", Scale(3)), np.ones(3, np.int64))
