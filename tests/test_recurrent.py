"""Recurrent layers beside the catalogue: carries, lengths, dropout, initial values, states, errors."""

from __future__ import annotations

import re

import numpy as np
import pytest

import culux
from culux import GRU, LSTM, RNN, BidirectionalRNN, GRUCell, LSTMCell, Recurrence, RNNCell, StatefulRecurrentCell, nn
from culux.autodiff.tape import ReverseTrace
from culux.errors import DTypeError, LayerError, ShapeError
from culux.training import TrainState, single_train_step
from tests.catalogue.recurrent import Leaky, torch_run
from tests.layers_support import ran
from tests.support import requires

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 6, 2))
H, C = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 3))
LENGTHS = [4, 1, 6, 3]


def wide(layer, seed=0):
    return culux.setup(seed, layer, dtype=np.float64)


# Carries


@pytest.mark.parametrize(("cell", "carry"), [(RNNCell(2, 3), (H,)), (LSTMCell(2, 3), (H, C)), (GRUCell(2, 3), (H,))])
def test_a_cell_goes_on_from_its_carry(cell, carry):
    torch = requires("torch")
    ps, st = wide(cell)
    kind = type(cell).__name__.removesuffix("Cell")

    def total(x, carry, ps):
        (y, new), _ = cell((x, carry), ps, st)
        assert new[0] is y
        return sum((part * (k + 1) ** 2).sum() for k, part in enumerate(new)), new

    (_, new), slopes = culux.value_and_gradient(total, X[:, 0], carry, ps, has_aux=True)
    given = [torch.tensor(a, requires_grad=True) for a in (X[:, :1], *carry, *ps.values())]
    weights = [dict(zip(ps, given[1 + len(carry) :], strict=True))]
    _, expected = torch_run(torch, kind, given[0], weights, carry=tuple(a[None] for a in given[1 : 1 + len(carry)]))
    loss = sum((part * (k + 1) ** 2).sum() for k, part in enumerate(expected))
    for found, part in zip(new, expected, strict=True):
        np.testing.assert_allclose(found, part[0].detach(), rtol=1e-12)
    for found, slope in zip(culux.tree.leaves(slopes), torch.autograd.grad(loss, given), strict=True):
        np.testing.assert_allclose(found, slope.reshape(found.shape), rtol=1e-10)


@pytest.mark.parametrize("layer", [RNN, LSTM, GRU])
def test_a_stacked_layer_goes_on_from_its_carry(layer):
    model = layer(2, 3, num_layers=2, bidirectional=True, return_carry=True)
    ps, st = wide(model)
    carry = tuple(RNG.standard_normal((4, 4, 3)) for _ in range(2 if layer is LSTM else 1))
    (y, last), _ = model((X, LENGTHS, carry), ps, st)
    torch = requires("torch")
    tensors = culux.tree.map(torch.tensor, ps)
    cells = [tensors[level][way] for level in tensors for way in ("forward_rnn", "backward_rnn")]
    expected, after = torch_run(
        torch, layer.__name__, torch.tensor(X), [dict(cell) for cell in cells], num_layers=2, bidirectional=True,
        lengths=torch.tensor(LENGTHS), carry=tuple(map(torch.tensor, carry)),
    )  # fmt: skip
    np.testing.assert_allclose(y, expected, rtol=1e-10)
    assert len(last) == len(after)
    for found, part in zip(last, after, strict=True):
        np.testing.assert_allclose(found, part, rtol=1e-10)
    pieces = []
    start = carry = None
    for part in (X[:, :2], X[:, 2:]):
        one = layer(2, 3, return_carry=True)
        ps, st = wide(one)
        (y, start), _ = one((part, None, start), ps, st)
        pieces.append(y)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), one(X, ps, st)[0][0], rtol=1e-12)


# Lengths


@pytest.mark.parametrize("model", [LSTM(2, 3, bidirectional=True), GRU(2, 3, num_layers=2), RNN(2, 3)], ids=repr)
def test_what_is_in_the_padding_is_not_read(model):
    x = X.copy()
    x[np.arange(6) >= np.array(LENGTHS)[:, None]] = np.nan
    ps, st = wide(model)
    y, _ = model((x, LENGTHS), ps, st)
    np.testing.assert_array_equal(y, model((X, np.array(LENGTHS)), ps, st)[0])
    for row, n in enumerate(LENGTHS):
        np.testing.assert_array_equal(y[row, n:], 0)
        alone, _ = model(X[row : row + 1, :n], ps, st)
        np.testing.assert_allclose(y[row, :n], alone[0], rtol=1e-12)
    dx, dps = culux.gradient(lambda x, ps: (model((x, LENGTHS), ps, st)[0] ** 2).sum(), x, ps)
    assert all(np.isfinite(leaf).all() for leaf in culux.tree.leaves(dps))
    for row, n in enumerate(LENGTHS):
        assert (dx[row, :n] != 0).all()
        np.testing.assert_array_equal(dx[row, n:], 0)


def test_a_sequence_without_steps_keeps_its_carry():
    ps, _ = wide(LSTMCell(2, 3))
    y, (h, c) = nn.lstm(X, **ps, carry=(H, C), lengths=[0, 6, 0, 6])
    np.testing.assert_array_equal(y[::2], 0)
    np.testing.assert_array_equal(h[::2], H[::2])
    np.testing.assert_array_equal(c[::2], C[::2])
    assert (h[1::2] != H[1::2]).all()


def test_a_model_trains_on_pairs_of_x_and_lengths():
    def objective(layer, ps, st, batch):
        (_, carry), st = layer(batch[0], ps, st)
        return ((carry[0][-1] - batch[1]) ** 2).mean(), st, {}

    state = TrainState.create(0, GRU(2, 3, num_layers=2, dropout=0.1, return_carry=True), culux.optim.Adam(0.05))
    batch = ((X.astype(np.float32), np.array(LENGTHS)), np.full((4, 3), 0.5, np.float32))
    losses = []
    for _ in range(30):
        loss, _, state = single_train_step(objective, batch, state)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 4


# Dropout


def test_dropout_is_between_the_levels_and_in_training_only():
    model = GRU(2, 3, num_layers=2, dropout=0.4)
    ps, st = wide(model)
    y, new = model(X, ps, st)
    torch = requires("torch")
    levels = [dict(culux.tree.map(torch.tensor, ps[name])) for name in ("layer_1", "layer_2")]
    between, _ = torch_run(torch, "GRU", torch.tensor(X), levels[:1])
    rng = st.dropout_1.rng
    numbers = np.random.Generator(np.random.Philox(key=rng.key, counter=rng.counter)).random(72, dtype=np.float32)
    mask = torch.tensor(numbers.reshape(4, 6, 3) >= np.float32(0.4)) / 0.6
    expected, _ = torch_run(torch, "GRU", between * mask, levels[1:])
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert (new.dropout_1.rng.counter != rng.counter).any()
    still = culux.test_mode(st)
    calm, after = model(X, ps, still)
    np.testing.assert_allclose(calm, torch_run(torch, "GRU", between, levels[1:])[0], rtol=1e-10)
    assert culux.tree.leaves(after.dropout_1.rng)[0] is culux.tree.leaves(still.dropout_1.rng)[0]
    assert list(culux.initial_states(0, GRU(2, 3, dropout=0.4))) == ["layer_1"]


# One operation


@pytest.mark.parametrize("layer", [Recurrence(LSTMCell(2, 3)), BidirectionalRNN(GRUCell(2, 3)), LSTM(2, 3)], ids=repr)
def test_the_tape_does_not_grow_with_the_steps(layer, monkeypatch):
    seen = []
    process = ReverseTrace.process
    monkeypatch.setattr(ReverseTrace, "process", lambda *a: seen.append(a[1].name) or process(*a))
    ps, st = culux.setup(0, layer)
    counts = []
    for steps in (2, 6):
        seen.clear()
        culux.gradient(lambda ps, steps=steps: layer(X[:, :steps].astype(np.float32), ps, st)[0].sum(), ps)
        counts.append(len(seen))
    assert counts[0] == counts[1] < 20


def test_a_cell_whose_call_is_overridden_is_called():
    class Doubled(LSTMCell):
        def __call__(self, x, ps, st):
            (y, carry), st = super().__call__(x, ps, st)
            return (2 * y, carry), st

    ps, st = culux.setup(0, LSTMCell(2, 3))
    x = X.astype(np.float32)
    for sequence in (False, True):
        plain, _ = Recurrence(LSTMCell(2, 3), return_sequence=sequence)(x, ps, st)
        doubled, _ = Recurrence(Doubled(2, 3), return_sequence=sequence)(x, ps, st)
        np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-6)


def test_states_of_a_cell_move_on_over_the_steps():
    _, ps, st = ran(Recurrence(Leaky()), X)
    assert Recurrence(Leaky())(X, ps, st)[1].steps == 6
    _, new = BidirectionalRNN(Leaky(), LSTMCell(2, 2))(X, *culux.setup(0, BidirectionalRNN(Leaky(), LSTMCell(2, 2))))
    assert new.forward_rnn.steps == 6


# Initial values


@pytest.mark.parametrize("layer", [RNNCell(50, 64), LSTMCell(50, 64), GRUCell(50, 64)])
def test_initial_values_are_those_of_torch(layer):
    ps, _ = culux.setup(0, layer)
    for leaf in ps.values():
        assert np.abs(leaf).max() <= 1 / 8
        assert np.abs(leaf).max() > 0.95 / 8
        assert abs(leaf.mean()) < 0.02


def test_initialisers_draw_gate_by_gate():
    ones, zeros = culux.init.ones, culux.init.zeros
    ps, _ = culux.setup(0, LSTMCell(5, 4, init_bias=(zeros, ones, None, zeros), init_weight=culux.init.orthogonal))
    assert (ps.bias_ih[4:8] == 1).all()
    assert (ps.bias_hh[:4] == 0).all()
    assert (ps.bias_hh[8:12] != 0).all()
    for gate in ps.weight_hh.reshape(4, 4, 4):
        np.testing.assert_allclose(gate @ gate.T, np.eye(4), atol=1e-5)
    ps, _ = culux.setup(0, GRU(5, 4, init_weight=zeros, init_recurrent_weight=ones))
    assert (ps.layer_1.weight_ih == 0).all()
    assert (ps.layer_1.weight_hh == 1).all()


# The stateful cell


def test_the_stateful_cell_keeps_its_carry_and_is_reset():
    layer = StatefulRecurrentCell(LSTMCell(2, 3))
    ps, fresh = wide(layer)
    assert fresh == {"carry": None}
    whole, _ = Recurrence(LSTMCell(2, 3), return_sequence=True)(X, ps, culux.Tree())
    st, found = fresh, []
    for t in range(6):
        y, st = layer(X[:, t], ps, st)
        found.append(y)
    np.testing.assert_allclose(np.stack(found, axis=1), whole, rtol=1e-12)
    again, _ = layer(X[:, 0], ps, culux.update_state(st, "carry", None))
    np.testing.assert_array_equal(again, found[0])
    with pytest.raises(ShapeError, match=r"expected the carry \(h, c\), a tuple of arrays of shape \(2, 3\), got "):
        layer(X[:2, 0], ps, st)
    with pytest.raises(ShapeError, match=r'after st = culux.update_state\(st, "carry", None\) where it is a state'):
        layer(X[:2, 0], ps, st)


def test_the_carry_in_the_states_is_plain():
    layer = StatefulRecurrentCell(Leaky())
    ps, st = wide(layer)
    (_, st), _ = culux.value_and_gradient(lambda ps: _summed(layer(X[:, 0], ps, st)), ps, has_aux=True)
    assert type(st.carry) is np.ndarray
    assert st.steps == 1
    slope = culux.gradient(lambda ps: layer(X[:, 1], ps, st)[0].sum(), ps)
    np.testing.assert_allclose(slope.gain, X[:, 1].sum(0))


def _summed(result):
    return result[0].sum(), result[1]


# Shapes and errors


@pytest.mark.parametrize(
    ("layer", "given", "expected"),
    [
        (LSTMCell(2, 3), (4, 2), ((4, 3), ((4, 3), (4, 3)))),
        (GRUCell(2, 3), ((4, 2), ((4, 3),)), ((4, 3), ((4, 3),))),
        (Recurrence(RNNCell(2, 3)), (4, 6, 2), (4, 3)),
        (StatefulRecurrentCell(GRUCell(2, 3)), (4, 2), (4, 3)),
        (BidirectionalRNN(LSTMCell(2, 3), GRUCell(2, 1)), (4, 6, 2), (4, 6, 4)),
        (BidirectionalRNN(LSTMCell(2, 3), merge=None), (4, 6, 2), ((4, 6, 3), (4, 6, 3))),
        (LSTM(2, 3, bidirectional=True), ((4, 6, 2), (4,)), (4, 6, 6)),
        (GRU(2, 3, num_layers=2, return_carry=True), (4, 6, 2), ((4, 6, 3), ((2, 4, 3),))),
    ],
    ids=repr,
)
def test_output_shapes(layer, given, expected):
    assert culux.output_shape(layer, given) == expected


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (LSTMCell(2, 3), (4, 5), "expected x.shape[-1] == 2, got 5 (x has shape (4, 5))"),
        (Recurrence(GRUCell(2, 3)), (4, 2), "expected x of shape (batch, time, features), time > 0, got (4, 2)"),
        (Recurrence(GRUCell(2, 3)), (4, 0, 2), "expected x of shape (batch, time, features), time > 0, got (4, 0, 2)"),
        (Recurrence(GRUCell(2, 3)), (4, 6, 5), "expected x.shape[-1] == 2, got 5 (x has shape (4, "),
        (BidirectionalRNN(GRUCell(2, 3)), (4, 2), "expected x of shape (batch, time, features), time > 0, got (4, 2)"),
        (LSTM(2, 3), (4, 6, 5), "expected x.shape[-1] == 2, got 5 (x has shape (4, 6, 5))"),
        (LSTM(2, 3), (6, 2), "expected x of shape (batch, time, features), time > 0, got (6, 2)"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_wrong_shapes_are_told_alike_by_the_call_and_by_output_shape(layer, shape, message):
    text = re.escape(f"in {layer!r}: {message}")
    with pytest.raises(ShapeError, match=text):
        ran(layer, np.ones(shape, np.float32))
    with pytest.raises(ShapeError, match=text):
        culux.output_shape(layer, shape)


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (LSTMCell(2, 3), (X[:, 0], H, C), "expected x, or the tuple (x, carry), got a tuple of 3"),
        (
            LSTMCell(2, 3),
            (X[:, 0], H),
            "expected the carry (h, c), a tuple of arrays of shape (4, 3), got float64 array",
        ),
        (GRUCell(2, 3), (X[:, 0], (H, C)), "expected the carry (h,), a tuple of arrays of shape (4, 3), got (float64"),
        (GRU(2, 3), (X, None, (H,)), "expected the carry (h,), a tuple of arrays of shape (1, 4, 3), got (float64"),
        (LSTM(2, 3), (X,), "expected x, the tuple (x, lengths) or (x, lengths, carry), got a tuple of 1"),
        (LSTM(2, 3), (X, (H, C)), "expected lengths, ints or None, as the second of the inputs, got a tuple of arrays"),
        (
            LSTM(2, 3),
            (X, [1, 2]),
            "expected lengths to be 4 ints, one for each sequence, got int64 array of shape (2,)",
        ),
        (LSTM(2, 3), (X, H[:, 0]), "expected lengths to be 4 ints, one for each sequence, got float64 array"),
        (LSTM(2, 3), (X, 3), "expected lengths to be 4 ints, one for each sequence, got int 3"),
        (LSTM(2, 3), (X, [1, 7, 2, 2]), "expected lengths from 0 to 6, got 1 to 7 (x has shape (4, 6, 2))"),
        (LSTM(2, 3), (X, [1, -1, 2, 2]), "expected lengths from 0 to 6, got -1 to 2 (x has shape (4, 6, 2))"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_wrong_inputs(layer, x, message):
    with pytest.raises(ShapeError, match=re.escape(message)):
        ran(layer, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LSTMCell(0, 3), "LSTMCell: expected in_dims to be a positive int, got int 0"),
        (lambda: GRUCell(2, 3.0), "GRUCell: expected out_dims to be a positive int, got float 3.0"),
        (lambda: RNNCell(2, 3, False), "RNNCell: expected activation to be a function such as culux.relu, got bool"),
        (lambda: RNNCell(2, 3, False), "the biases are switched by RNNCell(2, 3, use_bias=False)"),
        (lambda: LSTMCell(2, 3, init_bias=1.0), "LSTMCell: expected init_bias to be a function (rng, shape) -> array"),
        (
            lambda: GRUCell(2, 3, init_bias=(None, None)),
            "expected init_bias to be one initialiser or a tuple of 3, one",
        ),
        (lambda: LSTMCell(2, 3, train_memory=1), "LSTMCell: expected train_memory to be a bool, got int 1"),
        (lambda: LSTMCell(2, hidden_size=3), "LSTMCell takes no hidden_size=; culux calls it out_dims"),
        (lambda: Recurrence(LSTMCell), "Recurrence: expected cell to be a cell such as LSTMCell(3, 5), got"),
        (lambda: StatefulRecurrentCell(3), "StatefulRecurrentCell: expected cell to be a cell such as LSTMCell(3, 5)"),
        (lambda: BidirectionalRNN(np.tanh), "BidirectionalRNN: expected cell to be a cell such as LSTMCell(3, 5)"),
        (lambda: BidirectionalRNN(GRUCell(2, 3), 3), "BidirectionalRNN: expected backward_cell to be a cell such as"),
        (
            lambda: BidirectionalRNN(GRUCell(2, 3), merge="sum"),
            "expected merge to be None or a function, got str 'sum'",
        ),
        (lambda: LSTMCell(2, 3, True), "LSTMCell: too many positional arguments; it is LSTMCell(in_dims, out_dims, *,"),
        (lambda: LSTM(2, 3, num_layers=0), "LSTM: expected num_layers to be a positive int, got int 0"),
        (lambda: LSTM(2, 3, dropout=2), "LSTM: expected dropout to be a number between 0 and 1, got int 2"),
        (lambda: GRU(2, 3, bidirectional=2), "GRU: expected bidirectional to be a bool, got int 2"),
        (lambda: RNN(2, 3, "relu"), "RNN: expected activation to be a function such as culux.relu, got str 'relu'"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(LayerError, match=re.escape(message)):
        make()


def test_what_is_no_cell_is_told():
    x = X.astype(np.float32)
    with pytest.raises(LayerError, match=r"expected Dense\(2, 3\) to return \(y, carry\) for one step, got .* is it a"):
        ran(Recurrence(culux.Dense(2, 3)), x)
    with pytest.raises(LayerError, match=r"the output shape of the function <lambda> is not known without calling it"):
        culux.output_shape(BidirectionalRNN(GRUCell(2, 3), merge=lambda a, b: a), (4, 6, 2))
    with pytest.raises(LayerError, match="expected x to be an array, got list"):
        ran(LSTM(2, 3), [[[1.0, 2.0]]])
    with pytest.raises(
        ShapeError, match=r"expected ps.weight_hh of shape \(12, 3\), got float32 array of shape \(9, 3\)"
    ):
        LSTMCell(2, 3)(x[:, 0], {**culux.setup(0, GRUCell(2, 3))[0], "weight_ih": np.ones((12, 2), np.float32)}, {})


def test_wrong_arguments_of_the_functions():
    ps, _ = wide(LSTMCell(2, 3))
    with pytest.raises(ShapeError, match=r"lstm: expected x of shape \(batch, time, in_dims\), time > 0, got \(4, 2\)"):
        nn.lstm(X[:, 0], **ps)
    with pytest.raises(
        ShapeError, match=r"gru: expected weight_ih of shape \(12, 2\) for x of shape \(4, 6, 2\) and out"
    ):
        nn.gru(X, ps.weight_hh, ps.weight_hh)
    with pytest.raises(ShapeError, match=r"lstm: expected bias_hh of shape \(12,\) .* got \(3,\)"):
        nn.lstm(X, ps.weight_ih, ps.weight_hh, None, ps.bias_hh[:3])
    with pytest.raises(DTypeError, match="rnn: expected x to be a float array, got int64 array"):
        nn.rnn(np.ones((4, 6, 2), int), ps.weight_ih, ps.weight_hh)


def test_arrays_of_two_dtypes():
    ps, _ = wide(GRUCell(2, 3))
    x = X.astype(np.float32)
    y, (h,) = nn.gru(x, **ps)
    assert y.dtype == h.dtype == np.float64
    np.testing.assert_allclose(y, nn.gru(x.astype(np.float64), **ps)[0], rtol=1e-12)
    slope = culux.gradient(lambda x: nn.gru(x, **ps)[0].sum(), x)
    wider = culux.gradient(lambda x: nn.gru(x, **ps)[0].sum(), x.astype(np.float64))
    assert slope.dtype == np.float32
    np.testing.assert_allclose(slope, wider, rtol=1e-5, atol=1e-7)
