"""Entries of `culux.numpy`: shapes, indices and products; and how its entries are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import culux.numpy as cnp
from tests.catalogue.case import Case, apart, booleans, integers, normal


def op(name: str, call: Callable[..., Any] | None = None, *inputs: Any, **rest: Any) -> Case:
    """A case of ``culux.numpy.<name>``; where nothing else is said, NumPy's function of that name is the reference."""
    function = getattr(cnp, name)
    if call is None:
        rest.setdefault("reference", getattr(np, name))
    return Case(f"culux.numpy.{name}", call or function, list(inputs), **rest)


def same(name: str, form: Callable[..., Any], *inputs: Any, **rest: Any) -> Case:
    """A case whose call and reference are one expression: ``form(culux.numpy, ...)`` against ``form(numpy, ...)``."""
    return op(name, lambda *a: form(cnp, *a), *inputs, reference=lambda *a: form(np, *a), **{"label": _label(), **rest})


_labels = iter(range(1000))


def _label() -> str:
    return f"form{next(_labels)}"


CUBE = normal(2, 3, 4)
SHAPES = [
    *[same("reshape", lambda xp, x, s=shape: xp.reshape(x, s), CUBE) for shape in (24, (4, -1), (1, 24, 1))],
    same("ravel", lambda xp, x: xp.ravel(x), CUBE),
    *[same("transpose", lambda xp, x, a=axes: xp.transpose(x, a), CUBE) for axes in (None, (1, 2, 0), (-1, 0, 1))],
    same("swapaxes", lambda xp, x: xp.swapaxes(x, 0, -1), CUBE),
    same("matrix_transpose", lambda xp, x: xp.matrix_transpose(x), CUBE),
    *[
        same("moveaxis", lambda xp, x, s=source, d=target: xp.moveaxis(x, s, d), CUBE)
        for source, target in ((0, -1), ((0, 1), (-1, 0)), (2, 0))
    ],
    *[same("squeeze", lambda xp, x, a=axis: xp.squeeze(x, a), normal(1, 3, 1)) for axis in (None, 0, (-1, 0))],
    *[
        same("expand_dims", lambda xp, x, a=axis: xp.expand_dims(x, a), normal(3, 2))
        for axis in (0, -1, (0, 2), (-1, 1))
    ],
    *[
        same("broadcast_to", lambda xp, x, s=shape: xp.broadcast_to(x, s), normal(3, 1))
        for shape in ((3, 4), (2, 3, 1))
    ],
    *[
        same("concatenate", lambda xp, x, y, a=axis: xp.concatenate([x, y, x], axis=a), normal(2, 3), normal(2, 3))
        for axis in (0, -1, None)
    ],
    *[
        same("stack", lambda xp, x, y, a=axis: xp.stack([x, y], axis=a), normal(2, 3), normal(2, 3))
        for axis in (0, 1, -1)
    ],
    same("vstack", lambda xp, x, y: xp.vstack([x, y]), normal(3), normal(2, 3)),
    same("hstack", lambda xp, x, y: xp.hstack([x, y]), normal(2, 3), normal(2, 1)),
    same("hstack", lambda xp, x, y: xp.hstack([x, y]), normal(3), normal(2)),
    *[
        same("split", lambda xp, x, i=cuts, a=axis: tuple(xp.split(x, i, axis=a)), CUBE)
        for cuts, axis in ((2, 0), (2, -1), ([1], 1), ([1, 3], 2))
    ],
    *[same("flip", lambda xp, x, a=axis: xp.flip(x, a), CUBE) for axis in (None, 1, (0, -1))],
    *[
        same("roll", lambda xp, x, s=shift, a=axis: xp.roll(x, s, a), CUBE)
        for shift, axis in ((2, None), (-1, 1), ((1, 2), (0, 2)), (0, 0), (7, -1))
    ],
    *[
        same("pad", lambda xp, x, w=width: xp.pad(x, w, constant_values=1.5), normal(2, 3))
        for width in (1, (1, 2), ((1, 0), (0, 2)))
    ],
    *[
        same("pad", lambda xp, x, m=mode: xp.pad(x, ((1, 0), (2, 2)), mode=m), normal(2, 3), label=mode)
        for mode in ("edge", "reflect", "symmetric", "wrap")
    ],
    *[same("tile", lambda xp, x, r=reps: xp.tile(x, r), normal(2, 3)) for reps in (2, (2, 1), (2, 1, 3))],
    *[
        same("repeat", lambda xp, x, r=n, a=axis: xp.repeat(x, r, axis=a), normal(2, 3))
        for n, axis in ((2, None), (3, 0), (2, -1), ([1, 0, 2], 1))
    ],
    same("atleast_1d", lambda xp, x: xp.atleast_1d(x), normal()),
    same("atleast_2d", lambda xp, x: xp.atleast_2d(x), normal(3)),
]

SQUARE = normal(3, 4)
INDICES = [
    *[
        Case(
            "culux.numpy.getitem",
            lambda x, k=key: cnp.getitem(x, k),
            [CUBE],
            reference=lambda x, k=key: x[k],
            label=str(i),
            cupy=not any(isinstance(part, (list, np.ndarray)) for part in (key if isinstance(key, tuple) else (key,))),
        )
        for i, key in enumerate(
            [
                0,
                -1,
                slice(None),
                slice(1, None),
                ...,
                None,
                (0, 1, 2),
                (..., 0),
                (slice(None), 1),
                (slice(None, None, -1), ..., 2),
                (0, slice(1, 3), None),
                (..., None, slice(0, 4, 2)),
                [0, 1, 1, 0],
                np.array([1, -1]),
                np.array([[0, 1], [1, 1]]),
                (slice(None), [2, 0, 2]),
                ([0, 1], [1, 1]),
                ([0, 1], slice(None), [1, 1]),
                (slice(None), [True, False, True]),
                np.array(1),
                slice(0, 0),
                np.zeros(0, int),
                np.int64(1),
                (0, [2, 2, 2]),
            ]
        )
    ],
    op("getitem", lambda x, m: cnp.getitem(x, m), CUBE, booleans(2, 3, 4), reference=lambda x, m: x[m], label="mask"),
    op("getitem", lambda x, m: x[m], CUBE, booleans(2), reference=lambda x, m: x[m], label="mask of rows"),
    *[
        op(
            "take",
            lambda x, i, a=axis: cnp.take(x, i, axis=a),
            CUBE,
            integers(2, 3, 2),
            reference=lambda x, i, a=axis: np.take(x, i, axis=a),
            label=str(axis),
        )
        for axis in (None, 0, -1)
    ],
    op(
        "take_along_axis",
        lambda x, i: cnp.take_along_axis(x, i, axis=-1),
        CUBE,
        integers(4, 2, 3, 2),
        reference=lambda x, i: np.take_along_axis(x, i, axis=-1),
    ),
    *[
        same("sort", lambda xp, x, a=axis: xp.sort(x, axis=a), apart(2, 3, 4), label=str(axis))
        for axis in (-1, 0, None)
    ],
    same("diff", lambda xp, x: xp.diff(x), CUBE),
    same("diff", lambda xp, x: xp.diff(x, n=2, axis=1), CUBE),
    *[same("diagonal", lambda xp, x, k=k: xp.diagonal(x, k), SQUARE, label=str(k)) for k in (0, 1, -1, 5)],
    same("diagonal", lambda xp, x: xp.diagonal(x, 1, -1, 0), CUBE),
    *[same("diag", lambda xp, x, k=k: xp.diag(x, k), shape) for k in (0, 1, -2) for shape in (normal(3), SQUARE)],
    *[same("trace", lambda xp, x, k=k: xp.trace(x, k), CUBE) for k in (0, -1)],
    *[
        same(name, lambda xp, x, n=name, k=k: getattr(xp, n)(x, k), shape, label=f"{k} {i}")
        for name in ("tril", "triu")
        for k in (0, 1, -1)
        for i, shape in enumerate((SQUARE, CUBE))
    ],
]

PRODUCTS = [
    *[
        op(
            "matmul",
            None,
            normal(*a),
            normal(*b),
            torch=lambda t, x, y: t.matmul(x, y),
            label=f"{a} @ {b}",
            strict=len(a) > 1,
        )
        for a, b in [
            ((2, 3), (3, 4)),
            ((3,), (3, 4)),
            ((2, 3), (3,)),
            ((3,), (3,)),
            ((5, 2, 3), (3, 4)),
            ((2, 3), (5, 3, 4)),
            ((5, 1, 2, 3), (2, 3, 1)),
            ((0, 3), (3, 2)),
            ((2, 0), (0, 3)),
        ]
    ],
    *[
        op("dot", None, normal(*a), normal(*b), label=f"{a} . {b}")
        for a, b in [((2, 3), (3, 4)), ((3,), (3,)), ((), (2, 3)), ((2, 3), ()), ((2, 3), (4, 3, 2)), ((5, 2, 3), (3,))]
    ],
    *[
        op("inner", None, normal(*a), normal(*b), label=f"{a} . {b}")
        for a, b in [((2, 3), (4, 3)), ((), (3,)), ((3,), (3,))]
    ],
    op("outer", None, normal(2, 2), normal(3)),
    op("vdot", None, normal(2, 3), normal(3, 2)),
    *[
        same(
            "tensordot",
            lambda xp, x, y, a=axes: xp.tensordot(x, y, axes=a),
            normal(2, 3, 4),
            normal(*shape),
            label=str(axes),
        )
        for axes, shape in ((2, (3, 4, 2)), (1, (4, 3)), (0, (2,)), (((0, -1), (1, 0)), (4, 2)), ((1, 0), (3, 2)))
    ],
    *[
        same(
            "einsum",
            lambda xp, *x, s=subscripts: xp.einsum(s, *x),
            *[normal(*shape) for shape in shapes],
            label=subscripts,
        )
        for subscripts, shapes in {
            "ij,jk->ik": ((2, 3), (3, 4)),
            "bij,bjk->bik": ((2, 3, 4), (2, 4, 3)),
            "ij->ji": ((2, 3),),
            "ij->": ((2, 3),),
            "ij->i": ((2, 3),),
            "i,j->ij": ((2,), (3,)),
            "ij,jk": ((2, 3), (3, 4)),
            "ij,jk,kl->il": ((2, 3), (3, 4), (4, 2)),
            "ij,k->i": ((2, 3), (4,)),
            "i,i->": ((3,), (3,)),
        }.items()
    ],
]
