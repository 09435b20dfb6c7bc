"""The losses: against torch.nn.functional, and float64 formulas where torch has none."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux import losses
from tests.catalogue import losses_other
from tests.catalogue.case import Case, fixed, integers, nonzero, normal, uniform
from tests.catalogue.losses_other import LABELS, SIGNS, WEIGHT, distribution

SPATIAL = integers(4, 5, 2)


def cross_entropy(label: str, prediction: Any, labels: Any, **options: Any) -> Case:
    """`cross_entropy` with options, against torch's; differentiated in probability labels too."""

    def torch_form(torch: Any, x: Any, y: Any) -> Any:
        named = dict(options)
        if "ignore_index" in named and named["ignore_index"] is None:
            del named["ignore_index"]
        if "weight" in named:
            named["weight"] = torch.tensor(np.asarray(named["weight"]), dtype=x.dtype)
        return torch.nn.functional.cross_entropy(x, y, **named)

    return Case(
        "culux.losses.cross_entropy",
        lambda x, y: losses.cross_entropy(x, y, **options),
        [prediction, labels],
        torch=torch_form,
        label=label,
    )


def negative_log_likelihood(x: np.ndarray, y: np.ndarray) -> np.floating[Any]:
    picked = x[np.arange(len(y)), y]
    return -(picked * WEIGHT[y]).sum() / WEIGHT[y].sum()


def probabilities(x: np.ndarray, y: np.ndarray) -> np.floating[Any]:
    return -np.log(x[np.arange(len(y)), y]).mean()


def hinge(x: np.ndarray, y: np.ndarray) -> np.floating[Any]:
    return np.maximum(0, 1 - y * x).mean()


NAME = "culux.losses"

CASES: list[Any] = [
    cross_entropy("integers", normal(5, 4), LABELS),
    cross_entropy("spatial", normal(5, 4, 2), SPATIAL),
    cross_entropy("probabilities", normal(5, 4), distribution(5, 4)),
    cross_entropy("smoothing", normal(5, 4), LABELS, label_smoothing=0.2),
    cross_entropy("ignored", normal(5, 4), LABELS, ignore_index=3),
    cross_entropy("weight", normal(5, 4), LABELS, weight=tuple(WEIGHT)),
    cross_entropy("weight of probabilities", normal(5, 4), distribution(5, 4), weight=tuple(WEIGHT)),
    cross_entropy("everything", normal(5, 4, 2), SPATIAL, weight=tuple(WEIGHT), ignore_index=1, label_smoothing=0.3),
    cross_entropy("sum", normal(5, 4), LABELS, reduction="sum", ignore_index=0),
    cross_entropy("none", normal(5, 4), LABELS, reduction="none", ignore_index=0, weight=tuple(WEIGHT)),
    cross_entropy("large logits", normal(5, 4, scale=300.0), LABELS),
    Case(
        f"{NAME}.cross_entropy",
        lambda x, y: losses.cross_entropy(x, y, from_probabilities=True),
        [distribution(5, 4), LABELS],
        reference=probabilities,
        label="from probabilities",
    ),
    Case(
        f"{NAME}.CrossEntropyLoss",
        losses.CrossEntropyLoss(label_smoothing=0.1, ignore_index=3),
        [normal(5, 4), LABELS],
        torch=lambda torch, x, y: torch.nn.functional.cross_entropy(x, y, label_smoothing=0.1, ignore_index=3),
    ),
    Case(
        f"{NAME}.negative_log_likelihood",
        lambda x, y: losses.negative_log_likelihood(x, y, weight=tuple(WEIGHT)),
        [normal(5, 4), LABELS],
        reference=negative_log_likelihood,
        torch=lambda torch, x, y: torch.nn.functional.nll_loss(x, y, weight=torch.tensor(WEIGHT, dtype=x.dtype)),
    ),
    Case(
        f"{NAME}.NegativeLogLikelihoodLoss",
        losses.NegativeLogLikelihoodLoss(weight=WEIGHT),
        [normal(5, 4), LABELS],
        reference=negative_log_likelihood,
    ),
    Case(
        f"{NAME}.binary_cross_entropy",
        losses.binary_cross_entropy,
        [normal(3, 2), uniform(0, 1, 3, 2)],
        torch=lambda torch, x, y: torch.nn.functional.binary_cross_entropy_with_logits(x, y),
    ),
    Case(
        f"{NAME}.binary_cross_entropy",
        lambda x, y: losses.binary_cross_entropy(x, y, weight=(0.5, 2.0), pos_weight=3.0, reduction="sum"),
        [normal(3, 2), uniform(0, 1, 3, 2)],
        torch=lambda torch, x, y: torch.nn.functional.binary_cross_entropy_with_logits(
            x, y, weight=x.new_tensor([0.5, 2.0]), pos_weight=x.new_tensor(3.0), reduction="sum"
        ),
        label="weights",
    ),
    Case(
        f"{NAME}.binary_cross_entropy",
        lambda x, y: losses.binary_cross_entropy(x, y, from_probabilities=True),
        [uniform(0, 1, 3, 2), uniform(0, 1, 3, 2)],
        torch=lambda torch, x, y: torch.nn.functional.binary_cross_entropy(x, y),
        label="from probabilities",
    ),
    Case(
        f"{NAME}.binary_cross_entropy",
        lambda x, y: losses.binary_cross_entropy(x, y, label_smoothing=0.2),
        [normal(4), integers(2, 4)],
        reference=lambda x, y: np.mean(np.log1p(np.exp(x)) - x * (y * 0.8 + 0.1)),
        label="smoothing of integers",
    ),
    Case(
        f"{NAME}.BinaryCrossEntropyLoss",
        losses.BinaryCrossEntropyLoss(reduction="none"),
        [normal(3, 2), uniform(0, 1, 3, 2)],
        torch=lambda torch, x, y: torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none"),
    ),
    Case(f"{NAME}.hinge", losses.hinge, [nonzero(6, kinks=(-1.0, 1.0)), SIGNS], reference=hinge),
    Case(f"{NAME}.HingeLoss", losses.HingeLoss(), [nonzero(6, kinks=(-1.0, 1.0)), SIGNS], reference=hinge),
]


def elementwise(name: str, record: Any, torch_name: str, second: Any, **options: Any) -> None:
    """Add a loss of a prediction and a target of one shape, as a function and as a record."""
    inputs = [second, fixed(np.zeros((4, 3)))]
    function = getattr(losses, name)

    def torch_form(torch: Any, x: Any, y: Any) -> Any:
        return getattr(torch.nn.functional, torch_name)(x, y, **options)

    CASES.extend(
        [
            Case(f"{NAME}.{name}", lambda x, y: function(x, y, **options), inputs, torch=torch_form),
            Case(f"{NAME}.{type(record).__name__}", record, inputs, torch=torch_form),
        ]
    )


elementwise("mse", losses.MSELoss(), "mse_loss", normal(4, 3))
elementwise("mae", losses.MAELoss(), "l1_loss", nonzero(4, 3))
elementwise("huber", losses.HuberLoss(delta=1.5), "huber_loss", nonzero(4, 3, kinks=(-1.5, 1.5)), delta=1.5)

CASES += losses_other.CASES

WITHOUT_ENTRY = {"Loss": "the base of the records, each of which has an entry; tests/test_losses.py"}
