"""What the catalogue does not say of the adaptive rules, Muon and rules around others."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import culux
from culux import Tree, errors, optim, tree
from culux.optim import Adam, AdamW, Descent, Momentum, Muon, accumulate, chain, clip_norm, groups, schedules
from tests.optim_support import assert_close, assert_equal, gradients, on, parameters, steps, uneven, uneven_gradients

RULES = [
    optim.AMSGrad(0.1), optim.AdaBelief(0.1), optim.AdaDelta(), optim.AdaGrad(), optim.AdaMax(),
    optim.CentredRMSProp(), optim.NAdam(), optim.OAdam(0.1), optim.RAdam(0.1, (0.8, 0.9)), optim.Rprop(), Muon(0.1),
    chain(optim.sign_decay(0.1), optim.clip_each_norm(1.0), Descent(0.1)), chain(Adam(0.1), optim.master_weights()),
    accumulate(2, chain(clip_norm(1.0), Adam(0.1))),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_compare_hash_pickle_and_print(rule):
    assert eval(repr(rule), vars(optim)) == rule
    assert hash(copy.deepcopy(rule)) == hash(rule)
    assert pickle.loads(pickle.dumps(rule)) == rule


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_on_cupy_are_those_on_numpy(rule, dtype, standin_cupy):
    ps, grads = uneven(dtype), uneven_gradients(5, dtype)
    _, expected = steps(rule, ps, grads)
    _, found = steps(rule, on(standin_cupy, ps), [on(standin_cupy, g) for g in grads])
    assert all(isinstance(leaf, standin_cupy.ndarray) for leaf in tree.leaves(found))
    assert_close(found, expected, rtol={"float16": 2e-3, "float32": 1e-5, "float64": 1e-12}[dtype])


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_in_place_is_out_of_place(rule):
    ps, grads = parameters(), gradients(6)
    state, expected = steps(rule, ps, grads)
    own, found = optim.state.own(optim.setup(rule, ps), ps)
    for g in grads:
        own, found = optim.update_in_place(own, found, g)
    assert_equal(found, expected)
    assert_equal(own.moments, state.moments)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_parameter_that_sits_out_counts_its_own_steps(rule):
    ps = Tree(a=np.ones((3, 2)), b=np.ones((3, 2)))
    grads = [g.replace(a=g.b) for g in gradients(5, like=ps)]
    _, expected = steps(rule, Tree(a=ps.a), [Tree(a=g.a) for g in grads[:2] + grads[4:]])
    late = [g if i not in (2, 3) else g.replace(a=None) for i, g in enumerate(grads)]
    if "clip_norm" in repr(rule):
        late = [g.replace(b=None) for g in late]
    _, found = steps(rule, ps, late)
    np.testing.assert_allclose(found.a, expected.a, rtol=1e-12)


# Single rules.


def test_rprop_waits_where_the_sign_changes():
    rule = optim.Rprop(1.0, etas=(0.5, 2.0), step_sizes=(0.1, 3.0))
    ps, path = Tree(w=np.zeros(1)), []
    state = optim.setup(rule, ps)
    for g in (1.0, 1.0, 1.0, -1.0, -1.0, -1.0):
        state, ps = optim.update(state, ps, Tree(w=np.array([g])))
        path.append(float(ps.w[0]))
    assert path == [-1, -3, -6, -6, -4.5, -1.5]


def test_amsgrad_does_not_forget_a_large_gradient():
    grads = [Tree(w=np.array([100.0]))] + [Tree(w=np.array([1.0]))] * 50
    betas = (0.0, 0.5)
    state, _ = steps(optim.AMSGrad(0.1, betas), Tree(w=np.zeros(1)), grads)
    assert state.moments["float64"][2][0] == 5000
    assert abs(state.moments["float64"][1][0] - 1) < 1e-6


def test_nadam_long_after_the_start():
    """The product of the momenta is cut off where it does not count any more."""
    rule, moments = optim.NAdam(), [np.full(1, 0.1), np.full(1, 0.01)]
    step = rule.apply(10**6, np.ones(1), np.zeros(1), *moments)
    m, v = 0.9 * 0.1 + 0.1, 0.999 * 0.01 + 0.001
    np.testing.assert_allclose(step, 2e-3 * (0.9 * m + 0.1) / (np.sqrt(v) + 1e-8), rtol=1e-6)
    assert np.isfinite(optim.NAdam(betas=(0.0, 0.9)).apply(1, np.ones(1), np.zeros(1), *moments)).all()


def test_muon_steps_are_nearly_orthogonal():
    rng = np.random.default_rng(0)
    ps = Tree(wide=np.zeros((5, 40)), tall=np.zeros((40, 5)), vector=np.zeros(3))
    grads = tree.map(lambda a: rng.standard_normal(a.shape), ps)
    _, new = steps(Muon(1.0, weight_decay=0.0, fallback=Descent(2.0)), ps, [grads])
    for step, scale in ((new.wide, 1), (new.tall, np.sqrt(8))):
        values = np.linalg.svd(step, compute_uv=False) / scale
        assert 0.6 < values.min() <= values.max() < 1.3
    np.testing.assert_allclose(new.vector, -2 * grads.vector)
    u, _, vt = np.linalg.svd(grads.wide, full_matrices=False)
    assert np.sum(-new.wide * (u @ vt)) / 5 > 0.7


def test_muon_of_no_gradient_and_of_no_elements():
    ps = Tree(w=np.ones((2, 3)), nothing=np.zeros((0, 3)), none=np.zeros((3, 0)))
    _, new = steps(Muon(0.5, weight_decay=0.5), ps, [tree.map(np.zeros_like, ps)])
    np.testing.assert_allclose(new.w, 0.75)
    assert new.nothing.shape == (0, 3)
    assert new.none.shape == (3, 0)


def test_muon_adjusts_and_schedules_its_fallback():
    ps, grads = parameters(), gradients(3)
    falling = Muon(0.1, fallback=AdamW(lambda step: 0.1 / (step + 1)))
    state = optim.setup(Muon(0.1), ps)
    for step, g in enumerate(grads):
        state = optim.adjust(state, learning_rate=0.1 / (step + 1))
        state, ps = optim.update(state, ps, g)
    _, scheduled = steps(falling, parameters(), grads)
    assert_equal(tree.select(ps, "*.bias"), tree.select(scheduled, "*.bias"))


# Rules around others.


def test_accumulate_leaves_parameters_and_moments_alone_between():
    ps, grads = parameters(), gradients(4)
    state = optim.setup(accumulate(4, chain(optim.weight_decay(0.1), Adam(0.1))), ps)
    for g in grads[:3]:
        state, new = optim.update(state, ps, g)
        assert_equal(new, ps)
        assert not any(m.any() for m in state.moments["float64"][1:])
    _, new = optim.update(state, ps, grads[3])
    mean = tree.map(lambda *g: sum(g) / 4, *grads)
    assert_equal(tree.map(lambda a: a.round(12), new), tree.map(
        lambda a: a.round(12), steps(chain(optim.weight_decay(0.1), Adam(0.1)), ps, [mean])[1]
    ))  # fmt: skip


def test_accumulate_counts_updates_for_schedules_and_is_adjusted():
    rule = accumulate(2, Descent(lambda step: 10.0**step))
    _, new = steps(rule, Tree(w=np.zeros(1)), [Tree(w=np.ones(1))] * 4)
    assert new.w.tolist() == [-1010]
    state = optim.adjust(optim.setup(accumulate(2, Momentum(0.1)), Tree(w=np.zeros(1))), learning_rate=0.5)
    assert state.rule == accumulate(2, Momentum(0.5))
    assert rule.adjusted({"learning_rate": 0.1}) == accumulate(2, Descent(0.1))
    assert accumulate(2, Descent(0.1)) != accumulate(3, Descent(0.1))


def test_accumulated_groups_have_their_patterns_checked():
    rule = accumulate(2, groups({"*.bais": Descent(0.1)}, default=Adam()))
    with pytest.raises(errors.EntryError, match=r"groups: no parameter fits '\*.bais'"):
        optim.setup(rule, parameters())


def test_master_weights_keep_steps_below_the_precision():
    ps, grads = Tree(w=np.ones(3, np.float16)), [Tree(w=np.ones(3, np.float16))] * 100
    _, lost = steps(Descent(1e-4), ps, grads)
    _, kept = steps(chain(Descent(1e-4), optim.master_weights()), ps, grads)
    assert lost.w.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(kept.w, np.full(3, 0.99, np.float16))


def test_moving_average_is_that_of_torch():
    torch = pytest.importorskip("torch")
    average, all_ps = parameters(0), [parameters(seed) for seed in range(1, 5)]
    found = average
    for ps in all_ps:
        found = optim.moving_average(found, ps, decay=0.9)
    move = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    tensors = [torch.tensor(x) for x in tree.leaves(average)]
    for ps in all_ps:
        move(tensors, [torch.tensor(x) for x in tree.leaves(ps)], 1)
    assert tree.structure(found) == tree.structure(average)
    for one, other in zip(tree.leaves(found), tensors, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-12)
    assert_equal(average, parameters(0))


def test_moving_average_keeps_dtypes_and_other_leaves():
    ps = Tree(w=np.full(2, 2.0, np.float16), n=np.arange(2), name="a")
    average = Tree(w=np.ones(2, np.float32), n=np.zeros(2, int), name="b")
    found = optim.moving_average(average, ps, decay=0.75)
    assert found.w.dtype == np.float32
    assert found.w.tolist() == [1.25, 1.25]
    assert found.n.tolist() == [0, 1]
    assert found.name == "a"
    constant = Tree(w=np.full(1, 0.1, np.float32))
    assert optim.moving_average(constant, constant).w == constant.w


def test_a_model_runs_on_averaged_parameters():
    layer = culux.Chain(culux.Dense(2, 3), culux.BatchNorm(3))
    ps, st = culux.setup(0, layer)
    found = optim.moving_average(ps, tree.map(lambda leaf: leaf + 1, ps), decay=0.5)
    y, _ = layer(np.ones((4, 2), np.float32), found, culux.test_mode(st))
    assert np.isfinite(y).all()


# Errors.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optim.Rprop(etas=0.5), errors.LayerError, r"Rprop: expected etas=\(shrink, grow\), got float 0.5"),
        (lambda: optim.Rprop(step_sizes=(0.1,)), errors.LayerError, r"step_sizes=\(smallest, largest\), got tuple"),
        (lambda: optim.Rprop(step_sizes=(0, 1)), errors.LayerError, "Rprop: expected step_sizes > 0, got 0"),
        (lambda: optim.AdaDelta(rho=1.0), errors.LayerError, "AdaDelta: expected 0 <= rho < 1, got 1.0"),
        (lambda: optim.NAdam(momentum_decay=-1), errors.LayerError, "NAdam: expected momentum_decay >= 0, got -1"),
        (
            lambda: optim.AdaGrad(parameters()),
            errors.LayerError,
            "learning_rate to be a number or a .*, got Tree",
        ),
        (lambda: optim.AMSGrad(lr=1e-3), errors.LayerError, "learning_rate"),
        (
            lambda: Muon(fallback=1e-3),
            errors.LayerError,
            r"Muon: expected fallback to be .* AdamW\(1e-3\), got fl",
        ),
        (lambda: Muon(fallback=chain(Adam())), errors.LayerError, "Muon: expected fallback to be one rule"),
        (lambda: optim.clip_each_norm(0), errors.LayerError, "clip_each_norm: expected max > 0, got 0"),
        (lambda: accumulate(0, Adam()), errors.LayerError, "accumulate: expected n >= 1, how many .*, got int 0"),
        (lambda: accumulate(Adam(), 2), errors.LayerError, "accumulate: expected n >= 1, .*, got Adam"),
        (
            lambda: accumulate(2, 1e-3),
            errors.LayerError,
            r"accumulate: expected a rule such as .*, got float",
        ),
        (
            lambda: optim.moving_average(parameters(), parameters(), decay=2.0),
            errors.LayerError,
            "moving_average: expected 0 <= decay <= 1, got 2.0",
        ),
        (
            lambda: optim.moving_average(parameters(), Tree(layer_1=parameters().layer_1)),
            errors.ShapeError,
            "different entries; missing: layer_2",
        ),
    ],
)
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_schedules_of_pairs():
    scheduled = optim.Rprop(0.1, etas=(schedules.constant(0.5), 1.2))
    assert_equal(
        steps(scheduled, parameters(), gradients(4))[1], steps(optim.Rprop(0.1), parameters(), gradients(4))[1]
    )
