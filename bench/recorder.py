"""Workloads as pytest-benchmark tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from bench import machine
from bench.harness import REFERENCE, Workload, check_agreement, interleaved, is_installed

ROUNDS = 5


def cases(workloads: Iterable[Workload]) -> list[Any]:
    """A parameter set ``(workload, library)`` for each library of each workload."""
    return [
        pytest.param(
            workload,
            library,
            id=f"{workload.name}-{library}",
            marks=pytest.mark.skipif(not is_installed(library), reason="torch is not installed"),
        )
        for workload in workloads
        for library in workload.libraries
    ]


def record(benchmark: Any, workload: Workload, library: str) -> None:
    """Benchmark one library, grouped by workload; for culux also the ratio to torch of an interleaved run.

    pytest-benchmark times one library after the other, which compares runs of one library but not libraries.
    """
    benchmark.group = workload.name
    benchmark.extra_info.update(machine.facts(), library=library, goal=workload.goal)
    bodies = workload.bodies()
    if library == "culux" and REFERENCE in bodies:
        check_agreement(workload)
        timings = interleaved({name: bodies[name].run for name in (REFERENCE, library)}, ROUNDS)
        benchmark.extra_info["ratio_to_torch"] = timings[library].ratio
    bodies[library].run()  # the first call sets libraries up
    benchmark(bodies[library].run)
