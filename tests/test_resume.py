"""A run that is killed and started again ends as if it had not been killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import culux
from culux.data import batches
from culux.devices import DeviceIterator, cpu_device, get_device, gpu_device, to_numpy
from culux.errors import CheckpointError, LayerError
from culux.optim import Adam, Momentum
from culux.serialization import load, save
from culux.training import BestCheckpoint, Callback, EarlyStopping, TrainState, fit
from culux.tree import Tree
from tests.small_model import data, leaf_bytes, objective, train_state, training_batches
from tests.standin_cupy.fixture import standin_cupy  # noqa: F401 (a fixture)

EPOCHS = 6


class StepPrinter(Callback):
    """Says of each step that it has been made."""

    def on_step_end(self, run):
        print(run.train_state.step, flush=True)


def new_state():
    model = culux.Chain(culux.Dense(3, 8, culux.tanh), culux.BatchNorm(8), culux.Dropout(0.5), culux.Dense(8, 1))
    return TrainState.create(0, model, Adam(0.05))


def noisy(batch, rng):
    x, y = batch
    return x + 0.1 * rng.standard_normal(x.shape, np.float32), y


def train(checkpoint=None, callbacks=(), epochs=EPOCHS, source=None, **kwargs):
    """A run with everything on that draws random numbers: shuffling, a transform and dropout."""
    return fit(
        objective,
        source or training_batches(transform=noisy),
        new_state(),
        epochs=epochs,
        validation=[data(10, seed=1)],
        callbacks=[EarlyStopping(patience=50), *callbacks],
        checkpoint=checkpoint,
        progress=False,
        **kwargs,
    )


def without_seconds(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]


def assert_same_run(found, expected):
    assert leaf_bytes(found[0]) == leaf_bytes(expected[0])
    assert without_seconds(found[1]) == without_seconds(expected[1])


def test_a_run_killed_again_and_again_ends_bit_for_bit_the_same(tmp_path):
    command = [sys.executable, "-m", "tests.test_resume", str(tmp_path)]
    resumed_at = []
    for after in (3, 7, 8):  # steps of each life; an epoch has 5
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
            steps = [int(process.stdout.readline()) for _ in range(after)]
            process.send_signal(signal.SIGKILL)
        resumed_at.append(steps[0])
    assert resumed_at[0] == 1
    assert resumed_at[2] > 1
    assert_same_run(train(tmp_path, resume="must"), train())


class Interrupt(Callback):
    """Raises at one step."""

    def __init__(self, step, error=KeyboardInterrupt):
        self.step = step
        self.error = error

    def on_step_end(self, run):
        if run.train_state.step == self.step:
            raise self.error


@pytest.mark.parametrize("step", [5, 8, 24])
def test_an_interrupted_run_is_continued(tmp_path, step):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, [Interrupt(step)])
    assert (tmp_path / "latest.safetensors").exists() == (step > 5)
    assert_same_run(train(tmp_path), train())


def test_more_epochs_continue_a_run_that_ended(tmp_path):
    train(tmp_path, epochs=2)
    assert_same_run(train(tmp_path), train())


def test_a_run_that_ended_is_not_trained_further(tmp_path):
    first = train(tmp_path)
    assert_same_run(train(tmp_path), first)


def test_batches_behind_a_device_iterator_continue(tmp_path):
    def source():
        return DeviceIterator(cpu_device(), training_batches(transform=noisy))

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, [Interrupt(13)], source=source())
    assert_same_run(train(tmp_path, source=source()), train())


def test_the_seed_of_the_data_comes_from_the_checkpoint(tmp_path):
    train(tmp_path, epochs=2)
    other = batches(data(), 8, rng=np.random.default_rng(), transform=noisy)
    assert_same_run(train(tmp_path, source=other), train())


def test_batches_without_a_position_are_iterated_anew(tmp_path):
    train(tmp_path, epochs=2, source=[data(), data(8, seed=3)])
    assert_same_run(train(tmp_path, source=[data(), data(8, seed=3)]), train(source=[data(), data(8, seed=3)]))


def test_other_batches_take_up_the_train_state(tmp_path):
    train(tmp_path, epochs=2)
    ts, history = train(tmp_path, epochs=3, source=[data()])
    assert (ts.step, history["step"]) == (11, [5, 10, 11])


class Fails(Callback):
    """Raises at the end of one epoch."""

    def on_epoch_end(self, run):
        if run.epoch == 3:
            raise RuntimeError("disk of the logger is full")


def test_an_exception_from_a_callback_loses_no_epoch(tmp_path):
    with pytest.raises(RuntimeError, match="disk of the logger is full"):
        train(tmp_path, [Fails()])
    assert load(tmp_path / "latest.safetensors").epoch == 3
    assert_same_run(train(tmp_path), train())


def test_counters_of_callbacks_are_taken_up(tmp_path):
    def stopping():
        return EarlyStopping("epoch", patience=3), EarlyStopping("step", patience=4)

    def run(*callbacks, epochs=9):
        return fit(
            objective,
            training_batches(),
            train_state(),
            epochs=epochs,
            callbacks=callbacks,
            checkpoint=tmp_path,
            progress=False,
        )

    run(*stopping(), epochs=3)
    assert load(tmp_path / "latest.safetensors").callbacks == Tree(
        EarlyStopping=Tree(best=1.0, waited=2), EarlyStopping_2=Tree(best=5.0, waited=2)
    )
    assert len(run(*stopping())[1]) == 4
    assert len(run(*stopping())[1]) == 4  # it had been stopped and stays so
    assert len(run(EarlyStopping("epoch", patience=6))[1]) == 7


def test_a_best_checkpoint_survives_a_resumption(tmp_path):
    best = tmp_path / "best.safetensors"
    train(tmp_path / "run.safetensors", [BestCheckpoint(best, "epoch")], epochs=2)
    before = best.read_bytes()
    train(tmp_path / "run.safetensors", [BestCheckpoint(best, "epoch")], epochs=4)
    assert best.read_bytes() == before


def test_a_run_on_a_device_is_continued_there(tmp_path, standin_cupy):  # noqa: F811 (the fixture)
    def run(epochs, **kwargs):
        ts = train_state(device=gpu_device())
        return fit(
            objective, training_batches(), ts, epochs=epochs, validation=[data(10, seed=1)], progress=False, **kwargs
        )

    run(2, checkpoint=tmp_path)
    found = run(4, checkpoint=tmp_path)
    assert get_device(found[0]) == gpu_device()
    assert_same_run((to_numpy(found[0]), found[1]), map_first(to_numpy, run(4)))
    on_host = fit(objective, training_batches(), train_state(), epochs=4, progress=False)
    np.testing.assert_allclose(found[0].parameters.w.get(), on_host[0].parameters.w, rtol=1e-3)


def map_first(f, pair):
    return f(pair[0]), pair[1]


def test_never_starts_anew(tmp_path):
    train(tmp_path, epochs=2)
    assert_same_run(train(tmp_path, resume="never"), train())


def test_must_insists_on_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"resume='must' and there is no checkpoint .*latest.safetensors"):
        train(tmp_path, resume="must")


def test_another_resume_is_refused(tmp_path):
    with pytest.raises(LayerError, match="expected resume='auto', 'never' or 'must', got True"):
        train(tmp_path, resume=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 something", b"x" * 1000])
def test_a_broken_checkpoint_is_an_error_and_stays(tmp_path, content):
    path = tmp_path / "run.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run\.safetensors is truncated, corrupt"):
        train(path)
    assert path.read_bytes() == content


def test_a_checkpoint_of_something_else(tmp_path):
    save(tmp_path / "run.safetensors", train_state().parameters)
    with pytest.raises(CheckpointError, match=r"run\.safetensors is no checkpoint of fit; give another path"):
        train(tmp_path / "run.safetensors")


def test_a_checkpoint_of_another_model(tmp_path):
    train(tmp_path)
    with pytest.raises(CheckpointError, match=r"safetensors does not fit the tree that it is loaded into") as caught:
        fit(objective, training_batches(), train_state(Momentum(0.1)), epochs=1, checkpoint=tmp_path, progress=False)
    assert "parameters.w: missing in the file (expected float32 array of shape (3, 5))" in str(caught.value)
    assert "parameters.layer_4.bias: not expected (the file has float32 array of shape (1,))" in str(caught.value)


def test_a_checkpoint_that_cannot_be_written_ends_fit(tmp_path):
    (tmp_path / "latest.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"latest\.safetensors could not be written"):
        train(tmp_path, resume="never")


def test_a_folder_that_cannot_be_made_ends_fit_before_its_first_step(tmp_path):
    class Counter(Callback):
        steps = 0

        def on_step_end(self, run):
            self.steps += 1

    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deep"):
        counter = Counter()
        with pytest.raises(
            CheckpointError,
            match=r"latest\.safetensors could not be written: the folder .*file.* cannot be made \(.+\); give another",
        ):
            train(folder, [counter])
        assert counter.steps == 0


if __name__ == "__main__":
    train(sys.argv[1], [StepPrinter()])
