"""Dense layers of a library's products: the launch of ours before or after them, and which way is taken."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import kernels, nn
from culux.kernels import dense, epilogue
from tests.kernel_support import DTYPES, check, close, dtype_of
from tests.test_kernel_dense import case, expected, launched

LARGE = 1030, 260, 516  # rows, inner, outer: 1.4e8 multiply-adds


def products(standin, monkeypatch):
    """The products that are asked of the library, as they are."""
    calls = []
    gemm = dense.gemm
    monkeypatch.setattr(dense, "gemm", lambda *args, **options: calls.append(options) or gemm(*args, **options))
    return calls


@pytest.mark.parametrize(("columns", "offset"), [(20, 0), (37, 0), (20, 1)])
@pytest.mark.parametrize("keep", [True, False])
def test_forward(columns, offset, keep, standin_cupy):
    z, bias = case(29, 1, columns)[3], case(29, 1, columns)[2]
    buffer = standin_cupy.zeros(z.size + offset, "float32")
    buffer[offset:] = standin_cupy.asarray(z.reshape(-1))
    there = buffer[offset:].reshape(z.shape)
    launched(standin_cupy)
    y = epilogue.forward(there, standin_cupy.asarray(bias), nn.gelu.cuda(), keep=keep)
    assert launched(standin_cupy) == (1, 0)
    wide = z.astype(np.float64) + bias
    close(y, nn.gelu(wide), "float32")
    assert (y is there) != keep
    if keep:
        close(there, wide, "float32")
    without = epilogue.forward(standin_cupy.asarray(z), None, nn.gelu.cuda(), keep=keep)
    close(without, nn.gelu(z.astype(np.float64)), "float32")


def test_the_kernels_pass_every_check():
    rows, columns = 9, 21
    z, bias, dy = (case(rows, 1, columns)[i] for i in (3, 2, 3))
    wide = z.astype(np.float64) + bias
    options = {"activation": nn.gelu.cuda()}
    forward = kernels.get_kernel("epilogue", "epilogue_forward", z.dtype, **options)
    check(
        forward, (2, 1), (4, 8), z, bias, np.empty_like(z), True, rows, columns, inout=(0,),
        reference=lambda *_: (wide, nn.gelu(wide)),
    )  # fmt: skip
    backward = kernels.get_kernel("epilogue", "epilogue_backward", z.dtype, **options)
    dz = dy * nn.gelu.derivative(np, wide, None)
    check(
        backward, (epilogue.strips(columns, z.dtype),), (512,), dy, wide.astype(z.dtype), np.empty_like(z),
        np.empty_like(bias), rows, columns, reference=lambda *_: (dz, dz.sum(0)),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 24, 35])
def test_backward(dtype, columns, standin_cupy):
    _, _, _, dy = (standin_cupy.asarray(a) for a in case(1500, 1, columns, dtype))
    y = standin_cupy.tanh(dy[::-1].copy())
    launched(standin_cupy)
    dz, dbias = epilogue.backward(dy, y, nn.tanh.cuda())
    assert launched(standin_cupy) == (1, 0)
    wide = dy.get().astype(np.float64) * (1 - y.get().astype(np.float64) ** 2)
    close(dz, wide, dtype)
    close(dbias, wide.sum(0), dtype, scale=50)
    again = epilogue.backward(dy, y, nn.tanh.cuda())
    assert [a.get().tobytes() for a in (dz, dbias)] == [a.get().tobytes() for a in again]
    same, sums = epilogue.backward(dy, None, kernels.IDENTITY)
    assert same is dy
    close(sums, dy.get().astype(np.float64).sum(0), dtype, scale=50)


@pytest.mark.parametrize(
    ("record", "dtype"),
    [(nn.identity, "float32"), (nn.relu, "float32"), (nn.gelu, "float32"), (nn.gelu, "float64"), (nn.tanh, "bfloat16")],
)
def test_a_large_product_is_the_librarys(record, dtype, standin_cupy, monkeypatch):
    x, weight, bias, dy = (standin_cupy.asarray(a) for a in case(*LARGE, dtype=dtype))
    calls = products(standin_cupy, monkeypatch)
    y, pullback = culux.vjp(lambda *args: nn.dense(*args, activation=record), x, weight, bias)
    assert (launched(standin_cupy)[0], calls) == (1, [{"transpose_b": True}])
    calls.clear()
    found = pullback(dy)
    assert (launched(standin_cupy)[0], calls) == (1, [{"transpose_a": True}, {}])
    for actual, formula in zip((y, *found), expected(*(a.get() for a in (x, weight, bias, dy)), record), strict=True):
        close(actual, formula, dtype, scale=50)
    no_bias = nn.dense(x, weight, activation=record)
    assert launched(standin_cupy)[0] == int(record is not nn.identity)
    close(no_bias, expected(x.get(), weight.get(), None, dy.get(), record)[0], dtype, scale=50)


def test_few_long_columns_are_summed_by_the_library(standin_cupy, monkeypatch):
    x, weight, bias, dy = (standin_cupy.asarray(a) for a in case(4500, 900, 10, "float64"))
    _, pullback = culux.vjp(lambda *args: nn.dense(*args, activation=nn.relu), x, weight, bias)
    calls = products(standin_cupy, monkeypatch)
    launched(standin_cupy)
    found = pullback(dy)
    assert (launched(standin_cupy)[0], calls) == (1, [{"transpose_a": True, "bias_gradient": "a"}, {}])
    formula = expected(*(a.get() for a in (x, weight, bias, dy)), nn.relu)
    for actual, wanted in zip(found, formula[1:], strict=True):
        close(actual, wanted, "float64", scale=100)


@pytest.mark.parametrize("record", [nn.identity, nn.relu, nn.gelu, nn.tanh, nn.swish], ids=repr)
def test_all_ways_give_the_same(record, standin_cupy, monkeypatch):
    x, weight, bias, dy = (standin_cupy.asarray(a) for a in case(33, 20, 65))
    formula = expected(*(a.get() for a in (x, weight, bias, dy)), record)
    offered = []

    def choose(operation, key, candidates, default, *, device, timer):
        """Run all candidates and take the last."""
        assert all(isinstance(part, int | str) for part in key)
        assert default in candidates
        results = [run() for run in candidates.values()]
        for result in results if operation == "dense backward" else [r[:1] for r in results]:
            wanted = formula[1:] if operation == "dense backward" else formula[:1]
            for actual, value in zip(result, wanted, strict=True):
                close(actual, value, "float32", scale=5)
        offered.append([operation, *candidates])
        return list(candidates)[-1]

    monkeypatch.setattr(dense.tuning, "choose", choose)
    close(nn.dense(x, weight, bias, activation=record), formula[0], "float32", scale=5)
    _, pullback = culux.vjp(lambda *args: nn.dense(*args, activation=record), x, weight, bias)
    for actual, wanted in zip(pullback(dy), formula[1:], strict=True):
        close(actual, wanted, "float32", scale=5)
    names = ["fused 16", "library + epilogue", "library fused epilogue"]
    assert [names[0], *names[-2:]] == [offered[0][1], *offered[0][-2:]]
    assert [entry[0] for entry in offered] == ["dense forward", "dense forward", "dense backward"]


@pytest.mark.parametrize(
    ("shape", "dtype", "forward", "backward"),
    [
        ((128, 512, 512), "float32", "fused 16", "fused 32"),
        ((128, 128, 128), "float32", "fused 16", "fused 16"),
        ((256, 32, 10), "float32", "fused 16", "fused 16"),
        ((512, 512, 512), "float32", "fused 32", "fused 64"),
        ((512, 512, 512), "float64", "library + epilogue", "library + epilogue"),
        ((512, 512, 512), "bfloat16", "library + epilogue", "library + epilogue"),
        ((1024, 1024, 1024), "float32", "library + epilogue", "library + epilogue"),
        ((16, 4096, 64), "float32", "library + epilogue", "fused 32"),
        ((100_000, 8, 8), "float32", "fused 64", "library fused epilogue"),
    ],
)  # fmt: skip
def test_defaults(shape, dtype, forward, backward):
    rows, inner, outer = shape
    kind = dtype_of(dtype)
    tensor_cores = dtype != "float32"
    assert dense._forward_plan(rows, outer, inner, kind, True, False, "relu", tensor_cores).default == forward
    assert dense._backward_plan(rows, outer, inner, kind, (True,) * 3, "relu", tensor_cores).default == backward


def test_tf32_is_the_librarys_from_smaller_sizes_on(standin_cupy, monkeypatch):
    x, weight = (standin_cupy.asarray(a) for a in case(256, 520, 256)[:2])
    calls = products(standin_cupy, monkeypatch)
    nn.dense(x, weight)
    assert not calls
    with culux.matmul_precision("tf32"):
        nn.dense(x, weight)
    assert calls == [{"transpose_b": True}]


def test_a_batch_of_another_size_is_not_timed_again():
    kind = np.dtype(np.float32)
    plans = {dense._forward_plan(rows, 64, 64, kind, True, False, "relu", False) for rows in (65, 100, 128)}
    assert len(plans) == 1
    assert dense._forward_plan(129, 64, 64, kind, True, False, "relu", False) not in plans
