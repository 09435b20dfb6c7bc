"""The kernels of recurrent layers: whole sequences, in one launch and by steps, against NumPy in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import culux
from culux import nn
from culux.kernels import recurrent
from culux.testing import cost
from tests.kernel_support import DTYPES, close, dtype_of, work

KINDS = {"rnn": 1, "gru": 3, "lstm": 4}
CARRIES = {"rnn": 1, "gru": 1, "lstm": 2}


def normal(rng, *shape):
    return rng.standard_normal(shape)


def problem(kind, batch, time, features, size, *, bias=True, seed=0):
    """x, the weights, both biases or none, and a carry, in float64."""
    rng, rows = np.random.default_rng(seed), KINDS[kind] * size
    arrays = [normal(rng, batch, time, features), normal(rng, rows, features), normal(rng, rows, size) / size**0.5]
    arrays += [normal(rng, rows), normal(rng, rows)] if bias else [None, None]
    return [*arrays, *(normal(rng, batch, size) for _ in range(CARRIES[kind]))]


def run(kind, arrays, **options):
    """All outputs, as a function of those arrays that there are."""
    missing = [a is None for a in arrays]

    def function(*given):
        given = iter(given)
        x, wx, wh, bx, bh, *carry = [None if gone else next(given) for gone in missing]
        y, after = getattr(nn, kind)(x, wx, wh, bx, bh, carry=tuple(carry) or None, **options)
        return (y, *after)

    return culux.vjp(function, *[a for a in arrays if a is not None])


def agree(kind, arrays, dtype, cupy, scale=1.0, **options):
    """Assert that CuPy arrays of this dtype have the outputs and cotangents of NumPy's in float64."""
    small = [None if a is None else a.astype(dtype_of(dtype)) for a in arrays]
    outputs, pullback = run(kind, [None if a is None else cupy.asarray(a) for a in small], **options)
    expected, back = run(kind, [None if a is None else a.astype(np.float64) for a in small], **options)
    for found, wanted in zip(outputs, expected, strict=True):
        close(found, wanted, dtype, scale)
    rng = np.random.default_rng(9)
    seeds = [normal(rng, *a.shape).astype(dtype_of(dtype)) for a in expected]
    found, wanted = pullback(tuple(map(cupy.asarray, seeds))), back(tuple(a.astype(np.float64) for a in seeds))
    for got, a in zip(found, wanted, strict=True):
        close(got, a, dtype, scale * max(1.0, np.abs(a).max(initial=0)))


@pytest.fixture(params=["whole", "steps"])
def way(request, monkeypatch):
    """The way that is taken where nothing is timed."""
    if request.param == "steps":
        monkeypatch.setattr(recurrent, "MOST_ROWS", -1)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype(kind, dtype, way, standin_cupy):
    agree(kind, problem(kind, 3, 4, 5, 6), dtype, standin_cupy, scale=4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("kind", "reverse"), [*itertools.product(KINDS, (False, True))])
def test_lengths(kind, reverse, dtype, way, standin_cupy):
    arrays = problem(kind, 5, 4, 3, 7)
    arrays[0][1, 1:] = np.nan
    agree(kind, arrays, dtype, standin_cupy, scale=4, lengths=[4, 1, 0, 3, 4], reverse=reverse)


@pytest.mark.parametrize(("kind", "reverse"), [*itertools.product(KINDS, (False, True))])
def test_without_biases(kind, reverse, way, standin_cupy):
    agree(kind, problem(kind, 2, 3, 4, 5, bias=False), "float32", standin_cupy, scale=4, reverse=reverse)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (0, 3, 2, 4), (300, 2, 3, 1), (2, 1, 3, 300), (3, 7, 1, 33)])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_no_block_divides(kind, shape, way, standin_cupy):
    agree(kind, problem(kind, *shape), "float32", standin_cupy, scale=10)


@pytest.mark.parametrize("activation", [nn.relu, nn.gelu, nn.identity, nn.leakyrelu.replace(slope=0.3)], ids=repr)
def test_activations(activation, way, standin_cupy):
    agree("rnn", problem("rnn", 3, 4, 5, 6), "float32", standin_cupy, scale=4, activation=activation)


def test_an_activation_of_ones_own_takes_the_portable_form(standin_cupy):
    def function(x, weight_ih, weight_hh):
        return nn.rnn(x, weight_ih, weight_hh, activation=lambda z: z * z)[0].sum()

    arrays = [a.astype(np.float32) for a in problem("rnn", 3, 4, 5, 6)[:3]]
    counted = cost(culux.gradient, function, *map(standin_cupy.asarray, arrays))
    assert not any("recurrent" in name for name, _ in counted.kernels)
    expected = culux.gradient(function, *[a.astype(np.float64) for a in arrays])
    for found, wanted in zip(culux.gradient(function, *map(standin_cupy.asarray, arrays)), expected, strict=True):
        close(found, wanted, "float32", scale=10 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_carry_and_only_some_outputs(kind, way, standin_cupy):
    arrays = [a.astype(np.float32) for a in problem(kind, 3, 4, 5, 6)[:5]]

    def last(*arrays):
        return (getattr(nn, kind)(*arrays)[1][-1] ** 2).sum()

    def first(*arrays):
        return (getattr(nn, kind)(*arrays)[0][:, 1] ** 2).sum()

    for function in (last, first):
        expected = culux.gradient(function, *[a.astype(np.float64) for a in arrays])
        for found, wanted in zip(culux.gradient(function, *map(standin_cupy.asarray, arrays)), expected, strict=True):
            close(found, wanted, "float32", scale=4 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_higher_derivatives(kind, standin_cupy):
    x, wx, wh, *_ = [a.astype(np.float32) for a in problem(kind, 2, 3, 2, 3)]

    def slope(x, wx, wh):
        grads = culux.gradient(lambda *a: (getattr(nn, kind)(*a, lengths=[3, 2])[0] ** 2).sum(), x, wx, wh)
        return sum((g**2).sum() for g in grads)

    expected = culux.gradient(slope, *[a.astype(np.float64) for a in (x, wx, wh)])
    for found, wanted in zip(culux.gradient(slope, *map(standin_cupy.asarray, (x, wx, wh))), expected, strict=True):
        close(found, wanted, "float32", scale=10 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_pullback_is_differentiated(kind, standin_cupy):
    arrays = problem(kind, 2, 3, 2, 3)
    slopes = []
    for place, dtype in ((standin_cupy.asarray, np.float32), (np.asarray, np.float64)):
        outputs, pullback = run(kind, [place(a.astype(dtype)) for a in arrays])
        slopes.append(
            culux.gradient(lambda *seeds, pullback=pullback: sum((part**2).sum() for part in pullback(seeds)), *outputs)
        )
    for found, wanted in zip(*slopes, strict=True):
        close(found, wanted, "float32", scale=10 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_not_cast(kind, standin_cupy):
    """The array library adds the two biases where they are one number, and no more."""
    arrays = [standin_cupy.asarray(a.astype(np.float16)) for a in problem(kind, 3, 4, 5, 6)]
    assert work(standin_cupy, lambda: run(kind, arrays)) == (2, int(kind != "gru"))


@pytest.mark.parametrize("kind", KINDS)
def test_strided_arrays_are_copied(kind, way, standin_cupy):
    x, wx, wh, bx, bh = [a.astype(np.float32) for a in problem(kind, 3, 4, 5, 6)[:5]]
    expected, _ = getattr(nn, kind)(*(a.astype(np.float64) for a in (x, wx, wh, bx, bh)))
    turned = [standin_cupy.asarray(np.ascontiguousarray(a.T)).T for a in (x, wx, wh)]
    y, _ = getattr(nn, kind)(*turned, standin_cupy.asarray(bx), standin_cupy.asarray(bh))
    close(y, expected, "float32", scale=4)


@pytest.mark.parametrize("kind", KINDS)
def test_launches(kind, way, standin_cupy):
    """The product of the inputs, and all steps; backward also the products of the weights' gradients."""
    arrays = [standin_cupy.asarray(a.astype(np.float32)) for a in problem(kind, 3, 6, 5, 4)]
    y, pullback = run(kind, arrays)
    forward, backward = cost(run, kind, arrays), cost(pullback, y)
    if way == "whole":
        steps = ("recurrent_sequence_forward", 1), ("recurrent_sequence_backward", 1)
        assert forward.kernels == (("dense_forward", 1), steps[0])
        assert backward.kernels == (("dense_backward", 1), ("gemm", 1), steps[1])
    else:
        assert forward.kernels == (("dense_forward", 1), ("gemm", 6), ("recurrent_forward", 6))
        assert backward.kernels == (("dense_backward", 1), ("gemm", 7), ("recurrent_backward", 6))


def test_what_does_not_fit_into_shared_memory_goes_by_steps(standin_cupy):
    sizes = (
        ("lstm", 118, True, True),
        ("lstm", 119, True, False),
        ("lstm", 120, False, False),
        ("gru", 130, True, True),
    )
    for kind, size, *whole in sizes:
        arrays = [standin_cupy.asarray(a.astype(np.float32)) for a in problem(kind, 2, 2, 1, size)]
        y, pullback = run(kind, arrays)
        names = [name for counted in (cost(run, kind, arrays), cost(pullback, y)) for name, _ in counted.kernels]
        found = [f"recurrent_sequence_{side}" in names for side in ("forward", "backward")]
        assert found == whole, (kind, size)
    large = [standin_cupy.zeros(shape, "float32") for shape in ((recurrent.MOST_ROWS + 1, 2, 1), (1, 1), (1, 1))]
    assert "recurrent_forward" in dict(cost(nn.rnn, *large).kernels)


def test_the_way_is_picked_by_measurement(monkeypatch, standin_cupy):
    asked = []

    def choose(operation, key, candidates, default, **timing):
        asked.append((operation, key, tuple(candidates), default))
        assert all(isinstance(part, int | str) for part in key)
        return "steps" if "recurrent" in operation else default

    monkeypatch.setattr(recurrent.tuning, "choose", choose)
    x, wx, wh = (standin_cupy.asarray(a.astype(np.float32)) for a in problem("gru", 3, 5, 2, 4)[:3])
    counted = cost(culux.gradient, lambda wh: nn.gru(x, wx, wh, lengths=[2, 5, 1])[0].sum(), wh)
    assert {"recurrent_forward", "recurrent_backward"} <= {name for name, _ in counted.kernels}
    assert [(name, default) for name, _, _, default in asked if "recurrent" in name] == [
        ("recurrent forward", "whole"), ("recurrent backward", "whole")
    ]  # fmt: skip
