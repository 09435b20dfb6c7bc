"""Pooling: `nn.maxpool`, `nn.meanpool` and their layers, on the host, against torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import culux
from culux import MaxPool, MeanPool, nn
from culux.errors import DTypeError, LayerError, ShapeError

# shape, window, stride, padding, dilation
CASES = {
    "default": ((2, 3, 6, 8), 2, None, 0, 1),
    "odd size": ((2, 3, 7, 5), 2, None, 0, 1),
    "overlap": ((1, 2, 7, 9), 3, 2, 1, 1),
    "overlap, stride 1": ((1, 1, 6, 6), (3, 4), 1, (1, 2), 1),
    "gaps": ((2, 1, 9, 8), 2, 3, 1, 1),
    "one axis": ((2, 3, 11), 3, 2, 1, 1),
    "three axes": ((1, 2, 5, 6, 7), (2, 3, 1), (2, 1, 3), (1, 0, 0), 1),
    "whole": ((2, 2, 4, 3), (4, 3), None, 0, 1),
    "one": ((2, 2, 3, 4), 1, None, 0, 1),
    "no samples": ((0, 2, 4, 4), 2, None, 0, 1),
    "large window": ((1, 1, 40, 20), (20, 18), 3, 2, 1),
    "dilated": ((2, 3, 9, 8), 3, 2, 1, 2),
    "dilated, one axis": ((1, 2, 13), 3, None, 1, 4),
    "dilated, one place of a window before the input": ((3, 4, 13), 4, 1, 2, 3),
    "dilated, three axes": ((1, 2, 6, 7, 5), (2, 3, 1), 1, (1, 1, 0), (3, 2, 5)),
    "dilated, stride of its divisor": ((2, 1, 12, 14), (3, 4), (2, 3), (1, 2), (4, 3)),
    "dilated, large window": ((1, 1, 40, 38), (20, 18), 1, (5, 0), 2),
}
OURS = {"max": nn.maxpool, "mean": nn.meanpool}


def sample(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def torch_pool(kind, x, dy, window, stride, padding, dilation=1):
    """Torch's y and dx in float64."""
    torch = pytest.importorskip("torch")
    theirs = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    axes, functional = x.ndim - 2, torch.nn.functional
    if kind == "max":
        y = getattr(functional, f"max_pool{axes}d")(theirs, window, stride, padding, dilation)
    elif dilation == 1:
        y = getattr(functional, f"avg_pool{axes}d")(theirs, window, stride, padding)
    else:  # torch's mean knows no dilation: a convolution of every channel with equal weights
        lengths = (window,) * axes if isinstance(window, int) else window
        weight = torch.full((x.shape[1], 1, *lengths), 1 / np.prod(lengths), dtype=torch.float64)
        y = getattr(functional, f"conv{axes}d")(
            theirs, weight, None, window if stride is None else stride, padding, dilation, x.shape[1]
        )
    if dy is not None:
        y.backward(torch.tensor(np.asarray(dy, np.float64)))
    return y.detach().numpy(), None if dy is None else theirs.grad.numpy()


@pytest.mark.parametrize("kind", ["max", "mean"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5), ("float16", 1e-2)])
def test_against_torch(kind, case, dtype, tolerance):
    shape, window, *rest = CASES[case]
    x, options = sample(shape, dtype), dict(zip(("stride", "padding", "dilation"), rest, strict=True))
    y, pullback = culux.vjp(lambda x: OURS[kind](x, window, **options), x)
    dy = sample(y.shape, dtype, 1)
    expected, gradient = torch_pool(kind, x, dy, window, **options)
    (dx,) = pullback(dy)
    assert (y.dtype, dx.dtype) == (x.dtype, x.dtype)
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(dx, gradient, rtol=tolerance, atol=tolerance * 10)


def test_ties_go_to_the_first():
    x = np.round(sample((2, 3, 9, 9)))
    for options in itertools.product((2,), (0, 1), (1, 3)):
        named = dict(zip(("stride", "padding", "dilation"), options, strict=True))
        y, pullback = culux.vjp(lambda x, named=named: nn.maxpool(x, 3, **named), x)
        dy = sample(y.shape, seed=1)
        np.testing.assert_allclose(pullback(dy)[0], torch_pool("max", x, dy, 3, *options)[1], rtol=1e-12)


def test_a_cotangent_of_nan_stays_in_its_place():
    x, dy = sample((1, 1, 6, 6)), sample((1, 1, 3, 3))
    dy[0, 0, 0], dy[0, 0, 2, 1] = np.nan, np.inf
    (dx,) = culux.vjp(lambda x: nn.maxpool(x, 2), x)[1](dy)
    np.testing.assert_array_equal(dx, torch_pool("max", x, dy, 2, 2, 0)[1])


def test_nan_and_infinities_are_torchs():
    x = sample((2, 2, 8, 8))
    x[0, 0, ::3, ::2], x[1, 1, 1, 1], x[1, 0], x[0, 1, 2] = np.nan, np.inf, -np.inf, -np.inf
    for padding, dilation in itertools.product((0, 1), (1, 2)):
        y, pullback = culux.vjp(lambda x, p=padding, d=dilation: nn.maxpool(x, 2, padding=p, dilation=d), x)
        dy = sample(y.shape, seed=1)
        expected, gradient = torch_pool("max", x, dy, 2, 2, padding, dilation)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_allclose(pullback(dy)[0], gradient, rtol=1e-12)
    np.testing.assert_array_equal(
        np.isnan(nn.meanpool(np.where(np.isnan(x), x, 0), 2)), np.isnan(torch_pool("mean", x, None, 2, 2, 0)[0])
    )


def test_windows_between_whose_elements_the_input_lies():
    # One row, two elements of a window on either side of it: the maximum is that of padding, and nothing comes back.
    x = sample((1, 2, 1, 5))
    y, pullback = culux.vjp(lambda x: nn.maxpool(x, 2, stride=1, padding=1, dilation=2), x)
    np.testing.assert_array_equal(y, torch_pool("max", x, None, 2, 1, 1, 2)[0])
    assert np.isneginf(y).all()
    np.testing.assert_array_equal(pullback(np.ones_like(y))[0], np.zeros_like(x))
    again = culux.gradient(lambda dy: (pullback(dy)[0] ** 2).sum(), np.ones_like(y))
    np.testing.assert_array_equal(again, np.zeros_like(y))
    np.testing.assert_array_equal(nn.meanpool(x, 2, stride=1, padding=1, dilation=2), np.zeros_like(y))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's, of its copy
@pytest.mark.parametrize(("window", "dilation"), [(1, 2), (2, 1), (3, 1), ((2, 5), 1), ((4, 1), 1), ((3, 4), 3)])
@pytest.mark.parametrize("kind", ["max", "mean"])
def test_same_is_that_of_torchs_convolutions(kind, window, dilation):
    torch = pytest.importorskip("torch")
    x = sample((1, 1, 6, 7))
    y = OURS[kind](x, window, stride=1, padding="same", dilation=dilation)
    assert y.shape == x.shape
    lengths = window if isinstance(window, tuple) else (window, window)
    if kind == "mean":
        weight = torch.full((1, 1, *lengths), 1 / np.prod(lengths), dtype=torch.float64)
        expected = torch.nn.functional.conv2d(torch.tensor(x), weight, padding="same", dilation=dilation).numpy()
    else:
        spans = [(n - 1) * dilation for n in lengths]
        padded = np.pad(x[0, 0], [(n // 2, n - n // 2) for n in spans], constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, [n + 1 for n in spans])
        expected = windows[:, :, ::dilation, ::dilation].max((2, 3))[None, None]
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    np.testing.assert_array_equal(OURS[kind](x, 2, padding="valid"), OURS[kind](x, 2))


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kind", ["max", "mean"])
def test_derivatives_of_every_order(kind, dilation):
    x, pool = sample((1, 2, 5, 6)), OURS[kind]

    def f(x):
        return (pool(x, (3, 2), stride=2, padding=1, dilation=dilation) ** 3).sum()

    def slope(x):
        return (culux.gradient(f, x) ** 2).sum()

    found, step = culux.gradient(slope, x), 1e-5
    for i in np.random.default_rng(0).integers(0, x.size, 8):
        shift = np.zeros(x.size)
        shift[i] = step
        shift = shift.reshape(x.shape)
        expected = (slope(x + shift) - slope(x - shift)) / (2 * step)
        np.testing.assert_allclose(found.flat[i], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("kind", ["max", "mean"])
def test_the_pullback_is_differentiated(kind, dilation):
    # A cotangent that is traced, the input plain: the pullback is linear, and its transpose is the pool of the places.
    x, pool = sample((2, 1, 7, 7)), OURS[kind]
    y, pullback = culux.vjp(lambda x: pool(x, 3, stride=2, padding=1, dilation=dilation), x)
    dy, weight = sample(y.shape, seed=1), sample(x.shape, seed=2)
    found = culux.gradient(lambda dy: (pullback(dy)[0] * weight).sum(), dy)
    for i in range(y.size):
        unit = np.zeros(y.size)
        unit[i] = 1
        np.testing.assert_allclose(found.flat[i], (pullback(unit.reshape(y.shape))[0] * weight).sum(), atol=1e-12)
    again = culux.gradient(lambda dy: (culux.gradient(lambda d: (pullback(d)[0] ** 3).sum(), dy) ** 2).sum(), dy)
    assert np.isfinite(again).all()


def test_places_that_a_byte_does_not_reach():
    x, weight = np.arange(300.0)[None, None], sample((300,))
    y, pullback = culux.vjp(lambda x: nn.maxpool(x, 90, stride=1, dilation=3), x)
    found = culux.gradient(lambda dy: (pullback(dy)[0] * weight).sum(), np.ones_like(y))
    np.testing.assert_array_equal(found[0, 0], weight[3 * 89 :])


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_another_library(kind, strict):
    import array_api_strict as xp

    x = sample((2, 2, 6, 5))
    for dilation in (1, 2):
        y = OURS[kind](xp.asarray(x), 3, stride=2, padding=1, dilation=dilation)
        np.testing.assert_allclose(np.from_dlpack(y), torch_pool(kind, x, None, 3, 2, 1, dilation)[0], rtol=1e-12)


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_the_portable_form(kind, tmp_path):
    # What arrays get that the rules do not take: here a memmap.
    x = np.memmap(tmp_path / "x", np.float64, "w+", shape=(2, 3, 8, 6))
    x[:] = np.round(sample(x.shape))
    y, pullback = culux.vjp(lambda x: OURS[kind](x, 3, stride=2, padding=1), x)
    dy = sample(y.shape, seed=1)
    expected, gradient = torch_pool(kind, np.array(x), dy, 3, 2, 1)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    np.testing.assert_allclose(pullback(dy)[0], gradient, rtol=1e-12, atol=1e-12)


def test_strided_inputs():
    x = sample((3, 6, 8, 2)).transpose(3, 0, 1, 2)
    for pool in OURS.values():
        np.testing.assert_array_equal(pool(x, 2), pool(np.ascontiguousarray(x), 2))


def test_what_comes_is_not_written():
    x = sample((1, 1, 4, 4))
    kept = x.copy()
    y, pullback = culux.vjp(lambda x: nn.maxpool(x, 1), x)
    y += 1
    pullback(np.ones_like(y))[0][:] = 7
    nn.meanpool(x, 1)[:] = 5
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize("kind", [MaxPool, MeanPool])
def test_the_layers(kind):
    name = kind.__name__
    layer = culux.Chain(kind(3, stride=2, padding=1), kind((2, 1), dilation=(1, 3)))
    ps, st = culux.setup(0, layer)
    x = sample((2, 3, 9, 8))
    y, _ = layer(x, ps, st)
    pool = OURS["max" if kind is MaxPool else "mean"]
    np.testing.assert_array_equal(y, pool(pool(x, 3, stride=2, padding=1), (2, 1), dilation=(1, 3)))
    assert culux.output_shape(layer, x.shape) == y.shape == (2, 3, 2, 4)
    assert culux.parameter_length(layer) == 0
    assert repr(kind((2, 3), padding="same")) == f"{name}((2, 3), padding='same')"
    assert kind([2, 3]) == kind((2, 3))
    assert culux.output_shape(kind(2), (5, 1, 7)) == (5, 1, 3)
    assert culux.output_shape(kind((3, 2), stride=1, dilation=(2, 3)), (5, 1, 7, 6)) == (5, 1, 3, 3)


def test_refusals():
    x = sample((2, 3, 6, 6))
    for window in (0, -1, 2.0, True, (), (2, 0), "2"):
        with pytest.raises(
            LayerError, match="maxpool: expected window to be an int of at least 1 or a tuple of them, got"
        ):
            nn.maxpool(x, window)
        with pytest.raises(LayerError, match="MaxPool: expected window to be an int of at least 1"):
            MaxPool(window)
    with pytest.raises(LayerError, match="MeanPool: expected stride to be an int of at least 1"):
        MeanPool(2, stride=0)
    for dilation in (0, 1.5, (1, 0), None):
        with pytest.raises(
            LayerError, match="maxpool: expected dilation to be an int of at least 1 or a tuple of them"
        ):
            nn.maxpool(x, 2, dilation=dilation)
        with pytest.raises(LayerError, match="LPPool: expected dilation to be an int of at least 1"):
            culux.LPPool(2, dilation=dilation)
    with pytest.raises(ShapeError, match=r"expected dilation to have 2 numbers, one per spatial axis, got \(1, 2, 1\)"):
        nn.meanpool(x, 2, dilation=(1, 2, 1))
    with pytest.raises(
        ShapeError, match=r"of at least the window \(3, 3\) at dilation \(3, 1\) with padding \(0, 0\), got \(6, 6\)"
    ):
        nn.maxpool(x, 3, dilation=(3, 1))
    with pytest.raises(
        LayerError, match='expected padding to be an int of at least 0 or a tuple of them, or "same" or "valid"'
    ):
        MeanPool(2, padding="full")
    with pytest.raises(LayerError, match=r"padding of at most half the window, got \(2, 2\) for \(3, 3\)"):
        nn.maxpool(x, 3, padding=2)
    with pytest.raises(LayerError, match=r'padding="same" needs stride=1, got \(2, 2\); give the padding as a number'):
        nn.maxpool(x, 2, padding="same")
    with pytest.raises(ShapeError, match=r"expected window to have 2 numbers, one per spatial axis, got \(2, 2, 2\)"):
        nn.maxpool(x, (2, 2, 2))
    with pytest.raises(
        ShapeError, match=r"spatial axes of at least the window \(7, 7\) with padding \(0, 0\), got \(6, 6\)"
    ):
        nn.meanpool(x, 7)
    for shape in ((3,), (2, 3), (1,) * 6):
        with pytest.raises(ShapeError, match=r"meanpool: expected x of shape .* with 1 to 3 spatial axes, got"):
            nn.meanpool(sample(shape), 1)
    with pytest.raises(DTypeError, match="maxpool: expected x to be a float array, got int64"):
        nn.maxpool(np.ones((1, 1, 2, 2), np.int64), 2)
    layer = culux.Chain(culux.NoOpLayer(), MaxPool(7))
    with pytest.raises(ShapeError, match=r"in layer_2 \(MaxPool\(7\)\): maxpool: expected spatial axes"):
        layer(x, *culux.setup(0, layer))
    with pytest.raises(ShapeError, match="MaxPool: expected spatial axes"):
        culux.output_shape(layer, x.shape)
