"""The stand-in's `cupyx`."""

from __future__ import annotations

import numpy as np

from tests.standin_cupy.runtime import POISON


def empty_pinned(shape, dtype=float, order="C"):
    """Page-locked host memory, poisoned."""
    host = np.empty(shape, dtype, order)
    host.reshape(-1).view(np.uint8)[...] = POISON
    return host


def zeros_pinned(shape, dtype=float, order="C"):
    return np.zeros(shape, dtype, order)


def scatter_add(array, index, value):
    array.scatter_add(index, value)
