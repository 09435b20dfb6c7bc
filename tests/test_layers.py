"""The layers: containers, their names and errors, states in training and test mode, initial values."""

from __future__ import annotations

import copy
import operator
import pickle
import re

import numpy as np
import pytest

import culux
from culux import layers
from culux.errors import EntryError, LayerError, ShapeError
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
from tests.support import requires

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 3)).astype(np.float32)


def ran(layer, x, seed=0):
    ps, st = culux.setup(seed, layer)
    return layer(x, ps, st)[0], ps, st


class Add(culux.Layer):
    """A connection that is a layer: it gets a tuple."""

    def initial_parameters(self, rng):
        return {"gain": np.ones(1, np.float32)}

    def initial_states(self, rng):
        return {"calls": 0}

    def output_shape(self, input_shape):
        return input_shape[0]

    def __call__(self, x, ps, st):
        return ps.gain * sum(x), st.replace(calls=st.calls + 1)


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
    text = getattr(layers, name).__doc__
    for section in ("Inputs", "Returns", "Parameters", "States"):
        assert re.search(rf"^    {section}:$", text, re.M), f"{name} has no section {section}"
    assert "``" in text.partition("\n")[0], f"the first line of {name} has no formula"
    if name not in ("NoOpLayer", "FlattenLayer"):
        assert re.search(r"^    Args:$", text, re.M), f"{name} has no section Args"


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


# Shapes


def test_reshaping_layers():
    x = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(ran(FlattenLayer(), x)[0], x.reshape(2, 12))
    np.testing.assert_array_equal(ran(ReshapeLayer((4, -1)), x)[0], x.reshape(2, 4, 3))
    np.testing.assert_array_equal(ran(SelectDim(-1, 2), x)[0], x[..., 2])
    np.testing.assert_array_equal(ran(SelectDim(1, -1), x)[0], x[:, -1])
    assert ran(NoOpLayer(), x)[0] is x


@pytest.mark.parametrize(
    ("layer", "given", "expected"),
    [
        (Dense(3, 4), (7, 3), (7, 4)),
        (Dense(3, 4), (2, 5, 3), (2, 5, 4)),
        (Scale((2, 3)), (4, 2, 3), (4, 2, 3)),
        (WrappedFunction(relu), (2, 3), (2, 3)),
        (WrappedFunction(np.sin), (2, 3), (2, 3)),
        (FlattenLayer(), (2, 3, 4), (2, 12)),
        (FlattenLayer(), (2,), (2, 1)),
        (ReshapeLayer((2, -1)), (5, 6), (5, 2, 3)),
        (SelectDim(-2, 0), (2, 3, 4), (2, 4)),
        (BatchNorm(3), (2, 3, 4), (2, 3, 4)),
        (LayerNorm(4), (2, 3, 4), (2, 3, 4)),
        (Dropout(0.5), (2, 3), (2, 3)),
        (Chain(Dense(3, 4), relu, Dense(4, 1)), (9, 3), (9, 1)),
        (Parallel(None, Dense(3, 4), Dense(2, 1)), ((9, 3), (9, 2)), ((9, 4), (9, 1))),
        (Parallel(operator.add, Dense(3, 4), Dense(3, 1)), (9, 3), (9, 4)),
        (BranchLayer(Dense(3, 4), relu), (9, 3), ((9, 4), (9, 3))),
        (BranchLayer(relu, relu, fusion=Add()), (9, 3), (9, 3)),
        (SkipConnection(Dense(3, 3), culux.numpy.multiply), (9, 3), (9, 3)),
    ],
    ids=repr,
)
def test_output_shapes(layer, given, expected):
    assert culux.output_shape(layer, given) == expected
    shapes = given if isinstance(given[0], tuple) else (given,)
    x = tuple(RNG.standard_normal(shape).astype(np.float32) for shape in shapes)
    y, _, _ = ran(layer, x if len(x) > 1 else x[0])
    assert (tuple(part.shape for part in y) if isinstance(y, tuple) else y.shape) == expected


def test_output_shapes_that_are_not_known():
    with pytest.raises(LayerError, match=r"the output shape of the function <lambda> is not known without calling it"):
        culux.output_shape(Chain(lambda x: x), (2, 3))
    with pytest.raises(LayerError, match=r"in BranchLayer.*: the output shape of the function concatenate"):
        culux.output_shape(BranchLayer(relu, fusion=np.concatenate), (2, 3))
    with pytest.raises(ShapeError, match=r"expected outputs that broadcast for add, got \(\(9, 4\), \(9, 2\)\)"):
        culux.output_shape(Parallel(operator.add, Dense(3, 4), Dense(3, 2)), (9, 3))


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (Dense(128, 10), (32, 64), "expected x.shape[-1] == 128, got 64 (x has shape (32, 64))"),
        (Dense(3, 4), (), "expected x.ndim >= 1, got 0 (x has shape ())"),
        (Scale((2, 3)), (5, 3, 2), "expected x.shape[-2:] == (2, 3), got (3, 2) (x has shape (5, 3, 2))"),
        (Scale((2, 3)), (3,), "expected x.ndim >= 2, got 1 (x has shape (3,))"),
        (FlattenLayer(), (), "expected x.ndim >= 1, got 0 (x has shape ())"),
        (
            ReshapeLayer((2, 2)),
            (5, 6),
            "expected samples of 4 elements for the shape (2, 2), got 6 (x has",
        ),
        (ReshapeLayer((4, -1)), (5, 6), "expected samples of 4 elements or a multiple for the shape (4, -1), got 6"),
        (SelectDim(2, 0), (5, 6), "expected x.ndim >= 3, got 2 (x has shape (5, 6))"),
        (SelectDim(1, 6), (5, 6), "expected x.shape[1] > 6, got 6 (x has shape (5, 6))"),
        (BatchNorm(4), (5, 3), "expected x.shape[1] == 4, got 3 (x has shape (5, 3))"),
        (BatchNorm(4), (4,), "expected x.ndim >= 2, got 1 (x has shape (4,))"),
        (LayerNorm((2, 3)), (5, 3), "expected x.shape[-2:] == (2, 3), got (5, 3) (x has shape (5, 3))"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_wrong_shapes_are_told_alike_by_the_call_and_by_output_shape(layer, shape, message):
    text = re.escape(f"in layer_2 ({layer!r}): {message}")
    model = Chain(NoOpLayer(), layer)
    with pytest.raises(ShapeError, match=text):
        ran(model, np.ones(shape, np.float32))
    with pytest.raises(ShapeError, match=text):
        culux.output_shape(model, shape)
    with pytest.raises(ShapeError, match=re.escape(f"in {layer!r}: {message}")):
        culux.output_shape(layer, shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(0, 3), "Dense: expected in_dims to be a positive int, got int 0"),
        (lambda: Dense(3, 2.0), "Dense: expected out_dims to be a positive int, got float 2.0"),
        (lambda: Scale(()), "Scale: expected shape to be a positive int or a tuple of them"),
        (lambda: LayerNorm((2, 0)), "LayerNorm: expected shape to be a positive int or a tuple of them"),
        (lambda: BatchNorm("3"), "BatchNorm: expected channels to be a positive int, got str '3'"),
        (lambda: BatchNorm(3, epsilon=-1), "BatchNorm: expected epsilon to be a number >= 0, got int -1"),
        (lambda: BatchNorm(3, momentum=2), "BatchNorm: expected momentum to be a number between 0 and 1, got int 2"),
        (lambda: ReshapeLayer((-1, -1)), "ReshapeLayer: expected a tuple of lengths without the batch's"),
        (lambda: ReshapeLayer(3), "ReshapeLayer: expected a tuple of lengths without the batch's"),
        (lambda: SelectDim(1, 1.0), "SelectDim: expected index to be an int, got float 1.0"),
        (lambda: WrappedFunction(3), "WrappedFunction: expected a function, got int 3"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(LayerError, match=re.escape(message)):
        make()


def test_x_is_an_array():
    for layer in (Dense(3, 2), BatchNorm(3), LayerNorm(3), Scale(3), FlattenLayer(), Dropout(0.5)):
        with pytest.raises(LayerError, match=r"expected x to be an array, got list .*np.asarray\(x, np.float32\)"):
            ran(layer, [[1.0, 2.0, 3.0]])


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
