"""Parts for ``(batch, time, features)``, and cells."""

from __future__ import annotations

from functools import partial

import numpy as np

import culux
from tests.architectures.attention import ATTENTION
from tests.architectures.part import Part, activation, between, choose, dropped, flag, torch

CELLS = (culux.RNNCell, culux.LSTMCell, culux.GRUCell)


class Ends(culux.Layer):
    """``y`` and the h of the last step of the last level, added to every step."""

    def output_shape(self, input_shape):
        return input_shape[0]

    def __call__(self, x, ps, st):
        y, carry = x
        return y + carry[0][-1][:, None], st


def _four(ps):
    return [ps[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if name in ps]


def _level(kind, function, x, ps, bidirectional):
    """One level by torch's own operation: y, and h of the last step."""
    weights = [_four(ps["forward_rnn"]), _four(ps["backward_rnn"])] if bidirectional else [_four(ps)]
    out = weights[0][1].shape[1]
    h = x.new_zeros(len(weights), x.shape[0], out)
    flat = [w for way in weights for w in way]
    options = (len(flat) // len(weights) == 4, 1, 0.0, False, bidirectional, True)
    y, last, *_ = function(x, (h, h) if kind is culux.LSTM else h, flat, *options)
    return y, last


def _stacked(rng, shape, kind, name, both):
    """A layer of several levels; of one level or more in both directions."""
    levels, p = (between(rng, 1, 2), 0.0) if both else (2, 0.3)
    more = {"activation": culux.relu} if name == "rnn_relu" else {}
    options = {"num_layers": levels, "bidirectional": both, "dropout": p, "use_bias": flag(rng), **more}
    ends = not both
    axis = choose(rng, 0, 1) if both else 1
    layer = kind(shape[-1], between(rng, 2, 4), return_carry=ends, time_axis=axis, **options)

    def twin(x, ps, st, training):
        x = x if axis else x.transpose(0, 1)
        for level in range(1, levels + 1):
            x, last = _level(kind, getattr(torch, name), x, ps[f"layer_{level}"], both)
            if p and level < levels:
                x = dropped(x, p, st[f"dropout_{level}"], training)
        x = x if axis else x.transpose(0, 1)
        return x + last[-1][:, None] if ends else x

    if not ends:
        return Part(layer, twin)
    return Part(culux.Chain(layer, Ends()), lambda x, ps, st, t: twin(x, ps["layer_1"], st["layer_1"], t))


def rnn(rng, shape, *, both):
    return _stacked(rng, shape, culux.RNN, choose(rng, "rnn_tanh", "rnn_relu"), both)


def lstm(rng, shape, *, both):
    return _stacked(rng, shape, culux.LSTM, "lstm", both)


def gru(rng, shape, *, both):
    return _stacked(rng, shape, culux.GRU, "gru", both)


def cell(rng, features, kind, out=None):
    """A cell and a step of it: ``step(x, carry or None, ps) -> carry``."""
    bias, out = flag(rng), out or between(rng, 2, 4)
    options = {"use_bias": bias, "train_state": flag(rng)}
    record, function = (None, None) if kind is not culux.RNNCell else activation(rng)
    if kind is culux.LSTMCell:
        options["train_memory"] = True
    layer = kind(features, out, **options, **({"activation": record} if record else {}))

    def step(x, carry, ps):
        if carry is None:
            start = x.new_zeros(x.shape[0], out)
            carry = tuple(start + ps.get(name, 0) for name in ("hidden_state", "memory")[: len(layer.carries)])
        if kind is culux.LSTMCell:
            return tuple(torch.lstm_cell(x, carry, *_four(ps)))
        if kind is culux.GRUCell:
            return (torch.gru_cell(x, carry[0], *_four(ps)),)
        w, u, *biases = _four(ps)
        return (function(x @ w.T + carry[0] @ u.T + sum(biases)),)

    return layer, step


def _over(step, x, ps, *, reverse=False):
    """h of every step, in the order of time."""
    carry, found = None, {}
    for t in range(x.shape[1])[:: -1 if reverse else 1]:
        carry = step(x[:, t], carry, ps)
        found[t] = carry[0]
    return torch.stack([found[t] for t in range(x.shape[1])], dim=1)


def recurrence(rng, shape, *, kind):
    layer, step = cell(rng, shape[-1], kind)
    return Part(culux.Recurrence(layer, return_sequence=True), lambda x, ps, st, training: _over(step, x, ps))


def last_of_recurrence(rng, shape):
    layer, step = cell(rng, shape[-1], choose(rng, *CELLS))
    return Part(culux.Recurrence(layer), lambda x, ps, st, training: _over(step, x, ps)[:, -1])


def last_step(rng, shape):
    index = choose(rng, -1, shape[1] - 1)
    return Part(culux.SelectDim(1, index), lambda x, ps, st, training: x[:, -1])


def bidirectional_rnn(rng, shape, *, added):
    """Two cells, their outputs side by side or `added`."""
    out = between(rng, 2, 4)
    forward, step = cell(rng, shape[-1], choose(rng, *CELLS), out)
    same = flag(rng)
    backward, back = (forward, step) if same else cell(rng, shape[-1], choose(rng, *CELLS), out if added else None)
    layer = culux.BidirectionalRNN(
        forward, None if backward is forward else backward, **({"merge": np.add} if added else {})
    )

    def twin(x, ps, st, training):
        both = _over(step, x, ps["forward_rnn"]), _over(back, x, ps["backward_rnn"], reverse=True)
        return both[0] + both[1] if added else torch.cat(both, dim=-1)

    return Part(layer, twin)


def stateful_cell(rng, shape):
    """A StatefulRecurrentCell for ``(batch, features)``; no gradient goes to the call before."""
    layer, step = cell(rng, shape[-1], choose(rng, *CELLS))

    def twin(x, ps, st, training):
        carry = step(x, st["carry"], ps)
        st["carry"] = tuple(part.detach() for part in carry)
        return carry[0]

    return Part(culux.StatefulRecurrentCell(layer), twin)


def embedding(rng, count):
    dims = between(rng, 3, 5)
    return Part(
        culux.Embedding(count, dims), lambda x, ps, st, training: torch.nn.functional.embedding(x, ps["weight"])
    )


SEQUENCES = [
    *[partial(kind, both=both) for kind in (rnn, lstm, gru) for both in (True, False)],
    *[partial(recurrence, kind=kind) for kind in CELLS],
    *[partial(bidirectional_rnn, added=added) for added in (True, False)],
    *ATTENTION,
]
LAST = [last_of_recurrence, last_step]
