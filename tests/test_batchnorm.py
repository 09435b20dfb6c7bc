"""Batch normalisation beyond the catalogue: running statistics, precision, empty batches, errors."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import nn
from culux.errors import ShapeError
from tests.arrays import normal
from tests.support import requires


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 4), (2, 3, 4, 5), (1, 3, 2, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_running_statistics_are_those_of_torch(shape, dtype):
    torch = requires("torch")
    x, mean, var = normal(*shape, dtype=dtype), normal(3, seed=1, dtype=dtype), np.array([1, 2, 3], dtype)
    after_mean, after_var = torch.tensor(mean), torch.tensor(var)
    torch.nn.functional.batch_norm(torch.tensor(x), after_mean, after_var, training=True, momentum=0.3)
    before = mean.copy(), var.copy()
    _, found_mean, found_var = nn.batchnorm(x, None, None, mean, var, training=True, momentum=0.3)
    np.testing.assert_allclose(found_mean, after_mean.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found_var, after_var.numpy(), rtol=1e-5)
    assert found_mean.dtype == found_var.dtype == dtype
    np.testing.assert_array_equal((mean, var), before)


def test_running_statistics_are_plain_inside_a_gradient():
    seen = []

    def loss(x):
        y, *stats = nn.batchnorm(x, None, None, np.zeros(3), np.ones(3), training=True)
        seen.extend(stats)
        return (y**3).sum()

    culux.gradient(loss, normal(5, 3))
    culux.gradient(lambda x: (culux.gradient(loss, x) ** 2).sum(), normal(5, 3))
    assert [type(s) for s in seen] == [np.ndarray] * 4


def test_test_mode_leaves_the_statistics_alone():
    mean, var = normal(3), np.ones(3)
    _, after_mean, after_var = nn.batchnorm(normal(1, 3), None, None, mean, var, training=False)
    assert after_mean is mean
    assert after_var is var


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2), (0, 3, 0), (2, 3, 0)])
@pytest.mark.parametrize("activation", [nn.relu, np.tanh])  # a function takes the portable form
def test_test_mode_takes_an_empty_batch(shape, activation):
    def total(x, scale, bias):
        y = nn.batchnorm(x, scale, bias, np.zeros(3), np.ones(3), training=False, activation=activation)[0]
        assert y.shape == shape
        return y.sum()

    value, grads = culux.value_and_gradient(lambda args: total(*args), (np.ones(shape), np.ones(3), np.zeros(3)))
    assert value == 0
    assert [g.tolist() for g in grads] == [np.ones(shape).tolist(), [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("training", [True, False])
def test_without_running_statistics_the_batch_is_normalised(training):
    y, mean, var = nn.batchnorm(normal(50, 3) * 3 + 1, None, None, None, None, training=training)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(0), 1, atol=1e-5)
    assert mean is var is None


@pytest.mark.parametrize("shape", [(4096, 3), (8, 3, 64, 64), (2, 3, 100_000)])
@pytest.mark.parametrize("activation", [nn.identity, np.tanh])  # a function takes the portable form
def test_large_means_do_not_lose_the_variance(shape, activation):
    x = (normal(*shape) + 1e4).astype(np.float32)
    axes = (0, *range(2, len(shape)))
    expected = x.astype(np.float64).var(axes, ddof=1)
    y, mean, var = nn.batchnorm(
        x, None, None, np.zeros(3, np.float32), np.zeros(3, np.float32), training=True, momentum=1.0,
        activation=activation,
    )  # fmt: skip
    np.testing.assert_allclose(var, expected, rtol=1e-3)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axes), rtol=1e-7)
    if activation is nn.identity:
        np.testing.assert_allclose(y.astype(np.float64).mean(axes), 0, atol=1e-3)
    assert y.dtype == np.float32


def test_large_means_do_not_lose_the_gradient():
    x = (normal(100_000, 2) + 1e4).astype(np.float32)
    dy = normal(100_000, 2, seed=1, dtype=np.float32) + 10 * (x - np.float32(1e4))

    def dx(x):
        return culux.vjp(lambda x: nn.batchnorm(x, None, None, None, None, training=True)[0], x)[1](dy)[0]

    np.testing.assert_allclose(dx(x), dx(x.astype(np.float64)), atol=1e-3)


def test_statistics_of_float16_are_float32():
    x = (normal(3000, 2) * 100).astype(np.float16)
    zeros, ones = np.zeros(2, np.float32), np.ones(2, np.float32)
    y, mean, var = nn.batchnorm(x, ones, zeros, zeros, ones, training=True, momentum=1.0)
    assert y.dtype == np.float16
    assert mean.dtype == var.dtype == np.float32
    np.testing.assert_allclose(var, x.astype(np.float64).var(0, ddof=1), rtol=1e-4)  # its sum overflows float16


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (
            normal(1, 3),
            {},
            r"expected more than one value per channel when training, got x of shape \(1, 3\); use a lar",
        ),
        (normal(1, 3, 1), {}, r"expected more than one value per channel when training, got x of shape \(1, 3, 1\)"),
        (normal(3), {}, r"expected x of shape \(batch, channels, \*spatial\), got \(3,\)"),
        (normal(2, 4), {}, r"expected x\.shape\[1\] == 3, got 4 \(x has shape \(2, 4\)\)"),
        (normal(2, 3), {"scale": normal(3, 1)}, r"expected scale of shape \(channels,\), got \(3, 1\)"),
    ],
)
def test_batchnorm_refuses_what_does_not_fit(x, options, message):
    arguments = {"scale": None, "bias": None, "running_mean": np.zeros(3), "running_var": np.ones(3), **options}
    with pytest.raises(ShapeError, match=message):
        nn.batchnorm(x, **arguments, training=True)
