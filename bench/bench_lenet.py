"""LeNet: two 5x5 convolutions with relu and max pooling, Dense 120-84-10, cross entropy, Adam, batch 128."""

from __future__ import annotations

import functools

import pytest

from bench import ours, peers
from bench.harness import Body, Workload
from bench.problems import LeNet
from bench.recorder import cases, record


def problem(tiny: bool) -> LeNet:
    return LeNet(size=12, channels=(2, 3), widths=(5, 4), batch=4) if tiny else LeNet()


def torch_body(part: str, tiny: bool) -> Body:
    return peers.training_body(problem(tiny), part)


def culux_body(part: str, tiny: bool) -> Body:
    return ours.training_body(problem(tiny), part)


def workload(part: str, goal: float | None) -> Workload:
    bodies = {"torch": torch_body, "culux": culux_body}
    return Workload(f"lenet {part}", {name: functools.partial(body, part) for name, body in bodies.items()}, goal)


WORKLOADS = [workload("gradients", None), workload("step", 1.5)]


@pytest.mark.parametrize(("workload", "library"), cases(WORKLOADS))
def test_lenet(benchmark, workload, library):
    record(benchmark, workload, library)
