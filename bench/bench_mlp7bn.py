"""mlp7bn: 32-256x6-10 with BatchNorm and relu after each hidden layer, cross entropy, Adam, batch 256."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from bench import floor, ours, peers
from bench.harness import Body, Workload
from bench.problems import EPOCH, MLP, MLP7BN
from bench.recorder import cases, record


def problem(tiny: bool) -> MLP:
    return dataclasses.replace(MLP7BN, widths=(5, 6, 7, 4), batch=8) if tiny else MLP7BN


def torch_body(part: str, tiny: bool) -> Body:
    return peers.training_body(problem(tiny), part)


def torch_fused_body(part: str, tiny: bool) -> Body:
    return peers.training_body(problem(tiny), part, fused=True)


def culux_body(part: str, tiny: bool) -> Body:
    return ours.training_body(problem(tiny), part)


def numpy_body(part: str, tiny: bool) -> Body:
    return floor.mlp_body(problem(tiny), part)


def workload(part: str, goal: float | None) -> Workload:
    bodies = {"torch": torch_body, "culux": culux_body, "numpy": numpy_body}
    if part in ("step", "epoch"):
        bodies["torch_fusedadam"] = torch_fused_body
    name = f"mlp7bn {EPOCH} steps of fit" if part == "epoch" else f"mlp7bn {part}"
    return Workload(name, {name: functools.partial(body, part) for name, body in bodies.items()}, goal)


WORKLOADS = [
    workload("forward", None),
    workload("gradients", None),
    workload("step", 0.95),
    workload("epoch", 0.95),
]


@pytest.mark.parametrize(("workload", "library"), cases(WORKLOADS))
def test_mlp7bn(benchmark, workload, library):
    record(benchmark, workload, library)
