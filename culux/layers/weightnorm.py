"""Weight normalisation around any layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux.backends.registry import namespace_of
from culux.core import Layer, WrapperLayer
from culux.core.fields import is_layer
from culux.errors import LayerError, describe
from culux.layers.checks import check_parameter
from culux.nn.fused import narrow, widen
from culux.tree import Tree, trusted

__all__ = ["WeightNorm"]


class WeightNorm(WrapperLayer):
    """A layer whose weights are a length times a direction: ``weight = g * v / norm(v)``.

    The Euclidean norm is taken over all axes but `dims`, so that every row of a Dense weight, every output channel
    of a convolution, has its own length g. Salimans and Kingma, "Weight normalization", 2016; as torch's.

    Args:
        layer: the layer.
        which_params: the names of its parameters that are normalised; one name, or a tuple.
        dims: the axis, or a tuple of axes, that keep a norm of their own; None for one norm of the whole array.

    Inputs:
        What `layer` takes.

    Returns:
        What `layer` returns.

    Parameters:
        normalized: for each name ``<name>_g``, of length 1 along all axes but `dims`, and ``<name>_v``, of the
            parameter's shape; as `layer` makes it at first: v is the parameter, g its norm.
        unnormalized: the other parameters of `layer`.

    States:
        Those of `layer`.

    Raises:
        LayerError: for arguments that are none of these; by `culux.setup`, for a name that `layer` has no float
            array for, an axis that this has not, or a norm of zero, which has no direction.
        EntryError, ShapeError: when called, for parameters of another model.
    """

    layer: Layer
    which_params: str | tuple[str, ...]
    dims: int | tuple[int, ...] | None = 0

    def __post_init__(self) -> None:
        if not is_layer(self.layer):
            raise LayerError(f"WeightNorm: expected layer to be a layer, got {describe(self.layer)}")
        fits = isinstance(self.which_params, str | tuple) and self._names()
        if not fits or not all(isinstance(name, str) for name in self._names()):
            raise LayerError(
                "WeightNorm: expected which_params to be a name or a tuple of names of parameters, such as "
                f'"weight", got {describe(self.which_params)}'
            )
        if not isinstance(self.dims, int | tuple | None) or not all(type(axis) is int for axis in self._axes()):
            raise LayerError(f"WeightNorm: expected dims to be None, an int or a tuple, got {describe(self.dims)}")

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The layer with the weights that the lengths and directions make."""
        weights = dict(ps["unnormalized"])
        for name in self._names():
            v = ps["normalized"][f"{name}_v"]
            norm = self._norm(v)
            g = check_parameter(ps["normalized"], f"{name}_g", tuple(norm.shape), "ps.normalized")
            weights[name] = narrow(widen(v) * (widen(g) / norm), v)
        return self.layer(x, trusted(weights), st)

    def _gather(self, rng: Any, method: str) -> Tree:
        """The states of the layer, and its parameters in two groups."""
        below = self.layer._gather(rng, method)
        if method == "initial_states":
            return below
        normalized: dict[str, Any] = {}
        for name in self._names():
            v = below.get(name)
            if not isinstance(v, np.ndarray):
                raise LayerError(
                    f"WeightNorm: expected which_params to name arrays of {self.layer!r}, whose parameters are "
                    f"{', '.join(below) or 'none'}; got {name!r}"
                )
            if any(not -v.ndim <= axis < v.ndim for axis in self._axes()):
                raise LayerError(
                    f"WeightNorm: expected dims to be axes of {name}, which has shape {v.shape}, got {self.dims}"
                )
            g = self._norm(v)
            if not g.all():
                raise LayerError(
                    f"WeightNorm: {name} of {self.layer!r} has a norm of zero, which has no direction; leave it out "
                    "of which_params, or give it another initialiser"
                )
            normalized |= {f"{name}_g": narrow(g, v), f"{name}_v": v}
        others = {name: value for name, value in below.items() if name not in self._names()}
        return Tree(normalized=normalized, unnormalized=others)

    def _norm(self, v: Any) -> Any:
        """The norm over all axes but `dims`, in float32 at least."""
        kept = {axis % v.ndim for axis in self._axes()}
        wide = widen(v)
        xp = namespace_of(wide)
        return xp.sqrt(xp.sum(wide * wide, axis=tuple(i for i in range(v.ndim) if i not in kept), keepdims=True))

    def _names(self) -> tuple[str, ...]:
        return (self.which_params,) if isinstance(self.which_params, str) else tuple(self.which_params)

    def _axes(self) -> tuple[int, ...]:
        dims = self.dims
        return () if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
