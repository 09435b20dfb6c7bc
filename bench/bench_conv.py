"""One 3x3 convolution at 64x64 and batch 16: forward and backward, with the gradients of parameters and input."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import culux
from bench import ours, peers
from bench.harness import Body, Workload
from bench.recorder import cases, record

GOALS = {4: 0.5, 32: 1.8, 64: 1.2}  # by channels


def arrays(channels: int, tiny: bool) -> tuple[np.ndarray, ...]:
    """weight, bias, x, dy."""
    rng, size, bound = np.random.default_rng(2), 8 if tiny else 64, (9 * channels) ** -0.5
    x, dy = rng.standard_normal((2, 2 if tiny else 16, channels, size, size), dtype=np.float32)
    weight = rng.uniform(-bound, bound, (channels, channels, 3, 3)).astype(np.float32)
    return weight, rng.uniform(-bound, bound, channels).astype(np.float32), x, dy


def torch_body(channels: int, tiny: bool) -> Body:
    return peers.conv_body(*arrays(channels, tiny))


def culux_body(channels: int, tiny: bool) -> Body:
    weight, bias, x, dy = arrays(channels, tiny)
    layer = culux.Conv((3, 3), channels, channels, padding=1)
    return ours.layer_body(layer, weight, bias, x, dy)


def workload(channels: int) -> Workload:
    bodies = {"torch": torch_body, "culux": culux_body}
    return Workload(
        f"conv 3x3 {channels}",
        {name: functools.partial(body, channels) for name, body in bodies.items()},
        goal=GOALS[channels],
    )


WORKLOADS = [workload(channels) for channels in GOALS]


@pytest.mark.parametrize(("workload", "library"), cases(WORKLOADS))
def test_conv(benchmark, workload, library):
    record(benchmark, workload, library)
