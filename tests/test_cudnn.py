"""Convolutions by cuDNN: results, geometry, dtypes and precision against their definition, on a stand-in."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import culux
from culux.backends import get_backend
from culux.backends.counting import counting
from culux.kernels.cudnn import cudnn_for
from culux.nn.conv_taps import Taps
from tests.cudnn_support import CASES, OPERATIONS, PADDED, arrays, by_definition, compute, draw, given_to, run
from tests.cudnn_support import library as library
from tests.kernel_support import DTYPES, close
from tests.support import requires


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", CASES)
def test_results(case, operation, library, standin_cupy):
    close(*run(standin_cupy, operation, CASES[case]), "float32", 10)
    assert [execution.operation for execution in library.executions] == [
        {"correlate": "fprop", "spread": "dgrad", "weigh": "wgrad"}[operation]
    ]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, operation, library, standin_cupy):
    close(*run(standin_cupy, operation, PADDED, dtype), dtype, 10)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_geometry_that_is_not_cudnns(operation, library, standin_cupy):
    inside = PADDED._replace(before=(-1, 1), out=(1, 5))
    # The output padding of a transposed convolution may leave room for an output that it does not have.
    room = Taps((9, 5), (2, 3), (2, 1), (3, 1), (0, 1), (2, 5), 1)
    for taps, lengths in ((inside, {}), (room, {}), (PADDED, {"batch": 0})):
        assert run(standin_cupy, operation, taps, **lengths)[0] is None
    assert not library.graphs


def test_dtypes_that_are_not_cudnns(library, standin_cupy):
    x, weight, _ = map(standin_cupy.asarray, arrays(PADDED))
    assert compute("correlate", x.astype("int32"), weight.astype("int32"), PADDED) is None
    assert compute("correlate", x, weight.astype("float64"), PADDED) is None
    assert not library.graphs


def test_arrays_that_cudnn_would_misread_are_copied(library, standin_cupy):
    x, weight, y = arrays(PADDED)
    memory = standin_cupy.asarray(np.zeros(x.size + 1, np.float32))
    shifted = memory[1:].reshape(x.shape)
    shifted[...] = standin_cupy.asarray(x)
    turned = standin_cupy.asarray(np.ascontiguousarray(weight.T)).T
    copies = []
    with counting(SimpleNamespace(launch=lambda name, args: copies.append(name), transfer=None)):
        found = compute("correlate", shifted, turned, PADDED)
    close(found, by_definition("correlate", x, weight, y, PADDED), "float32", 10)
    assert copies == ["copy", "copy", "cudnn correlate"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_tf32_only_when_it_is_asked_for(operation, library, standin_cupy):
    def engine_and_error(dtype):
        found, exact = run(standin_cupy, operation, PADDED, dtype)
        return library.executions[-1].engine, np.abs(found.get().astype(np.float64) - exact).max()

    engine, error = engine_and_error("float32")
    assert engine == "plain"
    assert error < 1e-5
    with culux.matmul_precision("tf32"):
        engine, error = engine_and_error("float32")
        assert engine == "tensor cores"
        assert 1e-4 < error < 1e-1
        assert engine_and_error("float64")[1] < 1e-12
    assert engine_and_error("float32")[0] == "plain"
    assert [engine_and_error(dtype)[0] for dtype in DTYPES[1:]] == ["tensor cores"] * 3
    assert len(library.graphs) == 5  # two of float32


def test_numpy_arrays_are_not_for_cudnn(library):
    x, weight, y = arrays(PADDED)
    for operation in OPERATIONS:
        assert compute(operation, *given_to(operation, x, weight, y), PADDED) is None


@pytest.mark.parametrize("function", [culux.nn.conv, culux.nn.conv_transpose])
def test_a_convolution_and_its_gradients_are_cudnns(function, library, standin_cupy):
    requires("compiler")  # the bias and the activation are kernels of culux

    def loss(arrays):
        x, weight, bias = arrays
        return (function(x, weight, bias, activation=culux.relu, stride=2, padding=1) ** 2).sum()

    host = tuple(draw(shape) for shape in ((2, 4, 5, 6), (4, 4, 3, 3), (4,)))
    found = culux.gradient(loss, tuple(map(standin_cupy.asarray, host)))
    for gradient, expected in zip(found, culux.gradient(loss, host), strict=True):
        close(gradient, expected, "float32", 100)
    assert {execution.operation for execution in library.executions} == {"fprop", "dgrad", "wgrad"}
    assert len(library.executions) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu(case, operation, dtype):
    cupy = requires("cupy")
    if cudnn_for(get_backend("cupy")).layer is None:
        pytest.skip("cudnn is not installed")
    found, expected = run(cupy, operation, CASES[case], dtype)
    if found is not None:  # cuDNN may have no plan for it
        close(found, expected, dtype, 20)


@pytest.mark.gpu
def test_a_capture_on_a_gpu():
    cupy = requires("cupy")
    if cudnn_for(get_backend("cupy")).layer is None:
        pytest.skip("cudnn is not installed")
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        x, weight, y = map(cupy.asarray, arrays(PADDED))
        given = [given_to(operation, x, weight, y) for operation in OPERATIONS]

        def step():
            return [compute(operation, *g, PADDED) for operation, g in zip(OPERATIONS, given, strict=True)]

        step()
        stream.begin_capture()
        found = step()
        graph = stream.end_capture()
        x[...] = cupy.asarray(draw(x.shape, seed=5))
        graph.launch(stream)
        stream.synchronize()
    for operation, result in zip(OPERATIONS, found, strict=True):
        expected = by_definition(operation, x.get(), weight.get(), y.get(), PADDED)
        close(result, expected, "float32", 20)
