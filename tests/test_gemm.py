"""`gemm`: transposes, shapes, dtypes and epilogues against float64, on cuBLASLt's stand-in and without it."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

import culux
from culux.backends.counting import counting
from culux.errors import DeviceError, DTypeError, KernelError, ShapeError
from culux.kernels.gemm import gemm
from tests.cublaslt_support import BGRADA, BGRADB, fake_library
from tests.kernel_support import DTYPES, close, dtype_of
from tests.support import requires

SHAPES = [(1, 1, 1), (1, 5, 3), (7, 1, 4), (3, 2, 1), (5, 3, 17), (16, 8, 32), (33, 31, 29)]


@pytest.fixture
def library(standin_cupy, monkeypatch):
    with fake_library(standin_cupy, monkeypatch) as fake:
        yield fake


@pytest.fixture(params=["cublaslt", "portable", "numpy"])
def asarray(request, standin_cupy):
    """How arrays are made: for cuBLASLt's stand-in, for CuPy's without cuBLASLt, and on the host."""
    if request.param == "cublaslt":
        request.getfixturevalue("library")
    return np.asarray if request.param == "numpy" else standin_cupy.asarray


def draw(shape, dtype="float32", seed=0):
    return np.random.default_rng([seed, *shape]).uniform(-1, 1, shape).astype(dtype_of(dtype))


def wide(x):
    return x.astype(np.float64)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {None: lambda x: x, "relu": lambda x: np.maximum(x, 0), "gelu": gelu}


def factors(m, n, k, transpose_a, transpose_b, dtype="float32"):
    a, b = draw((k, m) if transpose_a else (m, k), dtype), draw((n, k) if transpose_b else (k, n), dtype, seed=1)
    return a, b, wide(a.T if transpose_a else a), wide(b.T if transpose_b else b)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transposes_and_shapes(shape, transpose_a, transpose_b, asarray):
    a, b, left, right = factors(*shape, transpose_a, transpose_b)
    c = gemm(asarray(a), asarray(b), transpose_a=transpose_a, transpose_b=transpose_b)
    close(c, left @ right, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_dtypes_and_epilogues(dtype, activation, with_bias, asarray):
    a, b, left, right = factors(6, 9, 20, False, True, dtype)
    bias = draw((9,), dtype, seed=2)
    c = gemm(asarray(a), asarray(b), transpose_b=True, bias=asarray(bias) if with_bias else None, activation=activation)
    close(c, ACTIVATIONS[activation](left @ right + with_bias * wide(bias)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 9, 20), (1, 9, 4), (6, 1, 4), (6, 9, 1)], ids=str)
@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_bias_gradients(dtype, shape, which, transpose_a, transpose_b, asarray):
    a, b, left, right = factors(*shape, transpose_a, transpose_b, dtype)
    c, gradient = gemm(
        asarray(a), asarray(b), transpose_a=transpose_a, transpose_b=transpose_b, bias_gradient=which
    )  # fmt: skip
    close(c, left @ right, dtype)
    close(gradient, left.sum(1) if which == "a" else right.sum(0), dtype)


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"activation": "gelu"}, {"bias_gradient": "a"}], ids=str)
@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)], ids=str)
def test_empty_products(shape, options, asarray, request):
    a, b, left, right = factors(*shape, False, False)
    bias = draw(shape[1:2])
    found = gemm(asarray(a), asarray(b), **options | ({"bias": asarray(bias)} if "bias" in options else {}))
    expected = ACTIVATIONS[options.get("activation")](left @ right + ("bias" in options) * wide(bias))
    if "bias_gradient" in options:
        found, gradient = found
        close(gradient, left.sum(1), "float32")
    close(found, expected, "float32")
    if "library" in request.fixturenames:
        assert request.getfixturevalue("library").calls("Matmul") == 0


def test_a_dense_layer_and_its_backward_pass_are_one_call_each(library, standin_cupy):
    x, weight, bias = (standin_cupy.asarray(draw(shape)) for shape in [(16, 12), (8, 12), (8,)])
    dz = standin_cupy.asarray(draw((16, 8), seed=3))
    y = gemm(x, weight, transpose_b=True, bias=bias, activation="relu")
    dx = gemm(dz, weight)
    dw, db = gemm(dz, x, transpose_a=True, bias_gradient="a")
    x, weight, bias, dz = (wide(array.get()) for array in (x, weight, bias, dz))
    close(y, np.maximum(x @ weight.T + bias, 0), "float32")
    close(dx, dz @ weight, "float32")
    close(dw, dz.T @ x, "float32")
    close(db, dz.sum(0), "float32")
    forward, back, of_weight = library.products
    assert (forward.m, forward.n, forward.k, forward.epilogue) == (8, 16, 12, 6)
    assert (back.m, back.n, back.k, back.epilogue) == (12, 16, 8, 1)
    assert (of_weight.m, of_weight.n, of_weight.k, of_weight.epilogue) == (12, 8, 16, BGRADB)
    assert standin_cupy.machine.library_calls == 0


def test_the_gradient_of_the_second_factor(library, standin_cupy):
    gemm(standin_cupy.asarray(draw((4, 3))), standin_cupy.asarray(draw((3, 5))), bias_gradient="b")
    assert [product.epilogue for product in library.products] == [BGRADA]


def test_the_gradient_of_a_product_of_length_one_is_no_epilogue(library, standin_cupy):
    gemm(standin_cupy.asarray(draw((4, 1))), standin_cupy.asarray(draw((1, 5))), bias_gradient="a")
    assert [product.epilogue for product in library.products] == [1]


def test_a_result_that_is_given(asarray):
    a, b, left, right = factors(5, 4, 3, False, False)
    out = asarray(np.full((5, 4), 7, np.float32))
    assert gemm(asarray(a), asarray(b), out=out) is out
    close(out, left @ right, "float32")
    c, _ = gemm(asarray(a), asarray(b), bias_gradient="b", out=out)
    assert c is out


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_epilogue_that_the_library_lacks_is_computed_after_the_product(dtype, library, standin_cupy):
    library.settings.refused = 2 | 4 | BGRADA
    a, b, left, right = factors(4, 5, 6, False, False, dtype)
    bias = draw((5,), dtype)
    a, b = standin_cupy.asarray(a), standin_cupy.asarray(b)
    close(
        gemm(a, b, bias=standin_cupy.asarray(bias), activation="relu"), np.maximum(left @ right + wide(bias), 0), dtype
    )
    c, gradient = gemm(a, b, bias_gradient="b")
    close(c, left @ right, dtype)
    close(gradient, right.sum(0), dtype)
    assert [product.epilogue for product in library.products] == [1, 1]


def test_a_product_that_the_library_lacks_is_the_array_librarys(library, standin_cupy):
    library.settings.candidates = 0
    a, b, left, right = factors(4, 5, 6, False, True)
    close(gemm(standin_cupy.asarray(a), standin_cupy.asarray(b), transpose_b=True), left @ right, "float32")
    assert not library.products


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_sixteen_bits_are_made_in_float32(dtype, asarray):
    a, b = (asarray(np.ones(shape, dtype_of(dtype))) for shape in [(2, 4096), (4096, 3)])
    for which in ("a", "b"):
        for found in gemm(a, b, bias_gradient=which):  # a sum in 16 bits stays where a one is less than its rounding
            assert (found == 4096).all()


def test_tf32_only_when_it_is_asked_for(library, standin_cupy):
    def compute(dtype):
        a, b = standin_cupy.asarray(draw((4, 4), dtype)), standin_cupy.asarray(draw((4, 4), dtype))
        exact = wide(a.get()) @ wide(b.get())
        error = np.abs(wide(gemm(a, b).get()) - exact).max()
        return library.products[-1].compute, error

    assert compute("float32")[0] == 68
    with culux.matmul_precision("tf32"):
        kind, error = compute("float32")
        assert kind == 77
        assert 1e-5 < error < 1e-2
        assert [compute(dtype)[0] for dtype in DTYPES[1:]] == [70, 68, 68]
    kind, error = compute("float32")
    assert kind == 68
    assert error < 1e-6


def test_views_of_any_alignment(library, standin_cupy):
    memory = standin_cupy.asarray(draw((101,)))
    a, b, bias = memory[1:13].reshape(4, 3), memory[15:30].reshape(3, 5), memory[33:38]
    close(gemm(a, b, bias=bias), wide(a.get()) @ wide(b.get()) + wide(bias.get()), "float32")
    assert list(library.asked.alignment) == [4] * 4


def test_products_are_counted(asarray):
    class Launches(list):
        def launch(self, name, args):
            self.append((name, sum(array.nbytes for array in args)))

    a, b, bias = asarray(draw((4, 3))), asarray(draw((3, 5))), asarray(draw((5,)))
    with counting(Launches()) as _, counting(launches := Launches()):
        gemm(a, b)
        gemm(a, b, bias=bias, activation="relu")
        gemm(a, asarray(draw((3, 0))))
    assert launches[0] == ("gemm", 4 * (12 + 15 + 20))
    fused = type(a) is not np.ndarray and launches[1] == ("gemm+bias+relu", 4 * (12 + 15 + 20 + 5))
    assert fused or launches[1] == launches[0]
    assert len(launches) == 2


def test_threads_share_plans_but_not_biases(standin_cupy, monkeypatch):
    with fake_library(standin_cupy, monkeypatch, streams=False) as library:
        check_threads(library, standin_cupy)


def check_threads(library, standin_cupy):
    a, b = standin_cupy.asarray(draw((8, 8))), standin_cupy.asarray(draw((8, 8)))
    product = wide(a.get()) @ wide(b.get())
    wrong = []

    def work(value):
        bias = standin_cupy.asarray(np.full(8, value, np.float32))
        for _ in range(100):
            wrong.extend([value] * (not np.allclose(gemm(a, b, bias=bias).get(), product + value, atol=1e-5)))

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert library.calls("MatmulAlgoGetHeuristic") == 1


A, B = draw((4, 3)), draw((3, 5))
WRONG = {
    "inner": (ShapeError, {"b": draw((4, 5))}, r"expected a @ b with one length to sum over, got 3 and 4 \(a has"),
    "transposed": (ShapeError, {"transpose_a": True}, r"expected a\.T @ b .*, got 4 and 3 \(a has shape \(4, 3\)"),
    "axes": (ShapeError, {"a": draw((3,))}, r"expected two arrays of two axes, got float32 array of shape \(3,\) and"),
    "list": (ShapeError, {"a": [[1.0]]}, r"expected two arrays of two axes, got list \[\[1\.0\]\]"),
    "bias": (ShapeError, {"bias": draw((4,))}, r"expected bias of shape \(5,\), got float32 array of shape \(4,\)"),
    "out": (ShapeError, {"out": draw((5, 4))}, r"expected out of shape \(4, 5\), got float32 array of shape \(5, 4\)"),
    "dtype": (DTypeError, {"a": A.astype("int32")}, r"float32, float64, float16 or bfloat16, got int32 array"),
    "dtypes": (DTypeError, {"b": B.astype("float64")}, r"expected b of a's dtype float32, got float64 array"),
    "bias dtype": (DTypeError, {"bias": draw((5,), "float64")}, r"expected bias of a's dtype float32, got float64"),
    "strides": (KernelError, {"a": draw((3, 4)).T}, r"expected a in row-major order .* strides \(4, 16\); give"),
    "gaps": (KernelError, {"bias": draw((10,))[::2]}, r"expected bias in row-major order .*culux\.kernels\.contiguous"),
    "activation": (KernelError, {"activation": "tanh"}, r"expected activation 'relu', 'gelu' or None .* got 'tanh'"),
    "gradient": (KernelError, {"bias_gradient": True}, r"bias_gradient 'a', 'b' or None, got None and True"),
    "both": (KernelError, {"bias_gradient": "a", "activation": "relu"}, r"expected bias_gradient, or bias and act"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_errors(case, asarray):
    kind, options, message = WRONG[case]
    given = {"a": A, "b": B} | options
    given = {key: place(value, asarray) if isinstance(value, np.ndarray) else value for key, value in given.items()}
    with pytest.raises(kind, match=message):
        gemm(given.pop("a"), given.pop("b"), **given)


def place(array, asarray):
    """The array with its strides where `asarray` puts arrays."""
    if array.flags.c_contiguous:
        return asarray(array)
    return asarray(array.T.copy()).T if array.ndim == 2 else asarray(np.repeat(array, 2))[::2]


def test_arrays_of_two_places(standin_cupy):
    with pytest.raises(DeviceError, match=r"argument 1 is on cuda:0 \(cupy\), argument 2 is on cpu"):
        gemm(standin_cupy.asarray(A), B)


@pytest.mark.parametrize("name", ["a", "b", "bias"])
def test_a_result_that_overlaps(name, standin_cupy):
    memory = standin_cupy.asarray(draw((44,)))
    arrays = {"a": draw((4, 4)), "b": draw((4, 4)), "bias": draw((4,))}
    given = {key: standin_cupy.asarray(value) for key, value in arrays.items()}
    given[name] = memory[15 : 15 + given[name].size].reshape(given[name].shape)
    out = memory[:16].reshape(4, 4)
    with pytest.raises(KernelError, match=f"expected an out of its own memory, got one that overlaps {name}"):
        gemm(given["a"], given["b"], bias=given["bias"], out=out)


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_no_number_stays_so_on_a_gpu(activation):
    cupy = requires("cupy")
    a, b = cupy.full((32, 16), np.nan, np.float32), cupy.ones((16, 32), np.float32)
    assert cupy.isnan(gemm(a, b, bias=b[0], activation=activation)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 9, 1), (33, 31, 29), (128, 256, 512)], ids=str)
def test_on_a_gpu(dtype, shape):
    cupy = requires("cupy")
    for transpose_a in (False, True):
        for transpose_b in (False, True):
            a, b, left, right = factors(*shape, transpose_a, transpose_b, dtype)
            bias = draw(shape[1:2], dtype)
            options = {"transpose_a": transpose_a, "transpose_b": transpose_b}
            a, b = cupy.asarray(a), cupy.asarray(b)
            scale = math.sqrt(shape[2])
            for activation, function in ACTIVATIONS.items():
                y = gemm(a, b, bias=cupy.asarray(bias), activation=activation, **options)
                close(y, function(left @ right + wide(bias)), dtype, scale)
                close(gemm(a, b, activation=activation, **options), function(left @ right), dtype, scale)
            for which, total in (("a", left.sum(1)), ("b", right.sum(0))):
                c, gradient = gemm(a, b, bias_gradient=which, **options)
                close(c, left @ right, dtype, scale)
                close(gradient, total, dtype, scale)
