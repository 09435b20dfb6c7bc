"""Embeddings of positions beside the catalogue: their tables, positions, precision, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

import culux
from culux import RotaryPositionalEmbedding, SinusoidalPositionalEmbedding, nn
from culux.errors import DTypeError, LayerError, ShapeError
from tests.arrays import normal
from tests.layers_support import ran
from tests.support import requires

X = normal(2, 5, 3, 8, dtype=np.float32)

# Sines and cosines


@pytest.mark.parametrize(
    ("fields", "sigmas"),
    [
        ({}, [1, 10**-1.0, 10**-2.0, 10**-3.0, 10**-4.0]),
        ({"min_freq": 0.5, "max_freq": 8.0}, [8, 4, 2, 1, 0.5]),
        ({"min_freq": 0.5, "max_freq": 8.0, "full_turns": True}, [16 * np.pi, 8 * np.pi, 4 * np.pi, 2 * np.pi, np.pi]),
    ],
)
def test_the_frequencies(fields, sigmas):
    layer = SinusoidalPositionalEmbedding(10, **fields)
    ps, st = culux.setup(0, layer)
    assert not ps
    assert st.sigmas.dtype == np.float32
    np.testing.assert_allclose(st.sigmas, sigmas, rtol=1e-6)


def test_positions_are_integers_or_floats():
    layer = SinusoidalPositionalEmbedding(8)
    y, ps, st = ran(layer, np.arange(100).reshape(4, 25))
    assert (y.shape, y.dtype) == ((4, 25, 8), np.float32)
    np.testing.assert_array_equal(y, layer(np.arange(100, dtype=np.float32).reshape(4, 25), ps, st)[0])
    angles = np.arange(100)[:, None] * 10 ** (-np.arange(4) * 4 / 3)
    np.testing.assert_allclose(y.reshape(100, 8), np.hstack([np.sin(angles), np.cos(angles)]) / 2, atol=1e-5)
    np.testing.assert_allclose((y**2).sum(-1), 1, rtol=1e-5)
    assert culux.output_shape(layer, (4, 25)) == y.shape
    scaled, _, _ = ran(SinusoidalPositionalEmbedding(8, scale=-2), np.arange(3))
    np.testing.assert_allclose(scaled, -4 * y[0, :3], rtol=1e-5, atol=1e-6)


def test_half_precision_turns_in_float32():
    layer = SinusoidalPositionalEmbedding(4, min_freq=0.5, max_freq=0.75)
    ps, st = culux.setup(0, layer)
    x = np.array([1001.0, 2001.0], np.float16)  # 0.5 and 0.75 are float16 numbers, the products not all
    exact = layer(x.astype(np.float64), ps, st)[0]
    for given, states in ((x, st), (x, culux.f16(st)), (x.astype(int), culux.f16(st))):
        y, _ = layer(given, ps, states)
        assert y.dtype == np.float16
        np.testing.assert_allclose(y, exact, atol=2e-3)


# Turns


def test_the_caches():
    _, st = culux.setup(0, RotaryPositionalEmbedding(8))
    angles = np.arange(4096)[:, None] / 10000.0 ** (np.arange(0, 8, 2) / 8)
    for cache, exact in ((st.cos_cache, np.cos(angles)), (st.sin_cache, np.sin(angles))):
        assert cache.dtype == np.float32
        np.testing.assert_allclose(cache, exact, atol=1e-7)
    _, st = culux.setup(0, RotaryPositionalEmbedding(4, max_sequence_length=3, base=4))
    np.testing.assert_allclose(st.sin_cache, np.sin([[0, 0], [1, 0.5], [2, 1]]), atol=1e-7)


def test_products_depend_on_the_distance_of_the_positions():
    layer = RotaryPositionalEmbedding(8)
    ps, st = culux.setup(0, layer, dtype=np.float64)
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)

    def product(i, j):
        return (layer((q, np.array([i])), ps, st)[0] * layer((k, np.array([j])), ps, st)[0]).sum()

    assert product(7, 3) == pytest.approx(product(1007, 1003), rel=1e-5)
    assert abs(product(7, 3) - product(7, 4)) > 1e-2
    assert product(5, 5) == pytest.approx((q * k).sum(), rel=1e-6)


def test_positions_choose_the_turns():
    layer = RotaryPositionalEmbedding(8, max_sequence_length=64)
    y, ps, st = ran(layer, X)
    np.testing.assert_allclose(y[:, 0], X[:, 0])
    positions = np.array([[0, 1, 2, 3, 4], [0, 10, 20, 40, 63]])
    found, after = layer((X, positions), ps, st)
    assert after == st
    np.testing.assert_array_equal(found[0], y[0])
    longer = np.zeros((1, 64, 3, 8), np.float32)
    longer[:, positions[1]] = X[1]
    np.testing.assert_array_equal(found[1], layer(longer, ps, st)[0][0, positions[1]])
    for same in (np.arange(5), list(range(5)), np.arange(5, dtype=np.uint8)):
        np.testing.assert_array_equal(layer((X, same), ps, st)[0], y)
    np.testing.assert_array_equal(layer(X[0], ps, st)[0], y[0])  # no batch
    assert culux.output_shape(layer, X.shape) == X.shape
    assert culux.output_shape(layer, (X.shape, (2, 5))) == culux.output_shape(layer, (X.shape, (5,))) == X.shape


def test_a_turn_keeps_lengths_and_the_gradient_turns_back():
    layer = RotaryPositionalEmbedding(8)
    y, ps, st = ran(layer, X)
    np.testing.assert_allclose((y**2).sum(-1), (X**2).sum(-1), rtol=1e-5)
    slope = culux.gradient(lambda x: (layer(x, ps, st)[0] ** 2).sum() / 2, X)
    np.testing.assert_allclose(slope, X, rtol=1e-4, atol=1e-5)
    slope = culux.gradient(lambda x: (layer((x, np.arange(5)), ps, culux.f64(st))[0] ** 2).sum() / 2, X)
    assert slope.dtype == np.float32
    np.testing.assert_allclose(slope, X, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_sines_alone():
    cos, sin = normal(5, 4), normal(5, 4, seed=1)
    slope = culux.gradient(lambda sin: (nn.apply_rotary_embedding(X, cos, sin)).sum(), sin)
    np.testing.assert_allclose(slope, (X[..., :4] - X[..., 4:]).sum((0, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_turned_in_float32(dtype):
    kind = requires("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    x = (10000 * X).astype(kind)
    layer = RotaryPositionalEmbedding(8)
    y, ps, st = ran(layer, x)
    assert y.dtype == kind
    exact = layer(x.astype(np.float64), ps, st)[0].astype(kind)
    np.testing.assert_array_equal(y, exact)


def test_positions_on_the_host_and_on_a_gpu(standin_cupy):
    layer = RotaryPositionalEmbedding(8, max_sequence_length=9)
    y, ps, st = ran(layer, X)
    device = culux.gpu_device()
    moved = device(X), device(ps), device(st)
    np.testing.assert_allclose(culux.to_numpy(layer(*moved)[0]), y, rtol=1e-6, atol=1e-7)
    for positions in (np.arange(5), standin_cupy.arange(5)):
        found, _ = layer((moved[0], positions), *moved[1:])
        np.testing.assert_allclose(culux.to_numpy(found), y, rtol=1e-6, atol=1e-7)
    with pytest.raises(ShapeError, match="expected positions from 0 to 8"):
        layer((moved[0], np.arange(5) + 5), *moved[1:])
    waves, ps, st = ran(SinusoidalPositionalEmbedding(8), np.arange(5))
    found, _ = SinusoidalPositionalEmbedding(8)(standin_cupy.arange(5), device(ps), device(st))
    np.testing.assert_allclose(culux.to_numpy(found), waves, rtol=1e-6, atol=1e-7)


# Refusals


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 10, 3, 8)), "expected at most max_sequence_length = 9 steps, got 10 (x has shape (2, 10, 3, 8)); "
         "RotaryPositionalEmbedding(8, max_sequence_length=10)"),
        (np.ones((2, 5, 3, 6)), "expected x of shape (batch, length, heads, 8), got (2, 5, 3, 6)"),
        (np.ones((5, 8)), "expected x of shape (batch, length, heads, 8), got (5, 8)"),
        ((X, np.arange(4)), "expected positions of shape (length,) = (5,) or (batch, length) = (2, 5), got (4,) "
         "(x has shape (2, 5, 3, 8))"),
        ((X, np.zeros((5, 2), int)), "expected positions of shape (length,) = (5,) or (batch, length) = (2, 5), got"),
        ((X,), "expected x or the tuple (x, positions), got a tuple of 1"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_told_alike_by_the_call_and_by_output_shape(x, message):
    layer = RotaryPositionalEmbedding(8, max_sequence_length=9)
    ps, st = culux.setup(0, layer)
    located = re.escape(f"in RotaryPositionalEmbedding(8, max_sequence_length=9): {message}")
    with pytest.raises(ShapeError, match=located):
        layer(x, ps, st)
    with pytest.raises(ShapeError, match=located):
        culux.output_shape(layer, culux.tree.map(np.shape, x) if isinstance(x, tuple) else x.shape)


def test_positions_that_are_not_there():
    layer = RotaryPositionalEmbedding(8, max_sequence_length=9)
    ps, st = culux.setup(0, layer)
    for positions, found in ((np.arange(5) + 5, "5 to 9"), (np.arange(5) - 1, "-1 to 3")):
        message = rf"expected positions from 0 to 8 \(max_sequence_length is 9\), got {found}"
        with pytest.raises(ShapeError, match=message):
            layer((X, positions), ps, st)
    message = "RotaryPositionalEmbedding: expected integer positions, got float64 array .*positions.astype"
    with pytest.raises(DTypeError, match=message):
        layer((X, np.arange(5.0)), ps, st)
    message = "SinusoidalPositionalEmbedding: expected integer positions, got bool array"
    layer = SinusoidalPositionalEmbedding(4)
    with pytest.raises(DTypeError, match=message):
        layer(np.array([True]), *culux.setup(0, layer))
    with pytest.raises(LayerError, match="expected x to be an array, got int 3"):
        layer(3, *culux.setup(0, layer))


def test_states_of_another_model():
    layer, other = RotaryPositionalEmbedding(8), RotaryPositionalEmbedding(8, max_sequence_length=9)
    with pytest.raises(ShapeError, match=r"expected st.cos_cache of shape \(4096, 4\), got float32 array of shape \(9"):
        layer(X, *culux.setup(0, other))
    layer, other = SinusoidalPositionalEmbedding(8), SinusoidalPositionalEmbedding(6)
    with pytest.raises(ShapeError, match=r"expected st.sigmas of shape \(4,\), got float32 array of shape \(3,\)"):
        layer(np.arange(3), *culux.setup(0, other))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(5, 3, 7), (5, 3), (5, 3)], "expected x of shape (..., length, heads, dims), dims even, and cos and sin of "
         "shape (length, dims / 2) or (..., length, dims / 2), got (5, 3, 7), (5, 3) and (5, 3)"),
        ([(3, 8), (3, 4), (3, 4)], "got (3, 8), (3, 4) and (3, 4)"),
        ([(2, 5, 3, 8), (3, 4), (3, 4)], "got (2, 5, 3, 8), (3, 4) and (3, 4)"),
        ([(2, 5, 3, 8), (1, 5, 4), (1, 5, 4)], "got (2, 5, 3, 8), (1, 5, 4) and (1, 5, 4)"),
        ([(2, 5, 3, 8), (5, 4), (2, 5, 4)], "got (2, 5, 3, 8), (5, 4) and (2, 5, 4)"),
    ],
)  # fmt: skip
def test_what_the_function_refuses(shapes, message):
    with pytest.raises(ShapeError, match="apply_rotary_embedding: " + ".*" + re.escape(message)):
        nn.apply_rotary_embedding(*[np.ones(shape) for shape in shapes])
    arrays = {"x": X, "cos": normal(5, 4), "sin": normal(5, 4)}
    for name in arrays:
        wrong = {**arrays, name: arrays[name].astype(int)}
        with pytest.raises(DTypeError, match=f"apply_rotary_embedding: expected {name} to be a float array, got int64"):
            nn.apply_rotary_embedding(**wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SinusoidalPositionalEmbedding(0), "expected dims to be a positive int, got int 0"),
        (lambda: SinusoidalPositionalEmbedding(5), "expected dims to be even, got 5; the features are pairs"),
        (lambda: SinusoidalPositionalEmbedding(4, min_freq=0), "expected min_freq to be positive, got 0"),
        (lambda: SinusoidalPositionalEmbedding(4, max_freq="1"), "expected max_freq to be a number, got str '1'"),
        (lambda: SinusoidalPositionalEmbedding(4, scale=True), "expected scale to be a number, got bool True"),
        (lambda: SinusoidalPositionalEmbedding(4, full_turns=1), "expected full_turns to be a bool, got int 1"),
        (lambda: RotaryPositionalEmbedding(5), "RotaryPositionalEmbedding: expected dims to be even, got 5"),
        (lambda: RotaryPositionalEmbedding(4, max_sequence_length=0), "expected max_sequence_length to be a positive"),
        (lambda: RotaryPositionalEmbedding(4, base=-1), "expected base to be positive, got -1"),
        (lambda: RotaryPositionalEmbedding(4, max_seq_len=9),
         "RotaryPositionalEmbedding takes no max_seq_len=; culux calls it max_sequence_length"),
        (lambda: RotaryPositionalEmbedding(4, theta=9), "takes no theta=; culux calls it base"),
    ],
)  # fmt: skip
def test_wrong_arguments(make, message):
    with pytest.raises(LayerError, match=re.escape(message)):
        make()
