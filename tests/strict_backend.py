"""A third backend, registered from outside: array_api_strict, on the host, with no writes in place."""

from __future__ import annotations

import contextlib

import array_api_strict
import numpy as np

from culux.backends import Memory, Place
from culux.errors import DeviceError, DTypeError, KernelError


class StrictUpload:
    """Host memory of its own for each copy."""

    def stage(self, nbytes):
        self.staged = np.empty(nbytes, np.uint8)
        return self.staged

    def start(self):
        return array_api_strict.asarray(self.staged)

    def wait(self):
        pass

    def close(self):
        pass


class StrictBackend:
    name = "array_api_strict"
    kind = "array_api_strict"
    array_types = (type(array_api_strict.zeros(1)),)
    xp = array_api_strict
    writes_in_place = False
    has_float64 = True
    has_streams = False

    def accepts(self, array):
        return True

    def is_float(self, array):
        return array_api_strict.isdtype(array.dtype, "real floating")

    def device_count(self):
        return 1

    def place_of(self, array):
        return Place(self.kind)

    def from_host(self, array, index):
        self.move(array, index)
        try:
            return array_api_strict.asarray(array)
        except TypeError as error:
            raise DTypeError(f"array_api_strict has no arrays of dtype {array.dtype}") from error

    def to_host(self, array):
        return np.from_dlpack(array)

    def move(self, array, index):
        if index:
            raise DeviceError(f"array_api_strict has one device, got index {index}")
        return array

    def astype(self, array, dtype):
        return array_api_strict.astype(array, getattr(array_api_strict, np.dtype(dtype).name), copy=False)

    def synchronize(self, index):
        pass

    def memory(self, index):
        return Memory()

    def stream(self, index):
        return contextlib.nullcontext()

    def matmul_precision(self, name):
        return contextlib.nullcontext()

    def upload(self, index):
        return StrictUpload()

    def empty(self, like, shape, dtype):
        return self.xp.empty(shape, dtype=getattr(self.xp, np.dtype(dtype).name))

    def contiguous(self, array):
        return self.xp.asarray(array, copy=True)

    def allocations(self, note):
        return contextlib.nullcontext()

    def compile(self, source, name, options=()):
        raise KernelError("array_api_strict runs no CUDA kernels")

    def launch(self, kernel, grid, block, args, shared=0):
        raise KernelError("array_api_strict runs no CUDA kernels")

    def shared_limit(self, index):
        raise KernelError("array_api_strict runs no CUDA kernels")

    def timer(self, index):
        raise KernelError("array_api_strict runs no CUDA kernels")


backend = StrictBackend
