"""`TrainState`: all that a training step reads and makes anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from culux import optim
from culux.core import Layer, setup
from culux.core.fields import is_layer
from culux.errors import LayerError, describe
from culux.tree import as_tree

__all__ = ["TrainState"]


@dataclass(frozen=True, eq=False)
class TrainState:
    """A layer, its parameters and states, and the optimiser's state: ``TrainState(layer, ps, st, rule)``.

    It is a record that does not change (every step returns another one) and a tree node: ``device(ts)`` moves
    it, `culux.serialization` saves it and loads it with ``like=ts``.

    Args:
        layer: the layer or model.
        parameters: its parameters `ps`.
        states: its states `st`.
        rule: the optimiser's rule, e.g. ``culux.optim.Adam(1e-3)``.
        optimizer_state: the rule's state; a new one if None.
        step: how many updates have been made.
        loss_scale: for gradients in float16, a `culux.optim.DynamicLossScale`; None for none.

    Raises:
        LayerError: for a layer or a loss scale that is none.
    """

    layer: Layer
    parameters: Any
    states: Any
    rule: Any
    optimizer_state: Any = None
    step: int = 0
    loss_scale: optim.DynamicLossScale | None = None

    def __post_init__(self) -> None:
        if not is_layer(self.layer):
            raise LayerError(f"expected TrainState(layer, ps, st, rule), got {describe(self.layer)} for the layer")
        if not isinstance(self.loss_scale, optim.DynamicLossScale | None):
            raise LayerError(
                f"expected loss_scale to be a DynamicLossScale, got {describe(self.loss_scale)};"
                " loss_scale=culux.optim.DynamicLossScale()"
            )
        object.__setattr__(self, "parameters", as_tree(self.parameters))
        object.__setattr__(self, "states", as_tree(self.states))
        if self.optimizer_state is None:
            object.__setattr__(self, "optimizer_state", optim.setup(self.rule, self.parameters))

    @classmethod
    def create(
        cls,
        rng: np.random.Generator | int,
        layer: Layer,
        rule: Any,
        device: Callable[[Any], Any] | None = None,
        dtype: Any = None,
        loss_scale: optim.DynamicLossScale | None = None,
    ) -> TrainState:
        """The train state of a new model: `culux.setup`, then `culux.optim.setup`.

        Args:
            rng: a `numpy.random.Generator`, which moves on, or an int that seeds one.
            layer: the layer or model.
            rule: the optimiser's rule.
            device: where the arrays go, e.g. ``culux.gpu_device()``.
            dtype: the dtype of the floats; each layer's own (float32) if None.
            loss_scale: for gradients in float16, ``culux.optim.DynamicLossScale()``.
        """
        ps, st = setup(rng, layer, device=device, dtype=dtype)
        return cls(layer, ps, st, rule, loss_scale=loss_scale)

    def replace(self, **fields: Any) -> TrainState:
        """The same train state with some fields replaced."""
        if not fields.keys() <= vars(self).keys():
            return replace(self, **fields)  # which says what is wrong
        new = object.__new__(type(self))
        vars(new).update(vars(self), **fields)
        new.__post_init__()
        return new

    def __tree_flatten__(self) -> tuple[Mapping[str, Any], Any]:
        names = ("parameters", "states", "optimizer_state", "step", "loss_scale")
        return {name: getattr(self, name) for name in names}, (self.layer, self.rule)

    @classmethod
    def __tree_unflatten__(cls, static: Any, children: Mapping[str, Any]) -> TrainState:
        layer, rule = static
        new = object.__new__(cls)  # not __init__: a mapped tree may hold anything, also None
        for name, value in {"layer": layer, "rule": rule, **children}.items():
            object.__setattr__(new, name, value)
        return new

    def __repr__(self) -> str:
        return f"TrainState({self.layer!r}, rule={self.rule!r}, step={self.step!r})"


def check_train_state(value: Any, form: str) -> None:
    """Raise a `LayerError` with the right call where `value` is no train state."""
    if not isinstance(value, TrainState):
        raise LayerError(
            f"expected ts to be a TrainState, got {describe(value)}; {form};"
            " ts = TrainState.create(rng, layer, culux.optim.Adam(1e-3))"
        )
