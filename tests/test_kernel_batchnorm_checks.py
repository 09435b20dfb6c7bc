"""The kernels of batch normalisation under the emulator's checks, and how x is cut into blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from culux import nn
from culux.backends import get_backend
from culux.errors import DeviceError, KernelError
from culux.kernels import batchnorm, get_kernel
from tests.kernel_support import check
from tests.test_kernel_batchnorm import formula, samples

EPSILON, MOMENTUM = 1e-5, 0.3
H100, TURING = 227 * 1024, 64 * 1024
# Shape, unit, width, units of a chunk: channels side by side, two in the last group of four; and 16 bytes at a time.
COLUMNS, PLANES = ((37, 6), 1, 4, 32), ((3, 2, 800), 4, 1, 256)


class Case:
    """A launch of 64 threads (128 for one channel) over samples of a shape."""

    def __init__(self, shape, unit, width, size):
        arrays = samples(shape, "float32")
        self.wide = arrays
        self.x, self.scale, self.bias, self.mean, self.var, self.dy = (a.astype(np.float32) for a in arrays)
        rows, channels, run = shape[0], shape[1], math.prod(shape[2:]) // unit
        self.threads = 64 if width > 1 else 128
        self.unit, self.units, self.groups, self.size = unit, rows * run, -(-channels // width), size
        self.chunks = -(-self.units // size)
        self.extents = rows, channels, run, width
        self.scratch = self.threads // 32 * width * 4
        self.kept = -(-self.units * width // self.threads) * self.threads * unit * 4
        self.y, self.moved, (self.dx, self.dscale, self.dbias) = formula(
            *arrays, training=True, momentum=MOMENTUM, activation=nn.tanh
        )
        # The values of each channel in the order of its units.
        self.values = self.by_channel(arrays[0])
        self.offset = self.values.mean(1) - self.values[:, 0]
        inverse = 1 / np.sqrt(self.values.var(1) + EPSILON)
        self.saved = np.stack([self.values[:, 0], self.offset, inverse])

    @staticmethod
    def by_channel(a):
        return np.moveaxis(a, 1, 0).reshape(a.shape[1], -1)

    def chunked(self, values):
        return [values[:, i : i + self.size * self.unit] for i in range(0, values.shape[1], self.size * self.unit)]

    def moments(self):
        """What the statistics of chunks are: means less the origin, and sums of squares."""
        chunks = self.chunked(self.values - self.values[:, :1])
        return np.stack([[c.mean(1) for c in chunks], [c.var(1) * c.shape[1] for c in chunks]])

    def sums(self, saved):
        """The sums of dz and of dz * xhat over chunks; dz by the statistics in `saved`."""
        origin, offset, inverse = saved[:, :, None]
        xhat = (self.values - origin - offset) * inverse
        z = xhat * self.wide[1][:, None] + self.wide[2][:, None]
        dz = self.by_channel(self.wide[5]) * (1 - np.tanh(z) ** 2)
        return np.stack([[c.sum(1) for c in self.chunked(dz)], [c.sum(1) for c in self.chunked(dz * xhat)]])

    def check(self, name, blocks, *args, shared, expected):
        kernel = get_kernel(
            "batchnorm", name, self.x.dtype, activation=nn.tanh.cuda(), constants=(("UNIT", self.unit),)
        )
        check(kernel, (blocks,), (self.threads,), *args, shared=shared, reference=lambda *_: expected)
        # The same bits in every order of threads and blocks.
        only = {"bounds": False, "races": False, "uninitialised": False}
        check(kernel, (blocks,), (self.threads,), *args, shared=shared, rtol=0, atol=0, **only)


def new(*arrays):
    return [np.empty(a.shape, np.float32) for a in arrays]


@pytest.fixture(params=[COLUMNS, PLANES], ids=["columns", "planes"])
def case(request):
    return Case(*request.param)


def test_forward(case):
    expected = case.y, case.saved, *case.moved
    case.check(
        "batchnorm_forward", case.groups, case.x, case.scale, case.bias, case.mean, case.var, *new(*expected),
        *case.extents, EPSILON, MOMENTUM, shared=case.scratch + case.kept, expected=expected,
    )  # fmt: skip


def test_backward(case):
    expected = case.dx, case.dscale, case.dbias
    case.check(
        "batchnorm_backward", case.groups, case.dy, case.x, case.saved.astype(np.float32), case.scale, case.bias,
        *new(*expected), *case.extents, shared=2 * (case.scratch + case.kept), expected=expected,
    )  # fmt: skip


@pytest.mark.parametrize("tile", [1, 3])
def test_statistics(case, tile):
    moments = case.moments()
    case.check(
        "batchnorm_statistics", case.groups * case.chunks, case.x, *new(moments), *case.extents, case.size, tile,
        shared=case.scratch + tile * case.threads * case.unit * 4, expected=moments,
    )  # fmt: skip


def test_apply(case):
    expected = case.y, case.saved, *case.moved
    case.check(
        "batchnorm_apply", case.groups * case.chunks, case.x, case.scale, case.bias, case.mean, case.var,
        case.moments().astype(np.float32), *new(*expected), *case.extents, case.size, EPSILON, MOMENTUM,
        shared=case.scratch, expected=expected,
    )  # fmt: skip


def test_sums(case):
    mean, var = case.wide[3:5]
    given = np.stack([mean, np.zeros_like(mean), 1 / np.sqrt(var + EPSILON)])
    dx = formula(*case.wide, training=False, activation=nn.tanh)[2][0]
    expected = dx, case.sums(given)
    case.check(
        "batchnorm_sums", case.groups * case.chunks, case.dy, case.x, None, case.scale, case.bias, case.mean, case.var,
        *new(*expected), *case.extents, case.size, EPSILON, shared=2 * case.scratch, expected=expected,
    )  # fmt: skip


def test_backward_apply(case):
    expected = case.dx, case.dscale, case.dbias
    saved, sums = case.saved.astype(np.float32), case.sums(case.saved).astype(np.float32)
    case.check(
        "batchnorm_backward_apply", case.groups * case.chunks, case.dy, case.x, saved, case.scale, case.bias, sums,
        *new(*expected), *case.extents, case.size, shared=2 * case.scratch, expected=expected,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "unit", "arrays", "limit", "expected"),
    [
        ((128, 256), 1, 1, H100, (8, 32, 256)),  # 8 channels are 32 bytes, and give 32 blocks
        ((128, 8192), 1, 1, H100, (32, 256, 1024)),
        ((1500, 8192), 1, 1, H100, (32, 256, 1024)),
        ((1500, 8192), 1, 1, TURING, (8, 1024, 1024)),  # fewer channels, so that they fit
        ((1500, 8192), 1, 2, TURING, None),
        ((4, 3), 1, 1, H100, (4, 1, 128)),
        ((128, 64, 16, 16), 4, 1, H100, (1, 64, 1024)),
        ((128, 64, 16, 16), 4, 2, H100, None),  # 128 KiB, twice
        ((128, 64, 32, 32), 4, 1, H100, None),
        ((8, 512, 7, 7), 1, 1, H100, (1, 512, 128)),
        ((8, 512, 2, 2), 4, 1, H100, (2, 256, 128)),  # a row of two channels is 32 bytes
    ],
)
def test_blocks_that_have_whole_channels(shape, unit, arrays, limit, expected):
    plan = batchnorm.whole(shape, unit, 4, arrays, limit)
    assert (plan and (plan.width, plan.grid[0], plan.threads)) == expected
    if plan:
        assert plan.grid[0] * plan.width >= shape[1]
        assert arrays * (plan.scratch + plan.kept) <= limit
        assert plan.kept >= plan.width * plan.rows * plan.run * unit * 4


@pytest.mark.parametrize(
    ("shape", "unit"),
    [((128, 64, 32, 32), 4), ((2, 1, 2**20, 2**20), 4), ((10**9, 3), 1), ((10**9, 10**5), 1), ((2, 3), 1)],
)
def test_blocks_that_have_chunks(shape, unit):
    plan = batchnorm.chunked(shape, unit, 4)
    units, groups = plan.rows * plan.run, -(-shape[1] // plan.width)
    chunks = -(-units // plan.size)
    assert plan.grid == (chunks * groups,)
    assert plan.grid[0] <= max(batchnorm.BLOCKS, groups)
    assert plan.size % (plan.threads // plan.width) == 0
    assert plan.size * plan.width / plan.threads < 2**31  # units of a thread
    assert units <= chunks * plan.size < units + plan.size


def test_shared_memory_of_a_block(standin_cupy):
    assert get_backend("cupy").shared_limit(0) == H100
    with pytest.raises(DeviceError, match="expected the index of a CUDA device, got 1"):
        get_backend("cupy").shared_limit(1)
    with pytest.raises(KernelError, match="the numpy backend has no CUDA kernels, and no shared memory for them"):
        get_backend("numpy").shared_limit(0)
