"""The layers: as values, initial values, states in training and test mode."""

from __future__ import annotations

import copy
import inspect
import operator
import pickle
import re

import numpy as np
import pytest

import culux
from culux import layers
from culux.errors import LayerError, ShapeError
from culux.layers import (
    BatchNorm,
    BranchLayer,
    Chain,
    Dense,
    Dropout,
    FlattenLayer,
    LayerNorm,
    NoOpLayer,
    Parallel,
    ReshapeLayer,
    Scale,
    SelectDim,
    SkipConnection,
    WrappedFunction,
)
from culux.nn import relu, tanh
from tests.layers_support import RNG, X, ran
from tests.support import requires

# Values


MODELS = [
    Dense(3, 4),
    Dense(3, 4, relu, use_bias=False),
    Scale(3),
    Scale((2, 3), tanh),
    WrappedFunction(relu),
    WrappedFunction(relu.__class__()),
    NoOpLayer(),
    FlattenLayer(),
    ReshapeLayer((2, -1)),
    SelectDim(1, -1),
    BatchNorm(3, relu, momentum=0.2),
    BatchNorm(3, affine=False, track_stats=False),
    LayerNorm(3),
    LayerNorm((2, 3), relu, epsilon=0.1),
    Dropout(0.25),
    Chain(Dense(3, 4), relu, Chain(Dropout(0.5))),
    Chain(a=Dense(3, 4), b=relu),
    Chain(Dense(3, 4), relu)[1:],
    Parallel(None, Dense(3, 4), relu),
    Parallel(np.add, one=Dense(3, 4), two=relu),
    Parallel(Scale(3), Dense(3, 3), relu),
    BranchLayer(Dense(3, 4), relu),
    BranchLayer(relu, fusion=operator.add),
    SkipConnection(Dense(3, 3), operator.add),
    SkipConnection(Chain(Dense(3, 3)), Scale(3)),
]


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_layers_are_values_and_their_repr_is_the_call(model):
    names = {**vars(layers), "relu": relu, "tanh": tanh, "add": operator.add}
    names["add"] = np.add if isinstance(model, Parallel) else operator.add
    assert eval(repr(model), names) == model
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other == model
        assert hash(other) == hash(model)
    assert sum(other == model for other in MODELS) == 1 + (model == WrappedFunction(relu))
    assert str(model).splitlines()[-1].startswith("total: ")


def test_lists_of_lengths_are_taken():
    assert LayerNorm([2, 3]) == LayerNorm((2, 3))
    assert ReshapeLayer([2, 3]) == ReshapeLayer((2, 3))


LAYERS = [name for name, value in vars(layers).items() if isinstance(value, type) and issubclass(value, culux.Layer)]


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_documents_its_contract(name):
    text = inspect.getdoc(getattr(layers, name))
    for section in ("Inputs", "Returns", "Parameters", "States"):
        assert re.search(rf"^{section}:$", text, re.M), f"{name} has no section {section}"
    assert "``" in text.partition("\n")[0], f"the first line of {name} has no formula"
    if name not in ("NoOpLayer", "FlattenLayer"):
        assert re.search(r"^Args:$", text, re.M), f"{name} has no section Args"


# Initial values


def test_initial_values_are_torchs():
    weight, bias = (culux.setup(0, Dense(400, 300))[0][name] for name in ("weight", "bias"))
    assert weight.dtype == bias.dtype == np.float32
    for array in (weight, bias):
        assert np.abs(array).max() <= 1 / 20
        assert abs(array.mean()) < 0.01
        np.testing.assert_allclose(array.std(), 1 / 20 / np.sqrt(3), rtol=0.1)
    ps, st = culux.setup(0, BatchNorm(3))
    assert [leaf.tolist() for leaf in culux.tree.leaves(ps)] == [[1, 1, 1], [0, 0, 0]]
    assert [st.running_mean.tolist(), st.running_var.tolist(), st.training] == [[0, 0, 0], [1, 1, 1], True]
    assert [leaf.tolist() for leaf in culux.tree.leaves(culux.setup(0, Scale(2))[0])] == [[1, 1], [0, 0]]


def test_initialisers_are_called_with_rng_and_shape():
    made = Dense(3, 2, init_weight=lambda rng, shape: np.full(shape, 7.0), init_bias=lambda rng, shape: np.zeros(shape))
    ps, _ = culux.setup(0, made)
    np.testing.assert_array_equal(ps.weight, np.full((2, 3), 7.0))
    np.testing.assert_array_equal(ps.bias, [0, 0])
    with pytest.raises(
        ShapeError, match=r"expected init_weight\(rng, \(2, 3\)\) to return an array of this shape, got float64"
    ):
        culux.setup(0, Dense(3, 2, init_weight=lambda rng, shape: np.ones(3)))
    with pytest.raises(LayerError, match="Dense: expected init_bias to be a function"):
        Dense(3, 2, init_bias=0.0)


# States in training and test mode


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), (3, 3, 2, 5)])
@pytest.mark.parametrize("momentum", [0.1, 0.3])
def test_running_statistics_are_torchs(shape, momentum):
    torch = requires("torch")
    twin = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}[len(shape)](3, momentum=momentum)
    model = BatchNorm(3, momentum=momentum)
    ps, st = culux.setup(0, model)
    for step in range(4):
        x = (RNG.standard_normal(shape) * (step + 1) + step).astype(np.float32)
        y, st = model(x, ps, st)
        np.testing.assert_allclose(y, twin(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(st.running_mean, twin.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(st.running_var, twin.running_var.numpy(), rtol=1e-5)
    assert st.running_var.dtype == np.float32
    test = culux.test_mode(st)
    y, new = model(x, ps, test)
    np.testing.assert_allclose(y, twin.eval()(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert new is test


def test_batch_norm_without_running_statistics():
    model = BatchNorm(3, track_stats=False)
    y, ps, st = ran(model, X)
    assert list(st) == ["training"]
    np.testing.assert_allclose(y, (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(model(X, ps, culux.test_mode(st))[0], y)
    assert model(X, ps, st)[1] is st


def test_batch_norm_needs_more_than_one_value_per_channel_in_training():
    ps, st = culux.setup(0, BatchNorm(3))
    with pytest.raises(ShapeError, match=r"expected more than one value per channel when training, .*test_mode\(st\)"):
        BatchNorm(3)(X[:1], ps, st)
    assert BatchNorm(3)(X[:1], ps, culux.test_mode(st))[0].shape == (1, 3)
    assert BatchNorm(3)(np.ones((1, 3, 2), np.float32), ps, st)[0].shape == (1, 3, 2)


def test_the_statistics_in_st_do_not_change_in_place():
    ps, st = culux.setup(0, BatchNorm(3))
    before = st.running_mean.copy()
    _, new = BatchNorm(3)(X, ps, st)
    np.testing.assert_array_equal(st.running_mean, before)
    assert not np.array_equal(new.running_mean, before)


def test_dropout_keeps_the_mean_and_moves_its_random_state_on():
    model, x = Dropout(0.25), np.ones((400, 100), np.float32)
    y, ps, st = ran(model, x)
    assert list(st) == ["rng", "training"]
    assert (st.rng.key.dtype, st.rng.counter.shape) == (np.uint64, (4,))
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose((y == 0).mean(), 0.25, atol=0.01)
    np.testing.assert_array_equal(model(x, ps, st)[0], y)
    again, _ = model(x, ps, model(x, ps, st)[1])
    assert not np.array_equal(again, y)
    test = culux.test_mode(st)
    assert model(x, ps, test)[0] is x
    assert model(x, ps, test)[1] is test
    assert y.dtype == np.float32


def test_dropout_at_its_limits():
    y, ps, st = ran(Dropout(0), X)
    assert y is X
    assert Dropout(0)(X, ps, st)[1] is st
    y, _, _ = ran(Dropout(1), X)
    np.testing.assert_array_equal(y, np.zeros_like(X))
    for p in (-0.1, 1.5, "0.5", True, None):
        with pytest.raises(LayerError, match="Dropout: expected p to be a number between 0 and 1, got"):
            Dropout(p)


def test_dropout_refuses_what_is_no_random_state():
    for rng in (3, None, np.random.default_rng(0)):
        with pytest.raises(
            LayerError, match=r"expected st\.rng to be a random state Tree\(key.*culux\.setup\(rng, model"
        ):
            Dropout(0.5)(X, {}, {"rng": rng, "training": True})


@pytest.mark.parametrize("layer", [BatchNorm(3), Dropout(0.5)], ids=repr)
def test_the_mode_is_a_bool(layer):
    ps, st = culux.setup(0, layer)
    for mode in ("no", None, 2, 1.0, np.ones(1)):
        with pytest.raises(
            LayerError, match=r"expected st\.training to be a bool, got .*train_mode\(st\) or culux\.test_mode\(st\)"
        ):
            layer(X, ps, culux.update_state(st, "training", mode))
    for modes in ((True, 1, np.True_, np.array(True)), (False, 0, np.False_, np.array(False))):
        expected = layer(X, ps, culux.update_state(st, "training", modes[0]))[0]
        for mode in modes:
            np.testing.assert_array_equal(layer(X, ps, culux.update_state(st, "training", mode))[0], expected)
