"""Timing several libraries doing the same work: interleaved blocks, and ratios within a round.

A machine's speed drifts, so libraries are only compared within one round: A B C, then C B A, and so on.
One thread is timed by process CPU time, which other jobs on the machine do not touch, more by the wall clock.
The garbage collector stays on, as it is for users. Before the first round everything alive is frozen, so that
nobody pays for the modules of another library; each block starts collected and with one untimed call.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bench import machine

REFERENCE = "torch"
TOLERANCE = 1e-4
BLOCK_SECONDS = 0.02

Results = Mapping[str, list[Any]]


class Body(NamedTuple):
    """One library's way of doing a workload, ready to run."""

    run: Callable[[], Any]  # the timed work; may be called any number of times
    result: Callable[[], Results]  # what the first run computes, by kind, to be compared between libraries


@dataclass(frozen=True)
class Workload:
    """The same work for several libraries."""

    name: str
    libraries: Mapping[str, Callable[[bool], Body]]  # each given whether the sizes shall be tiny, for tests
    goal: float | None = None  # at most this many times the reference's time
    note: Callable[[Mapping[str, Any]], str] | None = None  # a remark on what each library's run returned

    def bodies(self, *, tiny: bool = False) -> dict[str, Body]:
        """A fresh body for each library that is installed, the reference first."""
        names = sorted(self.libraries, key=lambda name: name != REFERENCE)
        return {name: self.libraries[name](tiny) for name in names if is_installed(name)}


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, and how they compare with the reference of the same run."""

    median: float
    minimum: float
    ratio: float  # the median of the rounds' ratios
    minimum_ratio: float  # of the two minima


@dataclass(frozen=True)
class Row:
    """One line of the report; the score is a ratio to the reference, or seconds where the unit says so."""

    what: str
    timings: Mapping[str, Timing]
    score: float | None
    goal: float | None
    unit: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """``met`` or ``missed``; a dash where there is no goal or no reference."""
        if self.score is None or self.goal is None:
            return "–"
        return "met" if self.score <= self.goal else "missed"


def is_installed(library: str) -> bool:
    """Whether what a library's bodies need is there."""
    return machine.has_torch() if library.startswith("torch") else True


def default_clock() -> Callable[[], float]:
    """Process CPU time for one thread, else the wall clock."""
    return time.process_time if machine.threads() == 1 else time.perf_counter


def interleaved(
    cases: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 1,
    *,
    clock: Callable[[], float] | None = None,
    block_seconds: float = BLOCK_SECONDS,
) -> dict[str, Timing]:
    """Time the cases in blocks A B C, C B A, ...; the first case is the reference of the ratios.

    Args:
        cases: the calls to time, by name.
        rounds: how many blocks each case gets.
        warmup: how many rounds before them are not counted.
        clock: what tells the time; see `default_clock`.
        block_seconds: short calls are repeated until the slowest case fills about this long, all equally often.
    """
    clock = clock or default_clock()
    gc.collect()
    gc.freeze()
    try:
        slowest = max(_block(run, 1, clock) for run in cases.values())
        repeats = max(1, math.ceil(block_seconds / max(slowest, 1e-7)))
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(warmup + rounds):
            for name in list(cases)[:: -1 if number % 2 else 1]:
                seconds[name].append(_block(cases[name], repeats, clock))
    finally:
        gc.unfreeze()
    return compare({name: times[warmup:] for name, times in seconds.items()})


def _block(run: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    gc.collect()
    run()
    start = clock()
    for _ in itertools.repeat(None, repeats):
        run()
    return (clock() - start) / repeats


def compare(seconds: Mapping[str, list[float]]) -> dict[str, Timing]:
    """The timings of each case from its seconds per round; ratios to the first one."""
    reference = next(iter(seconds.values()))
    return {
        name: Timing(
            median=statistics.median(times),
            minimum=min(times),
            ratio=statistics.median(t / r for t, r in zip(times, reference, strict=True)),
            minimum_ratio=min(times) / min(reference),
        )
        for name, times in seconds.items()
    }


def check_agreement(workload: Workload, *, tiny: bool = False) -> None:
    """Raise where two libraries do not compute the same, so that nobody times different maths.

    Arrays of one kind (losses, gradients) may differ by `TOLERANCE` of the largest number of that kind.
    """
    results = {name: body.result() for name, body in workload.bodies(tiny=tiny).items()}
    first, *others = results
    for name in others:
        for kind, expected in results[first].items():
            scale = max(float(np.abs(a).max()) for a in expected)
            for i, (a, b) in enumerate(zip(results[name][kind], expected, strict=True)):
                error = float(np.abs(np.asarray(a) - np.asarray(b)).max()) if np.shape(a) == np.shape(b) else math.inf
                if not error <= TOLERANCE * scale:
                    raise ValueError(
                        f"{workload.name}: {kind}[{i}] of {name} differs from that of {first} by {error:.2e} "
                        f"({kind} reach {scale:.2e}); they do not compute the same, so they are not timed"
                    )


def measure(workload: Workload, *, rounds: int, tiny: bool = False) -> Row:
    """Check that the libraries agree, then time them."""
    check_agreement(workload, tiny=tiny)
    bodies = workload.bodies(tiny=tiny)
    outcomes = {name: body.run() for name, body in bodies.items()}
    timings = interleaved({name: body.run for name, body in bodies.items()}, rounds)
    score = timings["culux"].ratio if REFERENCE in timings else None
    note = workload.note(outcomes) if workload.note else ""
    return Row(workload.name, timings, score, workload.goal, note=note)
