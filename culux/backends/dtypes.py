"""The float dtypes that culux computes with."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from culux.errors import DTypeError

__all__ = ["dtype_named", "float_dtype"]

_FLOATS = ("float16", "float32", "float64", "bfloat16")


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """A real floating dtype by name or object.

    Raises:
        DTypeError: for any other dtype.
    """
    try:
        if str(dtype) == "bfloat16":
            import ml_dtypes  # noqa: F401 (NumPy knows the name from then on)
        found: np.dtype[Any] = np.dtype(dtype)
    except (ImportError, TypeError) as error:
        raise DTypeError(f"expected one of {', '.join(_FLOATS)}, got {dtype!r} ({error})") from error
    if found.name not in _FLOATS:
        raise DTypeError(f"expected one of {', '.join(_FLOATS)}, got {found.name}: only floats are converted")
    return found


@functools.cache
def dtype_named(name: str) -> np.dtype[Any]:
    """`float_dtype` of a name, looked up once: for what is asked at every call."""
    return float_dtype(name)
