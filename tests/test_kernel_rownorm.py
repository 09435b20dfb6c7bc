from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import kernels, nn
from culux.errors import DeviceError
from culux.kernels import rownorm
from tests.kernel_support import DTYPES, check, close, dtype_of

EPSILON = 1e-5
# In a warp; in a warp forward and a block backward; in a block. Whole packs or not.
SIZES = (1, 37, 64, 256, 700, 1024, 1501, 2048)


def normal(*shape, seed=0, dtype="float32", offset=0.0):
    return (np.random.default_rng(seed).standard_normal(shape) + offset).astype(dtype_of(dtype))


def wide(x):
    return None if x is None else np.asarray(x.get() if hasattr(x, "get") else x).astype(np.float64)


def formula(x, scale, bias, centred, epsilon=EPSILON):
    """xhat and z in float64."""
    x = wide(x)
    centre = x - x.mean(-1, keepdims=True) if centred else x
    xhat = centre / np.sqrt((centre * centre).mean(-1, keepdims=True) + epsilon)
    return xhat, xhat * (1 if scale is None else wide(scale)) + (0 if bias is None else wide(bias))


def gradients(dy, x, scale, bias, centred, record):
    """dx, dscale and dbias in float64, through the matrix of derivatives of a row."""
    xhat, z = formula(x, scale, bias, centred)
    dz = wide(dy) * record.derivative(np, z, record(z))
    g = dz * (1 if scale is None else wide(scale))
    x = wide(x)
    inverse = 1 / np.sqrt((x.var(-1) if centred else (x * x).mean(-1)) + EPSILON)[:, None]
    size = x.shape[-1]
    dx = np.empty_like(x)
    for row in range(len(x)):
        matrix = np.eye(size) - centred / size - np.outer(xhat[row], xhat[row]) / size
        dx[row] = inverse[row] * (matrix @ g[row])
    return dx, (dz * xhat).sum(0), dz.sum(0)


def kernel(name, centred, dtype="float32", record=nn.tanh, parameters=None):
    return kernels.get_kernel(
        "rownorm", name, dtype_of(dtype), parameters=parameters, activation=record.cuda(),
        constants=(("CENTRED", int(centred)),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "size", "name", "group"),
    [(5, 37, "warp", 32), (3, 132, "short", 32), (2, 200, "block", 64), (3, 130, "block", 0)],
)
def test_the_kernels_pass_every_check(rows, size, name, group):
    x, dy = normal(rows, size), normal(rows, size, seed=1)
    scale, bias = normal(size, seed=2), normal(size, seed=3)
    _, z = formula(x, scale, bias, True)
    empty = np.empty(rows, np.float32)
    mean, inverse = wide(x).mean(1), 1 / np.sqrt(wide(x).var(1) + EPSILON)
    outputs = [np.empty_like(x), empty, empty.copy()]
    expected = (np.tanh(z), mean, inverse)
    if name != "block":
        check(
            kernel(f"rownorm_forward_{name}", True), (1,), (64,), x, scale, bias, *outputs, rows, size, EPSILON,
            reference=lambda *_: expected,
        )  # fmt: skip
    else:
        check(
            kernel("rownorm_forward_block", True), (2,), (64,), x, scale, bias, *outputs, rows, size, 100, EPSILON,
            shared=400, reference=lambda *_: expected,
        )  # fmt: skip
    dx, dscale, dbias = gradients(dy, x, scale, bias, True, nn.tanh)
    saved = mean.astype(np.float32), inverse.astype(np.float32)
    partials = np.empty((1, size), np.float32)
    name = "rownorm_backward" if group else "rownorm_backward_long"
    check(
        kernel(name, True), (1,), (64,), dy, x, scale, bias, *saved, np.empty_like(x), partials, partials.copy(),
        rows, size, *([group] if group else []),
        reference=lambda *_: (dx, dscale[None], dbias[None]), rtol=1e-3, atol=1e-4,
    )  # fmt: skip


def test_the_sum_of_partial_sums_passes_every_check():
    first, second = normal(70, 37), normal(70, 37, seed=1)
    out = np.empty(37, np.float32)
    check(
        kernel("rownorm_parameters", True), (2, 2), (32, 32), first, second, out, out.copy(), 70, 37,
        reference=lambda *_: (wide(first).sum(0), wide(second).sum(0)),
    )  # fmt: skip


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_every_length_of_rows(size, centred, standin_cupy):
    x, dy = normal(7, size), normal(7, size, seed=1)
    scale, bias = normal(size, seed=2), normal(size, seed=3) if centred else None
    run(standin_cupy, x, dy, scale, bias, centred, nn.gelu)


def run(cupy, x, dy, scale, bias, centred, record, dtype="float32", tolerance=10):
    x, dy, scale, bias = (None if a is None else cupy.asarray(a) for a in (x, dy, scale, bias))
    parts = [p for p in (scale, bias) if p is not None]

    def call(x, *given):
        given = iter(given)
        s, b = (None if p is None else next(given) for p in (scale, bias))
        if centred:
            return nn.layernorm(x, s, b, ndim=1, epsilon=EPSILON, activation=record)
        return nn.rmsnorm(x, s, ndim=1, epsilon=EPSILON, activation=record)

    cupy.machine.launches = cupy.machine.library_calls = 0
    y, pullback = culux.vjp(call, x, *parts)
    assert (cupy.machine.launches, cupy.machine.library_calls) == (1, 0)
    found = pullback(dy)
    assert cupy.machine.launches == (3 if parts else 2)
    assert cupy.machine.library_calls == 0
    _, z = formula(x, scale, bias, centred)
    close(y, record(z), dtype, scale=tolerance)
    expected = gradients(dy, x, scale, bias, centred, record)
    close(found[0], expected[0], dtype, scale=tolerance * max(1, np.abs(expected[0]).max()))
    wanted = [e for e, p in zip(expected[1:], (scale, bias), strict=True) if p is not None]
    for actual, value, part in zip(found[1:], wanted, parts, strict=True):
        close(actual, value, part.dtype.name, scale=tolerance * max(1, np.abs(value).max()))
    again = pullback(dy)
    assert all((a.get() == b.get()).all() for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize(
    ("dtype", "record"), [(dtype, nn.gelu) for dtype in DTYPES] + [("float32", nn.tanh), ("float32", nn.identity)]
)
def test_every_dtype_and_what_activations_save(dtype, record, standin_cupy):
    x, dy, scale, bias = (normal(*s, seed=i, dtype=dtype) for i, s in enumerate([(5, 40), (5, 40), (40,), (40,)]))
    run(standin_cupy, x, dy, scale, bias, True, record, dtype)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("size", [24, 1100])
def test_half_precision_with_float32_parameters(size, centred, standin_cupy):
    x, dy = normal(6, size, dtype="float16"), normal(6, size, seed=1, dtype="float16")
    run(standin_cupy, x, dy, normal(size), normal(size, seed=5) if centred else None, centred, nn.tanh, "float16")


@pytest.mark.parametrize("centred", [True, False])
def test_rows_that_do_not_fit_the_backwards_registers(centred, standin_cupy):
    size = (384 if centred else 512) * 8 + 4
    x, dy = normal(3, size, dtype="float64"), normal(3, size, seed=1, dtype="float64")
    scale = normal(size, seed=2, dtype="float64")
    y, found = run_light(standin_cupy, x, dy, scale, centred)
    host, back = culux.vjp(lambda x, s: norm(x, s, centred), x, scale)
    close(y, host, "float64", scale=10)
    for actual, expected in zip(found, back(dy), strict=True):
        close(actual, expected, "float64", scale=10)


def norm(x, scale, centred):
    if centred:
        return nn.layernorm(x, scale, None, ndim=1, activation=nn.tanh)
    return nn.rmsnorm(x, scale, ndim=1, activation=nn.tanh)


def run_light(cupy, x, dy, scale, centred):
    y, pullback = culux.vjp(lambda x, s: norm(x, s, centred), cupy.asarray(x), cupy.asarray(scale))
    return y, pullback(cupy.asarray(dy))


def test_more_rows_than_groups_of_threads(standin_cupy, monkeypatch):
    monkeypatch.setattr(rownorm, "MULTIPROCESSORS", 1)
    for size in (20, 600):
        x, dy, scale = normal(41, size), normal(41, size, seed=1), normal(size, seed=2)
        run(standin_cupy, x, dy, scale, normal(size), True, nn.tanh)


@pytest.mark.parametrize("size", [20, 600])
def test_only_what_is_wanted_is_computed(size, standin_cupy):
    x, dy, scale = (standin_cupy.asarray(normal(*s)) for s in [(5, size), (5, size), (size,)])
    expected = gradients(dy, x, scale, None, True, nn.tanh)
    _, pullback = culux.vjp(lambda s: nn.layernorm(x, s, None, ndim=1, activation=nn.tanh), scale)
    close(pullback(dy)[0], expected[1], "float32", scale=100)
    _, pullback = culux.vjp(lambda x: nn.layernorm(x, scale, None, ndim=1, activation=nn.tanh), x)
    standin_cupy.machine.launches = 0
    close(pullback(dy)[0], expected[0], "float32", scale=100)
    assert standin_cupy.machine.launches == 1


@pytest.mark.parametrize("size", [256, 1500])
def test_no_digits_are_lost_far_from_zero(size, standin_cupy):
    x = normal(4, size, offset=1e4)
    for array in (x, standin_cupy.asarray(x)):
        xhat = wide(nn.layernorm(array, None, None, ndim=1, epsilon=0))
        variance = wide(x).var(1) / (xhat - xhat.mean(1, keepdims=True)).var(1)
        np.testing.assert_allclose(variance, wide(x).var(1), rtol=1e-3)


def test_unaligned_strided_and_empty_arrays(standin_cupy):
    flat = standin_cupy.asarray(normal(6 * 8 + 1))
    for x in (flat[1:].reshape(6, 8), flat[:48].reshape(8, 6).T, flat[:48].reshape(6, 8)[::2]):
        close(nn.layernorm(x, None, None, ndim=1), formula(x, None, None, True)[1], "float32", scale=10)
    standin_cupy.machine.launches = 0
    empty, scale = standin_cupy.zeros((0, 3), "float32"), standin_cupy.asarray(normal(3))
    y, pullback = culux.vjp(lambda x, s: nn.layernorm(x, s, None, ndim=1), empty, scale)
    assert y.shape == (0, 3)
    assert standin_cupy.machine.launches == 0
    dx, dscale = pullback(empty)
    assert dx.shape == (0, 3)
    assert dscale.get().tolist() == [0, 0, 0]
    nothing = standin_cupy.zeros((3, 0), "float32")
    assert culux.vjp(lambda x: nn.rmsnorm(x, None, ndim=1), nothing)[1](nothing)[0].shape == (3, 0)


def test_several_axes_and_a_derivative_of_the_derivative(standin_cupy):
    x, scale = normal(2, 3, 4, dtype="float64"), normal(3, 4, seed=1, dtype="float64")
    for function in (
        lambda x, s: nn.layernorm(x, s, None, ndim=2, activation=nn.tanh),
        lambda x, s: nn.rmsnorm(x, s, ndim=2, activation=nn.tanh),
    ):

        def second(x, s, function=function):
            return (culux.gradient(lambda x: (function(x, s) ** 2).sum(), x) ** 2).sum()

        for actual, expected in zip(
            culux.gradient(second, standin_cupy.asarray(x), standin_cupy.asarray(scale)),
            culux.gradient(second, x, scale),
            strict=True,
        ):
            close(actual, expected, "float64", scale=100)


def test_parameters_on_the_host_are_refused(standin_cupy):
    with pytest.raises(DeviceError, match=r"argument 1 is on cuda:0 \(cupy\), argument 2 is on cpu \(numpy\)"):
        nn.layernorm(standin_cupy.asarray(normal(2, 3)), normal(3), None, ndim=1)


def test_the_default_epsilon_of_rmsnorm_is_torchs():
    torch = pytest.importorskip("torch")
    x = np.full((1, 4), 2e-4, np.float32)
    expected = torch.nn.functional.rms_norm(torch.tensor(x), (4,)).numpy()
    np.testing.assert_allclose(nn.rmsnorm(x, None, ndim=1), expected, rtol=1e-6)
