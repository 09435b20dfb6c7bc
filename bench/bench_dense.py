"""One Dense layer n -> n at batch 128: forward and backward, with the gradients of parameters and input."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import culux
from bench import ours, peers
from bench.harness import Body, Workload
from bench.problems import MLP
from bench.recorder import cases, record


def arrays(n: int, tiny: bool) -> tuple[np.ndarray, ...]:
    """weight, bias, x, dy."""
    problem = MLP(widths=(n, n), batch=4 if tiny else 128)
    rng = np.random.default_rng(2)
    return *problem.parameters(), problem.data()[0], rng.standard_normal((problem.batch, n), dtype=np.float32)


def torch_body(n: int, activation: str, tiny: bool) -> Body:
    return peers.dense_body(*arrays(n, tiny), activation)


def culux_body(n: int, activation: str, tiny: bool) -> Body:
    weight, bias, x, dy = arrays(n, tiny)
    layer = culux.Dense(n, n, getattr(culux, activation))
    return ours.layer_body(layer, weight, bias, x, dy)


def workload(n: int, activation: str) -> Workload:
    bodies = {"torch": torch_body, "culux": culux_body}
    return Workload(
        f"dense {activation} {n}", {name: functools.partial(body, n, activation) for name, body in bodies.items()}
    )


WORKLOADS = [workload(n, activation) for n in (16, 128, 512) for activation in ("relu", "gelu")]


@pytest.mark.parametrize(("workload", "library"), cases(WORKLOADS))
def test_dense(benchmark, workload, library):
    record(benchmark, workload, library)
