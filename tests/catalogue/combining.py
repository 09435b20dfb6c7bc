"""The entries of `culux.nn` and `culux.layers` for two inputs, branches, and layers around a layer."""

from __future__ import annotations

import numpy as np

from culux import layers as L
from culux import nn
from culux import numpy as cnp
from tests.catalogue.case import Case, LayerCase, normal

ROUGH = {"tolerance": 5.0, "gradient_tolerance": 5.0}


def affine(torch, ps, x, name):
    return torch.nn.functional.linear(x, ps[f"{name}.weight"], ps[f"{name}.bias"])


def entries(**layers):
    """Paths and shapes of Dense layers by name: ``layer_1=(in_dims, out_dims)``."""
    found = {}
    for name, (in_dims, out_dims) in layers.items():
        found |= {f"{name}.weight": (out_dims, in_dims), f"{name}.bias": (out_dims,)}
    return found


def pairwise(torch, ps, x, y, z):
    y = affine(torch, ps, x, "layer_1") * y
    return affine(torch, ps, y, "layer_2") * z


def repeated(torch, ps, x):
    for _ in range(3):
        x = torch.tanh(torch.nn.functional.linear(x, ps["weight"], ps["bias"]))
    return x


def injected(torch, ps, x):
    y = x
    for _ in range(2):
        y = affine(torch, ps, y, "layer_1") + affine(torch, ps, x, "layer_2")
    return y


def shared(torch, ps, x):
    x = torch.tanh(affine(torch, ps, x, "layer_1"))
    x = torch.nn.functional.linear(x, ps["layer_1.weight"], ps["layer_2.bias"])
    return torch.tanh(affine(torch, ps, x, "layer_1"))


def in_half(torch, ps, x):
    """A Dense layer, batch statistics in float32, and another one, with every cast written out."""
    half = {path: leaf.half() for path, leaf in ps.items()}
    y = torch.tanh(affine(torch, half, x.half(), "layer_1")).float()
    y = (y - y.mean(0)) / torch.sqrt(y.var(0, unbiased=False) + 1e-5)
    y = (y * half["layer_2.scale"].float() + half["layer_2.bias"].float()).half()
    return affine(torch, half, y, "layer_3").to(x.dtype)


def in_bfloat16(torch, ps, x):
    return torch.nn.functional.linear(*[a.bfloat16() for a in (x, ps["weight"], ps["bias"])]).to(x.dtype)


FUNCTIONS = [
    Case(
        "culux.nn.bilinear", nn.bilinear, [normal(5, 3), normal(5, 4), normal(2, 3, 4), normal(2)], **ROUGH,
        torch=lambda t, x, y, w, b: t.nn.functional.bilinear(x, y, w, b), strict=True,
    ),
    Case(
        "culux.nn.bilinear", lambda x, y, w: nn.bilinear(x, y, w, activation=nn.tanh),
        [normal(2, 3, 1), normal(2, 3, 2), normal(4, 1, 2)], label="activation-3d", strict=True, **ROUGH,
        torch=lambda t, x, y, w: t.tanh(t.nn.functional.bilinear(x, y, w)),
    ),
]  # fmt: skip

LAYERS = [
    LayerCase(
        "culux.layers.Bilinear", L.Bilinear((3, 4), 2, nn.tanh), [normal(5, 3), normal(5, 4)], **ROUGH,
        parameters={"weight": (2, 3, 4), "bias": (2,)},
        torch=lambda t, ps, x, y: t.tanh(t.nn.functional.bilinear(x, y, ps["weight"], ps["bias"])),
    ),
    LayerCase(
        "culux.layers.Bilinear", L.Bilinear(3, 2, use_bias=False), [normal(2, 4, 3)], label="one-input", **ROUGH,
        parameters={"weight": (2, 3, 3)}, torch=lambda t, ps, x: t.nn.functional.bilinear(x, x, ps["weight"]),
    ),
    LayerCase(
        "culux.layers.Maxout", L.Maxout(L.Dense(3, 5), 3), [normal(7, 3)], **ROUGH,
        parameters=entries(layer_1=(3, 5), layer_2=(3, 5), layer_3=(3, 5)),
        torch=lambda t, ps, x: t.stack([affine(t, ps, x, f"layer_{i}") for i in (1, 2, 3)]).amax(0),
    ),
    LayerCase(
        "culux.layers.PairwiseFusion", L.PairwiseFusion(cnp.multiply, L.Dense(3, 4), L.Dense(4, 2)),
        [normal(7, 3), normal(7, 4), normal(7, 2)], parameters=entries(layer_1=(3, 4), layer_2=(4, 2)),
        torch=pairwise, **ROUGH,
    ),
    LayerCase(
        "culux.layers.RepeatedLayer", L.RepeatedLayer(L.Dense(3, 3, nn.tanh), repeats=3), [normal(7, 3)],
        parameters={"weight": (3, 3), "bias": (3,)}, torch=repeated, **ROUGH,
    ),
    LayerCase(
        "culux.layers.RepeatedLayer",
        L.RepeatedLayer(L.Parallel(cnp.add, L.Dense(3, 3), L.Dense(3, 3)), repeats=2, input_injection=True),
        [normal(7, 3)], label="injection", parameters=entries(layer_1=(3, 3), layer_2=(3, 3)), torch=injected,
        **ROUGH,
    ),
    LayerCase(
        "culux.layers.ReverseSequence", L.ReverseSequence(), [normal(2, 5, 3)], torch=lambda t, ps, x: x.flip(1),
    ),
    LayerCase(
        "culux.layers.ReverseSequence", L.ReverseSequence(-1), [normal(2, 5, 3)], label="axis",
        torch=lambda t, ps, x: x.flip(-1),
    ),
    LayerCase(
        "culux.layers.AlternatePrecision", L.AlternatePrecision("float64", L.Dense(3, 5)), [normal(7, 3)], **ROUGH,
        parameters={"weight": (5, 3), "bias": (5,)},
        reference=lambda ps, st, x: x.astype(np.float64) @ ps.weight.T + ps.bias,
    ),
    LayerCase(
        "culux.layers.Frozen", L.Frozen(L.Parallel(None, L.Dense(3, 2), L.Dense(3, 4)), ("layer_1.*", "*.bias")),
        [normal(7, 3)], parameters={"layer_2.weight": (4, 3)}, **ROUGH,
        states=("frozen.layer_1.weight", "frozen.layer_1.bias", "frozen.layer_2.bias"),
        reference=lambda ps, st, x: (
            x @ st.frozen.layer_1.weight.T + st.frozen.layer_1.bias, x @ ps.layer_2.weight.T + st.frozen.layer_2.bias
        ),
    ),
    LayerCase(
        "culux.layers.Shared",
        L.Shared(L.Chain(L.Dense(3, 3, nn.tanh), L.Dense(3, 3), L.Dense(3, 3, nn.tanh)),
                 {"layer_3": "layer_1", "layer_2.weight": "layer_1.weight"}),
        [normal(7, 3)], parameters={"layer_1.weight": (3, 3), "layer_1.bias": (3,), "layer_2.bias": (3,)}, torch=shared,
        **ROUGH,
    ),
    LayerCase(
        "culux.layers.with_precision", L.with_precision(L.Dense(3, 5), "float64"), [normal(7, 3)], label="float64",
        parameters={"weight": (5, 3), "bias": (5,)}, **ROUGH,
        torch=lambda t, ps, x: t.nn.functional.linear(*[a.double() for a in (x, *ps.values())]).to(x.dtype),
        reference=lambda ps, st, x: x @ ps.weight.T + ps.bias,
    ),
    LayerCase(
        "culux.layers.with_precision", L.with_precision(L.Dense(3, 5)), [normal(7, 3)], label="bfloat16",
        parameters={"weight": (5, 3), "bias": (5,)}, torch=in_bfloat16, dtypes=("float16", "float32"), tolerance=1e3,
    ),
    LayerCase(
        "culux.layers.with_precision",
        L.with_precision(L.Chain(L.Dense(3, 4, nn.tanh), L.BatchNorm(4), L.Dense(4, 2)), "float16"), [normal(7, 3)],
        parameters={**entries(layer_1=(3, 4), layer_3=(4, 2)), "layer_2.scale": (4,), "layer_2.bias": (4,)},
        states=("layer_2.running_mean", "layer_2.running_var", "layer_2.training"), label="float16", torch=in_half,
        dtypes=("float16", "float32"), tolerance=500.0,
    ),
]  # fmt: skip
