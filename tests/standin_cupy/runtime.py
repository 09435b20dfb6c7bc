"""Fake CUDA devices: memory, streams and events with the asynchrony of real ones, in one host thread.

Every stream and the host carry a vector clock. A copy from page-locked memory does not happen when it is
called but when something that is ordered after it needs it; an access that no event orders after the
last write (or a write after a read) of the same memory raises `StreamRace`. A missing wait thus fails.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict

import numpy as np

POISON = 0xFF  # NaN in every float dtype


class StreamRace(AssertionError):
    """Two streams, or a stream and the host, used memory without an order between them."""


class CUDARuntimeError(RuntimeError):
    """A call that the fake runtime refuses."""


class CompileException(Exception):
    """What CuPy raises for a source that does not compile."""


class Machine:
    """All state of the fake devices; `reset` between tests."""

    def __init__(self):
        self.local = threading.local()
        self.reset()

    def reset(self, device_count=1):
        self.device_count = device_count
        self.log = []
        self.pending = []
        self.free = defaultdict(list)
        self.used = defaultdict(int)
        self.held = defaultdict(int)
        self.host_clock = defaultdict(int)
        self.ticks = defaultdict(int)
        self.names = itertools.count(1)
        self.local.device = 0
        self.local.streams = {}


machine = Machine()


def set_device_count(count):
    machine.device_count = count


def merge(clock, other):
    for name, tick in other.items():
        clock[name] = max(clock[name], tick)


def host_waits(clock):
    """The host has seen `clock`: copies up to there have happened."""
    merge(machine.host_clock, clock)
    for copy in [copy for copy in machine.pending if machine.host_clock[copy.stream] >= copy.tick]:
        copy.run()


class Device:
    def __init__(self, id=None):
        self.id = current_device() if id is None else int(id)
        if not 0 <= self.id < machine.device_count:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self._outer = []

    def __enter__(self):
        self._outer.append(current_device())
        machine.local.device = self.id
        return self

    def __exit__(self, *exception):
        machine.local.device = self._outer.pop()

    def use(self):
        machine.local.device = self.id

    def synchronize(self):
        machine.log.append(("synchronize", f"device {self.id}"))
        host_waits(machine.ticks)

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self):
        return hash(self.id)

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    compute_capability = "90"


def current_device():
    return getattr(machine.local, "device", 0)


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.name = f"event {next(machine.names)}"
        self.clock = defaultdict(int)

    def record(self, stream=None):
        if stream is None:
            raise TypeError("name the stream: CuPy's documentation says the null stream, its code the current one")
        stream.enqueue()
        self.clock = stream.clock.copy()
        machine.log.append(("record", self.name, stream.name))

    def synchronize(self):
        machine.log.append(("synchronize", self.name))
        host_waits(self.clock)

    @property
    def done(self):
        return all(machine.host_clock[name] >= tick for name, tick in self.clock.items())


class Stream:
    null = None

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.name = "null" if null else f"stream {next(machine.names)}"
        self.ptr = 0 if null else id(self)
        self.device_id = current_device()
        self.is_non_blocking = non_blocking
        self.clock = defaultdict(int)
        self._outer = []

    def enqueue(self):
        """New work: after all earlier work of the stream and after all that the host has waited for."""
        merge(self.clock, machine.host_clock)
        self.clock[self.name] += 1
        machine.ticks[self.name] = self.clock[self.name]

    def record(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event):
        machine.log.append(("wait", self.name, event.name))
        merge(self.clock, event.clock)

    def synchronize(self):
        machine.log.append(("synchronize", self.name))
        host_waits(self.clock)

    def use(self):
        machine.local.streams[current_device()] = self
        return self

    def __enter__(self):
        self._outer.append(get_current_stream())
        return self.use()

    def __exit__(self, *exception):
        self._outer.pop().use()

    @property
    def done(self):
        return all(machine.host_clock[name] >= tick for name, tick in self.clock.items())


def get_current_stream(device_id=None):
    device = current_device() if device_id is None else device_id
    if device not in machine.local.__dict__.setdefault("streams", {}):
        stream = Stream(null=True)
        stream.name = f"null {device}"
        machine.local.streams[device] = stream
    return machine.local.streams[device]


class Memory:
    """A piece of device memory: its bytes, where it is, and who used it last."""

    def __init__(self, root, device, pool_key=None):
        self.root = root
        self.device = device
        self.pool_key = pool_key
        self.last_write = None
        self.last_reads = {}

    def use(self, writing):
        """Check that the current stream may read or write the memory now, and note that it does."""
        stream = get_current_stream()
        self.use_on(stream, writing)

    def use_on(self, stream, writing):
        earlier = [] if self.last_write is None else [self.last_write]
        if writing:
            earlier += list(self.last_reads.items())
        for name, tick in earlier:
            if stream.clock[name] < tick:
                raise StreamRace(
                    f"{stream.name} {'writes' if writing else 'reads'} memory that {name} used at {tick}, and has"
                    f" waited only for {stream.clock[name]}: an event is missing"
                )
        for copy in [copy for copy in machine.pending if copy.memory is self]:
            copy.run()
        if writing:
            self.last_write, self.last_reads = (stream.name, stream.clock[stream.name]), {}
        else:
            self.last_reads[stream.name] = stream.clock[stream.name]


class Allocation:
    """Memory as long as an array holds it; then it goes back to the pool, poisoned, its history kept."""

    def __init__(self, memory):
        self.memory = memory
        self.used, self.held, self.free = machine.used, machine.held, machine.free
        self.used[memory.device] += memory.root.nbytes
        if memory.pool_key is None:
            self.held[memory.device] += memory.root.nbytes

    def __del__(self):
        memory = self.memory
        self.used[memory.device] -= memory.root.nbytes
        if memory.pool_key is None:
            self.held[memory.device] -= memory.root.nbytes
        else:
            memory.root[...] = POISON
            self.free[memory.pool_key].append(memory)


def allocate(nbytes):
    """Poisoned bytes from the part of the pool that belongs to the current device and stream."""
    key = (current_device(), get_current_stream().name, nbytes)
    if machine.free[key]:
        return Allocation(machine.free[key].pop())
    machine.held[current_device()] += nbytes
    return Allocation(Memory(np.full(nbytes, POISON, np.uint8), current_device(), key))


class PendingCopy:
    """A copy from the host that a stream has still to do."""

    def __init__(self, source, target, allocation, stream):
        self.source, self.target, self.stream = source, target, stream.name
        self.memory = allocation.memory
        self.tick = stream.clock[stream.name]
        machine.pending.append(self)

    def run(self):
        machine.pending.remove(self)
        self.target[...] = self.source


def copy_async(source, target, allocation, stream):
    """Enqueue a copy of page-locked bytes; they are read when the copy happens, not now."""
    stream.enqueue()
    allocation.memory.use_on(stream, writing=True)
    machine.log.append(("copy", stream.name, source.nbytes))
    PendingCopy(source, target, allocation, stream)
