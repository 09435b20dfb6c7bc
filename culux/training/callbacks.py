"""Callbacks of `fit`: loggers, early stopping, the best checkpoint, and the base of one's own."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from culux.errors import EntryError, LayerError, ShapeError, nearest
from culux.serialization import save
from culux.serialization.files import write_whole
from culux.training.checkpoints import make_folder
from culux.training.run import Run
from culux.tree import Tree

__all__ = ["BestCheckpoint", "CSVLogger", "Callback", "EarlyStopping", "JSONLinesLogger"]

_Path = str | os.PathLike[str]


class Callback:
    """What `fit` calls at its turning points; override what is needed.

    An exception ends `fit`: one from `on_epoch_end` after the epoch's checkpoint has been written.
    """

    def on_fit_start(self, run: Run) -> None:
        """Before the first step, and after a checkpoint was taken up."""

    def on_step_end(self, run: Run) -> None:
        """After each step; ``run.loss`` is still on the device."""

    def on_epoch_end(self, run: Run) -> None:
        """After each epoch; its row is ``run.history.rows[-1]``, and ``run.stop(reason)`` makes it the last."""

    def on_fit_end(self, run: Run) -> None:
        """After the last epoch; not where `fit` ends with an exception."""

    def state(self) -> Mapping[str, Any]:
        """What a resumed run needs of this callback: a tree that `culux.serialization` can save."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` returned; called at the start of each `fit`, with ``{}`` for a new run."""


class _Writer(Callback):
    """Writes a file."""

    def __init__(self, path: _Path) -> None:
        self.path = path

    def on_fit_start(self, run: Run) -> None:
        """Make the file's folder, or say before the first step that it cannot be made."""
        make_folder(self.path)


class CSVLogger(_Writer):
    """The history as a CSV file, whole after each epoch.

    Args:
        path: the file.
    """

    def on_epoch_end(self, run: Run) -> None:
        """Write the file anew: a resumed run has no rows twice."""
        names = list(dict.fromkeys(name for row in run.history.rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(run.history.rows)
        make_folder(self.path)
        write_whole(self.path, text.getvalue().encode())


class JSONLinesLogger(_Writer):
    """The history as a file of JSON lines, whole after each epoch; NaN and infinities are null.

    Args:
        path: the file.
    """

    def on_epoch_end(self, run: Run) -> None:
        """Write the file anew: a resumed run has no rows twice."""
        rows = [{name: _json(value) for name, value in row.items()} for row in run.history.rows]
        make_folder(self.path)
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())


class _Monitor(Callback):
    """Watches one column of the history and remembers its best value."""

    def __init__(self, monitor: str, mode: str, min_delta: float) -> None:
        if mode not in ("min", "max"):
            raise LayerError(f"{type(self).__name__}: expected mode='min' or mode='max', got {mode!r}")
        self.monitor = monitor
        self.mode = mode
        self.min_delta = min_delta
        self.best: float | None = None

    def improved(self, run: Run) -> bool:
        """Whether the last row is better than the best before it; NaN never is."""
        row = run.history.rows[-1]
        if self.monitor not in row:
            known = ", ".join(row)
            raise EntryError(
                f"{type(self).__name__}: the history has no column {self.monitor!r}{nearest(self.monitor, row)};"
                f" it has: {known} (val_* come with validation=)"
            )
        value = float(row[self.monitor])
        gain = -math.inf if math.isnan(value) else math.inf
        if self.best is not None and gain > 0:
            gain = self.best - value if self.mode == "min" else value - self.best
        if gain <= self.min_delta:
            return False
        self.best = value
        return True

    def state(self) -> Mapping[str, Any]:
        """The best value."""
        return {"best": self.best}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take up the best value."""
        self.best = state.get("best")


class EarlyStopping(_Monitor):
    """Ends the training when a column of the history has not improved for `patience` epochs.

    Args:
        monitor: the column.
        patience: how many epochs without improvement end the training.
        mode: ``"min"`` where smaller is better, ``"max"`` where larger is.
        min_delta: an improvement is more than this.
    """

    def __init__(
        self, monitor: str = "val_loss", patience: int = 10, mode: str = "min", min_delta: float = 0.0
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        if patience < 1:
            raise ShapeError(f"EarlyStopping: expected patience to be at least 1, got {patience}")
        self.patience = patience
        self.waited = 0

    def on_fit_start(self, run: Run) -> None:
        """A run that had been stopped stays so when it is resumed."""
        self._stop_if_due(run)

    def on_epoch_end(self, run: Run) -> None:
        """Count the epochs without improvement."""
        self.waited = 0 if self.improved(run) else self.waited + 1
        self._stop_if_due(run)

    def _stop_if_due(self, run: Run) -> None:
        if self.waited >= self.patience:
            best = "NaN" if self.best is None else f"{self.best:.4g}"
            run.stop(f"{self.monitor} has not improved on {best} for {self.waited} epochs")

    def state(self) -> Mapping[str, Any]:
        """The best value, and how long it has been the best."""
        return {"best": self.best, "waited": self.waited}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take up both."""
        super().set_state(state)
        self.waited = state.get("waited", 0)


class BestCheckpoint(_Writer, _Monitor):
    """Saves the train state whenever a column of the history is the best so far.

    ``culux.serialization.load(path, like=ts)`` gives it back.

    Args:
        path: the file.
        monitor: the column.
        mode: ``"min"`` where smaller is better, ``"max"`` where larger is.
    """

    def __init__(self, path: _Path, monitor: str = "val_loss", mode: str = "min") -> None:
        _Writer.__init__(self, path)
        _Monitor.__init__(self, monitor, mode, 0.0)

    def on_epoch_end(self, run: Run) -> None:
        """Save the train state where the last row is the best."""
        if self.improved(run):
            make_folder(self.path)
            save(self.path, run.train_state)


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def named(callbacks: tuple[Callback, ...]) -> dict[str, Callback]:
    """Callbacks by the names that their states have in a checkpoint: the class, numbered from the second on."""
    found: dict[str, Callback] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        count = sum(type(other).__name__ == kind for other in found.values())
        found[f"{kind}_{count + 1}" if count else kind] = callback
    return found


def states(callbacks: tuple[Callback, ...]) -> Tree:
    """The states of callbacks by name."""
    return Tree({name: callback.state() for name, callback in named(callbacks).items()})
