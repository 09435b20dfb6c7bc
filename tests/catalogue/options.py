"""The entries of `culux.nn` and `culux.layers` for options that Lux has and torch has not."""

from __future__ import annotations

import numpy as np

from culux import init, nn
from culux import layers as L
from tests.catalogue.case import Case, LayerCase, fixed, normal
from tests.catalogue.dropouts import STATE, STATES, kept
from tests.catalogue.recurrent import BOTH, entries, torch_run, weights_of

IDS = [[[0, 3], [2, 0], [1, 1]], [[4, 0], [4, 2], [0, 0]]]
PLAIN = entries("RNN", 2, 3, bias=False)


def over_all(x, scale, bias):
    return np.tanh((x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale + bias)


def step(ps, x, h):
    """A step of an LSTM without biases from ``(h, c)``."""
    i, f, g, o = np.split(x @ ps.weight_ih.T + h[0] @ ps.weight_hh.T, 4, axis=1)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    c = sigmoid(f) * h[1] + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def lstm_from(ps, x, h, c):
    carry = np.broadcast_to(h, (len(x), 3)), np.broadcast_to(c, (len(x), 3))
    for t in range(x.shape[1]):
        carry = step(ps, x[:, t], carry)
    return carry[0]


def time_first(kind, **options):
    def call(torch, ps, x):
        both = BOTH if options.get("bidirectional") else ("",)
        y, _ = torch_run(torch, kind, x.transpose(0, 1), weights_of(ps, *(prefix or "" for prefix in both)), **options)
        return y.transpose(0, 1)

    return call


FUNCTIONS = [
    Case(
        "culux.nn.dropout", lambda x: nn.dropout(x, STATE, p=0.4, training=True, axes=(0, -2))[0], [normal(3, 4, 5)],
        reference=lambda x: x * kept(STATE, 0.4, (3, 4, 1)) / 0.6, label="axes",
    ),
    Case(
        "culux.nn.embedding", lambda a, b, w: nn.embedding((a, b), w), [fixed(IDS[0]), fixed(IDS[1]), normal(4, 5, 2)],
        reference=lambda a, b, w: w[a, b], label="two-ids",
    ),
]  # fmt: skip

LAYERS = [
    LayerCase(
        "culux.layers.Dropout", L.Dropout(0.3, axes=(0, 1)), [normal(4, 3, 5)], label="axes", states=STATES,
        reference=lambda ps, st, x: x * kept(st.rng, 0.3, (4, 3, 1)) / 0.7,
    ),
    LayerCase(
        "culux.layers.VariationalHiddenDropout", L.VariationalHiddenDropout(0.3, axes=(-1,)), [normal(7, 5)],
        label="axes", states=(*STATES, "update_mask", "mask"),
        reference=lambda ps, st, x: x * kept(st.rng, 0.3, (1, 5)) / 0.7,
    ),
    LayerCase(
        "culux.layers.LayerNorm", L.LayerNorm((2, 3), nn.tanh, over="all"), [normal(5, 2, 3)], label="all",
        parameters={"scale": (2, 3), "bias": (2, 3)}, tolerance=5.0, gradient_tolerance=5.0,
        reference=lambda ps, st, x: over_all(x, ps.scale, ps.bias),
    ),
    LayerCase(
        "culux.layers.LayerNorm", L.LayerNorm(3, over="all", affine=False), [normal(5, 3)], label="all-bare",
        tolerance=5.0, gradient_tolerance=5.0, reference=lambda ps, st, x: (x - x.mean()) / np.sqrt(x.var() + 1e-5),
    ),
    LayerCase(
        "culux.layers.Embedding", L.Embedding((4, 5), 2), [fixed(IDS[0]), fixed(IDS[1])], label="two-ids",
        parameters={"weight": (4, 5, 2)}, reference=lambda ps, st, a, b: ps.weight[a, b],
    ),
    LayerCase(
        "culux.layers.Recurrence",
        L.Recurrence(L.RNNCell(2, 3, use_bias=False, init_state=init.Constant(0.3))), [normal(4, 5, 2)],
        label="first-state", parameters=PLAIN, states=("hidden_state",), tolerance=10.0,
        reference=lambda ps, st, x: first_state(ps, st, x),
    ),
    LayerCase(
        "culux.layers.Recurrence",
        L.Recurrence(L.LSTMCell(
            2, 3, use_bias=False, train_state=True, init_state=init.uniform, init_memory=init.Constant(0.7),
        )),
        [normal(4, 5, 2)], label="trained-first-state-and-memory", states=("memory",), tolerance=10.0,
        parameters=entries("LSTM", 2, 3, bias=False) | {"hidden_state": (3,)},
        reference=lambda ps, st, x: lstm_from(ps, x, ps.hidden_state, st.memory),
    ),
    LayerCase(
        "culux.layers.Recurrence", L.Recurrence(L.GRUCell(2, 3), return_sequence=True, time_axis=0), [normal(6, 4, 2)],
        label="time-first", parameters=entries("GRU", 2, 3), torch=time_first("GRU"), tolerance=10.0,
    ),
    LayerCase(
        "culux.layers.BidirectionalRNN", L.BidirectionalRNN(L.GRUCell(2, 3), time_axis=0), [normal(6, 4, 2)],
        label="time-first", parameters=entries("GRU", 2, 3, BOTH[0]) | entries("GRU", 2, 3, BOTH[1]), tolerance=10.0,
        torch=time_first("GRU", bidirectional=True),
    ),
]  # fmt: skip


def first_state(ps, st, x):
    h = np.broadcast_to(st.hidden_state, (len(x), 3))
    for t in range(x.shape[1]):
        h = np.tanh(x[:, t] @ ps.weight_ih.T + h @ ps.weight_hh.T)
    return h
