"""Leaves and trees in another float dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux import tree
from culux.backends.registry import backend_of, is_array, is_float_array
from culux.core.fields import untraced

__all__ = ["convert", "converted"]


def convert(leaf: Any, dtype: np.dtype[Any]) -> Any:
    """A float array (traced too) or a NumPy float in another dtype; the same object where it has it, and all else."""
    value = untraced(leaf)
    if not is_float_array(value) and not _is_float_scalar(value):
        return leaf
    if is_array(leaf):
        return backend_of(leaf).astype(leaf, dtype)
    return leaf if leaf.dtype == dtype else leaf.astype(dtype)


def converted(values: Any, dtype: np.dtype[Any]) -> Any:
    """A tree with every leaf through `convert`."""
    return tree.map(lambda leaf: convert(leaf, dtype), values)


def _is_float_scalar(value: Any) -> bool:
    return isinstance(value, np.generic) and (value.dtype.kind == "f" or value.dtype.name == "bfloat16")
