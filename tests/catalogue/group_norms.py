"""The entries of `culux.nn` and `culux.layers` for normalisation of groups of channels and of weights."""

from __future__ import annotations

import numpy as np

import culux
from culux import layers as L
from culux import nn
from tests.catalogue.case import Case, LayerCase, normal

ROUGH = {"tolerance": 5.0, "gradient_tolerance": 5.0}
PARAMETERS = {"scale": (6,), "bias": (6,)}
RUNNING = ("running_mean", "running_var", "training")
SHIFT, SPREAD = np.array([0.5, -1.0, 0.0]), np.array([0.5, 2.0, 1.0])


def group_norm(torch, ps, x, groups=3, eps=1e-5):
    return torch.nn.functional.group_norm(x, groups, ps.get("scale"), ps.get("bias"), eps)


def instance_norm(torch, ps, x, eps=1e-5):
    return torch.nn.functional.instance_norm(x, None, None, ps.get("scale"), ps.get("bias"), eps=eps)


def instance_norm_in_test_mode(ps, st, x):
    """By the statistics of a new layer: mean 0 and variance 1."""
    return x / np.sqrt(1 + 1e-5) * ps.scale[:, None] + ps.bias[:, None]


def weight_norm_dense(torch, ps, x):
    weight = torch._weight_norm(ps["normalized.weight_v"], ps["normalized.weight_g"], 0)
    return torch.tanh(torch.nn.functional.linear(x, weight, ps["unnormalized.bias"]))


def weight_norm_batch(torch, ps, x):
    scale = torch._weight_norm(ps["normalized.scale_v"], ps["normalized.scale_g"], -1)
    return torch.nn.functional.batch_norm(x, None, None, scale, ps["unnormalized.bias"], True)


def given(x):
    """Running statistics where `x` is, in its dtype."""
    x = culux.stop_gradient(x)
    backend = culux.backends.backend_of(x)
    return [backend.from_host(v.astype(str(x.dtype).rpartition(".")[2]), 0) for v in (SHIFT, SPREAD)]


FUNCTIONS = [
    Case(
        "culux.nn.groupnorm", lambda x, s, b: nn.groupnorm(x, s, b, groups=2), [normal(3, 4, 5), normal(4), normal(4)],
        torch=lambda t, x, s, b: t.nn.functional.group_norm(x, 2, s, b), strict=True, **ROUGH,
    ),
    Case(
        "culux.nn.groupnorm", lambda x: nn.groupnorm(x, None, None, groups=1, epsilon=0.1, activation=nn.tanh),
        [normal(3, 5)], label="one-group-matrix", strict=True,
        torch=lambda t, x: t.tanh(t.nn.functional.group_norm(x, 1, eps=0.1)), **ROUGH,
    ),
    Case(
        "culux.nn.instancenorm", lambda x, s, b: nn.instancenorm(x, s, b, None, None, training=False)[0],
        [normal(2, 3, 4, 2), normal(3), normal(3)], strict=True,
        torch=lambda t, x, s, b: t.nn.functional.instance_norm(x, weight=s, bias=b), **ROUGH,
    ),
    Case(
        "culux.nn.instancenorm",
        lambda x: nn.instancenorm(x, None, None, *given(x), training=False, activation=nn.tanh)[0],
        [normal(2, 3, 5)], label="running-statistics",
        reference=lambda x: np.tanh((x - SHIFT[:, None]) / np.sqrt(SPREAD[:, None] + 1e-5)), **ROUGH,
    ),
]  # fmt: skip

LAYERS = [
    LayerCase(
        "culux.layers.GroupNorm", L.GroupNorm(6, 3), [normal(2, 6, 3, 5)], parameters=PARAMETERS, torch=group_norm,
        **ROUGH,
    ),
    LayerCase(
        "culux.layers.GroupNorm", L.GroupNorm(6, 2, nn.tanh, affine=False, epsilon=0.1), [normal(3, 6)],
        label="matrix-activation-bare", torch=lambda t, ps, x: t.tanh(group_norm(t, ps, x, 2, 0.1)), **ROUGH,
    ),
    LayerCase(
        "culux.layers.InstanceNorm", L.InstanceNorm(3), [normal(2, 3, 2, 5)], states=("training",),
        torch=instance_norm, **ROUGH,
    ),
    LayerCase(
        "culux.layers.InstanceNorm", L.InstanceNorm(6, nn.tanh, affine=True, track_stats=True, epsilon=0.1),
        [normal(1, 6, 5)], label="tracking-activation", parameters=PARAMETERS, states=RUNNING,
        torch=lambda t, ps, x: t.tanh(instance_norm(t, ps, x, 0.1)), **ROUGH,
    ),
    LayerCase(
        "culux.layers.InstanceNorm", L.InstanceNorm(6, affine=True, track_stats=True), [normal(2, 6, 1)],
        label="test-mode", test_mode=True, parameters=PARAMETERS, states=RUNNING,
        reference=instance_norm_in_test_mode, **ROUGH,
    ),
    LayerCase(
        "culux.layers.WeightNorm", L.WeightNorm(L.Dense(3, 5, nn.tanh), "weight"), [normal(7, 3)], tolerance=5.0,
        parameters={"normalized.weight_g": (5, 1), "normalized.weight_v": (5, 3), "unnormalized.bias": (5,)},
        torch=weight_norm_dense,
    ),
    LayerCase(
        "culux.layers.WeightNorm", L.WeightNorm(L.BatchNorm(3, affine=True), ("scale",), dims=None), [normal(7, 3)],
        label="whole-array-states", states=RUNNING, torch=weight_norm_batch, **ROUGH,
        parameters={"normalized.scale_g": (1,), "normalized.scale_v": (3,), "unnormalized.bias": (3,)},
    ),
]  # fmt: skip
