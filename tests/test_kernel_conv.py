"""Convolutions and their transposes in one launch, with bias and activation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from culux import nn
from culux.kernels import IDENTITY, conv
from tests.conv_support import CASES, draw, expected, products
from tests.kernel_support import DTYPES, check, close
from tests.support import requires

ACTIVATIONS = [nn.identity, nn.relu, nn.gelu, nn.tanh]

# Of each tile one that the case does not fill: both ways, with a z that the backward pass wants.
CHECKED = [
    ("two filters for a channel", False, 2, nn.gelu),
    ("taps that a stride leaves out", True, 4, nn.identity),
    ("one axis, strided", False, 64, nn.relu),
    ("groups", True, 32, nn.tanh),
    ("plain", True, 128, nn.gelu),
]


TILES = [("float32", rows) for rows in (1, 2, 4, 8, 16, 32, 64, 128)]


def launch(monkeypatch, case, rows, dtype, code, *, transposed):
    """The launch of a case in blocks of so many rows."""
    conv._launch.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(conv, "_rows", lambda *args: rows)
        weight = (case.filters, case.channels // case.groups)
        found = conv._launch(case.batch, *weight, case.taps, transposed, np.dtype(dtype), code)
    conv._launch.cache_clear()
    return (*found[:3], found.geometry[0])


@pytest.mark.parametrize(("name", "transposed", "rows", "record"), CHECKED)
def test_the_kernel_passes_every_check(name, transposed, rows, record, monkeypatch):
    case = CASES[name]
    x, weight, bias, dy = case.arrays(transposed=transposed)
    z = expected(case.taps, x, weight, bias, dy, nn.identity, transposed=transposed)[0]
    kernel, grid, block, geometry = launch(monkeypatch, case, rows, x.dtype, record.cuda(), transposed=transposed)
    check(
        kernel, grid, block, x, weight, bias, np.empty_like(dy), np.empty_like(dy), geometry,
        reference=lambda *_: (z, record.forward(np, z)),
    )  # fmt: skip


@pytest.mark.parametrize("rows", [4, 32])
@pytest.mark.parametrize("schedule", ["reversed", "random", "unfair"])
def test_the_order_of_threads_and_blocks_changes_no_bit(rows, schedule, monkeypatch):
    requires("compiler")
    from culux.testing.cuda import EmulatedModule

    case = CASES["groups"]
    x, weight, _, dy = case.arrays(transposed=True)
    kernel, grid, block, geometry = launch(monkeypatch, case, rows, x.dtype, IDENTITY, transposed=True)
    run = EmulatedModule(kernel.program.text).kernel(kernel.name)
    found = []
    for how in ("in order", schedule):
        y = np.empty_like(dy)
        run(grid, block, (x, weight, None, None, y, geometry), schedule=how, seed=3)
        found.append(y.tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_geometry(name, transposed, standin_cupy):
    case = CASES[name]
    x, weight, bias, dy = case.arrays("float64", transposed=transposed)
    given = [standin_cupy.asarray(a) for a in (x, weight, bias)]
    y, saved = conv.forward(*given, nn.tanh.cuda(), case.taps, transposed=transposed, keep=True)
    assert saved is y
    close(y, expected(case.taps, x, weight, bias, dy, nn.tanh, transposed=transposed)[0], "float64", scale=10)


@pytest.mark.parametrize(("dtype", "rows"), [*TILES, *itertools.product(DTYPES[1:], (2, 64))])
def test_every_dtype_and_every_tile(dtype, rows, standin_cupy, monkeypatch):
    transposed = rows in (2, 16, 32, 128)
    case = CASES["groups"]._replace(channels=60, filters=30)
    x, weight, bias, dy = case.arrays(dtype, transposed=transposed)
    monkeypatch.setattr(conv, "_rows", lambda *args: rows)
    conv._launch.cache_clear()
    given = [standin_cupy.asarray(a) for a in (x, weight, bias)]
    y, z = conv.forward(*given, nn.gelu.cuda(), case.taps, transposed=transposed, keep=True)
    conv._launch.cache_clear()
    wanted, *_ = expected(case.taps, x, weight, bias, dy, nn.identity, transposed=transposed)
    close(z, wanted, dtype, scale=20)
    close(y, nn.gelu.forward(np, wanted), dtype, scale=20)


@pytest.mark.parametrize("record", ACTIVATIONS, ids=repr)
def test_what_the_backward_pass_reads(record, standin_cupy):
    case = CASES["plain"]
    given = [standin_cupy.asarray(a) for a in case.arrays()[:3]]
    for keep in (False, True):
        y, saved = conv.forward(*given, record.cuda(), case.taps, keep=keep)
        z = expected(case.taps, *case.arrays(), nn.identity)[0]
        close(y, record.forward(np, z), "float32", scale=5)
        if not keep or record.saves is None:
            assert saved is None
        elif record.saves == "y":
            assert saved is y
        else:
            close(saved, z, "float32", scale=5)


def test_no_bias(standin_cupy):
    case = CASES["plain"]
    x, weight, _, dy = case.arrays()
    y, _ = conv.forward(standin_cupy.asarray(x), standin_cupy.asarray(weight), None, nn.relu.cuda(), case.taps)
    close(y, expected(case.taps, x, weight, None, dy, nn.relu)[0], "float32", scale=5)


def test_what_is_outside_of_the_arrays_reaches_no_sum(standin_cupy):
    """NaN lies around the arrays."""
    case = CASES["plain"]
    x, weight, _, _ = case.arrays()
    given = []
    for a in (x, weight):
        memory = standin_cupy.asarray(np.full(a.size + 200, np.nan, np.float32))
        memory[100 : 100 + a.size] = standin_cupy.asarray(a.reshape(-1))
        given.append(memory[100 : 100 + a.size].reshape(a.shape))
    y, _ = conv.forward(*given, None, IDENTITY, case.taps)
    close(y, products(case.taps, x=x, weight=weight), "float32", scale=5)


def test_two_runs_give_the_same_bits(standin_cupy):
    case = CASES["20 channels to 33"]
    x, weight, bias, _ = (standin_cupy.asarray(a) for a in case.arrays(transposed=True))
    runs = [conv.forward(x, weight, bias, IDENTITY, case.taps, transposed=True)[0].get().tobytes() for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("transposed", [False, True])
def test_no_samples(transposed, standin_cupy):
    case = CASES["groups"]._replace(batch=0)
    x, weight, bias, dy = (standin_cupy.asarray(a) for a in case.arrays(transposed=transposed))
    launches = standin_cupy.machine.launches
    y, _ = conv.forward(x, weight, bias, IDENTITY, case.taps, transposed=transposed)
    assert y.shape == dy.shape
    assert standin_cupy.machine.launches == launches


def test_the_rows_of_a_block():
    """As few as the channels ask for; large tiles where the positions fill the chip with them."""
    float32, float64 = np.dtype(np.float32), np.dtype(np.float64)
    assert [conv._rows(n, 10_000, 1, float32) for n in (1, 2, 3, 6, 16)] == [1, 2, 4, 8, 16]
    assert conv._rows(32, 65_536, 1, float32) == 32
    assert conv._rows(64, 65_536, 1, float32) == 64
    assert conv._rows(512, 65_536, 1, float32) == 128
    assert conv._rows(512, 65_536, 1, float64) == 64
    assert conv._rows(512, 49, 1, float32) == 32  # few positions: many small blocks
    assert conv._rows(96, 65_536, 1, float32) in (32, 128)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_every_geometry_on_a_gpu(transposed, dtype):
    cupy = requires("cupy")
    for case in CASES.values():
        x, weight, bias, dy = case.arrays(dtype, transposed=transposed)
        given = [cupy.asarray(a) for a in (x, weight, bias)]
        y, _ = conv.forward(*given, nn.relu.cuda(), case.taps, transposed=transposed)
        close(y, expected(case.taps, x, weight, bias, dy, nn.relu, transposed=transposed)[0], dtype, scale=50)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(512, 4096), (64, 3), (3, 64)])
def test_large_ones_on_a_gpu(shape):
    cupy = requires("cupy")
    filters, channels = shape
    case = CASES["plain"]._replace(size=(20, 31), channels=channels, filters=filters)
    x, weight = draw((2, channels, 20, 31)), draw((filters, channels, 3, 3))
    y, _ = conv.forward(cupy.asarray(x), cupy.asarray(weight), None, IDENTITY, case.taps)
    close(y, products(case.taps, x=x, weight=weight), "float32", scale=500)
