"""Dropout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from culux import nn
from culux.core import Layer
from culux.errors import LayerError, describe
from culux.layers.checks import check_probability, in_training, shape_of
from culux.random import rng_state
from culux.tree import Tree, trusted

__all__ = ["Dropout"]


class Dropout(Layer):
    """Random zeros in training: ``y = x * mask / (1 - p)``, mask being 0 with probability p; ``y = x`` in test mode.

    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014, with the scale
    in training, as torch has it. The same `st` gives the same mask, on every device; the returned one the next.

    Args:
        p: the probability of dropping an element.

    Inputs:
        x: any shape.

    Returns:
        y of the shape of x, and the states with the random state moved on; in test mode x, and `st` as it was.

    Parameters:
        None.

    States:
        rng: the random state, ``Tree(key=uint64[2], counter=uint64[4])``.
        training: True; set by `culux.train_mode` and `culux.test_mode`.

    Raises:
        LayerError: for a `p` that is no number between 0 and 1; when called, for states that are none of these.
    """

    p: float

    def __post_init__(self) -> None:
        check_probability("Dropout", "p", self.p)

    def initial_states(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """A random state drawn from `rng`, and the mode."""
        return {"rng": rng_state(rng), "training": True}

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's."""
        return input_shape

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``x * mask / (1 - p)`` in training, else ``x``."""
        if not in_training(st) or self.p == 0:
            return x, st
        shape_of(x)
        rng = st["rng"]
        if type(rng) is not Tree:
            raise LayerError(
                f"expected st.rng to be a random state Tree(key=uint64[2], counter=uint64[4]), got {describe(rng)}; "
                "it comes with the states: ps, st = culux.setup(rng, model)"
            )
        y, rng = nn.dropout(x, rng, p=self.p, training=True)
        return y, trusted({**st, "rng": rng})
