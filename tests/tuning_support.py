"""What tests of the autotuner share: a timer that is told the times, and processes that tune."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from culux.kernels import tuning

DEVICE = "Test GPU (80 GB)"


class FakeTimer:
    """A call of a candidate takes as many microseconds as it returns; nothing can be timed during a capture."""

    device = DEVICE

    def __init__(self, driver="12.9"):
        self.versions = {"cuda": "12.9", "driver": driver}
        self.capturing = False
        self.samples = []

    def elapsed(self, run, repeats):
        if self.capturing:
            return None
        times = [run() for _ in range(repeats)]
        self.samples.append(repeats)
        return sum(times) / repeats


class NoTimer(FakeTimer):
    """For what must be known already."""

    def elapsed(self, run, repeats):
        raise AssertionError("timed again")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The autotuner of a process that starts, with an empty cache; the folder of its files."""
    monkeypatch.setenv("CULUX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CULUX_AUTOTUNE", raising=False)
    forget(monkeypatch)
    return tmp_path / "cache" / "tuning"


def forget(monkeypatch):
    """What a process that starts knows."""
    for name in ("_winners", "_on_disk"):
        monkeypatch.setattr(tuning, name, {})
    monkeypatch.setattr(tuning, "_not_kept", set())


def fixed(**times):
    """Candidates that take these microseconds."""
    return {name: lambda time=time: time for name, time in times.items()}


def failing(error):
    """A candidate that fails."""

    def run():
        raise error

    return run


def choose(candidates, default="plain", *, operation="dense", key=(128, 512, "float32"), timer=None):
    return tuning.choose(operation, key, candidates, default, device=DEVICE, timer=timer or FakeTimer())


def in_another_process(code, **environment):
    """Start a program that has this file's names."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from tests.tuning_support import *\n{code}"],
        cwd=Path(__file__).parents[1], env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
