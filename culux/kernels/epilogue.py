"""Bias and activation after a library's matrix product, and their gradients before those of the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from culux.backends import Array
from culux.kernels.launcher import MOST_BLOCKS, empty, get_kernel
from culux.kernels.source import IDENTITY, ActivationCode, Program, program

__all__ = ["backward", "forward", "programs", "strips"]

THREADS = 256
ROWS = 4  # rows that a thread takes at a time
STRIP_BYTES = 32  # of a row, what a block of the backward pass takes


def forward(z: Array, bias: Array | None, code: ActivationCode, *, keep: bool) -> Array:
    """``y = activation(z + bias)`` for z (rows, columns) in one launch, in place of `z`.

    Where `keep` it is a new array, and `z` becomes ``z + bias``.
    """
    rows, columns = z.shape
    y = empty(z) if keep else z
    packs = -(-columns // max(1, 16 // z.dtype.itemsize))
    across = min(THREADS, 1 << max(packs - 1, 0).bit_length())
    down = THREADS // across
    width = -(-packs // across)
    height = min(-(-rows // (down * ROWS)), max(1, MOST_BLOCKS // max(width, 1)))
    kernel = get_kernel("epilogue", "epilogue_forward", z.dtype, activation=code)
    kernel((width, height), (across, down), z, bias, y, keep and bias is not None, rows, columns)
    return y


def backward(dy: Array, saved: Array | None, code: ActivationCode) -> tuple[Array, Array]:
    """``dz = dy * derivative(saved)`` and ``dbias = dz.sum(0)`` for dy (rows, columns), in one launch.

    `saved` is x or y as the code says; where the derivative is 1 it is None, and dz is `dy`.
    """
    rows, columns = dy.shape
    dz = None if saved is None else empty(dy)
    dbias = empty(dy, (columns,))
    kernel = get_kernel("epilogue", "epilogue_backward", dy.dtype, activation=code)
    kernel((strips(columns, dy.dtype),), (512,), dy, saved, dz, dbias, rows, columns)
    return dy if dz is None else dz, dbias


def strips(columns: int, dtype: Any) -> int:
    """The number of blocks that the backward pass has for so many columns."""
    return int(-(-columns * dtype.itemsize // STRIP_BYTES))


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: every dtype, with activations that keep nothing, x and y."""
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for code in (IDENTITY, activations["gelu"], activations["tanh"]):
            yield program("epilogue", dtype, activation=code)
