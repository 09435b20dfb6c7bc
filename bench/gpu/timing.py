"""Times on the GPU, by events and by replaying CUDA graphs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ROUNDS = 7
BLOCK_SECONDS = 0.02
CALLS_IN_A_GRAPH = 20
MOST_CALLS = 2000  # in a block


@dataclass(frozen=True)
class Time:
    """Microseconds of one call.

    Attributes:
        call: what a loop of eager calls takes for each, host and device overlapping: the larger of the two.
        device: of a call in a replayed graph, so without the host; None where it cannot be captured.
        refused: why not, else ``""``.
    """

    call: float
    device: float | None
    refused: str = ""

    @property
    def best(self) -> float:
        """The time that the device needs, as far as it is known."""
        return self.call if self.device is None else min(self.call, self.device)


def time_call(run: Callable[[], Any], *, seconds: float = BLOCK_SECONDS, rounds: int = ROUNDS) -> Time:
    """Median times of a function that enqueues work on CuPy's current stream."""
    run()
    return Time(by_events(run, seconds, rounds), *_captured(run, seconds, rounds))


def by_events(run: Callable[[], Any], seconds: float, rounds: int) -> float:
    """Microseconds of a call between two events on CuPy's current stream, the median of some blocks of calls."""
    import cupy

    stream = cupy.cuda.get_current_stream()
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()

    def block(calls: int) -> float:
        start.record(stream)
        for _ in range(calls):
            run()
        stop.record(stream)
        stop.synchronize()
        return 1000 * float(cupy.cuda.get_elapsed_time(start, stop)) / calls

    first = max(block(3), 1e-3)
    calls = max(1, min(MOST_CALLS, round(1e6 * seconds / first)))
    return statistics.median(block(calls) for _ in range(rounds))


def _captured(run: Callable[[], Any], seconds: float, rounds: int) -> tuple[float | None, str]:
    """Microseconds of a call in a graph of several; None, and why, where CuPy or a library refuses the capture."""
    import cupy

    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        try:
            run()
            stream.synchronize()
            stream.begin_capture()
            try:
                for _ in range(CALLS_IN_A_GRAPH):
                    run()
            finally:
                graph = stream.end_capture()
        except Exception as error:  # whoever refuses has an error of his own
            return None, f"{type(error).__name__}: {error}"
        found = by_events(lambda: graph.launch(stream), seconds, rounds) / CALLS_IN_A_GRAPH
        stream.synchronize()
    return found, ""


def host_microseconds(run: Callable[[], Any], wait: Callable[[], None], *, calls: int, rounds: int) -> float:
    """Wall-clock microseconds of a call where each block ends in a wait for the device; the median of the blocks."""

    def block() -> float:
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        wait()
        return 1e6 * (time.perf_counter() - start) / calls

    block()
    return statistics.median(block() for _ in range(rounds))
