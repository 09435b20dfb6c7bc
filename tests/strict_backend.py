"""A third backend, registered from outside: array_api_strict, on the host, with no writes in place."""

from __future__ import annotations

import contextlib

import array_api_strict
import numpy as np

from culux.backends import Memory, Place
from culux.errors import DTypeError, KernelError


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
        try:
            return array_api_strict.asarray(array)
        except TypeError as error:
            raise DTypeError(f"array_api_strict has no arrays of dtype {array.dtype}") from error

    def to_host(self, array):
        return np.from_dlpack(array)

    def move(self, array, index):
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
        raise NotImplementedError

    def empty(self, like, shape, dtype):
        return self.xp.empty(shape, dtype=dtype)

    def contiguous(self, array):
        return array

    def allocations(self, note):
        return contextlib.nullcontext()

    def compile(self, source, name, options=()):
        raise KernelError("array_api_strict runs no CUDA kernels")

    def launch(self, kernel, grid, block, args, shared=0):
        raise KernelError("array_api_strict runs no CUDA kernels")


backend = StrictBackend
