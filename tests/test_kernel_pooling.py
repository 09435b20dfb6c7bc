"""The kernels of pooling against torch and the host."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import kernels, nn
from culux.kernels import pooling
from culux.nn.pooling import windows_over
from culux.testing import cost
from tests.kernel_support import DTYPES, check, close, dtype_of
from tests.test_pooling import CASES, OURS, sample, torch_pool


def kernel(name, windows, dtype=np.float32):
    constants = (("MARK_BYTES", windows.mark.itemsize), ("DILATED", int(max(windows.dilation) > 1)))
    return kernels.get_kernel("pooling", name, np.dtype(dtype), constants=constants)


@pytest.fixture(scope="module", params=[1, 2], ids=["plain", "dilated"])
def small(request):
    """An overlapping case: the options of torch, x, y, its marks, dy, the windows and the numbers of a launch."""
    x, options = np.round(sample((2, 3, 5, 6), "float32") * 2), ((3, 2), 2, 1, request.param)
    windows = windows_over("maxpool", x.shape, *options)
    y, marks = nn.pooling._maxima(x, windows, marked=True)
    dy = sample(y.shape, "float32", 1)
    return options, x, y, marks, dy, windows, pooling._numbers(x, windows)


def test_the_maximum_passes_every_check(small):
    options, x, y, marks, dy, windows, numbers = small
    grid, block = (-(-y.size // 32),), (32,)
    check(
        kernel("maxpool_forward", windows), grid, block, x, np.empty_like(y), np.empty_like(marks), *numbers,
        reference=lambda *_: (torch_pool("max", x, None, *options)[0].astype(np.float32), marks),
    )  # fmt: skip
    dx = torch_pool("max", x, dy, *options)[1].astype(np.float32)
    check(
        kernel("maxpool_backward", windows), (-(-x.size // 32),), block, dy, marks, np.empty_like(x), *numbers,
        reference=lambda *_: (dx,),
    )  # fmt: skip


def test_the_mean_passes_every_check(small):
    options, x, y, _, dy, windows, numbers = small
    expected, dx = (a.astype(np.float32) for a in torch_pool("mean", x, dy, *options))
    check(
        kernel("meanpool_forward", windows), (-(-y.size // 32),), (32,), x, np.empty_like(y), *numbers,
        reference=lambda *_: (expected,),
    )  # fmt: skip
    check(
        kernel("meanpool_backward", windows), (-(-x.size // 32),), (32,), dy, np.empty_like(x), *numbers,
        reference=lambda *_: (dx,),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["max", "mean"])
@pytest.mark.parametrize("case", CASES)
def test_against_torch(kind, case, standin_cupy):
    shape, window, *rest = CASES[case]
    x, options = sample(shape, "float32"), dict(zip(("stride", "padding", "dilation"), rest, strict=True))
    y, pullback = culux.vjp(lambda x: OURS[kind](x, window, **options), standin_cupy.asarray(x))
    dy = sample(y.shape, "float32", 1)
    expected, gradient = torch_pool(kind, x, dy, window, **options)
    close(y, expected, "float32")
    close(pullback(standin_cupy.asarray(dy))[0], gradient, "float32", scale=5)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["max", "mean"])
def test_every_dtype(dtype, kind, dilation, standin_cupy):
    x = sample((2, 3, 9, 7)).astype(dtype_of(dtype))
    y, pullback = culux.vjp(lambda x: OURS[kind](x, 3, stride=2, padding=1, dilation=dilation), standin_cupy.asarray(x))
    dy = sample(y.shape, seed=1).astype(dtype_of(dtype))
    expected, gradient = torch_pool(kind, x, dy, 3, 2, 1, dilation)
    close(y, expected, dtype)
    close(pullback(standin_cupy.asarray(dy))[0], gradient, dtype, scale=5)


def test_same_padding(standin_cupy):
    x = sample((2, 2, 6, 7), "float32")
    for pool in OURS.values():
        close(pool(standin_cupy.asarray(x), (2, 3), stride=1, padding="same"),
              pool(x, (2, 3), stride=1, padding="same"), "float32")  # fmt: skip


def test_ties_nan_and_infinities(standin_cupy):
    x = np.round(sample((2, 2, 8, 8), "float32"))
    x[0, 0, ::3, ::2], x[1, 1, 1, 1], x[1, 0], x[0, 1, 2] = np.nan, np.inf, -np.inf, -np.inf
    for options in ((2, 0, 1), (2, 1, 1), (2, 0, 2), (1, 1, 3)):
        named = dict(zip(("stride", "padding", "dilation"), options, strict=True))
        y, pullback = culux.vjp(lambda x, named=named: nn.maxpool(x, 3, **named), standin_cupy.asarray(x))
        dy = sample(y.shape, "float32", 1)
        expected, gradient = torch_pool("max", x, dy, 3, *options)
        np.testing.assert_array_equal(y.get(), expected)
        close(pullback(standin_cupy.asarray(dy))[0], gradient, "float32")


def test_windows_between_whose_elements_the_input_lies(standin_cupy):
    for window in (2, (2, 128)):  # the second has places up to 255, the mark of none
        x = standin_cupy.asarray(sample((1, 2, 1, 200), "float32"))
        y, pullback = culux.vjp(lambda x, w=window: nn.maxpool(x, w, stride=1, padding=(1, 0), dilation=(2, 1)), x)
        assert np.isneginf(y.get()).all()
        assert not pullback(standin_cupy.ones_like(y))[0].get().any()
        assert not culux.gradient(lambda dy, back=pullback: back(dy)[0].sum(), standin_cupy.ones_like(y)).get().any()


def test_blocks_that_end_within_a_plane(standin_cupy):
    # 300 planes of 1 to 5 outputs, and planes larger than a block: a block of 256 threads has parts of several.
    for shape, window in (((60, 5, 2, 2), 2), ((60, 5, 3, 5), (3, 1)), ((2, 2, 33, 31), 1), ((1, 3, 40, 41), (2, 1))):
        x = sample(shape, "float32")
        y, pullback = culux.vjp(lambda x, w=window: nn.maxpool(x, w), standin_cupy.asarray(x))
        dy = sample(y.shape, "float32", 1)
        expected, gradient = torch_pool("max", x, dy, window, window, 0)
        np.testing.assert_array_equal(y.get(), expected.astype(np.float32))
        np.testing.assert_array_equal(pullback(standin_cupy.asarray(dy))[0].get(), gradient.astype(np.float32))


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_launches_and_what_is_kept(kind, standin_cupy):
    x, pool = standin_cupy.asarray(sample((2, 3, 8, 8), "float32")), OURS[kind]
    forward = cost(lambda: pool(x, 2))
    assert forward.kernels == ((f"{kind}pool_forward", 1),)
    assert forward.allocations == 1
    y, pullback = culux.vjp(lambda x: pool(x, 2), x)
    backward = cost(lambda: pullback(y))
    assert backward.kernels == ((f"{kind}pool_backward", 1),)
    assert backward.allocations == 1

    def loss(x):
        return pool(x, 2).sum()

    assert cost(lambda: culux.gradient(loss, x)).saved_bytes == (y.size if kind == "max" else 0)


def test_strided_arrays_are_copied(standin_cupy):
    x, dy = sample((8, 6, 3, 2), "float32"), sample((2, 4, 3, 3), "float32").transpose(0, 3, 2, 1)
    for kind, pool in OURS.items():
        y, pullback = culux.vjp(lambda x, pool=pool: pool(x, 2), standin_cupy.asarray(x).transpose(3, 2, 1, 0))
        expected, gradient = torch_pool(kind, x.transpose(3, 2, 1, 0), dy, 2, 2, 0)
        close(y, expected, "float32")
        close(pullback(standin_cupy.asarray(np.ascontiguousarray(dy.T)).T)[0], gradient, "float32")


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_higher_derivatives(kind, standin_cupy):
    x, pool = sample((1, 2, 5, 6), "float32"), OURS[kind]

    def slope(x):
        def cubes(x):
            return (pool(x, (3, 2), stride=2, padding=1, dilation=2) ** 3).sum()

        return (culux.gradient(cubes, x) ** 2).sum()

    expected = culux.gradient(slope, x.astype(np.float64))  # by the host, which tests/test_pooling.py has checked
    close(culux.gradient(slope, standin_cupy.asarray(x)), expected, "float32", scale=20)
    y, pullback = culux.vjp(lambda x: pool(x, 3, padding=1), standin_cupy.asarray(x))
    found = culux.gradient(lambda dy: (pullback(dy)[0] ** 2).sum(), y)
    _, host = culux.vjp(lambda x: pool(x, 3, padding=1), x.astype(np.float64))
    close(found, culux.gradient(lambda dy: (host(dy)[0] ** 2).sum(), y.get().astype(np.float64)), "float32", scale=5)
