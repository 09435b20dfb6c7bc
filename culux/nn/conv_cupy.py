"""Convolution on CuPy arrays: cuDNN where it is installed and has the problem, else culux's own kernels.

Where both can, the faster one at that shape is found by timing, and cuDNN is what is taken without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from culux.backends import Array, backend_of, current_matmul_precision
from culux.kernels import IDENTITY, ActivationCode, conv, conv_epilogue, conv_weight, cudnn, tuning
from culux.nn.conv_taps import Taps

__all__ = ["backward", "correlate", "forward", "spread", "weigh"]

CUDNN, FUSED = "cudnn", "fused"
R = TypeVar("R")


def forward(
    x: Array, weight: Array, bias: Array | None, code: ActivationCode, taps: Taps, *, transposed: bool, keep: bool
) -> tuple[Array, Array | None]:
    """``activation(correlate(x, weight) + bias)``, or of `spread` where `transposed`, and what `backward` reads of it.

    Args:
        x: (N, channels, *spatial); all arrays are of one dtype.
        weight: (out, in / groups, *kernel).
        bias: a number per channel of the result, or None.
        code: the activation.
        taps: the geometry.
        transposed: whether it is the transpose.
        keep: whether a backward pass will come.

    Returns:
        y; and y, the sum before the activation or None, as the code says.
    """
    keeps_z = keep and code.saves == "x"

    def ours() -> tuple[Array, Array | None]:
        return conv.forward(x, weight, bias, code, taps, transposed=transposed, keep=keep)

    def library(product: Callable[[], Array]) -> tuple[Array, Array | None]:
        z = product()
        y = z if bias is None and code.saves is None else conv_epilogue.forward(z, bias, code, keep=keeps_z)
        return y, z if keeps_z else y if keep and code.saves == "y" else None

    how = f"{code.name}{' keeps z' * keeps_z}{' bias' * (bias is not None)}"
    return _fastest("spread" if transposed else "correlate", x, weight, taps, how, ours, library)


def backward(
    dy: Array, saved: Array | None, x: Array | None, weight: Array | None, code: ActivationCode, taps: Taps,
    *, transposed: bool, needs: tuple[bool, ...],
) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
    """The gradients of `forward`: dx, dweight and dbias, None for what `needs` does not want.

    Args:
        dy: of the shape of y.
        saved: as `forward` gave it.
        x: may be None where dweight is not wanted.
        weight: may be None where dx is not wanted.
        code: the activation.
        taps: the geometry.
        transposed: whether it is the transpose.
        needs: which of dx, dweight and dbias are wanted.
    """
    dz, dbias, partials = conv_epilogue.backward(dy, saved, code, bias=needs[2])
    dx = dweight = None
    if needs[0]:
        dx = (correlate if transposed else spread)(dz, weight, taps)
    if needs[1]:
        inner, outer = (dz, x) if transposed else (x, dz)
        dweight, total = _weigh(inner, outer, taps, partials)
        return dx, dweight, dbias if partials is None else total
    return dx, dweight, dbias if partials is None else conv_weight.total(dz, partials)


def correlate(x: Array, weight: Array, taps: Taps) -> Array:
    """``y[n, o, i] = sum over c, t of weight[o, c, t] * x[n, c, i * stride + t * dilation - before]``."""
    return forward(x, weight, None, IDENTITY, taps, transposed=False, keep=False)[0]


def spread(dy: Array, weight: Array, taps: Taps) -> Array:
    """The transpose of `correlate` in x."""
    return forward(dy, weight, None, IDENTITY, taps, transposed=True, keep=False)[0]


def weigh(x: Array, dy: Array, taps: Taps) -> Array:
    """The transpose of `correlate` in the weight."""
    return _weigh(x, dy, taps, None)[0]


def _weigh(x: Array, dy: Array, taps: Taps, partials: Array | None) -> tuple[Array, Array | None]:
    """`weigh`; and the sum of `partials` over the first axis, None of None."""

    def ours() -> tuple[Array, Array | None]:
        return conv_weight.gradient(x, dy, taps, partials)

    def library(product: Callable[[], Array]) -> tuple[Array, Array | None]:
        return product(), None if partials is None else conv_weight.total(x, partials)

    return _fastest("weigh", x, dy, taps, "" if partials is None else "bias", ours, library)


def _fastest(
    operation: str,
    one: Array,
    other: Array,
    taps: Taps,
    how: str,
    ours: Callable[[], R],
    library: Callable[[Callable[[], Array]], R],
) -> R:
    """The result of the way that is faster here: `ours`, or `library` of a product by cuDNN where it has one."""
    product = cudnn.find(operation, one, other, **taps._asdict())
    if product is None:
        return ours()
    backend = backend_of(one)
    timer = backend.timer(0 if backend.device_count() == 1 else backend.place_of(one).index)
    # Batches of all sizes come, and each of them would be timed: they are taken as the next power of two.
    batch = 1 << max(one.shape[0] - 1, 0).bit_length()
    numbers: list[Any] = [n for lengths in taps[:6] for n in lengths]
    key = (one.dtype.name, batch, one.shape[1], other.shape[1], *numbers, taps.groups, how, current_matmul_precision())
    candidates = {CUDNN: lambda: library(product), FUSED: ours}
    return candidates[tuning.choose(f"conv {operation}", key, candidates, CUDNN, device=timer.device, timer=timer)]()
