"""The kernels of embedding: rows by id, and sums by id in a fixed order."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import kernels, nn
from culux.errors import ShapeError
from culux.kernels import embedding
from culux.testing import cost
from tests.kernel_support import DTYPES, check, close, dtype_of

ROWS = 11


def sample(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype_of(dtype))


def ids_of(n, rows=ROWS, seed=0, kind=np.int64):
    """Ids of which one is half of all, as padding is, so that its run crosses chunks."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < 0.5, 2, rng.integers(0, rows, n)).astype(kind)


def summed(dy, ids, rows=ROWS):
    total = np.zeros((rows, dy.shape[-1]))
    np.add.at(total, ids.ravel(), dy.reshape(-1, dy.shape[-1]).astype(np.float64))
    return total


def kernel(name, dtype=np.float32, size=8):
    return kernels.get_kernel("embedding", name, np.dtype(dtype), constants=(("ID_BYTES", size),))


def words_of(ids):
    return np.sort((ids.astype(np.uint64) << 32) | np.arange(ids.size, dtype=np.uint64))


def test_gather_passes_every_check():
    weight, ids = sample(ROWS, 8), np.array([3, 10, 0, 3, ROWS, 5, 9])
    expected = np.where(ids[:, None] == ROWS, np.float32(np.nan), weight[ids.clip(0, ROWS - 1)])
    y, alarm = np.empty((7, 8), np.float32), np.zeros(4, np.int64)
    check(
        kernel("embedding_gather"), (2,), (2, 3), weight, ids, y, alarm, 7, 8, ROWS, inout=[3],
        reference=lambda *_: (expected, np.array([1, ROWS, 4, ROWS])),
    )  # fmt: skip


def test_the_sort_passes_every_check():
    ids, words, dweight = ids_of(70, kind=np.int32), np.empty(70, np.uint64), np.empty((ROWS, 3), np.float32)
    check(
        kernel("embedding_rank", size=4), (4,), (256,), ids, words, dweight, 70, ROWS, 3 * ROWS,
        reference=lambda *_: (words_of(ids), np.zeros((ROWS, 3))),
    )  # fmt: skip
    unsorted = ids.astype(np.uint64) << 32 | np.arange(70, dtype=np.uint64)
    check(
        kernel("embedding_words", size=4), (2,), (32,), ids, words, dweight, 70, ROWS, 3 * ROWS,
        reference=lambda *_: (unsorted, np.zeros((ROWS, 3))),
    )  # fmt: skip


def test_the_sums_pass_every_check():
    ids, dy, partials = ids_of(101), sample(101, 8), np.zeros((4, 2, 8), np.float32)
    ids[[5, 50, 90]] = ROWS  # that no row has
    words, dweight = words_of(ids), np.zeros((ROWS, 8), np.float32)
    sum_chunks, join = kernel("embedding_sum"), kernel("embedding_join")
    found = check(sum_chunks, (2,), (2, 1), words, dy, dweight, partials, 101, 8, ROWS, inout=[2, 3]).outputs
    found = check(join, (1,), (8, 2), words, found[3], found[2], 101, 8, ROWS, inout=[2]).outputs
    np.testing.assert_allclose(found[2], summed(dy, ids, ROWS + 1)[:ROWS], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [1, 3, 8, 24])
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_forward_and_gradient(dtype, dims, kind, standin_cupy):
    weight, ids = sample(ROWS, dims, dtype=dtype), ids_of(69, kind=kind).reshape(3, 23)
    dy = sample(3, 23, dims, dtype=dtype, seed=1)
    y, pullback = culux.vjp(lambda w: nn.embedding(standin_cupy.asarray(ids), w), standin_cupy.asarray(weight))
    assert y.get().tobytes() == weight[ids].tobytes()
    (dweight,) = pullback(standin_cupy.asarray(dy))
    close(dweight, summed(dy, ids), dtype, scale=10)


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 64, 65, 96, 97, 300])
@pytest.mark.parametrize("most", [0, 2**15], ids=["sorted by the library", "ranked"])
@pytest.mark.parametrize("kind", ["one id", "two ids", "padded", "every id once"])
def test_runs_of_every_length(n, most, kind, standin_cupy, monkeypatch):
    monkeypatch.setattr(embedding, "MOST_TO_RANK", most)
    rows = 301
    ids = {
        "one id": np.full(n, 300), "two ids": np.arange(n) % 2, "padded": ids_of(n, rows, n),
        "every id once": np.random.default_rng(n).permutation(n),
    }[kind]  # fmt: skip
    dy = sample(n, 4)
    found = embedding.scatter_add(standin_cupy.asarray(dy), standin_cupy.asarray(ids), rows=rows)
    close(found, summed(dy, ids, rows), "float32", scale=5)


def test_sums_are_in_the_order_of_the_ids(standin_cupy):
    # Large numbers that cancel: another order gives other bits.
    ids, dy = ids_of(500), sample(500, 3) * np.float32(1e4) ** sample(500, 3, seed=2)
    runs = [embedding.scatter_add(*map(standin_cupy.asarray, (dy, ids)), rows=ROWS).get().tobytes() for _ in range(2)]
    expected = np.zeros((ROWS, 3), np.float32)
    order = np.argsort(ids, kind="stable")
    for row in range(ROWS):  # the chunks' sums, one after another
        for chunk in range(0, 500, 32):
            part = np.zeros(3, np.float32)
            for i in order[chunk : chunk + 32]:
                part += dy[i] if ids[i] == row else 0
            expected[row] += part
    assert runs[0] == runs[1]
    np.testing.assert_array_equal(np.frombuffer(runs[0], np.float32).reshape(ROWS, 3), expected)


def test_unaligned_and_strided_arrays(standin_cupy):
    ids, dy = ids_of(40), sample(40, 9)
    weight = standin_cupy.asarray(sample(ROWS * 8 + 1))[1:].reshape(ROWS, 8)
    y = nn.embedding(standin_cupy.asarray(ids), weight)
    np.testing.assert_array_equal(y.get(), weight.get()[ids])
    there = standin_cupy.asarray(dy)[:, 1:]
    close(embedding.scatter_add(there, standin_cupy.asarray(ids), rows=ROWS), summed(dy[:, 1:], ids), "float32", 5)
    y = nn.embedding(standin_cupy.asarray(ids.reshape(5, 8)).T, standin_cupy.asarray(sample(8, ROWS)).T)
    np.testing.assert_array_equal(y.get(), sample(8, ROWS).T[ids.reshape(5, 8).T])


def test_nothing_to_do(standin_cupy):
    none, weight = standin_cupy.zeros((0, 2), "int64"), standin_cupy.asarray(sample(ROWS, 3))
    y, pullback = culux.vjp(lambda w: nn.embedding(none, w), weight)
    assert y.shape == (0, 2, 3)
    np.testing.assert_array_equal(pullback(y)[0].get(), np.zeros((ROWS, 3)))
    assert nn.embedding(standin_cupy.zeros(4, "int64"), weight[:, :0]).shape == (4, 0)


def test_launches(standin_cupy):
    ids, weight = standin_cupy.asarray(ids_of(100)), standin_cupy.asarray(sample(ROWS, 8))
    y, pullback = culux.vjp(lambda w: nn.embedding(ids, w), weight)
    forward = cost(lambda: nn.embedding(ids, weight))
    assert forward.kernels == (("embedding_gather", 1),)
    assert (forward.allocations, forward.transfers) == (1, ())
    backward = cost(lambda: pullback(y))
    assert backward.kernels == (("embedding_join", 1), ("embedding_rank", 1), ("embedding_sum", 1))
    assert (backward.allocations, backward.transfers) == (3, ())
    few = culux.vjp(lambda w: nn.embedding(ids[:32], w), weight)[1]
    assert cost(lambda: few(y[:32])).launches == 2


def test_a_second_derivative(standin_cupy):
    ids, weight = ids_of(40), sample(ROWS, 3)
    there = standin_cupy.asarray(ids)

    def cubed(w):
        return (nn.embedding(there, w) ** 3).sum()

    found = culux.gradient(lambda w: (culux.gradient(cubed, w) ** 2).sum(), standin_cupy.asarray(weight))
    counts = np.bincount(ids, minlength=ROWS)[:, None]
    close(found, 36.0 * counts**2 * weight.astype(np.float64) ** 3, "float32", scale=10)


MESSAGE = "embedding: expected ids from 0 to 10 for the 11 rows of weight, got {} at position {} of the flattened ids"


@pytest.mark.parametrize("bad", [-1, 11, 2**40])
def test_an_id_that_no_row_has_is_told_at_the_next_wait(bad, standin_cupy):
    weight, ids = standin_cupy.asarray(sample(ROWS, 3)), np.array([[1, 2], [bad, 4]])
    y = nn.embedding(standin_cupy.asarray(ids), weight)
    with pytest.raises(ShapeError, match=MESSAGE.format(bad, 2)):
        culux.to_numpy(y)
    found = culux.to_numpy(y)  # told once
    assert np.isnan(found[1, 0]).all()
    np.testing.assert_array_equal(found[0], weight.get()[[1, 2]])
    nn.embedding(standin_cupy.asarray(ids), weight)
    with pytest.raises(ShapeError, match=MESSAGE.format(bad, 2)):
        culux.synchronize(weight)
    nn.embedding(standin_cupy.asarray(ids.clip(0, 10)), weight)
    culux.synchronize(weight)


def test_only_its_own_device_is_asked(standin_cupy):
    standin_cupy.set_device_count(2)
    ids = np.array([1, 12])
    with standin_cupy.cuda.Device(1):
        there, weight = standin_cupy.asarray(ids), standin_cupy.asarray(sample(ROWS, 3))
    nn.embedding(there, weight)
    culux.to_numpy(standin_cupy.zeros(3))
    with pytest.raises(ShapeError, match=MESSAGE.format(12, 1)):
        culux.synchronize(weight)


def test_a_wait_without_a_launch_costs_nothing(standin_cupy):
    x, weight = standin_cupy.ones(3), standin_cupy.asarray(sample(ROWS, 3))
    nn.embedding(standin_cupy.asarray(ids_of(5)), weight)
    assert cost(lambda: culux.to_numpy(x)).transfers == (("to host", 2, 24 + 32),)
    assert cost(lambda: culux.to_numpy(x)).transfers == (("to host", 1, 24),)


def test_an_unknown_id_has_no_gradient(standin_cupy):
    ids, dy = np.array([3, -1, 3, 11, 0]), sample(5, 4)
    found = embedding.scatter_add(standin_cupy.asarray(dy), standin_cupy.asarray(ids), rows=ROWS)
    close(found, summed(dy[[0, 2, 4]], ids[[0, 2, 4]]), "float32")


def test_small_integers_are_converted(standin_cupy):
    weight = standin_cupy.asarray(sample(ROWS, 3))
    for kind in (np.int8, np.uint16, np.uint64):
        y = nn.embedding(standin_cupy.asarray(ids_of(20, kind=kind)), weight)
        np.testing.assert_array_equal(y.get(), weight.get()[ids_of(20)])


def test_a_captured_gradient_replays_with_the_ids_that_are_there(standin_cupy):
    ids, weight, dy = ids_of(80), sample(ROWS, 4), sample(80, 4)
    there, w, d = (standin_cupy.asarray(a) for a in (ids, weight, dy))

    def step():
        y, pullback = culux.vjp(lambda w: nn.embedding(there, w), w)
        return y, pullback(d)[0]

    with standin_cupy.cuda.Stream(non_blocking=True) as capturing:
        standin_cupy.cuda.Device().synchronize()
        step()
        capturing.begin_capture()
        y, dweight = step()
        graph = capturing.end_capture()
        for others in (ids, ids[::-1] % 5):
            there[...] = standin_cupy.asarray(np.ascontiguousarray(others))
            graph.launch(capturing)
            np.testing.assert_array_equal(y.get(), weight[others])
            close(dweight, summed(dy, others), "float32", scale=5)
