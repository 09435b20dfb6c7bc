"""Memory for flat buffers on the host that is used again as soon as nothing refers to it.

New memory costs a page fault per 4 KiB, which for a model of some megabytes takes longer than the update
itself. A GPU's library has such a pool of its own.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from culux.backends import Array

__all__ = ["Pool"]

SMALL = 1 << 16  # bytes; the allocator keeps smaller memory itself


class Pool:
    """Memory of the flat buffers of one optimiser; it goes when the optimiser's states have gone.

    A buffer's memory comes back when the buffer and all views of it are gone, so nothing that anybody can
    still read is ever written to.
    """

    __slots__ = ("__weakref__", "_free", "_used", "chunks")

    def __init__(self) -> None:
        self.chunks: dict[Any, Any] = {}  # by device, what kernels know of the buffers; see `culux.optim.fused`
        self._free: dict[int, list[np.ndarray]] = {}
        self._used: dict[int, tuple[weakref.ref[np.ndarray], np.ndarray]] = {}  # by the id of the reference

    def empty(self, size: int, dtype: Any) -> np.ndarray:
        """A flat NumPy array with any content."""
        dtype = np.dtype(dtype)
        nbytes = size * dtype.itemsize
        if nbytes < SMALL:
            return np.empty(size, dtype)
        try:
            memory = self._free[nbytes].pop()
        except (KeyError, IndexError):
            memory = np.empty(nbytes, np.uint8)
        # Views of an array over a memoryview refer to that array, not to the memory: its end is theirs too.
        buffer = np.frombuffer(memory.data, dtype)
        pool = weakref.ref(self)
        ref = weakref.ref(buffer, lambda ref: _give_back(pool, ref))
        self._used[id(ref)] = ref, memory
        return buffer

    def copy(self, buffer: Array) -> Array:
        """A copy of a flat buffer."""
        if type(buffer) is not np.ndarray:
            return buffer.copy()
        new = self.empty(buffer.size, buffer.dtype)
        new[:] = buffer
        return new


def _give_back(pool: weakref.ref[Pool], ref: weakref.ref[np.ndarray]) -> None:
    owner = pool()
    if owner is not None:
        _, memory = owner._used.pop(id(ref))
        owner._free.setdefault(memory.size, []).append(memory)
