"""`evaluate`: losses and metrics of a data set, and the means over batches of any size."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from culux import tree
from culux.backends import Array, backend_of, is_array
from culux.backends.registry import namespace_of
from culux.core import test_mode
from culux.devices import DeviceIterator, get_device
from culux.devices.iterator import is_iterable
from culux.errors import LayerError, ShapeError, describe
from culux.training.history import COLUMNS
from culux.training.state import TrainState, check_train_state
from culux.training.steps import Objective, call
from culux.tree import Tree

__all__ = ["Means", "accuracy", "evaluate", "on_device"]

Metric = Callable[[Any, Any], Any]


def evaluate(
    objective: Objective, batches: Iterable[Any], ts: TrainState, metrics: Mapping[str, Metric] | None = None
) -> Tree:
    """The loss, the objective's stats and the metrics of a data set, in test mode: means over its rows.

    Args:
        objective: ``objective(layer, ps, st, batch) -> (loss, st, stats)``.
        batches: the data; batches on the host are moved to the model's device.
        ts: the train state; it stays as it is.
        metrics: functions ``metric(y_hat, y)`` by name, for batches ``(x, y)``; `y_hat` is what the layer
            returns. Each is the mean over the rows of its batch, as `accuracy` is.

    Returns:
        ``Tree(loss=..., <stats>, <metrics>)`` of floats; stats that are no scalars, and those named
        like a column of `History`, are left out.

    Raises:
        ShapeError: where there is no batch.
        LayerError: for arguments of another kind or order.
    """
    check_train_state(ts, "evaluate(objective, batches, ts)")
    check_data("batches", batches)
    check_metrics(metrics)
    st = test_mode(ts.states)
    means = Means()
    for batch in on_device(batches, ts):
        loss, _, stats = call(objective, ts.layer, ts.parameters, st, batch)
        values = {"loss": loss, **scalars(stats)}
        if metrics:
            x, y = _pair(batch)
            y_hat, _ = ts.layer(x, ts.parameters, st)
            values |= {name: metric(y_hat, y) for name, metric in metrics.items()}
        means.add(values, batch)
    if not means.count:
        raise no_batch()
    means.read()
    return means.result()


def accuracy(y_hat: Array, y: Array) -> Array:
    """The fraction of rows whose largest entry along the class axis 1 is the label's.

    Args:
        y_hat: logits or probabilities, (N, classes, ...).
        y: integer labels (N, ...), or probabilities of the shape of `y_hat`.

    Returns:
        A float32 scalar.
    """
    xp = namespace_of(y_hat)
    found = xp.argmax(y_hat, axis=1)
    wanted = xp.argmax(y, axis=1) if y.ndim == y_hat.ndim else y
    if tuple(found.shape) != tuple(wanted.shape):
        raise ShapeError(
            f"expected labels of shape {tuple(found.shape)} for predictions of shape {tuple(y_hat.shape)},"
            f" got {describe(y)}; the class axis is 1"
        )
    hits = found == wanted
    return xp.mean(backend_of(hits).astype(hits, "float32"))


class Means:
    """Means of scalars over batches, weighted by their sizes; the scalars stay on the device until `read`."""

    def __init__(self) -> None:
        self.count = 0
        self._pending: list[tuple[Mapping[str, Any], int]] = []
        self._sums: dict[str, float] = {}
        self._weights: dict[str, int] = {}

    def add(self, values: Mapping[str, Any], batch: Any) -> None:
        """Take in the values of one batch."""
        self.count += 1
        self._pending.append((values, size_of(batch)))

    def read(self) -> list[float]:
        """Bring the values to the host, each name's in one transfer; the losses that are new."""
        columns: dict[str, list[tuple[Any, int]]] = {}
        for values, size in self._pending:
            for name, value in values.items():
                columns.setdefault(name, []).append((value, size))
        self._pending = []
        losses: list[float] = []
        for name, column in columns.items():
            numbers = _on_host([value for value, _ in column])
            weights = [size for _, size in column]
            self._sums[name] = self._sums.get(name, 0.0) + math.fsum(map(operator.mul, numbers, weights))
            self._weights[name] = self._weights.get(name, 0) + sum(weights)
            if name == "loss":
                losses = numbers
        return losses

    def result(self) -> Tree:
        """The means of all that was read."""
        return Tree({name: total / self._weights[name] for name, total in self._sums.items()})


def _on_host(values: list[Any]) -> list[float]:
    if all(is_array(value) for value in values):
        backend = backend_of(*values)
        return [float(value) for value in backend.to_host(backend.xp.stack(values))]
    return [float(value) for value in values]


def scalars(stats: Any) -> dict[str, Any]:
    """The entries of an objective's stats that are numbers or arrays of one, and no column of `fit`'s own."""
    if stats is None:
        return {}
    if not isinstance(stats, Mapping):
        raise LayerError(f"expected stats to be a dict of numbers or None, got {describe(stats)}")
    return {
        name: value
        for name, value in stats.items()
        if name not in COLUMNS
        and (isinstance(value, int | float | np.number | np.bool_) or (is_array(value) and value.shape == ()))
    }


def size_of(batch: Any) -> int:
    """The number of rows of a batch: the first axis of its first array; 1 where it has none."""
    first = batch[0] if type(batch) is tuple and batch else None  # the usual case, without a walk over the tree
    if not is_array(first):
        first = next((leaf for leaf in tree.leaves(batch) if is_array(leaf)), None)
    return int(first.shape[0]) if first is not None and first.shape else 1


def on_device(batches: Iterable[Any], ts: TrainState) -> Iterable[Any]:
    """The batches on the device of the parameters."""
    return batches if isinstance(batches, DeviceIterator) else DeviceIterator(get_device(ts.parameters), batches)


def check_data(name: str, batches: Any) -> None:
    """Raise where the argument `name` cannot be iterated."""
    if not is_iterable(batches):
        raise LayerError(
            f"expected {name} to be an iterable of batches, got {describe(batches)};"
            f" {name}=culux.data.batches((x, y), 32, rng=0), or a list"
        )


def check_metrics(metrics: Any) -> None:
    """Raise where the metrics are no dict."""
    if metrics is not None and not isinstance(metrics, Mapping):
        raise LayerError(
            f"expected metrics to be a dict of functions by name, got {describe(metrics)};"
            ' metrics={"accuracy": accuracy}'
        )


def no_batch() -> ShapeError:
    """The error for data that gave nothing."""
    return ShapeError(
        "expected at least one batch, got none: the data set is empty, or an iterator that is used up"
        " (pass what can be iterated again: a list, culux.data.batches)"
    )


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise LayerError(f"metrics need batches (x, y), got {describe(batch)}; compute them in the objective's stats")
    return batch[0], batch[1]
