"""The tape itself: long chains of tiny operations, forward and backward; one call is the whole chain."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import culux
from bench import peers
from bench.harness import Body, Workload
from bench.recorder import cases, record

X = np.linspace(0.1, 0.8, 8, dtype=np.float32)


def muladd(x: Any, library: Any, length: int) -> Any:
    for _ in range(length):
        x = x * 1.0001 + 0.1
    return x


def sin(x: Any, library: Any, length: int) -> Any:
    function = library.sin
    for _ in range(length):
        x = function(x)
    return x


def culux_body(chain: Any, length: int, tiny: bool) -> Body:
    length = 5 if tiny else length
    run = functools.partial(culux.gradient, lambda x: chain(x, culux.numpy, length).sum(), X)
    return Body(run, lambda: {"gradient": [run()]})


def torch_body(chain: Any, length: int, tiny: bool) -> Body:
    return peers.tape_body(X, functools.partial(chain, length=5 if tiny else length))


def workload(chain: Any, length: int) -> Workload:
    bodies = {"torch": torch_body, "culux": culux_body}
    return Workload(
        f"tape {chain.__name__} x {length}",
        {name: functools.partial(body, chain, length) for name, body in bodies.items()},
        goal=0.5,
    )


WORKLOADS = [workload(muladd, 500), workload(sin, 1000)]


@pytest.mark.parametrize(("workload", "library"), cases(WORKLOADS))
def test_tape(benchmark, workload, library):
    record(benchmark, workload, library)
