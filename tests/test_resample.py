"""Upsample and PixelShuffle: against torch in every mode, special values, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import Bilinear, Chain, LPPool, NoOpLayer, PixelShuffle, Upsample, nn
from culux.errors import DTypeError, LayerError, ShapeError
from tests.arrays import normal

SHAPES = {"linear": (2, 3, 7), "bilinear": (1, 2, 5, 6), "trilinear": (1, 2, 3, 4, 5)}
HOWS = [
    {"scale": 2}, {"scale": 1}, {"scale": 2.5}, {"scale": 1.3}, {"scale": 0.6}, {"scale": 3.7}, {"size": 1},
    {"size": 4}, {"size": 11},
]  # fmt: skip


def against_torch(x, tolerance, mode, scale=None, size=None, align_corners=False):
    torch = pytest.importorskip("torch")
    y, pullback = culux.vjp(lambda x: nn.upsample(x, mode=mode, scale=scale, size=size, align_corners=align_corners), x)
    dy = normal(*y.shape, seed=1, dtype=x.dtype)
    theirs = torch.tensor(x.astype(np.float64), requires_grad=True)
    corners = None if mode == "nearest" else align_corners
    expected = torch.nn.functional.interpolate(theirs, size, scale, mode, corners)
    expected.backward(torch.tensor(dy.astype(np.float64)))
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(pullback(dy)[0], theirs.grad.numpy(), rtol=tolerance, atol=20 * tolerance)


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", SHAPES)
def test_linear_modes_against_torch(mode, align_corners, how):
    against_torch(normal(*SHAPES[mode]), 1e-12, mode, align_corners=align_corners, **how)


def test_nearest_keeps_to_its_factor():
    # Where the output is as long as the input, torch does so in one and three dimensions, and copies in two.
    np.testing.assert_array_equal(nn.upsample(np.arange(3.0).reshape(1, 1, 3), scale=1.3), [[[0, 0, 1]]])
    np.testing.assert_array_equal(nn.upsample(np.arange(3.0).reshape(1, 1, 3), size=3), [[[0, 1, 2]]])
    y = nn.upsample(np.arange(3.0).reshape(1, 1, 3), scale=41)  # float32 has 41 / 41 < 1
    np.testing.assert_array_equal(y, np.repeat(np.arange(3.0), 41)[None, None])


@pytest.mark.parametrize("how", [how for how in HOWS if how != {"scale": 1.3}], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values())
def test_nearest_against_torch(shape, how):
    against_torch(normal(*shape), 1e-13, "nearest", **how)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 3e-3)])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_lower_precision_against_torch(mode, dtype, tolerance):
    against_torch(normal(2, 2, 9, 4, dtype=dtype), tolerance, mode, scale=(1.7, 3.0))


def test_special_values_stay_with_their_neighbours():
    x = np.arange(8.0).reshape(1, 1, 8)
    x[0, 0, 2] = np.nan
    for mode, where in (("nearest", [4, 5]), ("linear", [3, 4, 5, 6])):
        y = nn.upsample(x, mode=mode, scale=2)
        assert np.flatnonzero(np.isnan(y)).tolist() == where


def test_derivatives_of_the_pullback():
    x = normal(1, 2, 4, 5)
    y, pullback = culux.vjp(lambda x: nn.upsample(x, mode="bilinear", scale=1.6), x)
    weight = normal(*x.shape, seed=2)
    found = culux.gradient(lambda dy: (pullback(dy)[0] * weight).sum(), normal(*y.shape, seed=1))
    np.testing.assert_allclose(found, nn.upsample(weight, mode="bilinear", scale=1.6), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_pixel_shuffle_against_torch(factor):
    torch = pytest.importorskip("torch")
    x = normal(2, 3 * factor**2, 4, 5)
    y, pullback = culux.vjp(lambda x: nn.pixel_shuffle(x, factor), x)
    np.testing.assert_array_equal(y, torch.nn.functional.pixel_shuffle(torch.tensor(x), factor).numpy())
    np.testing.assert_array_equal(pullback(y)[0], x)


def test_pixel_shuffle_of_three_axes():
    y = nn.pixel_shuffle(np.arange(8.0).reshape(1, 8, 1, 1, 1), 2)
    np.testing.assert_array_equal(y, np.arange(8.0).reshape(1, 1, 2, 2, 2))


def test_the_layers():
    x = normal(2, 4, 3, 5, dtype=np.float32)
    layer = Chain(Upsample("bilinear", scale=2), PixelShuffle(2), Upsample(size=(7, 3)))
    ps, st = culux.setup(0, layer)
    y, _ = layer(x, ps, st)
    assert culux.output_shape(layer, x.shape) == y.shape == (2, 1, 7, 3)
    assert culux.parameter_length(layer) == 0
    assert repr(Upsample("linear", scale=2, align_corners=True)) == "Upsample('linear', scale=2, align_corners=True)"
    assert nn.upsample(np.ones((0, 2, 4)), scale=2).shape == (0, 2, 8)


def test_refusals():
    x = normal(2, 3, 4, 4)
    with pytest.raises(LayerError, match=r"mode to be one of 'nearest', 'linear', .*, got int 2; Upsample\(scale=2\)"):
        Upsample(2)
    with pytest.raises(LayerError, match=r"upsample: expected mode to be one of .*, got str 'cubic'$"):
        nn.upsample(x, mode="cubic", scale=2)
    with pytest.raises(LayerError, match="Upsample: expected scale or size, got neither"):
        Upsample()
    with pytest.raises(LayerError, match="Upsample: expected scale or size, got both"):
        Upsample(scale=2, size=3)
    for scale in (0, -1.0, np.inf, True, (), (2, "3")):
        with pytest.raises(LayerError, match="expected scale to be a positive number or a tuple of them, got"):
            Upsample(scale=scale)
    for size in (0, 2.5, (3, 0)):
        with pytest.raises(LayerError, match="expected size to be a positive int or a tuple of them, got"):
            nn.upsample(x, size=size)
    with pytest.raises(LayerError, match="align_corners=True needs a linear mode, got mode='nearest'"):
        Upsample(scale=2, align_corners=True)
    with pytest.raises(ShapeError, match=r"expected size to have 2 numbers, one per spatial axis, got \(1, 2, 3\)"):
        nn.upsample(x, size=(1, 2, 3))
    with pytest.raises(ShapeError, match=r"leaves something of the spatial axes \(4, 4\), got 0.1 \(x has shape"):
        nn.upsample(x, scale=0.1)
    for shape in ((2, 3, 4), (2, 3, 0, 4)):
        with pytest.raises(ShapeError, match="with 2 spatial axes for mode='bilinear', none of them empty, got"):
            nn.upsample(np.ones(shape), mode="bilinear", scale=2)
    with pytest.raises(ShapeError, match="with 1 or 2 or 3 spatial axes for mode='nearest'"):
        nn.upsample(np.ones((2, 3)), scale=2)
    with pytest.raises(DTypeError, match="upsample: expected x to be a float array, got int64"):
        nn.upsample(np.ones((1, 1, 2), np.int64), scale=2)


def test_the_names_of_torch():
    with pytest.raises(LayerError, match=r"culux calls it scale: Upsample\(scale=2\)"):
        Upsample(scale_factor=2)
    with pytest.raises(LayerError, match=r"culux calls it factor, the first argument: PixelShuffle\(factor\)"):
        PixelShuffle(upscale_factor=2)
    with pytest.raises(LayerError, match=r"culux calls it p: LPPool\(window, p=2\)"):
        LPPool(2, norm_type=2)
    with pytest.raises(LayerError, match=r"culux calls it in_dims, a pair: Bilinear\(\(in1, in2\), out_dims\)"):
        Bilinear(in1_features=2, in2_features=3, out_features=4)


def test_what_pixel_shuffle_refuses():
    with pytest.raises(LayerError, match="PixelShuffle: expected factor to be a positive int, got int 0"):
        PixelShuffle(0)
    with pytest.raises(LayerError, match=r"pixel_shuffle: expected factor to be a positive int, got float 2\.0"):
        nn.pixel_shuffle(np.ones((1, 4, 2, 2)), 2.0)
    layer = Chain(NoOpLayer(), PixelShuffle(2))
    with pytest.raises(ShapeError, match=r"in layer_2 .*and channels that 2\*\*2 = 4 divides, got \(1, 6, 2, 2\)"):
        layer(np.ones((1, 6, 2, 2)), *culux.setup(0, layer))
    with pytest.raises(
        ShapeError, match=r"PixelShuffle: expected x of shape \(batch, channels, \*spatial\), got \(1, 4"
    ):
        culux.output_shape(PixelShuffle(2), (1, 4))
