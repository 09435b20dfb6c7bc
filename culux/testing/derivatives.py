"""Derivatives against finite differences: independent of every rule, they need only values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from culux import tree
from culux.autodiff import gradient, stop_gradient, vjp
from culux.backends import backend_of
from culux.testing.compare import mismatches, worst

__all__ = ["directional", "gradients", "pullback_problems", "scalar", "slope_problems", "slopes", "weights"]

STEP = 1e-5  # of float64 inputs: truncation and rounding are both some 1e-10 there
MANY = 60  # inputs of more elements are differenced along random directions only
RTOL, ATOL = 1e-6, 1e-7


def weights(y: Any, seed: int) -> Any:
    """Fixed random numbers in the shape, dtype and place of `y`."""
    y = stop_gradient(y)
    values = np.random.default_rng(seed).standard_normal(getattr(y, "shape", ()))
    backend = backend_of(y)
    return backend.from_host(np.asarray(values, getattr(y, "dtype", float)), backend.place_of(y).index)


def scalar(f: Callable[..., Any]) -> Callable[..., Any]:
    """``sum_k <f(values)_k, w_k>``: a function with its outputs projected on fixed random directions."""

    def projected(*values: Any) -> Any:
        total: Any = 0.0
        for seed, y in enumerate(tree.leaves(f(*values))):
            total = total + (y * weights(y, seed)).sum()
        return total

    return projected


def gradients(f: Callable[..., Any], values: Sequence[Any]) -> list[Any]:
    """The gradient of a scalar function with respect to each of its arguments."""
    found = gradient(f, *values)
    return list(found) if len(values) > 1 else [found]


def directional(f: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient of a scalar function projected on fixed random directions: its gradient is the second derivative."""

    def projected(*values: Any) -> Any:
        return sum((g * weights(g, 10 + i)).sum() for i, g in enumerate(gradients(f, list(values))))

    return projected


def slopes(f: Callable[..., Any], values: Sequence[np.ndarray], i: int, directions: np.ndarray) -> np.ndarray:
    """Central differences of a scalar function in argument `i`: ``(f(x + h d) - f(x - h d)) / 2h`` for each row d."""

    def at(step: np.ndarray) -> float:
        moved = list(values)
        moved[i] = values[i] + step.reshape(values[i].shape)
        return float(f(*moved))

    return np.array([(at(STEP * d) - at(-STEP * d)) / (2 * STEP) for d in directions])


def slope_problems(
    f: Callable[..., Any],
    values: Sequence[np.ndarray],
    factor: float,
    names: Sequence[str] = (),
    *,
    quick: bool = False,
) -> list[str]:
    """What to say where the gradient of a scalar function is not what its central differences are.

    Args:
        f: a scalar function of float64 arrays.
        values: where it is differentiated.
        factor: a factor on the tolerance of 1e-6 (relative) and 1e-7 (absolute).
        names: what the arguments are called.
        quick: difference along a few random directions first, along the axes only to find out where it is wrong.
    """
    problems = []
    for i, found in enumerate(gradients(f, values)):
        label = names[i] if names else f"argument {i + 1}"
        if found.shape != values[i].shape:
            problems.append(f"{label}: expected a gradient of shape {values[i].shape}, got {found.shape}")
        elif found.size:
            problems += _argument_problems(f, values, i, found, label, factor, quick)
    return problems


def _argument_problems(
    f: Callable[..., Any],
    values: Sequence[np.ndarray],
    i: int,
    found: np.ndarray,
    label: str,
    factor: float,
    quick: bool,
) -> list[str]:
    rng = np.random.default_rng(7)
    n = found.size
    few = rng.standard_normal((2 if quick else 4, n)) / math.sqrt(n)
    directions = few if quick or n > MANY else np.eye(n)
    expected = slopes(f, values, i, directions)
    apart = _beyond(directions @ found.ravel(), expected, factor)
    if apart is not None and directions is few and n <= 10 * MANY:
        directions = np.eye(n)
        by_axis = slopes(f, values, i, directions)
        where = _beyond(found.ravel(), by_axis, factor)
        expected, apart = (by_axis, where) if where is not None else (expected, apart)
        directions = directions if where is not None else few
    if apart is None:
        return []
    (worst_row,), count = apart
    got = directions[worst_row] @ found.ravel()
    if directions is few:
        where_text, total = f"{label} along a random direction", len(few)
    else:
        index = [int(k) for k in np.unravel_index(worst_row, found.shape)]
        where_text, total = f"{label}{index if index else ''}", n
    return [
        f"{where_text}: expected {expected[worst_row]:.9g} by central differences, got {got:.9g}; "
        f"{count} of {total} are not equal to a tolerance of {RTOL * factor:.2g}"
    ]


def _beyond(found: np.ndarray, expected: np.ndarray, factor: float) -> tuple[tuple[int, ...], int] | None:
    """The worst of some slopes; NaN is wrong."""
    if not np.isfinite(expected).all() or not np.isfinite(found).all():
        bad = ~(np.isfinite(expected) & np.isfinite(found))
        return (int(np.argmax(bad)),), int(bad.sum())
    return worst(found, expected, RTOL * factor, ATOL * factor)


def pullback_problems(f: Callable[..., Any], values: Sequence[Any]) -> list[str]:
    """What to say of a pullback that is not linear in its cotangent, or that gives something else when called again."""
    y, pullback = vjp(f, *values)
    one, other = (tree.map(lambda leaf, s=seed: weights(leaf, s), y) for seed in (1, 2))
    first, second = pullback(one), pullback(other)
    if len(first) != len(values):
        return [f"expected {len(values)} cotangents, got {len(first)}"]
    both = pullback(tree.map(lambda a, b: 2 * a + b, one, other))
    linear = [2 * a + b for a, b in zip(first, second, strict=True)]
    problems = [f"2 dy + dz, {line}" for line in mismatches(list(both), linear, 1e-9)]
    return problems + [f"called again, {line}" for line in mismatches(list(pullback(one)), list(first), 0)]
