"""A layer and its twin in torch, and what all kinds of them need: parameters, masks, activations, chains.

A twin is a function ``(x, ps, st, training) -> y`` of tensors. It computes with torch's functions what the layer has
to compute, from the layer's own parameters, and writes new states into `st`, a dict. Torch is loaded when it runs.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import culux

Twin = Callable[[Any, Any, Any, bool], Any]


class Lazy:
    """A module that is imported when something of it is used."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, name):
        return getattr(importlib.import_module(self._name), name)


torch = Lazy("torch")
F = Lazy("torch.nn.functional")


class Part(NamedTuple):
    """A layer and its twin."""

    layer: culux.Layer
    twin: Twin


def stateless(layer, function):
    """A part without parameters and states."""
    return Part(layer, lambda x, ps, st, training: function(x))


def choose(rng, *options):
    return options[rng.integers(len(options))]


def flag(rng):
    return bool(rng.integers(2))


def between(rng, low, high):
    """An int from `low` to `high`, both included."""
    return int(rng.integers(low, high + 1))


def tensors(entries, *, trained):
    """Arrays as tensors in nested dicts: all float arrays of parameters, trained; those of states, not."""
    if isinstance(entries, Mapping):
        return {name: tensors(entry, trained=trained) for name, entry in entries.items()}
    if isinstance(entries, tuple):
        return tuple(tensors(entry, trained=trained) for entry in entries)
    if isinstance(entries, np.ndarray) and entries.dtype == np.float64:
        return torch.tensor(entries, requires_grad=trained)
    return entries


def arrays(entries):
    """What `tensors` made, as Trees of arrays again."""
    if isinstance(entries, dict):
        return culux.Tree({name: arrays(entry) for name, entry in entries.items()})
    if isinstance(entries, tuple):
        return tuple(map(arrays, entries))
    return entries.detach().numpy() if hasattr(entries, "detach") else entries


def softplus(x):
    """``log(1 + exp(x))``, which torch's is up to 20 only."""
    return torch.logaddexp(x, torch.zeros_like(x))


# Formulas where torch has no such function, and for the hard ones, whose 1 / 6 it has in float32.
ACTIVATIONS = [
    (culux.identity, lambda x: x),
    (culux.relu, lambda x: F.relu(x)),
    (culux.relu6, lambda x: F.relu6(x)),
    (culux.leakyrelu, lambda x: F.leaky_relu(x, 0.01)),
    (culux.leakyrelu.replace(slope=0.2), lambda x: F.leaky_relu(x, 0.2)),
    (culux.elu, lambda x: F.elu(x)),
    (culux.selu, lambda x: F.selu(x)),
    (culux.celu.replace(alpha=1.5), lambda x: F.celu(x, 1.5)),
    (culux.gelu, lambda x: F.gelu(x, approximate="tanh")),
    (culux.gelu_erf, lambda x: F.gelu(x)),
    (culux.swish, lambda x: F.silu(x)),
    (culux.hardswish, lambda x: x * F.relu6(x + 3) / 6),
    (culux.mish, lambda x: F.mish(x)),
    (culux.sigmoid, lambda x: torch.sigmoid(x)),
    (culux.hardsigmoid, lambda x: F.relu6(x + 3) / 6),
    (culux.logsigmoid, lambda x: F.logsigmoid(x)),
    (culux.tanh, lambda x: torch.tanh(x)),
    (culux.hardtanh, lambda x: F.hardtanh(x)),
    (culux.tanhshrink, lambda x: F.tanhshrink(x)),
    (culux.softplus, softplus),
    (culux.softsign, lambda x: F.softsign(x)),
    (culux.softshrink, lambda x: F.softshrink(x)),
    (culux.lisht, lambda x: x * torch.tanh(x)),
    (culux.logcosh, lambda x: softplus(2 * x) - x - math.log(2)),
    (culux.trelu, lambda x: torch.where(x > 1, x, torch.zeros_like(x))),
]


def activation(rng):
    """An activation and its twin; half of them the identity, so that not all that is deep is flat."""
    return choose(rng, *ACTIVATIONS) if flag(rng) else ACTIVATIONS[0]


def activation_layer(rng, shape):
    record, function = choose(rng, *ACTIVATIONS)
    return stateless(culux.WrappedFunction(record), function)


def no_op(rng, shape):
    return stateless(culux.NoOpLayer(), lambda x: x)


def chain(rng, parts):
    """A Chain, its layers with names of their own or numbered."""
    names = [f"{choose(rng, 'stem', 'block', 'part')}_{i}" if i % 3 else f"begin_{i}" for i in range(len(parts))]
    if flag(rng):
        layer = culux.Chain(**{name: part.layer for name, part in zip(names, parts, strict=True)})
    else:
        layer = culux.Chain(*[part.layer for part in parts])

    def twin(x, ps, st, training):
        for name, part in zip(layer.children(), parts, strict=True):
            x = part.twin(x, ps[name], st[name], training)
        return x

    return Part(layer, twin)


def side_by_side(parts, x, ps, st, training):
    """The outputs of parts; a tuple has one input for each."""
    inputs = x if isinstance(x, tuple) else (x,) * len(parts)
    names = [f"layer_{i + 1}" for i in range(len(parts))]
    return tuple(
        part.twin(own, ps[name], st[name], training) for part, own, name in zip(parts, inputs, names, strict=True)
    )


def split(parts):
    """A BranchLayer that gives the tuple of the outputs of parts."""
    layer = culux.BranchLayer(*[part.layer for part in parts])
    return Part(layer, lambda x, ps, st, training: side_by_side(parts, x, ps, st, training))


def kept(st, p, shape):
    """Where dropout keeps: uniform numbers of the Philox generator at the state, which moves on."""
    count, state = math.prod(shape), st["rng"]
    generator = np.random.Generator(np.random.Philox(key=state["key"], counter=state["counter"]))
    numbers = generator.random(count, dtype=np.float32)
    state["counter"] = state["counter"] + np.array([-(-count // 8), 0, 0, 0], np.uint64)
    return torch.from_numpy((numbers >= np.float32(p)).reshape(shape))


def dropout(rng, shape):
    p, axes = float(rng.uniform(0.1, 0.6)), choose(rng, None, (0, 1))
    layer = culux.Dropout(p) if axes is None else culux.Dropout(p, axes=axes)
    return Part(layer, lambda x, ps, st, training: dropped(x, p, st, training, axes))


def dropped(x, p, st, training, axes=None):
    shape = [n if axes is None or axis in axes else 1 for axis, n in enumerate(x.shape)]
    return x * kept(st, p, shape) / (1 - p) if training else x


def alpha_dropout(rng, shape):
    p = float(rng.uniform(0.1, 0.6))

    def twin(x, ps, st, training):
        if not training:
            return x
        limit = F.selu(torch.tensor(-1e3, dtype=torch.float64))
        y = torch.where(kept(st, p, x.shape), x, limit)
        # Of a selu's output with mean 0 and variance 1: what brings these back.
        mean, variance = p * limit, (1 - p) + limit**2 * p * (1 - p)
        return (y - mean) / torch.sqrt(variance)

    return Part(culux.AlphaDropout(p), twin)


def variational_dropout(rng, shape):
    p = float(rng.uniform(0.1, 0.6))

    def twin(x, ps, st, training):
        if not training:
            return x
        if st["update_mask"]:
            st["mask"], st["update_mask"] = kept(st, p, x.shape), False
        return x * torch.as_tensor(st["mask"]) / (1 - p)

    return Part(culux.VariationalHiddenDropout(p), twin)


def dense(rng, shape, out=None, *, linear=False):
    """A Dense over the last axis, which keeps its length unless `out` is given."""
    out, bias, (record, function) = out or shape[-1], flag(rng), ACTIVATIONS[0] if linear else activation(rng)
    layer = culux.Dense(shape[-1], out, record, use_bias=bias)
    return Part(layer, lambda x, ps, st, training: function(F.linear(x, ps["weight"], ps.get("bias"))))


def scale(rng, shape):
    trailing, bias, (record, function) = tuple(shape[between(rng, 1, len(shape) - 1) :]), flag(rng), activation(rng)
    layer = culux.Scale(trailing, record, use_bias=bias)
    return Part(layer, lambda x, ps, st, training: function(x * ps["weight"] + ps.get("bias", 0)))


def layer_norm(rng, shape):
    trailing, affine, (record, function) = tuple(shape[between(rng, 1, len(shape) - 1) :]), flag(rng), activation(rng)
    if math.prod(trailing) < 3:
        return None
    epsilon, over = choose(rng, 1e-5, 1e-2), choose(rng, "trailing", "all")
    layer = culux.LayerNorm(trailing, record, affine=affine, epsilon=epsilon, over=over)

    def twin(x, ps, st, training):
        y = F.layer_norm(x, trailing if over == "trailing" else x.shape, eps=epsilon)
        return function(y * ps.get("scale", 1) + ps.get("bias", 0))

    return Part(layer, twin)


def rms_norm(rng, shape):
    trailing, affine, epsilon = tuple(shape[between(rng, 1, len(shape) - 1) :]), flag(rng), choose(rng, None, 1e-2)
    layer = culux.RMSNorm(trailing, affine=affine, epsilon=epsilon)
    return Part(layer, lambda x, ps, st, training: F.rms_norm(x, trailing, ps.get("scale"), epsilon))


def reverse_sequence(rng, shape):
    axis = choose(rng, None, *range(1, len(shape)))
    return stateless(culux.ReverseSequence(axis), lambda x: torch.flip(x, (1 if axis is None else axis,)))
