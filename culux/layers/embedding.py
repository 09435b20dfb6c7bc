"""Embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import Any

import numpy as np

from culux import nn
from culux.core import Layer
from culux.errors import ShapeError, describe
from culux.layers.checks import as_shape, check_initialiser, check_length, check_parameter, made
from culux.tree import Tree

__all__ = ["Embedding"]


class Embedding(Layer):
    """A trained vector for every id: ``y = weight[x]``.

    Args:
        num_embeddings: how many ids there are; a tuple for several ids at once, ``y = weight[x[0], x[1]]``.
        dims: the length of a vector.
        init_weight: an initialiser; None draws from N(0, 1), as torch does.

    Inputs:
        x: any shape, integers from 0 to num_embeddings - 1; a tuple of such arrays, of one shape, where
            `num_embeddings` is a tuple.

    Returns:
        y ``(*x.shape, dims)``, and the states as they were.

    Parameters:
        weight: ``(num_embeddings, dims)``, or ``(*num_embeddings, dims)``, float32.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        DTypeError: when called, for an `x` that is no integer array.
        ShapeError: when called, for parameters of another model or an id outside the range; on a GPU it comes with
            the next `culux.to_numpy` or `culux.synchronize`, and y is NaN there.
    """

    num_embeddings: int | tuple[int, ...]
    dims: int
    _: KW_ONLY
    init_weight: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        self._rows()
        check_length("Embedding", "dims", self.dims)
        check_initialiser("Embedding", "init_weight", self.init_weight)

    def initial_parameters(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """The weight."""
        shape = (*self._rows(), self.dims)
        if self.init_weight is None:
            return {"weight": rng.standard_normal(shape).astype(np.float32)}
        return {"weight": made(rng, "init_weight", self.init_weight, shape)}

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's with `dims` behind it; that of one input where there is a tuple of them."""
        shape: Any = input_shape[0] if isinstance(self.num_embeddings, tuple) else input_shape
        return (*shape, self.dims)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``weight[x]``."""
        rows = self._rows()
        if isinstance(self.num_embeddings, tuple) and (type(x) is not tuple or len(x) != len(rows)):
            raise ShapeError(f"expected x to be a tuple of {len(rows)} arrays of ids, got {describe(x)}")
        return nn.embedding(x, check_parameter(ps, "weight", (*rows, self.dims))), st

    def _rows(self) -> tuple[int, ...]:
        return as_shape("Embedding", self.num_embeddings, "num_embeddings")
