"""Comparing numbers: how far two right computations may lie apart, and which element lies furthest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from culux import tree
from culux.backends import backend_of, is_float_array
from culux.backends.dtypes import float_dtype
from culux.errors import CheckError, DTypeError, describe

__all__ = ["TOLERANCE", "as_host", "assert_same", "checked_dtypes", "is_float", "mismatches", "require", "worst"]

TOLERANCE: Mapping[str, float] = {"float16": 1e-2, "bfloat16": 8e-2, "float32": 2e-5, "float64": 1e-10}
"""What two right computations may differ by in each dtype, relative and absolute."""


def checked_dtypes(dtypes: Sequence[str]) -> list[np.dtype[Any]]:
    """Float dtypes by their names, the widest last.

    Raises:
        DTypeError: where there is none, or for another dtype.
    """
    found = sorted(map(float_dtype, dtypes), key=lambda dtype: dtype.itemsize)
    if not found:
        raise DTypeError("expected the float dtypes that are taken and kept, got none; dtypes=('float32', 'float64')")
    return found


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a float array, or a NumPy scalar, which reductions of NumPy arrays give."""
    return is_float_array(leaf) or (isinstance(leaf, np.generic) and leaf.dtype.kind in "fV")


def as_host(x: Any) -> np.ndarray:
    """An array of any backend, or a number, as a NumPy array."""
    backend = backend_of(x)
    return np.asarray(x if backend.name == "numpy" else backend.to_host(x))


def worst(found: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> tuple[tuple[int, ...], int] | None:
    """The index of the element furthest beyond ``atol + rtol |expected|``, and how many are beyond; None for none.

    NaN equals NaN; infinities are equal to themselves.
    """
    close = np.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return None
    with np.errstate(invalid="ignore"):
        beyond = np.abs(np.subtract(found, expected, dtype=np.float64)) - rtol * np.abs(expected)
    beyond = np.where(close, -np.inf, np.where(np.isfinite(beyond), beyond, np.inf))
    index = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
    return tuple(int(i) for i in index), int(np.sum(~close))


def mismatches(found: Any, expected: Any, rtol: float, atol: float | None = None, *, of: str = "expected") -> list[str]:
    """What to say of two trees whose leaves do not agree: a line for each leaf, with its worst element.

    Args:
        found: a tree of arrays of any backend and numbers.
        expected: a tree with as many leaves; what holds them may be another container.
        rtol: the relative tolerance.
        atol: the absolute tolerance; `rtol` if None.
        of: what the expected value is called.
    """
    entries, wanted = tree.leaves_with_path(found), tree.leaves(expected)
    if len(entries) != len(wanted):
        return [f"{of} {len(wanted)} arrays, got {len(entries)}"]
    atol = rtol if atol is None else atol
    lines = (_mismatch(path, a, b, rtol, atol, of) for (path, a), b in zip(entries, wanted, strict=True))
    return [line for line in lines if line]


def _mismatch(path: str, found: Any, expected: Any, rtol: float, atol: float, of: str) -> str:
    one, other = _numbers(found), _numbers(expected)
    label = f"{path}: " if path else ""
    if one is None or other is None:
        return "" if found == expected else f"{label}{of} {describe(expected)}, got {describe(found)}"
    if one.shape != other.shape:
        return f"{label}{of} shape {other.shape}, got {one.shape}"
    apart = worst(one, other, rtol, atol)
    if apart is None:
        return ""
    index, count = apart
    place = f"{path}{list(index) if index else ''}"
    return (
        f"{f'{place}: ' if place else ''}{of} {other[index]:.9g}, got {one[index]:.9g}; "
        f"{count} of {one.size} elements are not equal to a tolerance of {rtol:.2g}"
    )


def _numbers(value: Any) -> np.ndarray | None:
    """The numbers of a leaf: floats in float64, so that the comparison adds no rounding; None for what is no number."""
    if value is None or isinstance(value, str):
        return None
    array = as_host(value)
    if array.dtype.kind in "fV":  # bfloat16 is of kind V
        return array.astype(np.float64)
    return array.astype(np.int8) if array.dtype.kind == "b" else array if array.dtype.kind in "iu" else None


def require(problems: list[str], what: str = "") -> None:
    """Raise a `CheckError` of these problems where there are any."""
    if problems:
        raise CheckError("\n".join([*([what] if what else []), *problems]))


def assert_same(found: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Raise a `CheckError` where two trees of arrays are not equal to a relative and absolute tolerance."""
    require(mismatches(found, expected, tolerance), what)
