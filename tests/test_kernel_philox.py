"""Philox on the GPU: NumPy's bits, and dropout that makes its mask anew for the gradient."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import kernels, nn, random
from culux.errors import DeviceError, DTypeError
from culux.kernels import philox
from culux.testing import cost
from culux.tree import Tree
from tests.kernel_support import DTYPES, check, dtype_of

FULL = 2**64 - 1
COUNTERS = [[0, 0, 0, 0], [FULL, 0, 0, 0], [FULL - 1, FULL, 7, 0], [FULL - 2, FULL, FULL, FULL], [1, 2, 3, 4]]
KEYS = [(0, 0), (3, FULL), (0x0123456789ABCDEF, 0xFEDCBA9876543210)]


def host_state(counter=(5, 0, 0, 0), key=KEYS[1]):
    return Tree(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))


def on(cupy, state):
    return culux.tree.map(cupy.asarray, state)


def stream(state, n, dtype=np.float32):
    return np.random.Generator(np.random.Philox(key=state.key, counter=state.counter)).random(n, dtype=dtype)


def moved(state, blocks):
    total = (sum(int(word) << (64 * i) for i, word in enumerate(state.counter)) + blocks) % 2**256
    return np.array([total >> (64 * i) & FULL for i in range(4)], np.uint64)


def sample(shape, dtype="float32"):
    return (np.random.default_rng(1).standard_normal(shape) * 3).astype(dtype_of(dtype))


def dropped(x, state, p):
    """By NumPy's generator, in the dtype that is computed in."""
    wide = np.float64 if x.dtype == np.float64 else np.float32
    keep = (stream(state, x.size) >= np.float32(p)).reshape(x.shape)
    return (x.astype(wide) * (keep.astype(wide) * wide(1 / (1 - p)))).astype(x.dtype)


def same_bits(actual, expected):
    actual = actual.get() if hasattr(actual, "get") else actual
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()


def test_both_kernels_pass_every_check():
    state, n = host_state(COUNTERS[2]), 8 * 70 + 3
    uniform = kernels.get_kernel("philox", "philox_uniform", np.dtype(np.float32))
    after = moved(state, 71)
    check(
        uniform, (2,), (32,), state.key, state.counter, np.empty(n, np.float32), np.empty(4, np.uint64), n,
        reference=lambda *_: (stream(state, n), after),
    )  # fmt: skip
    x, expected = sample(n), dropped(sample(n), state, 0.25)
    dropout = kernels.get_kernel("philox", "philox_dropout", x.dtype)
    check(
        dropout, (2,), (32,), state.key, state.counter, x, np.empty_like(x), np.empty(4, np.uint64), n, 2**22, 1 / 0.75,
        reference=lambda *_: (expected, after), rtol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniform_has_numpys_bits(key, counter, dtype, standin_cupy):
    state = host_state(counter, key)
    for n in (1, 2, 3, 4, 5, 7, 8, 9, 31, 8 * 300 + 5):
        numbers, after = random.uniform(on(standin_cupy, state), n, dtype)
        same_bits(numbers, stream(state, n, dtype))
        same_bits(after.counter, moved(state, -(-n * np.dtype(dtype).itemsize // 32)))


def test_a_loop_over_more_than_the_grid_has_the_same_bits(standin_cupy, monkeypatch):
    monkeypatch.setattr(philox, "MOST_BLOCKS", 2)
    state, n = host_state(COUNTERS[3]), 8 * 256 * 5 + 1
    numbers, _ = random.uniform(on(standin_cupy, state), n)
    same_bits(numbers, stream(state, n))
    x = sample(n)
    same_bits(nn.dropout(standin_cupy.asarray(x), on(standin_cupy, state), p=0.5, training=True)[0],
              dropped(x, state, 0.5))  # fmt: skip


def test_a_draw_is_one_launch_and_stays_on_the_device(standin_cupy):
    state = on(standin_cupy, host_state())
    counted = cost(lambda: random.uniform(state, (3, 5)))
    assert counted.kernels == (("philox_uniform", 1),)
    assert (counted.allocations, counted.transfers) == (2, ())


def test_an_empty_draw_launches_nothing(standin_cupy):
    state = on(standin_cupy, host_state())
    numbers, after = random.uniform(state, (0, 4))
    assert numbers.shape == (0, 4)
    same_bits(after.counter, host_state().counter)
    y, after = nn.dropout(standin_cupy.zeros((3, 0), "float32"), state, p=0.5, training=True)
    assert y.shape == (3, 0)
    same_bits(after.counter, host_state().counter)
    assert cost(lambda: random.uniform(state, 0)).launches == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize("p", [0.3, 0.5])
def test_dropout_has_the_bits_of_the_host(dtype, offset, p, standin_cupy):
    state, x = host_state(COUNTERS[2]), sample(203 + offset, dtype)
    for n in (1, 7, 8, 203):
        y, after = nn.dropout(standin_cupy.asarray(x)[offset : offset + n], on(standin_cupy, state), p=p, training=True)
        same_bits(y, dropped(x[offset : offset + n], state, p))
        same_bits(after.counter, moved(state, -(-n // 8)))
        same_bits(after.key, state.key)


def test_dropout_of_strided_arrays_and_its_shape(standin_cupy):
    state, x = host_state(), sample((6, 10))
    y, _ = nn.dropout(standin_cupy.asarray(x).T, on(standin_cupy, state), p=0.4, training=True)
    same_bits(y, dropped(np.ascontiguousarray(x.T), state, 0.4))


def test_a_number_equal_to_the_probability_is_kept(standin_cupy):
    state, x = host_state(), np.ones(40, np.float32)
    p = float(stream(state, 40)[21])
    y, _ = nn.dropout(standin_cupy.asarray(x), on(standin_cupy, state), p=p, training=True)
    assert y.get()[21] == np.float32(1 / (1 - p))
    same_bits(y, dropped(x, state, p))


def test_a_captured_draw_replays_with_the_counter_that_is_there(standin_cupy):
    state, x = host_state(), sample(50)
    there, data = on(standin_cupy, state), standin_cupy.asarray(x)

    def step():
        y, pullback = culux.vjp(lambda x: nn.dropout(x, there, p=0.3, training=True)[0], data)
        return pullback(y)[0], nn.dropout(data, there, p=0.3, training=True)[1]

    with standin_cupy.cuda.Stream(non_blocking=True) as capturing:
        standin_cupy.cuda.Device().synchronize()
        step()
        capturing.begin_capture()
        dx, after = step()
        graph = capturing.end_capture()
        for _ in range(2):
            graph.launch(capturing)
            scale = dropped(np.ones_like(x), state, 0.3)
            np.testing.assert_allclose(dx.get(), x * scale * scale, rtol=1e-6)
            there.counter[...] = after.counter
            state = state.replace(counter=moved(state, 7))
            same_bits(there.counter, state.counter)


def test_a_probability_too_small_for_a_float_still_drops_zeros(standin_cupy):
    # A seed with a number that is exactly 0: only that one is below 1e-40, a denormal, which a GPU flushes to zero.
    key, at = KEYS[1], None
    for block in range(1, 200):
        numbers = stream(host_state((block << 18, 0, 0, 0), key), 2**18)
        if not numbers.all():
            at = (block << 18) + int(np.flatnonzero(numbers == 0)[0]) // 8
            break
    state = host_state((at, 0, 0, 0), key)
    x = np.ones(8, np.float32)
    y, _ = nn.dropout(standin_cupy.asarray(x), on(standin_cupy, state), p=1e-40, training=True)
    assert (y.get() == 0).sum() == 1
    same_bits(y, dropped(x, state, 1e-40))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_of_everything_and_of_infinities(dtype, standin_cupy):
    state = host_state()
    x = np.array([np.inf, -np.inf, np.nan, -2] * 5, dtype_of(dtype))
    there = standin_cupy.asarray(x)
    y, after = nn.dropout(there, on(standin_cupy, state), p=1, training=True)
    same_bits(y, np.zeros_like(x))
    same_bits(after.counter, moved(state, 3))
    # Dropped infinities are NaN, as in torch and on the host.
    some = nn.dropout(there, on(standin_cupy, state), p=0.5, training=True)[0].get()
    with np.errstate(invalid="ignore"):
        expected = nn.dropout(x, state, p=0.5, training=True)[0]
    np.testing.assert_array_equal(some.astype(np.float64), expected.astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_has_the_mask_again(dtype, standin_cupy):
    state, x, dy = host_state(COUNTERS[1]), sample((5, 9), dtype), sample((9, 5), dtype).T.copy()
    there = on(standin_cupy, state)
    _, pullback = culux.vjp(lambda x: nn.dropout(x, there, p=0.3, training=True)[0], standin_cupy.asarray(x))
    (dx,) = pullback(standin_cupy.asarray(dy))
    same_bits(dx, dropped(dy, state, 0.3))


def test_forward_and_backward_are_a_launch_each_and_save_no_mask(standin_cupy):
    there, x = on(standin_cupy, host_state()), standin_cupy.asarray(sample((8, 25)))
    forward = cost(lambda: nn.dropout(x, there, p=0.5, training=True))
    assert forward.kernels == (("philox_dropout", 1),)
    assert (forward.allocations, forward.transfers) == (2, ())  # y and the counter

    def both():
        y, pullback = culux.vjp(lambda x: nn.dropout(x, there, p=0.5, training=True)[0], x)
        pullback(y)

    counted = cost(both)
    assert counted.kernels == (("philox_dropout", 2),)
    assert counted.allocations == 3
    assert (
        cost(lambda: culux.gradient(lambda x: nn.dropout(x, there, p=0.5, training=True)[0].sum(), x)).saved_bytes <= 48
    )


def test_higher_derivatives_go_through_the_same_mask(standin_cupy):
    state, x = host_state(), sample(19)
    there = on(standin_cupy, state)

    def cubed(x):
        y, _ = nn.dropout(x, there, p=0.3, training=True)
        return (y * y * y).sum()

    found = culux.gradient(lambda x: culux.gradient(cubed, x).sum(), standin_cupy.asarray(x))
    scale = dropped(np.ones_like(x), state, 0.3)
    np.testing.assert_allclose(found.get(), 6 * x.astype(np.float64) * scale**3, rtol=1e-5)


def test_the_layer_moves_its_state_on_and_keeps_it_plain(standin_cupy):
    layer = culux.Dropout(0.5)
    ps, st = culux.setup(0, layer)
    host, there, x = st, on(standin_cupy, st.replace(training=True)), sample((4, 6))
    for _ in range(3):
        grads = culux.gradient(lambda x, st=there: layer(x, ps, st)[0].sum(), standin_cupy.asarray(x))
        (y, there), (expected, host) = layer(standin_cupy.asarray(x), ps, there), layer(x, ps, host)
        same_bits(y, expected)
        same_bits(there.rng.counter, host.rng.counter)
        same_bits(grads, np.where(expected == 0, np.float32(0), np.float32(2)))
        assert type(there.rng.counter) is standin_cupy.ndarray


def test_a_state_on_the_host_serves_an_array_on_the_gpu(standin_cupy):
    state, x = host_state(), sample((4, 6))
    y, after = nn.dropout(standin_cupy.asarray(x), state, p=0.3, training=True)
    same_bits(y, dropped(x, state, 0.3))
    assert type(after.counter) is np.ndarray
    y, after = nn.dropout(x, on(standin_cupy, state), p=0.3, training=True)
    same_bits(y, dropped(x, state, 0.3))
    assert type(after.counter) is standin_cupy.ndarray


def test_refusals(standin_cupy):
    state, x = on(standin_cupy, host_state()), standin_cupy.ones(3, "float32")
    with pytest.raises(DTypeError, match="got counter = int64 array of shape"):
        nn.dropout(x, state.replace(counter=standin_cupy.zeros(4, "int64")), p=0.5, training=True)
    with pytest.raises(DeviceError, match=r"expected all arrays on one device, got: argument 1 is on cpu"):
        nn.dropout(x, state.replace(key=host_state().key), p=0.5, training=True)
