"""The entries of `culux.nn` and `culux.layers` for resizing."""

from __future__ import annotations

from culux import layers as L
from culux import nn
from tests.catalogue.case import Case, LayerCase, normal


def upsample_case(label, mode, shape, *, scale=None, size=None, align_corners=False):
    """`upsample` against torch's `interpolate`."""
    return Case(
        "culux.nn.upsample",
        lambda x: nn.upsample(x, mode=mode, scale=scale, size=size, align_corners=align_corners),
        [normal(*shape)],
        torch=lambda t, x: t.nn.functional.interpolate(
            x, size, scale, mode, align_corners=None if mode == "nearest" else align_corners
        ),
        label=label,
        tolerance=2.0,
        strict=True,
    )


FUNCTIONS = [
    upsample_case("nearest-scale", "nearest", (2, 3, 4, 3), scale=2),
    upsample_case("nearest-size", "nearest", (1, 2, 5, 4, 3), size=(7, 3, 6)),
    upsample_case("linear", "linear", (2, 2, 5), scale=2.5),
    upsample_case("linear-corners", "linear", (2, 2, 5), size=9, align_corners=True),
    upsample_case("bilinear", "bilinear", (1, 2, 4, 3), scale=(2, 1.5)),
    upsample_case("bilinear-corners", "bilinear", (1, 2, 4, 3), scale=2, align_corners=True),
    upsample_case("bilinear-down", "bilinear", (1, 2, 7, 6), size=(3, 1)),
    upsample_case("trilinear", "trilinear", (1, 1, 2, 3, 2), size=(4, 3, 5)),
    Case(
        "culux.nn.pixel_shuffle", lambda x: nn.pixel_shuffle(x, 2), [normal(2, 12, 3, 2)], strict=True,
        torch=lambda t, x: t.nn.functional.pixel_shuffle(x, 2),
    ),
    Case(
        "culux.nn.pixel_shuffle", lambda x: nn.pixel_shuffle(x, 3), [normal(2, 6, 4)], label="one-axis", strict=True,
        torch=lambda t, x: t.stack([x[:, k::3] for k in range(3)], -1).flatten(2),
    ),
]  # fmt: skip

LAYERS = [
    LayerCase(
        "culux.layers.Upsample", L.Upsample(scale=3), [normal(2, 3, 4)],
        torch=lambda t, ps, x: t.nn.functional.interpolate(x, scale_factor=3),
    ),
    LayerCase(
        "culux.layers.Upsample", L.Upsample("bilinear", size=(5, 6), align_corners=True), [normal(2, 3, 3, 4)],
        label="corners", tolerance=2.0,
        torch=lambda t, ps, x: t.nn.functional.interpolate(x, (5, 6), mode="bilinear", align_corners=True),
    ),
    LayerCase(
        "culux.layers.PixelShuffle", L.PixelShuffle(2), [normal(2, 8, 3, 5)],
        torch=lambda t, ps, x: t.nn.functional.pixel_shuffle(x, 2),
    ),
]  # fmt: skip
