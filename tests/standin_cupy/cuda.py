"""The stand-in's `cupy.cuda`, memory pools and raw kernels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from tests.standin_cupy import runtime as fake
from tests.standin_cupy.runtime import CompileException, CUDARuntimeError, machine
from tests.standin_cupy.runtime import Device as Device
from tests.standin_cupy.runtime import Event as Event
from tests.standin_cupy.runtime import Stream as Stream
from tests.standin_cupy.runtime import get_current_stream as get_current_stream

TOTAL = 80 * 2**30

compiler = SimpleNamespace(CompileException=CompileException)


class MemoryPool:
    def used_bytes(self):
        return machine.used[fake.current_device()]

    def total_bytes(self):
        return machine.held[fake.current_device()]

    def free_all_blocks(self, stream=None):
        machine.free.clear()


class PinnedMemoryPool:
    def n_free_blocks(self):
        return 0

    def free_all_blocks(self):
        pass


_pool = MemoryPool()
_pinned_pool = PinnedMemoryPool()


def get_default_memory_pool():
    return _pool


def get_default_pinned_memory_pool():
    return _pinned_pool


def is_available():
    return machine.device_count > 0


def alloc_pinned_memory(size):
    return memoryview(np.full(size, fake.POISON, np.uint8))


def _get_device_count():
    if not machine.device_count:
        raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    return machine.device_count


def _memory_info():
    return TOTAL - machine.held[fake.current_device()], TOTAL


runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDevice=fake.current_device,
    getDeviceCount=_get_device_count,
    memGetInfo=_memory_info,
    runtimeGetVersion=lambda: 12090,
    driverGetVersion=lambda: 12090,
    deviceSynchronize=lambda: Device().synchronize(),
)


class RawKernel:
    """A kernel that can be made; a launch is noted and refused."""

    def __init__(self, code, name, options=(), backend="nvrtc", **kwargs):
        self.code, self.name, self.options = code, name, options

    def __call__(self, grid, block, args, *, shared_mem=0):
        machine.log.append(("launch", self.name, grid, block, args, shared_mem))
        if "#error" in self.code:
            raise CompileException("#error directive")
        raise NotImplementedError(f"the stand-in runs no kernels: {self.name}")


class RawModule:
    def __init__(self, *, code=None, path=None, options=(), backend="nvrtc", name_expressions=None, **kwargs):
        self.code, self.options, self.name_expressions = code, options, name_expressions

    def get_function(self, name):
        return RawKernel(self.code, name, self.options)


Stream.null = Stream(null=True)
