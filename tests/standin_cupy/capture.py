"""Stream capture and graphs: what a stream is told while it captures is recorded, and done at each launch.

A graph knows memory, not arrays: it works on the same bytes as at its capture, with what they hold now. CuPy's
graphs keep no array alive; memory that has gone to another array meanwhile is an error here, and a silent
overwriting on a GPU.
"""

from __future__ import annotations

from collections import defaultdict

from tests.standin_cupy import runtime
from tests.standin_cupy.errors import StandinError, capture_error, disallowed
from tests.standin_cupy.runtime import POISON, machine, merge

CUBLAS = {"dot", "einsum", "inner", "matmul", "tensordot", "vdot"}
SYNCHRONISING = {"argwhere", "average", "bincount", "nonzero", "unique"}
UNKNOWN = {"argsort", "interp", "median", "searchsorted", "sort"}


class Capture:
    """What the streams of one capture have been told."""

    def __init__(self, origin):
        self.origin = origin
        self.valid = True
        self.steps = []
        self.generations = {}
        self.clocks = {origin: defaultdict(int)}
        machine.captures.append(self)

    def record(self, stream, work, reads, writes):
        self._tick(stream)
        for memory in (*reads, *writes):
            self.generations[memory] = memory.generation
        self.steps.append(("work", stream, work, tuple(reads), tuple(writes)))

    def record_event(self, stream, event):
        self._tick(stream)
        event.captured = (self, object(), self.clocks[stream].copy())
        self.steps.append(("record", stream, event.captured[1]))

    def wait_event(self, stream, event):
        """Let a stream wait for an event of this capture, which it takes part in from now on."""
        self.clocks.setdefault(stream, defaultdict(int))
        stream.capture = self
        merge(self.clocks[stream], event.captured[2])
        self.steps.append(("wait", stream, event.captured[1]))

    def _tick(self, stream):
        if not self.valid:
            raise capture_error("StreamCaptureInvalidated")
        self.clocks[stream][stream] += 1

    def refused(self, name):
        """The error of a call that ends the capture without a graph."""
        self.valid = False
        return capture_error(name)

    def end(self, stream):
        if stream is not self.origin:
            raise self.refused("StreamCaptureUnmatched")
        machine.captures.remove(self)
        for other in self.clocks:
            other.capture = None
        if not self.valid:
            raise capture_error("StreamCaptureInvalidated")
        joined = self.clocks[stream]
        if any(joined[other] < clock[other] for other, clock in self.clocks.items()):
            raise capture_error("StreamCaptureUnjoined")
        return Graph._of(self)


class Graph:
    """`cupy.cuda.Graph`: recorded work, launched as often as one likes."""

    def __init__(self):
        raise NotImplementedError("a graph is made by stream capture")

    @classmethod
    def _of(cls, capture):
        self = cls.__new__(cls)
        self._steps, self._origin, self._generations = capture.steps, capture.origin, capture.generations
        return self

    def upload(self, stream=None):
        pass

    def launch(self, stream=None):
        stream = runtime.get_current_stream() if stream is None else stream
        if stream.capture is not None:
            raise StandinError("the stand-in records no graph within a graph")
        machine.log.append(("graph", stream.name))
        streams, events = {self._origin: stream}, {}
        stream.enqueue()
        for kind, recorded, *rest in self._steps:
            branch = streams.get(recorded) or streams.setdefault(recorded, runtime.Stream(non_blocking=True))
            if kind == "record":
                events[rest[0]] = branch.clock.copy()
            elif kind == "wait":
                merge(branch.clock, events[rest[0]])
            else:
                self._run(branch, *rest)

    def _run(self, stream, work, reads, writes):
        for verb, memories in (("reads", reads), ("writes", writes)):
            for memory in memories:
                if memory.in_use and memory.generation != self._generations[memory]:
                    raise StandinError(
                        f"the graph {verb} memory that was freed after the capture and belongs to another array now:"
                        " keep the captured arrays, or the pool of their own, as long as the graph"
                    )
        stream.begin(reads, writes)
        work()


def refuse(name, hosts):
    """Raise what CuPy raises for an operation that cannot be captured."""
    floats = all(host.dtype.kind in "fcV" for host in hosts)
    if name in CUBLAS and floats and (name != "einsum" or len(hosts) > 1):
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    if name in SYNCHRONISING or (name == "where" and len(hosts) == 1):
        raise disallowed("synchronous API calls")
    if name in UNKNOWN:
        raise StandinError(f"the stand-in does not know whether CuPy can capture {name}")


def preview(call, memories):
    """The result's shape and dtype: the work done on zeros, and all memory left as it was."""
    saved = {memory: memory.root.copy() for memory in memories}
    for memory in saved:
        memory.root[...] = 0
    try:
        return call()
    finally:
        for memory, content in saved.items():
            memory.root[...] = content


def replayed(call, targets):
    """The work of a recorded operation: its results go where those of the capture are."""

    def work():
        results = flat(call())
        for target, result in zip(targets, results, strict=True):
            if target is not None:
                target[...] = result

    for target in targets:
        if target is not None:
            runtime.root_of(target)[...] = POISON
    return work


def flat(result):
    """The results of an operation in a list."""
    if result is None:
        return []
    return list(result) if isinstance(result, tuple | list) else [result]
