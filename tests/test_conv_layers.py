"""The layers of convolution: initial parameters, output shapes, and what wrong arguments are told."""

from __future__ import annotations

import re

import numpy as np
import pytest

import culux
from culux import Chain, Conv, ConvTranspose
from culux.errors import LayerError, ShapeError
from tests.layers_support import ran


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(Conv((3, 5), 20, 40, groups=4), (40, 5, 3, 5)), (ConvTranspose((3, 5), 40, 20, groups=4), (40, 5, 3, 5))],
)
def test_initial_parameters_are_distributed_as_torchs(layer, shape):
    ps, st = culux.setup(0, layer)
    bound = (5 * 15) ** -0.5  # torch's fan-in is the product of all axes of the weight but the first
    assert ps.weight.shape == shape
    assert st == {}
    for leaf, count in ((ps.weight, 3000), (ps.bias, layer.out_channels)):
        assert leaf.dtype == np.float32
        assert leaf.size == count
        assert np.abs(leaf).max() <= bound
        assert leaf.std() == pytest.approx(bound / 3**0.5, rel=0.2)
    assert np.abs(ps.weight).max() > 0.99 * bound
    assert list(culux.setup(0, Conv((3,), 2, 4, use_bias=False))[0]) == ["weight"]


def test_initialisers_are_called():
    layer = Conv((3,), 2, 4, init_weight=lambda rng, shape: np.full(shape, 2.0), init_bias=culux.init.zeros)
    ps, _ = culux.setup(0, layer)
    assert (ps.weight == 2).all()
    assert not ps.bias.any()


@pytest.mark.parametrize(
    ("layer", "given", "expected"),
    [
        (Conv((3, 3), 3, 8), (2, 3, 9, 8), (2, 8, 7, 6)),
        (Conv((3, 3), 3, 8, stride=2, padding=1), (2, 3, 9, 8), (2, 8, 5, 4)),
        (Conv((3, 2), 3, 8, dilation=(2, 1), padding=((1, 0), 2)), (2, 3, 9, 8), (2, 8, 6, 11)),
        (Conv((4,), 3, 8, padding="same"), (2, 3, 9), (2, 8, 9)),
        (Conv((4,), 3, 8, padding="valid"), (2, 3, 9), (2, 8, 6)),
        (Conv((1, 2, 3), 4, 4, groups=4, padding=1, padding_mode="replicate"), (1, 4, 2, 3, 4), (1, 4, 4, 4, 4)),
        (ConvTranspose((3, 3), 3, 8, stride=2), (2, 3, 4, 5), (2, 8, 9, 11)),
        (ConvTranspose((3, 3), 3, 8, stride=2, padding=1, output_padding=(1, 0)), (2, 3, 4, 5), (2, 8, 8, 9)),
        (ConvTranspose((4,), 3, 8, stride=2, padding="same"), (2, 3, 5), (2, 8, 10)),
    ],
    ids=repr,
)
def test_output_shapes(layer, given, expected):
    assert culux.output_shape(layer, given) == expected
    assert ran(layer, np.ones(given, np.float32))[0].shape == expected
    assert eval(repr(layer)) == layer


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (Conv((3, 3), 3, 8), (2, 4, 9, 8), "expected x.shape[1] == 3, got 4 (x has shape (2, 4, 9, 8))"),
        (
            Conv((3, 3), 3, 8), (2, 3, 9),
            "Conv: expected x of shape (batch, channels, *spatial) with 2 spatial axes for the kernel (3, 3), got (2, ",
        ),
        (
            Conv((3, 3), 3, 8), (2, 3, 2, 9),
            "Conv: expected spatial axes of at least (3, 3) with the padding ((0, 0), (0, 0)), got (2, 9)",
        ),
        (
            Conv((3,), 3, 8, padding=4, padding_mode="circular"), (2, 3, 2),
            'Conv: expected padding of at most 2 for padding_mode="circular" and an axis of 2, got (4, 4)',
        ),
        (ConvTranspose((3,), 3, 8), (2, 4, 9), "expected x.shape[1] == 3, got 4 (x has shape (2, 4, 9))"),
        (ConvTranspose((3,), 3, 8, padding=2), (2, 3, 1), "ConvTranspose: expected an output of at least 1 along"),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_wrong_shapes_are_told_alike_by_the_call_and_by_output_shape(layer, shape, message):
    model = Chain(layer)
    for call in (lambda: ran(model, np.ones(shape, np.float32)), lambda: culux.output_shape(model, shape)):
        with pytest.raises(ShapeError, match=re.escape(f"in layer_1 ({layer!r}): {message}")):
            call()


def test_parameters_of_another_model():
    ps, st = culux.setup(0, Conv((3,), 3, 8))
    x = np.ones((1, 3, 9), np.float32)
    with pytest.raises(ShapeError, match=r"expected ps\.weight of shape \(8, 3, 5\), got .*\(8, 3, 3\)"):
        Conv((5,), 3, 8)(x, ps, st)
    with pytest.raises(ShapeError, match=r"expected ps\.bias of shape \(8,\), got the entries weight"):
        Conv((3,), 3, 8)(x, {"weight": ps.weight}, st)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Conv(3, 3, 64),
            "Conv: expected kernel_size, the first argument, to be a tuple of 1 to 3 positive ints, one per spatial "
            "axis, got int 3; a 3x3 kernel is Conv((3, 3), in_channels, out_channels)",
        ),
        (lambda: Conv(3, 64, (3, 3)), "Conv: expected kernel_size, the first argument, to be a tuple"),
        (lambda: ConvTranspose((0, 3), 3, 4), "ConvTranspose: expected kernel_size, the first argument, to be"),
        (lambda: Conv((3, 3), 0, 4), "Conv: expected in_channels to be a positive int, got int 0"),
        (lambda: Conv((3, 3), 3, 2.0), "Conv: expected out_channels to be a positive int, got float 2.0"),
        (
            lambda: Conv((3, 3), 3, 64, 2),
            "Conv: expected activation to be a function such as culux.relu, got int 2; Conv((3, 3), 3, 64, stride=2)",
        ),
        (
            lambda: Conv((3,), 3, 64, False),
            "got bool False; the bias is switched by Conv((3,), 3, 64, use_bias=False)",
        ),
        (lambda: Conv((3,), 3, 64, bias=False), "Conv takes no bias=; culux calls it use_bias (True or False)"),
        (lambda: Conv((3,), 3, 64, pad=1), "Conv takes no pad=; culux calls it padding"),
        (lambda: Conv((3,), 3, 64, output_padding=1), "Conv takes no output_padding="),
        (lambda: Conv((3,), 3, 64, stride=0), "Conv: expected stride to be an int of at least 1 or a tuple of 1 of"),
        (lambda: Conv((3, 3), 3, 64, dilation=(1, 2, 3)), "a tuple of 2 of them, one per spatial axis, got tuple (1,"),
        (
            lambda: Conv((3, 3), 3, 64, padding="full"),
            "Conv: expected padding to be an int of at least 0, a tuple of 2 of them or of (before, behind) pairs, "
            '"same" or "valid", got str \'full\'',
        ),
        (lambda: Conv((3, 3), 3, 64, padding=-1), "Conv: expected padding to be an int of at least 0"),
        (lambda: Conv((3,), 3, 64, padding="same", stride=2), 'Conv: padding="same" needs stride=1, got (2,)'),
        (
            lambda: ConvTranspose((2,), 3, 64, padding="same", stride=3),
            'ConvTranspose: padding="same" needs a kernel that covers the stride, got (2,) for the stride (3,)',
        ),
        (lambda: Conv((3,), 3, 64, groups=0), "Conv: expected groups to be a positive int, got int 0"),
        (lambda: Conv((3,), 3, 64, groups=2), "Conv: expected groups to divide in_channels (3), got 2"),
        (lambda: ConvTranspose((3,), 4, 3, groups=2), "ConvTranspose: expected groups to divide out_channels (3)"),
        (
            lambda: Conv((3,), 3, 64, padding_mode="same"),
            "Conv: expected padding_mode to be one of zeros, circular, reflect, replicate, got str 'same'",
        ),
        (
            lambda: ConvTranspose((3,), 3, 64, padding_mode="reflect"),
            "ConvTranspose: expected padding_mode to be one of zeros, got str 'reflect'",
        ),
        (
            lambda: ConvTranspose((3,), 3, 64, output_padding=2, stride=2),
            "ConvTranspose: expected output_padding to be smaller than the stride or the dilation, got (2,) for (2,)",
        ),
        (lambda: Conv((3,), 3, 64, use_bias=1), "Conv: expected use_bias to be a bool, got int 1"),
        (lambda: Conv((3,), 3, 64, cross_correlation=0), "Conv: expected cross_correlation to be a bool, got int 0"),
        (lambda: Conv((3,), 3, 64, init_weight=3), "Conv: expected init_weight to be a function (rng, shape)"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(LayerError, match=re.escape(message)):
        make()
