"""Adaptive, global and power-mean pooling: against torch, ties, special values, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import nn
from culux.errors import DTypeError, LayerError, ShapeError
from culux.layers import (
    AdaptiveLPPool,
    AdaptiveMaxPool,
    AdaptiveMeanPool,
    Chain,
    GlobalLPPool,
    GlobalMaxPool,
    GlobalMeanPool,
    LPPool,
    NoOpLayer,
)
from tests.arrays import normal

SHAPES = [((2, 3, 11), 4), ((2, 3, 10, 7), (3, 7)), ((1, 2, 5, 4), 1), ((1, 1, 3, 3), (7, 5)), ((1, 2, 4, 5, 6), 3)]


def torch_pool(kind, x, dy, out):
    """Torch's y and dx in float64."""
    torch = pytest.importorskip("torch")
    theirs = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    y = getattr(torch.nn.functional, f"adaptive_{kind}_pool{x.ndim - 2}d")(theirs, out)
    y.backward(torch.tensor(np.asarray(dy, np.float64)))
    return y.detach().numpy(), theirs.grad.numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5), ("float16", 1e-2)])
@pytest.mark.parametrize(("shape", "out"), SHAPES)
@pytest.mark.parametrize(("pool", "kind"), [(nn.adaptive_meanpool, "avg"), (nn.adaptive_maxpool, "max")])
def test_against_torch(pool, kind, shape, out, dtype, tolerance):
    x = normal(*shape, dtype=dtype)
    y, pullback = culux.vjp(lambda x: pool(x, out), x)
    dy = normal(*y.shape, seed=1, dtype=dtype)
    expected, gradient = torch_pool(kind, x, dy, out)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(pullback(dy)[0], gradient, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_ties_go_to_the_first(shape, out):
    x = np.round(normal(*shape))
    y, pullback = culux.vjp(lambda x: nn.adaptive_maxpool(x, out), x)
    dy = normal(*y.shape, seed=1)
    np.testing.assert_allclose(pullback(dy)[0], torch_pool("max", x, dy, out)[1], rtol=1e-12, atol=1e-14)


def test_special_values_stay_in_their_windows():
    x = normal(1, 1, 7, 8)
    x[0, 0, 2, 1], x[0, 0, 6, 7] = np.nan, np.inf
    for pool, kind in ((nn.adaptive_meanpool, "avg"), (nn.adaptive_maxpool, "max")):
        expected, _ = torch_pool(kind, x, np.ones((1, 1, 3, 4)), (3, 4))
        np.testing.assert_allclose(pool(x, (3, 4)), expected, rtol=1e-12)


@pytest.mark.parametrize(("window", "p", "stride"), [(2, 2, None), ((3, 2), 4, 1), (3, 1, 2), (2, 3, None)])
def test_lppool_against_torch(window, p, stride):
    torch = pytest.importorskip("torch")
    x = np.abs(normal(2, 3, 7, 6)) if p % 2 else normal(2, 3, 7, 6)
    y, pullback = culux.vjp(lambda x: nn.lppool(x, window, p=p, stride=stride), x)
    dy = normal(*y.shape, seed=1)
    theirs = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.lp_pool2d(theirs, float(p), window, stride)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(pullback(dy)[0], theirs.grad.numpy(), rtol=1e-10)


def test_power_means_of_signs_and_zeros():
    x = np.array([[[-1.0, -2.0, 3.0, 4.0, 0.0, 0.0]]])
    with np.errstate(invalid="ignore"):
        y = nn.lppool(x, 2, p=3)
    assert np.isnan(y[0, 0, 0])
    np.testing.assert_allclose(y[0, 0, 1:], [91 ** (1 / 3), 0])
    np.testing.assert_array_equal(nn.lppool(x, 2, p=1), [[[-3, 7, 0]]])
    for f in (lambda x: nn.lppool(x, 2), lambda x: nn.adaptive_lppool(x, 3)):
        np.testing.assert_allclose(culux.gradient(lambda x, f=f: f(x).sum(), x)[0, 0, 2:], [0.6, 0.8, 0, 0])


def test_half_precision_sums_in_float32():
    x = np.full((1, 1, 300, 300), 10, np.float16)
    assert nn.adaptive_meanpool(x, 1)[0, 0, 0, 0] == 10
    assert nn.adaptive_lppool(x, 1)[0, 0, 0, 0] == 3000
    assert nn.lppool(x, 300)[0, 0, 0, 0] == 3000


def test_the_layers():
    x = normal(2, 3, 7, 5, dtype=np.float32)
    for layer, expected in (
        (GlobalMeanPool(), x.mean((2, 3), keepdims=True)),
        (GlobalMaxPool(), x.max((2, 3), keepdims=True)),
        (GlobalLPPool(), np.sqrt((x**2).sum((2, 3), keepdims=True))),
        (AdaptiveMeanPool((1, None)), x.mean(2, keepdims=True)),
        (AdaptiveMaxPool((None, 1)), x.max(3, keepdims=True)),
        (AdaptiveLPPool(1, p=4), (x**4).sum((2, 3), keepdims=True) ** 0.25),
        (LPPool((7, 5)), np.sqrt((x**2).sum((2, 3), keepdims=True))),
    ):
        ps, st = culux.setup(0, layer)
        y, after = layer(x, ps, st)
        np.testing.assert_allclose(y, expected, rtol=1e-5)
        assert culux.output_shape(layer, x.shape) == y.shape
        assert after == st == ps == culux.Tree()
    assert repr(AdaptiveMeanPool((1, None))) == "AdaptiveMeanPool((1, None))"
    assert AdaptiveMeanPool([2, 3]) == AdaptiveMeanPool((2, 3)) != AdaptiveMaxPool((2, 3))
    assert nn.adaptive_maxpool(np.ones((0, 2, 4)), 2).shape == (0, 2, 2)


def test_refusals():
    x = normal(2, 3, 6, 6)
    for size in (0, 2.0, True, (), (2, "3")):
        for call in (lambda s: nn.adaptive_meanpool(x, s), AdaptiveMaxPool, AdaptiveLPPool):
            with pytest.raises(LayerError, match="expected output_size to be a positive int, None for the input's le"):
                call(size)
    for p in (0, -1, np.inf, True, "2"):
        for call in (lambda p: nn.lppool(x, 2, p=p), lambda p: LPPool(2, p=p), lambda p: GlobalLPPool(p=p)):
            with pytest.raises(LayerError, match=r"expected p to be a number > 0, got .*; for the maximum use maxpool"):
                call(p)
    with pytest.raises(LayerError, match="LPPool: expected window to be an int of at least 1"):
        LPPool(0)
    with pytest.raises(ShapeError, match=r"expected output_size to have 2 numbers, .*, got \(1, 2, 3\) \(x has shape"):
        nn.adaptive_maxpool(x, (1, 2, 3))
    for shape in ((2, 3), (2, 3, 0), (1,) * 6):
        with pytest.raises(ShapeError, match=r"adaptive_lppool: expected x of shape .* none of them empty, got"):
            nn.adaptive_lppool(np.ones(shape), 1)
    for pool in (nn.adaptive_meanpool, nn.adaptive_maxpool, nn.adaptive_lppool, nn.lppool):
        with pytest.raises(DTypeError, match=f"{pool.__name__}: expected x to be a float array, got int64"):
            pool(np.ones((1, 1, 2), np.int64), 1)
    layer = Chain(NoOpLayer(), GlobalMeanPool())
    with pytest.raises(ShapeError, match=r"in layer_2 \(GlobalMeanPool\(\)\): adaptive_meanpool: expected x of shape"):
        layer(normal(2, 3), *culux.setup(0, layer))
    with pytest.raises(ShapeError, match="GlobalMeanPool: expected x of shape"):
        culux.output_shape(layer, (2, 3))
