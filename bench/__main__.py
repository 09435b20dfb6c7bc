"""``python -m bench [tape dense conv lenet mlp7bn digits import] [--threads N] [--quick] [--save]``: the ratios."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import machine

WORKLOADS = ("tape", "dense", "conv", "lenet", "mlp7bn", "digits", "import")
ROUNDS, QUICK_ROUNDS = 15, 5


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="culux against torch eager, interleaved")
    parser.add_argument("workloads", nargs="*", metavar="workload", help=f"of {', '.join(WORKLOADS)}; all if none")
    parser.add_argument("--threads", type=int, default=1, help="for every library; 1 is timed by CPU time (default 1)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--save", action="store_true", help="also write the table and a JSON to bench/results")
    parsed = parser.parse_args(argv)
    unknown = set(parsed.workloads) - set(WORKLOADS)
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are: {', '.join(WORKLOADS)}")
    return parsed


def rows(names: Sequence[str], rounds: int) -> Iterator[Any]:
    """The measured rows, one by one."""
    from bench.harness import measure

    for name in names:
        module = importlib.import_module(f"bench.bench_{name}")
        if name == "import":
            yield module.measure(rounds)
        else:
            for workload in module.WORKLOADS:
                yield measure(workload, rounds=rounds)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    machine.restart_with_threads(options.threads)
    from bench import report

    facts = machine.facts()
    print(report.heading(facts), flush=True)
    if not machine.has_torch():
        print("torch is not installed: culux is timed alone, without ratios")
    measured = []
    for row in rows(options.workloads or WORKLOADS, QUICK_ROUNDS if options.quick else ROUNDS):
        print(f"  {row.what}: {row.verdict}", flush=True)
        measured.append(row)
    print("", report.table(measured), "", *report.notes(measured), sep="\n")
    if options.save:
        print("saved", report.save(measured, facts, Path(__file__).parent / "results"))


if __name__ == "__main__":
    main()
