"""The gradient of convolutions in their weight, and the sums of partial ones."""

from __future__ import annotations

import numpy as np
import pytest

from culux.kernels import conv_weight
from culux.testing import cost
from tests.conv_support import CASES, draw, products
from tests.kernel_support import DTYPES, check, close
from tests.support import requires

# Of each tile one that the case does not fill, and in how many parts.
CHECKED = [
    ("two filters for a channel", 1, 1),
    ("one axis, strided", 4, 3),
    ("groups", 32, 2),
    ("inside of the input", 64, 1),
]


def launch(monkeypatch, case, rows, parts, dtype=np.float32):
    """The launch of a case in blocks of so many rows, with so many parts."""
    conv_weight._launch.cache_clear()
    taps, positions = case.taps, case.batch * int(np.prod(case.taps.out))
    with monkeypatch.context() as patch:
        patch.setattr(conv_weight, "_rows", lambda *args: rows)
        patch.setattr(conv_weight, "SHORTEST", {rows: -(-positions // parts)})
        found = conv_weight._launch(case.batch, case.filters, case.channels // case.groups, taps, np.dtype(dtype))
    conv_weight._launch.cache_clear()
    assert found.parts == parts
    return found


def in_parts(case, x, dy, part, parts):
    """dweight of each part of the positions, which run through one sample after the other."""
    flat = dy.reshape(*dy.shape[:2], -1)
    number = np.arange(len(dy))[:, None] * flat.shape[2] + np.arange(flat.shape[2])
    chosen = [np.where((number // part == i)[:, None], flat, 0).reshape(dy.shape) for i in range(parts)]
    return np.stack([products(case.taps, x=x, dy=piece) for piece in chosen])


@pytest.mark.parametrize(("name", "rows", "parts"), CHECKED)
def test_the_kernel_passes_every_check(name, rows, parts, monkeypatch):
    case = CASES[name]
    x, _, _, dy = case.arrays()
    found = launch(monkeypatch, case, rows, parts)
    wanted = in_parts(case, x, dy, found.part, parts)
    if parts == 1:
        outputs, references = (None, np.empty(wanted.shape[1:], np.float32)), (wanted[0],)
    else:
        outputs, references = (np.empty((parts, wanted[0].size), np.float32), None), (wanted.reshape(parts, -1),)
    check(
        found.kernel, found.grid, found.block, dy, x, *outputs, found.geometry[0], found.part,
        reference=lambda *_: references,
    )  # fmt: skip


def test_the_sum_passes_every_check():
    partials, bias_partials = draw((5, 70)), draw((3, 40))
    kernel = conv_weight.get_kernel("conv_weight", "conv_weight_sum", np.dtype(np.float32), constants=(("ROWS", 64),))
    check(
        kernel, (3 + 2,), (32, 4), partials, bias_partials, np.empty(70, np.float32), np.empty(40, np.float32),
        70, 5, 40, 3, 3, reference=lambda *_: (partials.sum(0, np.float64), bias_partials.sum(0, np.float64)),
    )  # fmt: skip


@pytest.mark.parametrize(("name", "rows", "parts"), CHECKED)
@pytest.mark.parametrize("schedule", ["reversed", "random", "unfair"])
def test_the_order_of_threads_and_blocks_changes_no_bit(name, rows, parts, schedule, monkeypatch):
    requires("compiler")
    from culux.testing.cuda import EmulatedModule

    case = CASES[name]
    x, _, _, dy = case.arrays()
    found = launch(monkeypatch, case, rows, parts)
    run = EmulatedModule(found.kernel.program.text).kernel(found.kernel.name)
    results = []
    for how in ("in order", schedule):
        out = np.empty((parts, case.filters * x.shape[1] // case.groups * int(np.prod(case.kernel))), np.float32)
        pointers = (None, out) if parts == 1 else (out, None)
        run(found.grid, found.block, (dy, x, *pointers, found.geometry[0], np.int64(found.part)), schedule=how, seed=3)
        results.append(out.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("name", CASES)
def test_every_geometry(name, standin_cupy):
    case = CASES[name]
    x, _, _, dy = case.arrays("float64")
    found, total = conv_weight.gradient(standin_cupy.asarray(x), standin_cupy.asarray(dy), case.taps)
    assert total is None
    close(found, products(case.taps, x=x, dy=dy), "float64", scale=100)


TILES = [("float32", 1, 6), ("float32", 4, 1), ("float32", 32, 6), ("float32", 64, 1), ("float32", 64, 6)]
OTHERS = [(dtype, rows, parts) for dtype in DTYPES[1:] for rows, parts in ((4, 6), (64, 1))]


@pytest.mark.parametrize(("dtype", "rows", "parts"), TILES + OTHERS)
def test_every_dtype_and_every_tile(dtype, rows, parts, standin_cupy, monkeypatch):
    case = CASES["groups"]._replace(channels=15, filters=18)
    x, _, _, dy = case.arrays(dtype)
    found = launch(monkeypatch, case, rows, parts, dtype=x.dtype)
    monkeypatch.setattr(conv_weight, "_launch", lambda *args: found)
    partials = draw((3, 18), "float64" if dtype == "float64" else "float32")
    dweight, dbias = conv_weight.gradient(
        standin_cupy.asarray(x), standin_cupy.asarray(dy), case.taps, standin_cupy.asarray(partials)
    )
    close(dweight, products(case.taps, x=x, dy=dy), dtype, scale=20)
    close(dbias, partials.sum(0, np.float64), dtype, scale=5)


def test_launches_and_memory(standin_cupy):
    """One launch where the result has blocks enough, else two, with partial sums in float32; no other memory."""
    few, many = CASES["plain"]._replace(size=(40, 40)), CASES["plain"]._replace(channels=300, filters=300)
    for case, launches in ((few, 2), (many, 1)):
        x, _, _, dy = (standin_cupy.asarray(a) for a in case.arrays("float16"))
        counted = cost(conv_weight.gradient, x, dy, case.taps)
        assert (counted.launches, counted.allocations) == (launches, launches)
    partials = standin_cupy.asarray(draw((3, 5)))
    counted = cost(conv_weight.total, x, partials)
    assert counted.kernels == (("conv_weight_sum", 1),)


def test_the_parts():
    """Blocks for the whole chip, each with enough to do; none but one where there are blocks enough."""

    def parts(case, size):
        case = case._replace(size=size, batch=16)
        return conv_weight._launch(
            16, case.filters, case.channels // case.groups, case.taps, np.dtype(np.float32)
        ).parts

    small, square = CASES["plain"]._replace(channels=4, filters=4), (64, 64)
    assert parts(small, square) == 128  # 512 positions each
    assert parts(small, (4, 4)) == 1
    assert parts(small._replace(channels=64, filters=64), square) == 117  # 9 blocks for each
    assert parts(small._replace(channels=512, filters=512), square) == 1
    assert parts(small._replace(channels=64, filters=64, groups=64), square) == 8


def test_no_samples(standin_cupy):
    case = CASES["groups"]._replace(batch=0)
    x, weight, _, dy = (standin_cupy.asarray(a) for a in case.arrays())
    dweight, _ = conv_weight.gradient(x, dy, case.taps)
    assert dweight.shape == weight.shape
    assert not dweight.get().any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_geometry_on_a_gpu(dtype):
    cupy = requires("cupy")
    for case in (*CASES.values(), CASES["plain"]._replace(size=(70, 50), channels=40, filters=90)):
        x, _, _, dy = case.arrays(dtype)
        dweight, _ = conv_weight.gradient(cupy.asarray(x), cupy.asarray(dy), case.taps)
        close(dweight, products(case.taps, x=x, dy=dy), dtype, scale=200)
