"""A small model with dropout and running statistics, its data and its objective, for the tests of training."""

from __future__ import annotations

import numpy as np

import culux
from culux import numpy as cnp
from culux.backends.registry import backend_of
from culux.data import batches
from culux.optim import Adam
from culux.random import dropout_mask, rng_state
from culux.training import TrainState


class SmallModel(culux.Layer):
    """tanh(x @ w), half of it dropped in train mode, less a running mean, @ v."""

    width: int = 5

    def initial_parameters(self, rng):
        return {"w": rng.standard_normal((3, self.width), np.float32), "v": np.ones((self.width, 1), np.float32)}

    def initial_states(self, rng):
        return {"rng": rng_state(rng), "mean": np.zeros(self.width, np.float32), "training": True}

    def __call__(self, x, ps, st):
        h = cnp.tanh(x @ ps.w)
        if st.training:
            mask, after = dropout_mask(st.rng, 0.5, h.shape, like=h)
            h = h * backend_of(mask).astype(mask, "float32") * 2.0
            st = st.replace(rng=after, mean=st.mean * 0.9 + culux.stop_gradient(h).mean(axis=0) * 0.1)
        return (h - st.mean) @ ps.v, st


def data(rows=40, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 3), np.float32)
    return x, np.sin(x[:, :1]) + x[:, 2:]


def objective(layer, ps, st, batch):
    x, y = batch
    y_hat, st = layer(x, ps, st)
    return ((y_hat - y) ** 2).mean(), st, {"bias": (culux.stop_gradient(y_hat) - y).mean()}


def train_state(rule=None, **kwargs):
    return TrainState.create(0, SmallModel(), rule or Adam(0.05), **kwargs)


def training_batches(**kwargs):
    return batches(data(), 8, rng=7, **kwargs)


def leaf_bytes(tree):
    """Every leaf of a tree, to compare bit for bit."""
    return [
        (path, leaf.tobytes() if hasattr(leaf, "tobytes") else leaf) for path, leaf in culux.tree.leaves_with_path(tree)
    ]
