"""Maxima and means over windows, one launch each way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from culux.backends import Array
from culux.kernels.launcher import Kernel, contiguous, empty, get_kernel
from culux.kernels.source import ActivationCode, Program, program

__all__ = ["Windows", "maxpool", "maxpool_backward", "meanpool", "meanpool_backward", "programs"]

THREADS = 256


class Windows(NamedTuple):
    """Where windows lie over the spatial axes: one to three numbers each.

    Attributes:
        size: the lengths of the input.
        window: the lengths of a window.
        stride: the steps between windows.
        before: how far the first window begins before the input.
        dilation: the steps between the places of a window.
        out: how many windows there are.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    dilation: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def mark(self) -> np.dtype[np.generic]:
        """The dtype of a place in a window."""
        return np.dtype(np.uint8 if math.prod(self.window) <= 256 else np.int32)

    @property
    def reach(self) -> tuple[int, ...]:
        """The lengths of what a window spans, from its first place to its last."""
        return tuple((w - 1) * d + 1 for w, d in zip(self.window, self.dilation, strict=True))


def maxpool(x: Array, windows: Windows, *, marked: bool) -> tuple[Array, Array | None]:
    """The maximum of every window, and with `marked` its place there: all that the derivative needs.

    A mark takes a byte (in windows of at most 256 places), a quarter or less of keeping y, and x is not kept.

    Args:
        x: (N, C, *size), float; a copy in row-major order is taken where it is not so.
        windows: the windows.
        marked: whether the places are wanted.

    Returns:
        y (N, C, *out), of the dtype of `x`; the places, None unless `marked`.
    """
    x = contiguous(x)
    y = empty(x, (*x.shape[:2], *windows.out))
    marks = empty(y, dtype=windows.mark) if marked else None
    _kernel("maxpool_forward", x, windows)(_grid(y), (THREADS,), x, y, marks, *_numbers(x, windows))
    return y, marks


def maxpool_backward(dy: Array, marks: Array, windows: Windows) -> Array:
    """dx: every input has the sum of dy over the windows whose maximum it is, in the order of the windows."""
    dy = contiguous(dy)
    dx = empty(dy, (*dy.shape[:2], *windows.size))
    _kernel("maxpool_backward", dy, windows)(_grid(dx), (THREADS,), dy, marks, dx, *_numbers(dy, windows))
    return dx


def meanpool(x: Array, windows: Windows) -> Array:
    """The mean of every window, padding being zeros that count; shapes as `maxpool` has them."""
    x = contiguous(x)
    y = empty(x, (*x.shape[:2], *windows.out))
    _kernel("meanpool_forward", x, windows)(_grid(y), (THREADS,), x, y, *_numbers(x, windows))
    return y


def meanpool_backward(dy: Array, windows: Windows) -> Array:
    """dx: every input has the sum of dy over the windows it is in, divided by the size of a window."""
    dy = contiguous(dy)
    dx = empty(dy, (*dy.shape[:2], *windows.size))
    _kernel("meanpool_backward", dy, windows)(_grid(dx), (THREADS,), dy, dx, *_numbers(dy, windows))
    return dx


def _kernel(name: str, x: Array, windows: Windows) -> Kernel:
    constants = (("MARK_BYTES", windows.mark.itemsize), ("DILATED", int(max(windows.dilation) > 1)))
    return get_kernel("pooling", name, x.dtype, constants=constants)


def _grid(to: Array) -> tuple[int]:
    return (-(-to.size // THREADS),)


def _numbers(x: Array, windows: Windows) -> tuple[int, ...]:
    """The planes, then the windows of three axes, the missing ones in front."""
    missing = 3 - len(windows.size)
    ones, zeros = (1,) * missing, (0,) * missing
    size, window, stride, before, dilation, out = windows
    planes = x.shape[0] * x.shape[1]
    return (planes, *ones, *size, *ones, *out, *ones, *window, *ones, *stride, *zeros, *before, *ones, *dilation)


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: every dtype with both kinds of marks, and dilated windows."""
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for size, dilated in ((1, 0), (4, 0), (1, 1)):
            yield program("pooling", dtype, constants=(("MARK_BYTES", size), ("DILATED", dilated)))
