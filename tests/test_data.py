"""Batches: their order, their position, their transform, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from culux.data import batches
from culux.errors import DTypeError, ShapeError
from tests.standin_cupy.fixture import standin_cupy  # noqa: F401 (a fixture)

X = np.arange(20.0).reshape(10, 2)
Y = np.arange(10)


def rows(data):
    return [y.tolist() for _, y in data]


def test_an_epoch_has_every_row_once_and_rows_stay_together():
    data = batches((X, Y), 3, rng=0)
    assert len(data) == 4
    seen = []
    for x, y in data:
        np.testing.assert_array_equal(x, X[y])
        seen += y.tolist()
    assert sorted(seen) == list(range(10))
    assert seen != list(range(10))


def test_sizes_of_batches():
    assert [len(y) for y in batches(Y, 4, rng=0)] == [4, 4, 2]
    assert [len(y) for y in batches(Y, 4, rng=0, drop_last=True)] == [4, 4]
    assert len(batches(Y, 4, rng=0, drop_last=True)) == 2
    assert len(batches(Y, 100, rng=0)) == 1


def test_without_shuffle_the_rows_come_in_their_order_and_as_copies():
    data = batches(Y, 4, rng=0, shuffle=False)
    assert [y.tolist() for y in data] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    next(iter(data))[:] = -1
    assert Y[0] == 0


def test_an_epochs_order_is_a_function_of_seed_and_epoch():
    one, two = batches((X, Y), 3, rng=7), batches((X, Y), 3, rng=7)
    first, second = rows(one), rows(one)
    assert first != second
    assert [rows(two), rows(two)] == [first, second]
    assert rows(batches((X, Y), 3, rng=8)) != first


def test_a_generator_gives_the_seed_once():
    def epochs():
        rng = np.random.default_rng(3)
        data = batches((X, Y), 3, rng=rng)
        after = rng.random()
        return rows(data), rows(data), after == rng.random()

    assert epochs() == epochs()


def test_a_position_set_again_continues_in_the_middle_of_an_epoch():
    data = batches((X, Y), 3, rng=1)
    rows(data)
    whole = rows(data)
    other = batches((X, Y), 3, rng=99)
    data.position = {"seed": 1, "epoch": 1, "batch": 0}
    for _, _ in zip(range(2), data, strict=False):
        other.position = data.position
    assert other.position == {"seed": 1, "epoch": 1, "batch": 2}
    assert rows(other) == whole[2:]
    assert rows(other) == rows(batches_at(data, 2))


def batches_at(data, epoch):
    data.position = {"seed": 1, "epoch": epoch, "batch": 0}
    return data


def test_the_position_after_an_epoch_is_the_start_of_the_next():
    data = batches(Y, 5, rng=1)
    assert data.position == {"seed": 1, "epoch": 0, "batch": 0}
    list(data)
    assert data.position == {"seed": 1, "epoch": 1, "batch": 0}


def test_an_iteration_that_was_broken_off_is_followed_by_a_whole_epoch():
    data = batches(Y, 3, rng=1)
    next(iter(data))
    assert data.position == {"seed": 1, "epoch": 0, "batch": 1}
    assert sorted(np.concatenate(list(data)).tolist()) == list(range(10))


def test_two_iterations_at_once_are_two_epochs():
    data = batches((X, Y), 3, rng=1)
    pairs = list(zip(data, data, strict=True))
    fresh = batches((X, Y), 3, rng=1)
    assert [a[1].tolist() for a, _ in pairs] == rows(fresh)
    assert [b[1].tolist() for _, b in pairs] == rows(fresh)


def test_a_transform_draws_from_a_generator_of_its_batch():
    def noise(batch, rng):
        return batch[1], rng.random()

    data = batches((X, Y), 3, rng=1, transform=noise)
    draws = [draw for _, draw in data] + [draw for _, draw in data]
    assert len(set(draws)) == 8
    data.position = {"seed": 1, "epoch": 1, "batch": 2}
    assert [draw for _, draw in data] == draws[6:]


def test_a_transforms_draws_are_not_those_of_the_order():
    ((order, drawn),) = batches(Y, 10, rng=1, transform=lambda y, rng: (y, rng.permutation(10)))
    assert order.tolist() != drawn.tolist()


def test_any_tree_of_arrays():
    (batch,) = batches({"image": X, "labels": {"a": Y, "none": None}}, 10, rng=0)
    np.testing.assert_array_equal(batch["image"], X[batch["labels"]["a"]])


def test_a_memmap(tmp_path):
    np.save(tmp_path / "y.npy", Y)
    assert sorted(np.concatenate(list(batches(np.load(tmp_path / "y.npy", mmap_mode="r"), 3, rng=0)))) == list(
        range(10)
    )


def test_rows_of_device_arrays_stay_there(standin_cupy):  # noqa: F811 (the fixture)
    data = batches(standin_cupy.asarray(Y), 3, rng=1)
    host = batches(Y, 3, rng=1)
    for there, here in zip(data, host, strict=True):
        assert isinstance(there, standin_cupy.ndarray)
        np.testing.assert_array_equal(there.get(), here)


@pytest.mark.parametrize(
    ("arrays", "error", "text"),
    [
        ((X, Y[:9]), ShapeError, "equally many rows, got 0: 10, 1: 9"),
        (X[:0], ShapeError, "data set is empty"),
        ((), ShapeError, "data set is empty"),
        ({"x": X, "y": np.float32(1) + np.zeros(())}, DTypeError, "y: expected an array, got float64 array"),
        ({"x": np.zeros(())}, ShapeError, "x: expected an array with a first axis of rows"),
        ([[1.0, 2.0]], DTypeError, r"0\.0: expected an array, got float 1.0; convert it with np.asarray"),
    ],
)
def test_refused_arrays(arrays, error, text):
    with pytest.raises(error, match=text):
        batches(arrays, 2, rng=0)


@pytest.mark.parametrize(
    ("size", "error", "text"),
    [
        (0, ShapeError, "batch_size to be at least 1, got 0"),
        (2.5, DTypeError, "batch_size to be an int, got float 2.5"),
        (True, DTypeError, "batch_size to be an int"),
    ],
)
def test_refused_batch_sizes(size, error, text):
    with pytest.raises(error, match=text):
        batches(X, size, rng=0)


def test_a_drop_last_that_drops_everything():
    with pytest.raises(ShapeError, match="batch_size=11 with drop_last=True leaves no batch of 10 rows"):
        batches(X, 11, rng=0, drop_last=True)


@pytest.mark.parametrize(
    ("rng", "error", "text"),
    [
        (None, DTypeError, "expected rng to be a numpy.random.Generator or an int, got NoneType None"),
        (-1, ShapeError, "expected a seed from 0, got rng=-1"),
    ],
)
def test_refused_seeds(rng, error, text):
    with pytest.raises(error, match=text):
        batches(X, 2, rng=rng)


def test_refused_positions():
    data = batches(X, 4, rng=0)
    with pytest.raises(ShapeError, match="a batch from 0 to 2"):
        data.position = {"seed": 0, "epoch": 0, "batch": 3}
