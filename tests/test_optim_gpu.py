"""The optimiser's updates on a device: how many launches, who sits out, in place, and what falls back."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import culux
from culux import Tree, errors, optim, tree
from culux.kernels import optimise
from culux.optim import (
    Adam,
    AdamW,
    Descent,
    Lion,
    Momentum,
    chain,
    clip_norm,
    clip_value,
    groups,
    weight_decay,
)
from culux.optim.state import own
from tests.optim_support import assert_close, assert_equal, on, steps, uneven, uneven_gradients

# Segments that sit out.


def test_frozen_and_absent_parameters_have_counts_of_their_own(standin_cupy):
    ps, grads = uneven(), uneven_gradients(6)

    def run(ps, grads):
        state = optim.setup(chain(clip_norm(1.0), AdamW(0.1)), ps)
        for i, g in enumerate(grads):
            state = optim.freeze(state, "first.*") if i == 1 else optim.thaw(state, "*.weight") if i == 3 else state
            state, ps = optim.update(state, ps, g.replace({"deep.bias": None}) if i in (0, 4) else g)
        return state, ps

    state, expected = run(ps, grads)
    before = standin_cupy.machine.launches
    on_device, found = run(on(standin_cupy, ps), on(standin_cupy, grads))
    assert standin_cupy.machine.launches - before == 12
    assert_close(found, expected, 1e-12)
    assert_close(on_device, tree.leaves(state), 1e-12)


def test_what_sits_out_keeps_its_bits(standin_cupy):
    ps, grads = on(standin_cupy, uneven("float16")), on(standin_cupy, uneven_gradients(2, "float16"))
    state, ps = optim.update(optim.setup(Adam(0.1), ps), ps, grads[0])
    frozen, new = optim.update(optim.freeze(state, "*"), ps, grads[1])
    assert_equal(culux.to_numpy(new), culux.to_numpy(ps))
    assert_equal(culux.to_numpy(frozen.moments), culux.to_numpy(state.moments))
    none, same = optim.update(frozen, new, None)
    assert_equal(culux.to_numpy(same), culux.to_numpy(ps))
    assert none.step == 3


def test_tied_arrays_are_updated_once_by_the_sum(standin_cupy):
    w = standin_cupy.ones(3)
    ps = Tree(encoder=w, decoder=w, other=standin_cupy.ones(3))
    grads = Tree(encoder=standin_cupy.full(3, 1.0), decoder=standin_cupy.full(3, 2.0), other=standin_cupy.full(3, 4.0))
    _, new = optim.update(optim.setup(Momentum(1.0), ps), ps, grads)
    assert new.encoder is new.decoder
    assert (new.encoder.tolist(), new.other.tolist()) == ([-2] * 3, [-3] * 3)


# Many segments, many rules.


def test_more_tensors_than_a_launch_has_room_for(standin_cupy):
    n = optimise.TENSORS + 48
    ps = [np.full(1 + i % 3, float(i)) for i in range(n)]
    grads = [[np.full_like(p, k - i) for i, p in enumerate(ps)] for k in range(2)]
    rule = chain(clip_norm(1.0), Momentum(0.1))
    _, expected = steps(rule, ps, grads)
    state = optim.setup(rule, on(standin_cupy, ps))
    found, launches = on(standin_cupy, ps), []
    for g in on(standin_cupy, grads):
        before = standin_cupy.machine.launches
        state, found = optim.update(state, found, g)
        launches.append(standin_cupy.machine.launches - before)
    assert launches == [6, 4]  # loose parameters take half of the room
    assert_close(found, expected, 1e-12)


def test_more_rules_than_a_launch_has_room_for(standin_cupy):
    ps = {f"w{i}": np.ones(3) for i in range(20)}
    grads = {name: np.full(3, 2.0) for name in ps}
    rule = groups({f"w{i}": Descent(0.1 * i) for i in range(19)}, default=Lion(7.0))
    _, found = steps(rule, on(standin_cupy, ps), [on(standin_cupy, grads)])
    assert standin_cupy.machine.launches == 3
    for i in range(20):
        np.testing.assert_allclose(found[f"w{i}"].get(), 1 - 0.2 * i if i < 19 else -6, rtol=1e-12)


# In place, the same bits, and what falls back.


@pytest.mark.parametrize("rule", [Adam(0.1), chain(clip_norm(0.5), Momentum(0.1))], ids=repr)
def test_in_place_gives_the_same_bits_in_the_same_memory(rule, standin_cupy):
    ps, grads = on(standin_cupy, uneven("float32")), on(standin_cupy, uneven_gradients(4, "float32"))
    state, expected = steps(rule, ps, grads)
    before = copy.deepcopy(culux.to_numpy(ps))
    start, machine = optim.setup(rule, ps), standin_cupy.machine
    calls, launches = machine.library_calls, machine.launches
    owned, mine = own(start, ps)
    assert (machine.library_calls - calls, machine.launches - launches) == (0, 1)
    assert_equal(culux.to_numpy(mine), before)
    held = [owned.moments.float32[0].data.ptr, mine.first.weight.data.ptr]
    calls, launches = machine.library_calls, machine.launches
    for g in grads:
        owned, mine = optim.update_in_place(owned, mine, g)
    assert machine.library_calls == calls
    assert machine.launches - launches == 4 * len(rule.parts())
    assert [owned.moments.float32[0].data.ptr, mine.first.weight.data.ptr] == held
    assert_equal(culux.to_numpy(mine), culux.to_numpy(expected))
    assert_equal(culux.to_numpy(owned.moments), culux.to_numpy(state.moments))
    assert_equal(culux.to_numpy(ps), before)


def test_a_leaf_that_changes_between_updates_in_place(standin_cupy):
    ps, grads = on(standin_cupy, uneven("float32")), on(standin_cupy, uneven_gradients(2, "float32"))
    owned, mine = optim.update_in_place(*own(optim.setup(Momentum(0.1), ps), ps), grads[0])
    changed = mine.replace({"first.bias": standin_cupy.zeros(45, "float32")})
    expected = optim.update(owned, changed, grads[1])[1]
    _, found = optim.update_in_place(owned, changed, grads[1])
    assert_equal(culux.to_numpy(found), culux.to_numpy(expected))
    np.testing.assert_allclose(
        found.first.bias.get(), -0.1 * (0.9 * grads[0].first.bias + grads[1].first.bias).get(), rtol=1e-5
    )


def test_an_optimiser_is_used_from_several_streams(standin_cupy):
    ps, (g,) = on(standin_cupy, uneven()), on(standin_cupy, uneven_gradients(1))
    state = optim.setup(chain(clip_norm(1.0), Adam(0.1)), ps)
    standin_cupy.cuda.Device(0).synchronize()
    for _ in range(2):  # the first brings the table of chunks to the device
        with standin_cupy.cuda.Stream(non_blocking=True):
            optim.update(state, ps, g)


def test_the_second_of_two_devices(standin_cupy):
    standin_cupy.set_device_count(2)
    ps, grads = uneven(), uneven_gradients(2)
    rule = chain(clip_norm(1.0), Adam(0.1))
    host = steps(rule, ps, grads)
    first, second = culux.gpu_device(0), culux.gpu_device(1)
    state, found = steps(rule, second(ps), second(grads))
    assert {leaf.data.device_id for leaf in tree.leaves(found)} == {1}
    assert_close(found, host[1], 1e-12)
    assert_close(
        optim.update_in_place(*own(state, found), second(grads[0]))[1], optim.update(*host, grads[0])[1], 1e-12
    )
    with pytest.raises(errors.DeviceError, match=r"ps is on cuda:1 \(cupy\), grads is on cuda:0.*opt = device\(opt\)"):
        optim.update(state, found, first(grads[0]))
    with pytest.raises(errors.DeviceError, match=r"first.weight is on cuda:1 .*deep.scale is on cuda:0"):
        optim.update(state, found, second(grads[0]).replace({"deep.scale": first(grads[0].deep.scale)}))
    with pytest.raises(errors.DeviceError, match=r"ps is on cuda:1 .*the optimiser state is on cuda:0"):
        optim.update(first(state), found, second(grads[0]))


def test_two_runs_give_the_same_bits(standin_cupy):
    ps, grads = on(standin_cupy, uneven("float32")), on(standin_cupy, uneven_gradients(3, "float32"))
    rule = chain(clip_norm(0.5), Adam(0.1))
    first, second = (steps(rule, ps, grads) for _ in range(2))
    assert_equal(culux.to_numpy(first[1]), culux.to_numpy(second[1]))
    assert_equal(culux.to_numpy(first[0].moments), culux.to_numpy(second[0].moments))


def test_gradients_that_are_not_finite(standin_cupy):
    ps = Tree(w=np.ones(4, "float32"), b=np.ones(2, "float32"))
    g = Tree(w=np.array([1, np.nan, -np.inf, 2], "float32"), b=np.ones(2, "float32"))
    for rule in (
        Descent(0.1),
        Adam(0.1),
        Lion(0.1),
        chain(clip_value(0.5), Momentum(0.1)),
        chain(clip_norm(1.0), Adam()),
    ):
        with np.errstate(all="ignore"):
            _, expected = steps(rule, ps, [g])
        _, found = steps(rule, on(standin_cupy, ps), [on(standin_cupy, g)])
        assert_close(found, expected, 1e-6)


class Cubed(optim.Rule):
    learning_rate: float = 0.1

    def apply(self, count, d, x, *moments):
        return self.learning_rate * d * d * d


class Halved(Descent):
    def apply(self, count, d, x, *moments):
        return 0.5 * super().apply(count, d, x)


@pytest.mark.parametrize(
    "rule", [Cubed(), Halved(0.1), chain(weight_decay(0.1), clip_value(0.2), Descent(0.1))], ids=repr
)
def test_other_rules_run_as_they_are_written(rule, standin_cupy):
    ps, grads = uneven(), uneven_gradients(2)
    _, expected = steps(rule, ps, grads)
    _, found = steps(rule, on(standin_cupy, ps), on(standin_cupy, grads))
    assert standin_cupy.machine.launches == 0
    assert_close(found, expected, 1e-12)
