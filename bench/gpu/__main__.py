"""``python -m bench.gpu [--out FOLDER] [--minutes 8] [--quick] [--parts ...]``: tests and benchmarks on this GPU."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import culux
from bench import machine
from bench.gpu import device, models, operations
from bench.gpu.cases import CASES
from bench.gpu.report import Report

RESULTS = Path(__file__).parent.parent / "results"
PARTS = ("tests", "operations", "models")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts one after another and write the report after each; 0 if nothing failed."""
    options = arguments(argv)
    reason = device.unusable()
    if reason:
        print(f"python -m bench.gpu needs a CUDA GPU: {reason}", file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * options.minutes
    report = Report(device.facts(), options.out)
    print(report.text(), flush=True)
    if "tests" in options.parts:
        report.tests = run_tests(30 * options.minutes)
        print(f"tests marked gpu: {report.tests}", flush=True)
        report.save()
    report.ceilings = device.measure_ceilings(**({"copy_bytes": 2**24, "product": 256} if options.quick else {}))
    for precision in ("float32",) if options.quick else ("float32", "tf32"):
        with culux.matmul_precision(precision):
            if "models" in options.parts:
                measure_models(report, options, precision, deadline)
            if "operations" in options.parts:
                measure_operations(report, options, precision, deadline)
    print(report.text())
    print("saved", report.save())
    return 1 if report.failures else 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the report (default bench/results)")
    parser.add_argument("--minutes", type=float, default=8, help="no new measurement begins after these (default 8)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, no numbers to keep")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is run (default all)")
    return parser.parse_args(argv)


def run_tests(seconds: float) -> str:
    """The last line of pytest over the tests marked gpu, in a process of its own; its whole output is printed."""
    # Only these files are imported: the others may need what is not installed here.
    files = [str(path) for path in sorted((machine.ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(
            command,
            cwd=machine.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"failed: not done after {seconds:.0f} s"
    print(done.stdout, flush=True)
    return (
        done.stdout.strip().splitlines()[-1] if done.stdout.strip() else f"failed: pytest ended with {done.returncode}"
    )


def measure_models(report: Report, options: argparse.Namespace, precision: str, deadline: float) -> None:
    """Every model in every library, as long as there is time."""
    calls = 5 if options.quick else 100
    for row in models.measure(calls=calls, rounds=5, precision=precision):
        report.models.setdefault(precision, []).append(row)
        print(f"  {row.model} {row.library}: {row.microseconds} us {row.problem}", flush=True)
        report.save()
        if time.monotonic() > deadline:
            return


def measure_operations(report: Report, options: argparse.Namespace, precision: str, deadline: float) -> None:
    """The operations, as long as there is time; in TF32 those that have products."""
    for case in CASES:
        if precision == "tf32" and case.operations is None:
            continue
        if time.monotonic() > deadline:
            print(f"  no time left for {case.name}", flush=True)
            continue
        if options.quick:
            case = dataclasses.replace(case, full=case.checked[0], checked=case.checked[:1], dtypes=("float32",))
        seconds = 0.002 if options.quick else 0.02
        for row in operations.measure([case], report.ceilings, seconds=seconds, precision=precision):
            report.operations.setdefault(precision, []).append(row)
            print(f"  {row.what}: {row.time} {row.problem}", flush=True)
        report.save()


if __name__ == "__main__":
    sys.exit(main())
