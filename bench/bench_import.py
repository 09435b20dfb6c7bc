"""``import culux`` in a fresh interpreter, beyond what ``import numpy`` takes."""

from __future__ import annotations

import os
import resource
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
    """Seconds that a new interpreter takes to start, import the module and end: CPU time for one thread, else wall.

    It may keep the compiled files, as an installed library's are kept: compiling is no part of importing.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    clock = children_time if machine.threads() == 1 else time.perf_counter
    start = clock()
    subprocess.run([sys.executable, "-c", f"import {module}"], cwd=machine.ROOT, env=environment, check=True)
    return clock() - start


def children_time() -> float:
    """The CPU time of all processes that this one started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
    note = f"import numpy takes {statistics.median(seconds['numpy']):.3f} s, interpreter included"
    return Row("import beyond NumPy's", compare(seconds), score, GOAL, unit=" s", note=note)


@pytest.mark.parametrize("module", MODULES)
def test_import(benchmark, module):
    if module == "torch" and not machine.has_torch():
        pytest.skip("torch is not installed")
    benchmark.group = "import"
    benchmark.extra_info.update(machine.facts(), library=module)
    benchmark.pedantic(fresh_import, args=(module,), rounds=5, warmup_rounds=1)
