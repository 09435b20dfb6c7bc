"""The entries of `culux.nn` and `culux.layers` for convolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux import layers as L
from culux import nn
from tests.catalogue.case import Case, LayerCase, normal

ROUGH = {"tolerance": 10.0, "gradient_tolerance": 5.0}  # sums over many taps


def conv_case(label: str, x: tuple[int, ...], weight: tuple[int, ...], **options: Any) -> Case:
    """A convolution, with a bias of as many numbers as the weight has filters, against torch's."""
    return Case(
        "culux.nn.conv",
        lambda x, w, b: nn.conv(x, w, b, **options),
        [normal(*x), normal(*weight), normal(weight[0])],
        torch=lambda t, x, w, b: getattr(t.nn.functional, f"conv{len(weight) - 2}d")(x, w, b, **options),
        label=label,
        **ROUGH,
    )


def transpose_case(label: str, x: tuple[int, ...], weight: tuple[int, ...], **options: Any) -> Case:
    """A transposed convolution without bias against torch's."""
    return Case(
        "culux.nn.conv_transpose",
        lambda x, w: nn.conv_transpose(x, w, **options),
        [normal(*x), normal(*weight)],
        torch=lambda t, x, w: getattr(t.nn.functional, f"conv_transpose{len(weight) - 2}d")(x, w, **options),
        label=label,
        **ROUGH,
    )


FUNCTIONS = [
    conv_case("one-axis", (2, 3, 7), (4, 3, 3), padding=1),
    conv_case("images", (2, 3, 5, 6), (4, 3, 3, 2), padding=(1, 0)),
    conv_case("strides", (2, 3, 7, 6), (2, 3, 3, 2), stride=(2, 3), padding=1),
    conv_case("dilation", (1, 2, 7, 6), (3, 2, 2, 3), dilation=(3, 2), padding=(1, 2)),
    conv_case("groups", (2, 4, 5, 4), (6, 2, 3, 3), groups=2, stride=2, padding=2),
    conv_case("depthwise", (2, 3, 4, 5), (3, 1, 3, 3), groups=3, padding="same"),
    conv_case("three-axes", (1, 2, 3, 4, 5), (2, 2, 2, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1)),
    Case(
        "culux.nn.conv", lambda x, w: nn.conv(x, w, activation=nn.tanh, padding=((0, 2), (1, 0))),
        [normal(2, 3, 5, 4), normal(4, 3, 2, 3)], label="pairs-activation", **ROUGH,
        torch=lambda t, x, w: t.tanh(t.nn.functional.conv2d(t.nn.functional.pad(x, (1, 0, 0, 2)), w)),
    ),
    *[
        Case(
            "culux.nn.conv", lambda x, w, mode=mode: nn.conv(x, w, padding=(2, 1), padding_mode=mode, stride=2),
            [normal(2, 2, 5, 4), normal(3, 2, 3, 3)], label=mode, **ROUGH,
            torch=lambda t, x, w, mode=mode: t.nn.functional.conv2d(
                t.nn.functional.pad(x, (1, 1, 2, 2), mode=mode), w, stride=2
            ),
        )
        for mode in ("circular", "reflect", "replicate")
    ],
    Case(
        "culux.nn.conv", lambda x, w: nn.conv(x, w, cross_correlation=False, padding=1),
        [normal(2, 2, 5, 4), normal(3, 2, 3, 2)], label="flipped", **ROUGH,
        torch=lambda t, x, w: t.nn.functional.conv2d(x, w.flip(2, 3), padding=1),
    ),
    transpose_case("one-axis", (2, 3, 5), (3, 4, 3)),
    transpose_case("strides", (2, 3, 4, 3), (3, 2, 3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2)),
    transpose_case("groups", (2, 4, 3, 4), (4, 3, 3, 3), groups=2, padding=1, dilation=2),
    transpose_case("three-axes", (1, 2, 2, 3, 2), (2, 2, 3, 2, 2), stride=(2, 1, 1), padding=(1, 0, 1)),
    Case(
        "culux.nn.conv_transpose",
        lambda x, w, b: nn.conv_transpose(x, w, b, activation=nn.tanh, stride=2, cross_correlation=False),
        [normal(2, 2, 3, 4), normal(2, 3, 3, 2), normal(3)], label="flipped-activation", **ROUGH,
        torch=lambda t, x, w, b: t.tanh(t.nn.functional.conv_transpose2d(x, w.flip(2, 3), b, stride=2)),
    ),
]  # fmt: skip


def numpy_conv(ps: Any, st: Any, x: np.ndarray) -> np.ndarray:
    """A convolution with a (3, 2) kernel, padding 1 and stride (1, 2), by its definition."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 2), (2, 3))[:, :, :, ::2]
    return np.einsum("nchwij,ocij->nohw", windows, ps.weight) + ps.bias[:, None, None]


LAYERS = [
    LayerCase(
        "culux.layers.Conv", L.Conv((3, 2), 2, 4, stride=(1, 2), padding=1), [normal(2, 2, 5, 4)],
        parameters={"weight": (4, 2, 3, 2), "bias": (4,)}, reference=numpy_conv, **ROUGH,
        torch=lambda t, ps, x: t.nn.functional.conv2d(x, ps["weight"], ps["bias"], (1, 2), 1),
    ),
    LayerCase(
        "culux.layers.Conv", L.Conv((3,), 2, 4, nn.tanh, padding="same", groups=2, use_bias=False), [normal(2, 2, 5)],
        label="one-axis-groups", parameters={"weight": (4, 1, 3)}, **ROUGH,
        torch=lambda t, ps, x: t.tanh(t.nn.functional.conv1d(x, ps["weight"], padding=1, groups=2)),
    ),
    LayerCase(
        "culux.layers.Conv", L.Conv((2, 2, 2), 1, 2, padding=1, padding_mode="circular"), [normal(1, 1, 3, 2, 3)],
        label="three-axes-circular", parameters={"weight": (2, 1, 2, 2, 2), "bias": (2,)}, **ROUGH,
        torch=lambda t, ps, x: t.nn.functional.conv3d(
            t.nn.functional.pad(x, (1,) * 6, mode="circular"), ps["weight"], ps["bias"]
        ),
    ),
    LayerCase(
        "culux.layers.ConvTranspose", L.ConvTranspose((3, 2), 4, 2, stride=2, padding=1, output_padding=1),
        [normal(2, 4, 3, 2)], parameters={"weight": (4, 2, 3, 2), "bias": (2,)}, **ROUGH,
        torch=lambda t, ps, x: t.nn.functional.conv_transpose2d(x, ps["weight"], ps["bias"], 2, 1, 1),
    ),
    LayerCase(
        "culux.layers.ConvTranspose", L.ConvTranspose((3,), 4, 6, nn.tanh, groups=2, dilation=2, use_bias=False),
        [normal(2, 4, 3)], label="one-axis-groups", parameters={"weight": (4, 3, 3)}, **ROUGH,
        torch=lambda t, ps, x: t.tanh(
            t.nn.functional.conv_transpose1d(x, ps["weight"], groups=2, dilation=2)
        ),
    ),
]  # fmt: skip
