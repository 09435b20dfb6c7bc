"""`destructure`: a tree of parameters as one vector, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from culux import numpy as cnp
from culux import tree
from culux.autodiff import stop_gradient
from culux.backends import Array, is_float_array
from culux.errors import ShapeError, describe

__all__ = ["destructure"]


def destructure(params: Any) -> tuple[Array, Callable[[Array], Any]]:
    """The float arrays of a tree as one vector, and the function that makes such a tree of such a vector.

    Both ways are differentiable. Arrays of several dtypes are promoted to a common one in the vector and get
    their own back. Leaves that are one array (tied weights) appear once. Other leaves stay in the tree.

    Args:
        params: a tree of parameters.

    Returns:
        ``(flat, restore)``: `flat` has shape (n,); ``restore(flat)`` is a tree of the structure, shapes and
        dtypes of `params`.

    Raises:
        ShapeError: for a tree without float arrays; from `restore`, for a vector of another length.
    """
    leaves, structure = tree.flatten(params)
    slots: list[int | None] = []
    arrays: list[Array] = []
    position: dict[int, int] = {}
    for leaf in leaves:
        trained = is_float_array(stop_gradient(leaf))
        if trained and id(leaf) not in position:
            position[id(leaf)] = len(arrays)
            arrays.append(leaf)
        slots.append(position[id(leaf)] if trained else None)
    if not arrays:
        raise ShapeError(f"destructure: expected a tree with float arrays, got {describe(params)}")
    shapes = [tuple(array.shape) for array in arrays]
    dtypes = [array.dtype for array in arrays]
    sizes = [math.prod(shape) for shape in shapes]

    def restore(flat: Array) -> Any:
        if tuple(getattr(flat, "shape", ())) != (sum(sizes),):
            raise ShapeError(f"restore: expected a vector of shape ({sum(sizes)},), got {describe(flat)}")
        parts, start = [], 0
        for shape, dtype, size in zip(shapes, dtypes, sizes, strict=True):
            part = cnp.reshape(flat[start : start + size], shape)
            parts.append(part if part.dtype == dtype else cnp.astype(part, dtype))
            start += size
        values = [leaf if slot is None else parts[slot] for leaf, slot in zip(leaves, slots, strict=True)]
        return tree.unflatten(structure, values)

    return cnp.concatenate([cnp.ravel(array) for array in arrays]), restore
