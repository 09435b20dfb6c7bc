"""The stand-in's `cupy.cuda.memory`: pools of poisoned memory, hooks, and the allocator of a thread.

As in CuPy, a pool keeps what is freed for the same stream, and its arrays do not keep the pool alive.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict

import numpy as np

from tests.standin_cupy import runtime
from tests.standin_cupy.errors import OutOfMemoryError as OutOfMemoryError
from tests.standin_cupy.runtime import POISON, machine

UNIT = 512  # CuPy's pools round sizes up to this


class MemoryHook:
    """Called around every allocation of the thread that entered it."""

    name = "MemoryHook"

    def __enter__(self):
        hooks = _hooks()
        if self.name in hooks:
            raise KeyError(f"memory hook {self.name} already exists")
        hooks[self.name] = self
        return self

    def __exit__(self, *exception):
        del _hooks()[self.name]

    def alloc_preprocess(self, **kwargs):
        pass

    alloc_postprocess = malloc_preprocess = malloc_postprocess = alloc_preprocess
    free_preprocess = free_postprocess = alloc_preprocess


def _hooks():
    return machine.local.__dict__.setdefault("hooks", {})


def _call_hooks(method, **kwargs):
    for hook in list(_hooks().values()):
        getattr(hook, method)(**kwargs)


class MemoryPointer:
    """A place in an allocation."""

    def __init__(self, mem, offset):
        self.mem, self.offset = mem, offset
        self.device_id = mem.memory.device

    @property
    def ptr(self):
        root = self.mem.memory.root
        return root.__array_interface__["data"][0] + self.offset if root.nbytes else 0

    @property
    def device(self):
        return runtime.Device(self.device_id)

    def __add__(self, offset):
        return MemoryPointer(self.mem, self.offset + offset)


class Allocation:
    """Memory as long as an array holds it; then it goes back to its pool, poisoned, its history kept."""

    def __init__(self, memory):
        self.memory = memory
        memory.generation += 1
        memory.in_use = True

    def __del__(self):
        memory = self.memory
        memory.in_use = False
        memory.root[...] = POISON
        pool = memory.pool()
        if pool is None:
            return
        about = {"device_id": memory.device, "mem_size": memory.root.nbytes, "pmem_id": id(self)}
        about["mem_ptr"] = MemoryPointer(self, 0).ptr
        _call_hooks("free_preprocess", **about)
        pool._take_back(memory)
        _call_hooks("free_postprocess", **about)


class _DevicePool:
    def __init__(self):
        self.free = defaultdict(list)  # by stream and size
        self.used = self.total = self.limit = 0


class MemoryPool:
    """`cupy.cuda.MemoryPool`; it does not split blocks."""

    def __init__(self):
        self._devices = defaultdict(_DevicePool)
        self._held = machine.held

    def __del__(self):
        for device, own in self._devices.items():
            self._held[device] -= own.total

    def malloc(self, size):
        device, rounded = runtime.current_device(), -(-size // UNIT) * UNIT
        about = {"device_id": device, "size": size, "mem_size": rounded}
        _call_hooks("malloc_preprocess", **about)
        pointer = None
        try:
            memory = self._memory(rounded)
            memory.asked = size
            pointer = MemoryPointer(Allocation(memory), 0)
        finally:
            ptr, mem = (0, 0) if pointer is None else (pointer.ptr, id(pointer.mem))
            _call_hooks("malloc_postprocess", **about, mem_ptr=ptr, pmem_id=mem)
        return pointer

    def _memory(self, size):
        own = self._own()
        key = (runtime.get_current_stream().name, size)
        if own.free[key]:
            memory = own.free[key].pop()
        else:
            memory = self._new_memory(own, key)
        memory.root[...] = POISON
        own.used += size
        return memory

    def _new_memory(self, own, key):
        device, size = runtime.current_device(), key[1]
        if own.limit and own.total + size > own.limit:
            raise OutOfMemoryError(size, own.total, own.limit)
        before = own.total
        _call_hooks("alloc_preprocess", device_id=device, mem_size=size)
        if machine.held[device] + size > machine.device_bytes:
            self.free_all_blocks()
        if machine.held[device] + size > machine.device_bytes:
            _call_hooks("alloc_postprocess", device_id=device, mem_size=size, mem_ptr=0)
            raise OutOfMemoryError(size, before, own.limit)
        own.total += size
        self._held[device] += size
        keeps = self is machine.default_pool  # which lives as long as the process
        root = np.empty(size, np.uint8)
        memory = runtime.Memory(root, device, (lambda: self) if keeps else weakref.ref(self), key)
        _call_hooks("alloc_postprocess", device_id=device, mem_size=size, mem_ptr=root.ctypes.data)
        return memory

    def _take_back(self, memory):
        own = self._devices[memory.device]
        own.used -= memory.root.nbytes
        own.free[memory.key].append(memory)

    def free_all_blocks(self, stream=None):
        own = self._own()
        for key, blocks in own.free.items():
            if stream is None or key[0] == stream.name:
                for memory in blocks:
                    memory.released = True
                    own.total -= memory.root.nbytes
                    self._held[memory.device] -= memory.root.nbytes
                blocks.clear()

    def set_limit(self, size=None, fraction=None):
        if fraction is not None:
            raise NotImplementedError("the stand-in's pools have limits in bytes")
        self._own().limit = size or 0

    def get_limit(self):
        return self._own().limit

    def used_bytes(self):
        return self._own().used

    def free_bytes(self):
        return self.total_bytes() - self.used_bytes()

    def total_bytes(self):
        return self._own().total

    def n_free_blocks(self):
        return sum(map(len, self._own().free.values()))

    def _own(self):
        return self._devices[runtime.current_device()]


def get_default_memory_pool():
    if machine.default_pool is None:
        machine.default_pool = MemoryPool()
    return machine.default_pool


def alloc(size):
    """Memory from the thread's allocator, by default the default pool."""
    allocator = getattr(machine.local, "allocator", None)
    return (allocator or get_default_memory_pool().malloc)(size)


@contextlib.contextmanager
def using_allocator(allocator):
    outer = getattr(machine.local, "allocator", None)
    machine.local.allocator = allocator
    try:
        yield
    finally:
        machine.local.allocator = outer
