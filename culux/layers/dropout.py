"""Dropout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any

import numpy as np

from culux import nn
from culux.backends.registry import namespace_of
from culux.core import Layer
from culux.errors import LayerError, ShapeError, describe
from culux.layers.checks import check_probability, in_training, shape_of
from culux.nn.dropout import mask_shape
from culux.random import dropout_mask, rng_state
from culux.tree import Tree, trusted

__all__ = ["AlphaDropout", "Dropout", "VariationalHiddenDropout"]


class _Dropout(Layer):
    """What the layers have in common: the probability, the states, and the shape."""

    p: float

    def __post_init__(self) -> None:
        check_probability(type(self).__name__, "p", self.p)

    def initial_states(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """A random state drawn from `rng`, and the mode."""
        return {"rng": rng_state(rng), "training": True}

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's."""
        return input_shape

    def _dropped(self, function: Any, x: Any, st: Any, **options: Any) -> tuple[Any, Tree]:
        """What `function` of `culux.nn` makes of `x` in training, and the states with the random state moved on."""
        if not in_training(st) or self.p == 0:
            return x, st
        shape_of(x)
        y, rng = function(x, _random_state(st), p=self.p, training=True, **options)
        return y, trusted({**st, "rng": rng})


class Dropout(_Dropout):
    """Random zeros in training: ``y = x * mask / (1 - p)``, mask being 0 with probability p; ``y = x`` in test mode.

    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014, with the scale
    in training, as torch has it. The same `st` gives the same mask, on every device; the returned one the next.

    Args:
        p: the probability of dropping an element.
        axes: the axes along which elements are dropped apart; along the others they are dropped together, as with
            ``axes=(0, 1)`` the channels of images (torch's Dropout1d to Dropout3d). None for all axes.

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
        LayerError: for a `p` that is no number between 0 and 1, or axes that are no ints; when called, for states that
            are none of these.
        ShapeError: when called, for an `x` without these axes.
    """

    _: KW_ONLY
    axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_axes("Dropout", self.axes)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``x * mask / (1 - p)`` in training, else ``x``."""
        return self._dropped(nn.dropout, x, st, axes=self.axes)


class AlphaDropout(_Dropout):
    """Dropout for `selu`: ``y = a * where(mask, x, alpha) + b`` in training, ``y = x`` in test mode.

    Dropped elements, of probability p, become ``alpha = -1.7581``, the limit of `selu`;
    ``a = ((1 - p) * (1 + p * alpha**2)) ** -0.5`` and ``b = -a * p * alpha`` keep mean 0 and variance 1. p = 1 gives
    zeros. Klambauer et al., "Self-normalizing neural networks", 2017. The same `st` gives the same mask, on every
    device; the returned one the next.

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

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``a * where(mask, x, alpha) + b`` in training, else ``x``."""
        return self._dropped(nn.alpha_dropout, x, st)


class VariationalHiddenDropout(_Dropout):
    """Dropout with one mask for many calls: ``y = where(mask, x, 0) / (1 - p)`` in training, ``y = x`` in test mode.

    The first call in training draws the mask, those after it take it again, as for the time steps of a sequence,
    until ``culux.update_state(st, "update_mask", True)``. Gal and Ghahramani, "A theoretically grounded application
    of dropout in recurrent neural networks", 2016.

    Args:
        p: the probability of dropping an element.
        axes: the axes along which elements are dropped apart; None for all. A mask fits other lengths of the others.

    Inputs:
        x: any shape, the same along `axes` for all calls with one mask.

    Returns:
        y of the shape of x, and the states with the mask; in test mode x, and `st` as it was.

    Parameters:
        None.

    States:
        rng: the random state, ``Tree(key=uint64[2], counter=uint64[4])``; it moves on when a mask is drawn.
        training: True; set by `culux.train_mode` and `culux.test_mode`.
        update_mask: True; whether the next call in training draws a mask, which sets it to False.
        mask: bool, empty at first, then of the shape of x, 1 along other axes than `axes`.

    Raises:
        LayerError: for a `p` that is no number between 0 and 1, or axes that are no ints; when called, for states that
            are none of these.
        ShapeError: when called, for an `x` of another shape than the mask's, or without these axes.
    """

    _: KW_ONLY
    axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_axes("VariationalHiddenDropout", self.axes)

    def initial_states(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """A random state drawn from `rng`, the mode, and an empty mask."""
        return {**super().initial_states(rng), "update_mask": True, "mask": np.ones(0, np.bool_)}

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``where(mask, x, 0) / (1 - p)`` in training, else ``x``."""
        if not in_training(st) or self.p == 0:
            return x, st
        shape, mask = mask_shape(shape_of(x), self.axes), st["mask"]
        if st["update_mask"]:
            mask, rng = dropout_mask(_random_state(st), self.p, shape, like=x)
            st = trusted({**st, "rng": rng, "update_mask": False, "mask": mask})
        if tuple(mask.shape) != shape:
            raise ShapeError(
                f"expected x of the mask's shape {tuple(mask.shape)}, got {tuple(x.shape)}; for a new mask "
                'st = culux.update_state(st, "update_mask", True)'
            )
        # With p = 1 nothing is kept, and nothing scaled.
        return namespace_of(x).where(mask, x, 0) * (1 / (1 - self.p) if self.p < 1 else 1.0), st


def check_axes(layer: str, axes: Any) -> None:
    """Raise a `LayerError` where `axes` is neither None nor a tuple of ints."""
    if axes is not None and not (isinstance(axes, tuple) and all(type(axis) is int for axis in axes)):
        raise LayerError(f"{layer}: expected axes to be None or a tuple of ints, got {describe(axes)}")


def _random_state(st: Tree) -> Tree:
    """The random state in a layer's states."""
    rng = st["rng"]
    if type(rng) is not Tree:
        raise LayerError(
            f"expected st.rng to be a random state Tree(key=uint64[2], counter=uint64[4]), got {describe(rng)}; "
            "it comes with the states: ps, st = culux.setup(rng, model)"
        )
    return rng
