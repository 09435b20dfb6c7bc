"""``import culux`` in a fresh interpreter, beyond what ``import numpy`` takes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

from bench import machine
from bench.harness import Row, compare

MODULES = ("numpy", "culux", "torch")
GOAL = 0.15


def fresh_import(module: str) -> float:
    """Seconds of wall clock that a new interpreter takes to start, import the module and end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], cwd=machine.ROOT, check=True)
    return time.perf_counter() - start


def measure(rounds: int) -> Row:
    modules = [m for m in MODULES if m != "torch" or machine.has_torch()]
    for module in modules:
        fresh_import(module)  # reads the files once
    seconds: dict[str, list[float]] = {module: [] for module in modules}
    for number in range(rounds):
        for module in modules[:: -1 if number % 2 else 1]:
            seconds[module].append(fresh_import(module))
    beyond = [ours - numpys for ours, numpys in zip(seconds["culux"], seconds["numpy"], strict=True)]
    score = statistics.median(beyond)
    note = f"import numpy takes {statistics.median(seconds['numpy']):.3f} s; wall clock, interpreter included"
    return Row("import beyond NumPy's", compare(seconds), score, GOAL, unit=" s", note=note)


@pytest.mark.parametrize("module", MODULES)
def test_import(benchmark, module):
    if module == "torch" and not machine.has_torch():
        pytest.skip("torch is not installed")
    benchmark.group = "import"
    benchmark.extra_info.update(machine.facts(), library=module)
    benchmark.pedantic(fresh_import, args=(module,), rounds=5, warmup_rounds=1)
