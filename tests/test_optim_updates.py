"""The optimiser's updates: purity, memory, updates in place, absent gradients, dtypes and layouts."""

from __future__ import annotations

import copy
import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import culux
from culux import Tree, errors, optim, tree
from culux.optim import Adam, AdamW, Descent, Momentum, chain, clip_norm, groups, schedules
from culux.optim.buffers import SMALL, Pool
from culux.optim.flat import ALIGNMENT
from culux.optim.program import BLOCK
from culux.optim.state import own
from tests.optim_support import assert_equal, by_hand, gradients, parameters, steps

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
