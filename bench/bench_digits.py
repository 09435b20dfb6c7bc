"""Digits end to end: 64-128-128-10 with BatchNorm and relu, batch 64, 20 epochs of Adam, shuffling included.

Every library starts from the same values, sees the same batches and ends with the accuracy on the test data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from bench import floor, ours, peers
from bench.harness import Body, Workload
from bench.problems import DIGITS, digits
from bench.recorder import cases, record


def arguments(tiny: bool) -> tuple[Any, int]:
    """The data and the number of epochs."""
    x, labels, test_x, test_labels = digits()
    return ((x[:150], labels[:150], test_x, test_labels), 2) if tiny else ((x, labels, test_x, test_labels), 20)


def torch_body(tiny: bool, **adam: Any) -> Body:
    data, epochs = arguments(tiny)
    return peers.digits_body(DIGITS, data, ours.orders(len(data[0]), DIGITS.batch, epochs), **adam)


def torch_fused_body(tiny: bool) -> Body:
    return torch_body(tiny, fused=True)


def culux_body(tiny: bool) -> Body:
    return ours.digits_body(DIGITS, *arguments(tiny))


def numpy_body(tiny: bool) -> Body:
    data, epochs = arguments(tiny)
    return floor.digits_body(DIGITS, data, ours.orders(len(data[0]), DIGITS.batch, epochs))


def accuracies(outcomes: Mapping[str, float]) -> str:
    return "test accuracy " + ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in sorted(outcomes.items()))


WORKLOADS = [
    Workload(
        "digits",
        {"torch": torch_body, "culux": culux_body, "torch_fusedadam": torch_fused_body, "numpy": numpy_body},
        goal=0.45,
        note=accuracies,
    )
]


@pytest.mark.parametrize(("workload", "library"), cases(WORKLOADS))
def test_digits(benchmark, workload, library):
    record(benchmark, workload, library)
