from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import kernels, nn
from culux.kernels import activation
from tests.kernel_support import DTYPES, check, close, dtype_of, work
from tests.test_activations import EVERY


def sample(n, dtype="float32"):
    return (np.random.default_rng(0).standard_normal(n) * 3).astype(dtype_of(dtype))


def test_forward_and_backward_pass_every_check():
    x, dy = sample(1027), sample(1027)[::-1].copy()
    code = nn.tanh.cuda()
    y = np.tanh(x.astype(np.float64))
    forward = kernels.get_kernel("activation", "activation_forward", x.dtype, activation=code)
    check(forward, (2,), (64,), x, np.empty_like(x), x.size, reference=lambda x, y, n: np.tanh(x))
    backward = kernels.get_kernel("activation", "activation_backward", x.dtype, activation=code)
    check(
        backward, (2,), (64,), dy, y.astype(x.dtype), np.empty_like(x), x.size,
        reference=lambda dy, y, dx, n: dy * (1 - y * y),
    )  # fmt: skip


@pytest.mark.parametrize("record", EVERY, ids=repr)
def test_every_activation(record, standin_cupy):
    x, dy = sample(101), sample(101)[::-1].copy()
    wide = x.astype(np.float64)
    value, pullback = culux.vjp(record, standin_cupy.asarray(x))
    expected, back = culux.vjp(record, wide)
    close(value, expected, "float32")
    close(pullback(standin_cupy.asarray(dy))[0], back(dy.astype(np.float64))[0], "float32", scale=10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_every_dtype_aligned_or_not(dtype, offset, standin_cupy):
    x = standin_cupy.asarray(sample(77, dtype))[offset:]
    close(activation.forward(x, nn.gelu.cuda()), nn.gelu(x.get().astype(np.float64)), dtype)
    assert work(standin_cupy, lambda: nn.gelu(x)) == (1, 0)


def test_strided_arrays_are_copied_and_empty_ones_launch_nothing(standin_cupy):
    x = standin_cupy.asarray(sample(24).reshape(4, 6)).T
    close(nn.relu(x), np.maximum(x.get(), 0), "float32")
    nothing = standin_cupy.zeros((0, 3), "float32")
    assert nn.relu(nothing).shape == (0, 3)
    assert work(standin_cupy, lambda: nn.relu(nothing)) == (0, 0)
