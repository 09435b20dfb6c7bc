"""An input, a call and a connection for the tests of the layers."""

from __future__ import annotations

import numpy as np

import culux

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
