"""Losses besides the cross entropies: focal and overlap losses, losses of embeddings, and of sequences."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux import losses
from tests.catalogue.case import Case, fixed, integers, nonzero, normal, uniform

NAME = "culux.losses"
WEIGHT = np.array([0.5, 2.0, 1.0, 0.25])
LABELS = fixed([0, 3, 1, 2, 3])
SIGNS = fixed([1.0, -1.0, 1.0, -1.0, -1.0, 1.0])
CASES: list[Any] = []


def distribution(*shape: int) -> Any:
    """Positive numbers with the sum 1 along axis 1."""

    def make(rng: np.random.Generator) -> np.ndarray:
        p = rng.uniform(0.2, 1.0, shape)
        return p / p.sum(axis=1, keepdims=True)

    return make


def quartic(y_hat: Any, y: Any) -> Any:
    square = (y_hat - y) * (y_hat - y)
    return square * square


def both(function: str, record: Any, inputs: list[Any], **known: Any) -> None:
    """Add a loss with the options of its record, as the function and as the record."""
    options = {name: getattr(record, name) for name in known.pop("options", ())}
    call = getattr(losses, function)
    CASES.append(Case(f"{NAME}.{function}", lambda *arrays: call(*arrays, **options), inputs, **known))
    CASES.append(Case(f"{NAME}.{type(record).__name__}", record, inputs, **known))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def focal(x: np.ndarray, y: np.ndarray) -> np.floating[Any]:
    p = softmax(x)[np.arange(len(y)), y]
    return np.mean(-WEIGHT[y] * (1 - p) ** 1.5 * np.log(p))


def binary_focal(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -y * (1 - p) ** 2 * np.log(p) - (1 - y) * p**2 * np.log(1 - p)


def dice(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array(
        [1 - (2 * (a * b).sum() + 1) / ((a * a).sum() + (b * b).sum() + 1) for a, b in zip(x, y, strict=True)]
    )


def kl_divergence(torch: Any, x: Any, y: Any) -> Any:
    return torch.nn.functional.kl_div(torch.log_softmax(x, 1), y, reduction="batchmean")


def cosine(torch: Any, a: Any, b: Any) -> Any:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


both(
    "squared_hinge",
    losses.SquaredHingeLoss(),
    [nonzero(6, kinks=(-1.0, 1.0)), SIGNS],
    reference=lambda x, y: np.mean(np.maximum(0, 1 - y * x) ** 2),
)
both(
    "msle",
    losses.MSLELoss(),
    [uniform(0.5, 2, 4, 3), uniform(0.5, 2, 4, 3)],
    reference=lambda x, y: np.mean(np.log((x + 1e-7) / (y + 1e-7)) ** 2),
)
both(
    "poisson",
    losses.PoissonLoss(),
    [normal(4, 3), uniform(0, 3, 4, 3)],
    torch=lambda torch, x, y: torch.nn.functional.poisson_nll_loss(x, y),
)
both(
    "poisson",
    losses.PoissonLoss(log_input=False, reduction="sum"),
    [uniform(0.5, 2, 4, 3), integers(5, 4, 3)],
    options=("log_input", "reduction"),
    label="rates",
    torch=lambda torch, x, y: torch.nn.functional.poisson_nll_loss(x, y, log_input=False, reduction="sum"),
)
both(
    "siamese_contrastive",
    losses.SiameseContrastiveLoss(margin=1.5),
    [uniform(0, 3, 8), uniform(0, 1, 8)],
    options=("margin",),
    reference=lambda d, y: np.mean((1 - y) * d**2 + y * np.maximum(0, 1.5 - d) ** 2),
)
both(
    "dice",
    losses.DiceCoeffLoss(reduction="none"),
    [uniform(0, 1, 3, 2, 4), uniform(0, 1, 3, 2, 4)],
    options=("reduction",),
    reference=dice,
)
both(
    "dice",
    losses.DiceCoeffLoss(smooth=0.5),
    [uniform(0, 1, 5), integers(2, 5)],
    options=("smooth",),
    label="vector",
    reference=lambda x, y: 1 - (2 * (x * y).sum() + 0.5) / ((x * x).sum() + (y * y).sum() + 0.5),
)
both(
    "elementwise",
    losses.GenericLossFunction(quartic),
    [normal(4, 3), normal(4, 3)],
    options=("f",),
    reference=lambda x, y: np.mean((x - y) ** 4),
)
both("kl_divergence", losses.KLDivergenceLoss(), [normal(5, 4), distribution(5, 4)], torch=kl_divergence)
both(
    "kl_divergence",
    losses.KLDivergenceLoss(from_probabilities=True, reduction="sum"),
    [distribution(5, 4, 2), distribution(5, 4, 2)],
    options=("from_probabilities", "reduction"),
    label="probabilities",
    torch=lambda torch, x, y: torch.nn.functional.kl_div(torch.log(x), y, reduction="sum"),
)
both(
    "focal",
    losses.FocalLoss(gamma=1.5, weight=WEIGHT),
    [normal(5, 4), LABELS],
    options=("gamma", "weight"),
    reference=focal,
)
both(
    "focal",
    losses.FocalLoss(gamma=0.0),
    [normal(5, 4, 2), distribution(5, 4, 2)],
    options=("gamma",),
    label="no gamma",
    torch=lambda torch, x, y: -(torch.log_softmax(x, 1) * y).sum(1).mean(),
)
both(
    "focal",
    losses.FocalLoss(from_probabilities=True, reduction="sum"),
    [distribution(5, 4), distribution(5, 4)],
    options=("from_probabilities", "reduction"),
    label="probabilities",
    reference=lambda x, y: np.sum(-y * (1 - x) ** 2 * np.log(x)),
)
both(
    "binary_focal",
    losses.BinaryFocalLoss(),
    [normal(3, 4), uniform(0, 1, 3, 4)],
    reference=lambda x, y: binary_focal(1 / (1 + np.exp(-x)), y).mean(),
)
both(
    "binary_focal",
    losses.BinaryFocalLoss(from_probabilities=True, reduction="none"),
    [uniform(0, 1, 3, 4), integers(2, 3, 4)],
    options=("from_probabilities", "reduction"),
    label="probabilities",
    reference=binary_focal,
)
CASES.append(Case(f"{NAME}.cosine_similarity", losses.cosine_similarity, [normal(4, 3), normal(4, 3)], torch=cosine))
CASES.append(
    Case(
        f"{NAME}.cosine_similarity",
        lambda a, b: losses.cosine_similarity(a, b, axis=1),
        [normal(2, 3, 5), normal(2, 3, 5)],
        label="axis 1",
        torch=lambda torch, a, b: torch.nn.functional.cosine_similarity(a, b),
    )
)
both(
    "cosine_distance",
    losses.CosineDistanceLoss(),
    [normal(4, 3), normal(4, 3)],
    torch=lambda torch, a, b: (1 - cosine(torch, a, b)).mean(),
)
both(
    "cosine_embedding",
    losses.CosineEmbeddingLoss(margin=0.1),
    [normal(6, 3), normal(6, 3), SIGNS],
    options=("margin",),
    differentiable=(0, 1),
    why="y says which pairs belong together",
    torch=lambda torch, a, b, y: torch.nn.functional.cosine_embedding_loss(a, b, y, margin=0.1),
)
for options in ({}, {"p": 3.0, "swap": True, "margin": 2.0}):
    both(
        "triplet_margin",
        losses.TripletMarginLoss(**options),
        [normal(6, 3), normal(6, 3), normal(6, 3)],
        options=tuple(options),
        label="options" if options else "",
        torch=lambda torch, a, p, n, options=options: torch.nn.functional.triplet_margin_loss(a, p, n, **options),
    )


def ctc(torch: Any, x: Any, y: Any) -> Any:
    """torch's, time first, with the lengths that the places with -1 say."""
    log_p = torch.log_softmax(x, 2).transpose(0, 1)
    steps = torch.full((len(y),), x.shape[1])
    return torch.nn.functional.ctc_loss(log_p, y.clamp(min=0), steps, (y >= 0).sum(1))


def ctc_lengths(torch: Any, x: Any, y: Any, steps: Any, counts: Any) -> Any:
    log_p = torch.log_softmax(x, 2).transpose(0, 1)
    return torch.nn.functional.ctc_loss(log_p, y, steps, counts, blank=3, reduction="none")


PADDED = fixed([[1, 2, 2], [3, -1, -1], [1, 1, -1]])
LENGTHS = [normal(3, 7, 4), fixed([[1, 2, 2], [0, 1, 1], [2, 0, 1]]), fixed([7, 5, 4]), fixed([3, 2, 0])]
both("ctc", losses.CTCLoss(), [normal(3, 7, 4), PADDED], torch=ctc, gradient_tolerance=10.0)
CASES.append(
    Case(
        f"{NAME}.ctc",
        lambda *a: losses.ctc(*a, blank=3, reduction="none"),
        LENGTHS,
        torch=ctc_lengths,
        label="lengths",
        gradient_tolerance=10.0,
    )
)
CASES.append(
    Case(
        f"{NAME}.CTCLoss",
        lambda x, *y: losses.CTCLoss(blank=3, reduction="none")(x, y),
        LENGTHS,
        torch=ctc_lengths,
        label="lengths",
        gradient_tolerance=10.0,
    )
)
