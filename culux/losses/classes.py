"""Losses as records: ``CrossEntropyLoss(label_smoothing=0.1)``, callable on arrays and as a training objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from culux.backends import Array
from culux.core.record import Record
from culux.errors import LayerError, describe
from culux.losses import functional

__all__ = [
    "BinaryCrossEntropyLoss",
    "CrossEntropyLoss",
    "HingeLoss",
    "HuberLoss",
    "Loss",
    "MAELoss",
    "MSELoss",
    "NegativeLogLikelihoodLoss",
]


class Loss(Record):
    """The base of the losses: a function of `culux.losses` with its options, which are the fields.

    ``loss(y_hat, y)`` is a scalar (or what `reduction` says); as an objective ``loss(layer, ps, st, (x, y))``
    runs the layer and returns ``(loss, st, {})``.
    """

    function: ClassVar[Callable[..., Array]]

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if hasattr(value, "tolist") or isinstance(value, list):  # neither hashes
                object.__setattr__(self, name, _as_tuple(value))

    def __call__(self, *args: Any) -> Any:
        """The loss of a prediction and a target, or the objective; see the class.

        Raises:
            LayerError: for other arguments.
        """
        if len(args) == 2:
            return type(self).function(*args, **vars(self))
        if len(args) != 4:
            raise LayerError(
                f"{type(self).__name__}: expected (y_hat, y) or (layer, ps, st, (x, y)), got {len(args)} arguments"
            )
        layer, ps, st, batch = args
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise LayerError(f"{type(self).__name__}: expected a batch (x, y), got {describe(batch)}")
        x, y = batch
        y_hat, st = layer(x, ps, st)
        return type(self).function(y_hat, y, **vars(self)), st, {}


def _as_tuple(value: Any) -> Any:
    """An array or nested lists as nested tuples."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


class CrossEntropyLoss(Loss):
    """`culux.losses.cross_entropy` with these options.

    Args:
        label_smoothing: see there.
        ignore_index: see there.
        weight: see there; an array becomes a tuple.
        reduction: see there.
        from_probabilities: see there.
    """

    label_smoothing: float = 0.0
    ignore_index: int | None = None
    weight: tuple[float, ...] | None = None
    reduction: str = "mean"
    from_probabilities: bool = False
    function = staticmethod(functional.cross_entropy)


class NegativeLogLikelihoodLoss(Loss):
    """`culux.losses.negative_log_likelihood` with these options.

    Args:
        label_smoothing: see there.
        ignore_index: see there.
        weight: see there; an array becomes a tuple.
        reduction: see there.
    """

    label_smoothing: float = 0.0
    ignore_index: int | None = None
    weight: tuple[float, ...] | None = None
    reduction: str = "mean"
    function = staticmethod(functional.negative_log_likelihood)


class BinaryCrossEntropyLoss(Loss):
    """`culux.losses.binary_cross_entropy` with these options.

    Args:
        label_smoothing: see there.
        weight: see there; an array becomes a tuple.
        pos_weight: see there; an array becomes a tuple.
        reduction: see there.
        from_probabilities: see there.
    """

    label_smoothing: float = 0.0
    weight: tuple[float, ...] | float | None = None
    pos_weight: tuple[float, ...] | float | None = None
    reduction: str = "mean"
    from_probabilities: bool = False
    function = staticmethod(functional.binary_cross_entropy)


class MSELoss(Loss):
    """`culux.losses.mse` with these options.

    Args:
        reduction: see there.
    """

    reduction: str = "mean"
    function = staticmethod(functional.mse)


class MAELoss(Loss):
    """`culux.losses.mae` with these options.

    Args:
        reduction: see there.
    """

    reduction: str = "mean"
    function = staticmethod(functional.mae)


class HuberLoss(Loss):
    """`culux.losses.huber` with these options.

    Args:
        delta: see there.
        reduction: see there.
    """

    delta: float = 1.0
    reduction: str = "mean"
    function = staticmethod(functional.huber)


class HingeLoss(Loss):
    """`culux.losses.hinge` with these options.

    Args:
        reduction: see there.
    """

    reduction: str = "mean"
    function = staticmethod(functional.hinge)
