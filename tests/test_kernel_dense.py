"""Dense layers in one launch each way, by our own matrix products."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import culux
from culux import kernels, nn
from culux.errors import DeviceError
from culux.kernels import dense
from culux.nn.activation import Activation
from culux.nn.dense import _dense
from tests.kernel_support import DTYPES, check, close, dtype_of
from tests.support import requires

ACTIVATIONS = [
    nn.identity, nn.relu, nn.gelu, nn.tanh, nn.leakyrelu.replace(slope=0.3), nn.softplus, nn.swish,
]  # fmt: skip


def normal(*shape, seed=0, dtype="float32"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype_of(dtype))


def case(rows, inner, outer, dtype="float32"):
    """x, weight, bias and dy."""
    shapes = (rows, inner), (outer, inner), (outer,), (rows, outer)
    return [normal(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]


def expected(x, weight, bias, dy, activation):
    """y, dx, dweight and dbias in float64; of a float32 or shorter x, exactly rounded arguments."""
    x, weight, dy = (np.asarray(a, np.float64) for a in (x, weight, dy))
    z = x @ weight.T + (0 if bias is None else np.asarray(bias, np.float64))
    y = activation.forward(np, z)
    dz = dy * activation.derivative(np, z, y)
    rows = math.prod(x.shape[:-1])
    flat = dz.reshape(rows, len(weight))
    return y, dz @ weight, flat.T @ x.reshape(rows, x.shape[-1]), flat.sum(0)


def launched(standin):
    """What was launched since the last call, ours and the array library's."""
    counts = standin.machine.launches, standin.machine.library_calls
    standin.machine.launches = standin.machine.library_calls = 0
    return counts


def compare(standin, arrays, activation, dtype, scale=1.0):
    """The value and the gradients of a Dense operation against the formula; one launch each way."""
    x, weight, bias, dy = arrays
    launched(standin)
    y, pullback = culux.vjp(lambda *args: nn.dense(*args, activation=activation), x, weight, bias)
    assert launched(standin) == (1, 0)
    found = pullback(dy)
    assert launched(standin) == (1, 0)
    for actual, formula in zip((y, *found), expected(*(a.get() for a in arrays), activation), strict=True):
        close(actual, formula, dtype, scale)
    return (y, *found)


def grid(rows, columns, size):
    return -(-rows // size) * -(-columns // size)


@pytest.mark.parametrize(
    ("size", "record", "rows", "inner", "outer"),
    [(16, nn.gelu, 18, 139, 20), (32, nn.relu, 36, 68, 40), (64, nn.identity, 66, 37, 5)],
)
def test_the_kernels_pass_every_check(size, record, rows, inner, outer):
    x, weight, bias, dy = case(rows, inner, outer)
    z = x.astype(np.float64) @ weight.T + bias
    y, dx, dweight, dbias = expected(x, weight, bias, dy, record)
    options = {"activation": record.cuda(), "constants": (("TILE", size),)}
    forward = kernels.get_kernel("dense", "dense_forward", x.dtype, **options)
    check(
        forward, (grid(rows, outer, size),), (256,), x, weight, bias, np.empty_like(dy), np.empty_like(dy),
        rows, inner, outer, reference=lambda *_: (z, y),
    )  # fmt: skip
    backward = kernels.get_kernel("dense", "dense_backward", x.dtype, **options)
    saved = {"x": z, "y": y, None: None}[record.saves]
    blocks, others = grid(rows, inner, size), grid(outer, inner, size)
    check(
        backward, (blocks + others,), (256,), dy, None if saved is None else saved.astype(x.dtype), x, weight,
        np.empty_like(x), np.empty_like(weight), np.empty_like(bias), rows, inner, outer, others, blocks,
        reference=lambda *_: (dx, dweight, dbias),
    )  # fmt: skip


@pytest.mark.parametrize("schedule", ["reversed", "random", "unfair"])
def test_the_order_of_threads_and_blocks_changes_no_bit(schedule):
    requires("compiler")
    from culux.testing.cuda import EmulatedModule

    x, weight, bias, dy = case(20, 35, 18)
    source = kernels.get_kernel(
        "dense", "dense_backward", x.dtype, activation=nn.relu.cuda(), constants=(("TILE", 16),)
    )  # fmt: skip
    run = EmulatedModule(source.program.text).kernel("dense_backward")
    found = []
    for how in ("in order", schedule):
        outputs = np.empty_like(x), np.empty_like(weight), np.empty_like(bias)
        sizes = map(np.int32, (20, 35, 18, 0, 6))
        run((12,), (256,), (dy, dy, x, weight, *outputs, *sizes), schedule=how, seed=3)
        found.append([a.tobytes() for a in outputs])
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 6), (16, 8, 12), (33, 131, 17), (3, 24, 70)])
def test_every_dtype_and_awkward_shapes(dtype, shape, standin_cupy):
    arrays = [standin_cupy.asarray(a) for a in case(*shape, dtype=dtype)]
    first = compare(standin_cupy, arrays, nn.gelu, dtype, scale=20)
    again = compare(standin_cupy, arrays, nn.gelu, dtype, scale=20)
    assert [a.get().tobytes() for a in first] == [a.get().tobytes() for a in again]


@pytest.mark.parametrize("record", ACTIVATIONS, ids=repr)
def test_every_kind_of_activation(record, standin_cupy):
    compare(standin_cupy, [standin_cupy.asarray(a) for a in case(9, 12, 20)], record, "float32", scale=5)


@pytest.mark.parametrize(("size", "shape"), [(32, (200, 64, 256)), (64, (8, 40, 70))])
def test_the_larger_tiles(size, shape, standin_cupy, monkeypatch):
    arrays = [standin_cupy.asarray(a) for a in case(*shape)]
    monkeypatch.setattr(dense.tuning, "choose", lambda *args, **options: f"fused {size}")
    compare(standin_cupy, arrays, nn.tanh, "float32", scale=5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_addresses_that_allow_no_wide_loads(dtype, standin_cupy):
    arrays = []
    for a in case(6, 8, 12, dtype=dtype):
        buffer = standin_cupy.zeros(a.size + 1, a.dtype)
        buffer[1:] = standin_cupy.asarray(a.reshape(-1))
        arrays.append(buffer[1:].reshape(a.shape))
    compare(standin_cupy, arrays, nn.relu, dtype, scale=20)


def test_strided_arrays_are_copied(standin_cupy):
    x, weight, bias, dy = (standin_cupy.asarray(a) for a in case(6, 7, 8))
    strided = [x.T.copy().T, weight.T.copy().T, standin_cupy.asarray(np.repeat(bias.get(), 2))[::2], dy.T.copy().T]
    assert not any(a.flags.c_contiguous for a in strided)
    y, pullback = culux.vjp(lambda *args: nn.dense(*args, activation=nn.relu), *strided[:3])
    found = (y, *pullback(strided[3]))
    for actual, formula in zip(found, expected(*(a.get() for a in strided), nn.relu), strict=True):
        close(actual, formula, "float32")


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_any_leading_axes_with_and_without_a_bias(leading, bias, standin_cupy):
    x, weight, shift, dy = (
        standin_cupy.asarray(normal(*shape)) for shape in ((*leading, 5), (4, 5), (4,), (*leading, 4))
    )
    args = (x, weight, shift) if bias else (x, weight)
    y, pullback = culux.vjp(lambda *args: nn.dense(*args, activation=nn.tanh), *args)
    formula = expected(x.get(), weight.get(), shift.get() if bias else None, dy.get(), nn.tanh)
    for actual, wanted in zip((y, *pullback(dy)), formula[: 1 + len(args)], strict=True):
        close(actual, wanted, "float32")
    close(nn.dense(*args, activation=nn.tanh), formula[0], "float32")
    assert launched(standin_cupy)[1] == 0


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0, 3), (4, 5, 0), (0, 0, 0)])
def test_empty_arrays(shape, standin_cupy):
    arrays = [standin_cupy.asarray(a) for a in case(*shape)]
    y, pullback = culux.vjp(lambda *args: nn.dense(*args, activation=nn.relu), *arrays[:3])
    assert launched(standin_cupy) == (int(0 not in (shape[0], shape[2])), 0)
    found = (y, *pullback(arrays[3]))
    for actual, formula in zip(found, expected(*(a.get() for a in arrays), nn.relu), strict=True):
        close(actual, formula, "float32")


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("record", [nn.identity, nn.relu], ids=repr)
def test_only_wanted_gradients_are_computed(needs, record, standin_cupy):
    arrays = [standin_cupy.asarray(a) for a in case(17, 9, 40)]
    formula = expected(*(a.get() for a in arrays), record)
    _, pullback = _dense.operation.vjp_rule(needs, *arrays[:3], activation=record)
    launched(standin_cupy)
    found = pullback(arrays[3])
    assert launched(standin_cupy) == (int(any(needs)), 0)
    for need, actual, wanted in zip(needs, found, formula[1:], strict=True):
        if need:
            close(actual, wanted, "float32")
        else:
            assert actual is None


class Root(Activation):
    """sqrt(x + 1), whose derivative, computed from y, has no value at y = 0."""

    saves = "y"
    cuda_forward = "sqrt(x + T(1))"
    cuda_derivative = "T(0.5) / y"

    def forward(self, xp, x):
        return xp.sqrt(x + 1)

    def derivative(self, xp, x, y):
        return 0.5 / y


def test_what_is_outside_of_the_arrays_reaches_no_sum(standin_cupy):
    arrays = [standin_cupy.asarray(abs(a)) for a in case(5, 6, 7)]
    compare(standin_cupy, arrays, Root(), "float32")


def test_second_derivatives(standin_cupy):
    x, weight, bias, _ = case(5, 6, 7, "float64")

    def slope(x, weight, bias):
        return (culux.gradient(lambda w: (nn.dense(x, w, bias, activation=nn.tanh) ** 2).sum(), weight) ** 2).sum()

    on_host = culux.gradient(slope, x, weight, bias)
    on_device = culux.gradient(slope, *(standin_cupy.asarray(a) for a in (x, weight, bias)))
    for actual, wanted in zip(on_device, on_host, strict=True):
        close(actual, wanted, "float64", scale=100)


def test_a_captured_operation_is_done_at_each_launch(standin_cupy):
    x, weight, bias, dy = case(5, 6, 7)
    stream = standin_cupy.cuda.Stream(non_blocking=True)
    with stream:
        there = [standin_cupy.asarray(a) for a in (np.zeros_like(x), weight, bias, dy)]

        def step():
            y, pullback = culux.vjp(lambda *args: nn.dense(*args, activation=nn.relu), *there[:3])
            return y, *pullback(there[3])

        step()
        stream.begin_capture()
        found = step()
        graph = stream.end_capture()
        there[0][...] = standin_cupy.asarray(x)
        graph.launch(stream)
        for actual, wanted in zip(found, expected(x, weight, bias, dy, nn.relu), strict=True):
            close(actual, wanted, "float32")


def test_what_the_kernels_do_not_take_goes_through_the_portable_form(standin_cupy):
    x, weight, bias, _ = case(5, 6, 7)
    half = standin_cupy.asarray(x.astype(np.float16))
    mixed = nn.dense(half, standin_cupy.asarray(weight), standin_cupy.asarray(bias), activation=nn.relu)
    close(mixed, np.maximum(half.get().astype(np.float64) @ weight.T + bias, 0), "float32")
    function = nn.dense(*(standin_cupy.asarray(a) for a in (x, weight, bias)), activation=lambda z: z * z)
    close(function, (x.astype(np.float64) @ weight.T + bias) ** 2, "float32", scale=5)
    assert launched(standin_cupy)[1] >= 2  # a product each


def test_arrays_of_two_devices_are_refused(standin_cupy):
    standin_cupy.set_device_count(2)
    x, weight = (standin_cupy.asarray(a) for a in case(5, 6, 7)[:2])
    with standin_cupy.cuda.Device(1):
        elsewhere = standin_cupy.asarray(weight.get())
    with pytest.raises(DeviceError, match=r"expected all arrays on one device, got: .*cuda:0.*cuda:1"):
        nn.dense(x, elsewhere, activation=nn.relu)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["fused 16", "fused 32", "fused 64", "library + epilogue", "library fused epilogue"])
def test_every_way_on_a_gpu(dtype, name, monkeypatch):
    cupy = requires("cupy")
    if (dtype, name) == ("float64", "fused 64"):
        pytest.skip("no tile of 64 of float64")
    monkeypatch.setattr(dense.tuning, "choose", lambda *args, **options: name)
    for record, shape in itertools.product((nn.relu, nn.gelu), ((128, 512, 512), (100, 130, 77))):
        arrays = [cupy.asarray(a) for a in case(*shape, dtype=dtype)]
        y, pullback = culux.vjp(lambda *args, f=record: nn.dense(*args, activation=f), *arrays[:3])
        found = (y, *pullback(arrays[3]))
        for actual, formula in zip(found, expected(*(a.get() for a in arrays), record), strict=True):
            close(actual, formula, dtype, scale=50)
