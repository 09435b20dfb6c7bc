"""The layers' entries: torch twins in training and test mode, on odd sizes."""

from __future__ import annotations

import operator

import numpy as np

from culux import layers as L
from culux.nn import gelu, tanh
from tests.catalogue import (
    adaptive_pools,
    attention,
    combining,
    conv,
    dropouts,
    group_norms,
    options,
    recurrent,
    resampling,
)
from tests.catalogue.case import LayerCase, apart, integers, normal

WITHOUT_ENTRY: dict[str, str] = {
    "freeze": "returns a Frozen; see test_parts_of_models.py",
    "unfreeze": "returns what was frozen; see test_parts_of_models.py",
}


def dense(torch, ps, x):
    return torch.nn.functional.linear(x, ps["weight"], ps.get("bias"))


def batch_norm(torch, ps, x, training=True, eps=1e-5):
    """With the running statistics of a new layer."""
    zeros, ones = torch.zeros(x.shape[1], dtype=x.dtype), torch.ones(x.shape[1], dtype=x.dtype)
    return torch.nn.functional.batch_norm(x, zeros, ones, ps.get("scale"), ps.get("bias"), training, eps=eps)


def layer_norm(torch, ps, x, ndim=1, eps=1e-5):
    return torch.nn.functional.layer_norm(x, x.shape[-ndim:], ps.get("scale"), ps.get("bias"), eps)


def dropout(ps, st, x):
    """The mask by its definition: NumPy's Philox numbers of the state, kept where they are >= p."""
    generator = np.random.Generator(np.random.Philox(key=st.rng.key, counter=st.rng.counter))
    return x * (generator.random(x.size, dtype=np.float32) >= np.float32(0.3)).reshape(x.shape) / 0.7


def chain(torch, ps, x):
    hidden = batch_norm(
        torch, {"scale": ps["layer_2.scale"], "bias": ps["layer_2.bias"]}, affine(torch, ps, x, "layer_1")
    )
    return affine(torch, ps, torch.tanh(hidden), "layer_3")


def affine(torch, ps, x, name):
    return torch.nn.functional.linear(x, ps[f"{name}.weight"], ps[f"{name}.bias"])


def square(x):
    return x * x


def entries(**layers):
    """Paths and shapes of Dense layers by name: ``layer_1=(in_dims, out_dims)``."""
    found = {}
    for name, (in_dims, out_dims) in layers.items():
        found |= {f"{name}.weight": (out_dims, in_dims), f"{name}.bias": (out_dims,)}
    return found


NORM_STATES = ("running_mean", "running_var", "training")
NORM_PARAMETERS = {"scale": (3,), "bias": (3,)}
# Sums over a small batch in float16 are as rough as that.
ROUGH = {"tolerance": 5.0, "gradient_tolerance": 5.0}

BASIC = [
    LayerCase(
        "culux.layers.Dense", L.Dense(3, 5), [normal(7, 3)],
        parameters={"weight": (5, 3), "bias": (5,)}, torch=dense, tolerance=2.0,
    ),
    LayerCase(
        "culux.layers.Dense", L.Dense(3, 5, tanh), [normal(2, 7, 3)], label="activation-3d",
        parameters={"weight": (5, 3), "bias": (5,)}, torch=lambda t, ps, x: t.tanh(dense(t, ps, x)), tolerance=2.0,
    ),
    LayerCase(
        "culux.layers.Dense", L.Dense(1, 1, use_bias=False), [normal(1, 1)], label="no-bias-1x1",
        parameters={"weight": (1, 1)}, torch=dense,
    ),
    LayerCase(
        "culux.layers.Dense", L.Dense(3, 5, square), [normal(3)], label="function-1d", tolerance=5.0,
        parameters={"weight": (5, 3), "bias": (5,)}, torch=lambda t, ps, x: dense(t, ps, x) ** 2,
    ),
    LayerCase(
        "culux.layers.Scale", L.Scale(3), [normal(7, 3)],
        parameters={"weight": (3,), "bias": (3,)}, torch=lambda t, ps, x: x * ps["weight"] + ps["bias"], tolerance=2.0,
    ),
    LayerCase(
        "culux.layers.Scale", L.Scale((2, 3), gelu, use_bias=False), [normal(5, 2, 3)], label="activation-2d",
        parameters={"weight": (2, 3)}, tolerance=2.0,
        torch=lambda t, ps, x: t.nn.functional.gelu(x * ps["weight"], approximate="tanh"),
    ),
    LayerCase(
        "culux.layers.WrappedFunction", L.WrappedFunction(tanh), [normal(3, 5)], torch=lambda t, ps, x: t.tanh(x),
    ),
    LayerCase("culux.layers.NoOpLayer", L.NoOpLayer(), [normal(3, 5)], reference=lambda ps, st, x: x),
    LayerCase(
        "culux.layers.FlattenLayer", L.FlattenLayer(), [normal(3, 5, 2, 1)], torch=lambda t, ps, x: x.flatten(1),
    ),
    LayerCase(
        "culux.layers.ReshapeLayer", L.ReshapeLayer((5, -1)), [normal(3, 2, 10)],
        torch=lambda t, ps, x: x.reshape(3, 5, 4),
    ),
    LayerCase(
        "culux.layers.SelectDim", L.SelectDim(-2, 1), [normal(3, 4, 5)], torch=lambda t, ps, x: x.select(-2, 1),
    ),
]  # fmt: skip

NORMS = [
    LayerCase(
        "culux.layers.BatchNorm", L.BatchNorm(3), [normal(7, 3)], parameters=NORM_PARAMETERS, states=NORM_STATES,
        torch=batch_norm, **ROUGH,
    ),
    LayerCase(
        "culux.layers.BatchNorm", L.BatchNorm(3, tanh, epsilon=0.1), [normal(5, 3, 2, 3)], label="activation-4d",
        parameters=NORM_PARAMETERS, states=NORM_STATES,
        torch=lambda t, ps, x: t.tanh(batch_norm(t, ps, x, eps=0.1)), **ROUGH,
    ),
    LayerCase(
        "culux.layers.BatchNorm", L.BatchNorm(3), [normal(1, 3, 5)], label="test-mode-3d", test_mode=True,
        parameters=NORM_PARAMETERS, states=NORM_STATES, torch=lambda t, ps, x: batch_norm(t, ps, x, False), **ROUGH,
    ),
    LayerCase(
        "culux.layers.BatchNorm", L.BatchNorm(3, affine=False, track_stats=False), [normal(7, 3)], label="bare",
        test_mode=True, states=("training",), torch=batch_norm, **ROUGH,
    ),
    LayerCase(
        "culux.layers.LayerNorm", L.LayerNorm(3), [normal(7, 3)], parameters=NORM_PARAMETERS, torch=layer_norm, **ROUGH,
    ),
    LayerCase(
        "culux.layers.LayerNorm", L.LayerNorm((2, 3), tanh, epsilon=0.1), [normal(5, 2, 3)], label="2d-activation",
        parameters={"scale": (2, 3), "bias": (2, 3)},
        torch=lambda t, ps, x: t.tanh(layer_norm(t, ps, x, 2, 0.1)), **ROUGH,
    ),
    LayerCase(
        "culux.layers.LayerNorm", L.LayerNorm(3, affine=False), [normal(2, 5, 3)], label="bare",
        torch=layer_norm, **ROUGH,
    ),
    LayerCase(
        "culux.layers.RMSNorm", L.RMSNorm(3), [normal(7, 3)], parameters={"scale": (3,)},
        torch=lambda t, ps, x: t.nn.functional.rms_norm(x, (3,), ps["scale"]), **ROUGH,
    ),
    LayerCase(
        "culux.layers.RMSNorm", L.RMSNorm((2, 3), affine=False, epsilon=0.1), [normal(5, 2, 3)], label="2d-bare",
        torch=lambda t, ps, x: t.nn.functional.rms_norm(x, (2, 3), eps=0.1), **ROUGH,
    ),
    LayerCase(
        "culux.layers.Dropout", L.Dropout(0.3), [normal(7, 5)], states=("rng.key", "rng.counter", "training"),
        reference=dropout,
    ),
    LayerCase(
        "culux.layers.Dropout", L.Dropout(0.3), [normal(7, 5)], label="test-mode", test_mode=True,
        states=("rng.key", "rng.counter", "training"), reference=lambda ps, st, x: x,
    ),
]  # fmt: skip

CONTAINERS = [
    LayerCase(
        "culux.layers.Chain", L.Chain(L.Dense(3, 5), L.BatchNorm(5, tanh), L.Dense(5, 2)), [normal(7, 3)],
        parameters={
            "layer_1.weight": (5, 3), "layer_1.bias": (5,), "layer_2.scale": (5,), "layer_2.bias": (5,),
            "layer_3.weight": (2, 5), "layer_3.bias": (2,),
        },
        states=tuple(f"layer_2.{name}" for name in NORM_STATES), torch=chain, **ROUGH,
    ),
    LayerCase("culux.layers.Chain", L.Chain(), [normal(3, 5)], label="empty", reference=lambda ps, st, x: x),
    LayerCase(
        "culux.layers.Parallel", L.Parallel(operator.mul, left=L.Dense(3, 5), right=L.Dense(2, 5)),
        [normal(7, 3), normal(7, 2)], parameters=entries(left=(3, 5), right=(2, 5)), tolerance=5.0,
        torch=lambda t, ps, x, y: affine(t, ps, x, "left") * affine(t, ps, y, "right"),
    ),
    LayerCase(
        "culux.layers.Parallel", L.Parallel(None, L.Dense(3, 5), tanh), [normal(7, 3)], label="tuple",
        parameters=entries(layer_1=(3, 5)), tolerance=2.0,
        torch=lambda t, ps, x: (affine(t, ps, x, "layer_1"), t.tanh(x)),
    ),
    LayerCase(
        "culux.layers.BranchLayer", L.BranchLayer(L.Dense(3, 5), L.Dense(3, 1), fusion=operator.sub), [normal(7, 3)],
        parameters=entries(layer_1=(3, 5), layer_2=(3, 1)), tolerance=5.0,
        torch=lambda t, ps, x: affine(t, ps, x, "layer_1") - affine(t, ps, x, "layer_2"),
    ),
    LayerCase(
        "culux.layers.SkipConnection", L.SkipConnection([L.Dense(3, 3), tanh], operator.add), [normal(7, 3)],
        parameters=entries(**{"layers.layer_1": (3, 3)}), tolerance=5.0,
        torch=lambda t, ps, x: t.tanh(affine(t, ps, x, "layers.layer_1")) + x,
    ),
]  # fmt: skip

EMBEDDING_AND_POOLING = [
    LayerCase(
        "culux.layers.Embedding", L.Embedding(7, 3), [integers(7, 4, 2)], parameters={"weight": (7, 3)},
        torch=lambda t, ps, x: t.nn.functional.embedding(x, ps["weight"]),
    ),
    LayerCase(
        "culux.layers.MaxPool", L.MaxPool((3, 2), stride=2, padding=1), [apart(2, 3, 6, 5)],
        torch=lambda t, ps, x: t.nn.functional.max_pool2d(x, (3, 2), 2, 1),
    ),
    LayerCase(
        "culux.layers.MaxPool", L.MaxPool(2), [apart(2, 3, 7)], label="one-axis",
        torch=lambda t, ps, x: t.nn.functional.max_pool1d(x, 2),
    ),
    LayerCase(
        "culux.layers.MaxPool", L.MaxPool(2, stride=1, padding=1, dilation=(2, 3)), [apart(1, 2, 5, 6)],
        label="dilated", torch=lambda t, ps, x: t.nn.functional.max_pool2d(x, 2, 1, 1, (2, 3)),
    ),
    LayerCase(
        "culux.layers.MeanPool", L.MeanPool(3, stride=2, padding=1), [normal(2, 3, 6, 5)],
        torch=lambda t, ps, x: t.nn.functional.avg_pool2d(x, 3, 2, 1),
    ),
    LayerCase(
        "culux.layers.MeanPool", L.MeanPool(3, stride=1, padding="same"), [normal(2, 1, 6)], label="same",
        torch=lambda t, ps, x: t.nn.functional.avg_pool1d(x, 3, 1, 1),
    ),
    LayerCase(
        "culux.layers.MeanPool", L.MeanPool(2, stride=1, dilation=3), [normal(2, 3, 7)], label="dilated",
        reference=lambda ps, st, x: (x[:, :, :4] + x[:, :, 3:]) / 2,
    ),
]  # fmt: skip

CASES = [
    *BASIC,
    *NORMS,
    *CONTAINERS,
    *EMBEDDING_AND_POOLING,
    *conv.LAYERS,
    *group_norms.LAYERS,
    *adaptive_pools.LAYERS,
    *recurrent.LAYERS,
    *resampling.LAYERS,
    *dropouts.LAYERS,
    *combining.LAYERS,
    *attention.LAYERS,
    *options.LAYERS,
]
