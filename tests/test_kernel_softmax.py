from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import kernels, nn
from tests.kernel_support import DTYPES, check, close, dtype_of

CASES = [
    ((1, 1), -1), ((5, 10), -1), ((9, 64), 1), ((2, 256), 1), ((2, 257), 1), ((3, 1024), 1), ((2, 1031), 1),
    ((3, 2052), -1), ((50,), 0), ((7, 5), 0), ((2, 3, 33), 1), ((3, 90, 5), -2), ((600, 3), 0), ((4, 3, 1), 1),
]  # fmt: skip
FUNCTIONS = {False: nn.softmax, True: nn.log_softmax}


def normal(*shape, seed=0, dtype="float32"):
    return (np.random.default_rng(seed).standard_normal(shape) * 3).astype(dtype_of(dtype))


def formula(x, axis, log):
    x = x.astype(np.float64)
    e = np.exp(x - x.max(axis, keepdims=True))
    total = e.sum(axis, keepdims=True)
    return x - x.max(axis, keepdims=True) - np.log(total) if log else e / total


def gradient(dy, x, axis, log):
    """dx in float64: the matrix of derivatives of each row times dy."""
    y, dy = np.moveaxis(formula(x, axis, False), axis, -1), np.moveaxis(dy.astype(np.float64), axis, -1)
    size = y.shape[-1]
    matrix = np.eye(size) - y[..., None, :]  # of the logarithm: d log y_i / d x_j
    if not log:
        matrix = y[..., :, None] * matrix
    return np.moveaxis(np.einsum("...ij,...i->...j", matrix, dy), -1, axis)


def kernel(name, log, dtype="float32"):
    return kernels.get_kernel("softmax", name, dtype_of(dtype), constants=(("LOG", int(log)),))


@pytest.mark.parametrize("name", ["short", "warp"])
def test_rows_in_a_warp_pass_every_check(name):
    x, dy = normal(3, 37), normal(3, 37, seed=1)
    y = formula(x, 1, False)
    check(
        kernel(f"softmax_{name}", False), (1,), (64,), x, np.empty_like(x), 3, 37, reference=lambda *_: y,
    )  # fmt: skip
    check(
        kernel(f"softmax_backward_{name}", False), (1,), (64,), dy, y.astype(np.float32), np.empty_like(x), 3, 37,
        reference=lambda *_: gradient(dy, x, 1, False),
    )  # fmt: skip


def test_rows_in_a_block_pass_every_check():
    x, dy = normal(3, 200), normal(3, 200, seed=1)
    y = formula(x, 1, False)
    check(
        kernel("softmax_block", False), (2,), (64,), x, np.empty_like(x), 3, 200, 120, shared=480,
        reference=lambda *_: y,
    )  # fmt: skip
    check(
        kernel("softmax_backward_block", False), (2,), (64,), dy, y.astype(np.float32), np.empty_like(x), 3, 200, 120,
        shared=960, reference=lambda *_: gradient(dy, x, 1, False),
    )  # fmt: skip


def test_columns_pass_every_check():
    x, dy = normal(2, 7, 19), normal(2, 7, 19, seed=1)
    y = formula(x, 1, False)
    check(
        kernel("softmax_columns", False), (2,), (32, 3), x, np.empty_like(x), 38, 7, 19, reference=lambda *_: y,
    )  # fmt: skip
    check(
        kernel("softmax_backward_columns", False), (2,), (32, 3), dy, y.astype(np.float32), np.empty_like(x), 38, 7, 19,
        reference=lambda *_: gradient(dy, x, 1, False),
    )  # fmt: skip


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("shape", "axis"), CASES, ids=str)
def test_every_shape_and_axis(shape, axis, log, standin_cupy):
    x, dy = normal(*shape) - 20, normal(*shape, seed=1)  # zeros behind the end of a row would show
    run(standin_cupy, x, dy, axis, log)


def run(cupy, x, dy, axis, log, dtype="float32"):
    device_x, device_dy = cupy.asarray(x), cupy.asarray(dy)
    cupy.machine.launches = cupy.machine.library_calls = 0
    y, pullback = culux.vjp(lambda x: FUNCTIONS[log](x, axis=axis), device_x)
    (dx,) = pullback(device_dy)
    assert (cupy.machine.launches, cupy.machine.library_calls) == (2, 0)
    close(y, formula(x, axis, log), dtype)
    expected = gradient(dy, x, axis, log)
    close(dx, expected, dtype, scale=10 * max(1, np.abs(expected).max()))
    assert (pullback(device_dy)[0].get() == dx.get()).all()


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, log, standin_cupy):
    for shape, axis in (((3, 24), 1), ((3, 1100), 1), ((2, 5, 6), 1)):
        run(standin_cupy, normal(*shape, dtype=dtype), normal(*shape, seed=1, dtype=dtype), axis, log, dtype)


@pytest.mark.parametrize("log", [False, True])
def test_rows_longer_than_shared_memory(log, standin_cupy):
    x = normal(2, 24_100, dtype="float32")
    y, pullback = culux.vjp(lambda x: FUNCTIONS[log](x), standin_cupy.asarray(x))
    close(y, formula(x, 1, log), "float32")
    dy = normal(2, 24_100, seed=1)
    (dx,) = pullback(standin_cupy.asarray(dy))
    p = formula(x, 1, False)
    expected = dy - p * dy.sum(1, keepdims=True) if log else p * (dy - (dy * p).sum(1, keepdims=True))
    close(dx, expected, "float32", scale=10)


def test_infinite_and_nan_logits_as_on_the_host(standin_cupy):
    inf, nan = np.inf, np.nan
    rows = [
        [-inf, -inf, -inf],
        [inf, 1, 2],
        [nan, 1, 2],
        [-inf, 0, 0],
        [inf, -inf, inf],
        [1e4, 0, -1e4],
        [3e38, -3e38, 0],
    ]
    few = np.array(rows, np.float32)
    many = np.repeat(few, 500, axis=1)
    for x, axis in ((few, 1), (many, 1), (few.T.copy(), 0), (many.T.copy(), 0)):
        for function in FUNCTIONS.values():
            with np.errstate(all="ignore"):
                expected = function(x, axis=axis)
            found = function(standin_cupy.asarray(x), axis=axis).get()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_unaligned_strided_and_empty_arrays(standin_cupy):
    flat = standin_cupy.asarray(normal(6 * 8 + 1))
    for x in (flat[1:].reshape(6, 8), flat[:48].reshape(8, 6).T, flat[:48].reshape(6, 8)[::2]):
        close(nn.softmax(x), formula(x.get(), 1, False), "float32")
    standin_cupy.machine.launches = 0
    for shape, axis in (((0, 3), 1), ((3, 0), 1), ((0, 3), 0)):
        assert nn.softmax(standin_cupy.zeros(shape, "float32"), axis=axis).shape == shape
    assert standin_cupy.machine.launches == 0


def test_an_axis_that_is_not_there(standin_cupy):
    with pytest.raises(np.exceptions.AxisError, match="axis 2 is out of bounds for array of dimension 2"):
        nn.softmax(standin_cupy.asarray(normal(2, 3)), axis=2)


@pytest.mark.parametrize("log", [False, True])
def test_a_derivative_of_the_derivative(log, standin_cupy):
    x = normal(3, 4, dtype="float64")

    def second(x):
        return (culux.gradient(lambda x: (FUNCTIONS[log](x) ** 2).sum(), x) ** 2).sum()

    close(culux.gradient(second, standin_cupy.asarray(x)), culux.gradient(second, x), "float64", scale=100)
