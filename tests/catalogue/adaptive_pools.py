"""The entries of `culux.nn` and `culux.layers` for adaptive, global and power-mean pooling."""

from __future__ import annotations

import numpy as np

from culux import layers as L
from culux import nn
from tests.catalogue.case import Case, LayerCase, apart, normal, uniform

ROUGH = {"tolerance": 5.0, "gradient_tolerance": 5.0}


def windows(size, out):
    """The first and last places of torch's windows."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def adaptive_norm(x, out, p=2):
    """The power mean by its definition, for one or two spatial axes."""
    if x.ndim == 3:
        x, out = x[:, :, None], (1, out)
    y = np.empty((*x.shape[:2], *out))
    for i, (top, bottom) in enumerate(windows(x.shape[2], out[0])):
        for j, (left, right) in enumerate(windows(x.shape[3], out[1])):
            y[:, :, i, j] = (x[:, :, top:bottom, left:right] ** p).sum((2, 3)) ** (1 / p)
    return y


def adaptive_case(kind, label, shape, out):
    """An adaptive pool against torch's of as many axes."""
    theirs = f"adaptive_{'max' if kind == 'max' else 'avg'}_pool{len(shape) - 2}d"
    return Case(
        f"culux.nn.adaptive_{kind}pool",
        lambda x: getattr(nn, f"adaptive_{kind}pool")(x, out),
        [apart(*shape) if kind == "max" else normal(*shape)],
        torch=lambda t, x: getattr(t.nn.functional, theirs)(x, out),
        label=label,
        strict=kind == "mean",
    )


FUNCTIONS = [
    adaptive_case(kind, label, shape, out)
    for kind in ("mean", "max")
    for label, shape, out in (
        ("divides", (2, 3, 6, 4), (2, 4)),
        ("uneven", (1, 2, 7, 5), (3, 2)),
        ("more", (2, 2, 3), 5),
        ("three-axes", (1, 2, 3, 4, 5), (None, 1, 3)),
    )
] + [
    Case(
        "culux.nn.adaptive_lppool", lambda x: nn.adaptive_lppool(x, (2, 3)), [normal(2, 1, 5, 6)], **ROUGH,
        reference=lambda x: adaptive_norm(x, (2, 3)),
    ),
    Case(
        "culux.nn.lppool", lambda x: nn.lppool(x, (3, 2), stride=2), [normal(2, 2, 7, 6)], **ROUGH,
        torch=lambda t, x: t.nn.functional.lp_pool2d(x, 2.0, (3, 2), 2),
    ),
    Case(
        "culux.nn.lppool", lambda x: nn.lppool(x, 2, p=2.5), [uniform(0.1, 2, 2, 2, 7)], label="fraction", **ROUGH,
        torch=lambda t, x: t.nn.functional.lp_pool1d(x, 2.5, 2),
    ),
    Case(
        "culux.nn.lppool", lambda x: nn.lppool(x, 2, stride=1, dilation=3), [normal(2, 2, 7)], label="dilated", **ROUGH,
        reference=lambda x: (x[:, :, :4] ** 2 + x[:, :, 3:] ** 2) ** 0.5,
    ),
]  # fmt: skip

LAYERS = [
    LayerCase(
        "culux.layers.AdaptiveMeanPool", L.AdaptiveMeanPool((3, None)), [normal(2, 3, 5, 4)],
        torch=lambda t, ps, x: t.nn.functional.adaptive_avg_pool2d(x, (3, None)),
    ),
    LayerCase(
        "culux.layers.AdaptiveMaxPool", L.AdaptiveMaxPool(3), [apart(2, 3, 7)],
        torch=lambda t, ps, x: t.nn.functional.adaptive_max_pool1d(x, 3),
    ),
    LayerCase(
        "culux.layers.AdaptiveLPPool", L.AdaptiveLPPool(2, p=4), [uniform(0.1, 2, 2, 3, 5, 3)], **ROUGH,
        reference=lambda ps, st, x: adaptive_norm(x, (2, 2), 4),
    ),
    LayerCase(
        "culux.layers.GlobalMeanPool", L.GlobalMeanPool(), [normal(2, 3, 5, 4)],
        torch=lambda t, ps, x: x.mean((2, 3), keepdim=True),
    ),
    LayerCase(
        "culux.layers.GlobalMaxPool", L.GlobalMaxPool(), [apart(2, 3, 2, 3, 4)],
        torch=lambda t, ps, x: x.amax((2, 3, 4), keepdim=True),
    ),
    LayerCase(
        "culux.layers.GlobalLPPool", L.GlobalLPPool(), [normal(2, 3, 5)], **ROUGH,
        torch=lambda t, ps, x: x.norm(dim=2, keepdim=True),
    ),
    LayerCase(
        "culux.layers.LPPool", L.LPPool(3, stride=2), [normal(2, 3, 7, 5)], **ROUGH,
        torch=lambda t, ps, x: t.nn.functional.lp_pool2d(x, 2.0, 3, 2),
    ),
    LayerCase(
        "culux.layers.LPPool", L.LPPool(2, p=1, padding=1), [normal(2, 3, 6)], label="sum-padding",
        torch=lambda t, ps, x: 2 * t.nn.functional.avg_pool1d(x, 2, padding=1),
    ),
    LayerCase(
        "culux.layers.LPPool", L.LPPool(2, p=4, stride=1, dilation=2), [normal(1, 2, 6)], label="dilated", **ROUGH,
        reference=lambda ps, st, x: (x[:, :, :4] ** 4 + x[:, :, 2:] ** 4) ** 0.25,
    ),
]  # fmt: skip
