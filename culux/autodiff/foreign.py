"""Traced arrays in foreign hands: the tables behind NumPy's and CuPy's protocols, and better errors.

NumPy hands a call with a traced array over by ``__array_ufunc__`` and ``__array_function__``, CuPy's
ufuncs and ElementwiseKernels by ``__cupy_override_elementwise_kernel__``. `culux.numpy` fills the tables.
"""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from culux.autodiff.tracer import Tracer
from culux.errors import DifferentiationError

__all__ = ["explain_foreign", "install"]

_ufuncs: dict[Any, Callable[..., Any]] = {}
_reductions: dict[Any, Callable[..., Any]] = {}
_functions: dict[Any, Callable[..., Any]] = {}
_names: dict[str, Callable[..., Any]] = {}


def install(
    *,
    operators: Mapping[str, Any],
    ufuncs: Mapping[Any, Callable[..., Any]],
    reductions: Mapping[Any, Callable[..., Any]],
    functions: Mapping[Any, Callable[..., Any]],
    names: Mapping[str, Callable[..., Any]],
) -> None:
    """Give traced arrays their operations.

    Args:
        operators: methods and properties of `Tracer` by name (``__add__``, ``sum``, ``T``, ...).
        ufuncs: NumPy ufuncs to culux functions.
        reductions: NumPy ufuncs to what their ``reduce`` method does.
        functions: other NumPy functions to culux functions.
        names: the culux.numpy functions by name; CuPy's kernels are found by theirs.
    """
    for name, member in operators.items():
        setattr(Tracer, name, member)
    _ufuncs.update(ufuncs)
    _reductions.update(reductions)
    _functions.update(functions)
    _names.update(names)


def _array_ufunc(self: Tracer, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
    if kwargs.pop("out", None) is not None:
        raise DifferentiationError(
            f"numpy.{ufunc.__name__}: out= would overwrite a value that the gradient needs; use the result instead"
        )
    table = {"__call__": _ufuncs, "reduce": _reductions}.get(method, {})
    function = table.get(ufunc)
    if function is None:
        suffix = "" if method == "__call__" else f".{method}"
        raise DifferentiationError(_no_rule(f"numpy.{ufunc.__name__}{suffix}"))
    return function(*inputs, **kwargs)


def _array_function(self: Tracer, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    name = f"{func.__module__}.{func.__name__}"
    if kwargs.pop("out", None) is not None:
        raise DifferentiationError(
            f"{name}: out= would overwrite a value that the gradient needs; use the result instead"
        )
    function = _functions.get(func)
    if function is None:
        raise DifferentiationError(_no_rule(name))
    return function(*args, **kwargs)


def _cupy_kernel(self: Tracer, kernel: Any, *args: Any, **kwargs: Any) -> Any:
    name = getattr(kernel, "name", type(kernel).__name__)
    function = _names.get(name.removeprefix("cupy_"))
    if function is None or not name.startswith("cupy_"):
        raise DifferentiationError(_no_rule(f"the CuPy kernel {name!r}"))
    if kwargs.pop("out", None) is not None or len(args) > getattr(kernel, "nin", len(args)):  # x += t: add(x, t, x)
        raise DifferentiationError(f"cupy.{name[5:]}: out= would overwrite a value that the gradient needs")
    return function(*args, **kwargs)


for _name, _protocol in {
    "__array_ufunc__": _array_ufunc,
    "__array_function__": _array_function,
    "__cupy_override_elementwise_kernel__": _cupy_kernel,
}.items():
    setattr(Tracer, _name, _protocol)


def _no_rule(name: str) -> str:
    return (
        f"{name} has no rule, so it cannot be differentiated; write it with culux.numpy functions, wrap it in "
        "@culux.custom_gradient (you give the derivative), or pass it culux.stop_gradient(x)"
    )


_CALL = re.compile(r"([\w.]+)\s*\(")


def explain_foreign(error: Exception) -> str | None:
    """What to say of an array library's complaint about a traced array; None where it is another error.

    Names the function, the line that called it, and the culux spelling.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or ("Tracer" not in str(error) and not _is_library(frames[-1].filename)):
        return None
    if "Tracer" not in str(error) and not isinstance(error, (TypeError, AttributeError)):
        return None
    ours = [frame for frame in frames if not _is_library(frame.filename) and not _is_culux(frame.filename)]
    if not ours:
        return None
    frame = ours[-1]
    line = frame.line or ""
    failed = linecache.getline(frame.filename, frame.lineno or 0)[frame.colno : frame.end_colno]
    called = _CALL.findall(failed) or _CALL.findall(line)
    function = called[0] if called else "a function"
    name = function.rpartition(".")[2]
    spelling = f"culux.numpy.{name}" if name in _names else "culux.numpy functions"
    return (
        f"{function} cannot take a traced array ({error}), called at {Path(frame.filename).name}:{frame.lineno}: "
        f"{line}; use {spelling}, or wrap the call in @culux.custom_gradient"
    )


def _is_library(filename: str) -> bool:
    parts = Path(filename).parts
    return ("numpy" in parts[:-1] and "culux" not in parts) or "cupy" in parts or "cupyx" in parts


def _is_culux(filename: str) -> bool:
    return str(Path(__file__).parent.parent) in filename
