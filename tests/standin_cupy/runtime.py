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

from tests.standin_cupy.errors import CUDARuntimeError, StandinError, StreamRace, capture_error, disallowed

POISON = 0xFF  # NaN in every float dtype


class Machine:
    """All state of the fake devices; `reset` between tests.

    Attributes:
        log: launches, copies, events, waits and graphs, in order.
        launches: raw kernels launched.
        library_calls: operations of the array library that are work for a device, copies from and to the host not
            counted; views are no work.
        device_bytes: the memory of a device.
        held: bytes by device that pools hold.
    """

    def __init__(self):
        self.local = threading.local()
        self.reset()

    def reset(self, device_count=1):
        self.device_count = device_count
        self.device_bytes = 80 * 2**30
        self.log = []
        self.launches = self.library_calls = 0
        self.pending = []
        self.captures = []
        self.default_pool = None
        self.null_streams = {}
        self.held = defaultdict(int)
        self.host_clock = defaultdict(int)
        self.ticks = defaultdict(int)
        self.names = itertools.count(1)
        self.local.__dict__.clear()


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
        for capture in machine.captures:
            if capture.origin.device_id == self.id:
                raise capture.refused("StreamCaptureUnsupported")
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
    attributes = {"MaxSharedMemoryPerBlockOptin": 227 * 1024}  # noqa: RUF012 (as CuPy has it)


def current_device():
    return getattr(machine.local, "device", 0)


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.name = f"event {next(machine.names)}"
        self.clock = defaultdict(int)
        self.disable_timing = disable_timing
        self.tick = None
        self.captured = None  # the capture it was last recorded in, its name there, and the capture's clock

    def record(self, stream=None):
        if stream is None:
            raise TypeError("name the stream: CuPy's documentation says the null stream, its code the current one")
        machine.log.append(("record", self.name, stream.name))
        if stream.capture is not None:
            stream.capture.record_event(stream, self)
            return
        stream.enqueue()
        self.clock, self.captured = stream.clock.copy(), None
        self.tick = stream.clock[stream.name]

    def synchronize(self):
        if self.captured is not None:
            raise self.captured[0].refused("CapturedEvent")
        machine.log.append(("synchronize", self.name))
        host_waits(self.clock)

    @property
    def done(self):
        return self.captured is None and has_happened(self.clock)


def get_elapsed_time(start_event, end_event):
    """Milliseconds between two events of a stream: whatever was done between them took 0.01 each."""
    for event in (start_event, end_event):
        if event.disable_timing or event.tick is None:
            raise CUDARuntimeError("cudaErrorInvalidResourceHandle: invalid resource handle")
        if not event.done:
            raise CUDARuntimeError("cudaErrorNotReady: device not ready")
    return (end_event.tick - start_event.tick - 1) * 0.01


def has_happened(clock):
    """Whether the host has waited for all of a clock."""
    return all(machine.host_clock[name] >= tick for name, tick in clock.items())


class _NullStream:
    """The null stream of the current device."""

    def __get__(self, stream, kind):
        return null_stream(current_device())


class Stream:
    null = _NullStream()

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.name = "null" if null else f"stream {next(machine.names)}"
        self.ptr = 0 if null else id(self)
        self.device_id = current_device()
        self.is_non_blocking = non_blocking
        self.clock = defaultdict(int)
        self.capture = None
        self._outer = []

    def enqueue(self):
        """New work: after all earlier work of the stream and after all that the host has waited for."""
        self._check_legacy()
        merge(self.clock, machine.host_clock)
        self.clock[self.name] += 1
        machine.ticks[self.name] = self.clock[self.name]

    def begin(self, reads, writes):
        """New work that uses memory."""
        self.enqueue()
        for memory in reads:
            memory.use_on(self, writing=False)
        for memory in writes:
            memory.use_on(self, writing=True)

    def submit(self, work, reads, writes):
        """Do new work, or record it where the stream captures."""
        if self.capture is not None:
            self.capture.record(self, work, reads, writes)
        else:
            self.begin(reads, writes)
            work()

    def refuse_capture(self, what):
        """Raise CuPy's error for what a capturing stream cannot do."""
        if self.capture is not None:
            raise disallowed(what)

    def _check_legacy(self):
        for capture in machine.captures if self.ptr == 0 else ():
            if not capture.origin.is_non_blocking and capture.origin.device_id == self.device_id:
                raise capture.refused("StreamCaptureImplicit")

    def record(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event):
        machine.log.append(("wait", self.name, event.name))
        capture = self.capture or (event.captured and event.captured[0])
        if not capture:
            merge(self.clock, event.clock)
        elif event.captured is None and event.clock:
            raise capture.refused("StreamCaptureIsolation")
        elif event.captured is not None:
            if event.captured[0] is not capture or capture not in machine.captures:
                raise capture.refused("CapturedEvent")
            capture.wait_event(self, event)

    def synchronize(self):
        if self.capture is not None:
            raise self.capture.refused("StreamCaptureUnsupported")
        machine.log.append(("synchronize", self.name))
        host_waits(self.clock)

    def begin_capture(self, mode=None):
        from tests.standin_cupy.capture import Capture

        if mode not in (None, 2):
            raise NotImplementedError("the stand-in captures in the relaxed mode")
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.capture is not None:
            raise self.capture.refused("IllegalState")
        machine.log.append(("capture", self.name))
        self.capture = Capture(self)

    def end_capture(self):
        if self.capture is None:
            raise capture_error("IllegalState")
        return self.capture.end(self)

    def is_capturing(self):
        self._check_legacy()
        return self.capture is not None

    def use(self):
        machine.local.__dict__.setdefault("streams", {})[current_device()] = self
        return self

    def __enter__(self):
        self._outer.append(get_current_stream())
        return self.use()

    def __exit__(self, *exception):
        self._outer.pop().use()

    @property
    def done(self):
        if self.capture is not None:
            self.capture.refused("StreamCaptureUnsupported")  # CuPy answers, and the capture is lost
            return False
        return has_happened(self.clock)


def get_current_stream(device_id=None):
    device = current_device() if device_id is None else device_id
    stream = machine.local.__dict__.setdefault("streams", {}).get(device)
    return null_stream(device) if stream is None else stream


def null_stream(device):
    """The null stream of a device, the same in all threads."""
    if device not in machine.null_streams:
        stream = machine.null_streams[device] = Stream(null=True)
        stream.name, stream.device_id = f"null {device}", device
    return machine.null_streams[device]


def root_of(host):
    """The array that owns the memory of a NumPy array."""
    while isinstance(host.base, np.ndarray):
        host = host.base
    return host


class Memory:
    """A piece of device memory: its bytes, where it is, which allocation has it, and who used it last."""

    def __init__(self, root, device, pool, key):
        self.root, self.device, self.pool, self.key = root, device, pool, key
        self.generation = 0
        self.asked = root.nbytes  # of the bytes; the rest of the block belongs to nobody
        self.in_use = self.released = False
        self.last_write = None
        self.last_reads = {}

    def poison_behind(self, end):
        """Fill the rest of the block, behind what was asked for."""
        self.root[end:] = POISON

    def is_overrun(self, end):
        """Whether somebody wrote into the rest of the block since."""
        return bool((self.root[end:] != POISON).any())

    def use_on(self, stream, writing):
        """Check that a stream may read or write the memory now, and note that it does."""
        if self.released or self.pool() is None:
            raise StandinError("memory is used that its pool has given back: keep the pool as long as its arrays")
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
    stream.begin((), (allocation.memory,))
    machine.log.append(("copy", stream.name, source.nbytes))
    PendingCopy(source, target, allocation, stream)
