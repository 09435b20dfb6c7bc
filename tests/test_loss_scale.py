"""DynamicLossScale: gradients in float16 that are neither zero nor infinite, and the steps that are left out."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

import culux
from culux import BatchNorm, Chain, Dense, Dropout, Tree, init, optim, with_precision
from culux.devices import to_numpy
from culux.errors import CheckpointError, LayerError, NonFiniteError
from culux.optim import Adam, Descent, DynamicLossScale, Momentum, chain, master_weights
from culux.serialization import load, save
from culux.testing import cost
from culux.training import Callback, TrainState, apply_gradients, compute_gradients, fit, single_train_step
from tests.small_model import data, leaf_bytes, training_batches
from tests.support import requires

TINY = 2.0**-27  # less than half the smallest number of float16


def model(precision="float16"):
    layer = Chain(Dense(3, 8, culux.tanh), BatchNorm(8), Dropout(0.25), Dense(8, 1))
    return with_precision(layer, precision)


def objective(layer, ps, st, batch):
    x, y = batch
    y_hat, st = layer(x, ps, st)
    return ((y_hat - y) ** 2).mean(), st, {}


def tiny(layer, ps, st, x):
    """A loss whose gradient at y is too small for float16."""
    y, st = layer(x, ps, st)
    return TINY * y.sum(), st, {}


def new_state(rule=None, **kwargs):
    return TrainState.create(0, model(), rule or Adam(0.05), **kwargs)


# The scale alone.


def grads(value=1.0):
    return Tree(w=np.array([2.0, value], "float32"), count=None)


def test_scaled_and_unscaled_are_inverse():
    scaling = DynamicLossScale(1024.0)
    loss = np.float32(0.1)
    assert scaling.scaled(loss) == np.float32(102.4)
    assert scaling.scaled(np.float16(100)).dtype == np.float32
    found, after = scaling.unscaled(grads(1024.0))
    np.testing.assert_array_equal(found.w, np.array([2 / 1024, 1], "float32"))
    assert (found.w.dtype, found.count) == (np.float32, None)
    assert after == DynamicLossScale(1024.0, good_steps=1)


def test_gradients_of_16_bits_come_back_in_float32():
    found, _ = DynamicLossScale(2.0**16).unscaled({"w": np.array([1.0], "float16"), "v": np.array(1.0)})
    assert (found["w"].dtype, found["v"].dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(found["w"], [2.0**-16])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_it_shrinks_where_gradients_are_not_finite_and_grows_after_the_interval(bad):
    scaling = DynamicLossScale(64.0, growth=4.0, backoff=0.25, growth_interval=3)
    scales = []
    for value in (1, 1, bad, 1, 1, 1, 1, bad, bad, 1):
        found, scaling = scaling.unscaled(grads(value))
        assert (found is None) == (value is bad)
        scales.append((scaling.scale, scaling.good_steps))
    assert scales == [
        (64, 1), (64, 2), (16, 0), (16, 1), (16, 2), (64, 0), (64, 1), (16, 0), (4, 0), (4, 1),
    ]  # fmt: skip


def scaled_gradient(scaling, ps, value):
    with np.errstate(invalid="ignore"):
        return culux.gradient(lambda ps: scaling.scaled((ps.w * np.float32(value)).sum()), ps)


def test_the_defaults_and_the_sequence_are_torchs():
    torch = requires("torch")
    scaler = torch.amp.GradScaler("cpu")
    scaling = DynamicLossScale()
    given = scaler.state_dict()
    assert scaling.scale == given["scale"] == 2.0**16
    assert (scaling.growth, scaling.backoff) == (given["growth_factor"], given["backoff_factor"])
    assert scaling.growth_interval == given["growth_interval"]

    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    scaling = DynamicLossScale(8.0, growth_interval=2)
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    ps = Tree(w=np.ones(2, "float32"))
    opt = optim.setup(Momentum(0.1, 0.9), ps)
    for value in (1.0, 2.0, np.inf, 3.0, np.nan, 4.0, 5.0, 6.0, 7.0, 8.0):
        scaler.scale((weight * value).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        found, scaling = scaling.unscaled(scaled_gradient(scaling, ps, value))
        opt, ps = optim.update(opt, ps, found)
        assert scaling.scale == scaler.get_scale()
        np.testing.assert_allclose(ps.w, weight.detach().numpy(), rtol=1e-6)


def test_it_stays_between_what_float16_and_float32_can_hold():
    scaling = DynamicLossScale(2.0**126, growth_interval=1)
    for _ in range(3):
        _, scaling = scaling.unscaled(grads())
    assert scaling.scale == 2.0**127
    scaling = DynamicLossScale(2.0**-23)
    _, scaling = scaling.unscaled(grads(np.nan))
    message = r"the gradients are NaN or infinite at a loss scale of 6e-08, and a smaller one is no use; look for NaN"
    with pytest.raises(NonFiniteError, match=message):
        scaling.unscaled(grads(np.nan))


def test_it_is_a_record_and_a_tree_node():
    scaling = DynamicLossScale(1024, growth_interval=10)
    assert repr(scaling) == "DynamicLossScale(1024.0, growth_interval=10)"
    assert type(DynamicLossScale(np.float64(2)).scale) is float
    for other in (copy.deepcopy(scaling), pickle.loads(pickle.dumps(scaling)), culux.f16(scaling)):
        assert other == scaling
    assert culux.tree.leaves_with_path(scaling) == [("scale", 1024.0), ("good_steps", 0)]
    assert culux.tree.map(str, scaling).good_steps == "0"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DynamicLossScale(0), r"expected scale to be a number from 6e-08 to 1.7e\+38, got int 0"),
        (lambda: DynamicLossScale(float("nan")), "expected scale to be a number from .*, got float nan"),
        (lambda: DynamicLossScale("big"), "expected scale to be a number from .*, got str 'big'"),
        (lambda: DynamicLossScale(growth=0.5), "expected growth to be a number from 1, got float 0.5"),
        (lambda: DynamicLossScale(backoff=1), "expected backoff to be a number between 0 and 1, got int 1"),
        (lambda: DynamicLossScale(growth_interval=0), "expected growth_interval to be an int from 1, got int 0"),
        (lambda: DynamicLossScale(growth_interval=1.5), "expected growth_interval to be an int from 1, got float 1.5"),
        (lambda: DynamicLossScale(good_steps=True), "expected good_steps to be an int from 0, got bool True"),
        (lambda: DynamicLossScale(init_scale=2), "takes no init_scale=; culux calls it scale"),
        (lambda: DynamicLossScale(growth_factor=2), "takes no growth_factor=; culux calls it growth"),
        (lambda: DynamicLossScale(backoff_factor=0.5), "takes no backoff_factor=; culux calls it backoff"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(LayerError, match=f"DynamicLossScale.*{message}"):
        make()


# In training.


def test_gradients_that_are_zero_in_float16_are_not_when_the_loss_is_scaled():
    layer = with_precision(Chain(Dense(3, 4), Dense(4, 1)), "float16")
    x = np.random.default_rng(0).standard_normal((8, 3)).astype("float32")
    plain = TrainState.create(0, layer, Descent(2.0**20))
    scaled = plain.replace(loss_scale=DynamicLossScale())
    lost, _, _, _ = compute_gradients(tiny, x, plain)
    assert all((leaf == 0).all() for leaf in culux.tree.leaves(lost))
    assert leaf_bytes(single_train_step(tiny, x, plain)[2].parameters) == leaf_bytes(plain.parameters)
    found, loss, _, after = compute_gradients(tiny, x, scaled)
    assert loss == compute_gradients(tiny, x, plain)[1]
    assert after.loss_scale == DynamicLossScale(good_steps=1)
    wide = culux.f64(plain.parameters)
    expected = culux.gradient(lambda ps: tiny(layer.layer, ps, plain.states, culux.f64(x))[0], wide)
    for one, other in zip(culux.tree.leaves(found), culux.tree.leaves(expected), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3 * TINY)
    values = []
    for _ in range(5):
        value, _, scaled = single_train_step(tiny, x, scaled)
        values.append(float(value))
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_parameters_of_16_bits_get_gradients_that_float16_cannot_hold():
    layer = Dense(1, 1, use_bias=False, init_weight=init.ones)
    rule = chain(Descent(2.0**17), master_weights())
    ts = TrainState.create(0, layer, rule, dtype="float16", loss_scale=DynamicLossScale(2.0**14))

    def loss(layer, ps, st, x):
        y, st = layer(x, ps, st)
        return culux.numpy.astype(y, "float32").sum() * TINY, st, {}

    found, _, _, after = compute_gradients(loss, np.ones((1, 1), "float16"), ts)
    assert found.weight.dtype == np.float32
    np.testing.assert_array_equal(found.weight, TINY)
    after = apply_gradients(after, found)
    assert after.parameters.weight.dtype == np.float16
    np.testing.assert_array_equal(after.parameters.weight, np.float16(1 - 2.0**-10))


def test_a_loss_in_float16_takes_half_of_the_first_scale():
    ts = TrainState.create(0, Dense(3, 1), Descent(0.1), dtype="float16", loss_scale=DynamicLossScale())

    def mean(layer, ps, st, x):
        y, st = layer(x, ps, st)
        return y.mean(), st, {}

    for expected in ((0, 2.0**15), (1, 2.0**15)):
        loss, _, ts = single_train_step(mean, np.ones((8, 3), "float16"), ts)
        assert loss.dtype == np.float16
        assert (ts.step, ts.loss_scale.scale) == expected


def test_a_step_that_overflows_leaves_all_as_it_was_but_the_scale():
    ts = new_state()
    _, _, ts = single_train_step(objective, data(), ts)  # moments that are not zero
    ts = ts.replace(loss_scale=DynamicLossScale(2.0**40))
    before = copy.deepcopy(ts)
    loss, _, after = single_train_step(objective, data(), ts)
    assert np.isfinite(loss)
    assert after.loss_scale == DynamicLossScale(2.0**39)
    for name in ("parameters", "states", "optimizer_state"):
        assert leaf_bytes(getattr(after, name)) == leaf_bytes(getattr(before, name))
    assert (after.step, after.optimizer_state.step) == (1, 1)
    assert leaf_bytes(ts) == leaf_bytes(before)
    _, _, taken = single_train_step(objective, data(), after.replace(loss_scale=DynamicLossScale(8.0)))
    assert taken.step == taken.optimizer_state.step == 2
    assert leaf_bytes(taken.states) != leaf_bytes(before.states)


def test_statistics_of_a_batch_that_overflowed_are_not_kept():
    ts = TrainState.create(0, with_precision(BatchNorm(2), "float16"), Descent(0.1), loss_scale=DynamicLossScale(4.0))
    x = np.array([[1e6, 1], [2, 3]], "float32")  # infinite in float16
    with np.errstate(over="ignore"):
        _, _, after = single_train_step(lambda m, ps, st, x: (*_summed(m(x, ps, st)), {}), x, ts)
    assert leaf_bytes(after.states) == leaf_bytes(ts.states)
    assert after.loss_scale.scale == 2


def _summed(result):
    y, st = result
    return (y * y).sum(), st


def test_training_recovers_from_a_scale_that_is_too_large():
    start = DynamicLossScale(2.0**30, growth_interval=5)
    ts, found, steps = new_state(loss_scale=start), [], []
    for _ in range(60):
        loss, _, ts = single_train_step(objective, data(), ts)
        found.append(float(loss))
        steps.append(ts.step)
    skipped = 60 - ts.step
    assert 10 < skipped < 30
    assert steps[:10] == [0] * 10
    assert ts.loss_scale.scale < 2.0**20
    assert found[-1] < 0.3 * found[0]
    assert all(np.isfinite(leaf).all() for leaf in culux.tree.leaves((ts.parameters, ts.states)))


def test_by_hand_in_single_steps_and_in_fit_it_is_the_same_bit_for_bit():
    def start():
        return new_state(loss_scale=DynamicLossScale(2.0**30, growth_interval=3))

    by_hand = steps = start()
    for _ in range(4):
        for batch in training_batches(shuffle=False):
            grads, _, _, by_hand = compute_gradients(objective, batch, by_hand)
            by_hand = apply_gradients(by_hand, grads)
            _, _, steps = single_train_step(objective, batch, steps)
    fitted, history = fit(objective, training_batches(shuffle=False), start(), epochs=4, progress=False)
    assert 0 < fitted.step < 20
    assert leaf_bytes(by_hand) == leaf_bytes(steps) == leaf_bytes(fitted)
    assert history["step"] == sorted(history["step"])
    assert history["step"][-1] == fitted.step


def test_an_epoch_in_which_every_step_is_left_out():
    ts = new_state(Adam(optim.schedules.cosine(0.1, 10)), loss_scale=DynamicLossScale(2.0**60))
    after, history = fit(objective, training_batches(), ts, epochs=1, progress=False)
    assert (after.step, after.loss_scale.scale) == (0, 2.0**55)
    assert history["learning_rate"] == [0.1]
    assert leaf_bytes(after.parameters) == leaf_bytes(ts.parameters)


def test_a_loss_that_is_nan_ends_fit_as_without_a_scale():
    def broken(layer, ps, st, batch):
        loss, st, stats = objective(layer, ps, st, batch)
        return loss * np.float32("nan"), st, stats

    with pytest.raises(NonFiniteError, match="the loss is nan"):
        fit(broken, training_batches(), new_state(loss_scale=DynamicLossScale()), epochs=1, progress=False)


# Saved, loaded and resumed.


def test_it_is_saved_and_loaded_with_the_train_state(tmp_path):
    ts = new_state(loss_scale=DynamicLossScale(2.0**20 / 3, growth_interval=7))
    _, _, ts = single_train_step(objective, data(), ts)
    save(tmp_path / "ts.safetensors", ts)
    found = load(tmp_path / "ts.safetensors", like=new_state(loss_scale=DynamicLossScale(growth_interval=7)))
    assert found.loss_scale == ts.loss_scale
    assert leaf_bytes(found) == leaf_bytes(ts)
    with pytest.raises(CheckpointError, match=r"loss_scale.scale: not expected"):
        load(tmp_path / "ts.safetensors", like=new_state())


class Killed(Callback):
    def __init__(self, after):
        self.after = after

    def on_step_end(self, run):
        self.after -= 1
        if not self.after:
            raise KeyboardInterrupt


def test_a_run_is_resumed_bit_for_bit(tmp_path: Path):
    def train(folder, callbacks=(), epochs=6):
        ts = new_state(loss_scale=DynamicLossScale(2.0**28, growth_interval=4))
        return fit(
            objective, training_batches(), ts, epochs=epochs, checkpoint=folder, callbacks=callbacks, progress=False
        )[0]

    whole = train(tmp_path / "whole")
    for after in (7, 9):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", [Killed(after)])
    resumed = train(tmp_path / "killed")
    assert 0 < whole.step < 30
    assert leaf_bytes(resumed) == leaf_bytes(whole)


# On a device.


def test_on_a_device_one_answer_is_read_a_step(standin_cupy):
    ts = new_state(loss_scale=DynamicLossScale(2.0**16, growth_interval=2))
    device = culux.gpu_device()
    there, batch = device(ts), device(data())
    plain = there.replace(loss_scale=None)
    single_train_step(objective, batch, there)  # compiles

    def reads(ts):
        return [found[1:] for found in cost(single_train_step, objective, batch, ts).transfers if found[0] == "to host"]

    _, _, after = single_train_step(objective, batch, there)
    _, _, expected = single_train_step(objective, data(), ts)
    assert after.loss_scale == expected.loss_scale
    for one, other in zip(
        culux.tree.leaves(to_numpy(after.parameters)), culux.tree.leaves(expected.parameters), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=0.11)  # Adam's first step is 0.05 to either side
    assert (reads(plain), reads(there)) == ([], [(1, 1)])  # one bool
    overflowed = there.replace(loss_scale=DynamicLossScale(2.0**60))
    _, _, same = single_train_step(objective, batch, overflowed)
    assert same.loss_scale.scale == 2.0**59
    assert leaf_bytes(to_numpy(same.parameters)) == leaf_bytes(to_numpy(there.parameters))


def test_a_train_state_refuses_another_loss_scale():
    for wrong in (DynamicLossScale, 1024.0):
        message = r"expected loss_scale to be a DynamicLossScale, got .*; loss_scale=culux.optim.DynamicLossScale\(\)"
        with pytest.raises(LayerError, match=message):
            new_state(loss_scale=wrong)
