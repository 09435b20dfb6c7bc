"""Elementwise functions, each with its derivative beside it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from culux.autodiff import Primitive, primitive
from culux.autodiff.tracer import Pullback, Tracer
from culux.backends import Array
from culux.backends.registry import is_array, namespace_of
from culux.numpy.broadcasting import common_namespace, fit, masked, outline

Derivative = Callable[[Any, Any, Any], Any]
"""``(xp, saved, dy) -> dx``, elementwise; `xp` is the namespace to compute with, `saved` is x or y."""


def _unary(name: str, formula: str, saves: str, derivative: Derivative, note: str = "") -> Primitive:
    """The primitive ``xp.<name>(x)`` with its derivative, which reads "x" or "y"; `note` goes into its docstring."""
    host = getattr(np, name)
    saves_x = saves == "x"

    def portable(x: Array) -> Array:
        return host(x) if type(x) is np.ndarray else getattr(namespace_of(x), name)(x)

    def rule(needs: tuple[bool, ...], x: Array) -> tuple[Array, Pullback]:
        if type(x) is np.ndarray:
            y = host(x)
            return y, partial(derivative, np, x if saves_x else y)  # half of what a closure costs
        xp = namespace_of(x)
        y = getattr(xp, name)(x)
        return y, partial(derivative, xp, x if saves_x else y)

    portable.__name__ = portable.__qualname__ = name
    portable.__doc__ = f"``{formula}``, elementwise; the dtype of `x` is kept{note}."
    result = primitive(portable)
    result.rule(rule)
    return result


sin = _unary("sin", "sin(x)", "x", lambda xp, x, dy: dy * xp.cos(x))
cos = _unary("cos", "cos(x)", "x", lambda xp, x, dy: -dy * xp.sin(x))
tan = _unary("tan", "tan(x)", "y", lambda xp, y, dy: dy * (1 + y * y))
sinh = _unary("sinh", "sinh(x)", "x", lambda xp, x, dy: dy * xp.cosh(x))
cosh = _unary("cosh", "cosh(x)", "x", lambda xp, x, dy: dy * xp.sinh(x))
tanh = _unary("tanh", "tanh(x)", "y", lambda xp, y, dy: dy * (1 - y * y))
arcsin = _unary("arcsin", "arcsin(x)", "x", lambda xp, x, dy: dy / xp.sqrt(1 - x * x))
arccos = _unary("arccos", "arccos(x)", "x", lambda xp, x, dy: -dy / xp.sqrt(1 - x * x))
arctan = _unary("arctan", "arctan(x)", "x", lambda xp, x, dy: dy / (1 + x * x))
arcsinh = _unary("arcsinh", "arcsinh(x)", "x", lambda xp, x, dy: dy / xp.sqrt(x * x + 1))
arccosh = _unary("arccosh", "arccosh(x)", "x", lambda xp, x, dy: dy / xp.sqrt(x * x - 1))
arctanh = _unary("arctanh", "arctanh(x)", "x", lambda xp, x, dy: dy / (1 - x * x))
exp = _unary("exp", "exp(x)", "y", lambda xp, y, dy: dy * y)
exp2 = _unary("exp2", "2**x", "y", lambda xp, y, dy: dy * (y * math.log(2)))
expm1 = _unary("expm1", "exp(x) - 1", "y", lambda xp, y, dy: dy * (y + 1))
log = _unary("log", "log(x)", "x", lambda xp, x, dy: dy / x)
log2 = _unary("log2", "log2(x)", "x", lambda xp, x, dy: dy / (x * math.log(2)))
log10 = _unary("log10", "log10(x)", "x", lambda xp, x, dy: dy / (x * math.log(10)))
log1p = _unary("log1p", "log(1 + x)", "x", lambda xp, x, dy: dy / (1 + x))
sqrt = _unary("sqrt", "sqrt(x)", "y", lambda xp, y, dy: dy * 0.5 / y, "; the derivative at 0 is infinite")
cbrt = _unary("cbrt", "x ** (1/3)", "y", lambda xp, y, dy: dy / (3 * y * y), "; the derivative at 0 is infinite")
square = _unary("square", "x * x", "x", lambda xp, x, dy: dy * (2 * x))
reciprocal = _unary("reciprocal", "1 / x", "y", lambda xp, y, dy: -dy * (y * y))
absolute = _unary("abs", "|x|", "x", lambda xp, x, dy: dy * xp.sign(x), "; the derivative at 0 is 0")


@primitive
def negative(x: Array) -> Array:
    """``-x``, elementwise; the dtype of `x` is kept."""
    return -x


@negative.rule
def _(needs: tuple[bool, ...], x: Array) -> tuple[Array, Pullback]:
    return -x, lambda dy: (-dy,)


@primitive
def positive(x: Array) -> Array:
    """``+x``, elementwise; the dtype of `x` is kept."""
    return +x


@positive.rule
def _(needs: tuple[bool, ...], x: Array) -> tuple[Array, Pullback]:
    return x, lambda dy: (dy,)


def _to_first(dz: Array) -> tuple[Array, None]:
    return dz, None


def _outlines(needs: tuple[bool, ...], x: Any, y: Any) -> tuple[Any, Any]:
    """The outlines of those arguments whose cotangents are wanted."""
    return outline(x) if needs[0] else None, outline(y) if needs[1] else None


def _times_first(factor: float, dz: Array) -> tuple[Array, None]:
    return dz * factor, None


def _over_first(divisor: float, dz: Array) -> tuple[Array, None]:
    return dz / divisor, None


@primitive
def add(x: Array, y: Array) -> Array:
    """``x + y`` with broadcasting."""
    return x + y


@add.rule
def _(needs: tuple[bool, ...], x: Array, y: Array) -> tuple[Array, Pullback]:
    if not needs[1] and (type(y) is float or type(y) is int):  # nothing to fit: half the cost of a small operation
        return x + y, _to_first
    like_x, like_y = _outlines(needs, x, y)

    def pullback(dz: Array) -> tuple[Any, Any]:
        return fit(dz, like_x) if needs[0] else None, fit(dz, like_y) if needs[1] else None

    return x + y, pullback


@primitive
def subtract(x: Array, y: Array) -> Array:
    """``x - y`` with broadcasting."""
    return x - y


@subtract.rule
def _(needs: tuple[bool, ...], x: Array, y: Array) -> tuple[Array, Pullback]:
    if not needs[1] and (type(y) is float or type(y) is int):  # nothing to fit: half the cost of a small operation
        return x - y, _to_first
    like_x, like_y = _outlines(needs, x, y)

    def pullback(dz: Array) -> tuple[Any, Any]:
        return fit(dz, like_x) if needs[0] else None, fit(-dz, like_y) if needs[1] else None

    return x - y, pullback


@primitive
def multiply(x: Array, y: Array) -> Array:
    """``x * y``, elementwise with broadcasting."""
    return x * y


@multiply.rule
def _(needs: tuple[bool, ...], x: Array, y: Array) -> tuple[Array, Pullback]:
    if not needs[1] and (type(y) is float or type(y) is int):  # nothing to fit: half the cost of a small operation
        return x * y, partial(_times_first, y)
    like_x, like_y = _outlines(needs, x, y)
    kept_x, kept_y = x if needs[1] else None, y if needs[0] else None

    def pullback(dz: Array) -> tuple[Any, Any]:
        return fit(dz * kept_y, like_x) if needs[0] else None, fit(dz * kept_x, like_y) if needs[1] else None

    return x * y, pullback


@primitive
def divide(x: Array, y: Array) -> Array:
    """``x / y``, elementwise with broadcasting."""
    return x / y


@divide.rule
def _(needs: tuple[bool, ...], x: Array, y: Array) -> tuple[Array, Pullback]:
    if not needs[1] and (type(y) is float or type(y) is int):  # nothing to fit: half the cost of a small operation
        return x / y, partial(_over_first, y)
    z = x / y
    like_x, _ = _outlines(needs, x, y)
    kept_z = z if needs[1] else None

    def pullback(dz: Array) -> tuple[Any, Any]:
        dx = dz / y
        return fit(dx, like_x) if needs[0] else None, fit(-dx * kept_z, y) if needs[1] else None

    return z, pullback


@primitive
def power(x: Array, y: Array) -> Array:
    """``x ** y``, elementwise with broadcasting."""
    return integer_power(x, y) if type(y) is int and 0 < y <= 4 else x**y


@power.rule
def _(needs: tuple[bool, ...], x: Array, y: Array) -> tuple[Array, Pullback]:
    z = power(x, y)

    def pullback(dz: Array) -> tuple[Any, Any]:
        dx = dy = None
        if needs[0]:
            dx = fit(dz * (y * power(x, _one_less(y))), x)
        if needs[1]:  # 0 ** y has the derivative 0, not log(0)
            xp = namespace_of(x)
            dy = fit(dz * (z * xp.log(xp.where(x == 0, 1, x))), y)
        return dx, dy

    return z, pullback


def _one_less(y: Array) -> Array:
    """``y - 1``, and 0 where y is 0: the derivative of ``x ** 0`` is 0, also where ``x ** -1`` is infinite."""
    if type(y) is int or type(y) is float:
        return y - 1 if y else 0
    return common_namespace(y).where(y == 0, 0, y - 1)


def integer_power(x: Array, n: int) -> Array:
    """``x ** n`` for a small positive integer by multiplying: NumPy's power takes 400 times as long."""
    if n == 1:
        return x * 1
    half = x * x
    return half if n == 2 else half * x if n == 3 else half * half


def _pick(name: str, formula: str, first: Callable[[Any, Any], Any]) -> Primitive:
    """The primitives maximum and minimum; equal elements share the cotangent, as in torch."""

    def portable(x: Array, y: Array) -> Array:
        return getattr(common_namespace(x, y), name)(x, y)

    def rule(needs: tuple[bool, ...], x: Array, y: Array) -> tuple[Array, Pullback]:
        def pullback(dz: Array) -> tuple[Any, Any]:
            tie = masked(dz, x == y) * 0.5
            dx = fit(masked(dz, first(x, y)) + tie, x) if needs[0] else None
            return dx, fit(masked(dz, first(y, x)) + tie, y) if needs[1] else None

        return portable(x, y), pullback

    portable.__name__ = portable.__qualname__ = name
    portable.__doc__ = f"``{formula}``, elementwise with broadcasting; equal elements share the cotangent."
    result = primitive(portable)
    result.rule(rule)
    return result


maximum = _pick("maximum", "max(x, y)", operator.gt)
minimum = _pick("minimum", "min(x, y)", operator.lt)


@primitive
def arctan2(x: Array, y: Array) -> Array:
    """``arctan(x / y)`` in the right quadrant, elementwise with broadcasting."""
    return common_namespace(x, y).arctan2(x, y)


@arctan2.rule
def _(needs: tuple[bool, ...], x: Array, y: Array) -> tuple[Array, Pullback]:
    def pullback(dz: Array) -> tuple[Any, Any]:
        scaled = dz / (x * x + y * y)
        return fit(scaled * y, x) if needs[0] else None, fit(-scaled * x, y) if needs[1] else None

    return common_namespace(x, y).arctan2(x, y), pullback


@primitive
def logaddexp(x: Array, y: Array) -> Array:
    """``log(exp(x) + exp(y))`` without overflow, elementwise with broadcasting."""
    return common_namespace(x, y).logaddexp(x, y)


@logaddexp.rule
def _(needs: tuple[bool, ...], x: Array, y: Array) -> tuple[Array, Pullback]:
    xp = common_namespace(x, y)
    z = xp.logaddexp(x, y)

    def pullback(dz: Array) -> tuple[Any, Any]:
        dx = fit(dz * xp.exp(x - z), x) if needs[0] else None
        return dx, fit(dz * xp.exp(y - z), y) if needs[1] else None

    return z, pullback


@primitive
def hypot(x: Array, y: Array) -> Array:
    """``sqrt(x^2 + y^2)`` without overflow, elementwise with broadcasting; no derivative at (0, 0)."""
    return common_namespace(x, y).hypot(x, y)


@hypot.rule
def _(needs: tuple[bool, ...], x: Array, y: Array) -> tuple[Array, Pullback]:
    z = hypot(x, y)

    def pullback(dz: Array) -> tuple[Any, Any]:
        return fit(dz * (x / z), x) if needs[0] else None, fit(dz * (y / z), y) if needs[1] else None

    return z, pullback


def _remainder(name: str, formula: str, quotient: str) -> Primitive:
    """The primitives mod and fmod: ``x - y * quotient(x / y)``, where the quotient is piecewise constant."""

    def portable(x: Array, y: Array) -> Array:
        return getattr(common_namespace(x, y), name)(x, y)

    def rule(needs: tuple[bool, ...], x: Array, y: Array) -> tuple[Array, Pullback]:
        def pullback(dz: Array) -> tuple[Any, Any]:
            ratio = x / y
            whole = getattr(namespace_of(ratio), quotient)(ratio)
            return fit(dz, x) if needs[0] else None, fit(-dz * whole, y) if needs[1] else None

        return portable(x, y), pullback

    portable.__name__ = portable.__qualname__ = name
    portable.__doc__ = f"``{formula}``, elementwise with broadcasting."
    result = primitive(portable)
    result.rule(rule)
    return result


mod = _remainder("mod", "x - y * floor(x / y)", "floor")
fmod = _remainder("fmod", "x - y * trunc(x / y)", "trunc")


@primitive
def _astype(x: Array, *, dtype: Any) -> Array:
    return np.asarray(x, dtype) if type(x) is float else x.astype(dtype)


@_astype.rule
def _(needs: tuple[bool, ...], x: Array, *, dtype: Any) -> tuple[Array, Pullback | None]:
    y, like = _astype(x, dtype=dtype), outline(x)
    return y, (lambda dy: (fit(dy, like),)) if getattr(y.dtype, "kind", "f") in "fV" else None


def astype(x: Array, dtype: Any) -> Array:
    """`x` in another dtype; the gradient comes back in the dtype of `x`. Integers have none."""
    return _astype(x, dtype=dtype)


def asarray(a: Any, dtype: Any = None) -> Array:
    """`a` itself where it is traced or an array of any backend, else a NumPy array; converted if `dtype` is given."""
    if type(a) is not Tracer and not is_array(a):
        return np.asarray(a, dtype)
    return a if dtype is None or a.dtype == dtype else astype(a, dtype)


def copy(a: Array) -> Array:
    """A copy of `a`."""
    return positive(a)
