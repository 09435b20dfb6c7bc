"""Stands for ``cupy._core``: how matrix products compute."""

from __future__ import annotations

_compute_types = {"float32": 1}  # CuPy's COMPUTE_TYPE_DEFAULT


def get_compute_type(dtype):
    return _compute_types[dtype]


def set_compute_type(dtype, compute_type):
    if compute_type not in (1, 2, 4, 7):
        raise ValueError(compute_type)
    _compute_types[dtype] = compute_type
