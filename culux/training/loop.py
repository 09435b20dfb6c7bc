"""`fit`: epochs of training with validation, callbacks and checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from culux import optim
from culux.errors import LayerError, ShapeError, describe
from culux.optim.state import own
from culux.training.callbacks import Callback, named, states
from culux.training.checkpoints import check_finite, check_losses, checkpoint_file, make_folder, restore_run, save_run
from culux.training.evaluation import Means, Metric, check_data, check_metrics, evaluate, no_batch, on_device, scalars
from culux.training.history import History
from culux.training.progress import Progress
from culux.training.run import Run
from culux.training.state import TrainState, check_train_state
from culux.training.steps import Objective, compute_gradients, updated
from culux.tree import Tree

__all__ = ["fit"]


def fit(
    objective: Objective,
    batches: Iterable[Any],
    ts: TrainState,
    *,
    epochs: int,
    validation: Iterable[Any] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    resume: str = "auto",
    log_every: int = 50,
    progress: bool = True,
) -> tuple[TrainState, History]:
    """The train state after some epochs of steps on batches, and the history: one row per epoch.

    With `checkpoint` each epoch ends with a file from which a killed run, started again with the same call,
    continues as if it had not been killed: on the CPU bit for bit, if `batches` is a `culux.data.batches` or
    gives the same in each epoch.

    Args:
        objective: ``objective(layer, ps, st, batch) -> (loss, st, stats)``.
        batches: the training data, iterated once per epoch; batches on the host are moved to the model's device.
        ts: the train state to begin with; it stays as it is, bit for bit.
        epochs: how many epochs in all, those before a resumption included.
        validation: batches to evaluate after each epoch, in test mode: the columns val_*.
        metrics: functions ``metric(y_hat, y)`` by name, computed on `validation` (see `evaluate`).
        callbacks: see `Callback`.
        checkpoint: a file that ends in .safetensors, or a folder for ``latest.safetensors``.
        resume: ``"auto"`` continues from `checkpoint` if it is there, ``"must"`` insists, ``"never"`` replaces it.
        log_every: after how many steps the losses are read from the device.
        progress: show a table, and a bar on a terminal.

    Raises:
        NonFiniteError: where a loss or the train state becomes NaN or infinite, with the step and the epoch; the
            last checkpoint stays.
        ShapeError: where an epoch has no batch.
        LayerError: for an argument of another kind, or arguments in another order.
        CheckpointError: where the checkpoint cannot be read, does not fit `ts` or cannot be written.
    """
    check_train_state(ts, "ts, history = fit(objective, batches, ts, epochs=10)")
    check_data("batches", batches)
    if validation is not None:
        check_data("validation", validation)
    check_metrics(metrics)
    _check(epochs, log_every, validation, metrics, callbacks)
    file = None if checkpoint is None else checkpoint_file(checkpoint)
    loop = _Loop(objective, batches, validation, metrics, tuple(callbacks), log_every, file)
    return loop.run(ts, epochs, resume, progress)


@dataclass(frozen=True)
class _Loop:
    """What a `fit` works with from its first epoch to its last."""

    objective: Objective
    batches: Iterable[Any]
    validation: Iterable[Any] | None
    metrics: Mapping[str, Metric] | None
    callbacks: tuple[Callback, ...]
    log_every: int
    file: Path | None

    def run(self, ts: TrainState, epochs: int, resume: str, progress: bool) -> tuple[TrainState, History]:
        """All epochs, between the callbacks' starts and ends."""
        run = Run(ts, epochs)
        saved = {} if self.file is None else restore_run(self.file, resume, run, self.batches)
        if self.file is not None:
            make_folder(self.file)
        optimizer_state, ps = own(run.train_state.optimizer_state, run.train_state.parameters)
        run.train_state = run.train_state.replace(parameters=ps, optimizer_state=optimizer_state)
        for name, callback in named(self.callbacks).items():
            callback.set_state(saved.get(name, {}))
            callback.on_fit_start(run)
        with Progress(epochs, _length(self.batches), progress) as shown:
            if run.epoch:
                shown.note(f"resumed from {self.file} after epoch {run.epoch}")
            while run.epoch < epochs and not run.stopped:
                self.epoch(run, shown)
            if run.stopped:
                shown.note(f"stopped after epoch {run.epoch}: {run.stopped}")
        for callback in self.callbacks:
            callback.on_fit_end(run)
        return run.train_state, run.history

    def epoch(self, run: Run, shown: Progress) -> None:
        """One epoch of steps, its validation, its row, its callbacks and its checkpoint."""
        started = time.perf_counter()
        row = {"epoch": run.epoch + 1, **self.steps(run, shown)}
        if self.validation is not None:
            found = evaluate(self.objective, self.validation, run.train_state, self.metrics)
            row |= {f"val_{name}": value for name, value in found.items()}
        row["seconds"] = time.perf_counter() - started
        run.epoch, run.history = run.epoch + 1, History((*run.history.rows, Tree(row)))
        shown.end_epoch(row)
        try:
            for callback in self.callbacks:
                callback.on_epoch_end(run)
        finally:  # an exception from a callback loses no epoch
            if self.file is not None:
                save_run(self.file, run, self.batches, states(self.callbacks))

    def steps(self, run: Run, shown: Progress) -> dict[str, Any]:
        """The steps of one epoch; what its row says of them."""
        epoch = run.epoch + 1
        means = Means()
        shown.start_epoch(epoch)
        for batch in on_device(self.batches, run.train_state):
            grads, run.loss, stats, ts = compute_gradients(self.objective, batch, run.train_state)
            run.train_state = updated(ts, grads, optim.update_in_place)
            means.add({"loss": run.loss, **scalars(stats)}, batch)
            for callback in self.callbacks:
                callback.on_step_end(run)
            shown.step()
            if means.count % self.log_every == 0:
                losses = means.read()
                check_losses(losses, run.train_state.step, epoch)
                shown.loss(losses[-1])
        if not means.count:
            raise no_batch()
        check_losses(means.read(), run.train_state.step, epoch)
        check_finite(run.train_state, epoch)
        row = {"step": run.train_state.step, **means.result()}
        rate = _learning_rate(run.train_state.optimizer_state)
        return row if rate is None else {**row, "learning_rate": rate}


def _learning_rate(optimizer_state: optim.OptimizerState) -> float | None:
    """The learning rate of the last step, where the rule has one; the first, where it has several."""
    for part in optimizer_state.rule.parts():
        rate = getattr(part.at(max(optimizer_state.step - 1, 0)), "learning_rate", None)
        if rate is not None:
            return float(rate)
    return None


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:
        return None


def _check(epochs: Any, log_every: Any, validation: Any, metrics: Any, callbacks: Any) -> None:
    for name, value, least in (("epochs", epochs, 0), ("log_every", log_every, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise LayerError(f"expected {name} to be an integer, got {describe(value)}; {name}=10")
        if value < least:
            raise ShapeError(f"expected {name} to be at least {least}, got {value}")
    if metrics and validation is None:
        raise LayerError(f"metrics ({', '.join(metrics)}) are computed on validation=, and there is none")
    if not isinstance(callbacks, Sequence):
        raise LayerError(f"expected callbacks to be a list, got {describe(callbacks)}; callbacks=[EarlyStopping()]")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise LayerError(f"expected callbacks that derive from culux.training.Callback, got {describe(callback)}")
