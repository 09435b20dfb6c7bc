"""The optimiser's state: adjust, freeze and thaw, the state as a tree, saving, devices."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import culux
from culux import Tree, errors, optim, tree
from culux.optim import Adam, AdamW, Descent, Momentum, chain, clip_norm, groups
from culux.optim.state import own
from tests.optim_support import assert_equal, by_hand, gradients, parameters, steps
from tests.standin_cupy.fixture import forget_types, standin_cupy  # noqa: F401 (a fixture)

# adjust, freeze, thaw.


def test_adjust_keeps_moments_and_the_old_state():
    ps, grads = parameters(), gradients(4)
    state, ps = steps(Momentum(0.1), ps, grads[:2])
    adjusted = optim.adjust(state, learning_rate=0.5)
    velocity = sum(0.9 ** (3 - i) * g.layer_1.bias for i, g in enumerate(grads[:3], start=1))
    _, new = optim.update(adjusted, ps, grads[2])
    np.testing.assert_allclose(new.layer_1.bias, ps.layer_1.bias - 0.5 * velocity, rtol=1e-12)
    assert state.rule == Momentum(0.1)
    assert adjusted.rule == Momentum(0.5)


def test_adjust_reaches_every_rule_that_has_the_hyper_parameter():
    rule = chain(clip_norm(1.0), groups({"*.bias": Momentum(0.1)}, default=Adam()))
    state = optim.adjust(optim.setup(rule, parameters()), learning_rate=0.5, momentum=0.3)
    assert state.rule == chain(clip_norm(1.0), groups({"*.bias": Momentum(0.5, 0.3)}, default=Adam(0.5)))


def test_freeze_and_thaw():
    ps, grads = parameters(), gradients(9)
    state, first = steps(Adam(0.1), ps, grads[:3])
    state, second = optim.freeze(state, "layer_1.*"), first
    assert repr(state) == "OptimizerState(Adam(0.1), step=3, frozen: layer_1.weight, layer_1.bias)"
    for g in grads[3:6]:
        state, second = optim.update(state, second, g)
    assert_equal(second.layer_1, first.layer_1)
    assert (second.layer_2.weight != first.layer_2.weight).all()
    state, third = optim.thaw(state, "layer_1"), second
    for g in grads[6:]:
        state, third = optim.update(state, third, g)
    kept = [g.layer_1.weight for g in grads[:3] + grads[6:]]
    np.testing.assert_allclose(third.layer_1.weight, by_hand(ps.layer_1.weight, kept, 0.1), rtol=1e-12)
    every = [g.layer_2.weight for g in grads]
    np.testing.assert_allclose(third.layer_2.weight, by_hand(ps.layer_2.weight, every, 0.1), rtol=1e-12)


def test_some_leaves_of_a_frozen_layer_are_thawed():
    ps = parameters()
    state = optim.thaw(optim.freeze(optim.setup(Descent(1.0), ps), "*"), "*.bias")
    _, new = optim.update(state, ps, tree.map(np.ones_like, ps))
    assert_equal(tree.select(new, "*.weight"), tree.select(ps, "*.weight"))
    np.testing.assert_allclose(new.layer_1.bias, ps.layer_1.bias - 1)


# The state as a tree, models.


def test_the_state_is_a_tree_node():
    ps, grads = parameters(), gradients(4)
    state, ps = steps(Adam(0.1), ps, grads[:2])
    paths = [path for path, _ in tree.leaves_with_path(state)]
    assert paths == ["step", *[f"skipped.{i}" for i in range(4)], "moments.float64.0", "moments.float64.1"]
    leaves, structure = tree.flatten(state)
    assert hash(structure) == hash(tree.structure(optim.setup(Adam(0.1), parameters())))
    expected = optim.update(state, ps, grads[2])[1]
    for other in (tree.unflatten(structure, leaves), tree.map(lambda x: x, state), pickle.loads(pickle.dumps(state))):
        assert_equal(optim.update(other, ps, grads[2])[1], expected)


def test_the_state_is_saved_and_loaded(tmp_path):
    ps, grads = parameters(), gradients(6)
    rule = groups({"*.bias": Momentum(0.1)}, default=Adam(0.1))
    _, expected = steps(rule, ps, grads)
    state, half = steps(rule, ps, grads[:3])
    culux.serialization.save(tmp_path / "run.safetensors", Tree(ps=half, opt=state))
    like = Tree(ps=ps, opt=optim.setup(rule, ps))
    loaded = culux.serialization.load(tmp_path / "run.safetensors", like=like)
    state, half = loaded.opt, loaded.ps
    assert state.step == 3
    for g in grads[3:]:
        state, half = optim.update(state, half, g)
    assert_equal(half, expected)


def test_functors_and_stateful_layers_are_updated_as_a_whole():
    @culux.functor
    class Line:
        a: np.ndarray
        b: np.ndarray
        name: str = "line"

        def trainable(self):
            return {"b": self.b}

        def __call__(self, x):
            return self.a * x + self.b

    line = Line(np.ones(2), np.ones(2))
    grads = culux.gradient(lambda m: m(np.ones(2)).sum(), line)
    _, new = optim.update(optim.setup(Descent(0.5), line), line, grads)
    assert type(new) is Line
    assert (new.a is line.a, new.b.tolist(), line.b.tolist()) == (True, [0.5, 0.5], [1, 1])


def test_the_state_moves_to_a_device_with_its_parameters(standin_cupy):  # noqa: F811 (the fixture)
    device = culux.gpu_device()
    ps, grads = parameters(), gradients(4)
    rule = chain(clip_norm(1.0), groups({"*.bias": optim.Lion(0.1)}, default=AdamW(0.1)))
    _, expected = steps(rule, ps, grads)
    state, half = steps(rule, ps, grads[:2])
    state, half = device(state), device(half)
    for g in grads[2:]:
        state, half = optim.update(state, half, device(g))
    assert {type(leaf).__module__.partition(".")[0] for leaf in tree.leaves(half)} == {"cupy"}
    for a, b in zip(tree.leaves(culux.to_numpy(half)), tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    owned, mine = own(state, half)
    _, mine = optim.update_in_place(owned, mine, device(grads[0]))
    with pytest.raises(errors.DeviceError, match=r"ps is on cuda:0 \(cupy\), grads is on cpu"):
        optim.update(state, half, grads[0])
    with pytest.raises(
        errors.DeviceError, match=r"grads.layer_1.weight is on cuda:0 \(cupy\), grads.layer_2.bias is on"
    ):
        optim.update(state, half, device(grads[0]).replace({"layer_2.bias": grads[0].layer_2.bias}))
    with pytest.raises(errors.DeviceError, match=r"the optimiser state is on cpu \(numpy\).*opt = device\(opt\)"):
        optim.update(optim.setup(rule, ps), half, device(grads[0]))
    with pytest.raises(errors.DeviceError, match=r"layer_1.weight is on cuda:0 \(cupy\), layer_2.bias is on cpu"):
        optim.setup(rule, half.replace({"layer_2.bias": np.zeros(2)}))
