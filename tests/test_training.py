"""Steps, evaluation and the loop of `fit`."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import optim
from culux.data import batches
from culux.devices import cpu_device, get_device, gpu_device
from culux.errors import CuluxError, LayerError, NonFiniteError, ShapeError
from culux.serialization import load, save
from culux.training import (
    Callback,
    TrainState,
    accuracy,
    apply_gradients,
    compute_gradients,
    evaluate,
    fit,
    single_train_step,
)
from tests.small_model import SmallModel, data, leaf_bytes, objective, train_state, training_batches
from tests.standin_cupy.fixture import standin_cupy  # noqa: F401 (a fixture)


def test_a_train_state_holds_what_a_step_needs():
    ps, st = culux.setup(0, SmallModel())
    rule = optim.Descent(0.1)
    ts = TrainState(SmallModel(), ps, st, rule)
    assert ts.layer == SmallModel()
    assert (ts.parameters, ts.states, ts.rule, ts.step) == (ps, st, rule, 0)
    assert leaf_bytes(ts.parameters) == leaf_bytes(train_state().parameters)
    with pytest.raises(AttributeError):
        ts.step = 1
    assert repr(ts) == f"TrainState({SmallModel()!r}, rule={rule!r}, step=0)"


def test_create_takes_a_device_and_a_dtype():
    assert train_state(dtype="float64").parameters.w.dtype == np.float64
    assert get_device(train_state(device=cpu_device("float64"))) == cpu_device()


def test_a_train_state_of_something_else():
    ps, st = culux.setup(0, SmallModel())
    with pytest.raises(LayerError, match=r"expected TrainState\(layer, ps, st, rule\), got .* for the layer"):
        TrainState(ps, st, SmallModel(), optim.Adam())


def test_a_train_state_is_a_tree_node(tmp_path):
    _, _, ts = single_train_step(objective, data(), train_state())
    paths = [path for path, _ in culux.tree.leaves_with_path(ts)]
    assert {"parameters.w", "states.training", "step"} <= set(paths)
    doubled = culux.tree.map(lambda leaf: leaf, ts)
    assert type(doubled) is TrainState
    assert leaf_bytes(doubled) == leaf_bytes(ts)
    save(tmp_path / "ts.safetensors", ts)
    loaded = load(tmp_path / "ts.safetensors", train_state())
    assert leaf_bytes(loaded) == leaf_bytes(ts)
    one, two = (single_train_step(objective, data(), state)[2] for state in (ts, loaded))
    assert leaf_bytes(one) == leaf_bytes(two)


def test_compute_gradients_updates_the_states_only():
    ts = train_state()
    grads, loss, stats, after = compute_gradients(objective, data(), ts)
    x, y = data()
    ps = ts.parameters
    h = np.tanh(x.astype(np.float64) @ ps.w)
    mask = np.random.Generator(np.random.Philox(key=ts.states.rng.key)).random(h.shape, np.float32) >= 0.5
    h = h * mask * 2
    mean = h.mean(axis=0) * 0.1
    error = (h - mean) @ ps.v - y
    np.testing.assert_allclose(loss, (error**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(stats["bias"], error.mean(), rtol=1e-4)
    np.testing.assert_allclose(grads.v, (h - mean).T @ error * 2 / len(x), rtol=1e-4)
    np.testing.assert_allclose(after.states.mean, mean, rtol=1e-5)
    assert after.parameters is ts.parameters
    assert after.step == 0
    assert ts.states.mean.any() == np.False_


def test_apply_gradients_makes_one_update():
    ts = train_state(optim.Descent(0.5))
    before = leaf_bytes(ts)
    grads = culux.tree.map(np.ones_like, ts.parameters)
    after = apply_gradients(ts, grads)
    np.testing.assert_allclose(after.parameters.w, ts.parameters.w - 0.5, rtol=1e-6)
    assert after.step == 1
    assert leaf_bytes(ts) == before


def test_single_train_step_is_both():
    ts = train_state()
    grads, loss, stats, half = compute_gradients(objective, data(), ts)
    found_loss, found_stats, found = single_train_step(objective, data(), ts)
    assert float(found_loss) == float(loss)
    assert float(found_stats["bias"]) == float(stats["bias"])
    assert leaf_bytes(found) == leaf_bytes(apply_gradients(half, grads))


def test_an_objective_that_returns_something_else():
    with pytest.raises(LayerError, match=r"objective\(layer, ps, st, batch\) to return \(loss, st, stats\)"):
        single_train_step(lambda layer, ps, st, batch: layer(batch[0], ps, st), data(), train_state())


def test_evaluate_is_a_mean_over_rows_in_test_mode():
    ts, (x, y) = train_state(), data(10)
    ts = ts.replace(states=ts.states.replace(mean=np.full(5, 0.5, np.float32)))
    found = evaluate(objective, batches((x, y), 4, rng=0), ts, {"error": lambda y_hat, y: np.abs(y_hat - y).mean()})
    y_hat = (np.tanh(x.astype(float) @ ts.parameters.w) - 0.5) @ ts.parameters.v
    assert list(found) == ["loss", "bias", "error"]
    assert all(type(value) is float for value in found.values())
    np.testing.assert_allclose(found.loss, ((y_hat - y) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(found.bias, (y_hat - y).mean(), rtol=1e-4)
    np.testing.assert_allclose(found.error, np.abs(y_hat - y).mean(), rtol=1e-5)


def test_evaluate_leaves_out_stats_that_are_no_scalars():
    def verbose(layer, ps, st, batch):
        loss, st, _ = objective(layer, ps, st, batch)
        return loss, st, {"all": np.ones(3), "count": 2, "name": "x", "loss": 100.0, "step": 100.0}

    found = evaluate(verbose, [data()], train_state())
    assert dict(found) == {"loss": found.loss, "count": 2.0}
    assert found.loss < 100


@pytest.mark.parametrize("call", [evaluate, lambda *args: fit(*args, epochs=1, progress=False)])
def test_no_batch_is_an_error(call):
    with pytest.raises(ShapeError, match="expected at least one batch, got none: the data set is empty"):
        call(objective, [], train_state())


def test_stats_may_be_none_and_nothing_else():
    def with_stats(stats):
        return lambda layer, ps, st, batch: (objective(layer, ps, st, batch)[0], st, stats)

    assert list(evaluate(with_stats(None), [data()], train_state())) == ["loss"]
    with pytest.raises(LayerError, match="expected stats to be a dict of numbers or None, got float 3"):
        evaluate(with_stats(3.0), [data()], train_state())


def test_metrics_need_pairs():
    with pytest.raises(LayerError, match=r"metrics need batches \(x, y\)"):
        evaluate(lambda layer, ps, st, x: (1.0, st, {}), [np.ones((2, 3))], train_state(), {"accuracy": accuracy})


def test_accuracy():
    logits = np.array([[2.0, 1], [0, 3], [5, 4], [0, 1]])
    assert accuracy(logits, np.array([0, 1, 1, 1])) == 0.75
    assert accuracy(logits, np.eye(2)[[0, 0, 0, 0]]) == 0.5
    images = np.zeros((2, 3, 4, 4))
    images[:, 2] = 1
    assert accuracy(images, np.full((2, 4, 4), 2)) == 1.0
    with pytest.raises(ShapeError, match=r"expected labels of shape \(4,\) .* got int64 array of shape \(3,\)"):
        accuracy(logits, np.array([0, 1, 1]))


def test_fit_is_the_loop_written_out():
    ts, source = train_state(), training_batches()
    expected, losses = ts, []
    for batch in training_batches():
        loss, _, expected = single_train_step(objective, batch, expected)
        losses.append(float(loss))
    before = leaf_bytes(ts)
    found, history = fit(objective, source, ts, epochs=1, progress=False)
    assert leaf_bytes(found) == leaf_bytes(expected)
    assert leaf_bytes(ts) == before
    (row,) = history.rows
    assert list(row) == ["epoch", "step", "loss", "bias", "learning_rate", "seconds"]
    assert (row.epoch, row.step, row.learning_rate) == (1, 5, 0.05)
    np.testing.assert_allclose(row.loss, np.mean(losses), rtol=1e-6)


def test_the_learning_rate_of_a_schedule_is_that_of_the_last_step():
    rule = optim.chain(optim.clip_norm(1.0), optim.Descent(lambda step: 0.1 / (step + 1)))
    _, history = fit(objective, training_batches(), train_state(rule), epochs=2, progress=False)
    assert history["learning_rate"] == [0.1 / 5, 0.1 / 10]


def test_fit_leaves_every_state_that_it_was_given_as_it_was():
    start = train_state()
    first, _ = fit(objective, training_batches(), start, epochs=1, progress=False)
    before = leaf_bytes(first)
    second, _ = fit(objective, training_batches(), first, epochs=1, progress=False)
    assert leaf_bytes(first) == before
    assert leaf_bytes(second) != before
    assert second.step == 10


def test_fit_learns_and_validates():
    ts, history = fit(
        objective,
        training_batches(),
        train_state(),
        epochs=30,
        validation=batches(data(30, seed=1), 8, rng=0, shuffle=False),
        metrics={"error": lambda y_hat, y: np.abs(y_hat - y).mean()},
        progress=False,
    )
    assert history["val_loss"][-1] < 0.8 * history["val_loss"][0]
    last = evaluate(objective, [data(30, seed=1)], ts)
    np.testing.assert_allclose(history["val_loss"][-1], last.loss, rtol=1e-5)
    assert history["epoch"] == list(range(1, 31))
    assert len(history["val_error"]) == len(history) == 30


def test_the_loss_of_an_epoch_is_weighted_by_rows_and_read_every_log_every_steps():
    def by_rows(layer, ps, st, batch):
        return ps.w.sum() * 0 + float(len(batch)), st, {}

    _, history = fit(by_rows, [np.ones((1, 3)), np.ones((3, 3))], train_state(), epochs=1, progress=False, log_every=1)
    assert history["loss"] == [2.5]


def test_losses_stay_on_the_device_between_readings(standin_cupy, monkeypatch):  # noqa: F811 (the fixture)
    device = gpu_device()
    ts = train_state(device=device)
    ts = ts.replace(states=culux.test_mode(ts.states))  # dropout reads its state
    reads = []
    to_host = type(device.backend).to_host
    monkeypatch.setattr(type(device.backend), "to_host", lambda self, a: reads.append(a.shape) or to_host(self, a))
    monkeypatch.setattr(standin_cupy.ndarray, "__float__", None)
    found, _ = fit(objective, training_batches(), ts, epochs=2, progress=False, log_every=3)
    assert reads == [(3,), (3,), (2,), (2,)] * 2  # in each epoch the losses and the stat after steps 3 and 5
    assert get_device(found) == device
    ts = train_state()
    ts = ts.replace(states=culux.test_mode(ts.states))
    on_host, _ = fit(objective, training_batches(), ts, epochs=2, progress=False)
    for there, here in zip(culux.tree.leaves(found.parameters), culux.tree.leaves(on_host.parameters), strict=True):
        np.testing.assert_allclose(there.get(), here, rtol=1e-4)


def exploding(at, value=np.nan):
    """An objective whose loss is `value` from the given call on."""
    calls = []

    def call(layer, ps, st, batch):
        calls.append(1)
        loss, st, stats = objective(layer, ps, st, batch)
        return (loss if len(calls) < at else loss + value), st, stats

    return call


@pytest.mark.parametrize(("value", "text"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
@pytest.mark.parametrize("log_every", [1, 2, 50])
def test_a_loss_that_is_no_number_stops_fit_and_says_where(value, text, log_every):
    with pytest.raises(NonFiniteError, match=f"the loss is {text} at step 7 \\(epoch 2\\)"):
        fit(exploding(7, value), training_batches(), train_state(), epochs=3, progress=False, log_every=log_every)
    assert issubclass(NonFiniteError, CuluxError)


def test_a_loss_that_is_no_number_leaves_the_last_checkpoint(tmp_path):
    one, _ = fit(objective, training_batches(), train_state(), epochs=1, progress=False)
    with pytest.raises(NonFiniteError):
        fit(exploding(7), training_batches(), train_state(), epochs=3, progress=False, checkpoint=tmp_path)
    found = load(tmp_path / "latest.safetensors")
    assert found.epoch == 1
    assert leaf_bytes(found.train_state.parameters) == leaf_bytes(one.parameters)


def test_a_parameter_that_is_no_number_is_never_saved(tmp_path):
    class Overflow(Callback):
        def on_step_end(self, run):
            if run.train_state.step == 10:
                run.train_state.parameters.w[0, 0] = np.inf

    with pytest.raises(NonFiniteError, match=r"after step 10 \(epoch 2\) in parameters.w; the last checkpoint is"):
        fit(
            objective,
            training_batches(),
            train_state(),
            epochs=2,
            progress=False,
            callbacks=[Overflow()],
            checkpoint=tmp_path,
        )
    assert load(tmp_path / "latest.safetensors").epoch == 1


def test_a_callback_sees_the_run_and_can_stop_it():
    seen = []

    class Watch(Callback):
        def on_fit_start(self, run):
            seen.append(("start", run.epoch, run.epochs))

        def on_step_end(self, run):
            seen.append(("step", run.train_state.step, float(run.loss) > 0))

        def on_epoch_end(self, run):
            seen.append(("epoch", run.epoch, run.history.rows[-1].epoch))
            run.stop("enough")

        def on_fit_end(self, run):
            seen.append(("end", run.stopped))

    ts, history = fit(objective, training_batches(), train_state(), epochs=9, callbacks=[Watch()], progress=False)
    steps = [("step", i, True) for i in range(1, 6)]
    assert seen == [("start", 0, 9), *steps, ("epoch", 1, 1), ("end", "enough")]
    assert (ts.step, len(history)) == (5, 1)


def test_zero_epochs_change_nothing():
    ts, history = fit(objective, training_batches(), train_state(), epochs=0, progress=False)
    assert leaf_bytes(ts) == leaf_bytes(train_state())
    assert str(history) == "no epochs"


def test_a_used_up_iterator_says_so():
    with pytest.raises(ShapeError, match="an iterator that is used up"):
        fit(objective, iter([data()]), train_state(), epochs=2, progress=False)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"epochs": 1.5}, LayerError, r"expected epochs to be an integer, got float 1\.5; epochs=10"),
        ({"epochs": "1"}, LayerError, "expected epochs to be an integer, got str '1'; epochs=10"),
        ({"log_every": None}, LayerError, "expected log_every to be an integer, got NoneType None; log_every=10"),
        ({"batches": None}, LayerError, r"expected batches to be an iterable of batches, got NoneType None; batches="),
        ({"validation": 3}, LayerError, r"expected validation to be an iterable of batches, got int 3; validation="),
        ({"metrics": accuracy}, LayerError, r'expected metrics to be a dict .* got function .*; metrics={"accuracy"'),
        ({"callbacks": Callback()}, LayerError, r"expected callbacks to be a list, got Callback .*; callbacks=\["),
        ({"ts": SmallModel()}, LayerError, r"expected ts to be a TrainState, got SmallModel .*; ts, history = fit\("),
        ({"epochs": -1}, ShapeError, "expected epochs to be at least 0, got -1"),
        ({"log_every": 0}, ShapeError, "expected log_every to be at least 1, got 0"),
        ({"metrics": {"accuracy": accuracy}}, LayerError, r"metrics \(accuracy\) are computed on validation="),
        ({"callbacks": [print]}, LayerError, "expected callbacks that derive from culux.training.Callback"),
    ],
)
def test_refused_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        fit(
            **{
                "objective": objective,
                "batches": training_batches(),
                "ts": train_state(),
                "epochs": 1,
                "progress": False,
                **arguments,
            }
        )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda ts: single_train_step(ts, data(), objective), r"loss, stats, ts = single_train_step\(objective, batch"),
        (lambda ts: compute_gradients(ts, data(), objective), r"grads, loss, stats, ts = compute_gradients\(objective"),
        (lambda ts: apply_gradients(objective, ts), r"ts = apply_gradients\(ts, grads\)"),
        (lambda ts: evaluate(ts, [data()], objective), r"evaluate\(objective, batches, ts\)"),
    ],
)
def test_something_else_for_the_train_state(call, text):
    with pytest.raises(LayerError, match=rf"expected ts to be a TrainState, got function .*; {text}.*State.create"):
        call(train_state())


def test_evaluate_refuses_other_arguments():
    with pytest.raises(LayerError, match="expected batches to be an iterable of batches, got NoneType None; batches="):
        evaluate(objective, None, train_state())
    with pytest.raises(LayerError, match="expected metrics to be a dict of functions by name, got function"):
        evaluate(objective, [data()], train_state(), accuracy)


def test_epochs_may_be_numpys():
    assert len(fit(objective, [data()], train_state(), epochs=np.int64(2), progress=False)[1].rows) == 2
