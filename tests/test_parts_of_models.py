"""`Frozen`, `Shared` and `layer_map`: parameters that move, that stand twice, and layers that are replaced."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import culux
from culux import Chain, Dense, Dropout, Frozen, Shared, WeightNorm, losses, optim, serialization, training
from culux.errors import EntryError, LayerError, ShapeError

X = np.random.default_rng(0).standard_normal((5, 3), dtype=np.float32)


def same(a, b):
    assert culux.tree.structure(a) == culux.tree.structure(b)
    for one, other in zip(culux.tree.leaves(a), culux.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


def model():
    return Chain(Dense(3, 4, culux.tanh), Dropout(0.5), Dense(4, 2))


# -- Frozen


def test_freezing_moves_parameters_to_the_states_and_back():
    ps, st = culux.setup(0, model())
    frozen, trained, states = culux.freeze(model(), ps, st, "layer_1.*")
    assert frozen == Frozen(model(), "layer_1.*")
    assert list(trained) == ["layer_1", "layer_2", "layer_3"]
    assert [path for path, _ in culux.tree.leaves_with_path(trained)] == ["layer_3.weight", "layer_3.bias"]
    same(frozen(X, trained, states)[0], model()(X, ps, st)[0])
    layer, back, states = culux.unfreeze(frozen, trained, states)
    assert layer == model()
    same((back, states), (ps, st))


def test_setup_has_the_structure_that_freezing_gives():
    frozen = Frozen(model(), ("*.weight", "layer_1.bias"))
    ps, st = culux.setup(1, frozen)
    _, trained, states = culux.freeze(model(), *culux.setup(0, model()), frozen.which)
    assert culux.tree.structure((ps, st)) == culux.tree.structure((trained, states))
    assert [path for path, _ in culux.tree.leaves_with_path(ps)] == ["layer_3.bias"]


def test_states_of_a_frozen_layer_move_on_and_switch():
    frozen = Frozen(model())
    ps, st = culux.setup(0, frozen)
    assert culux.tree.leaves(ps) == []
    _, after = frozen(X, ps, st)
    assert (after.states.layer_2.rng.counter != st.states.layer_2.rng.counter).any()
    assert after.frozen is st.frozen
    y, _ = frozen(X, ps, culux.test_mode(st))
    np.testing.assert_array_equal(y, frozen(X, ps, culux.test_mode(st))[0])


def test_no_gradient_is_computed_for_what_is_frozen():
    frozen, ps, st = culux.freeze(model(), *culux.setup(0, model()), "layer_1.*")
    seen = []

    class Watched(culux.Layer):
        def __call__(self, x, ps, st):
            return probe(x), st

    @culux.custom_gradient
    def probe(x):
        return x * 1, lambda dy: (seen.append(dy), dy)[1]

    watched = Chain(frozen.layer[0], Watched(), frozen.layer[2])
    frozen, ps, st = culux.freeze(watched, *culux.setup(0, watched), "layer_1.*")
    grads = culux.gradient(lambda ps: frozen(X, ps, st)[0].sum(), ps)
    assert grads.layer_3.weight.any()
    assert grads.layer_1 == culux.Tree()
    assert seen == []


def test_training_leaves_the_frozen_part_as_it_is():
    frozen, ps, st = culux.freeze(model(), *culux.setup(0, model()), "layer_1.*")
    ts = training.TrainState(frozen, ps, st, optim.Adam(0.1))
    for _ in range(3):
        _, _, ts = training.single_train_step(losses.MSELoss(), (X, np.ones((5, 2), np.float32)), ts)
    same(ts.states.frozen, st.frozen)
    assert (ts.parameters.layer_3.weight != ps.layer_3.weight).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Frozen(3), "Frozen: expected layer to be a layer, got int 3"),
        (lambda: Frozen(Dense(2, 3), 4), r"expected which to be a pattern of paths such as .*, got int 4"),
        (lambda: Frozen(Dense(2, 3), ()), "expected which to be a pattern of paths"),
        (
            lambda: culux.setup(0, Frozen(Dense(2, 3), "head.*")),
            r"no path fits 'head\.\*'; the paths are: weight, bias",
        ),
        (lambda: culux.unfreeze(Dense(2, 3), {}, {}), r"expected unfreeze\(layer, ps, st\) with a Frozen layer, got D"),
    ],
)
def test_what_cannot_be_frozen(make, message):
    with pytest.raises((LayerError, EntryError), match=message):
        make()


# -- Shared

TIES = {"head.weight": "embedding.weight"}


def language_model():
    return Chain(embedding=culux.Embedding(7, 3), body=Dense(3, 3, culux.tanh), head=Dense(3, 7))


def shared_loss(ps, st, layer):
    y, _ = layer(np.arange(7), ps, st)
    return (y**2).sum()


def test_a_shared_parameter_is_stored_once_and_its_gradients_are_added():
    layer = Shared(language_model(), TIES)
    ps, st = culux.setup(0, layer)
    assert list(ps.head) == ["bias"]
    assert culux.parameter_length(layer) == culux.parameter_length(language_model()) - 21
    whole = ps.replace(head=ps.head | {"weight": ps.embedding.weight})
    same(layer(np.arange(7), ps, st)[0], language_model()(np.arange(7), whole, st)[0])
    grads = culux.gradient(lambda ps: shared_loss(ps, st, layer), ps)
    apart = culux.gradient(lambda ps: shared_loss(ps, st, language_model()), whole)
    np.testing.assert_allclose(grads.embedding.weight, apart.embedding.weight + apart.head.weight, rtol=1e-5)
    assert culux.tree.structure(grads) == culux.tree.structure(ps)


def test_a_shared_layer():
    layer = Shared(Chain(Dense(3, 3), culux.relu, Dense(3, 3)), {"layer_3": "layer_1"})
    ps, st = culux.setup(0, layer)
    assert ps.layer_3 == culux.Tree()
    y = np.maximum(X @ ps.layer_1.weight.T + ps.layer_1.bias, 0) @ ps.layer_1.weight.T + ps.layer_1.bias
    np.testing.assert_allclose(layer(X, ps, st)[0], y, rtol=1e-5)


def test_sharing_survives_update_move_save_and_load(tmp_path, standin_cupy):
    layer = Shared(language_model(), TIES)
    ts = training.TrainState.create(0, layer, optim.Adam(0.1))
    _, _, ts = training.single_train_step(lambda layer, ps, st, batch: (shared_loss(ps, st, layer), st, {}), None, ts)
    serialization.save(tmp_path / "ts", ts)
    loaded = serialization.load(tmp_path / "ts", like=ts)
    moved = culux.gpu_device(force=True)(loaded)
    for new in (loaded, culux.cpu_device()(moved)):
        same(new.parameters, ts.parameters)
        assert [path for path, _ in culux.tree.leaves_with_path(new.parameters)] == [
            "embedding.weight", "body.weight", "body.bias", "head.bias",
        ]  # fmt: skip
    gpu = culux.gpu_device(force=True)
    y, _ = layer(gpu(np.arange(7)), moved.parameters, moved.states)
    np.testing.assert_allclose(culux.to_numpy(y), layer(np.arange(7), ts.parameters, ts.states)[0], rtol=1e-5)


def test_shared_layers_are_records():
    layer = Shared(language_model(), TIES)
    assert layer == Shared(language_model(), [("head.weight", "embedding.weight")])
    assert pickle.loads(pickle.dumps(layer)) == layer
    assert repr(layer).endswith("(('head.weight', 'embedding.weight'),))")
    assert culux.output_shape(layer, (5,)) == (5, 7)


@pytest.mark.parametrize(
    ("error", "layer", "ties", "message"),
    [
        (LayerError, 3, TIES, "Shared: expected layer to be a layer, got int 3"),
        (LayerError, language_model(), {}, "expected ties to be a dict of paths in ps, such as"),
        (LayerError, language_model(), {"head.weight": 3}, "expected ties to be a dict of paths in ps, such as"),
        (LayerError, language_model(), "head", "expected ties to be a dict of paths in ps, such as"),
        (LayerError, language_model(), {"head": "head"}, "'head' takes the place of 'head' and is not stored, so"),
        (
            LayerError, language_model(), {"head.bias": "body.bias", "body.bias": "head.weight"},
            "'head.bias' takes the place of 'body.bias' and is not stored, so|'body.bias' takes the place of",
        ),
        (LayerError, language_model(), {"head": "body", "head.bias": "body.bias"}, "name for every path the one place"),
        (EntryError, language_model(), {"tail.weight": "embedding.weight"}, "expected an entry .tail., the entries"),
        (EntryError, language_model(), {"head.weight.a": "body.bias"}, "'head.weight.a' leads into a parameter"),
        (
            ShapeError, language_model(), {"head.bias": "body.bias"},
            r"expected parameters of the same names, shapes and dtypes at 'head\.bias' and 'body\.bias', got float32 "
            r"array of shape \(7,\) and float32 array of shape \(3,\)",
        ),
        (ShapeError, Chain(Dense(2, 2), culux.relu), {"layer_2": "layer_1"}, "got none and weight float32 array of s"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared(error, layer, ties, message):
    with pytest.raises(error, match=message):
        culux.setup(0, Shared(layer, ties))


# -- layer_map


def test_layer_map_sees_every_layer_with_its_parameters_and_states():
    block = culux.SkipConnection(Chain(Dense(3, 3), Dropout(0.1)), culux.numpy.add)
    whole = Chain(block=block, stem=WeightNorm(Dense(3, 4), "weight"), rnn=culux.LSTM(4, 2))
    ps, st = culux.setup(0, whole)
    seen = {}

    def note(path, layer, ps, st):
        seen[path] = layer, ps, st
        return layer, ps, st

    layer, new_ps, new_st = culux.layer_map(note, whole, ps, st)
    assert layer is whole
    same((new_ps, new_st), (ps, st))
    assert {path: type(layer).__name__ for path, (layer, _, _) in seen.items()} == {
        "block.layers.layer_1": "Dense", "block.layers.layer_2": "Dropout", "stem": "WeightNorm", "rnn": "LSTM",
    }  # fmt: skip
    assert seen["block.layers.layer_1"][1] is ps.block.layers.layer_1
    assert seen["block.layers.layer_2"][2] is st.block.layers.layer_2


def test_layer_map_replaces_layers_at_any_depth():
    class Net(culux.ContainerLayer):
        stem: culux.Layer
        tail: tuple[culux.Layer, ...]
        heads: dict[str, culux.Layer]

        def forward(self, m, x):
            x = m.stem(x)
            for layer in m.tail:
                x = layer(x)
            return m.heads["a"](x)

    net = Net(Dense(3, 4), (Chain(Dense(4, 4), Dropout(0.5)), Dense(4, 4)), {"a": Dense(4, 2)})
    ps, st = culux.setup(0, net)

    def widen(path, layer, ps, st):
        if path != "tail_1.layer_2":
            return layer, ps, st
        scale = culux.Scale(4)
        return scale, *culux.setup(1, scale)

    new, new_ps, new_st = culux.layer_map(widen, net, ps, st)
    assert repr(new) == repr(net).replace("Dropout(0.5)", "Scale(4)")
    assert list(new_ps.tail_1.layer_2) == ["weight", "bias"]
    y, _ = new(X, new_ps, new_st)
    before, _ = net(X, ps, culux.test_mode(st))
    assert y.shape == before.shape
    assert "Dropout" in repr(net)
    layers = culux.layer_map(lambda path, layer, ps, st: (layer, ps, st), new, new_ps, new_st)[0]
    assert layers is new


def test_layer_map_freezes_a_layer_inside():
    whole = Chain(Dense(3, 4), Dense(4, 2))
    ps, st = culux.setup(0, whole)

    def freeze(path, *bound):
        return culux.freeze(*bound) if path == "layer_1" else bound

    new, new_ps, new_st = culux.layer_map(freeze, whole, ps, st)
    assert new == Chain(Frozen(Dense(3, 4)), Dense(4, 2))
    same(new(X, new_ps, new_st)[0], whole(X, ps, st)[0])


def test_layer_map_on_one_layer_and_on_a_wrapper():
    ps, st = culux.setup(0, Dense(3, 2))

    def double(path, layer, ps, st):
        return (layer, culux.tree.map(lambda a: 2 * a, ps), st)

    _, new, _ = culux.layer_map(double, culux.RepeatedLayer(Dense(3, 2)), ps, st)
    np.testing.assert_array_equal(new.weight, 2 * ps.weight)


@pytest.mark.parametrize("result", [None, (1, 2, 3), (Dense(2, 2), {})])
def test_layer_map_says_what_f_returns(result):
    whole = Chain(Dense(3, 2))
    with pytest.raises(
        LayerError, match=r"expected f\(path, layer, ps, st\) to return \(layer, ps, st\), got .* for l"
    ):
        culux.layer_map(lambda *_: result, whole, *culux.setup(0, whole))
    with pytest.raises(LayerError, match=r"expected layer_map\(f, layer, ps, st\), got int 3 for the layer"):
        culux.layer_map(lambda *_: result, 3, {}, {})
