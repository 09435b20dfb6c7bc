"""What the fused operations share: their portable form as a rule, and float32 for half precision."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from culux.autodiff import Primitive, vjp
from culux.autodiff.tracer import Pullback, Tracer, plain
from culux.backends import Array, backend_of, is_array, is_float_array
from culux.errors import DTypeError, describe
from culux.kernels import supports
from culux.numpy.broadcasting import is_half

__all__ = [
    "column_sum",
    "decompose",
    "evaluate_by_rule",
    "is_plain",
    "narrow",
    "on_kernels",
    "require_float",
    "row_of_ones",
    "widen",
]

_BLAS_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def decompose(
    operation: Primitive, needs: tuple[bool, ...], args: tuple[Any, ...], static: Mapping[str, Any]
) -> tuple[Any, Pullback]:
    """The value and pullback of a composite operation, by differentiating its portable form.

    It is the rule where there is no faster one (other libraries, mixed dtypes, a user's function as the
    activation), and the pullback for a traced cotangent, which no BLAS takes.
    """
    portable = operation.operation.portable
    if not any(needs):
        return portable(*args, **static), lambda dy: (None,) * len(args)

    def of_wanted(*values: Any) -> Any:
        wanted = iter(values)
        return portable(*[next(wanted) if need else a for a, need in zip(args, needs, strict=True)], **static)

    y, back = vjp(of_wanted, *[a for a, need in zip(args, needs, strict=True) if need])

    def pullback(dy: Any) -> tuple[Any, ...]:
        found = iter(back(dy))
        return tuple([next(found) if need else None for need in needs])

    return y, pullback


def evaluate_by_rule(operation: Primitive, *backends: str) -> None:
    """Let the arrays of these backends take the rule of an operation also where nothing is differentiated."""

    def evaluate(*args: Any, **static: Any) -> Any:
        rule: Any = operation.operation.vjp_rule
        return rule((False,) * len(args), *args, **static)[0]

    for backend in backends:
        operation.implementation(backend)(evaluate)


def is_plain(*arrays: Any) -> bool:
    """Whether all (None aside) are NumPy arrays of one dtype, float32 or float64: what BLAS and ``out=`` take."""
    dtype = arrays[0].dtype
    if type(arrays[0]) is not np.ndarray or dtype not in _BLAS_DTYPES:  # another library's dtype may not be compared
        return False
    for a in arrays:
        if a is not None and (type(a) is not np.ndarray or a.dtype != dtype):
            return False
    return True


def on_kernels(x: Any, *parameters: Any) -> bool:
    """Whether our CUDA kernels take these arrays: plain ones of CuPy, floats; the parameters of one dtype.

    The parameters (None aside) are of the dtype of `x`, or all of float32.
    """
    kind = type(x)
    if kind is np.ndarray or kind is Tracer or backend_of(x).name != "cupy" or not supports(x.dtype):
        return False
    given = [p for p in parameters if p is not None]
    if not given:
        return True
    dtype = getattr(given[0], "dtype", None)
    return (dtype == x.dtype or dtype == np.float32) and all(type(p) is kind and p.dtype == dtype for p in given)


def widen(x: Any) -> Any:
    """`x` in float32 where it is float16 or bfloat16; sums of many such numbers need it."""
    return x.astype(np.float32) if is_half(x) else x


def narrow(y: Array, like: Array) -> Array:
    """`y` in the dtype of `like` where that is float16 or bfloat16: the way back from `widen`."""
    return y.astype(like.dtype) if is_half(like) else y


@functools.lru_cache(maxsize=64)
def row_of_ones(count: int, dtype: np.dtype[Any]) -> np.ndarray:
    """``np.ones(count, dtype)``, kept and read-only: times a matrix it gives the sums of the columns."""
    ones = np.ones(count, dtype)
    ones.flags.writeable = False
    return ones


def column_sum(rows: np.ndarray) -> np.ndarray:
    """The sum over the rows of a NumPy matrix; a product with ones takes a third of ``sum(0)``'s time."""
    total: np.ndarray = row_of_ones(len(rows), rows.dtype).dot(rows)
    return total


def require_float(function: str, x: Any, name: str = "x") -> None:
    """Raise a `DTypeError` where `x`, called `name` there, is no float array, traced or plain."""
    if type(x) is not np.ndarray or x.dtype.kind != "f":
        value = plain(x)
        if not is_float_array(value) and not isinstance(value, np.floating):
            way_out = _conversion(value, name)
            raise DTypeError(f"{function}: expected {name} to be a float array, got {describe(x)}; {way_out}")


def _conversion(value: Any, name: str) -> str:
    """What makes a float array of `value`."""
    if is_array(value):
        return f"{name}.astype('float32')"
    foreign = hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray)
    return f"{name} = culux.cpu_device()({name})" if foreign else f"{name} = np.asarray({name}, 'float32')"
