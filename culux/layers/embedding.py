"""Embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import Any

import numpy as np

from culux import nn
from culux.core import Layer
from culux.layers.checks import check_initialiser, check_length, check_parameter, made
from culux.tree import Tree

__all__ = ["Embedding"]


class Embedding(Layer):
    """A trained vector for every id: ``y = weight[x]``.

    Args:
        num_embeddings: how many ids there are.
        dims: the length of a vector.
        init_weight: an initialiser; None draws from N(0, 1), as torch does.

    Inputs:
        x: any shape, integers from 0 to num_embeddings - 1.

    Returns:
        y ``(*x.shape, dims)``, and the states as they were.

    Parameters:
        weight: ``(num_embeddings, dims)``, float32.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        DTypeError: when called, for an `x` that is no integer array.
        ShapeError: when called, for parameters of another model or an id outside the range; on a GPU it comes with
            the next `culux.to_numpy` or `culux.synchronize`, and y is NaN there.
    """

    num_embeddings: int
    dims: int
    _: KW_ONLY
    init_weight: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_length("Embedding", "num_embeddings", self.num_embeddings)
        check_length("Embedding", "dims", self.dims)
        check_initialiser("Embedding", "init_weight", self.init_weight)

    def initial_parameters(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """The weight."""
        shape = (self.num_embeddings, self.dims)
        if self.init_weight is None:
            return {"weight": rng.standard_normal(shape).astype(np.float32)}
        return {"weight": made(rng, "init_weight", self.init_weight, shape)}

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's with `dims` behind it."""
        return (*input_shape, self.dims)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``weight[x]``."""
        return nn.embedding(x, check_parameter(ps, "weight", (self.num_embeddings, self.dims))), st
