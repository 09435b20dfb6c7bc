"""Options that Lux has and torch has not: what they refuse, and the shapes and states that they have."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import GRU, BidirectionalRNN, Dropout, Embedding, GRUCell, LayerNorm, LSTMCell, Recurrence, init, nn
from culux.errors import LayerError, ShapeError
from culux.layers import VariationalHiddenDropout

X = np.random.default_rng(0).standard_normal((5, 4, 2), dtype=np.float32)  # (time, batch, features)


def run(layer, x=X):
    ps, st = culux.setup(0, layer)
    return layer(x, ps, st)[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dropout(0.5, axes=1), r"Dropout: expected axes to be None or a tuple of ints, got int 1"),
        (
            lambda: VariationalHiddenDropout(0.5, axes=("a",)),
            r"VariationalHiddenDropout: expected axes to be None or a",
        ),
        (lambda: LayerNorm(3, over="batch"), r'LayerNorm: expected over to be "trailing" or "all", got str \'batch\''),
        (lambda: Embedding((3, 0), 2), r"expected num_embeddings to be a positive int or a tuple of them, got tuple"),
        (lambda: GRUCell(2, 3, init_state=3), r"GRUCell: expected init_state to be a function \(rng, shape\) -> array"),
        (lambda: LSTMCell(2, 3, init_memory="x"), r"LSTMCell: expected init_memory to be a function \(rng, shape\)"),
        (
            lambda: Recurrence(GRUCell(2, 3), time_axis=2),
            r"Recurrence: expected time_axis to be 1, for \(batch, time, features\), or 0, .* got int 2",
        ),
        (lambda: BidirectionalRNN(GRUCell(2, 3), time_axis=True), "BidirectionalRNN: expected time_axis to be 1, for"),
        (lambda: GRU(2, 3, time_axis=-2), r"GRU: expected time_axis to be 1, for .* got int -2"),
    ],
)
def test_arguments(make, message):
    with pytest.raises(LayerError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (Dropout(0.5, axes=(3,)), X, r"expected axes from -3 to 2, got \(3,\) \(x has shape \(5, 4, 2\)\)"),
        (VariationalHiddenDropout(0.5, axes=(-4,)), X, r"expected axes from -3 to 2, got \(-4,\)"),
        (Embedding((3, 4), 2), np.zeros(2, int), "expected x to be a tuple of 2 arrays of ids, got int64 a"),
        (Embedding((3, 4), 2), (np.zeros(2, int),) * 3, "expected x to be a tuple of 2 arrays of ids, got tuple"),
        (Embedding((3, 4), 2), (np.zeros(2, int), np.full(2, 4)), "ids from 0 to 3 for the 4 rows of weight, got 4 at"),
        (
            Embedding((3, 4), 2), (np.zeros(2, int), np.zeros(3, int)),
            r"embedding: expected ids of one shape, got \(2,\) and \(3,\)",
        ),
        (
            Recurrence(GRUCell(2, 3), time_axis=0), X[:0],
            r"expected x of shape \(time, batch, features\), time > 0, got \(0, 4, 2\)",
        ),
        (GRU(2, 3, time_axis=0), X[0], r"expected x of shape \(time, batch, features\), time > 0, got \(4, 2\)"),
    ],
)  # fmt: skip
def test_inputs(layer, x, message):
    with pytest.raises(ShapeError, match=message):
        run(layer, x)


def test_embedding_of_a_tuple_needs_a_weight_with_as_many_axes():
    with pytest.raises(
        ShapeError, match=r"expected weight of shape \(rows, rows, dims\) for a tuple of 2 ids, got \(3, 2"
    ):
        nn.embedding((np.zeros(2, int), np.zeros(2, int)), np.ones((3, 2), np.float32))


def test_ids_that_number_another_row_are_refused_on_the_gpu_too(standin_cupy):
    gpu, layer = culux.gpu_device(force=True), Embedding((3, 4), 2)
    ps, st = culux.setup(0, layer, device=gpu)
    y, _ = layer((gpu(np.array([0, 1])), gpu(np.array([4, 0]))), ps, st)  # 0 * 4 + 4 is the number of (1, 0)
    with pytest.raises(ShapeError, match="ids"):
        culux.to_numpy(y)


def test_dropout_along_some_axes_drops_whole_channels():
    x = np.ones((6, 5, 3, 4), np.float32)
    y = run(Dropout(0.5, axes=(0, 1)), x)
    assert {tuple(np.unique(channel)) for channel in y.reshape(30, 12)} == {(0.0,), (2.0,)}


def test_dropout_along_some_axes_moves_the_counter_by_the_mask():
    layer = Dropout(0.5, axes=(0, 1))
    ps, st = culux.setup(0, layer)
    _, after = layer(np.ones((6, 5, 3, 4), np.float32), ps, st)
    assert after.rng.counter[0] - st.rng.counter[0] == 4  # ceil(30 / 8)


def test_a_variational_mask_fits_other_lengths_of_the_other_axes():
    layer = VariationalHiddenDropout(0.5, axes=(0, 2))
    ps, st = culux.setup(0, layer)
    first, st = layer(np.ones((4, 7, 3), np.float32), ps, st)
    second, _ = layer(np.ones((4, 2, 3), np.float32), ps, st)
    assert st.mask.shape == (4, 1, 3)
    np.testing.assert_array_equal(first[:, :2], second)


@pytest.mark.parametrize("layer", [GRU(2, 3, return_carry=True), GRU(2, 3, bidirectional=True, num_layers=2)])
def test_time_first_is_the_other_order_of_the_same(layer):
    first = type(layer)(**{**layer._fields(), "time_axis": 0})
    ps, st = culux.setup(0, layer)
    lengths = np.array([5, 1, 3, 4])
    expected, _ = layer((X.swapaxes(0, 1), lengths), ps, st)
    found, _ = first((X, lengths), ps, st)
    if layer.return_carry:
        np.testing.assert_array_equal(found[1][0], expected[1][0])
        found, expected = found[0], expected[0]
    np.testing.assert_array_equal(found.swapaxes(0, 1), expected)
    assert culux.output_shape(GRU(2, 3, time_axis=0), X.shape) == (5, 4, 3)


def test_the_shapes_of_sequences_with_the_time_first():
    assert (
        culux.output_shape(Recurrence(GRUCell(2, 3), time_axis=0), X.shape)
        == run(Recurrence(GRUCell(2, 3), time_axis=0)).shape
        == (4, 3)
    )
    both = BidirectionalRNN(GRUCell(2, 3), time_axis=0)
    assert culux.output_shape(both, X.shape) == run(both).shape == (5, 4, 6)


def test_a_first_state_is_drawn_once_and_kept():
    layer = Recurrence(LSTMCell(2, 3, init_state=init.normal, train_memory=True, init_memory=init.ones))
    ps, st = culux.setup(0, layer)
    assert list(st) == ["hidden_state"]
    np.testing.assert_array_equal(ps.memory, np.ones(3))
    y, after = layer(X, ps, st)
    assert after is st
    np.testing.assert_array_equal(y, layer(X, ps, st)[0])
    assert not np.array_equal(y, layer(X, ps, st.replace(hidden_state=st.hidden_state + 1))[0])
