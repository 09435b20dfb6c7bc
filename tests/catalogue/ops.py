"""The entries of `culux.numpy`: elementwise functions, reductions, constants, and those of `ops_shapes`."""

from __future__ import annotations

from typing import Any

import numpy as np

import culux.numpy as cnp
from tests.catalogue.case import Case, apart, booleans, fixed, nonzero, normal, uniform
from tests.catalogue.ops_shapes import CUBE, INDICES, PRODUCTS, SHAPES, op, same


def unary(name: str, *inputs: Any, torch: str | None = None, **rest: Any) -> Case:
    """An elementwise function of one array, against NumPy's and torch's."""
    return op(name, None, *inputs, torch=lambda t, x: getattr(t, torch or name)(x), **{"strict": True, **rest})


WIDE, SMALL, POSITIVE = normal(3, 4, scale=1.5), uniform(-1, 1, 3, 4), uniform(0.1, 4, 3, 4)

ELEMENTWISE = [
    *[unary(name, WIDE) for name in ("sin", "cos", "sinh", "cosh", "tanh", "exp", "expm1", "square")],
    *[unary(name, WIDE) for name in ("negative", "positive")],
    *[unary(name, POSITIVE) for name in ("log", "log2", "log10", "log1p", "sqrt", "reciprocal")],
    unary("tan", SMALL),
    unary("exp2", WIDE, strict=False),
    unary("arcsin", SMALL, strict=False),
    unary("arccos", SMALL, strict=False),
    unary("arctanh", SMALL, strict=False),
    unary("arctan", WIDE, strict=False),
    unary("arcsinh", WIDE, strict=False),
    unary("arccosh", uniform(1, 4, 3, 4), strict=False, gradient_tolerance=10),
    unary("absolute", nonzero(3, 4), strict=False),
    op("cbrt", None, nonzero(3, 4)),
    op("copy", None, WIDE),
    op(
        "astype",
        lambda x: cnp.astype(x, np.float32),
        WIDE,
        reference=lambda x: x,
        dtypes=("float32",),
        smooth=False,
        why="rounding hides differences",
    ),
    op("asarray", lambda x: cnp.asarray(x), WIDE, reference=lambda x: x),
]

PAIR = (normal(3, 4), nonzero(3, 4))
BINARY = [
    *[
        op(name, None, *PAIR, torch=lambda t, x, y, n=name: getattr(t, n)(x, y), strict=True)
        for name in ("add", "subtract", "multiply", "divide")
    ],
    op("maximum", None, apart(3, 4), normal(4), torch=lambda t, x, y: t.maximum(x, y)),
    op("minimum", None, apart(3, 4), normal(3, 1), torch=lambda t, x, y: t.minimum(x, y)),
    op("arctan2", None, nonzero(3, 4), nonzero(4), torch=lambda t, x, y: t.atan2(x, y)),
    op("logaddexp", None, normal(3, 4), normal(4), torch=lambda t, x, y: t.logaddexp(x, y)),
    op("hypot", None, nonzero(3, 4), nonzero(4), torch=lambda t, x, y: t.hypot(x, y)),
    op(
        "mod",
        None,
        fixed([5.3, -5.3, 7.1, -0.4]),
        fixed([2.0, 2.2, -3.0, 1.5]),
        torch=lambda t, x, y: t.remainder(x, y),
    ),
    op("fmod", None, fixed([5.3, -5.3, 7.1, -0.4]), fixed([2.0, 2.2, -3.0, 1.5]), torch=lambda t, x, y: t.fmod(x, y)),
    op("power", None, uniform(0.2, 3, 3, 4), normal(4), torch=lambda t, x, y: t.pow(x, y)),
    *[
        op(
            "power",
            lambda x, n=n: cnp.power(x, n),
            nonzero(3, 4),
            reference=lambda x, n=n: np.power(x, n),
            torch=lambda t, x, n=n: t.pow(x, n),
            label=f"to the {n}",
            gradient_tolerance=10,
        )
        for n in (-1, 0, 1, 2, 3, 4, 5, 2.0)
    ],
    op("power", lambda y: 2.0**y, normal(3), reference=lambda y: np.exp(y * np.log(2)), label="of a number"),
    op(
        "where",
        lambda c, x, y: cnp.where(c, x, y),
        booleans(3, 4),
        normal(3, 4),
        normal(4),
        reference=lambda c, x, y: c * x + ~c * y,
        torch=lambda t, c, x, y: t.where(c, x, y),
    ),
    op(
        "clip",
        lambda x: cnp.clip(x, -0.5, 0.7),
        apart(3, 4),
        reference=lambda x: np.clip(x, -0.5, 0.7),
        torch=lambda t, x: t.clamp(x, -0.5, 0.7),
        label="between numbers",
    ),
    op(
        "clip",
        lambda x: cnp.clip(x, min=0.1),
        apart(3, 4),
        reference=lambda x: np.maximum(x, 0.1),
        torch=lambda t, x: t.clamp(x, min=0.1),
        label="from below",
    ),
    op(
        "clip",
        None,
        normal(3, 4),
        fixed([-0.5, 0.2, 0.3, 2.0]),
        fixed([0.5, 0.9, 0.1, 3.0]),
        torch=lambda t, x, low, high: t.clamp(x, low, high),
        label="between arrays",
    ),
]
# Broadcasting in every position, of 0-d arrays too.
BROADCAST = [
    op(name, None, nonzero(*left), nonzero(*right), label=f"{left} with {right}")
    for name in ("add", "subtract", "multiply", "divide")
    for left, right in [((2, 3), (3,)), ((3,), (2, 3)), ((2, 1), (1, 3)), ((), (2, 3)), ((2, 3), ()), ((1,), (2, 1, 3))]
]

REDUCTIONS = [
    same(
        name,
        lambda xp, x, n=name, o=options: getattr(xp, n)(x, **o),
        apart(2, 3, 4),
        label=str(options),
        torch=None,
        gradient_tolerance=10,
    )
    for name in ("sum", "mean", "max", "min", "prod", "var", "std")
    for options in (
        {},
        {"axis": 1},
        {"axis": -1, "keepdims": True},
        {"axis": (0, -1)},
        {"axis": (2, 0), "keepdims": True},
    )
] + [
    op(
        "max",
        lambda x: cnp.max(x, axis=1),
        fixed([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]]),
        reference=lambda x: x.max(1),
        torch=lambda t, x: t.amax(x, 1),
        smooth=False,
        why="ties have no derivative; torch's is compared",
        label="ties",
    ),
    op(
        "min",
        lambda x: cnp.min(x),
        fixed([[1.0, 1.0, 3.0], [2.0, 1.0, 2.0]]),
        reference=lambda x: x.min(),
        torch=lambda t, x: t.amin(x, (0, 1)),
        smooth=False,
        why="as above",
        label="ties",
    ),
    op(
        "prod",
        lambda x: cnp.prod(x, axis=1),
        fixed([[1.0, 0.0, 3.0], [0.0, 2.0, 0.0], [2.0, 1.5, 0.5]]),
        reference=lambda x: x.prod(1),
        torch=lambda t, x: t.prod(x, 1),
        second_order=False,
        why="second derivatives at zeros are left out",
        label="zeros",
    ),
    same("var", lambda xp, x: xp.var(x, axis=0, ddof=1), CUBE, label="ddof"),
    same("std", lambda xp, x: xp.std(x, ddof=1, keepdims=True), CUBE, label="ddof"),
    *[same("cumsum", lambda xp, x, a=axis: xp.cumsum(x, axis=a), CUBE, label=str(axis)) for axis in (None, 0, -1)],
    same("sum", lambda xp, x: xp.sum(x, axis=()), CUBE, label="over no axes"),
    same("sum", lambda xp, x: xp.sum(x, axis=0), normal(0, 3), label="empty"),
]

LINALG = [
    Case(
        "culux.numpy.linalg",
        lambda x, o=options: cnp.linalg.norm(x, **o),
        [nonzero(3, 4)],
        label=f"norm {options}",
        reference=lambda x, o=options: np.linalg.norm(x, **o),
    )
    for options in (
        {},
        {"axis": 1},
        {"axis": 0, "keepdims": True},
        {"ord": 2, "axis": -1},
        {"ord": 1, "axis": 0},
        {"ord": np.inf, "axis": 1},
        {"axis": (0, 1)},
    )
]

CONSTANT = {"differentiable": (), "why": "piecewise constant"}
CONSTANTS = [
    *[
        op(name, None, fixed([-1.5, -0.2, 0.0, 0.4, 2.6, np.inf]), **CONSTANT)
        for name in "sign floor ceil trunc round rint isnan isinf isfinite zeros_like ones_like".split()
    ],
    *[op(name, None, normal(3, 4), **CONSTANT) for name in "argmax argmin argsort shape ndim size".split()],
    *[
        op(name, None, fixed([1.0, 2.0, 3.0]), fixed([1.0, 3.0, 2.0]), **CONSTANT)
        for name in (
            "equal not_equal less less_equal greater greater_equal floor_divide isclose allclose array_equal"
        ).split()
    ],
    *[
        op(name, None, fixed([True, False]), fixed([True, True]), **CONSTANT)
        for name in ("logical_and", "logical_or", "logical_xor")
    ],
    op("logical_not", None, booleans(3), **CONSTANT),
    *[op(name, None, booleans(3), **CONSTANT) for name in ("all", "any", "nonzero", "count_nonzero")],
    op("searchsorted", None, fixed([1.0, 2.0, 3.0]), fixed([0.5, 2.5]), **CONSTANT),
    op(
        "result_type",
        lambda x: cnp.astype(x, cnp.result_type(x, np.float16)),
        normal(2),
        reference=lambda x: x,
        cupy=False,
        differentiable=(),
        why="a dtype is neither differentiated nor on a device",
    ),
    same("full_like", lambda xp, x: xp.full_like(x, 3), normal(2), **CONSTANT),
]

CASES = [*ELEMENTWISE, *BINARY, *BROADCAST, *REDUCTIONS, *SHAPES, *INDICES, *PRODUCTS, *LINALG, *CONSTANTS]

_CREATION = "makes arrays from numbers: NumPy's own function"
WITHOUT_ENTRY = {
    **dict.fromkeys(("array", "zeros", "ones", "full", "empty", "arange", "linspace", "eye"), _CREATION),
    **dict.fromkeys(("float16", "float32", "float64", "int32", "int64", "uint64", "bool_"), "a dtype"),
    **dict.fromkeys(("pi", "e", "inf", "nan", "newaxis"), "a number"),
    "empty_like": "its values are arbitrary",
}
