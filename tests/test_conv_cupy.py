"""`conv` and `conv_transpose` on CuPy arrays: the whole operation, by our kernels and with cuDNN."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

import culux
from culux import nn
from culux.errors import DeviceError
from culux.nn import conv_cupy
from culux.nn.conv import _conv, _correlate, _spread, _weigh
from culux.testing import cost
from tests.conv_support import CASES, draw, expected, products
from tests.cudnn_support import fake_cudnn
from tests.kernel_support import DTYPES, close, dtype_of, work
from tests.support import requires


@pytest.fixture
def cudnn(standin_cupy, monkeypatch):
    with fake_cudnn(standin_cupy, monkeypatch) as fake:
        yield fake


def operation(case, activation=nn.identity, *, transposed=False):
    function = nn.conv_transpose if transposed else nn.conv
    return functools.partial(function, activation=activation, **case.options(transposed=transposed))


def compare(cupy, case, activation, dtype="float32", *, transposed=False, scale=20):
    """Value and gradients against the definition."""
    arrays = case.arrays(dtype, transposed=transposed)
    x, weight, bias, dy = map(cupy.asarray, arrays)
    y, pullback = culux.vjp(operation(case, activation, transposed=transposed), x, weight, bias)
    wanted = expected(case.taps, *arrays, activation, transposed=transposed)
    found = (y, *pullback(dy))
    for one, other in zip(found, wanted, strict=True):
        close(one, other, dtype, scale)
    return found


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if min(case.before + case.behind) >= 0])
def test_values_and_gradients(name, transposed, standin_cupy):
    compare(standin_cupy, CASES[name], nn.relu, transposed=transposed, scale=100)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("record", [nn.identity, nn.tanh, nn.gelu], ids=repr)
def test_dtypes_and_activations(record, transposed, dtype, standin_cupy):
    first = compare(standin_cupy, CASES["groups"], record, dtype, transposed=transposed)
    again = compare(standin_cupy, CASES["groups"], record, dtype, transposed=transposed)
    assert [a.get().tobytes() for a in first] == [a.get().tobytes() for a in again]


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3))[1:], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_only_wanted_gradients_are_computed(needs, transposed, standin_cupy):
    case = CASES["plain"]._replace(size=(60, 60), batch=3)  # long enough for partial sums of weight and bias
    arrays = case.arrays(transposed=transposed)
    x, weight, bias, dy = map(standin_cupy.asarray, arrays)
    static = {"taps": case.taps, "transposed": transposed, "activation": nn.relu}
    _, pullback = _conv.operation.vjp_rule(needs, x, weight, bias, **static)
    found = pullback(dy)
    wanted = expected(case.taps, *arrays, nn.relu, transposed=transposed)[1:]
    for need, one, other in zip(needs, found, wanted, strict=True):
        if need:
            close(one, other, "float32", scale=100)
        else:
            assert one is None
    names = [name for name, count in cost(pullback, dy).kernels for _ in range(count)]
    ends = ["conv_weight_sum"] * (needs[1] or needs[2])
    starts = ["conv_epilogue_backward" if needs[2] else "activation_backward"]
    middle = ["conv_gather"] * needs[0] + ["conv_weight_gradient"] * needs[1]
    assert sorted(names) == sorted(starts + middle + ends)


def test_no_activation_and_no_bias_are_no_launch(standin_cupy):
    case = CASES["20 channels to 33"]._replace(channels=64, filters=64, batch=1)
    x, weight, _, dy = (standin_cupy.asarray(a) for a in case.arrays())
    forward = cost(operation(case), x, weight)
    assert (forward.kernels, forward.allocations) == ((("conv_gather", 1),), 1)
    _, pullback = culux.vjp(operation(case), x, weight)
    backward = cost(pullback, dy)
    assert backward.kernels == (("conv_gather", 1), ("conv_weight_gradient", 1))
    assert backward.allocations == 2


def test_strided_arrays_are_copied(standin_cupy):
    case = CASES["groups"]
    arrays = case.arrays()
    x, weight, dy = (standin_cupy.asarray(np.ascontiguousarray(arrays[i].T)).T for i in (0, 1, 3))
    bias = standin_cupy.asarray(np.repeat(arrays[2], 2))[::2]
    assert not any(a.flags.c_contiguous for a in (x, weight, bias, dy))
    y, pullback = culux.vjp(operation(case, nn.relu), x, weight, bias)
    for one, other in zip((y, *pullback(dy)), expected(case.taps, *arrays, nn.relu), strict=True):
        close(one, other, "float32", scale=20)


def test_no_samples(standin_cupy):
    for transposed in (False, True):
        case = CASES["groups"]._replace(batch=0)
        x, weight, bias, dy = map(standin_cupy.asarray, case.arrays(transposed=transposed))
        y, pullback = culux.vjp(operation(case, nn.relu, transposed=transposed), x, weight, bias)
        dx, dweight, dbias = pullback(dy)
        assert (y.shape, dx.shape, dweight.shape) == (dy.shape, x.shape, weight.shape)
        assert not dweight.get().any()
        assert not dbias.get().any()


def test_higher_derivatives(standin_cupy):
    for transposed in (False, True):
        case = CASES["groups"]
        arrays = case.arrays("float64", transposed=transposed)[:3]
        function = operation(case, nn.tanh, transposed=transposed)

        def slope(*args, function=function):
            inner = culux.gradient(lambda *args: (function(*args) ** 2).sum(), *args)
            return sum((g**2).sum() for g in inner)

        on_host = culux.gradient(slope, *arrays)
        on_device = culux.gradient(slope, *map(standin_cupy.asarray, arrays))
        for one, other in zip(on_device, on_host, strict=True):
            np.testing.assert_allclose(one.get(), other, rtol=1e-9, atol=1e-9 * abs(other).max())


def test_a_captured_operation_is_done_at_each_launch(standin_cupy):
    case = CASES["plain"]
    arrays = case.arrays()
    stream = standin_cupy.cuda.Stream(non_blocking=True)
    with stream:
        there = [standin_cupy.asarray(a) for a in (np.zeros_like(arrays[0]), *arrays[1:])]

        def step():
            y, pullback = culux.vjp(operation(case, nn.relu), *there[:3])
            return y, *pullback(there[3])

        step()
        stream.begin_capture()
        found = step()
        graph = stream.end_capture()
        there[0][...] = standin_cupy.asarray(arrays[0])
        graph.launch(stream)
        for one, other in zip(found, expected(case.taps, *arrays, nn.relu), strict=True):
            close(one, other, "float32", scale=20)


def test_what_the_kernels_do_not_take_goes_through_the_portable_form(standin_cupy):
    case = CASES["groups"]
    x, weight, bias, dy = case.arrays()
    half = standin_cupy.asarray(x.astype(np.float16))
    given = [standin_cupy.asarray(a) for a in (weight, bias)]
    mixed = operation(case, nn.relu)(half, *given)
    close(mixed, expected(case.taps, half.get(), weight, bias, dy, nn.relu)[0], "float32", scale=5)
    y = operation(case, lambda z: z * z)(standin_cupy.asarray(x), *given)
    close(y, expected(case.taps, x, weight, bias, dy, nn.identity)[0] ** 2, "float32", scale=20)
    wide = operation(case)(standin_cupy.asarray(x), standin_cupy.asarray(weight.astype(np.float64)))
    close(wide, expected(case.taps, x, weight, None, dy, nn.identity)[0], "float64", scale=20)


def test_arrays_of_two_devices_are_refused(standin_cupy):
    standin_cupy.set_device_count(2)
    x, weight = (standin_cupy.asarray(a) for a in CASES["plain"].arrays()[:2])
    with standin_cupy.cuda.Device(1):
        elsewhere = standin_cupy.asarray(weight.get())
    with pytest.raises(DeviceError, match=r"expected all arrays on one device, got: .*cuda:0.*cuda:1"):
        operation(CASES["plain"])(x, elsewhere)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "layer",
    [
        culux.Conv((3, 3), 4, 6, culux.relu, padding=1),
        culux.Conv((3, 2), 4, 6, culux.gelu, stride=2, padding=(1, 2), padding_mode="reflect"),
        culux.Conv((3,), 6, 6, culux.tanh, groups=6, dilation=2, use_bias=False, cross_correlation=False),
        culux.Conv((2, 2, 2), 3, 2, lambda z: z * z, padding="same"),
        culux.ConvTranspose((3, 3), 4, 6, culux.relu, stride=2, padding=1, output_padding=1),
        culux.ConvTranspose((4,), 6, 4, stride=3, groups=2, padding="same"),
    ],
    ids=repr,
)
def test_layers_on_the_device_are_those_on_the_host(layer, dtype, standin_cupy):
    ps, st = culux.setup(0, layer)
    ps = culux.tree.map(lambda a: draw(a.shape, dtype, 3), ps)
    channels, axes = layer.in_channels, len(layer.kernel_size)
    x = draw((2, channels, *(7, 6, 5)[:axes]), dtype)
    results = []
    for place, kind in ((lambda a: a, np.float64), (culux.gpu_device(), dtype_of(dtype))):
        y, pullback = culux.vjp(
            lambda ps, x, st=st: layer(x, ps, st)[0], *place(culux.tree.map(lambda a, k=kind: a.astype(k), (ps, x)))
        )
        results.append([y, *culux.tree.leaves(pullback(place(draw(y.shape, dtype, 5).astype(kind))))])
    for on_host, on_device in zip(*results, strict=True):
        close(on_device, on_host, dtype, scale=50)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("record", [nn.identity, nn.relu, nn.gelu], ids=repr)
def test_cudnn_makes_the_products_where_it_is_there(record, transposed, cudnn, standin_cupy, monkeypatch):
    monkeypatch.setenv("CULUX_AUTOTUNE", "0")
    case = CASES["plain"]
    compare(standin_cupy, case, record, transposed=transposed)
    assert {execution.operation for execution in cudnn.executions} == {"fprop", "dgrad", "wgrad"}
    x, weight, bias, dy = map(standin_cupy.asarray, case.arrays(transposed=transposed))
    function = operation(case, record, transposed=transposed)
    name = "cudnn spread" if transposed else "cudnn correlate"
    assert cost(function, x, weight, bias).kernels == (("conv_epilogue_forward", 1), (name, 1))
    _, pullback = culux.vjp(function, x, weight, bias)
    back = "cudnn correlate" if transposed else "cudnn spread"
    assert cost(pullback, dy).kernels == (("conv_epilogue_backward", 1), (back, 1), ("cudnn weigh", 1))


def test_partial_sums_of_the_bias_beside_cudnn(cudnn, standin_cupy, monkeypatch):
    monkeypatch.setenv("CULUX_AUTOTUNE", "0")
    compare(standin_cupy, CASES["plain"]._replace(size=(60, 60), batch=3), nn.relu, scale=100)
    assert len(cudnn.executions) == 3


def test_the_faster_way_is_taken(cudnn, standin_cupy, monkeypatch):
    asked = []

    def choose(name, key, candidates, default, **options):
        assert default == conv_cupy.CUDNN
        asked.append((name, key))
        return conv_cupy.FUSED

    monkeypatch.setattr(conv_cupy.tuning, "choose", choose)
    case = CASES["plain"]
    for batch in (3, 4):
        compare(standin_cupy, case._replace(batch=batch), nn.gelu)
    assert not cudnn.executions
    assert [name for name, _ in asked] == 2 * ["conv correlate", "conv spread", "conv weigh"]
    assert asked[:3] == asked[3:]  # batches of one power of two share what was timed
    assert all(isinstance(part, int | str) for _, key in asked for part in key)
    compare(standin_cupy, case, nn.relu)
    assert asked[6] != asked[0]  # another activation, which keeps y


def test_what_cudnn_has_no_plan_for_is_ours(cudnn, standin_cupy, monkeypatch):
    monkeypatch.setenv("CULUX_AUTOTUNE", "0")
    case = CASES["inside of the input"]
    x, weight = case.arrays()[:2]
    given = [standin_cupy.asarray(a) for a in (x, weight)]
    close(conv_cupy.correlate(*given, case.taps), products(case.taps, x=x, weight=weight), "float32", scale=10)
    assert not cudnn.executions


@pytest.mark.parametrize("function", [_correlate, _spread, _weigh], ids=["correlate", "spread", "weigh"])
def test_the_products_alone(function, standin_cupy):
    """What a derivative of a derivative computes, and mixed dtypes, which the kernels do not take."""
    case = CASES["groups"]
    x, weight, _, dy = case.arrays("float64")
    given = {_correlate: (x, weight), _spread: (dy, weight), _weigh: (x, dy)}[function]
    product = functools.partial(function, taps=case.taps)
    one, other = map(standin_cupy.asarray, given)
    found = product(one, other)
    close(found, product(*given), "float64", scale=10)
    assert work(standin_cupy, lambda: product(one, other))[1] == 0
    close(product(one.astype("float32"), other), product(given[0].astype(np.float32), given[1]), "float64", scale=10)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", [conv_cupy.CUDNN, conv_cupy.FUSED])
def test_every_way_on_a_gpu(way, dtype, monkeypatch):
    cupy = requires("cupy")
    monkeypatch.setattr(conv_cupy.tuning, "choose", lambda *args, **options: way)
    for case, transposed in itertools.product(CASES.values(), (False, True)):
        for record in (nn.relu, nn.gelu):
            compare(cupy, case, record, dtype, transposed=transposed, scale=100)
