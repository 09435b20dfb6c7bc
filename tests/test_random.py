"""Random states: the stream is NumPy's, bit for bit, and draws never overlap."""

from __future__ import annotations

import numpy as np
import pytest

from culux import random
from culux.autodiff import gradient
from culux.errors import DTypeError, LayerError
from culux.tree import Tree

FULL = 2**64 - 1
COUNTERS = [[0, 0, 0, 0], [FULL, 0, 0, 0], [FULL, FULL, 7, 0], [FULL - 1, FULL, FULL, FULL], [1, 2, 3, 4]]


def state_of(counter, key=(3, FULL)):
    return Tree(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))


def numpy_stream(state, n, dtype):
    return np.random.Generator(np.random.Philox(key=state.key, counter=state.counter)).random(n, dtype=dtype)


def as_int(counter):
    return sum(int(word) << (64 * i) for i, word in enumerate(counter))


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 16, 31, 1000])
@pytest.mark.parametrize(("dtype", "per_block"), [(np.float32, 8), (np.float64, 4)])
def test_uniform_is_numpys_stream_and_the_counter_moves_on(counter, n, dtype, per_block):
    state = state_of(counter)
    numbers, after = random.uniform(state, n, dtype)
    assert numbers.dtype == dtype
    np.testing.assert_array_equal(numbers, numpy_stream(state, n, dtype))
    assert as_int(after.counter) == (as_int(counter) + -(-n // per_block)) % 2**256
    np.testing.assert_array_equal(after.key, state.key)
    np.testing.assert_array_equal(state.counter, np.array(counter, np.uint64))  # what came is unchanged


@pytest.mark.parametrize("counter", COUNTERS)
def test_the_words_come_from_the_counter_after_and_the_low_half_first(counter):
    # Independent of Generator.random: raw words of the single blocks, and 24 bits of each half.
    state = state_of(counter)
    numbers, _ = random.uniform(state, 24)
    words = []
    for block in range(3):
        single = np.random.Philox(key=state.key, counter=(as_int(counter) + block) % 2**256)
        words += [int(word) for word in single.random_raw(4)]
    halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    expected = np.array([(half >> 8) / 2**24 for half in halves], np.float32)
    np.testing.assert_array_equal(numbers, expected)


def test_draws_one_after_another_are_blocks_that_do_not_overlap():
    state = random.rng_state(5)
    whole, end = random.uniform(state, 48)
    first, middle = random.uniform(state, 16)
    second, after = random.uniform(middle, (4, 8))
    np.testing.assert_array_equal(np.concatenate([first, second.ravel()]), whole)
    np.testing.assert_array_equal(after.counter, end.counter)
    # A draw that ends within a block leaves the rest of it unused.
    _, after_nine = random.uniform(state, 9)
    np.testing.assert_array_equal(after_nine.counter, middle.counter)


def test_a_state_is_drawn_from_a_generator_or_an_int():
    rng = np.random.default_rng(1)
    first, second = random.rng_state(rng), random.rng_state(rng)
    assert first.key.dtype == first.counter.dtype == np.uint64
    assert (first.key.shape, first.counter.shape) == ((2,), (4,))
    assert not first.counter.any()
    assert (first.key != second.key).all()
    np.testing.assert_array_equal(random.rng_state(1).key, first.key)
    np.testing.assert_array_equal(random.rng_state(np.int64(1)).key, first.key)


def test_the_mask_keeps_where_the_number_is_not_below_p():
    state = random.rng_state(0)
    mask, after = random.dropout_mask(state, 0.3, (50, 40))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask.ravel(), numpy_stream(state, 2000, np.float32) >= np.float32(0.3))
    assert abs(mask.mean() - 0.7) < 0.05
    assert int(after.counter[0]) == 250
    equal = float(numpy_stream(state, 3, np.float32)[2])
    assert random.dropout_mask(state, equal, 3)[0][2]
    assert random.dropout_mask(state, 0.0, 100)[0].all()
    assert not random.dropout_mask(state, 1.0, 100)[0].any()


def test_a_device_gives_the_same_bits(standin_cupy):
    host = random.rng_state(3)
    there = Tree(key=standin_cupy.asarray(host.key), counter=standin_cupy.asarray(host.counter))
    expected, expected_after = random.uniform(host, (5, 3))
    numbers, after = random.uniform(there, (5, 3))
    assert isinstance(numbers, standin_cupy.ndarray)
    np.testing.assert_array_equal(numbers.get(), expected)
    np.testing.assert_array_equal(after.counter.get(), expected_after.counter)
    mask, after = random.dropout_mask(host, 0.5, (5, 3), like=numbers)
    assert isinstance(mask, standin_cupy.ndarray)
    assert isinstance(after.counter, np.ndarray)
    np.testing.assert_array_equal(mask.get(), expected >= 0.5)
    assert isinstance(random.dropout_mask(there, 0.5, (5, 3), like=expected)[0], np.ndarray)


def test_the_mask_of_a_traced_array_is_on_its_device(standin_cupy):
    state, masks = random.rng_state(0), []

    def drop(x):
        masks.append(random.dropout_mask(state, 0.5, x.shape, like=x)[0])
        return (x * masks[0]).sum()

    grads = gradient(drop, standin_cupy.ones(16, np.float32))
    assert type(masks[0]) is standin_cupy.ndarray
    np.testing.assert_array_equal(grads.get(), masks[0].get())


def test_a_backend_may_bring_its_own_draw(monkeypatch):
    monkeypatch.setattr(random, "_implementations", {})
    seen = []

    @random.implementation("numpy")
    def draw(key, counter, n, dtype):
        seen.append((n, dtype))
        return np.zeros(n, dtype), counter

    numbers, _ = random.uniform(random.rng_state(0), (2, 3))
    assert seen == [(6, np.float32)]
    assert numbers.shape == (2, 3)


def test_refusals():
    state = random.rng_state(0)
    with pytest.raises(LayerError, match=r"expected a numpy.random.Generator or an int, got float 0\.5"):
        random.rng_state(0.5)
    with pytest.raises(LayerError, match="got bool True"):
        random.rng_state(True)
    with pytest.raises(DTypeError, match="expected float32 or float64, got float16; draw float32 and convert"):
        random.uniform(state, 3, np.float16)
    with pytest.raises(DTypeError, match=r"got counter = int64 array of shape \(4,\); make one with"):
        random.uniform(state.replace(counter=np.zeros(4, np.int64)), 3)
    with pytest.raises(DTypeError, match="got key = uint64 array of shape"):
        random.uniform(state.replace(key=np.zeros(3, np.uint64)), 3)
