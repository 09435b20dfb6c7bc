"""The tables behind traced arrays: operators, methods, and what NumPy's and CuPy's protocols hand over."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from culux.autodiff.foreign import install
from culux.autodiff.primitives import explain
from culux.autodiff.tracer import Tracer, plain
from culux.backends import Array
from culux.backends.registry import backend_of

__all__ = ["constant", "install_operators"]

_NO_STATIC: Mapping[str, Any] = {}


def constant(name: str) -> Callable[..., Any]:
    """A function without derivative, on the plain arrays behind traced ones: comparisons, argmax, sign, ..."""

    def function(*args: Any, **kwargs: Any) -> Any:
        values = [plain(a) for a in args]
        named = {key: plain(a) for key, a in kwargs.items()}
        return getattr(backend_of(*values, *named.values()).xp, name)(*values, **named)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"NumPy's ``{name}``; a constant for the gradient."
    return function


def _compare(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda self, other: compare(plain(self), plain(other))


def _binary(function: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The operator of a function and the reflected one; primitives go straight to the trace."""
    operation = getattr(function, "operation", None)
    if operation is None:
        return lambda self, other: function(self, other), lambda self, other: function(other, self)

    def straight(self: Tracer, other: Any) -> Any:
        trace = self.scope
        if type(other) is Tracer and other.scope.level > trace.level:
            trace = other.scope
        args = (self, other)
        try:
            return trace.process(operation, args, _NO_STATIC)
        except Exception as error:
            explain(operation, args, error)
            raise

    return straight, lambda self, other: function(other, self)


def _reshape_method(reshape: Callable[..., Array]) -> Callable[..., Array]:
    def method(self: Array, *shape: Any, order: str = "C") -> Array:
        return reshape(self, shape[0] if len(shape) == 1 else shape, order)

    return method


def _transpose_method(transpose: Callable[..., Array]) -> Callable[..., Array]:
    def method(self: Array, *axes: Any) -> Array:
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        return transpose(self, order or None)

    return method


def _reduce(function: Callable[..., Array]) -> Callable[..., Array]:
    """``ufunc.reduce`` from a reduction: it goes over the first axis where none is named."""
    return lambda a, axis=0, **rest: function(a, axis, **rest)


_BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power", "matmul": "matmul",
    "mod": "mod", "floordiv": "floor_divide",
}  # fmt: skip
_METHODS = (
    "sum mean var std max min prod cumsum astype clip ravel squeeze swapaxes repeat take dot diagonal trace"
    " argmax argmin argsort round all any nonzero"
).split()


def _operators(f: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """The operators, methods and properties of a traced array by name."""
    operators: dict[str, Any] = {}
    for name, function in _BINARY.items():
        operators[f"__{name}__"], operators[f"__r{name}__"] = _binary(f[function])
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        operators[f"__{name}__"] = _compare(getattr(operator, name))
    return operators | {
        "__neg__": f["negative"],
        "__pos__": f["positive"],
        "__abs__": f["abs"],
        "__getitem__": f["getitem"],
        "__iter__": lambda self: builtins.iter([self[i] for i in range(len(self))]),
        "T": property(lambda self: f["transpose"](self)),
        "mT": property(lambda self: f["swapaxes"](self, -1, -2)),
        "reshape": _reshape_method(f["reshape"]),
        "transpose": _transpose_method(f["transpose"]),
        "flatten": f["ravel"],
        "copy": f["copy"],
        **{name: f[name] for name in _METHODS},
    }


def install_operators(functions: Mapping[str, Callable[..., Any]], linalg: Mapping[str, Callable[..., Any]]) -> None:
    """Give traced arrays the functions of this namespace as operators, methods and protocol answers."""
    found = {getattr(np, name): function for name, function in functions.items() if hasattr(np, name)}
    ufuncs = {key: function for key, function in found.items() if isinstance(key, np.ufunc)}
    others = {key: function for key, function in found.items() if not isinstance(key, np.ufunc)}
    reductions = {np.add: "sum", np.multiply: "prod", np.maximum: "max", np.minimum: "min"}
    install(
        operators=_operators(functions),
        ufuncs=ufuncs,
        reductions={ufunc: _reduce(functions[name]) for ufunc, name in reductions.items()},
        functions=others | {getattr(np.linalg, name): function for name, function in linalg.items()},
        names=functions,
    )
