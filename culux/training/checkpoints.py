"""Checkpoints of a whole run: where they are, what is in them, and that they hold numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from culux import tree
from culux.backends import is_float_array
from culux.backends.registry import namespace_of
from culux.devices import DeviceIterator
from culux.errors import CheckpointError, LayerError, NonFiniteError
from culux.serialization import load, save
from culux.serialization.checkpoint import shaped_like
from culux.training.history import History
from culux.training.run import Run
from culux.training.state import TrainState
from culux.tree import Tree

__all__ = ["check_finite", "checkpoint_file", "make_folder", "restore_run", "save_run"]

_ENTRIES = ("train_state", "epoch", "data", "history", "callbacks")
_WAYS_OUT = (
    "the last checkpoint is as it was; try a smaller learning rate, culux.optim.clip_norm, or look at the input for NaN"
)


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """The file of a run's checkpoint: `path` where it ends in .safetensors, else ``latest.safetensors`` in it."""
    return Path(path) if Path(path).suffix == ".safetensors" else Path(path, "latest.safetensors")


def make_folder(file: str | os.PathLike[str]) -> None:
    """Make the folder of a file.

    Raises:
        CheckpointError: where it cannot be made.
    """
    folder = Path(file).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{file} could not be written: the folder {folder} cannot be made ({error.strerror or error});"
            " give another path"
        ) from error


def save_run(file: Path, run: Run, batches: Any, callbacks: Tree) -> None:
    """Write all that a run needs to be continued as if it had never stopped."""
    make_folder(file)
    entries = (run.train_state, run.epoch, getattr(_source(batches), "position", None), run.history.rows, callbacks)
    save(file, Tree(dict(zip(_ENTRIES, entries, strict=True))))


def restore_run(file: Path, resume: str, run: Run, batches: Any) -> Mapping[str, Any]:
    """Take up a checkpoint in `run` and `batches`, where there is one and `resume` says so.

    Returns:
        The states of the callbacks; none for a new run.

    Raises:
        CheckpointError: for a file that is no checkpoint of `fit` or does not fit the train state, and for
            ``resume="must"`` with no file.
        LayerError: for another `resume`.
    """
    if resume not in ("auto", "never", "must"):
        raise LayerError(f"expected resume='auto', 'never' or 'must', got {resume!r}")
    if resume == "never" or not file.exists():
        if resume == "must":
            raise CheckpointError(f"resume='must' and there is no checkpoint {file}")
        return {}
    values = load(file)
    if not isinstance(values, Tree) or tuple(values) != _ENTRIES:
        raise CheckpointError(f"{file} is no checkpoint of fit; give another path, or start anew with resume='never'")
    run.train_state = shaped_like(file, values.train_state, run.train_state)
    run.epoch, run.history = values.epoch, History(values.history)
    source = _source(batches)
    if values.data is not None and hasattr(source, "position"):
        source.position = values.data
    return values.callbacks  # type: ignore[no-any-return]  # a Tree, as save_run wrote it


def check_finite(ts: TrainState, epoch: int) -> None:
    """Raise where the train state holds NaN or infinity, so that it is never saved or handed out."""
    if all(map(_is_finite, tree.leaves(ts))):
        return
    bad = [path for path, leaf in tree.leaves_with_path(ts) if not _is_finite(leaf)]
    raise NonFiniteError(f"NaN or infinity after step {ts.step} (epoch {epoch}) in {', '.join(bad)}; {_WAYS_OUT}")


def _is_finite(leaf: Any) -> bool:
    return not is_float_array(leaf) or bool(namespace_of(leaf).isfinite(leaf).all())


def check_losses(losses: list[float], step: int, epoch: int) -> None:
    """Raise at the first loss that is no finite number; `step` is the number of the last one."""
    for number, loss in enumerate(losses, step - len(losses) + 1):
        if not -float("inf") < loss < float("inf"):
            raise NonFiniteError(f"the loss is {loss} at step {number} (epoch {epoch}); {_WAYS_OUT}")


def _source(batches: Any) -> Any:
    return batches.iterable if isinstance(batches, DeviceIterator) else batches
