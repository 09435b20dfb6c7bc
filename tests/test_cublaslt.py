"""The cuBLASLt layer: plans, workspaces, captures, errors and where the library is found, against a stand-in."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from culux.backends import get_backend
from culux.errors import KernelError
from culux.kernels import cublaslt
from culux.kernels.cublaslt import Problem, cublaslt_for
from culux.kernels.cublaslt_library import Library, load
from culux.kernels.gemm import gemm
from tests.cublaslt_support import EXECUTION_FAILED, INVALID_VALUE, NOT_INITIALIZED, NOT_SUPPORTED, fake_library
from tests.kernel_support import close, dtype_of
from tests.support import requires

FLOAT32 = np.dtype(np.float32)
MIB = 2**20


@pytest.fixture
def library(standin_cupy, monkeypatch):
    with fake_library(standin_cupy, monkeypatch) as fake:
        yield fake


@pytest.fixture
def layer(library):
    return cublaslt_for(get_backend("cupy"))


def problem(m=4, n=5, k=3, *, device=0, dtype=FLOAT32, epilogue="", tf32=False):
    return Problem(device, dtype, m, n, k, False, False, epilogue, tf32, 16)


def draw(cupy, shape, dtype="float32"):
    return cupy.asarray(np.random.default_rng(list(shape)).uniform(-1, 1, shape).astype(dtype_of(dtype)))


def arrays(cupy, m=4, n=5, k=3):
    return draw(cupy, (m, k)), draw(cupy, (k, n)), cupy.empty((m, n), FLOAT32)


def product_of(a, b):
    return a.get().astype(np.float64) @ b.get().astype(np.float64)


def test_a_plan_is_made_once_a_problem(library, standin_cupy):
    a, b = draw(standin_cupy, (4, 3)), draw(standin_cupy, (3, 4))
    for _ in range(3):
        gemm(a, b)
    assert library.calls("MatmulAlgoGetHeuristic") == 1
    assert library.calls("Matmul") == 3
    gemm(a, b, transpose_a=True, transpose_b=True)
    gemm(a, b, activation="relu")
    gemm(a.astype("float16"), b.astype("float16"))
    gemm(draw(standin_cupy, (5, 3)), b)
    assert library.calls("MatmulAlgoGetHeuristic") == 5
    assert library.calls("Create") == 1


def test_a_bias_is_set_when_it_is_another_array(library, standin_cupy):
    a, b = draw(standin_cupy, (4, 3)), draw(standin_cupy, (3, 5))
    biases = [standin_cupy.asarray(np.full(5, value, FLOAT32)) for value in (1, 2)]
    gemm(a, b, bias=biases[0])
    before = library.calls("MatmulDescSetAttribute")
    for bias in (biases[0], biases[1], biases[1], biases[0]):
        close(gemm(a, b, bias=bias), product_of(a, b) + bias.get()[0], "float32")
    assert library.calls("MatmulDescSetAttribute") == before + 2


def test_the_plans_that_were_used_last_are_kept(library, layer, monkeypatch):
    monkeypatch.setattr(cublaslt, "PLANS", 2)
    before = library.live
    first, second = layer.plan(problem(1)), layer.plan(problem(2))
    each = (library.live - before) // 2
    assert layer.plan(problem(1)) is first
    third = layer.plan(problem(3))
    assert layer.plan(problem(1)) is first
    assert layer.plan(problem(2)) is not second
    assert library.live == before + 4 * each  # what is out of the cache and still used is not destroyed
    del second, third
    assert library.live == before + 2 * each


def test_candidates_are_what_the_heuristic_finds_fit(library, layer, standin_cupy):
    library.settings.candidates, library.settings.unfit, library.settings.workspace = 20, 2, 1024
    plan = layer.plan(problem())
    assert [(c.workspace, c.waves) for c in plan.candidates] == [(1024 + 256 * i, 1 + i) for i in range(2, 8)]
    a, b, c = arrays(standin_cupy)
    for index in range(6):
        layer.run(plan, a, b, c, candidate=index)
        close(c, product_of(a, b), "float32")
    plan.chosen = 4
    gemm(a, b)
    assert [product.candidate for product in library.products] == [2, 3, 4, 5, 6, 7, 6]
    assert [product.workspace for product in library.products[:2]] == [1536, 1792]


def test_what_the_heuristic_is_asked(library, layer):
    layer.plan(problem())
    assert (library.asked.workspace, library.asked.reductions) == (32 * MIB, 7)
    assert list(library.asked.alignment) == [16] * 4
    for name in ("float16", "bfloat16"):  # no split sum may be made in 16 bits
        layer.plan(problem(dtype=dtype_of(name)))
        assert library.asked.reductions == 2


def test_a_problem_without_an_algorithm(library, layer):
    library.settings.refused = 32
    library.settings.candidates = 1
    assert layer.plan(problem(epilogue="gelu")) is None
    assert layer.plan(problem(epilogue="gelu")) is None
    assert library.calls("MatmulAlgoGetHeuristic") == 1
    library.settings.candidates = 0
    assert layer.plan(problem()) is None
    assert layer.plan(problem(dtype=np.dtype("float64"), epilogue="relu")) is None


@pytest.mark.parametrize(
    ("capability", "size"), [("75", 4), ("80", 4), ("89", 4), ("90", 32), ("100", 32), ("120", 32)]
)
def test_the_size_of_a_workspace(capability, size, library, standin_cupy, monkeypatch):
    monkeypatch.setattr(standin_cupy.cuda.Device, "compute_capability", capability)
    library.settings.workspace = 64
    before = standin_cupy.get_default_memory_pool().used_bytes()
    c = gemm(*arrays(standin_cupy)[:2])
    assert library.asked.workspace == size * MIB
    assert size * MIB <= standin_cupy.get_default_memory_pool().used_bytes() - before - c.nbytes < (size + 1) * MIB


def test_every_stream_has_a_workspace(library, standin_cupy, monkeypatch):
    monkeypatch.setattr(standin_cupy.cuda.Device, "compute_capability", "75")
    library.settings.workspace = 64
    a, b, _ = arrays(standin_cupy)
    streams = [standin_cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    standin_cupy.cuda.Device().synchronize()
    for stream in (*streams, *streams):
        with stream:
            gemm(a, b)
    gemm(a, b)
    used = [(product.stream, product.scratch) for product in library.products]
    assert [stream for stream, _ in used] == [*(stream.ptr for stream in (*streams, *streams)), 0]
    assert used[:2] == used[2:4]
    assert len({scratch for _, scratch in used}) == 3


def test_a_workspace_outlives_the_pool_of_a_graph(library, standin_cupy):
    library.settings.workspace = 64
    pool = standin_cupy.cuda.MemoryPool()
    with standin_cupy.cuda.using_allocator(pool.malloc):
        a, b, c = arrays(standin_cupy)
        gemm(a, b, out=c)
    del a, b, c, pool
    a, b, _ = arrays(standin_cupy)
    close(gemm(a, b), product_of(a, b), "float32")
    assert library.products[0].scratch == library.products[1].scratch


def test_no_workspace_without_need(library, standin_cupy):
    before = standin_cupy.get_default_memory_pool().used_bytes()
    gemm(*arrays(standin_cupy)[:2])
    assert standin_cupy.get_default_memory_pool().used_bytes() - before < MIB
    assert library.products[0].workspace == library.products[0].scratch == 0


def test_every_device_has_a_handle_and_is_current_in_its_calls(library, standin_cupy):
    standin_cupy.set_device_count(2)
    library.settings.workspace = 64
    found = []
    for index in (0, 1, 1):
        with standin_cupy.cuda.Device(index):
            a, b, c = arrays(standin_cupy)
        gemm(a, b, out=c)  # whatever device is current
        found.append(library.products[-1])
        with standin_cupy.cuda.Device(index):
            close(c, product_of(a, b), "float32")
    assert [product.device for product in found] == [0, 1, 1]
    assert found[0].handle != found[1].handle == found[2].handle
    assert found[0].scratch != found[1].scratch == found[2].scratch
    assert library.calls("Create") == 2


def test_a_capture_takes_known_products_only(library, standin_cupy):
    library.settings.workspace = 64
    stream = standin_cupy.cuda.Stream(non_blocking=True)
    with stream:
        a, b, c = arrays(standin_cupy)
        gemm(a, b, out=c)
        asked = library.calls("MatmulAlgoGetHeuristic")
        stream.begin_capture()
        gemm(a, b, out=c)
        with pytest.raises(
            KernelError,
            match=r"expected a product that cuBLASLt has computed on this stream before its capture, got a @ b with "
            r"M=4, N=5, K=3 of float32, epilogue relu, .* on cuda:0; run the step once on the stream, then capture it",
        ):
            gemm(a, b, out=c, activation="relu")
        stream.end_capture()
    assert library.calls("MatmulAlgoGetHeuristic") == asked


def test_a_captured_product_is_done_at_each_launch(library, standin_cupy):
    library.settings.workspace = 64
    stream = standin_cupy.cuda.Stream(non_blocking=True)
    with stream:
        a, b, c = arrays(standin_cupy)
        biases = draw(standin_cupy, (2, 5))
        gemm(a, b, bias=biases[0], out=c)
        stream.begin_capture()
        gemm(a, b, bias=biases[0], out=c)
        graph = stream.end_capture()
        gemm(a, b, bias=biases[1])  # the same plan, another bias
        for value in (1, 2):
            a[...] = value
            graph.launch(stream)
            close(c, product_of(a, b) + biases[0].get(), "float32")
    assert [product.stream for product in library.products] == [stream.ptr] * 4


def test_a_capture_on_another_stream_lacks_its_workspace(library, standin_cupy):
    library.settings.workspace = 64
    a, b, c = arrays(standin_cupy)
    gemm(a, b, out=c)
    standin_cupy.cuda.Device().synchronize()
    stream = standin_cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(KernelError, match="run the step once on the stream, then capture it"):
            gemm(a, b, out=c)
        stream.end_capture()
        gemm(a, b, out=c)
        stream.begin_capture()
        gemm(a, b, out=c)
        stream.end_capture()


def test_an_epilogue_that_is_called_an_invalid_value_is_done_without(library, standin_cupy):
    a, b, bias = draw(standin_cupy, (4, 3)), draw(standin_cupy, (5, 3)), draw(standin_cupy, (5,))
    library.fail("MatmulAlgoGetHeuristic", INVALID_VALUE)
    close(gemm(a, b, transpose_b=True, bias=bias), product_of(a, b.T) + bias.get(), "float32")


@pytest.mark.parametrize(
    ("function", "status", "name"),
    [
        ("Create", NOT_INITIALIZED, "NOT_INITIALIZED"),
        ("MatmulDescCreate", INVALID_VALUE, "INVALID_VALUE"),
        ("MatmulDescSetAttribute", INVALID_VALUE, "INVALID_VALUE"),
        ("MatrixLayoutCreate", INVALID_VALUE, "INVALID_VALUE"),
        ("MatmulPreferenceCreate", INVALID_VALUE, "INVALID_VALUE"),
        ("MatmulPreferenceSetAttribute", INVALID_VALUE, "INVALID_VALUE"),
        ("MatmulAlgoGetHeuristic", INVALID_VALUE, "INVALID_VALUE"),
        ("Matmul", NOT_SUPPORTED, "NOT_SUPPORTED"),
    ],
)
def test_errors_name_the_call_and_the_problem(function, status, name, library, standin_cupy):
    a, b = draw(standin_cupy, (4, 3)), draw(standin_cupy, (5, 3))
    before = library.live
    library.fail(function, status)
    with pytest.raises(
        KernelError,
        match=rf"^cublasLt{function} answered CUBLAS_STATUS_{name} \({status}\) for a @ b\.T with M=4, N=5, K=3 of "
        r"float32, epilogue none, addresses aligned to 16 bytes, on cuda:0 \(cuBLASLt 120901\)$",
    ) as caught:
        gemm(a, b, transpose_b=True)
    if function != "Matmul":
        del caught
        assert library.live == before
    close(gemm(a, b, transpose_b=True), product_of(a, b.T), "float32")


def test_an_error_that_has_no_name(library, standin_cupy):
    library.fail("Matmul", EXECUTION_FAILED)
    with pytest.raises(KernelError, match=r"cublasLtMatmul answered unrecognized status \(13\)"):
        gemm(*arrays(standin_cupy)[:2])


def test_a_plan_and_its_vector_belong_together(layer, standin_cupy):
    a, b, c = arrays(standin_cupy)
    with pytest.raises(KernelError, match=r"expected a vector for a @ b with .* epilogue bias"):
        layer.run(layer.plan(problem(epilogue="bias")), a, b, c)
    with pytest.raises(KernelError, match=r"expected no vector for a @ b with .* epilogue none"):
        layer.run(layer.plan(problem()), a, b, c, draw(standin_cupy, (5,)))


def test_a_problem_in_words():
    text = str(Problem(1, FLOAT32, 2, 3, 4, True, True, "bias+gelu", True, 8))
    assert text == (
        "a.T @ b.T with M=2, N=3, K=4 of float32 as TF32, epilogue bias+gelu, addresses aligned to 8 bytes, on cuda:1"
    )


def test_without_the_library(standin_cupy, monkeypatch):
    monkeypatch.setenv("CULUX_CUBLASLT", "0")
    a, b, _ = arrays(standin_cupy)
    assert cublaslt_for(get_backend("cupy")) is None
    close(gemm(a, b), product_of(a, b), "float32")
    assert cublaslt_for(get_backend("numpy")) is None


def test_a_library_that_does_not_load(standin_cupy, monkeypatch):
    monkeypatch.setenv("CULUX_CUBLASLT", "/nowhere/libcublasLt.so")
    with pytest.raises(KernelError, match=r"CULUX_CUBLASLT=/nowhere/libcublasLt\.so cannot be loaded: .* or leave the"):
        gemm(*arrays(standin_cupy)[:2])


def test_a_library_of_another_kind(monkeypatch):
    with pytest.raises(
        KernelError, match=r"expected cuBLASLt of CUDA 12 or 13, got libm\.so\.6, which lacks a functio"
    ):
        Library("libm.so.6")


@pytest.fixture
def pathfinder(monkeypatch):
    """What cuda-pathfinder answers, in place of an installed one; no name is known to the system's loader."""
    monkeypatch.delenv("CULUX_CUBLASLT", raising=False)
    answer = SimpleNamespace(path=None)

    def find(name):
        if answer.path is None:
            raise RuntimeError(name)
        return SimpleNamespace(abs_path=answer.path)

    module = SimpleNamespace(load_nvidia_dynamic_lib=find)
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(pathfinder=module))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", module)
    asked = []

    def open_library(path):
        asked.append(path)
        raise OSError(path)

    monkeypatch.setattr("culux.kernels.cublaslt_library.ctypes.CDLL", open_library)
    return SimpleNamespace(answer=answer, asked=asked)


@pytest.mark.parametrize(
    ("found", "cuda", "asked"),
    [
        ("/wheel/libcublasLt.so.12", 12, ["/wheel/libcublasLt.so.12", "libcublasLt.so.12"]),
        ("/wheel/libcublasLt.so.13", 13, ["/wheel/libcublasLt.so.13", "libcublasLt.so.13"]),
        ("/usr/libcublasLt.so.13", 12, ["libcublasLt.so.12"]),  # CuPy is of CUDA 12
        (None, 13, ["libcublasLt.so.13"]),
    ],
)
def test_where_the_library_is_looked_for(found, cuda, asked, pathfinder):
    pathfinder.answer.path = found
    assert load(cuda) is None
    assert pathfinder.asked == asked


@pytest.mark.gpu
def test_candidates_on_a_gpu():
    cupy = requires("cupy")
    layer = cublaslt_for(get_backend("cupy"))
    if layer is None:
        pytest.skip("cuBLASLt is not installed")
    a, b, c = arrays(cupy, 128, 256, 512)
    plan = layer.plan(problem(128, 256, 512))
    for index in range(len(plan.candidates)):
        c[...] = 0
        layer.run(plan, a, b, c, candidate=index)
        close(c, product_of(a, b), "float32", scale=20)


@pytest.mark.gpu
def test_a_capture_on_a_gpu():
    cupy = requires("cupy")
    if cublaslt_for(get_backend("cupy")) is None:
        pytest.skip("cuBLASLt is not installed")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x, weight, bias = draw(cupy, (128, 512)), draw(cupy, (256, 512)), draw(cupy, (256,))
        y, dw = cupy.empty((128, 256), FLOAT32), cupy.empty((256, 512), FLOAT32)

        def step():
            gemm(x, weight, transpose_b=True, bias=bias, activation="relu", out=y)
            return gemm(y, x, transpose_a=True, bias_gradient="a", out=dw)[1]

        step()
        stream.begin_capture()
        db = step()
        with pytest.raises(KernelError, match="run the step once on the stream"):
            gemm(x, x, transpose_b=True)
        graph = stream.end_capture()
        x[...] = draw(cupy, (128, 512)) + 1
        graph.launch(stream)
        stream.synchronize()
    expected = np.maximum(product_of(x, weight.T) + bias.get(), 0)
    close(y, expected, "float32", scale=20)
    close(dw, expected.T @ x.get(), "float32", scale=200)
    close(db, expected.sum(0), "float32", scale=20)
