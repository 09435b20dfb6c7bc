"""Batch normalisation by kernels, on the stand-in: values, gradients and launches of every dtype, shape and mode."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import nn
from culux.errors import ShapeError
from culux.kernels import batchnorm as kernels
from tests.kernel_support import DTYPES, close, dtype_of

SHAPES = [
    (7, 5),  # fewer values than threads, and a group of channels that is not full
    (2, 1),
    (300, 67),  # two chunks, or one of two tiles
    (3, 2, 8),
    (2, 3, 5, 7),  # runs that are no multiples of 16 bytes
    (5, 9, 2, 2),  # runs of 16 bytes
    (2, 2, 64, 100),
]


@pytest.fixture(params=["whole", "chunks", "long chunks"])
def launches(request, standin_cupy, monkeypatch):
    """The launches each way: one where channels fit on the chip, else two; a long chunk has many tiles."""
    if request.param == "whole":
        yield 1
        return
    monkeypatch.setattr(standin_cupy.cuda.Device, "attributes", {"MaxSharedMemoryPerBlockOptin": 0})
    if request.param == "long chunks":
        monkeypatch.setattr(kernels, "BLOCKS", 2)
    kernels.chunked.cache_clear()
    yield 2
    kernels.chunked.cache_clear()


def two(function):
    """A test whose few values are one chunk of one tile."""
    return pytest.mark.parametrize("launches", ["whole", "chunks"], indirect=True)(function)


def formula(x, scale, bias, mean, var, dy, *, training, momentum=0.1, epsilon=1e-5, activation=nn.identity):
    """y, the running statistics after it, and the cotangents of x, scale and bias, in float64."""
    axes, per_channel = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
    count = x.size // x.shape[1]
    used_mean, used_var = (x.mean(axes), x.var(axes)) if training else (mean, var)
    wide = [np.ones(x.shape[1]) if scale is None else scale, np.zeros(x.shape[1]) if bias is None else bias]
    gain, shift, used_mean, used_var = (np.reshape(v, per_channel) for v in (*wide, used_mean, used_var))
    inverse = 1 / np.sqrt(used_var + epsilon)
    xhat = (x - used_mean) * inverse
    z = xhat * gain + shift
    y = activation(z)
    dz = dy * (1 if activation.saves is None else activation.derivative(np, z, y))
    dx = dz * gain * inverse
    if training:
        along = (dz * xhat).mean(axes, keepdims=True)
        dx = gain * inverse * (dz - dz.mean(axes, keepdims=True) - xhat * along)
        unbiased = used_var.ravel() * count / (count - 1)
        if mean is not None:
            mean = (1 - momentum) * mean + momentum * used_mean.ravel()
            var = (1 - momentum) * var + momentum * unbiased
    return y, (mean, var), (dx, (dz * xhat).sum(axes), dz.sum(axes))


def samples(shape, dtype, parameters=None, seed=0):
    """x, scale, bias, running mean and variance, and dy, in float64: numbers that the dtypes hold."""
    rng = np.random.default_rng(seed)
    data, other = dtype_of(dtype), dtype_of(parameters or dtype)
    x, dy = (rng.standard_normal(shape).astype(data).astype(np.float64) for _ in range(2))
    drawn = [(rng.standard_normal(shape[1]) / 2 + 1).astype(other).astype(np.float64) for _ in range(4)]
    return x, *drawn[:3], np.abs(drawn[3]), dy


def on_device(cupy, arrays, dtype, parameters=None):
    """The samples on the device, in their dtypes; the counters at 0."""
    x, *others, dy = arrays
    kinds = [dtype_of(dtype), *[dtype_of(parameters or dtype)] * 4, dtype_of(dtype)]
    found = [None if a is None else cupy.asarray(a.astype(k)) for a, k in zip((x, *others, dy), kinds, strict=True)]
    cupy.machine.launches = cupy.machine.library_calls = 0
    return found


def run(x, scale, bias, mean, var, dy, **options):
    """What `formula` gives, by `nn.batchnorm`; None for the cotangents of parameters that are None."""
    given = [a for a in (x, scale, bias) if a is not None]

    def call(*values):
        left = iter(values)
        y, *moved = nn.batchnorm(*[None if a is None else next(left) for a in (x, scale, bias)], mean, var, **options)
        return y, tuple(moved)

    y, pullback, moved = culux.vjp(call, *given, has_aux=True)
    found = iter(pullback(dy))
    return y, moved, tuple(None if a is None else next(found) for a in (x, scale, bias))


def compare(found, expected, dtype, parameters=None, scale=1.0):
    """Sums of n terms may be off by more than one rounding: `scale` is for those."""
    (y, moved, (dx, *others)), (y_, moved_, (dx_, *others_)) = found, expected
    close(y, y_, dtype, 2)
    close(dx, dx_, dtype, 5)
    for a, b in zip((*moved, *others), (*moved_, *others_), strict=True):
        if a is not None:
            close(a, b, parameters or dtype, 5 * scale)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training(shape, launches, standin_cupy):
    arrays, options = samples(shape, "float32"), {"training": True, "momentum": 0.3, "activation": nn.tanh}
    given = on_device(standin_cupy, arrays, "float32")
    found = run(*given, **options)
    assert (standin_cupy.machine.launches, standin_cupy.machine.library_calls) == (2 * launches, 0)
    compare(found, formula(*arrays, **options), "float32")
    for array, before in zip(given, arrays, strict=True):
        np.testing.assert_array_equal(array.get(), before.astype(np.float32))  # nothing is overwritten


@pytest.mark.parametrize("parameters", [None, "float32"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@two
def test_every_dtype(dtype, parameters, training, launches, standin_cupy):
    arrays = samples((6, 3, 4, 4), dtype, parameters)
    options = {"training": training, "activation": nn.gelu}
    found = run(*on_device(standin_cupy, arrays, dtype, parameters), **options)
    compare(found, formula(*arrays, **options), dtype, parameters, scale=2 if dtype == (parameters or dtype) else 50)


@pytest.mark.parametrize("activation", [nn.identity, nn.relu, nn.leakyrelu.replace(slope=0.3), nn.sigmoid, nn.swish])
@two
def test_activations(activation, launches, standin_cupy):
    arrays = samples((20, 4), "float32")
    for training in (True, False):
        found = run(*on_device(standin_cupy, arrays, "float32"), training=training, activation=activation)
        compare(found, formula(*arrays, training=training, activation=activation), "float32")


@pytest.mark.parametrize("missing", [(1,), (2,), (1, 2), (3, 4), (1, 2, 3, 4)])
@two
def test_what_is_none(missing, launches, standin_cupy):
    arrays = [None if i in missing else a for i, a in enumerate(samples((9, 4), "float32"))]
    for training in (True, False):
        found = run(*on_device(standin_cupy, arrays, "float32"), training=training, activation=nn.relu)
        used = training or 3 in missing
        compare(found, formula(*arrays, training=used, activation=nn.relu), "float32")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_given_statistics(shape, launches, standin_cupy):
    arrays, options = samples(shape, "float32"), {"training": False, "activation": nn.tanh}
    x, scale, bias, mean, var, dy = on_device(standin_cupy, arrays, "float32")
    found = run(x, scale, bias, mean, var, dy, **options)
    assert (standin_cupy.machine.launches, standin_cupy.machine.library_calls) == (3, 0)
    compare(found, formula(*arrays, **options), "float32")
    assert found[1][0] is mean


@pytest.mark.parametrize("training", [True, False])
@two
def test_only_wanted_cotangents_are_computed(training, launches, standin_cupy):
    arrays = samples((9, 4), "float32")
    x, scale, bias, mean, var, dy = on_device(standin_cupy, arrays, "float32")
    _, _, expected = formula(*arrays, training=training)

    def only(position):
        def call(value):
            args = [value if i == position else a for i, a in enumerate((x, scale, bias))]
            return nn.batchnorm(*args, mean, var, training=training)[0]

        _, pullback = culux.vjp(call, (x, scale, bias)[position])
        standin_cupy.machine.launches = 0
        close(pullback(dy)[0], expected[position], "float32", 5)
        return standin_cupy.machine.launches

    assert [only(position) for position in range(3)] == ([launches] * 3 if training else [1, 2, 2])


@two
def test_unaligned_and_strided_arrays(launches, standin_cupy):
    x, scale, bias, mean, var, dy = samples((4, 3, 8), "float32")
    flat, above = (standin_cupy.zeros(97, "float32") for _ in range(2))
    unaligned, above = flat[1:].reshape(4, 3, 8), above[1:].reshape(4, 3, 8)
    unaligned[...], above[...] = (standin_cupy.asarray(a.astype("float32")) for a in (x, dy))
    given = on_device(standin_cupy, (x, scale, bias, mean, var, dy), "float32")
    expected = formula(x, scale, bias, mean, var, dy, training=True)
    compare(run(unaligned, *given[1:-1], above, training=True), expected, "float32")
    compare(run(*given[:-1], above, training=True), expected, "float32")
    strided = [standin_cupy.asarray(a.astype("float32").T.copy()).T for a in (x, dy)]
    doubled = [standin_cupy.asarray(np.repeat(a, 2).astype("float32"))[::2] for a in (scale, bias, mean, var)]
    compare(run(strided[0], *doubled, strided[1], training=True), expected, "float32")


@pytest.mark.parametrize("shape", [(3000, 2), (2, 2, 61, 30), (2, 2, 64, 32)], ids=str)
@pytest.mark.parametrize("device", [True, False], ids=["device", "host"])
def test_large_means_do_not_lose_the_variance(shape, device, launches, standin_cupy):
    rng = np.random.default_rng(0)
    x, zeros = (rng.standard_normal(shape) + 1e4).astype(np.float32), np.zeros(2, np.float32)
    wide, axes = x.astype(np.float64), (0, *range(2, x.ndim))
    given = [standin_cupy.asarray(a) if device else a for a in (x, zeros)]
    y, mean, var = nn.batchnorm(given[0], None, None, given[1], given[1], training=True, momentum=1.0)
    y, mean, var = (a.get() if device else a for a in (y, mean, var))
    np.testing.assert_allclose(var, wide.var(axes, ddof=1), rtol=1e-3)
    np.testing.assert_allclose(mean, wide.mean(axes), rtol=1e-7)
    expected = formula(wide, None, None, None, None, np.zeros(shape), training=True)[0]
    np.testing.assert_allclose(y, expected, atol=1e-4 if device else 2e-3)


def test_an_outlier_comes_first(launches, standin_cupy):
    """The origin is the first value: one that is nothing like the others costs the variance nothing."""
    x = (np.random.default_rng(0).standard_normal((3000, 2)) + 1e4).astype(np.float32)
    x[0] = 0
    zeros = standin_cupy.zeros(2, "float32")
    _, mean, var = nn.batchnorm(standin_cupy.asarray(x), None, None, zeros, zeros, training=True, momentum=1.0)
    close(mean, x.astype(np.float64).mean(0), "float32")
    close(var, x.astype(np.float64).var(0, ddof=1), "float32")


@two
def test_no_running_statistics_and_values_that_are_all_the_same(launches, standin_cupy):
    y, mean, var = nn.batchnorm(standin_cupy.full((6, 3), 7.0, "float32"), None, None, None, None, training=True)
    assert mean is var is None
    assert (y.get() == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_two_runs_give_the_same_bits(training, launches, standin_cupy):
    arrays = samples((600, 5), "float32")
    first, second = (run(*on_device(standin_cupy, arrays, "float32"), training=training) for _ in range(2))
    for a, b in zip((first[0], *first[1], *first[2]), (second[0], *second[1], *second[2]), strict=True):
        assert a.get().tobytes() == b.get().tobytes()


@pytest.mark.parametrize("training", [True, False])
@two
def test_second_derivatives(training, launches, standin_cupy):
    def penalty(x, scale, mean, var):
        def total(x):
            y, *_ = nn.batchnorm(x, scale, None, mean, var, training=training, activation=nn.tanh)
            return (y * y * y).sum()

        return (culux.gradient(total, x) ** 2).sum()

    x, scale, _, mean, var, _ = samples((5, 3), "float64")
    expected = culux.gradient(lambda x, scale: penalty(x, scale, mean, var), x, scale)
    given = [standin_cupy.asarray(a) for a in (x, scale, mean, var)]
    found = culux.gradient(lambda x, scale: penalty(x, scale, *given[2:]), *given[:2])
    for a, b in zip(found, expected, strict=True):
        close(a, b, "float64", 100)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2), (2, 3, 0)], ids=str)
def test_nothing_in_test_mode(shape, standin_cupy):
    x, scale, bias, mean, var, dy = on_device(standin_cupy, samples(shape, "float32"), "float32")
    y, _, _ = nn.batchnorm(x, scale, bias, mean, var, training=False, activation=nn.relu)
    assert y.shape == shape
    assert standin_cupy.machine.launches == standin_cupy.machine.library_calls == 0
    _, _, (dx, dscale, dbias) = run(x, scale, bias, mean, var, dy, training=False)
    assert dx.shape == shape
    assert dscale.tolist() == dbias.tolist() == [0, 0, 0]


def test_running_statistics_keep_their_dtype_on_the_host_too():
    arrays = samples((6, 3), "float16")
    _, *moved = nn.batchnorm(*[a.astype(np.float16) for a in arrays[:5]], training=True)
    for a, b in zip(moved, formula(*arrays, training=True)[1], strict=True):
        close(a, b, "float16", 2)


def test_one_value_per_channel_is_an_error(standin_cupy):
    with pytest.raises(ShapeError, match=r"expected more than one value per channel when training, got x of shape"):
        nn.batchnorm(standin_cupy.ones((1, 3, 1), "float32"), None, None, None, None, training=True)


def test_functions_and_mixed_dtypes_take_the_portable_form(standin_cupy):
    arrays = samples((6, 3), "float32")
    x, scale, bias, mean, var, dy = on_device(standin_cupy, arrays, "float32")
    y, *_ = nn.batchnorm(x, scale, bias, mean, var, training=True, activation=np.tanh)
    close(y, formula(*arrays, training=True, activation=nn.tanh)[0], "float32", 5)
    found = run(x, scale.astype("float64"), bias, mean, var, dy, training=True)
    assert standin_cupy.machine.launches == 0
    assert found[0].dtype == np.float64
    close(found[2][0], formula(*arrays, training=True)[2][0], "float32", 5)


def test_a_layer_in_a_model(standin_cupy):
    layer = culux.BatchNorm(8, culux.relu)
    ps, st = culux.setup(0, layer)
    x = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    expected, after = layer(x, ps, st)
    device = culux.gpu_device()
    ps, st, x = device(ps), device(st), device(x)
    standin_cupy.machine.launches = standin_cupy.machine.library_calls = 0
    y, moved = layer(x, ps, st)
    assert (standin_cupy.machine.launches, standin_cupy.machine.library_calls) == (1, 0)
    close(y, expected, "float32")
    close(moved.running_var, after.running_var, "float32")
