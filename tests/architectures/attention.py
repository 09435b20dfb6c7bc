"""Parts for ``(batch, time, features)`` without recurrence: attention, and turns by position."""

from __future__ import annotations

from functools import partial

import culux
from tests.architectures.part import F, Part, between, chain, choose, dense, dropped, flag, split, stateless, torch


def attention(rng, shape, *, count):
    """A MultiHeadAttention of one input, of a pair, or of queries, keys and values; causal but for the pair."""
    heads, kv_heads, features = 4, choose(rng, 1, 2, 4), shape[-1]
    p, causal = choose(rng, 0.0, 0.3), count != 2
    lengths = {1: (features,) * 3, 2: (features, 4, 4), 3: (features, 3, 5)}[count]
    layer = culux.MultiHeadAttention(
        features, num_heads=heads, num_kv_heads=kv_heads, head_dims=between(rng, 2, 3),
        value_head_dims=between(rng, 2, 3), key_dims=lengths[1], value_dims=lengths[2], out_dims=between(rng, 3, 5),
        use_bias=flag(rng), dropout=p, causal=causal,
    )  # fmt: skip

    def projected(name, x, ps, count):
        y = F.linear(x, ps[name]["weight"], ps[name].get("bias")).unflatten(-1, (count, -1)).transpose(1, 2)
        return y.repeat_interleave(heads // count, dim=1)

    def twin(x, ps, st, training):
        q, k, v = (x, x, x) if count == 1 else (*x, x[-1])[:3]
        q = projected("q_proj", q, ps, heads)
        k, v = projected("k_proj", k, ps, kv_heads), projected("v_proj", v, ps, kv_heads)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if causal:
            scores = scores + torch.full_like(scores, -torch.inf).triu(1)
        weights = torch.softmax(scores, dim=-1)
        weights = dropped(weights, p, st["attention_dropout"], training) if p else weights
        return F.linear((weights @ v).transpose(1, 2).flatten(2), ps["out_proj"]["weight"], ps["out_proj"].get("bias"))

    if count == 1:
        return Part(layer, twin)
    return chain(rng, [split([dense(rng, shape, length) for length in lengths[:count]]), Part(layer, twin)])


def rotary(rng, shape):
    """Heads turned by their positions."""
    time, heads, dims = shape[1], between(rng, 1, 2), 2 * between(rng, 1, 2)

    def turned(x, ps, st, training):
        cos, sin = (st[name][:time, None] for name in ("cos_cache", "sin_cache"))
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    layer = culux.RotaryPositionalEmbedding(dims, max_sequence_length=time + between(rng, 0, 2))
    return chain(
        rng,
        [
            dense(rng, shape, heads * dims),
            stateless(culux.ReshapeLayer((time, heads, dims)), lambda x: x.unflatten(-1, (heads, dims))),
            Part(layer, turned),
            stateless(culux.ReshapeLayer((time, heads * dims)), lambda x: x.flatten(2)),
        ],
    )


def sinusoidal(rng, shape):
    """Every feature as a position, with all that comes of it side by side."""
    dims, scale = 2 * between(rng, 1, 2), choose(rng, None, 0.7)

    def function(x, ps, st, training):
        angles = x[..., None] * st["sigmas"]
        y = torch.cat((torch.sin(angles), torch.cos(angles)), dim=-1)
        return y * ((2 / dims) ** 0.5 if scale is None else scale)

    part = Part(culux.SinusoidalPositionalEmbedding(dims, scale=scale, min_freq=0.1), function)
    flat = (*shape[1:-1], shape[-1] * dims)
    return chain(rng, [part, stateless(culux.ReshapeLayer(flat), lambda x: x.flatten(-2))])


ATTENTION = [*[partial(attention, count=count) for count in (1, 2, 3)], rotary, sinusoidal]
