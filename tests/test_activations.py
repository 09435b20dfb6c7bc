"""The activation records: their identity, extreme arguments, kinks, and their CUDA expressions."""

from __future__ import annotations

import copy
import ctypes
import pickle
import subprocess

import numpy as np
import pytest

import culux
from culux import nn
from culux.autodiff.tape import ReverseTrace
from culux.errors import DTypeError, LayerError
from culux.nn import activations
from tests.support import requires

RECORDS = {name: getattr(nn, name) for name in activations.__all__}
VARIANTS = [nn.LeakyRelu(0.2), nn.LeakyRelu(1.5), nn.Elu(0.5), nn.Celu(2.0), nn.SoftShrink(1.0), nn.Trelu(2.0)]
EVERY = [*RECORDS.values(), *VARIANTS]


def over(records):
    return pytest.mark.parametrize("record", records, ids=repr)


def in_torch(torch, name, x):
    """The activation by torch's functions."""
    spelling = {"leakyrelu": "leaky_relu", "gelu_erf": "gelu", "swish": "silu"}.get(name, name)
    special = {
        "identity": lambda: x * 1,
        "gelu": lambda: torch.nn.functional.gelu(x, approximate="tanh"),
        "lisht": lambda: x * torch.tanh(x),
        "logcosh": lambda: x.abs() + torch.log1p(torch.exp(-2 * x.abs())) - np.log(2),
        "trelu": lambda: torch.nn.functional.threshold(x, 1, 0),
    }
    return special[name]() if name in special else getattr(torch.nn.functional, spelling)(x)


def gradient(record, x):
    return culux.gradient(lambda x: record(x).sum(), x)


def test_there_are_all_of_them():
    names = (
        "identity relu relu6 leakyrelu elu selu celu gelu gelu_erf swish hardswish mish sigmoid hardsigmoid logsigmoid"
        " tanh hardtanh tanhshrink softplus softsign softshrink lisht logcosh trelu"
    )
    assert sorted(RECORDS) == sorted(names.split())


@pytest.mark.parametrize("name", RECORDS)
def test_the_repr_is_the_name(name):
    assert repr(RECORDS[name]) == name


@over(EVERY)
def test_records_compare_hash_and_copy(record):
    for other in (copy.deepcopy(record), pickle.loads(pickle.dumps(record)), copy.copy(record)):
        assert other == record
        assert hash(other) == hash(record)
        assert repr(other) == repr(record)
    assert [r for r in EVERY if r == record] == [record]


def test_variants():
    assert nn.leakyrelu.replace(slope=0.2) == nn.LeakyRelu(0.2) != nn.leakyrelu
    assert repr(nn.LeakyRelu(0.2)) == "LeakyRelu(slope=0.2)"
    assert nn.LeakyRelu(0.01) == nn.leakyrelu
    with pytest.raises(LayerError, match=r"leakyrelu takes no slop= \(did you mean 'slope'\?\); it takes slope"):
        nn.leakyrelu.replace(slop=0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LeakyRelu(-0.1), r"LeakyRelu: expected a finite slope >= 0, got -0\.1"),
        (lambda: nn.Elu(float("nan")), r"Elu: expected a finite alpha >= 0, got nan"),
        (lambda: nn.Celu(0), r"Celu: expected alpha > 0, got 0"),
        (lambda: nn.Trelu(-1.0), r"Trelu: expected a finite threshold >= 0, got -1\.0"),
        (lambda: nn.SoftShrink(-1.0), r"SoftShrink: expected a finite threshold >= 0, got -1\.0"),
    ],
)
def test_parameters_that_the_derivative_cannot_bear(make, message):
    with pytest.raises(LayerError, match=message):
        make()


@over(EVERY)
def test_a_call_is_one_operation(record):
    with ReverseTrace() as trace:
        record(trace.lift(np.ones(3)))
    assert len(trace.tape) == 2


@pytest.mark.parametrize("name", RECORDS)
def test_large_arguments_neither_overflow_nor_cancel(name):
    torch = requires("torch")
    x = np.array([-1e4, -200, -90, -30, -1, -1e-3, 1e-3, 1, 30, 90, 200, 1e4], np.float32)
    wide = torch.tensor(x.astype(np.float64), requires_grad=True)
    y = in_torch(torch, name, wide)
    (slope,) = torch.autograd.grad(y.sum(), wide)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        np.testing.assert_allclose(RECORDS[name](x), y.detach().numpy(), rtol=2e-5, atol=1e-7)
        np.testing.assert_allclose(gradient(RECORDS[name], x), slope.numpy(), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "logsigmoid", "swish", "mish", "logcosh"])
def test_small_values_keep_their_digits(name):
    torch = requires("torch")
    x = np.array([-80, -40, -20] if name != "logcosh" else [1e-4, 1e-3, 1e-2], np.float32)
    sign = -1 if name == "logsigmoid" else 1
    wide = sign * x.astype(np.float64)
    expected = np.log1p(2 * np.sinh(wide / 2) ** 2) if name == "logcosh" else in_torch(torch, name, torch.tensor(wide))
    np.testing.assert_allclose(RECORDS[name](sign * x), np.asarray(expected), rtol=1e-5)


@over(EVERY)
def test_nan_is_kept(record):
    assert np.isnan(record(np.array([1.0, np.nan], np.float32))[1])


@over(EVERY)
def test_half_precision_is_computed_in_float32(record):
    x = np.linspace(-8, 8, 41).astype(np.float16)
    y, dx = record(x), gradient(record, x)
    assert y.dtype == dx.dtype == np.float16
    np.testing.assert_allclose(y, record(x.astype(np.float64)), rtol=1e-3, atol=1e-6)
    reference = gradient(record, x.astype(np.float64))
    np.testing.assert_allclose(dx, reference, rtol=1e-2, atol=2e-3)


@over(EVERY)
def test_numbers_are_taken(record):
    array = np.array([0.7])
    assert float(record(0.7)) == record(array)[0]
    assert culux.gradient(lambda x: record(x), 0.7) == gradient(record, array)[0]


def test_integers_are_refused():
    with pytest.raises(DTypeError, match=r"gelu: expected a float array, got int64 array of shape \(2,\); x\.astype\("):
        nn.gelu(np.array([1, 2]))
    assert nn.identity(np.array([1, 2])).tolist() == [1, 2]


def test_bfloat16_is_kept():
    bfloat16 = requires("ml_dtypes").bfloat16
    x = np.linspace(-3, 3, 7).astype(bfloat16)
    for record in EVERY:
        assert record(x).dtype == bfloat16
        assert gradient(record, x).dtype == bfloat16


def test_the_derivative_of_relu_at_zero_is_zero():
    assert gradient(nn.relu, np.array([-1.0, -0.0, 0.0, 1.0])).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "name", ["relu", "relu6", "leakyrelu", "elu", "selu", "celu", "hardtanh", "softshrink", "hardsigmoid", "trelu"]
)
def test_kinks_have_the_derivative_of_torch(name):
    torch = requires("torch")
    x = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(in_torch(torch, name, x).sum(), x)
    np.testing.assert_allclose(gradient(RECORDS[name], x.detach().numpy()), slope.numpy(), rtol=1e-6)


@over(EVERY)
def test_the_derivative_reads_only_what_is_saved(record):
    x = np.linspace(-2, 2, 9)
    y = record(x)
    seen = record.derivative(np, x if record.saves == "x" else None, y if record.saves == "y" else None)
    np.testing.assert_array_equal(np.broadcast_to(seen, x.shape), gradient(record, x))


def test_a_record_of_a_user_is_enough():
    class Square(nn.Activation):
        def forward(self, xp, x):
            return x * x

        def derivative(self, xp, x, y):
            return 2 * x

    square, x = Square(), np.array([[1.0, -2.0]])
    assert repr(square) == "square"
    assert gradient(square, x).tolist() == [[2, -4]]
    assert culux.gradient(lambda w: nn.dense(x, w, activation=square).sum(), np.ones((1, 2))).tolist() == [[-2, 4]]
    assert culux.gradient(lambda x: gradient(square, x).sum(), x).tolist() == [[2, 2]]


def test_a_derivative_that_is_x_itself_is_not_overwritten():
    class HalfSquare(nn.Activation):
        def forward(self, xp, x):
            return x * x / 2

        def derivative(self, xp, x, y):
            return x

    x = np.array([1.0, -2.0])
    assert culux.gradient(lambda x: (HalfSquare()(x) * 3).sum(), x).tolist() == [3, -6]
    assert x.tolist() == [1, -2]


@pytest.mark.parametrize("T", ["float", "double"])
def test_the_cuda_expressions_compute_the_same(T, tmp_path):
    compiler = requires("compiler")
    lines = ["#include <cmath>", "using namespace std;", f"typedef {T} T;", 'extern "C" {']
    for i, record in enumerate(EVERY):
        _, forward, derivative, _ = record.cuda()
        lines += [f"T f{i}(T x) {{ return {forward}; }}", f"T d{i}(T x, T y) {{ return {derivative}; }}"]
    source, library = tmp_path / "activations.cpp", tmp_path / "activations.so"
    source.write_text("\n".join([*lines, "}"]))
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    functions = ctypes.CDLL(str(library))
    kind, dtype = (ctypes.c_float, np.float32) if T == "float" else (ctypes.c_double, np.float64)
    x = np.array([-1e4, -50, -5.5, -2.2, -0.7, -0.2, 0, 0.2, 0.7, 1.4, 2.2, 5.5, 50, 1e4, np.nan], dtype)
    tolerance = 1e-5 if T == "float" else 1e-12
    for i, record in enumerate(EVERY):
        f, d = functions[f"f{i}"], functions[f"d{i}"]
        f.restype, f.argtypes, d.restype, d.argtypes = kind, [kind], kind, [kind, kind]
        y = np.array([f(v) for v in x], dtype)
        np.testing.assert_allclose(y, record(x), rtol=tolerance, atol=tolerance / 100, err_msg=repr(record))
        slopes = [d(a, b) for a, b in zip(x[:-1], y[:-1], strict=True)]
        np.testing.assert_allclose(
            slopes, gradient(record, x[:-1]), rtol=tolerance, atol=tolerance / 100, err_msg=repr(record)
        )
