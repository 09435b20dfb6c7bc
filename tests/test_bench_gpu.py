"""The GPU benchmark on the stand-in: that it runs, compares and reports; its times mean nothing there."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from bench.gpu import __main__ as program
from bench.gpu import device, models, operations, timing
from bench.gpu.cases import CASES
from bench.gpu.device import Ceilings
from bench.gpu.report import Report
from bench.gpu.timing import Time
from bench.problems import MLP
from culux.autodiff.tracer import plain

CEILINGS = Ceilings(copy=1e12, products={"float32": 1e12, "tf32": 2e12})
FACTS = {
    "device": "Stand-in", "multiprocessors": 1, "compute_capability": "90", "driver": 1, "cuda": 1, "cupy": "14",
    "numpy": "2", "torch": None, "jax": None, "python": "3", "commit": "abc",
}  # fmt: skip


def tiny(case):
    return dataclasses.replace(case, full=case.checked[0], checked=case.checked[:1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_operation_agrees_with_numpy(case, standin_cupy):
    for dtype in case.dtypes:
        errors = operations.errors_of(case, dtype, case.checked[0])
        assert max(errors) <= operations.LIMITS[dtype], (dtype, errors)


def test_a_wrong_operation_is_found(standin_cupy):
    gelu = next(case for case in CASES if case.name == "gelu")
    wrong = dataclasses.replace(gelu, function=lambda x: gelu.function(x) * (1.01 if hasattr(plain(x), "get") else 1))
    assert min(operations.errors_of(wrong, "float32", (100,))) > operations.LIMITS["float32"]


def test_relative_errors():
    assert operations.relative_error(np.array([3.0, 4.1]), np.array([3.0, 4.0])) == pytest.approx(0.1 / 5)
    assert operations.relative_error(np.array([np.nan]), np.array([1.0])) == math.inf
    assert operations.relative_error(np.ones((2, 1)), np.ones(2)) == math.inf


def test_rows_have_times_and_shares(standin_cupy, monkeypatch):
    monkeypatch.setattr(operations, "time_call", lambda run, seconds: (run(), Time(50.0, 10.0))[1])
    monkeypatch.setattr(operations, "_torch_times", lambda *args: (20.0, 30.0))
    norm = dataclasses.replace(tiny(next(case for case in CASES if "batchnorm" in case.name)), dtypes=("float32",))
    forward, backward = operations.measure([norm], CEILINGS, seconds=0, precision="float32")
    nbytes = 4 * math.prod(norm.full)
    assert (forward.correct, backward.correct) == (True, True)
    assert forward.share == pytest.approx(2 * nbytes / 10e-6 / 1e12)
    assert backward.share == pytest.approx(3 * nbytes / 10e-6 / 1e12)
    assert (forward.torch, backward.torch) == (20.0, 30.0)


def test_a_failing_operation_is_a_row_and_a_failure(standin_cupy, tmp_path):
    def fail(x):
        raise RuntimeError("no luck")

    case = dataclasses.replace(CASES[0], function=lambda *arrays: fail(arrays), dtypes=("float32",))
    report = Report(FACTS, tmp_path)
    report.operations["float32"] = list(operations.measure([case], CEILINGS, seconds=0, precision="float32"))
    assert report.failures == [f"{case.name} float32: RuntimeError: no luck"]
    assert "failed" in report.text()


def test_models_of_culux_learn(standin_cupy, monkeypatch):
    monkeypatch.setattr(models, "MODELS", {"tiny": MLP(widths=(5, 6, 4), batch=8)})
    monkeypatch.setattr(models, "LIBRARIES", {"culux eager": models.LIBRARIES["culux eager"]})
    (row,) = models.measure(calls=1, rounds=1, precision="float32")
    assert row.problem == ""
    assert row.losses[0] > row.losses[-1] > 0
    assert row.microseconds > 0


def test_the_files(tmp_path):
    report = Report(FACTS, tmp_path)
    report.ceilings = CEILINGS
    report.tests = "50 passed in 3 s"
    report.operations["float32"] = [
        operations.Measured("gelu float32 forward", 1e-7, True, Time(20.0, 10.0), 0.5, 40.0),
        operations.Measured("gelu float32 backward", 1e-1, False, Time(20.0, None)),
    ]
    report.models["float32"] = [models.Stepped("mlp7bn", "culux eager", 123.4, (2.3, 2.2))]
    path = report.save()
    assert path.name.startswith("gpu-stand-in-")
    text = path.read_text()
    assert (
        "| gelu float32 forward  | 1.0e-07       | 20.0    | 10.0      | 50%              | 40.0           | 0.50  |"
        in text
    )
    assert "1.0e-01 WRONG" in text
    assert "| mlp7bn | culux eager | 123.4     | 2.3000 2.2000 |" in text
    document = json.loads(path.with_suffix(".json").read_text())
    assert document["failures"] == ["gelu float32 backward: relative error 1.0e-01"]
    assert document["operations"]["float32"][0]["time"] == {"call": 20.0, "device": 10.0, "refused": ""}


@pytest.mark.parametrize(
    ("tests", "failures"),
    [
        ("3 passed in 1s", 0), ("1 failed, 2 passed in 1s", 1), ("2 passed, 1 error in 1s", 1),
        ("failed: not done after 3 s", 1), ("no tests ran", 1),
    ],
)  # fmt: skip
def test_failed_tests_are_a_failure(tests, failures, tmp_path):
    report = Report(FACTS, tmp_path)
    report.tests = tests
    assert len(report.failures) == failures


def test_without_a_gpu_it_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(device, "unusable", lambda: "there is no CUDA device")
    assert program.main([]) == 2
    assert capsys.readouterr().err == "python -m bench.gpu needs a CUDA GPU: there is no CUDA device\n"


def test_the_whole_program_on_tiny_sizes(standin_cupy, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(models, "MODELS", {"tiny": MLP(widths=(5, 6, 4), batch=8)})
    monkeypatch.setattr(models, "LIBRARIES", {"culux eager": models.LIBRARIES["culux eager"]})
    monkeypatch.setattr(timing, "MOST_CALLS", 1)
    monkeypatch.setattr(timing, "CALLS_IN_A_GRAPH", 2)
    status = program.main(["--quick", "--parts", "operations", "models", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (status, printed.count("failures: none")) == (0, 2)  # before anything ran, and at the end
    (document,) = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(document["operations"]["float32"]) == 2 * len(CASES)
