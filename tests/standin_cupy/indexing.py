"""Indices of the stand-in's arrays: which of them are arrays, and what a capture takes."""

from __future__ import annotations

import numpy as np

from tests.standin_cupy import runtime


def items_of(index):
    return index if isinstance(index, tuple) else (index,)


def arrays_in(index):
    """The device arrays in an index."""
    return [item for item in items_of(index) if hasattr(item, "_allocation")]


def on_host(index):
    """The index with NumPy arrays over the same memory in place of device arrays."""
    if isinstance(index, tuple):
        return tuple(on_host(item) for item in index)
    return index._host if hasattr(index, "_allocation") else index


def part(host, index):
    """What NumPy returns for an index; a view also of a single element, as CuPy's."""
    found = host[index]
    return host[(*items_of(index), ...)] if isinstance(found, np.generic) else found


def refuse_host_arrays(index):
    """An index that lies on the host is copied to the device, which a capture does not take."""
    if any(isinstance(item, list | np.ndarray) for item in items_of(index)):
        runtime.get_current_stream().refuse_capture("H2D transfers")


def refuse_masks(index):
    """How much a mask selects is known to the device alone."""
    if any(array.dtype == bool for array in arrays_in(index)):
        runtime.get_current_stream().refuse_capture("synchronous API calls")
