"""Bias and activation after a library's convolution, and their gradients before the products of the backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from culux.backends import Array
from culux.kernels import activation
from culux.kernels.launcher import MULTIPROCESSORS, compute_dtype, contiguous, empty, get_kernel
from culux.kernels.source import IDENTITY, ActivationCode, Program, program

__all__ = ["backward", "forward", "programs"]

THREADS = 256
# By reasoning, not measured: as many blocks for each multiprocessor, as long as each thread has so many packs.
BLOCKS, PACKS = 4 * MULTIPROCESSORS, 4


def forward(z: Array, bias: Array | None, code: ActivationCode, *, keep: bool) -> Array:
    """``y = activation(z + bias)`` for z (N, channels, *spatial) in one launch, in place of `z`.

    Where `keep` it is a new array, and `z` becomes ``z + bias``.
    """
    y = empty(z) if keep else z
    sizes, parts, part = _cut(z)
    kernel = get_kernel("conv_epilogue", "conv_epilogue_forward", z.dtype, activation=code)
    kernel((sizes[1] * parts,), (THREADS,), z, bias, y, keep and bias is not None, *sizes, part)
    return y


def backward(
    dy: Array, saved: Array | None, code: ActivationCode, *, bias: bool
) -> tuple[Array, Array | None, Array | None]:
    """``dz = dy * derivative(saved)`` for dy (N, channels, *spatial), and its sums over all but the channels.

    `saved` is x or y as the code says; where the derivative is 1 it is None, and dz is `dy`. It is one launch, and
    none where dz is `dy` and `bias` is not wanted.

    Returns:
        dz; dbias (channels,), or None; and in its stead where a channel is cut into parts, the sums of the parts
        (parts, channels) in the dtype that is computed in, which `culux.kernels.conv_weight` adds.
    """
    dy = contiguous(dy)
    if not bias:
        return dy if saved is None else activation.backward(dy, saved, code), None, None
    sizes, parts, part = _cut(dy)
    dz = None if saved is None else empty(dy)
    dbias = empty(dy, sizes[1:2]) if parts == 1 else None
    partials = None if parts == 1 else empty(dy, (parts, sizes[1]), compute_dtype(dy))
    kernel = get_kernel("conv_epilogue", "conv_epilogue_backward", dy.dtype, activation=code)
    kernel((sizes[1] * parts,), (THREADS,), dy, saved, dz, partials, dbias, *sizes, part)
    return dy if dz is None else dz, dbias, partials


def _cut(x: Array) -> tuple[tuple[int, int, int], int, int]:
    """Samples, channels and elements of a plane; into how many parts a channel is cut, and the packs of a part."""
    batch, channels, plane = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    packs = batch * -(-plane // (16 // x.dtype.itemsize))
    parts = max(1, min(BLOCKS // channels, packs // (THREADS * PACKS)))
    return (batch, channels, plane), parts, -(-packs // parts)


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: every dtype, with activations that keep nothing, x and y."""
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for code in (IDENTITY, activations["gelu"], activations["tanh"]):
            yield program("conv_epilogue", dtype, activation=code)
