"""Parts for ``(batch, features)``, and those that change what an axis is."""

from __future__ import annotations

import math
from functools import partial

import culux
from tests.architectures.attention import sinusoidal
from tests.architectures.images import batch_norm, group_norm
from tests.architectures.part import F, Part, activation, between, chain, choose, dense, flag, split, stateless
from tests.architectures.sequences import stateful_cell
from tests.architectures.wrapping import WRAPPING


def wider(rng, shape):
    return dense(rng, shape, between(rng, 3, 8))


def bilinear(rng, shape):
    """A Bilinear of one input taken twice, or of a pair of two lengths."""
    out, bias, (record, function) = between(rng, 3, 6), flag(rng), activation(rng)
    two = flag(rng)
    lengths = (between(rng, 2, 4), between(rng, 2, 4)) if two else shape[-1]
    layer = culux.Bilinear(lengths, out, record, use_bias=bias)

    def twin(x, ps, st, training):
        first, second = x if two else (x, x)
        return function(F.bilinear(first, second, ps["weight"], ps.get("bias")))

    part = Part(layer, twin)
    return chain(rng, [split([dense(rng, shape, length) for length in lengths]), part]) if two else part


def flattened(rng, shape):
    return stateless(culux.FlattenLayer(), lambda x: x.flatten(1))


def reshaped(rng, shape):
    """Samples in rows, one of which is taken."""
    rows = choose(rng, *[n for n in range(1, 4) if math.prod(shape[1:]) % n == 0])
    columns = choose(rng, -1, math.prod(shape[1:]) // rows)
    row, axis = between(rng, 0, rows - 1), choose(rng, 1, -2)
    return chain(
        rng,
        [
            stateless(culux.ReshapeLayer((rows, columns)), lambda x: x.reshape(x.shape[0], rows, -1)),
            stateless(culux.SelectDim(axis, choose(rng, row, row - rows)), lambda x: x[:, row]),
        ],
    )


VECTORS = [
    wider,
    bilinear,
    partial(batch_norm, track=False),
    batch_norm,
    group_norm,
    sinusoidal,
    stateful_cell,
    reshaped,
    *WRAPPING,
]
