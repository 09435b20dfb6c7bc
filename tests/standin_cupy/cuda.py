"""The stand-in's `cupy.cuda` and memory pools."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from tests.standin_cupy import memory as memory
from tests.standin_cupy import runtime as fake
from tests.standin_cupy.capture import Graph as Graph
from tests.standin_cupy.errors import CompileException, CUDADriverError, CUDARuntimeError
from tests.standin_cupy.kernels import Function as Function
from tests.standin_cupy.memory import MemoryHook as MemoryHook
from tests.standin_cupy.memory import MemoryPointer as MemoryPointer
from tests.standin_cupy.memory import MemoryPool as MemoryPool
from tests.standin_cupy.memory import alloc as alloc
from tests.standin_cupy.memory import get_default_memory_pool as get_default_memory_pool
from tests.standin_cupy.memory import using_allocator as using_allocator
from tests.standin_cupy.runtime import Device as Device
from tests.standin_cupy.runtime import Event as Event
from tests.standin_cupy.runtime import Stream as Stream
from tests.standin_cupy.runtime import get_current_stream as get_current_stream
from tests.standin_cupy.runtime import get_elapsed_time as get_elapsed_time
from tests.standin_cupy.runtime import machine

compiler = SimpleNamespace(CompileException=CompileException)
driver = SimpleNamespace(CUDADriverError=CUDADriverError)


class PinnedMemoryPool:
    def n_free_blocks(self):
        return 0

    def free_all_blocks(self):
        pass


_pinned_pool = PinnedMemoryPool()


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
    return machine.device_bytes - machine.held[fake.current_device()], machine.device_bytes


def _device_properties(index):
    Device(index)
    return {
        "name": b"Stand-in",
        "totalGlobalMem": machine.device_bytes,
        "multiProcessorCount": 132,
        "l2CacheSize": 2**26,
    }


runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDevice=fake.current_device,
    getDeviceCount=_get_device_count,
    memGetInfo=_memory_info,
    runtimeGetVersion=lambda: 12090,
    driverGetVersion=lambda: 12090,
    deviceSynchronize=lambda: Device().synchronize(),
    getDeviceProperties=_device_properties,
    streamCaptureModeRelaxed=2,
)
