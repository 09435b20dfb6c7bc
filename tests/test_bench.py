"""The benchmarks measure what they say, and every body runs. No time is asserted."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest

from bench import __main__ as command
from bench import machine, report
from bench.harness import Body, Row, Workload, check_agreement, compare, interleaved, measure

NAMES = ("tape", "dense", "conv", "lenet", "mlp7bn", "digits")
MODULES = [importlib.import_module(f"bench.bench_{name}") for name in NAMES]
WORKLOADS = [workload for module in MODULES for workload in module.WORKLOADS]


class FakeClock:
    """A clock that only the cases move."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def case(self, name, seconds):
        def run():
            self.calls.append(name)
            self.now += seconds

        return run


def workload_of(**results):
    def library(value):
        return lambda tiny: Body(lambda: value, lambda: {"y": [np.asarray(value)]})

    return Workload("made up", {name: library(value) for name, value in results.items()}, goal=0.5)


def test_ratios_are_those_of_the_rounds():
    timings = compare({"torch": [1.0, 2.0, 4.0], "culux": [0.5, 0.5, 4.0]})
    assert timings["culux"].median == 0.5
    assert timings["culux"].minimum == 0.5
    assert timings["culux"].ratio == 0.5  # of 0.5, 0.25 and 1.0
    assert timings["culux"].minimum_ratio == 0.5
    assert timings["torch"].ratio == timings["torch"].minimum_ratio == 1.0


def test_interleaved_takes_turns_in_alternating_order():
    clock = FakeClock()
    cases = {name: clock.case(name, seconds) for name, seconds in (("a", 4.0), ("b", 1.0), ("c", 8.0))}
    timings = interleaved(cases, rounds=2, warmup=1, clock=clock, block_seconds=1.0)
    turns = clock.calls[6:]  # after the estimate of how long a call takes
    assert "".join(turns) == "aabbcc" + "ccbbaa" + "aabbcc"  # each block: one untimed call, one timed one
    assert [timings[name].median for name in "abc"] == [4.0, 1.0, 8.0]
    assert [timings[name].ratio for name in "abc"] == [1.0, 0.25, 2.0]


def test_short_calls_are_repeated_equally_often():
    clock = FakeClock()
    timings = interleaved(
        {"a": clock.case("a", 0.25), "b": clock.case("b", 0.125)}, rounds=1, warmup=0, clock=clock, block_seconds=1.0
    )
    assert clock.calls[4:] == ["a"] * 5 + ["b"] * 5
    assert timings["a"].median == 0.25


def test_libraries_that_disagree_are_not_timed():
    check_agreement(workload_of(culux=[1.0, 2.0], numpy=[1.0, 2.0001]))
    with pytest.raises(ValueError, match=r"made up: y\[0\] of numpy differs from that of culux by 1\.00e-02"):
        check_agreement(workload_of(culux=[1.0, 2.0], numpy=[1.0, 2.01]))
    with pytest.raises(ValueError, match="differs"):
        check_agreement(workload_of(culux=[1.0, 2.0], numpy=[1.0, np.nan]))
    with pytest.raises(ValueError, match="differs"):
        check_agreement(workload_of(culux=[1.0, 2.0], numpy=[1.0]))


@pytest.mark.parametrize(
    ("score", "goal", "verdict"), [(0.5, 0.5, "met"), (0.51, 0.5, "missed"), (0.5, None, "–"), (None, 0.5, "–")]
)
def test_verdict(score, goal, verdict):
    assert Row("x", {}, score, goal).verdict == verdict


def test_table_and_files(tmp_path):
    timings = compare({"torch": [1.0, 1.0], "culux": [0.25, 0.5], "numpy": [0.2, 0.2]})
    row = Row("mlp7bn step", timings, timings["culux"].ratio, 0.95, note="a note")
    head, _, line = report.table([row]).splitlines()
    assert [cell.strip() for cell in head.split("|")][1:4] == ["what", "culux", "torch eager"]
    cells = [cell.strip() for cell in line.split("|")][1:-1]
    assert cells == ["mlp7bn step", "375 ms", "1000 ms", "–", "200 ms (0.20)", "0.375", "0.25", "<= 0.95", "met"]
    path = report.save([row], machine.facts(), tmp_path)
    assert "mlp7bn step: a note" in path.read_text(encoding="utf-8")
    document = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert document["rows"][0]["timings"]["culux"]["ratio"] == 0.375
    assert document["machine"]["threads"] == machine.threads()


def test_without_torch_there_is_no_ratio(monkeypatch):
    monkeypatch.setattr(machine, "has_torch", lambda: False)
    row = measure(workload_of(torch=1.0, torch_fusedadam=1.0, culux=1.0), rounds=1)
    assert list(row.timings) == ["culux"]
    assert row.score is None
    assert row.verdict == "–"


def test_run_without_torch_says_so(monkeypatch, capsys):
    monkeypatch.setattr(machine, "has_torch", lambda: False)
    monkeypatch.setattr(machine, "restart_with_threads", lambda threads: None)
    monkeypatch.setattr(command, "rows", lambda names, rounds: iter([measure(workload_of(culux=1.0), rounds=1)]))
    command.main(["tape", "--quick"])
    printed = capsys.readouterr().out
    assert "torch is not installed: culux is timed alone" in printed
    assert "| made up" in printed


def test_unknown_workload_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["tapes"])
    assert "no workload tapes; there are: tape, dense, conv, lenet, mlp7bn, digits, import" in capsys.readouterr().err


def test_threads_are_set_for_every_library_before_it_is_imported(monkeypatch):
    started = []
    monkeypatch.setattr(machine.os, "environ", {"HOME": "/", "OMP_NUM_THREADS": "8"})
    monkeypatch.setattr(machine.os, "execve", lambda path, argv, env: started.append(env))
    machine.restart_with_threads(2)
    assert started == [{"HOME": "/", "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}]
    monkeypatch.setattr(machine.os, "environ", started[0])
    assert machine.threads() == 2
    machine.restart_with_threads(2)
    assert len(started) == 1  # they are set: it runs


@pytest.mark.parametrize(
    ("workload", "library"), [pytest.param(w, name, id=f"{w.name}-{name}") for w in WORKLOADS for name in w.libraries]
)
def test_bodies_run(workload, library):
    if library.startswith("torch"):
        pytest.importorskip("torch")
    body = workload.libraries[library](True)
    body.run()
    body.run()
    for arrays in body.result().values():
        assert arrays
        assert all(np.isfinite(a).all() for a in arrays)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_libraries_compute_the_same(workload):
    pytest.importorskip("torch")
    check_agreement(workload, tiny=True)


def test_import_is_measured_against_numpy(monkeypatch):
    module = importlib.import_module("bench.bench_import")
    monkeypatch.setattr(module, "fresh_import", {"numpy": 0.1, "culux": 0.2, "torch": 1.0}.get)
    row = module.measure(3)
    assert row.score == pytest.approx(0.1)
    assert row.verdict == "met"


def test_workloads_of_the_command_are_the_modules():
    for name in command.WORKLOADS:
        assert importlib.util.find_spec(f"bench.bench_{name}")
