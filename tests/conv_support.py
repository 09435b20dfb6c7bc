"""What tests of the convolution kernels share: problems, their arrays, and the products by their definition."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from culux.nn.conv_taps import Taps
from tests.kernel_support import dtype_of


class Case(NamedTuple):
    """A convolution; `behind` is the padding behind each axis."""

    size: tuple[int, ...]
    channels: int
    filters: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    behind: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    batch: int = 2

    @property
    def taps(self):
        axes = zip(self.size, self.kernel, self.stride, self.before, self.behind, self.dilation, strict=True)
        out = tuple((n + b + e - (k - 1) * d - 1) // s + 1 for n, k, s, b, e, d in axes)
        return Taps(self.size, self.kernel, self.stride, self.dilation, self.before, out, self.groups)

    def options(self, *, transposed):
        """What `nn.conv` and `nn.conv_transpose` take beside the arrays."""
        padding = tuple(zip(self.before, self.behind, strict=True))
        found = {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups}
        if transposed:
            taps = self.taps
            ends = zip(self.size, self.before, self.behind, taps.reach, strict=True)
            found["output_padding"] = tuple(n + b + e - r for n, b, e, r in ends)
        return found

    def arrays(self, dtype="float32", *, transposed=False):
        """x, weight, bias and dy of an operation; `transposed`, x has the shape of the other's dy."""
        taps = self.taps
        inner, outer = (self.batch, self.channels, *taps.size), (self.batch, self.filters, *taps.out)
        weight = (self.filters, self.channels // self.groups, *self.kernel)
        x, dy, bias = (outer, inner, self.channels) if transposed else (inner, outer, self.filters)
        return [draw(shape, dtype, seed) for seed, shape in enumerate((x, weight, (bias,), dy))]


CASES = {
    "plain": Case((7, 9), 3, 5, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    "one channel": Case((6, 5), 1, 1, (2, 3), (1, 2), (0, 2), (1, 0), (1, 1)),
    "one axis, strided": Case((23,), 4, 6, (5,), (3,), (2,), (1,), (2,)),
    "three axes": Case((4, 5, 6), 2, 3, (2, 3, 1), (1, 2, 1), (1, 0, 2), (0, 1, 1), (2, 1, 3)),
    "taps that a stride leaves out": Case((11, 8), 3, 2, (2, 1), (4, 3), (0, 1), (2, 0), (2, 1)),
    "stride and dilation that share a factor": Case((13, 12), 2, 4, (3, 4), (4, 6), (5, 3), (4, 9), (2, 4)),
    "padding beyond the kernel": Case((3, 4), 2, 2, (2, 2), (1, 2), (4, 3), (5, 2), (1, 1)),
    "inside of the input": Case((9, 8), 2, 3, (3, 2), (1, 1), (-2, -1), (-1, 0), (1, 1)),
    "groups": Case((6, 7), 6, 9, (3, 2), (2, 1), (1, 0), (0, 1), (1, 2), groups=3),
    "depthwise": Case((8, 8), 5, 5, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), groups=5),
    "two filters for a channel": Case((8, 5), 4, 8, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), groups=4),
    "13 channels to 16": Case((5, 5), 13, 16, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    "20 channels to 33": Case((6, 5), 20, 33, (3, 3), (1, 2), (1, 1), (1, 1), (1, 1)),
    "70 channels to 40": Case((3, 4), 70, 40, (1, 3), (1, 1), (0, 1), (0, 1), (1, 1)),
    "a kernel of one": Case((5, 4), 7, 3, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1)),
    "many samples of one position": Case((3, 2), 3, 4, (3, 2), (1, 1), (0, 0), (0, 0), (1, 1), batch=300),
}  # fmt: skip


def draw(shape, dtype="float32", seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype_of(dtype))


# From an input to what every tap (a, b, e) of every output (i, j, k) reads of it, one axis after the other.
STEPS = [("zgcpqr", "aip", "zgcaiqr"), ("zgcaiqr", "bjq", "zgcaibjr"), ("zgcaibjr", "ekr", "zgcaibjek")]


def products(taps, *, x=None, weight=None, dy=None):
    """The product of the two arrays that are given, in float64: the third of correlate, spread and weigh.

    ``y[z, g, o, i, j, k] = the sum over c, a, b, e and p, q, r of weight[g, o, c, a, b, e] * x[z, g, c, p, q, r]``,
    where ``p = i * stride + a * dilation - before``, and q and r alike.
    """
    missing = 3 - len(taps.size)
    places = [np.ones((1, 1, 1))] * missing
    for n, k, s, d, b, out in zip(*taps[:6], strict=True):
        tap, i, p = np.ogrid[:k, :out, :n]
        places.append((i * s + tap * d - b == p).astype(np.float64))
    x, weight, dy = (
        None if a is None else _in_groups(name, a.astype(np.float64), taps.groups, missing)
        for name, a in (("x", x), ("weight", weight), ("dy", dy))
    )
    if x is None:
        found = np.einsum("gocabe,zgoijk->zgcaibjek", weight, dy, optimize=True)
        for (after, mask, before), place in zip(STEPS[::-1], places[::-1], strict=True):
            found = np.einsum(f"{before},{mask}->{after}", found, place, optimize=True)
    else:
        for (before, mask, after), place in zip(STEPS, places, strict=True):
            x = np.einsum(f"{before},{mask}->{after}", x, place, optimize=True)
        if weight is None:
            found = np.einsum("zgcaibjek,zgoijk->gocabe", x, dy, optimize=True)
            return found.reshape(-1, found.shape[2], *taps.kernel)
        found = np.einsum("zgcaibjek,gocabe->zgoijk", x, weight, optimize=True)
    return found.reshape(found.shape[0], -1, *found.shape[3 + missing :])


def _in_groups(name, array, groups, missing):
    ones = (1,) * missing
    if name == "weight":
        return array.reshape(groups, -1, array.shape[1], *ones, *array.shape[2:])
    return array.reshape(array.shape[0], groups, array.shape[1] // groups, *ones, *array.shape[2:])


def expected(taps, x, weight, bias, dy, activation, *, transposed=False):
    """y, dx, dweight and dbias of an operation in float64."""
    z = products(taps, dy=x, weight=weight) if transposed else products(taps, x=x, weight=weight)
    if bias is not None:
        z = z + bias.astype(np.float64).reshape(-1, *[1] * len(taps.size))
    y = activation.forward(np, z)
    dz = dy.astype(np.float64) * activation.derivative(np, z, y)
    dx = products(taps, x=dz, weight=weight) if transposed else products(taps, dy=dz, weight=weight)
    dweight = products(taps, x=dz, dy=x) if transposed else products(taps, x=x, dy=dz)
    return y, dx, dweight, dz.sum((0, *range(2, dz.ndim)))
