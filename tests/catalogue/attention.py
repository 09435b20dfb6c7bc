"""The entries of attention and of positional embeddings: torch's with the same weights, and formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux import layers as L
from culux import nn
from tests.catalogue.case import Case, LayerCase, booleans, fixed, integers, normal, uniform
from tests.catalogue.dropouts import STATES, kept

ROUGH = {"tolerance": 5.0, "gradient_tolerance": 5.0}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
INFINITE = np.where(np.arange(35).reshape(5, 7) % 3 == 0, -np.inf, 0.5)  # a float mask
HIDDEN = np.arange(5)[:, None] * np.ones(7) != 2  # nothing for the third query


def attention(q, k, v, *, mask=True, bias=0.0, causal=False, scale=None):
    """y and the weights by the formula: keys and values repeated, 0 for a query that sees nothing."""
    if k.ndim > 2:
        k, v = (np.repeat(x, q.shape[-3] // k.shape[-3], axis=-3) for x in (k, v))
    scale = 1 / np.sqrt(q.shape[-1]) if scale is None else scale
    scores = np.einsum("...id,...jd->...ij", q, k) * scale + bias
    visible = np.logical_and(mask, np.tri(*scores.shape[-2:], dtype=bool) if causal else True)
    e = np.exp(scores) * visible
    total = e.sum(-1, keepdims=True)
    weights = e / np.where(total == 0, 1, total)
    return weights @ v, weights


def function_case(label: str, q: Any, k: Any, v: Any, *others: Any, name: str = "", **options: Any) -> Case:
    """A case on q, k, v of these shapes; what the fourth input makes is given as `name`."""

    def call(q: Any, k: Any, v: Any, *arrays: Any) -> Any:
        return nn.scaled_dot_product_attention(q, k, v, **dict(zip([name], arrays, strict=False)), **options)

    def formula(q: Any, k: Any, v: Any, *arrays: Any) -> Any:
        return attention(q, k, v, **{"mask" if a.dtype == bool else "bias": a for a in arrays}, **options)[0]

    def torch(t: Any, q: Any, k: Any, v: Any, *arrays: Any) -> Any:
        theirs = {"is_causal" if option == "causal" else option: value for option, value in options.items()}
        return t.nn.functional.scaled_dot_product_attention(q, k, v, *arrays, enable_gqa=q.ndim > 2, **theirs)

    return Case(
        "culux.nn.scaled_dot_product_attention", call, [normal(*q), normal(*k), normal(*v), *others],
        reference=formula, torch=torch, label=label, strict=not others, **ROUGH,
    )  # fmt: skip


def turned(x, cos, sin):
    """Every pair of features as a complex number, times that of its angle."""
    pairs = (x[..., :3] + 1j * x[..., 3:]) * (cos + 1j * sin)[..., None, :]
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def waves(x, sigmas, scale):
    """Sines and cosines of the positions times their frequencies."""
    return scale * np.concatenate([f(np.multiply.outer(x, sigmas)) for f in (np.sin, np.cos)], axis=-1)


FUNCTIONS = [
    function_case("", (2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)),
    function_case("grouped", (2, 6, 5, 4), (2, 2, 7, 4), (2, 2, 7, 3)),
    function_case("no-heads", (5, 3), (4, 3), (4, 2)),
    function_case("leading-axes", (2, 2, 4, 3, 2), (2, 2, 1, 5, 2), (2, 2, 1, 5, 2)),
    function_case("causal", (2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 4), causal=True),
    function_case("causal-q-shorter", (1, 4, 3, 2), (1, 2, 7, 2), (1, 2, 7, 5), causal=True),
    function_case("causal-q-longer", (1, 2, 7, 2), (1, 2, 3, 2), (1, 2, 3, 5), causal=True),
    function_case("scale", (2, 1, 5, 4), (2, 1, 2, 4), (2, 1, 2, 4), scale=-1.5),
    function_case("mask", (2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), booleans(2, 1, 5, 7), name="mask"),
    function_case("mask-grouped", (2, 4, 5, 3), (2, 2, 7, 3), (2, 2, 7, 3), booleans(2, 4, 5, 7), name="mask"),
    function_case("padding", (2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), booleans(2, 1, 1, 7), name="mask"),
    function_case("row-without-a-key", (2, 3, 5, 4), (2, 1, 7, 4), (2, 1, 7, 6), fixed(HIDDEN), name="mask"),
    function_case("bias", (2, 4, 5, 3), (2, 2, 7, 3), (2, 2, 7, 3), normal(4, 5, 7), name="bias"),
    function_case("float-mask", (2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), normal(5, 7), name="mask"),
    function_case("bias-broadcast", (2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), normal(3, 1, 7), name="bias"),
    Case(
        "culux.nn.scaled_dot_product_attention",
        lambda q, k, v, mask, bias: nn.scaled_dot_product_attention(
            q, k, v, mask=mask, bias=bias, causal=True, return_weights=True
        ),
        [normal(2, 4, 6, 3), normal(2, 2, 6, 3), normal(2, 2, 6, 5), booleans(2, 1, 1, 6), normal(4, 6, 6)],
        reference=lambda q, k, v, mask, bias: attention(q, k, v, mask=mask, bias=bias, causal=True),
        label="mask-bias-causal-weights", **ROUGH,
    ),
    Case(
        "culux.nn.scaled_dot_product_attention",
        lambda q, k, v, mask: nn.scaled_dot_product_attention(q, k, v, mask=mask),
        [normal(2, 3, 5, 4), normal(2, 3, 7, 4), normal(2, 3, 7, 6), fixed(INFINITE)],
        reference=lambda q, k, v, mask: attention(q, k, v, bias=mask)[0], label="mask-of-infinities",
        torch=lambda t, q, k, v, mask: t.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        differentiable=(0, 1, 2), why="the neighbours of an infinity are itself", **ROUGH,
    ),
    Case(
        "culux.nn.apply_rotary_embedding", nn.apply_rotary_embedding, [normal(2, 5, 3, 6), normal(5, 3), normal(5, 3)],
        reference=turned, strict=True,
    ),
    Case(
        "culux.nn.apply_rotary_embedding", nn.apply_rotary_embedding,
        [normal(2, 5, 3, 6), normal(2, 5, 3), normal(2, 5, 3)],
        reference=turned, label="angles-of-each-sequence", strict=True,
    ),
]  # fmt: skip


def layer_formula(ps, q, k, v, *, heads, kv_heads=None, keep=1.0, **options):
    """y and the weights of the layer; `keep` is a mask of the weights, scaled."""

    def project(name, x):
        return x @ ps[name].weight.T + ps[name].get("bias", 0.0)

    def split(name, x, count):
        x = project(name, x)
        return np.stack(np.split(x, count, axis=-1), axis=-3)

    kv_heads = kv_heads or heads
    q, k, v = split("q_proj", q, heads), split("k_proj", k, kv_heads), split("v_proj", v, kv_heads)
    _, weights = attention(q, k, v, **options)
    weights = weights * keep
    found = weights @ np.repeat(v, heads // kv_heads, axis=-3)
    return project("out_proj", np.concatenate(list(np.moveaxis(found, -3, 0)), axis=-1)), weights


def torch_layer(torch: Any, ps: Any, q: Any, k: Any, v: Any, *, heads: int, mask: Any = None) -> Any:
    """torch.nn.MultiheadAttention with these parameters: y and the weights. `mask` is True where q attends."""
    bias = "q_proj.bias" in ps
    module = torch.nn.MultiheadAttention(
        q.shape[-1], heads, bias=bias, kdim=k.shape[-1], vdim=v.shape[-1], batch_first=True, dtype=q.dtype
    )
    weights = [ps[f"{name}.weight"] for name in PROJECTIONS]
    named = {"out_proj.weight": weights.pop()}
    if q.shape[-1] == k.shape[-1] == v.shape[-1]:
        named["in_proj_weight"] = torch.cat(weights)
    else:
        named |= {f"{name}_weight": weight for name, weight in zip(PROJECTIONS, weights, strict=False)}
    if bias:
        biases = [ps[f"{name}.bias"] for name in PROJECTIONS]
        named |= {"out_proj.bias": biases.pop(), "in_proj_bias": torch.cat(biases)}
    hidden = None if mask is None else (~mask).expand(len(q), heads, -1, -1).flatten(0, 1)
    options = {"attn_mask": hidden, "average_attn_weights": False}
    return torch.func.functional_call(module, named, (q, k, v), options)


def parameters(q: Any, k: Any, v: Any, out: Any, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of projections ``(in_dims, out_dims)``."""
    found = {}
    for name, (in_dims, out_dims) in zip(PROJECTIONS, (q, k, v, out), strict=True):
        found |= {f"{name}.weight": (out_dims, in_dims), **({f"{name}.bias": (out_dims,)} if bias else {})}
    return found


DROPOUT = {
    "parameters": parameters((4, 4), (4, 4), (4, 4), (4, 4)),
    "states": tuple(f"attention_dropout.{name}" for name in STATES),
}
NAME = "culux.layers.MultiHeadAttention"

LAYERS = [
    LayerCase(
        NAME, L.MultiHeadAttention(6, num_heads=2), [normal(3, 5, 6)], **ROUGH,
        parameters=parameters((6, 6), (6, 6), (6, 6), (6, 6)),
        reference=lambda ps, st, x: layer_formula(ps, x, x, x, heads=2)[0],
        torch=lambda t, ps, x: torch_layer(t, ps, x, x, x, heads=2)[0],
    ),
    LayerCase(
        NAME, L.MultiHeadAttention(6, num_heads=3, key_dims=4, value_dims=5, return_weights=True),
        [normal(2, 5, 6), normal(2, 7, 4), normal(2, 7, 5)], label="q-k-v-weights", **ROUGH,
        parameters=parameters((6, 6), (4, 6), (5, 6), (6, 6)),
        reference=lambda ps, st, q, k, v: layer_formula(ps, q, k, v, heads=3),
        torch=lambda t, ps, q, k, v: torch_layer(t, ps, q, k, v, heads=3),
    ),
    LayerCase(
        NAME, L.MultiHeadAttention(4, num_heads=2, use_bias=False, causal=True), [normal(2, 3, 4), normal(2, 5, 4)],
        label="q-kv-causal", **ROUGH, parameters=parameters((4, 4), (4, 4), (4, 4), (4, 4), bias=False),
        reference=lambda ps, st, q, kv: layer_formula(ps, q, kv, kv, heads=2, causal=True)[0],
        torch=lambda t, ps, q, kv: torch_layer(t, ps, q, kv, kv, heads=2, mask=t.ones(3, 5, dtype=bool).tril())[0],
    ),
    LayerCase(
        NAME, L.MultiHeadAttention(4, num_heads=2, return_weights=True),
        [normal(2, 3, 4), normal(2, 5, 4), normal(2, 5, 4), booleans(2, 1, 3, 5)], label="mask", **ROUGH,
        parameters=parameters((4, 4), (4, 4), (4, 4), (4, 4)),
        reference=lambda ps, st, q, k, v, mask: layer_formula(ps, q, k, v, heads=2, mask=mask),
        torch=lambda t, ps, q, k, v, mask: torch_layer(t, ps, q, k, v, heads=2, mask=mask),
    ),
    LayerCase(
        NAME, L.MultiHeadAttention(3, num_heads=4, num_kv_heads=2, head_dims=2, value_head_dims=3, out_dims=5),
        [normal(2, 4, 3)], label="grouped", parameters=parameters((3, 8), (3, 4), (3, 6), (12, 5)), **ROUGH,
        reference=lambda ps, st, x: layer_formula(ps, x, x, x, heads=4, kv_heads=2)[0],
    ),
    LayerCase(
        NAME, L.MultiHeadAttention(4, num_heads=2, dropout=0.3), [normal(2, 5, 4)], label="dropout", **DROPOUT, **ROUGH,
        reference=lambda ps, st, x: layer_formula(
            ps, x, x, x, heads=2, keep=kept(st.attention_dropout.rng, 0.3, (2, 2, 5, 5)) / 0.7
        )[0],
    ),
    LayerCase(
        NAME, L.MultiHeadAttention(4, num_heads=2, dropout=0.3), [normal(2, 5, 4)], label="test-mode", test_mode=True,
        torch=lambda t, ps, x: torch_layer(t, ps, x, x, x, heads=2)[0], **DROPOUT, **ROUGH,
    ),
    LayerCase(
        "culux.layers.SinusoidalPositionalEmbedding", L.SinusoidalPositionalEmbedding(6), [uniform(-3, 3, 4, 5)],
        states=("sigmas",), reference=lambda ps, st, x: waves(x, st.sigmas, np.sqrt(1 / 3)),
    ),
    LayerCase(
        "culux.layers.SinusoidalPositionalEmbedding",
        L.SinusoidalPositionalEmbedding(4, min_freq=0.25, max_freq=0.5, scale=3.0, full_turns=True), [normal(7)],
        label="full-turns", states=("sigmas",),
        reference=lambda ps, st, x: waves(x, st.sigmas, 3),
    ),
    LayerCase(
        "culux.layers.RotaryPositionalEmbedding", L.RotaryPositionalEmbedding(6, max_sequence_length=9, base=100),
        [normal(2, 5, 3, 6)], states=("cos_cache", "sin_cache"),
        reference=lambda ps, st, x: turned(x, st.cos_cache[:5], st.sin_cache[:5]),
    ),
    LayerCase(
        "culux.layers.RotaryPositionalEmbedding", L.RotaryPositionalEmbedding(6, max_sequence_length=9, base=100),
        [normal(2, 5, 3, 6), integers(9, 2, 5)], states=("cos_cache", "sin_cache"), label="positions",
        reference=lambda ps, st, x, p: turned(x, st.cos_cache[p], st.sin_cache[p]),
    ),
]  # fmt: skip
