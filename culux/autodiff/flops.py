"""How many floating point operations a function takes, counted operation by operation as it runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

from culux.autodiff.tracer import Operation, Trace, Tracer
from culux.backends import is_float_array

__all__ = ["MOVES", "PRODUCTS", "FlopTrace"]


def _matmul(y: Any, a: Any, b: Any) -> int:
    return int(2 * math.prod(y.shape) * a.shape[-1])


def _einsum(y: Any, *operands: Any, terms: tuple[str, ...], output: str) -> int:
    axes = (zip(term, a.shape, strict=True) for term, a in zip(terms, operands, strict=True))
    lengths = dict(itertools.chain.from_iterable(axes))
    return len(operands) * math.prod(map(int, lengths.values()))


def _correlate(y: Any, x: Any, weight: Any, *, taps: Any) -> int:
    return int(2 * math.prod(y.shape) * math.prod(weight.shape[1:]))


def _spread(y: Any, dy: Any, weight: Any = None, **static: Any) -> int:
    return int(2 * math.prod(dy.shape) * math.prod(weight.shape[1:])) if weight is not None else dy.size


PRODUCTS: Mapping[str, Callable[..., int]] = {
    "matmul": _matmul,
    "einsum": _einsum,
    "correlate": _correlate,
    "spread": _spread,
}
"""Operations that multiply and add: a multiplication and an addition are two."""

MOVES = frozenset("astype broadcast_to concatenate getitem pad positive reshape rows transpose unstack where".split())
"""Operations that move numbers and compute none."""


class FlopTrace(Trace):
    """A trace that adds up in `flops` what every operation takes; compositions count as what they are written in.

    A product of matrices takes two per multiplication and addition, a move of numbers none, and any other operation
    one per element of the largest array that it reads or writes.
    """

    __slots__ = ("flops",)

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def lift(self, value: Any) -> Any:
        """A tracer for a float array."""
        return Tracer(value, self, 0)

    def process(self, primitive: Operation, args: tuple[Any, ...], static: Mapping[str, Any]) -> Any:
        """The operation on plain arrays, counted."""
        if primitive.composite:
            return self.through(primitive, args, static)
        arrays = tuple(self.lower(a) for a in args)
        y = primitive.portable(*arrays, **static)
        outputs = y if type(y) is tuple else (y,)
        if primitive.name in PRODUCTS:
            self.flops += PRODUCTS[primitive.name](y, *arrays, **static)
        elif primitive.name not in MOVES:
            self.flops += max(int(getattr(a, "size", 1)) for a in (*outputs, *arrays))
        lifted = tuple(self.lift(output) if is_float_array(output) else output for output in outputs)
        return lifted if type(y) is tuple else lifted[0]
