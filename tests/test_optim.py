"""The optimiser's state: purity, absent gradients, groups, freezing, trees, devices, and what the errors say."""

from __future__ import annotations

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import culux
from culux import Tree, errors, optim, tree
from culux.optim import Adam, AdamW, Descent, Momentum, RMSProp, chain, clip_norm, groups, schedules
from culux.optim.buffers import SMALL, Pool
from culux.optim.flat import ALIGNMENT
from culux.optim.program import BLOCK
from culux.optim.state import own
from tests.standin_cupy.fixture import forget_types, standin_cupy  # noqa: F401 (a fixture)


def parameters(seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)

    def make(*shape):
        return rng.standard_normal(shape).astype(dtype)

    return Tree(layer_1=Tree(weight=make(5, 3), bias=make(5)), layer_2=Tree(weight=make(2, 5), bias=make(2)))


def gradients(count, seed=1, like=None):
    rng = np.random.default_rng(seed)
    like = parameters() if like is None else like
    return [tree.map(lambda a: rng.standard_normal(a.shape).astype(a.dtype), like) for _ in range(count)]


def steps(rule, ps, grads):
    state = optim.setup(rule, ps)
    for g in grads:
        state, ps = optim.update(state, ps, g)
    return state, ps


def assert_equal(found, expected):
    assert tree.structure(found) == tree.structure(expected)
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def by_hand(x, grads, learning_rate=1e-3, betas=(0.9, 0.999), epsilon=1e-8):
    """Adam as the paper writes it."""
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        x = x - learning_rate * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + epsilon)
    return x


# Purity.


@pytest.mark.parametrize("rule", [Adam(0.1), chain(optim.weight_decay(0.1), clip_norm(1.0), Momentum(0.1))], ids=repr)
def test_update_writes_into_nothing_that_it_is_given(rule):
    ps, grads = parameters(), gradients(6)
    state = optim.setup(rule, ps)
    given = []
    for g in grads:
        given.append((state, ps, g, copy.deepcopy(tree.leaves(state)), copy.deepcopy(ps), copy.deepcopy(g)))
        state, ps = optim.update(state, ps, g)
    for state, ps, g, state_leaves, ps_before, g_before in given:
        assert_equal(ps, ps_before)
        assert_equal(g, g_before)
        assert_equal(tree.leaves(state), state_leaves)


def test_an_update_can_be_taken_again():
    ps, (g,) = parameters(), gradients(1)
    state, ps = steps(Adam(0.1), ps, gradients(3))
    assert_equal(optim.update(state, ps, g)[1], optim.update(state, ps, g)[1])


def test_parameters_that_are_views_and_loose_ones_give_the_same():
    ps, grads = parameters(), gradients(5)
    _, expected = steps(AdamW(0.1), ps, grads)
    state = optim.setup(AdamW(0.1), ps)
    for g in grads:
        state, ps = optim.update(state, tree.map(np.copy, ps), g)
    assert_equal(ps, expected)


def test_one_loose_leaf_among_views_is_taken():
    ps, grads = parameters(), gradients(2)
    state, ps = optim.update(optim.setup(Descent(0.1), ps), ps, grads[0])
    changed = ps.replace({"layer_2.bias": np.array([7.0, 8.0])})
    _, new = optim.update(state, changed, grads[1])
    np.testing.assert_allclose(new.layer_2.bias, [7, 8] - 0.1 * grads[1].layer_2.bias, rtol=1e-15)
    np.testing.assert_allclose(new.layer_1.bias, ps.layer_1.bias - 0.1 * grads[1].layer_1.bias, rtol=1e-15)


def test_memory_is_used_again_only_when_nothing_refers_to_it():
    size = SMALL  # of float64, so that the pool has it
    ps = {"w": np.zeros(size), "b": np.zeros(3)}
    grads = {"w": np.ones(size), "b": np.ones(3)}
    state = optim.setup(Descent(1.0), ps)
    kept = []
    for i in range(1, 12):
        state, ps = optim.update(state, ps, grads)
        if i % 3 == 0:
            kept.append((i, ps["w"][5:7], memoryview(ps["b"])))
    del ps
    gc.collect()
    for i, part, view in kept:
        assert part.tolist() == [-i, -i]
        assert list(view) == [-i] * 3


def test_the_pool_gives_memory_again_when_the_last_view_has_gone():
    pool = Pool()
    buffer = pool.empty(SMALL, "float64")
    address, view = buffer.ctypes.data, buffer[3:5]
    del buffer
    assert not np.shares_memory(pool.empty(SMALL, "float64"), view)
    del view
    elsewhere = np.empty(8 * SMALL, np.uint8)  # would take the memory if the pool had let it go
    found = {pool.empty(SMALL, "float64").ctypes.data for _ in range(3)} | {elsewhere.ctypes.data}
    both = [pool.empty(SMALL, "float64"), pool.empty(SMALL, "float64")]
    assert address in {array.ctypes.data for array in both}
    assert len(found) == 2


def test_one_state_is_updated_in_many_threads():
    ps = {"w": np.random.default_rng(0).standard_normal(SMALL)}
    state, ps = optim.update(optim.setup(Adam(0.1), ps), ps, {"w": np.ones(SMALL)})

    def train(k):
        opt, mine = state, ps
        for _ in range(10):
            opt, mine = optim.update(opt, mine, {"w": np.full(SMALL, float(k))})
        return mine["w"].copy()

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(train, range(8)))
    for k, w in enumerate(found):
        np.testing.assert_array_equal(w, train(k))


# In place, for loops that own what they update.


@pytest.mark.parametrize("rule", [Adam(0.1), Momentum(schedules.cosine(0.1, 4))], ids=repr)
def test_update_in_place_gives_the_same_and_overwrites_only_what_is_owned(rule):
    ps, grads = parameters(), gradients(5)
    state, expected = steps(rule, ps, grads)
    start = optim.setup(rule, ps)
    before = copy.deepcopy((ps, tree.leaves(start)))
    owned, mine = own(start, ps)
    first = mine.layer_1.weight
    for g in grads:
        owned, mine = optim.update_in_place(owned, mine, g)
    assert mine.layer_1.weight is first
    assert_equal(mine, expected)
    assert_equal(tree.leaves(owned), tree.leaves(state))
    assert_equal((ps, tree.leaves(start)), before)


def test_a_deep_copy_of_what_is_owned_is_trained_too():
    owned, mine = own(optim.setup(Descent(0.1), parameters()), parameters())
    owned, mine = copy.deepcopy((owned, mine))
    before = copy.deepcopy(mine)
    g = gradients(1)[0]
    _, mine = optim.update_in_place(owned, mine, g)
    np.testing.assert_allclose(mine.layer_1.bias, before.layer_1.bias - 0.1 * g.layer_1.bias)


@pytest.mark.parametrize("rule", [Adam(0.1), chain(clip_norm(1.0), Adam(0.1))], ids=repr)
def test_updates_in_place_with_and_without_some_gradients(rule):
    ps, grads = parameters(), gradients(5)
    thinned = [g.replace({"layer_1.weight": None}) if i in (1, 3) else g for i, g in enumerate(grads)]
    owned, mine = own(optim.setup(rule, ps), ps)
    for g in thinned:
        owned, mine = optim.update_in_place(owned, mine, g)
    state, expected = steps(rule, ps, thinned)
    assert_equal(mine, expected)
    assert_equal(tree.leaves(owned), tree.leaves(state))


def test_a_list_of_parameters_may_change_between_updates_in_place():
    ps, g = Tree(w=[np.ones(3), np.ones(2)]), Tree(w=[np.ones(3), np.ones(2)])
    owned, mine = optim.update_in_place(*own(optim.setup(Descent(0.5), ps), ps), g)
    mine.w[0] = np.full(3, 5.0)
    _, mine = optim.update_in_place(owned, mine, g)
    np.testing.assert_array_equal(mine.w[0], np.full(3, 4.5))
    np.testing.assert_array_equal(mine.w[1], np.zeros(2))


# Absent and strange gradients.


def test_a_gradient_of_none_leaves_parameter_moments_and_count_alone():
    ps, grads = parameters(), gradients(6)
    thinned = [g.replace({"layer_1.weight": None}) if i in (1, 2, 4) else g for i, g in enumerate(grads)]
    _, found = steps(AdamW(0.1, weight_decay=0.0), ps, thinned)
    kept = [g.layer_1.weight for i, g in enumerate(grads) if i not in (1, 2, 4)]
    np.testing.assert_allclose(found.layer_1.weight, by_hand(ps.layer_1.weight, kept, 0.1), rtol=1e-12)
    everything = [g.layer_2.bias for g in grads]
    np.testing.assert_allclose(found.layer_2.bias, by_hand(ps.layer_2.bias, everything, 0.1), rtol=1e-12)


def test_a_gradient_of_none_means_no_decay_and_a_zero_one_decay():
    ps, (g,) = parameters(), gradients(1)
    state = optim.setup(AdamW(0.1, weight_decay=0.5), ps)
    _, absent = optim.update(state, ps, g.replace({"layer_1.weight": None}))
    np.testing.assert_array_equal(absent.layer_1.weight, ps.layer_1.weight)
    _, zero = optim.update(state, ps, g.replace({"layer_1.weight": np.zeros((5, 3))}))
    np.testing.assert_allclose(zero.layer_1.weight, 0.95 * ps.layer_1.weight, rtol=1e-12)


def test_no_gradient_at_all_changes_nothing_but_the_step():
    ps = parameters()
    state, new = optim.update(optim.setup(Adam(), ps), ps, None)
    assert_equal(new, ps)
    assert state.step == 1
    assert optim.update(state, new, {"layer_1": None, "layer_2": None})[0].step == 2


def test_gradients_that_are_not_finite_are_applied():
    ps, (g,) = parameters(), gradients(1)
    bad = g.layer_1.bias.copy()
    bad[2] = np.nan
    _, new = optim.update(optim.setup(Adam(0.1), ps), ps, g.replace({"layer_1.bias": bad}))
    assert np.isnan(new.layer_1.bias).tolist() == [False, False, True, False, False]
    assert np.isfinite(new.layer_2.weight).all()


def test_what_is_no_float_array_passes_through():
    ps = Tree(w=np.ones(2), table=np.arange(3), name="x", n=3, flag=True, nothing=None, mask=np.array([True]))
    grads = culux.gradient(lambda ps: (ps.w * ps.w).sum(), ps)
    _, new = optim.update(optim.setup(Descent(0.5), ps), ps, grads)
    assert new.w.tolist() == [0, 0]
    assert new.table is ps.table
    assert new.mask is ps.mask
    assert (new.name, new.n, new.flag, new.nothing) == ("x", 3, True, None)


def test_gradients_in_another_order_of_entries_and_other_containers():
    ps = Tree(a=np.ones(2), b=(np.ones(3), np.ones(1)))
    grads = {"b": [np.full(3, 2.0), np.full(1, 3.0)], "a": np.full(2, 1.0)}
    _, new = optim.update(optim.setup(Descent(1.0), ps), ps, grads)
    assert_equal(new, Tree(a=np.zeros(2), b=(np.full(3, -1.0), np.full(1, -2.0))))


def test_strided_gradients_and_parameters():
    w, g = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(4, 3)
    _, new = optim.update(optim.setup(Descent(1.0), w.T), w.T, g[::2].T)
    np.testing.assert_array_equal(new, w.T - g[::2].T)


def test_scalars_as_parameters():
    ps = Tree(a=np.array(2.0, np.float32))
    grads = culux.gradient(lambda ps: ps.a * ps.a, ps)
    _, new = optim.update(optim.setup(Descent(0.25), ps), ps, grads)
    assert new.a.shape == ()
    assert new.a.dtype == np.float32
    assert new.a == 1
    assert optim.update(optim.setup(Descent(1.0), ps), ps, Tree(a=0.5))[1].a == 1.5


# Dtypes, layouts.


def test_several_dtypes_keep_their_own():
    ps = Tree(a=np.ones(3, np.float32), b=np.ones((2, 2)), c=np.ones(5, np.float16), d=np.ones(2, np.float32))
    _, new = steps(Adam(0.1), ps, [tree.map(np.ones_like, ps)] * 3)
    assert [leaf.dtype for leaf in tree.leaves(new)] == [leaf.dtype for leaf in tree.leaves(ps)]
    for leaf in tree.leaves(new):
        np.testing.assert_allclose(leaf, 0.7, rtol=1e-3)


def test_half_precision_computes_in_float32():
    ps, g = Tree(w=np.ones(4, np.float16)), Tree(w=np.full(4, 1e-4, np.float16))  # g * g is 0 in float16
    _, new = steps(Adam(0.01), ps, [g] * 10)
    np.testing.assert_allclose(new.w, 0.9, rtol=5e-3)


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    ps = Tree(w=np.ones(4, ml_dtypes.bfloat16))
    state, new = steps(Adam(0.125), ps, [ps.replace(w=np.ones(4, ml_dtypes.bfloat16))] * 2)
    assert new.w.dtype == ml_dtypes.bfloat16
    assert new.w.astype("float32").tolist() == [0.75] * 4
    assert state.moments.bfloat16[0].dtype == np.float32


def test_leaves_are_views_of_one_buffer_at_multiples_of_128_bytes():
    _, ps = steps(Descent(0.1), parameters(), gradients(1))
    addresses = [leaf.ctypes.data for leaf in tree.leaves(ps)]
    assert len({id(leaf.base) for leaf in tree.leaves(ps)}) == 1
    assert {(address - addresses[0]) % ALIGNMENT for address in addresses} == {0}


def test_arrays_of_more_than_a_block():
    x, g = np.random.default_rng(0).standard_normal((2, 2 * BLOCK + 17))
    found = steps(Adam(0.1), Tree(w=x), [Tree(w=g), Tree(w=-g), Tree(w=2 * g)])[1].w
    np.testing.assert_allclose(found, by_hand(x, [g, -g, 2 * g], 0.1), rtol=1e-10)


def test_tied_arrays_are_one_parameter_with_the_sum_of_their_gradients():
    w = np.ones(3)
    ps = Tree(encoder=w, decoder=w, other=np.ones(3))
    state = optim.setup(Momentum(1.0), ps)
    grads = Tree(encoder=np.full(3, 1.0), decoder=np.full(3, 2.0), other=np.full(3, 4.0))
    state, new = optim.update(state, ps, grads)
    assert new.encoder is new.decoder
    assert (new.encoder.tolist(), new.other.tolist()) == ([-2] * 3, [-3] * 3)
    _, new = optim.update(state, new, grads.replace(encoder=None))
    assert new.decoder.tolist() == [-2 - (0.9 * 3 + 2)] * 3
    with pytest.raises(errors.ShapeError, match=r"encoder was one array with another parameter.*tie them again"):
        optim.update(state, new.replace(decoder=np.ones(3)), grads)
    with pytest.raises(errors.LayerError, match=r"encoder and decoder are one array, and groups gives them different"):
        optim.setup(groups({"encoder": Adam()}, default=Descent()), ps)


def test_a_tree_without_parameters():
    state, ps = steps(Adam(), Tree(n=3), [Tree(n=None)] * 2)
    assert (state.step, ps) == (2, Tree(n=3))


# Rules made of rules, schedules.


def test_groups_take_the_first_pattern_that_fits():
    rule = groups({"layer_1.*": Descent(1.0), "*.bias": Descent(2.0)}, default=Descent(4.0))
    ps = parameters()
    ones = tree.map(np.ones_like, ps)
    _, new = steps(rule, ps, [ones])
    moved = tree.map(lambda a, b: float(np.unique(np.round(a - b, 12))[0]), ps, new)
    assert moved == Tree(layer_1=Tree(weight=1.0, bias=1.0), layer_2=Tree(weight=4.0, bias=2.0))


def test_groups_in_groups_and_chains_that_cross():
    inner = groups({"*.bias": Descent(1.0)}, default=Descent(10.0))
    rule = chain(groups({"layer_1.*": optim.clip_value(0.5)}, default=optim.clip_value(0.25)), inner)
    ps = parameters()
    _, new = steps(rule, ps, [tree.map(np.ones_like, ps)])
    moved = tree.map(lambda a, b: float(np.unique(np.round(a - b, 12))[0]), ps, new)
    assert moved == Tree(layer_1=Tree(weight=5.0, bias=0.5), layer_2=Tree(weight=2.5, bias=0.25))


def test_clip_norm_in_a_group_has_the_norm_of_the_group():
    ps = Tree(a=np.zeros(2), b=np.zeros(2), c=np.zeros(2))
    rule = groups({"c": Descent(1.0)}, default=chain(clip_norm(1.0), Descent(1.0)))
    _, new = steps(rule, ps, [Tree(a=np.array([3.0, 0]), b=np.array([0, 4.0]), c=np.array([100.0, 0]))])
    np.testing.assert_allclose(-new.a, [0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(-new.b, [0, 0.8], rtol=1e-6)
    assert new.c.tolist() == [-100, 0]


def test_clip_norm_counts_all_dtypes_and_no_frozen_leaf():
    ps = Tree(a=np.zeros(2, np.float32), b=np.zeros(2), c=np.zeros(2))
    state = optim.freeze(optim.setup(chain(clip_norm(1.0), Descent(1.0)), ps), "c")
    g = Tree(a=np.array([3, 0], np.float32), b=np.array([0, 4.0]), c=np.array([100.0, 0]))
    _, new = optim.update(state, ps, g)
    np.testing.assert_allclose(-new.a, [0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(-new.b, [0, 0.8], rtol=1e-6)
    assert new.a.dtype == np.float32
    assert new.c.tolist() == [0, 0]


def test_schedules_count_the_updates_of_the_state():
    _, new = steps(Descent(lambda step: 10.0**step), Tree(w=np.zeros(1)), [Tree(w=np.ones(1))] * 3)
    assert new.w.tolist() == [-111]
    scheduled = Adam(0.1, betas=(schedules.constant(0.5), 0.999), epsilon=schedules.constant(1e-3))
    ps, grads = parameters(), gradients(4)
    assert_equal(steps(scheduled, ps, grads)[1], steps(Adam(0.1, (0.5, 0.999), 1e-3), ps, grads)[1])


def test_a_numpy_number_as_a_hyper_parameter_keeps_the_dtype():
    _, new = steps(Momentum(np.float64(0.5), np.float64(0.9)), Tree(w=np.ones(2, np.float32)), [Tree(w=np.ones(2))])
    assert new.w.dtype == np.float32
    assert type(Momentum(np.float64(0.5)).learning_rate) is float


def test_a_rule_of_the_user():
    class Signs(optim.Rule):
        """Steps by the sign of the mean gradient."""

        learning_rate: float = 0.1
        moments = 1

        def apply(self, count, d, x, *moments):
            (total,) = moments
            total += d
            return self.learning_rate * np.sign(total / count)

    _, new = steps(Signs(0.5), Tree(w=np.zeros(2)), [Tree(w=np.array([1.0, -3.0])), Tree(w=np.array([-2.0, 1.0]))])
    assert new.w.tolist() == [0.0, 1.0]
    assert repr(Signs(0.5)) == "Signs(0.5)"

    class Nothing(optim.Rule):
        pass

    with pytest.raises(errors.LayerError, match=r"Nothing does not define apply\(self, count, d, x, \*moments\)"):
        steps(Nothing(), Tree(w=np.zeros(2)), [Tree(w=np.ones(2))])


def test_rules_compare_hash_pickle_and_print():
    rule = groups({"*.bias": Descent(0.1)}, default=chain(clip_norm(1.0), Adam(schedules.cosine(1e-3, 10))))
    assert repr(rule) == "groups({'*.bias': Descent(0.1)}, default=chain(clip_norm(1.0), Adam(cosine(0.001, 10))))"
    assert eval(repr(rule), vars(optim) | vars(schedules)) == rule
    assert hash(copy.deepcopy(rule)) == hash(rule)
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert rule != rule.adjusted({"learning_rate": 0.2})
    with pytest.raises(AttributeError, match="learning_rate"):
        Adam().learning_rate = 3.0


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


# Errors.


def test_grads_and_ps_swapped():
    ps, grads = parameters(), gradients(3)
    state = optim.setup(Adam(), ps)
    swapped = "grads are the parameters and ps are not.*opt, ps = culux.optim.update\\(opt, ps, grads\\)"
    with pytest.raises(errors.LayerError, match=swapped):
        optim.update(state, grads[0], ps)
    state, ps = optim.update(state, ps, grads[0])
    with pytest.raises(errors.LayerError, match=swapped):
        optim.update(state, grads[1], ps)
    optim.update(state, ps, ps)  # the gradient of |ps|^2 / 2


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state)), culux.cpu_device()])
def test_a_state_that_lost_its_parameters_sees_a_swap_at_its_second_update(copied, swapped):
    ps, grads = parameters(), gradients(2)
    state = copied(optim.setup(Adam(), ps))
    assert state._known is None
    state, ps = optim.update(state, grads[0], ps) if swapped else optim.update(state, ps, grads[0])
    with pytest.raises(errors.LayerError, match="grads are the parameters and ps are not"):
        optim.update(state, grads[1], ps)


def test_grads_and_ps_swapped_after_a_move_where_a_leaf_has_no_gradient():
    ps = Tree(w=np.ones(2), n=np.arange(2))
    grads = culux.gradient(lambda ps: ps.w.sum(), ps)
    state = copy.deepcopy(optim.setup(Adam(), ps))
    with pytest.raises(
        errors.LayerError, match=r"grads have int64 array of shape \(2,\) where ps have None.*wrong order"
    ):
        optim.update(state, grads, ps)


def test_arguments_in_another_order():
    ps, (g,) = parameters(), gradients(1)
    with pytest.raises(errors.LayerError, match=r"expected an OptimizerState first, got Tree.*opt, ps = culux.optim"):
        optim.update(ps, optim.setup(Adam(), ps), g)
    with pytest.raises(errors.LayerError, match=r"expected a rule such as Adam\(1e-3\), got Tree.*optim.setup\("):
        optim.setup(ps, Adam())
    with pytest.raises(errors.LayerError, match=r"expected a rule such as Adam\(1e-3\), got .*; call it"):
        optim.setup(Adam, ps)


def test_gradients_of_another_structure_name_the_paths():
    ps, (g,) = parameters(), gradients(1)
    state = optim.setup(Adam(), ps)
    other = {"layer_1": {"weight": g.layer_1.weight, "scale": g.layer_1.bias}, "layer_2": g.layer_2}
    message = r"grads: .*missing: layer_1.bias; not expected: layer_1.scale"
    with pytest.raises(errors.ShapeError, match=message):
        optim.update(state, ps, other)
    with pytest.raises(errors.ShapeError, match=r"ps: .*missing: layer_2.weight, layer_2.bias"):
        optim.update(state, Tree(layer_1=ps.layer_1), g)
    with pytest.raises(errors.ShapeError, match=r"grads: .*not expected: an array at the top"):
        optim.update(state, ps, np.ones(3))
    with pytest.raises(
        errors.ShapeError, match=r"grads at layer_2.bias: expected an array of shape \(2,\), got float64"
    ):
        optim.update(state, ps, g.replace({"layer_2.bias": np.ones(3)}))
    with pytest.raises(errors.ShapeError, match=r"ps: expected the tree that optim.setup got; missing: layer_2.bias"):
        optim.update(state, ps.replace({"layer_2.bias": None}), g)


def test_traced_arrays_are_refused():
    ps, (g,) = parameters(), gradients(1)
    state = optim.setup(Adam(), ps)
    with pytest.raises(errors.DifferentiationError, match=r"layer_1.weight: expected plain arrays, got traced ones"):
        culux.gradient(lambda ps: optim.setup(Adam(), ps).step, ps)
    with pytest.raises(errors.DifferentiationError, match=r"grads: expected plain arrays, got traced ones"):
        culux.gradient(lambda g: optim.update(state, ps, g)[1].layer_1.weight.sum(), g)
    with pytest.raises(
        errors.DifferentiationError, match=r"ps: expected plain arrays, got traced ones; update outside"
    ):
        culux.gradient(lambda ps: optim.update(state, ps, g)[1].layer_1.weight.sum(), ps)


def test_leaves_that_are_no_parameters():
    with pytest.raises(
        errors.DTypeError, match=r"a is float 1.0; a parameter is an array: numpy.asarray\(1.0, 'float32'"
    ):
        optim.setup(Adam(), Tree(a=1.0))
    with pytest.raises(errors.DTypeError, match=r"a.b: expected an array, a number, a string or None, got object"):
        optim.setup(Adam(), Tree(a=Tree(b=object())))
    with pytest.raises(errors.LayerError, match=r"expected parameters, got .*; ps, st = culux.setup\(rng, model\)"):
        optim.setup(Adam(), make_layer())


def make_layer():
    class Empty(culux.Layer):
        def __call__(self, x, ps, st):
            return x, st

    return Empty()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Adam(lr=1e-3), "Adam takes no lr=; culux calls it learning_rate"),
        (lambda: Adam(eps=1e-3), "Adam takes no eps=; culux calls it epsilon"),
        (lambda: Adam(beta1=0.9), r"Adam takes no beta1=; culux calls it betas=\(beta1, beta2\)"),
        (lambda: Adam(learning_rat=1), r"Adam takes no learning_rat= \(did you mean 'learning_rate'\?\)"),
        (lambda: Adam(1, 2, 3, 4), r"Adam: too many positional arguments; it is Adam\(learning_rate=0.001"),
        (lambda: Adam(-1.0), "Adam: expected learning_rate >= 0, got -1.0"),
        (lambda: Adam(float("nan")), "Adam: expected learning_rate >= 0, got nan"),
        (lambda: Adam(epsilon=0.0), "Adam: expected epsilon > 0, got 0.0"),
        (lambda: Adam(betas=(0.9, 1.0)), "Adam: expected 0 <= betas < 1, got 1.0"),
        (lambda: Adam(betas=0.9), r"Adam: expected betas=\(beta1, beta2\), got float 0.9"),
        (lambda: Adam("fast"), "Adam: expected learning_rate to be a number or a schedule, got str 'fast'"),
        (lambda: Adam(parameters()), r"got Tree .*; a rule holds no parameters: culux.optim.setup\(Adam\(1e-3\), ps\)"),
        (lambda: AdamW(weight_decay=-1), "AdamW: expected weight_decay >= 0, got -1"),
        (lambda: RMSProp(alpha=1.5), "RMSProp: expected 0 <= alpha < 1, got 1.5"),
        (lambda: Momentum(0.1, -0.5), "Momentum: expected momentum >= 0, got -0.5"),
        (lambda: clip_norm(0), "clip_norm: expected max > 0, got 0"),
        (lambda: clip_norm(), r"clip_norm: missing a required argument: 'max'; it is clip_norm\(max\)"),
        (lambda: chain(), r"chain: expected rules, got none; chain\(clip_norm\(1.0\), Adam\(1e-3\)\)"),
        (lambda: chain(clip_norm(1.0), Adam), r"chain: expected a rule such as Adam\(1e-3\), got .*; call it: Adam\("),
        (lambda: groups([Adam()], default=Adam()), "groups: expected a dict of pattern -> rule, got list"),
        (lambda: groups({"a": 3}, default=Adam()), "groups at 'a': expected a rule such as .* got int 3"),
        (lambda: groups({"a": Adam()}), r"groups: missing a required .*'default'; it is groups\(rules, \*, default\)"),
    ],
)
def test_rules_that_are_spelled_wrong(call, message):
    with pytest.raises(errors.LayerError, match=message):
        call()


def test_patterns_that_fit_nothing():
    ps = parameters()
    state = optim.setup(Adam(), ps)
    for call, owner in (
        (lambda: optim.freeze(state, "layer_1.weigth"), "freeze"),
        (lambda: optim.thaw(state, "layer_1.weigth"), "thaw"),
        (lambda: optim.setup(chain(groups({"layer_1.weigth": Adam()}, default=Adam())), ps), "groups"),
    ):
        message = f"{owner}: no parameter fits 'layer_1.weigth' \\(did you mean 'layer_1.weight'\\?\\); the paths are: "
        with pytest.raises(errors.EntryError, match=message):
            call()


def test_adjust_of_what_no_rule_has():
    state = optim.setup(chain(clip_norm(1.0), Momentum()), parameters())
    with pytest.raises(
        errors.LayerError, match=r"takes no momentun= \(did you mean 'momentum'\?\); it takes max, learn"
    ):
        optim.adjust(state, momentun=0.3)
    with pytest.raises(errors.LayerError, match="takes no lr=; culux calls it learning_rate"):
        optim.adjust(state, lr=0.3)
    with pytest.raises(errors.LayerError, match="Momentum: expected learning_rate >= 0, got -1"):
        optim.adjust(state, learning_rate=-1)
