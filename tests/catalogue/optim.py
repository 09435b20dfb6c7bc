"""The update rules: against torch.optim where it has them, else against the paper's equations in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from culux import optim
from culux.optim import schedules
from tests.catalogue import optim_adaptive
from tests.catalogue.case import RuleCase


class Before:
    """A torch optimiser with something done to its tensors before every step."""

    def __init__(self, prepare: Callable[[list[Any]], Any], optimizer: Any) -> None:
        self.prepare = prepare
        self.optimizer = optimizer
        self.tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]

    def step(self) -> None:
        self.prepare(self.tensors)
        self.optimizer.step()


def lion(x: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Algorithm 2 of the paper, without weight decay."""
    m = np.zeros_like(x)
    for g in gradients:
        x = x - 0.01 * np.sign(0.8 * m + (1 - 0.8) * g)
        m = 0.95 * m + (1 - 0.95) * g
    return x


def scheduled_descent(x: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    for step, g in enumerate(gradients):
        x = x - 0.1 * (1 + math.cos(math.pi * min(step / 15, 1))) / 2 * g
    return x


def clipped(torch: Any, tensors: list[Any], maximum: float) -> Any:
    return Before(lambda t: torch.nn.utils.clip_grad_norm_(t, maximum), torch.optim.SGD(tensors, lr=0.1))


def decayed_then_clipped(torch: Any, tensors: list[Any]) -> Any:
    def prepare(t: list[Any]) -> None:
        for tensor in t:
            tensor.grad += 0.1 * tensor.detach()
        torch.nn.utils.clip_grad_norm_(t, 1.0)

    return Before(prepare, torch.optim.SGD(tensors, lr=0.1, momentum=0.9))


def two_groups(torch: Any, tensors: list[Any]) -> Any:
    """Adam for the first leaf, SGD for the others."""
    first, second = torch.optim.Adam(tensors[:1], lr=0.01), torch.optim.SGD(tensors[1:], lr=0.1, momentum=0.9)

    class Both:
        def step(self) -> None:
            first.step()
            second.step()

    return Both()


GROUPS = optim.groups({"b.*": optim.Momentum(0.1)}, default=optim.Adam(0.01))

CASES: list[Any] = [
    RuleCase("culux.optim.Descent", optim.Descent(0.1), torch=lambda t, x: t.optim.SGD(x, lr=0.1)),
    RuleCase("culux.optim.Descent", optim.Descent(), torch=lambda t, x: t.optim.SGD(x), label="defaults"),
    RuleCase(
        "culux.optim.Descent", optim.Descent(schedules.cosine(0.1, 15)), reference=scheduled_descent, label="cosine"
    ),
    RuleCase("culux.optim.Momentum", optim.Momentum(0.1, 0.8), torch=lambda t, x: t.optim.SGD(x, lr=0.1, momentum=0.8)),
    RuleCase(
        "culux.optim.Nesterov",
        optim.Nesterov(0.1, 0.8),
        torch=lambda t, x: t.optim.SGD(x, lr=0.1, momentum=0.8, nesterov=True),
    ),
    RuleCase("culux.optim.RMSProp", optim.RMSProp(), torch=lambda t, x: t.optim.RMSprop(x), label="defaults"),
    RuleCase(
        "culux.optim.RMSProp",
        optim.RMSProp(0.1, alpha=0.8, epsilon=1e-3),
        torch=lambda t, x: t.optim.RMSprop(x, lr=0.1, alpha=0.8, eps=1e-3),
    ),
    RuleCase("culux.optim.Adam", optim.Adam(), torch=lambda t, x: t.optim.Adam(x), label="defaults"),
    RuleCase(
        "culux.optim.Adam",
        optim.Adam(0.1, betas=(0.8, 0.95), epsilon=1e-2),
        torch=lambda t, x: t.optim.Adam(x, lr=0.1, betas=(0.8, 0.95), eps=1e-2),
    ),
    RuleCase("culux.optim.AdamW", optim.AdamW(), torch=lambda t, x: t.optim.AdamW(x), label="defaults"),
    RuleCase(
        "culux.optim.AdamW",
        optim.AdamW(0.1, weight_decay=0.5),
        torch=lambda t, x: t.optim.AdamW(x, lr=0.1, weight_decay=0.5),
    ),
    RuleCase("culux.optim.Lion", optim.Lion(0.01, betas=(0.8, 0.95)), reference=lion),
    RuleCase(
        "culux.optim.weight_decay",
        optim.chain(optim.weight_decay(0.1), optim.Adam(0.1)),
        torch=lambda t, x: t.optim.Adam(x, lr=0.1, weight_decay=0.1),
    ),
    RuleCase(
        "culux.optim.clip_value",
        optim.chain(optim.clip_value(0.5), optim.Descent(0.1)),
        torch=lambda t, x: Before(lambda g: t.nn.utils.clip_grad_value_(g, 0.5), t.optim.SGD(x, lr=0.1)),
    ),
    RuleCase(
        "culux.optim.clip_norm",
        optim.chain(optim.clip_norm(1.0), optim.Descent(0.1)),
        torch=lambda t, x: clipped(t, x, 1.0),
    ),
    RuleCase(
        "culux.optim.clip_norm",
        optim.chain(optim.clip_norm(100.0), optim.Descent(0.1)),
        torch=lambda t, x: clipped(t, x, 100.0),
        label="not reached",
    ),
    RuleCase(
        "culux.optim.chain",
        optim.chain(optim.weight_decay(0.1), optim.clip_norm(1.0), optim.Momentum(0.1)),
        torch=decayed_then_clipped,
    ),
    RuleCase("culux.optim.groups", GROUPS, torch=two_groups),
    RuleCase(
        "culux.optim.groups",
        optim.chain(optim.clip_norm(1.0), GROUPS),
        torch=lambda t, x: Before(lambda _: t.nn.utils.clip_grad_norm_(x, 1.0), Steps(two_groups(t, x))),
        label="one norm over all groups",
    ),
]


class Steps:
    """A torch optimiser as `Before` wants it."""

    param_groups: tuple[Any, ...] = ()

    def __init__(self, optimizer: Any) -> None:
        self.step = optimizer.step


CASES += optim_adaptive.CASES

WITHOUT_ENTRY = {
    "DynamicLossScale": "a factor on the loss, no rule; tests/test_loss_scale.py has torch's",
    "OptimizerState": "made by setup and moved on by update, which every entry runs; tests/test_optim_state.py",
    "Rule": "the base of the rules; tests/test_optim_rules.py has a user's rule",
    "adjust": "a function of the state; tests/test_optim_state.py",
    "destructure": "tests/test_destructure.py",
    "freeze": "a function of the state; tests/test_optim_state.py",
    "moving_average": "a function of parameters; tests/test_optim_adaptive.py",
    "schedules": "a module; tests/test_schedules.py",
    "setup": "every entry runs it",
    "thaw": "a function of the state; tests/test_optim_state.py",
    "update": "every entry runs it",
    "update_in_place": "a function of the state; tests/test_optim_updates.py",
}
