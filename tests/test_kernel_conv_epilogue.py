"""Bias and activation beside the products of a convolution, and their gradients."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from culux import nn
from culux.kernels import conv_epilogue, conv_weight
from culux.testing import cost
from tests.conv_support import draw
from tests.kernel_support import DTYPES, check, close

RECORDS = [nn.identity, nn.gelu, nn.tanh]
# Planes of whole packs and not, more channels than blocks are wanted, long and short channels.
SHAPES = [(2, 3, 4, 4), (3, 5, 7), (1, 1, 1), (2, 600, 3, 3, 1), (40, 2, 16, 9), (2, 1, 61, 67)]


@pytest.fixture
def cut(monkeypatch):
    """Channels in parts of 256 packs and more."""
    monkeypatch.setattr(conv_epilogue, "PACKS", 1)


def saved_by(record, z):
    y = record.forward(np, z.astype(np.float64)).astype(z.dtype)
    return {"x": z, "y": y, None: None}[record.saves], y


def derivative(record, saved):
    return 1.0 if saved is None else record.derivative(np, *[saved.astype(np.float64)] * 2)


@pytest.mark.parametrize(("record", "plane"), [(nn.identity, 8), (nn.gelu, 9), (nn.tanh, 8)])
def test_the_kernels_pass_every_check(record, plane):
    z, bias, dy = draw((150, 3, plane)), draw((3,)), draw((150, 3, plane), seed=1)
    sums = z.astype(np.float64) + bias[:, None]
    options = {"activation": record.cuda()}
    packs = 150 * -(-plane // 4)
    part = packs // 2 + 5  # the second is shorter
    forward = conv_epilogue.get_kernel("conv_epilogue", "conv_epilogue_forward", z.dtype, **options)
    check(
        forward, (6,), (256,), z.copy(), bias, np.empty_like(z), True, 150, 3, plane, part,
        inout=(0,), reference=lambda *_: (sums, record.forward(np, sums)),
    )  # fmt: skip
    saved, _ = saved_by(record, z)
    dz = dy * derivative(record, saved)
    number = np.arange(packs).reshape(150, 1, -1).repeat(4, 2)[:, :, :plane] // part
    partials = np.stack([np.where(number == i, dz, 0).sum((0, 2)) for i in range(2)])
    backward = conv_epilogue.get_kernel("conv_epilogue", "conv_epilogue_backward", z.dtype, **options)
    for pointers, grid, step, wanted in (
        ((np.empty((2, 3), np.float32), None), (6,), part, (dz, partials)),
        ((None, np.empty(3, np.float32)), (3,), packs, (dz, partials.sum(0))),
    ):
        check(
            backward, grid, (256,), dy, saved, np.empty_like(dy), *pointers, 150, 3, plane, step,
            reference=lambda *_, wanted=wanted: wanted, atol=1e-4,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("record", RECORDS, ids=repr)
def test_forward(record, dtype, cut, standin_cupy):
    for shape in SHAPES:
        z, bias = draw(shape, dtype), draw(shape[1:2], dtype, 1)
        shift = bias.astype(np.float64).reshape(-1, *[1] * (len(shape) - 2))
        for keep, given in ((True, bias), (False, bias), (False, None)):
            there = standin_cupy.asarray(z)
            sums = z.astype(np.float64) + (0 if given is None else shift)
            y = conv_epilogue.forward(
                there, None if given is None else standin_cupy.asarray(bias), record.cuda(), keep=keep
            )
            close(y, record.forward(np, sums), dtype, scale=5)
            assert (y is there) is not keep
            if keep:
                close(there, sums, dtype, scale=5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("record", RECORDS, ids=repr)
def test_backward(record, dtype, cut, standin_cupy):
    seen = set()
    for shape in SHAPES:
        saved, _ = saved_by(record, draw(shape, dtype))
        dy = draw(shape, dtype, 1)
        wanted = dy.astype(np.float64) * derivative(record, saved)
        given = standin_cupy.asarray(dy)
        kept = None if saved is None else standin_cupy.asarray(saved)
        dz, dbias, partials = conv_epilogue.backward(given, kept, record.cuda(), bias=True)
        assert (dbias is None) is not (partials is None)
        seen.add(partials is None)
        if partials is not None:
            assert partials.dtype == (np.float64 if dtype == "float64" else np.float32)
            dbias = conv_weight.total(dz, partials)
        close(dz, wanted, dtype, scale=5)
        close(dbias, wanted.sum((0, *range(2, dy.ndim))), dtype, scale=20)
        assert (dz is given) is (record.saves is None)
        alone = conv_epilogue.backward(given, kept, record.cuda(), bias=False)
        assert alone[1:] == (None, None)
        close(alone[0], wanted, dtype, scale=5)
    assert seen == {True, False}


def test_launches(standin_cupy):
    dy, z = standin_cupy.asarray(draw((2, 3, 4))), standin_cupy.asarray(draw((2, 3, 4), seed=1))
    for record, bias, launches, allocations in (
        (nn.identity, False, 0, 0), (nn.identity, True, 1, 1), (nn.gelu, False, 1, 1), (nn.gelu, True, 1, 2),
    ):  # fmt: skip
        counted = cost(
            functools.partial(conv_epilogue.backward, bias=bias), dy, None if record.saves is None else z, record.cuda()
        )
        assert (counted.launches, counted.allocations) == (launches, allocations)


def test_nothing_at_all(standin_cupy):
    empty = standin_cupy.asarray(draw((0, 3, 4)))
    assert conv_epilogue.forward(empty, None, nn.relu.cuda(), keep=False).shape == (0, 3, 4)
    dz, dbias, partials = conv_epilogue.backward(empty, empty, nn.relu.cuda(), bias=True)
    assert (dz.shape, partials) == ((0, 3, 4), None)
    assert not dbias.get().any()
