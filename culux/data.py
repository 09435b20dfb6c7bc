"""Batches of arrays, in an order that a run can take up again where it was left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from culux import tree
from culux.backends import Array, backend_of, is_array
from culux.errors import DTypeError, ShapeError, describe
from culux.tree import Tree

__all__ = ["Batches", "batches"]

Transform = Callable[[Any, np.random.Generator], Any]


def batches(
    arrays: Any,
    batch_size: int,
    *,
    rng: np.random.Generator | int,
    shuffle: bool = True,
    drop_last: bool = False,
    transform: Transform | None = None,
) -> Batches:
    """Batches of the rows of arrays, to be iterated once per epoch.

    The order of an epoch is a function of the seed and the epoch's number alone, so that a run which is
    resumed sees the rows that it would have seen.

    Args:
        arrays: an array, or a tree of arrays such as ``(x, y)``, with equal first axes.
        batch_size: how many rows a batch has; the last one of an epoch may have fewer.
        rng: an int, which is the seed, or a `numpy.random.Generator`, from which one is drawn.
        shuffle: a new order of the rows for each epoch; else their own.
        drop_last: leave out a last batch with fewer rows.
        transform: ``transform(batch, rng) -> batch``, with a generator of each batch's own.

    Returns:
        A `Batches`: iterable again and again, with a length and a position.

    Raises:
        ShapeError: for first axes that differ, no rows, a `batch_size` below 1 or no batch at all.
        DTypeError: for a leaf that is no array, or an rng or batch size of another type.
    """
    return Batches(arrays, batch_size, _seed(rng), shuffle, drop_last, transform)


class Batches:
    """What `batches` returns. Each iteration is an epoch; ``len`` is the number of batches in one."""

    def __init__(
        self, arrays: Any, batch_size: int, seed: int, shuffle: bool, drop_last: bool, transform: Transform | None
    ) -> None:
        self._arrays = arrays
        self._rows = _common_length(arrays)
        self._batch_size = _checked_size(batch_size, self._rows, drop_last)
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._transform = transform
        self._seed, self._epoch, self._batch = seed, 0, 0
        self._epoch_of_next_iteration = 0

    @property
    def position(self) -> Tree:
        """The batch that comes next: ``Tree(seed=int, epoch=int, batch=int)``.

        Set to a position that was read before, the next iteration begins there, in the middle of an epoch
        too. An iteration that was broken off is not taken up again by itself: the next one is a new epoch.
        """
        return Tree(seed=self._seed, epoch=self._epoch, batch=self._batch)

    @position.setter
    def position(self, position: Mapping[str, int]) -> None:
        place = Tree(position)
        if place.epoch < 0 or not 0 <= place.batch < len(self):
            raise ShapeError(f"expected a position with a batch from 0 to {len(self) - 1}, got {place}")
        self._seed, self._epoch, self._batch = place.seed, place.epoch, place.batch
        self._epoch_of_next_iteration = self._epoch

    def __len__(self) -> int:
        whole, rest = divmod(self._rows, self._batch_size)
        return whole + (rest > 0 and not self._drop_last)

    def __iter__(self) -> Iterator[Any]:
        seed, epoch = self._seed, self._epoch_of_next_iteration
        first = self._batch if self._epoch == epoch else 0
        self._epoch_of_next_iteration = epoch + 1
        order = _generator(seed, epoch).permutation(self._rows) if self._shuffle else None
        for batch in range(first, len(self)):
            last = batch + 1 == len(self)
            self._epoch, self._batch = (epoch + 1, 0) if last else (epoch, batch + 1)
            yield self._take(seed, epoch, batch, order)

    def _take(self, seed: int, epoch: int, batch: int, order: np.ndarray | None) -> Any:
        start = batch * self._batch_size
        stop = min(start + self._batch_size, self._rows)
        rows = np.arange(start, stop) if order is None else order[start:stop]
        taken = tree.map(lambda array: _rows_of(array, rows), self._arrays)
        if self._transform is None:
            return taken
        return self._transform(taken, _generator(seed, epoch, batch))


def _rows_of(array: Array, rows: np.ndarray) -> Array:
    """A copy of some rows of an array, on its device."""
    if type(array) is np.ndarray:
        return array.take(rows, axis=0)
    backend = backend_of(array)
    return backend.xp.take(array, backend.from_host(rows, backend.place_of(array).index), axis=0)


def _generator(seed: int, *place: int) -> np.random.Generator:
    """The generator of an epoch, or of a batch in it: a spawn key, since [s, e] and [s, e, 0] seed the same."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=place))


def _seed(rng: Any) -> int:
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63))
    if not isinstance(rng, int | np.integer) or isinstance(rng, bool):
        raise DTypeError(f"expected rng to be a numpy.random.Generator or an int, got {describe(rng)}; rng=0")
    if rng < 0:
        raise ShapeError(f"expected a seed from 0, got rng={rng}")
    return int(rng)


def _common_length(arrays: Any) -> int:
    """The length of the first axis of all arrays."""
    lengths: dict[str, int] = {}
    for path, leaf in tree.leaves_with_path(arrays):
        name = path or "the array"
        if not is_array(leaf):
            raise DTypeError(f"{name}: expected an array, got {describe(leaf)}; convert it with np.asarray")
        if not leaf.shape:
            raise ShapeError(f"{name}: expected an array with a first axis of rows, got {describe(leaf)}")
        lengths[name] = leaf.shape[0]
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ShapeError(f"expected arrays with equally many rows, got {listed}")
    if not any(lengths.values()):
        raise ShapeError("the data set is empty: expected arrays with at least one row")
    return next(iter(lengths.values()))


def _checked_size(batch_size: Any, rows: int, drop_last: bool) -> int:
    if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool):
        raise DTypeError(f"expected batch_size to be an int, got {describe(batch_size)}")
    if batch_size < 1:
        raise ShapeError(f"expected batch_size to be at least 1, got {batch_size}")
    if drop_last and batch_size > rows:
        raise ShapeError(f"batch_size={batch_size} with drop_last=True leaves no batch of {rows} rows")
    return int(batch_size)
