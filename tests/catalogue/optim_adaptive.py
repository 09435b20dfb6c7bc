"""The adaptive rules, Muon, and rules around others: against torch.optim, else the papers' equations in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from culux import optim
from tests.catalogue.case import RuleCase

BETAS = (0.8, 0.95)


def torch_case(name: str, label: str, rule: Any, spelling: str, **options: Any) -> RuleCase:
    return RuleCase(
        f"culux.optim.{name}", rule, torch=lambda t, x: getattr(t.optim, spelling)(x, **options), label=label
    )


def optimistic(x: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Algorithm 1 of the paper, with the corrected moments of Adam."""
    m, v, last = 0.0, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        step = 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
        x, last = x - 2 * step + last, step
    return x


def belief(x: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Algorithm 2 of the paper."""
    m, s = 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        m = 0.8 * m + 0.2 * g
        s = 0.95 * s + 0.05 * (g - m) ** 2 + 1e-4
        x = x - 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(s / (1 - 0.95**t)) + 1e-4)
    return x


def nesterov(x: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Algorithm 2 of the paper, with a schedule of the momentum; torch rounds the product of all to float32."""
    m, v, product = 0.0, 0.0, 1.0
    for t, g in enumerate(gradients, start=1):
        mu, after = (0.8 * (1 - 0.5 * 0.96 ** (0.1 * i)) for i in (t, t + 1))
        product *= mu
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        direction = after * m / (1 - product * after) + (1 - mu) * g / (1 - product)
        x = x - 0.1 * direction / (np.sqrt(v / (1 - 0.95**t)) + 1e-2)
    return x


def decayed_by_sign(x: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    for g in gradients:
        x = x - 0.1 * (g + 0.3 * np.sign(x))
    return x


def decoupled(x: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Gradient descent on a parameter that shrinks by a share of its own."""
    for g in gradients:
        x = (1 - 0.05) * x - 0.1 * g
    return x


def clipped(x: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    for g in gradients:
        x = x - 0.1 * g * min(1, 1.5 / (np.linalg.norm(g) + 1e-6))
    return x


class Wide:
    """Muon and AdamW of torch side by side, the iteration in the precision of the parameters."""

    def __init__(self, torch: Any, tensors: list[Any]) -> None:
        self.torch = torch
        self.optimizers = [
            torch.optim.Muon([t for t in tensors if t.ndim == 2], lr=0.05, weight_decay=0.2, momentum=0.9),
            torch.optim.AdamW([t for t in tensors if t.ndim != 2], lr=0.01),
        ]

    def step(self) -> None:
        with mock.patch.object(self.torch.Tensor, "bfloat16", lambda tensor: tensor.clone()):
            for optimizer in self.optimizers:
                optimizer.step()


class Every:
    """A torch optimiser that steps at every n-th call, with the mean of the gradients."""

    def __init__(self, n: int, tensors: list[Any], make: Callable[[list[Any]], Any], prepare: Any = None) -> None:
        self.n, self.tensors, self.optimizer, self.prepare = n, tensors, make(tensors), prepare
        self.kept: list[list[Any]] = []

    def step(self) -> None:
        self.kept.append([tensor.grad for tensor in self.tensors])
        if len(self.kept) < self.n:
            return
        for tensor, *gradients in zip(self.tensors, *self.kept, strict=True):
            tensor.grad = sum(gradients) / self.n
        if self.prepare:
            self.prepare(self.tensors)
        self.optimizer.step()
        self.kept = []


CASES: list[Any] = [
    torch_case("CentredRMSProp", "defaults", optim.CentredRMSProp(), "RMSprop", centered=True),
    torch_case(
        "CentredRMSProp", "", optim.CentredRMSProp(0.1, alpha=0.8, epsilon=1e-3),
        "RMSprop", lr=0.1, alpha=0.8, eps=1e-3, centered=True,
    ),
    torch_case("AdaGrad", "defaults", optim.AdaGrad(), "Adagrad"),
    torch_case("AdaGrad", "", optim.AdaGrad(0.1, epsilon=1e-3), "Adagrad", lr=0.1, eps=1e-3),
    torch_case("AdaDelta", "defaults", optim.AdaDelta(), "Adadelta"),
    torch_case("AdaDelta", "", optim.AdaDelta(0.5, rho=0.8, epsilon=1e-3), "Adadelta", lr=0.5, rho=0.8, eps=1e-3),
    torch_case("Rprop", "defaults", optim.Rprop(), "Rprop"),
    torch_case(
        "Rprop", "bounds", optim.Rprop(0.1, etas=(0.3, 1.5), step_sizes=(0.05, 0.2)),
        "Rprop", lr=0.1, etas=(0.3, 1.5), step_sizes=(0.05, 0.2),
    ),
    torch_case("AMSGrad", "defaults", optim.AMSGrad(), "Adam", amsgrad=True),
    torch_case("AMSGrad", "", optim.AMSGrad(0.1, BETAS, 1e-2), "Adam", lr=0.1, betas=BETAS, eps=1e-2, amsgrad=True),
    torch_case("AdaMax", "defaults", optim.AdaMax(), "Adamax"),
    torch_case("AdaMax", "", optim.AdaMax(0.1, BETAS, 1e-2), "Adamax", lr=0.1, betas=BETAS, eps=1e-2),
    torch_case("NAdam", "defaults", optim.NAdam(), "NAdam"),
    RuleCase("culux.optim.NAdam", optim.NAdam(0.1, BETAS, 1e-2, momentum_decay=0.1), reference=nesterov),
    torch_case("RAdam", "defaults", optim.RAdam(), "RAdam"),
    torch_case("RAdam", "", optim.RAdam(0.1, BETAS, 1e-2), "RAdam", lr=0.1, betas=BETAS, eps=1e-2),
    torch_case("RAdam", "never rectified", optim.RAdam(0.1, (0.8, 0.5)), "RAdam", lr=0.1, betas=(0.8, 0.5)),
    RuleCase("culux.optim.OAdam", optim.OAdam(0.1, BETAS), reference=optimistic),
    RuleCase("culux.optim.AdaBelief", optim.AdaBelief(0.1, BETAS, 1e-4), reference=belief),
    RuleCase("culux.optim.Muon", optim.Muon(0.05, 0.9, 0.2, fallback=optim.AdamW(0.01)), torch=Wide),
    RuleCase(
        "culux.optim.Muon", optim.chain(optim.clip_norm(1e6), optim.Muon(0.05, 0.9, 0.2, fallback=optim.AdamW(0.01))),
        torch=Wide, label="in a chain",
    ),
    RuleCase(
        "culux.optim.clip_each_norm", optim.chain(optim.clip_each_norm(1.5), optim.Descent(0.1)), reference=clipped
    ),
    RuleCase(
        "culux.optim.sign_decay", optim.chain(optim.sign_decay(0.3), optim.Descent(0.1)), reference=decayed_by_sign
    ),
    RuleCase(
        "culux.optim.weight_decay", optim.chain(optim.Descent(0.1), optim.weight_decay(0.05)), reference=decoupled,
        label="after the rule",
    ),
    RuleCase(
        "culux.optim.master_weights", optim.chain(optim.Adam(0.1), optim.master_weights()),
        torch=lambda t, x: t.optim.Adam(x, lr=0.1),
    ),
    RuleCase(
        "culux.optim.accumulate", optim.accumulate(3, optim.Adam(0.1)),
        torch=lambda t, x: Every(3, x, lambda x: t.optim.Adam(x, lr=0.1)),
    ),
    RuleCase(
        "culux.optim.accumulate",
        optim.accumulate(4, optim.chain(optim.clip_norm(1.0), optim.weight_decay(0.1), optim.Momentum(0.1))),
        torch=lambda t, x: Every(
            4, x, lambda x: t.optim.SGD(x, lr=0.1, momentum=0.9, weight_decay=0.1),
            lambda tensors: t.nn.utils.clip_grad_norm_(tensors, 1.0),
        ),
        label="a chain",
    ),
    RuleCase(
        "culux.optim.accumulate",
        optim.accumulate(2, optim.groups({"a": optim.Muon(0.05, 0.9, 0.2)}, default=optim.AdamW(0.01))),
        torch=lambda t, x: Every(2, x, lambda x: Wide(t, x)),
        label="groups",
    ),
]  # fmt: skip
