"""Softmax and its logarithm over any axis: one launch each way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from culux.backends import Array
from culux.kernels.launcher import Kernel, contiguous, empty, get_kernel
from culux.kernels.rows import column_launch, row_launch
from culux.kernels.source import ActivationCode, Program, program

__all__ = ["backward", "forward", "programs"]


def forward(x: Array, axis: int, *, log: bool) -> Array:
    """``softmax(x)`` or its logarithm along an axis.

    Args:
        x: any shape; a copy in row-major order is taken where it is not so.
        axis: from 0 to ``x.ndim - 1``.
        log: the logarithm.
    """
    x = contiguous(x)
    y = empty(x)
    _launch("softmax", (x, y), axis, log)
    return y


def backward(dy: Array, y: Array, axis: int, *, log: bool) -> Array:
    """dx: ``y * (dy - sum(dy * y))``, of the logarithm ``dy - exp(y) * sum(dy)``; all of one shape and dtype."""
    dy, y = contiguous(dy), contiguous(y)
    dx = empty(dy)
    _launch("softmax_backward", (dy, y, dx), axis, log)
    return dx


def _launch(name: str, arrays: tuple[Array, ...], axis: int, log: bool) -> None:
    """The kernel of this name for a warp, a block or columns; the last of the arrays is written."""
    y = arrays[-1]
    size, inner = y.shape[axis], math.prod(y.shape[axis + 1 :])
    if not y.size:
        return
    rows = y.size // size
    if inner > 1:
        grid, block = column_launch(rows, size)
        _kernel(f"{name}_columns", y, log)(grid, block, *arrays, rows, size, inner)
        return
    launch = row_launch(y, rows, size, len(arrays) - 1)
    kept = (launch.kept,) if launch.kind == "block" else ()
    _kernel(f"{name}_{launch.kind}", y, log)(
        (launch.blocks,), (launch.threads,), *arrays, rows, size, *kept, shared=launch.shared
    )


def _kernel(name: str, x: Array, log: bool) -> Kernel:
    return get_kernel("softmax", name, x.dtype, constants=(("LOG", int(log)),))


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: both functions and every dtype; there is no activation in them."""
    for log in (0, 1):
        for dtype in ("float32", "float64", "float16", "bfloat16"):
            yield program("softmax", dtype, constants=(("LOG", log),))
