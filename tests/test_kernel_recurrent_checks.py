"""The kernels of recurrent layers, a step and all steps, under the checks of the emulator."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import kernels, nn
from tests.kernel_support import check
from tests.test_kernel_recurrent import CARRIES, KINDS, normal

# One step


def kernel(name, kind):
    code = nn.tanh.cuda() if kind == "rnn" else kernels.IDENTITY
    constants = (("GATES", KINDS[kind]),)
    return kernels.get_kernel("recurrent", name, np.dtype(np.float32), activation=code, constants=constants)


def a_step(kind, masked):
    """What a step in the middle of a sequence may read, by name, and which sequences are there at step 1."""
    batch, time, size, gates = 5, 3, 7, KINDS[kind]
    shapes = {
        "projected": (batch, time, gates * size), "hidden": (batch, gates * size), "bias": (gates * size,),
        "start_h": (batch, size), "start_c": (batch, size), "held": (time, batch, size), "cells": (time, batch, size),
        "gates": (time, batch, (1 if gates == 1 else 4) * size), "dy": (batch, time, size),
        "through": (batch, size), "dh": (batch, size), "dc": (batch, size),
    }  # fmt: skip
    rng = np.random.default_rng(1)
    mask = np.arange(time) < np.array([3, 1, 0, 2, 3])[:, None] if masked else None
    return {name: normal(rng, *shape).astype(np.float32) for name, shape in shapes.items()}, mask


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def formula(kind, x, hidden, h, c):
    """What a step saves, and the new h and c, in float64."""
    size = h.shape[1]
    x, hidden = (np.split(a.astype(np.float64), a.shape[1] // size, axis=1) for a in (x, hidden))
    if kind == "rnn":
        y = np.tanh(x[0] + hidden[0])
        return [y], y, c
    if kind == "gru":
        r, z = sigmoid(x[0] + hidden[0]), sigmoid(x[1] + hidden[1])
        n = np.tanh(x[2] + r * hidden[2])
        return [r, z, n, hidden[2]], (1 - z) * n + z * h, c
    i, f, g, o = (a + b for a, b in zip(x, hidden, strict=True))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return [sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)], sigmoid(o) * np.tanh(c), c


@pytest.mark.parametrize(("masked", "where"), [(False, "first"), (True, "last")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_forward_passes_every_check(kind, masked, where):
    a, mask = a_step(kind, masked)
    (time, batch, size), t, lstm, first = a["held"].shape, 1, kind == "lstm", where == "first"
    slab = 0 if first else time - 1

    def reference(projected, hidden, bias, mask, start_h, start_c, held, cells, gates, y, last_h, last_c, *_):
        h, c = (start_h, start_c) if first else (held[slab].copy(), cells[slab].copy() if lstm else None)
        saved, new_h, new_c = formula(kind, projected[:, t], hidden + bias, h, c)
        there = np.ones((batch, 1), bool) if mask is None else mask[:, t : t + 1]
        gates[slab] = np.where(there, np.concatenate(saved, axis=1), gates[slab])
        y[:, t] = np.where(there, new_h, 0)
        states = [(h, new_h, held, last_h), *([(c, new_c, cells, last_c)] if lstm else [])]
        for before, after, slabs, last in states:
            if first:
                slabs[0], slabs[1] = before, np.where(there, after, before)
            else:
                last[:] = np.where(there, after, before)

    check(
        kernel("recurrent_forward", kind), (1, 2), (8, 2), a["projected"], a["hidden"], a["bias"], mask,
        a["start_h"] if first else None, a["start_c"] if first and lstm else None, a["held"],
        a["cells"] if lstm else None, a["gates"], a["dy"], None if first else a["dh"],
        a["dc"] if lstm and not first else None, batch, time, size, t, slab, 1 if first else 0,
        reference=reference, inout=(6, 7, 8, 9) if lstm else (6, 8, 9),
    )  # fmt: skip


def slopes(kind, x, hidden, h, c, dh, dc):
    """The cotangents of a step's x, hidden, h and c, by culux's reverse mode in float64."""
    from culux.nn.recurrent_steps import Gru, Lstm, Rnn

    step = {"rnn": Rnn(nn.tanh), "gru": Gru(), "lstm": Lstm()}[kind]
    carry = (h, c)[: CARRIES[kind]]
    given = [np.asarray(a, np.float64) for a in (x, hidden, *carry)]
    _, pullback = culux.vjp(lambda x, hidden, *carry: step.step(x, hidden, carry), *given)
    return pullback(tuple(np.asarray(d, np.float64) for d in (dh, dc)[: CARRIES[kind]]))


@pytest.mark.parametrize(("masked", "where"), [(False, "middle"), (True, "middle"), (True, "last")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_backward_passes_every_check(kind, masked, where):
    a, mask = a_step(kind, masked)
    (time, batch, size), t, lstm, middle = a["held"].shape, 1, kind == "lstm", where == "middle"
    slab, passes_by = 1 if middle else time - 1, masked or kind == "gru"
    saved, _, _ = formula(kind, a["projected"][:, t], a["hidden"], a["held"][slab], a["cells"][slab])
    a["gates"][slab] = np.concatenate(saved, axis=1)

    def reference(dy, through, dlast_h, dlast_c, mask, held, cells, gates, dh, dc, dprojected, dhidden, *_):
        passed, along = (through, dc.copy() if lstm else 0) if middle else (dlast_h, dlast_c if lstm else 0)
        passed = passed + (dh if middle and passes_by else 0)
        c = cells[slab] if lstm else held[slab]
        dx, dsums, *before = slopes(
            kind, a["projected"][:, t], a["hidden"], held[slab], c, passed + dy[:, t], along + 0 * passed
        )
        there = np.ones((batch, 1), bool) if mask is None else mask[:, t : t + 1]
        if passes_by:
            dh[:] = np.where(there, before[0] if kind == "gru" else 0, passed)
        if lstm:
            dc[:] = np.where(there, before[1], along)
        dprojected[:, t], dhidden[slab] = np.where(there, dx, 0), np.where(there, dsums, 0)

    check(
        kernel("recurrent_backward", kind), (1, 2), (8, 2), a["dy"], a["through"] if middle else None,
        None if middle else a["start_h"], a["start_c"] if lstm and not middle else None, mask, a["held"],
        a["cells"] if lstm else None, a["gates"], a["dh"] if passes_by else None, a["dc"] if lstm else None,
        a["projected"], np.stack([a["hidden"]] * time), batch, time, size, t, slab,
        reference=reference, inout=tuple(i for i, there in ((8, passes_by), (9, lstm), (10, 1), (11, 1)) if there),
    )  # fmt: skip


# All steps in one launch


def a_sequence(kind):
    """What all steps may read, by name, and what is there of every sequence; no block of rows divides the batch."""
    batch, time, size, gates = 5, 3, 6, KINDS[kind]
    shapes = {
        "projected": (batch, time, gates * size), "weight": (gates * size, size), "bias": (gates * size,),
        "start_h": (batch, size), "start_c": (batch, size), "dy": (batch, time, size), "dlast_h": (batch, size),
        "dlast_c": (batch, size),
    }  # fmt: skip
    rng, mask = np.random.default_rng(2), np.arange(time) < np.array([3, 1, 0, 2, 3])[:, None]
    return {name: normal(rng, *shape).astype(np.float32) for name, shape in shapes.items()}, mask


def all_steps(kind, a, mask):
    """What the steps save and give from the last to the first, in float64: held, cells, gates, y, h and c."""
    time = a["projected"].shape[1]
    h, c = a["start_h"].astype(np.float64), a["start_c"].astype(np.float64)
    held, cells, gates, y = [], [], [], np.zeros(a["dy"].shape)
    for t in range(time)[::-1]:
        held.append(h)
        cells.append(c)
        hidden = h @ a["weight"].T.astype(np.float64) + a["bias"]
        saved, new_h, new_c = formula(kind, a["projected"][:, t], hidden, h, c)
        there = mask[:, t : t + 1]
        gates.append(np.where(there, np.concatenate(saved, axis=1), 0))
        h, c, y[:, t] = np.where(there, new_h, h), np.where(there, new_c, c), np.where(there, new_h, 0)
    return np.stack(held), np.stack(cells), np.stack(gates), y, h, c


def all_slopes(kind, a, mask, held, cells):
    """The cotangents of both products, the second by slabs, and of the first h and c, in float64."""
    time = a["projected"].shape[1]
    dh, dc, dprojected, dhidden = a["dlast_h"], a["dlast_c"], np.zeros(a["projected"].shape), [None] * time
    for step in range(time)[::-1]:
        t, there = time - 1 - step, mask[:, time - 1 - step, None]
        hidden = held[step] @ a["weight"].T.astype(np.float64) + a["bias"]
        dx, dsums, *before = slopes(
            kind, a["projected"][:, t], hidden, held[step], cells[step], dh + a["dy"][:, t] * there, dc
        )
        dprojected[:, t], dhidden[step] = np.where(there, dx, 0), np.where(there, dsums, 0)
        dh = np.where(there, before[0] + dhidden[step] @ a["weight"], dh)
        dc = np.where(there, before[1], dc) if kind == "lstm" else dc
    return dprojected, np.stack(dhidden), dh, dc


@pytest.mark.parametrize("kind", KINDS)
def test_all_steps_forward_pass_every_check(kind):
    a, mask = a_sequence(kind)
    lstm, (batch, time, width), size = kind == "lstm", a["projected"].shape, a["weight"].shape[1]
    held, cells, gates, y, h, c = all_steps(kind, a, mask)
    outputs = [held, cells if lstm else None, np.zeros_like(gates), y, h, c if lstm else None]
    room = [None if out is None else np.zeros(out.shape, np.float32) for out in outputs]
    check(
        kernel("recurrent_sequence_forward", kind), (3,), (32,), a["projected"], a["weight"], a["bias"], mask,
        a["start_h"], a["start_c"] if lstm else None, *room, batch, time, size, True,
        shared=2 * 2 * 4 * size + 4 * (width + 1) * size, inout=(8,),  # of the gates, what is not there is not written
        reference=lambda *_: (held, *([cells] if lstm else []), gates, y, h, *([c] if lstm else [])),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_all_steps_backward_pass_every_check(kind):
    a, mask = a_sequence(kind)
    lstm, (batch, time, width), size = kind == "lstm", a["projected"].shape, a["weight"].shape[1]
    held, cells, gates, *_ = all_steps(kind, a, mask)
    expected = all_slopes(kind, a, mask, held, cells)[: 3 + lstm]
    held, cells, gates, *room = (np.asarray(part, np.float32) for part in (held, cells, gates, *expected))
    check(
        kernel("recurrent_sequence_backward", kind), (3,), (32,), a["dy"], a["dlast_h"], a["dlast_c"] if lstm else None,
        a["weight"], mask, held, cells if lstm else None, gates, *room, *([] if lstm else [None]), batch, time, size,
        True, shared=2 * 2 * 4 * width + 4 * width * size, reference=lambda *_: expected,
    )  # fmt: skip
