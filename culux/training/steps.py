"""One training step, whole and in its two halves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from culux import optim
from culux.autodiff import value_and_gradient
from culux.core.watch import note_use
from culux.errors import LayerError, describe
from culux.training.state import TrainState, check_train_state

__all__ = ["Objective", "apply_gradients", "compute_gradients", "single_train_step"]

Objective: TypeAlias = Callable[..., tuple[Any, Any, Any]]
"""``objective(layer, ps, st, batch) -> (loss, st, stats)``: a scalar, the new states, a dict of numbers or None."""


def compute_gradients(objective: Objective, batch: Any, ts: TrainState) -> tuple[Any, Any, Any, TrainState]:
    """The gradient of the loss of a batch with respect to the parameters; nothing is updated but the states.

    With ``ts.loss_scale`` the gradient is that of the scaled loss, divided by the scale (16 bits in float32), and the
    scale moves on. Where it is not finite, it is None and the states stay as they were, so that a batch that
    overflowed is in no statistics.

    Args:
        objective: ``objective(layer, ps, st, batch) -> (loss, st, stats)``; the loss classes are objectives.
        batch: whatever the objective takes, usually ``(x, y)``.
        ts: the train state.

    Returns:
        ``(grads, loss, stats, ts)``, where the new `ts` has the states after the call.

    Raises:
        LayerError: where the objective returns something else, and for arguments in another order.
        NonFiniteError: where no loss scale makes the gradient finite.
    """
    check_train_state(ts, "grads, loss, stats, ts = compute_gradients(objective, batch, ts)")
    note_use(ts, "compute_gradients")

    def loss_of(ps: Any) -> tuple[Any, Any]:
        loss, st, stats = call(objective, ts.layer, ps, ts.states, batch)
        return loss, (st, stats)

    if ts.loss_scale is not None:
        return _scaled_gradients(loss_of, ts, ts.loss_scale)
    (loss, (st, stats)), grads = value_and_gradient(loss_of, ts.parameters, has_aux=True)
    return grads, loss, stats, ts.replace(states=st)


def _scaled_gradients(
    loss_of: Callable[[Any], tuple[Any, Any]], ts: TrainState, loss_scale: optim.DynamicLossScale
) -> tuple[Any, Any, Any, TrainState]:
    def scaled(ps: Any) -> tuple[Any, Any]:
        loss, aux = loss_of(ps)
        return loss_scale.scaled(loss), (loss, aux)

    with np.errstate(over="ignore", invalid="ignore"):  # that it overflows is how too large a scale is found
        (_, (loss, (st, stats))), grads = value_and_gradient(scaled, ts.parameters, has_aux=True)
    grads, after = loss_scale.unscaled(grads)
    return grads, loss, stats, ts.replace(states=ts.states if grads is None else st, loss_scale=after)


def apply_gradients(ts: TrainState, grads: Any) -> TrainState:
    """The train state after one update of the optimiser; `ts` and `grads` stay as they are.

    Gradients of None, from a loss scale that was too large, make no update: all stays, the step too.
    """
    check_train_state(ts, "ts = apply_gradients(ts, grads)")
    note_use(ts, "apply_gradients")
    return updated(ts, grads, optim.update)


def updated(ts: TrainState, grads: Any, update: Callable[..., tuple[Any, Any]]) -> TrainState:
    """The train state after `update`, `culux.optim.update` or the one in place; without gradients an equal one."""
    if grads is None:
        return ts.replace()
    optimizer_state, ps = update(ts.optimizer_state, ts.parameters, grads)
    return ts.replace(parameters=ps, optimizer_state=optimizer_state, step=ts.step + 1)


def single_train_step(objective: Objective, batch: Any, ts: TrainState) -> tuple[Any, Any, TrainState]:
    """One step on one batch: `compute_gradients`, then `apply_gradients`.

    Returns:
        ``(loss, stats, ts)``; the loss is an array on the device, not yet read.

    Raises:
        LayerError: as `compute_gradients`.
    """
    check_train_state(ts, "loss, stats, ts = single_train_step(objective, batch, ts)")
    grads, loss, stats, ts = compute_gradients(objective, batch, ts)
    return loss, stats, apply_gradients(ts, grads)


def call(objective: Objective, layer: Any, ps: Any, st: Any, batch: Any) -> tuple[Any, Any, Any]:
    """``objective(layer, ps, st, batch)``, checked to be ``(loss, st, stats)``."""
    result = objective(layer, ps, st, batch)
    if type(result) is not tuple or len(result) != 3:
        raise LayerError(
            f"expected objective(layer, ps, st, batch) to return (loss, st, stats), got {describe(result)};"
            " stats is a dict of numbers to log, or None"
        )
    return result
