"""Convolution: `nn.conv` and `nn.conv_transpose` on the host, against torch."""

from __future__ import annotations

import functools
import itertools
import re
import threading
import tracemalloc

import numpy as np
import pytest
import threadpoolctl

import culux
from culux import nn
from culux.errors import DTypeError, LayerError, ShapeError
from culux.nn import conv_columns, conv_numpy
from culux.nn.conv_taps import Taps
from tests.support import requires


def sample(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def sides(name, arrays, dy, **options):
    """Value and gradients by culux, and by torch in float64."""
    torch = requires("torch")
    y, pullback = culux.vjp(lambda x, w, b: getattr(nn, name)(x, w, b, **options), *arrays)
    tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays]
    expected = getattr(torch.nn.functional, f"{name}{arrays[0].ndim - 2}d")(*tensors, **options)
    dy = sample(y.shape, y.dtype, 9) if dy is None else dy
    expected.backward(torch.tensor(dy.astype(np.float64)))
    return (y, *pullback(dy)), (expected.detach().numpy(), *(t.grad.numpy() for t in tensors))


def operands(axes, size, groups, *, transposed=False, dtype="float64"):
    kernel = (3, 2, 2)[:axes]
    shape = (4, 6 // groups, *kernel) if transposed else (6, 4 // groups, *kernel)
    x = sample((3, 4, *(size + i for i in range(axes))), dtype)
    return x, sample(shape, dtype, 1), sample(6, dtype, 2)


GRID = list(itertools.product((1, 2, 3), (0, 1, 2), (1, 2), (1, 2), (5, 8)))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_against_torch(axes, transposed):
    """Strides, paddings, dilations, groups and sizes, in all combinations that have an output."""
    checked = 0
    for stride, padding, dilation, groups, size in GRID:
        if 2 * dilation >= size + 2 * padding:
            continue
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        if transposed:
            options["output_padding"] = stride - 1
        arrays = operands(axes, size, groups, transposed=transposed)
        found, expected = sides("conv_transpose" if transposed else "conv", arrays, None, **options)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9, err_msg=str(options))
        checked += 1
    assert checked > 60


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 2e-2), ("bfloat16", 2e-1)])
def test_dtypes(name, dtype, tolerance):
    if dtype == "bfloat16":
        dtype = requires("ml_dtypes").bfloat16
    arrays = operands(2, 8, 2, transposed=name == "conv_transpose", dtype=dtype)
    found, expected = sides(name, arrays, None, stride=2, padding=1, groups=2)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.dtype(dtype)
        np.testing.assert_allclose(one.astype(np.float64), other, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("limit", [1, 900, 5000, 30000, 2**30])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("short", "product"), [(0, 10**6), (16, 1500), (2, 200)])
def test_blocks_of_every_size_give_the_same(monkeypatch, limit, stride, short, product):
    """From one row of columns at a time to those of a whole batch, images or rows innermost, in shorter products."""
    monkeypatch.setattr(conv_columns, "_BYTES", (limit, limit, limit))
    monkeypatch.setattr(conv_columns, "_SHORT", short)
    monkeypatch.setattr(conv_numpy, "_PRODUCT", product)
    for name in ("_COLUMNS", "_TERMS"):
        monkeypatch.setattr(conv_numpy, name, 1)
    for size, padding in ((4, 1), (9, 1), (9, (0, 3))):
        x, weight, bias = sample((5, 4, size, size)), sample((6, 2, 3, 3), seed=1), sample(6, seed=2)
        found, expected = sides("conv", (x, weight, bias), None, stride=stride, padding=padding, groups=2)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.fixture
def three_threads(monkeypatch):
    monkeypatch.setattr(conv_numpy, "_THREAD", 1)
    with threadpoolctl.threadpool_limits(3, "blas"):
        yield


def backward(arrays, name, **options):
    y, pullback = culux.vjp(functools.partial(getattr(nn, name), **options), *arrays)
    return y, *pullback(sample(y.shape, seed=7).astype(y.dtype))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
@pytest.mark.parametrize("limit", [1, 900, 20000])
def test_threads_give_the_same(monkeypatch, request, axes, name, limit):
    """The same bits however often, and whatever thread is faster; to rounding what one thread gives."""
    monkeypatch.setattr(conv_columns, "_BYTES", (limit, limit, limit))
    arrays = operands(axes, 12, 2, transposed=name == "conv_transpose", dtype="float32")
    alone = backward(arrays, name, padding=1, groups=2)
    request.getfixturevalue("three_threads")
    shared = backward(arrays, name, padding=1, groups=2)
    for one, other in zip(shared, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    for _ in range(5):
        for one, other in zip(backward(arrays, name, padding=1, groups=2), shared, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("three_threads")
def test_threads_share_the_blocks(monkeypatch):
    x, weight, bias = sample((9, 4, 12, 12)), sample((6, 4, 3, 3), seed=1), sample(6)
    taps = Taps((12, 12), (3, 3), (1, 1), (1, 1), (0, 0), (10, 10), 1)
    monkeypatch.setattr(conv_columns, "_BYTES", (1000, 1000, 1000))
    whole, threads, together = conv_columns.Columns.of, set(), threading.Barrier(3, timeout=60)

    def of(columns, block):
        if threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            together.wait()  # all three have a block at once
        return whole(columns, block)

    monkeypatch.setattr(conv_columns.Columns, "of", of)
    for call in (lambda: nn.conv(x, weight, bias), lambda: conv_numpy.weight_gradient(x, x[:, :, 1:-1, 1:-1], taps)):
        threads.clear()
        call()
        assert len(threads) == 3


def test_arrays_in_any_order_of_memory():
    x, weight, bias = sample((9, 8, 4, 3)).T, sample((3, 3, 4, 6)).T, sample(12)[::2]
    for stride in (1, 2):
        dy = sample(nn.conv(x, weight, bias, stride=stride).shape[::-1], seed=3).T
        found, expected = sides("conv", (x, weight, bias), dy, stride=stride)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_no_samples():
    weight, bias = sample((6, 4, 3, 3)), sample(6)
    for function, w in ((nn.conv, weight), (nn.conv_transpose, weight.swapaxes(0, 1))):
        for stride in (1, 2):
            call = functools.partial(function, stride=stride)
            y, pullback = culux.vjp(call, np.ones((0, 4, 7, 7)), w, bias)
            dx, dw, db = pullback(np.ones(y.shape))
            assert (y.shape[:2], dx.shape) == ((0, 6), (0, 4, 7, 7))
            assert not dw.any()
            assert not db.any()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's, of its copy
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (4, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_and_valid_are_torchs(kernel, dilation):
    arrays = sample((2, 3, 10, 11)), sample((4, 3, *kernel), seed=1), sample(4)
    for padding in ("same", "valid"):
        found, expected = sides("conv", arrays, None, padding=padding, dilation=dilation)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("padding", [0, (1, 0)])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_kernel_of_one_tap(padding, groups):
    arrays = sample((3, 4, 5, 6)), sample((6, 4 // groups, 1, 1), seed=1), sample(6, seed=2)
    for order in ("C", "F"):
        arrays = np.asarray(arrays[0], order=order), *arrays[1:]
        found, expected = sides("conv", arrays, None, padding=padding, groups=groups)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (2, 2), (3, 2), (5, 3)])
def test_same_of_a_transpose_gives_the_lengths_times_the_stride(kernel, stride):
    x, weight = sample((1, 2, 5)), sample((2, 1, kernel), seed=1)
    y = nn.conv_transpose(x, weight, stride=stride, padding="same")
    assert y.shape == (1, 1, 5 * stride)
    whole, cut = nn.conv_transpose(x, weight, stride=stride), (kernel - stride) // 2
    np.testing.assert_allclose(y, whole[..., cut : cut + 5 * stride], rtol=1e-12)


def test_padding_larger_than_the_kernel():
    arrays = sample((2, 3, 4, 5)), sample((4, 3, 2, 1), seed=1), sample(4)
    found, expected = sides("conv", arrays, None, padding=(3, 2))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_pairs_of_padding():
    x, weight = sample((2, 3, 5, 6)), sample((4, 3, 3, 2), seed=1)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 2), (3, 1)))
    expected = nn.conv(padded, weight)
    np.testing.assert_allclose(nn.conv(x, weight, padding=((0, 2), (3, 1))), expected, rtol=1e-12)
    np.testing.assert_allclose(
        nn.conv(x, weight, padding=((0, 2), 1)), nn.conv(x, weight, padding=((0, 2), (1, 1))), rtol=1e-12
    )
    back = nn.conv_transpose(expected, weight, padding=((0, 2), (3, 1)))
    np.testing.assert_allclose(back, nn.conv_transpose(expected, weight)[:, :, :5, 3:9], rtol=1e-12)


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_what_is_wanted_is_computed(monkeypatch, name, wanted):
    calls = []
    for function in ("correlate", "spread", "weight_gradient"):
        whole = getattr(conv_numpy, function)
        monkeypatch.setattr(
            conv_numpy, function, lambda *args, f=function, whole=whole: (calls.append(f), whole(*args))[1]
        )
    arrays = list(operands(2, 8, 1, transposed=name == "conv_transpose"))

    def f(value):
        return getattr(nn, name)(*arrays[:wanted], value, *arrays[wanted + 1 :], stride=2)

    y, pullback = culux.vjp(f, arrays[wanted])
    calls.clear()
    pullback(np.ones(y.shape))
    dx = ["correlate"] if name == "conv_transpose" else ["spread", "correlate"]  # of each phase of the stride
    assert list(dict.fromkeys(calls)) == [dx, ["weight_gradient"], []][wanted]


@pytest.mark.parametrize(
    ("batch", "channels", "size", "options"),
    [
        (16, 4, 64, {}),
        (16, 32, 64, {}),
        (2, 32, 64, {}),
        (16, 16, 64, {"stride": 2}),
        (2, 16, 64, {"dilation": 5}),
        (64, 4, 64, {"dilation": (1, 9)}),
        (2, 32, 64, {"groups": 32}),
        (16, 64, 16, {}),  # room for three sums
        (8, 64, 16, {}),  # and for one
        (16, 128, 8, {"stride": 2}),  # the weight is the largest
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_memory_of_a_backward_is_bounded(request, batch, channels, size, options, threads):
    if threads > 1:
        request.getfixturevalue("three_threads")
    x = sample((batch, channels, size, size), "float32")
    weight = sample((channels, channels // options.get("groups", 1), 3, 3), "float32", 1)
    y, pullback = culux.vjp(lambda x, w: nn.conv(x, w, padding=1, **options), x, weight)
    dy = np.ones_like(y)
    tracemalloc.start()
    try:
        pullback(dy)
        assert tracemalloc.get_traced_memory()[1] <= 3 * max(x.nbytes, y.nbytes, weight.nbytes)
    finally:
        tracemalloc.stop()


def test_columns_of_a_larger_block_after_those_of_a_smaller_one():
    """As a thread meets them that is given the last block of some rows first."""
    x, taps = sample((5, 2, 6, 6)), Taps((6, 6), (3, 3), (1, 1), (1, 1), (1, 1), (6, 6), 1)
    columns = conv_columns.Columns(x, conv_columns.of_rows, conv_columns.Scratch())
    part = slice(None), slice(None)
    for images in (slice(4, 5), slice(0, 4), slice(3, 5), slice(4, 5)):
        found = columns.of(conv_columns.Block(images, part, taps, images_last=False))
        room = np.pad(x[images], [(0, 0), (0, 0), (1, 1), (1, 1)])
        windows = np.lib.stride_tricks.sliding_window_view(room, (3, 3), (2, 3))  # image, channel, row, column, taps
        np.testing.assert_array_equal(found, windows.transpose(2, 4, 1, 5, 0, 3).reshape(1, 6, 18, -1))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_windows_stay_in_their_memory(monkeypatch, axes):
    whole, seen = conv_columns.as_strided, []

    def checked(room, *args, **options):
        view, memory = whole(room, *args, **options), room
        while memory.base is not None:
            memory = memory.base
        low, high = np.lib.array_utils.byte_bounds(view)
        first, last = np.lib.array_utils.byte_bounds(memory)
        assert first <= low <= high <= last
        seen.append(view.shape)
        return view

    monkeypatch.setattr(conv_columns, "as_strided", checked)
    for stride, dilation, padding in itertools.product((1, 2), (1, 2), (0, 1, 3)):
        x, weight, _ = operands(axes, 16, 1)
        y, pullback = culux.vjp(
            lambda x, w, o=(stride, dilation, padding): nn.conv(x, w, stride=o[0], dilation=o[1], padding=o[2]),
            x, weight,
        )  # fmt: skip
        pullback(y)
    assert len(seen) >= 24


ONES = np.ones


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.conv(ONES((1, 3, 8, 8), int), ONES((4, 3, 3, 3))), DTypeError, "conv: expected x to be a float"),
        (
            lambda: nn.conv(ONES((1, 3, 8, 8)), ONES((4, 3))), ShapeError,
            "conv: expected weight of shape (out, in / groups, *kernel), 1 to 3 axes in kernel, got (4, 3)",
        ),
        (
            lambda: nn.conv(ONES((1, 3, 8)), ONES((4, 3, 3, 3))), ShapeError,
            "conv: expected x of shape (batch, 3, *spatial) with 2 spatial axes, got (1, 3, 8)",
        ),
        (
            lambda: nn.conv(ONES((1, 3, 8, 8)), ONES((4, 2, 3, 3)), groups=2), ShapeError,
            "conv: expected x.shape[1] == 4 for weight of shape (4, 2, 3, 3) and groups=2, got 3 (x has shape",
        ),
        (
            lambda: nn.conv(ONES((1, 3, 8, 8)), ONES((4, 1, 3, 3)), groups=3), LayerError,
            "conv: expected groups to divide the weight's first axis (4), got 3",
        ),
        (
            lambda: nn.conv(ONES((1, 3, 8)), ONES((4, 3, 3)), ONES(3)), ShapeError,
            "conv: expected bias of shape (4,), got (3,)",
        ),
        (
            lambda: nn.conv_transpose(ONES((1, 3, 8)), ONES((3, 4, 3)), ONES(3)), ShapeError,
            "conv_transpose: expected bias of shape (4,), got (3,)",
        ),
        (
            lambda: nn.conv(ONES((1, 3, 4, 8)), ONES((4, 3, 3, 3)), dilation=2), ShapeError,
            "conv: expected spatial axes of at least (5, 5) with the padding ((0, 0), (0, 0)), got (4, 8)",
        ),
        (
            lambda: nn.conv_transpose(ONES((1, 3, 1)), ONES((3, 4, 3)), padding=2), ShapeError,
            "conv_transpose: expected an output of at least 1 along every spatial axis, got (-1,)",
        ),
        (
            lambda: nn.conv(ONES((1, 3, 0)), ONES((4, 3, 3)), padding=2), ShapeError,
            "conv: expected spatial axes that are not empty, got (1, 3, 0)",
        ),
        (
            lambda: nn.conv(ONES((1, 3, 4)), ONES((4, 3, 3)), padding=4, padding_mode="reflect"), ShapeError,
            'conv: expected padding of at most 3 for padding_mode="reflect" and an axis of 4, got (4, 4)',
        ),
        (
            lambda: nn.conv(ONES((1, 3, 4)), ONES((4, 3, 3)), padding_mode="edge"), LayerError,
            "conv: expected padding_mode to be one of zeros, circular, reflect, replicate, got str 'edge'",
        ),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
