"""The callbacks that come with `fit`."""

from __future__ import annotations

import csv
import json
import math

import pytest

from culux.errors import CheckpointError, EntryError, LayerError, ShapeError
from culux.serialization import load
from culux.training import (
    BestCheckpoint,
    Callback,
    CSVLogger,
    EarlyStopping,
    History,
    JSONLinesLogger,
    Run,
    fit,
)
from culux.tree import Tree
from tests.small_model import data, leaf_bytes, objective, train_state, training_batches


def run_of(callback, values, name="val_loss"):
    """A run whose epochs have these values, up to where the callback stops it."""
    run = Run(train_state(), len(values))
    callback.set_state({})
    callback.on_fit_start(run)
    for value in values:
        run.epoch += 1
        run.history = History((*run.history.rows, Tree({"epoch": run.epoch, name: value})))
        callback.on_epoch_end(run)
        if run.stopped:
            break
    return run


def train(*callbacks, epochs=3, **kwargs):
    return fit(
        objective,
        training_batches(),
        train_state(),
        epochs=epochs,
        callbacks=callbacks,
        validation=[data(10, seed=1)],
        progress=False,
        **kwargs,
    )


def test_the_csv_file_has_the_history(tmp_path):
    path = tmp_path / "new" / "log.csv"
    _, history = train(CSVLogger(path))
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(text) for name, text in row.items()} for row in rows] == [dict(row) for row in history.rows]
    assert path.read_text().splitlines()[0] == "epoch,step,loss,bias,learning_rate,val_loss,val_bias,seconds"


def test_the_json_lines_have_the_history(tmp_path):
    path = tmp_path / "log.jsonl"
    _, history = train(JSONLinesLogger(path))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [dict(row) for row in history.rows]


def test_json_has_no_nan(tmp_path):
    path = tmp_path / "log.jsonl"
    run_of(JSONLinesLogger(path), [math.nan, -math.inf, 1.0])
    assert [json.loads(line)["val_loss"] for line in path.read_text().splitlines()] == [None, None, 1.0]


@pytest.mark.parametrize("logger", [CSVLogger, JSONLinesLogger])
def test_a_resumed_log_has_no_row_twice(tmp_path, logger):
    class Fails(Callback):
        def on_epoch_end(self, run):
            if run.epoch == 2 and not failed:
                failed.append(1)
                raise RuntimeError("no")

    failed = []
    with pytest.raises(RuntimeError, match="no"):
        train(logger(tmp_path / "log"), Fails(), epochs=4, checkpoint=tmp_path)
    train(logger(tmp_path / "log"), Fails(), epochs=4, checkpoint=tmp_path)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) - (logger is CSVLogger) == 4


@pytest.mark.parametrize(
    ("mode", "values", "epochs"),
    [
        ("min", [3, 2, 1, 1.5, 1.2, 0.5], 5),
        ("min", [3, 2, 2, 1.9, 3, 3], 6),
        ("max", [1, 2, 3, 2, 2.5, 4], 5),
        ("max", [1, 1, 1, 1], 3),
        ("min", [math.nan, math.nan, 1], 2),
        ("min", [1, math.nan, 0.5, 2, 2], 5),
        ("min", [-1, -2, -3, -4, -5, -6], 6),
    ],
)
def test_early_stopping_waits_for_its_patience(mode, values, epochs):
    run = run_of(EarlyStopping("val_loss", patience=2, mode=mode), values)
    assert run.epoch == epochs


def test_early_stopping_says_why():
    run = run_of(EarlyStopping("loss", patience=1), [1.0, 2.0], "loss")
    assert run.stopped == "loss has not improved on 1 for 1 epochs"


def test_an_improvement_is_more_than_min_delta():
    assert run_of(EarlyStopping(patience=1, min_delta=0.5), [3.0, 2.4, 2.0, 1.0]).epoch == 3


def test_early_stopping_begins_anew_with_each_fit():
    stopping = EarlyStopping(patience=1)
    assert run_of(stopping, [1.0, 2.0]).epoch == 2
    assert run_of(stopping, [9.0, 8.0, 9.0]).epoch == 3


def test_early_stopping_ends_fit():
    _, history = train(EarlyStopping("epoch", patience=2, mode="min"), epochs=9)
    assert len(history) == 3


@pytest.mark.parametrize("kind", [CSVLogger, JSONLinesLogger, BestCheckpoint])
def test_a_folder_that_cannot_be_made_ends_fit_before_its_first_step(tmp_path, kind):
    class Stopper(Callback):
        def on_step_end(self, run):
            pytest.fail("a step was made")

    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"best could not be written: the folder .*file cannot be made \("):
        fit(
            objective,
            training_batches(),
            train_state(),
            epochs=1,
            callbacks=[kind(tmp_path / "file" / "best"), Stopper()],
            progress=False,
        )


def test_an_unknown_column_is_an_error_that_lists_the_columns():
    with pytest.raises(EntryError, match=r"no column 'val_los' \(did you mean 'val_loss'\?\); it has: epoch, step"):
        train(EarlyStopping("val_los"))


@pytest.mark.parametrize("kind", [EarlyStopping, lambda **kwargs: BestCheckpoint("x", **kwargs)])
def test_an_unknown_mode(kind):
    with pytest.raises(LayerError, match="expected mode='min' or mode='max', got 'best'"):
        kind(mode="best")


def test_a_patience_of_none():
    with pytest.raises(ShapeError, match="expected patience to be at least 1, got 0"):
        EarlyStopping(patience=0)


def test_the_best_checkpoint_is_the_best_epochs(tmp_path):
    path = tmp_path / "deep" / "best.safetensors"

    class Remember(Callback):
        def on_epoch_end(self, run):
            states.append(leaf_bytes(run.train_state))

    states = []
    _, history = train(BestCheckpoint(path, "val_bias", mode="max"), Remember(), epochs=6)
    values = history["val_bias"]
    best = values.index(max(values))
    assert leaf_bytes(load(path, train_state())) == states[best]
    assert 0 < best


def test_the_best_checkpoint_of_a_run_that_gets_worse_stays(tmp_path):
    path = tmp_path / "best.safetensors"
    train(BestCheckpoint(path, "epoch", mode="min"))
    assert load(path).step == 5
