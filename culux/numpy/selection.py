"""Choosing between elements by a mask or by bounds, each with its derivative beside it."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback, plain
from culux.backends import Array
from culux.numpy.broadcasting import common_namespace, fit, is_half, masked, outline, refuse_out


@primitive
def _where(x: Array, y: Array, *, condition: Array) -> Array:
    return common_namespace(x, y, condition).where(condition, x, y)


@_where.implementation("cupy")
def _(x: Array, y: Array, *, condition: Array) -> Array:
    return _in_half(common_namespace(x, y, condition).where(condition, x, y), x, y)


@_where.rule
def _(needs: tuple[bool, ...], x: Array, y: Array, *, condition: Array) -> tuple[Array, Pullback]:
    like_x, like_y = outline(x) if needs[0] else None, outline(y) if needs[1] else None

    def pullback(dz: Array) -> tuple[Any, Any]:
        dx = fit(masked(dz, condition), like_x) if needs[0] else None
        return dx, fit(masked(dz, condition == False), like_y) if needs[1] else None  # noqa: E712 (also for bool)

    return _where(x, y, condition=condition), pullback


def where(condition: Array, x: Array, y: Array) -> Array:
    """`x` where `condition` is true, `y` elsewhere, with broadcasting; no gradient through the condition."""
    condition = plain(condition)
    if getattr(condition, "dtype", None) != np.bool_:
        condition = condition != 0
    return _where(x, y, condition=condition)


def clip(
    a: Array,
    a_min: Array | None = None,
    a_max: Array | None = None,
    out: None = None,
    *,
    min: Array | None = None,
    max: Array | None = None,
) -> Array:
    """``min(max(a, a_min), a_max)``, elementwise; outside the bounds the gradient is the bound's."""
    refuse_out(out)
    return _clip(a, a_min if min is None else min, a_max if max is None else max)


@primitive
def _clip(x: Array, low: Any, high: Any) -> Array:
    return common_namespace(x, low, high).clip(x, low, high)


@_clip.implementation("cupy")
def _(x: Array, low: Any, high: Any) -> Array:
    return _in_half(common_namespace(x, low, high).clip(x, low, high), x, low, high)


def _in_half(y: Array, *operands: Any) -> Array:
    """`y` in the dtype that all arrays among the operands have, if 16-bit: CuPy's of bfloat16 are float32."""
    arrays = [a for a in operands if hasattr(a, "dtype")]
    halves = arrays and all(is_half(a) and a.dtype == arrays[0].dtype for a in arrays)
    return y.astype(arrays[0].dtype, copy=False) if halves else y


@_clip.rule
def _(needs: tuple[bool, ...], x: Array, low: Any, high: Any) -> tuple[Array, Pullback]:
    def pullback(dy: Array) -> tuple[Any, Any, Any]:
        above = False if high is None else (x > high) if low is None else (x > high) | (low > high)
        below = False if low is None else (x < low) & (above == False)  # noqa: E712 (also for bool)
        inside = (above | below) == False  # noqa: E712 (also for bool)
        return (
            fit(masked(dy, inside), x) if needs[0] else None,
            fit(masked(dy, below), low) if needs[1] else None,
            fit(masked(dy, above), high) if needs[2] else None,
        )

    return _clip(x, low, high), pullback
