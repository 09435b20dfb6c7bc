"""Losses as records: ``CrossEntropyLoss(label_smoothing=0.1)``, callable on arrays and as a training objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from culux.backends import Array
from culux.core.record import Record
from culux.errors import LayerError, describe
from culux.losses import entropy, focal, pointwise, similarity
from culux.losses.ctc import ctc

__all__ = [
    "BinaryCrossEntropyLoss",
    "BinaryFocalLoss",
    "CTCLoss",
    "CosineDistanceLoss",
    "CosineEmbeddingLoss",
    "CrossEntropyLoss",
    "DiceCoeffLoss",
    "FocalLoss",
    "GenericLossFunction",
    "HingeLoss",
    "HuberLoss",
    "KLDivergenceLoss",
    "L1Loss",
    "L2Loss",
    "Loss",
    "MAELoss",
    "MSELoss",
    "MSLELoss",
    "NegativeLogLikelihoodLoss",
    "PoissonLoss",
    "SiameseContrastiveLoss",
    "SquaredHingeLoss",
    "TripletMarginLoss",
]


class Loss(Record):
    """The base of the losses: a function of `culux.losses` with its options, which are the fields.

    ``loss(y_hat, y)`` is a scalar (or what `reduction` says); as an objective ``loss(layer, ps, st, (x, y))``
    runs the layer and returns ``(loss, st, {})``. A loss of three arrays takes them from what the layer returns
    followed by `y`, where tuples stand for their elements: ``(layer, ps, st, (x, ()))`` with a layer of three outputs.
    """

    function: ClassVar[Callable[..., Array]]
    arguments: ClassVar[tuple[str, ...]] = ("y_hat", "y")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if hasattr(value, "tolist") or isinstance(value, list):  # neither hashes
                object.__setattr__(self, name, _as_tuple(value))

    def __call__(self, *args: Any) -> Any:
        """The loss of a prediction and a target, or the objective; see the class.

        Raises:
            LayerError: for other arguments.
        """
        name, expected = type(self).__name__, f"({', '.join(self.arguments)})"
        if len(args) == len(self.arguments):
            return type(self).function(*args, **vars(self))
        if len(args) != 4:
            raise LayerError(f"{name}: expected {expected} or (layer, ps, st, (x, y)), got {len(args)} arguments")
        layer, ps, st, batch = args
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise LayerError(f"{name}: expected a batch (x, y), got {describe(batch)}")
        x, y = batch
        y_hat, st = layer(x, ps, st)
        arrays = (y_hat, y) if len(self.arguments) == 2 else (*_elements(y_hat), *_elements(y))
        if len(arrays) != len(self.arguments):
            raise LayerError(
                f"{name}: expected {expected} from what the layer returns followed by y, got {len(arrays)} arrays"
            )
        return type(self).function(*arrays, **vars(self)), st, {}


def _elements(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


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
    function = staticmethod(entropy.cross_entropy)


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
    function = staticmethod(entropy.negative_log_likelihood)


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
    function = staticmethod(entropy.binary_cross_entropy)


class MSELoss(Loss):
    """`culux.losses.mse` with these options.

    Args:
        reduction: see there.
    """

    reduction: str = "mean"
    function = staticmethod(pointwise.mse)


class MAELoss(Loss):
    """`culux.losses.mae` with these options.

    Args:
        reduction: see there.
    """

    reduction: str = "mean"
    function = staticmethod(pointwise.mae)


class HuberLoss(Loss):
    """`culux.losses.huber` with these options.

    Args:
        delta: see there.
        reduction: see there.
    """

    delta: float = 1.0
    reduction: str = "mean"
    function = staticmethod(pointwise.huber)


class HingeLoss(Loss):
    """`culux.losses.hinge` with these options.

    Args:
        reduction: see there.
    """

    reduction: str = "mean"
    function = staticmethod(pointwise.hinge)


class SquaredHingeLoss(Loss):
    """`culux.losses.squared_hinge` with these options.

    Args:
        reduction: see there.
    """

    reduction: str = "mean"
    function = staticmethod(pointwise.squared_hinge)


class MSLELoss(Loss):
    """`culux.losses.msle` with these options.

    Args:
        epsilon: see there.
        reduction: see there.
    """

    epsilon: float = 1e-7
    reduction: str = "mean"
    function = staticmethod(pointwise.msle)


class PoissonLoss(Loss):
    """`culux.losses.poisson` with these options.

    Args:
        log_input: see there.
        epsilon: see there.
        reduction: see there.
    """

    log_input: bool = True
    epsilon: float = 1e-8
    reduction: str = "mean"
    function = staticmethod(pointwise.poisson)


class SiameseContrastiveLoss(Loss):
    """`culux.losses.siamese_contrastive` with these options.

    Args:
        margin: see there.
        reduction: see there.
    """

    margin: float = 1.0
    reduction: str = "mean"
    function = staticmethod(pointwise.siamese_contrastive)


class DiceCoeffLoss(Loss):
    """`culux.losses.dice` with these options.

    Args:
        smooth: see there.
        reduction: see there.
    """

    smooth: float = 1.0
    reduction: str = "mean"
    function = staticmethod(pointwise.dice)


class GenericLossFunction(Loss):
    """`culux.losses.elementwise` with these options.

    Args:
        f: see there.
        reduction: see there.
    """

    f: Callable[[Array, Array], Array]
    reduction: str = "mean"
    function = staticmethod(pointwise.elementwise)


class KLDivergenceLoss(Loss):
    """`culux.losses.kl_divergence` with these options.

    Args:
        label_smoothing: see there.
        reduction: see there.
        from_probabilities: see there.
    """

    label_smoothing: float = 0.0
    reduction: str = "mean"
    from_probabilities: bool = False
    function = staticmethod(entropy.kl_divergence)


class FocalLoss(Loss):
    """`culux.losses.focal` with these options.

    Args:
        gamma: see there.
        weight: see there; an array becomes a tuple.
        reduction: see there.
        from_probabilities: see there.
    """

    gamma: float = 2.0
    weight: tuple[float, ...] | None = None
    reduction: str = "mean"
    from_probabilities: bool = False
    function = staticmethod(focal.focal)


class BinaryFocalLoss(Loss):
    """`culux.losses.binary_focal` with these options.

    Args:
        gamma: see there.
        reduction: see there.
        from_probabilities: see there.
    """

    gamma: float = 2.0
    reduction: str = "mean"
    from_probabilities: bool = False
    function = staticmethod(focal.binary_focal)


class CosineDistanceLoss(Loss):
    """`culux.losses.cosine_distance` with these options.

    Args:
        axis: see there.
        reduction: see there.
    """

    axis: int = -1
    reduction: str = "mean"
    function = staticmethod(similarity.cosine_distance)


class CosineEmbeddingLoss(Loss):
    """`culux.losses.cosine_embedding` with these options.

    Args:
        margin: see there.
        reduction: see there.
    """

    margin: float = 0.0
    reduction: str = "mean"
    arguments = ("a", "b", "y")
    function = staticmethod(similarity.cosine_embedding)


class TripletMarginLoss(Loss):
    """`culux.losses.triplet_margin` with these options.

    Args:
        margin: see there.
        p: see there.
        swap: see there.
        epsilon: see there.
        reduction: see there.
    """

    margin: float = 1.0
    p: float = 2.0
    swap: bool = False
    epsilon: float = 1e-6
    reduction: str = "mean"
    arguments = ("anchor", "positive", "negative")
    function = staticmethod(similarity.triplet_margin)


def _ctc(logits: Array, y: Any, **options: Any) -> Array:
    return ctc(logits, *_elements(y), **options)


class CTCLoss(Loss):
    """`culux.losses.ctc` with these options; `y` is the labels, or ``(labels, lengths)``, or with `label_lengths` too.

    Args:
        blank: see there.
        zero_infinity: see there.
        reduction: see there.
    """

    blank: int = 0
    zero_infinity: bool = False
    reduction: str = "mean"
    function = staticmethod(_ctc)


L1Loss = MAELoss
"""Another name of `MAELoss`."""
L2Loss = MSELoss
"""Another name of `MSELoss`."""
