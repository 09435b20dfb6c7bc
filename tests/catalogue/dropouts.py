"""The entries of `culux.nn` and `culux.layers` for the other kinds of dropout."""

from __future__ import annotations

import numpy as np

import culux
from culux import layers as L
from culux import nn
from tests.catalogue.case import Case, LayerCase, normal

STATE = culux.Tree(key=np.array([5, 6], np.uint64), counter=np.array([7, 0, 0, 0], np.uint64))
STATES = ("rng.key", "rng.counter", "training")


def kept(state, p, shape):
    """The mask by its definition: NumPy's Philox numbers of the state that are >= p."""
    generator = np.random.Generator(np.random.Philox(key=state.key, counter=state.counter))
    return (generator.random(int(np.prod(shape)), dtype=np.float32) >= np.float32(p)).reshape(shape)


def alpha_dropout(x, state, p):
    alpha = -1.0507009873554804934193349852946 * 1.6732632423543772848170429916717
    a = 1 / np.sqrt((1 - p) * (1 + p * alpha**2))
    return a * np.where(kept(state, p, x.shape), x, alpha) - a * p * alpha


FUNCTIONS = [
    Case(
        "culux.nn.alpha_dropout", lambda x: nn.alpha_dropout(x, STATE, p=0.4, training=True)[0], [normal(5, 7)],
        reference=lambda x: alpha_dropout(x, STATE, 0.4),
    ),
    Case(
        "culux.nn.alpha_dropout", lambda x: nn.alpha_dropout(x, STATE, p=0.4, training=False)[0], [normal(5, 7)],
        reference=lambda x: x, label="test-mode",
    ),
]  # fmt: skip

LAYERS = [
    LayerCase(
        "culux.layers.AlphaDropout", L.AlphaDropout(0.3), [normal(7, 5)], states=STATES,
        reference=lambda ps, st, x: alpha_dropout(x, st.rng, 0.3),
    ),
    LayerCase(
        "culux.layers.AlphaDropout", L.AlphaDropout(0.3), [normal(7, 5)], label="test-mode", test_mode=True,
        states=STATES, reference=lambda ps, st, x: x,
    ),
    LayerCase(
        "culux.layers.VariationalHiddenDropout", L.VariationalHiddenDropout(0.3), [normal(7, 5)],
        states=(*STATES, "update_mask", "mask"),
        reference=lambda ps, st, x: x * kept(st.rng, 0.3, x.shape) / 0.7,
    ),
    LayerCase(
        "culux.layers.VariationalHiddenDropout", L.VariationalHiddenDropout(0.3), [normal(7, 5)], label="test-mode",
        test_mode=True, states=(*STATES, "update_mask", "mask"), reference=lambda ps, st, x: x,
    ),
]  # fmt: skip
