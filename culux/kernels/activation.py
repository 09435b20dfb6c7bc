"""Activations as one launch each way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from culux.backends import Array
from culux.kernels.launcher import MOST_BLOCKS, Kernel, contiguous, empty, get_kernel
from culux.kernels.source import ActivationCode, Program, program

__all__ = ["backward", "forward", "programs"]

THREADS = 256


def forward(x: Array, code: ActivationCode) -> Array:
    """``y = activation(x)`` of any shape; a copy of `x` in row-major order is taken where it is not so."""
    x = contiguous(x)
    y = empty(x)
    _kernel("activation_forward", x, code)(_grid(x), (THREADS,), x, y, x.size)
    return y


def backward(dy: Array, saved: Array, code: ActivationCode) -> Array:
    """``dx = dy * derivative(saved)``, saved being x or y as the code says; the three are of one shape and dtype."""
    dy, saved = contiguous(dy), contiguous(saved)
    dx = empty(dy)
    _kernel("activation_backward", dy, code)(_grid(dy), (THREADS,), dy, saved, dx, dy.size)
    return dx


def _kernel(name: str, x: Array, code: ActivationCode) -> Kernel:
    return get_kernel("activation", name, x.dtype, activation=code)


def _grid(x: Array) -> tuple[int]:
    per_block = THREADS * max(1, 16 // x.dtype.itemsize)
    return (min(-(-x.size // per_block), MOST_BLOCKS),)


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: every dtype, and what keeps x and what keeps y."""
    for dtype, name in (("float32", "relu"), ("float64", "gelu_erf"), ("float16", "gelu"), ("bfloat16", "selu")):
        yield program("activation", dtype, activation=activations[name])
