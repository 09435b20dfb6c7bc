"""The layers that the tests of the layer contract share."""

from __future__ import annotations

from dataclasses import field
from typing import Any

import numpy as np

import culux

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


class Affine(culux.Layer):
    """A layer by fields, with a trained and an untrained array and a counter."""

    width: int
    offset: float = 1.0

    def initial_parameters(self, rng):
        return {"w": rng.standard_normal(self.width).astype(np.float32)}

    def initial_states(self, rng):
        return {"shift": np.full(self.width, self.offset, np.float32), "calls": 0}

    def output_shape(self, input_shape):
        return input_shape

    def __call__(self, x, ps, st):
        return x * ps.w + st.shift, {**st, "calls": st.calls + 1}


class ByHand(culux.Layer):
    def __init__(self, width, *, twice=False):
        self.width = width * (2 if twice else 1)
        self.twice = twice

    def initial_parameters(self, rng):
        return {"w": np.ones(self.width, np.float32)}

    def __call__(self, x, ps, st):
        return x * ps["w"], st


class Plain(culux.Layer):
    def __call__(self, x, ps, st):
        return x, st


class Block(culux.ContainerLayer):
    conv: culux.Layer
    norm: culux.Layer
    tail: tuple = ()
    heads: Any = field(default_factory=dict)

    def forward(self, m, x):
        y = m.norm(m.conv(x))
        for layer in m.tail:
            y = layer(y)
        for layer in m.heads.values():
            y = layer(y)
        return y + x


class Memory(culux.ContainerLayer):
    """Own parameters and states beside a child, written and read through the view."""

    inner: culux.Layer

    def initial_parameters(self, rng):
        return {"gain": np.full(3, 2, np.float32)}

    def initial_states(self, rng):
        return {"last": np.zeros((2, 3), np.float32), "calls": 0}

    def forward(self, m, x):
        y = m.gain * m.inner(x) + m.last
        m.last = y
        m.calls = m.calls + 1
        return y


class Wrap(culux.WrapperLayer):
    layer: culux.Layer


class Raises(culux.Layer):
    error: Any

    def __call__(self, x, ps, st):
        raise self.error("oh")


def block():
    return Block(Affine(3), ByHand(3), tail=[Affine(3), Affine(3)], heads={"a": ByHand(3)})
