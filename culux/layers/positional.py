"""Embeddings of positions: fixed sines and cosines, and turns of queries and keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any

import numpy as np

from culux import nn
from culux import numpy as cnp
from culux.autodiff.tracer import plain
from culux.backends import Array, backend_of, is_float_array
from culux.core import Layer
from culux.errors import LayerError, ShapeError, describe
from culux.layers.checks import check_flag, check_length, check_parameter, shape_of
from culux.nn.fused import narrow, widen
from culux.nn.softmax import require_integers
from culux.tree import Tree

__all__ = ["RotaryPositionalEmbedding", "SinusoidalPositionalEmbedding"]


class SinusoidalPositionalEmbedding(Layer):
    """Sines and cosines of a position: ``y = concatenate(sin(x * sigmas), cos(x * sigmas)) * scale``.

    The frequencies `sigmas` are a geometric series from `max_freq` down to `min_freq`. Vaswani et al., "Attention is
    all you need", 2017.

    Args:
        dims: the number of features of y, even.
        min_freq: the smallest frequency.
        max_freq: the largest frequency.
        scale: a factor; None for ``sqrt(2 / dims)``, with which every y has length 1.
        full_turns: whether the frequencies count turns: they are multiplied by ``2 * pi``.

    Inputs:
        x: positions, any shape, float or integer.

    Returns:
        y ``(*x.shape, dims)``, of the dtype of a float x, else of `sigmas`; and the states as they were.

    Parameters:
        None.

    States:
        sigmas: the frequencies, ``(dims / 2,)``, float32, not trained.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for states of another model.
        DTypeError: when called, for an `x` that is neither float nor integer.
    """

    dims: int
    _: KW_ONLY
    min_freq: float = 1e-4
    max_freq: float = 1.0
    scale: float | None = None
    full_turns: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        _check_even(name, self.dims)
        check_flag(name, "full_turns", self.full_turns)
        for field in ("min_freq", "max_freq"):
            _check_positive(name, field, getattr(self, field))
        if self.scale is not None:
            _check_number(name, "scale", self.scale)

    def initial_states(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """The frequencies."""
        sigmas = np.geomspace(self.max_freq, self.min_freq, self.dims // 2)
        return {"sigmas": (sigmas * (2 * math.pi if self.full_turns else 1)).astype(np.float32)}

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's with `dims` behind it."""
        return (*input_shape, self.dims)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``concatenate(sin(x * sigmas), cos(x * sigmas)) * scale``."""
        shape_of(x)
        sigmas = check_parameter(st, "sigmas", (self.dims // 2,), "st")
        like = x if is_float_array(plain(x)) else sigmas
        if like is sigmas:
            require_integers("SinusoidalPositionalEmbedding", x, "positions")
            x = cnp.astype(x, widen(sigmas).dtype)
        angles = widen(x)[..., None] * widen(sigmas)
        scale = math.sqrt(2 / self.dims) if self.scale is None else self.scale
        return narrow(cnp.concatenate([cnp.sin(angles), cnp.cos(angles)], axis=-1) * scale, like), st


class RotaryPositionalEmbedding(Layer):
    """Features turned by their positions: ``y = (x1 * cos(a) - x2 * sin(a), x2 * cos(a) + x1 * sin(a))``.

    x1 and x2 are the two halves of the features of a head, and ``a = position * base ** (-2 * i / dims)`` for the pair
    i. Queries and keys that are turned so have products that depend on the distance of their positions. Su et al.,
    "RoFormer: enhanced transformer with rotary position embedding", 2021.

    Args:
        dims: the number of features of a head, even.
        max_sequence_length: how many positions there are.
        base: the ratio of the largest frequency to the smallest, about.

    Inputs:
        x: ``(batch, length, heads, dims)`` with the positions 0, 1, ...; or the tuple ``(x, positions)``, those
            integers, ``(length,)`` or ``(batch, length)``. Any leading axes do for the batch.

    Returns:
        y of the shape of x, and the states as they were.

    Parameters:
        None.

    States:
        cos_cache: the cosines, ``(max_sequence_length, dims / 2)``, float32, not trained.
        sin_cache: the sines.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` or positions that do not fit, a sequence that is longer than the caches, or
            states of another model; for positions on a GPU that the caches have not, y is NaN and it comes with the
            next `culux.to_numpy` or `culux.synchronize`.
        DTypeError: when called, for positions that are no integers.
    """

    dims: int
    _: KW_ONLY
    max_sequence_length: int = 4096
    base: float = 10000

    def __post_init__(self) -> None:
        name = type(self).__name__
        _check_even(name, self.dims)
        check_length(name, "max_sequence_length", self.max_sequence_length)
        _check_positive(name, "base", self.base)

    def initial_states(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """The cosines and sines of all positions."""
        frequencies = self.base ** (np.arange(self.dims // 2) * (-2 / self.dims))
        angles = np.arange(self.max_sequence_length)[:, None] * frequencies
        return {"cos_cache": np.cos(angles).astype(np.float32), "sin_cache": np.sin(angles).astype(np.float32)}

    def output_shape(self, input_shape: tuple[Any, ...]) -> tuple[int, ...]:
        """The shape of x, for an x or a tuple with its positions."""
        tupled = any(isinstance(entry, tuple) for entry in input_shape)
        x, positions = _with_positions(input_shape, tupled)
        self._check(x, positions)
        return x  # type: ignore[no-any-return]  # a shape

    def _check(self, x: tuple[int, ...], positions: tuple[int, ...] | None) -> None:
        if len(x) < 3 or x[-1] != self.dims:
            raise ShapeError(f"expected x of shape (batch, length, heads, {self.dims}), got {tuple(x)}")
        if positions is None and x[-3] > self.max_sequence_length:
            raise ShapeError(
                f"expected at most max_sequence_length = {self.max_sequence_length} steps, got {x[-3]} (x has shape "
                f"{tuple(x)}); RotaryPositionalEmbedding({self.dims}, max_sequence_length={x[-3]})"
            )
        if positions is not None and tuple(positions) not in (x[-3:-2], x[:-2]):
            raise ShapeError(
                f"expected positions of shape (length,) = ({x[-3]},) or (batch, length) = {tuple(x[:-2])}, got "
                f"{tuple(positions)} (x has shape {tuple(x)})"
            )

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Turn every pair of features."""
        x, positions = _with_positions(x, type(x) is tuple)
        positions = np.asarray(positions) if isinstance(positions, list) else positions
        shape = shape_of(x)
        self._check(shape, None if positions is None else shape_of(positions))
        caches = [
            check_parameter(st, name, (self.max_sequence_length, self.dims // 2), "st")
            for name in ("cos_cache", "sin_cache")
        ]
        if positions is None:
            cos, sin = (cache[: shape[-3]] for cache in caches)
        else:
            at = self._positions(positions, caches[0])
            cos, sin = (nn.embedding(at, cache) for cache in caches)
        return nn.apply_rotary_embedding(x, cos, sin), st

    def _positions(self, positions: Array, cache: Array) -> Array:
        """The positions where the caches are; those on the host are checked."""
        require_integers("RotaryPositionalEmbedding", positions, "positions")
        if type(positions) is not np.ndarray:
            return positions
        last = self.max_sequence_length - 1
        if positions.size and not 0 <= positions.min() <= positions.max() <= last:
            raise ShapeError(
                f"expected positions from 0 to {last} (max_sequence_length is {last + 1}), got {positions.min()} to "
                f"{positions.max()}"
            )
        backend = backend_of(cache)
        return backend.from_host(positions, backend.place_of(cache).index)


def _with_positions(x: Any, tupled: bool) -> tuple[Any, Any]:
    """The input, or its shape, as x and its positions or None."""
    if not tupled:
        return x, None
    if len(x) != 2:
        raise ShapeError(f"expected x or the tuple (x, positions), got a tuple of {len(x)}")
    return x[0], x[1]


def _check_even(layer: str, dims: Any) -> None:
    check_length(layer, "dims", dims)
    if dims % 2:
        raise LayerError(f"{layer}: expected dims to be even, got {dims}; the features are pairs")


def _check_number(layer: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LayerError(f"{layer}: expected {name} to be a number, got {describe(value)}")


def _check_positive(layer: str, name: str, value: Any) -> None:
    _check_number(layer, name, value)
    if not value > 0:
        raise LayerError(f"{layer}: expected {name} to be positive, got {value}")
