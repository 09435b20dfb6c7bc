"""Architectures drawn from a seed; those of neighbouring seeds share out all kinds of parts."""

from __future__ import annotations

import functools

import numpy as np

from tests.architectures import combining, images, sequences, vectors
from tests.architectures.part import (
    activation_layer,
    alpha_dropout,
    between,
    chain,
    choose,
    dense,
    dropout,
    layer_norm,
    no_op,
    reverse_sequence,
    rms_norm,
    scale,
    variational_dropout,
)

COUNT = 20
# With this number the gradient reaches nearly all parameters of all architectures, where others draw some that are
# flat; the test fails for those, and new kinds of parts may need another number.
SALT = 3

KEEPING = [
    activation_layer, alpha_dropout, dense, dropout, layer_norm, no_op, reverse_sequence, rms_norm, scale,
    variational_dropout,
]  # fmt: skip


def _keeping_conv(rng, shape):
    return images.conv(rng, shape, shape[1], form="same")


# The kinds of parts of each family, and those of a shape of its own that keep it.
FAMILIES = {
    "images": (images.IMAGES, [_keeping_conv, images.batch_norm, images.group_norm]),
    "sequences": (sequences.SEQUENCES, []),
    "vectors": (vectors.VECTORS, [images.batch_norm]),
}


def _inner(rng, shape, kinds):
    """A part that keeps this shape."""
    while True:
        part = choose(rng, *kinds)(rng, shape)
        if part is not None:
            return part


def _kinds(family):
    """All kinds of a family, those that combine others included."""
    own, keeping = FAMILIES[family]

    def combined(kind, rng, shape):
        return kind(rng, shape, functools.partial(_inner, rng, shape, [*keeping, *keeping, *KEEPING]))

    return [*own, *own, *KEEPING, *[functools.partial(combined, kind) for kind in combining.COMBINING]]


def _input(rng, family, axes):
    """The parts that an architecture begins with, an input, and the shape that the next part gets."""
    if family == "vectors":
        shape = (between(rng, 4, 6), between(rng, 4, 7))
    elif family == "images":
        low, high = {1: (8, 14), 2: (5, 8), 3: (4, 5)}[axes]
        shape = (between(rng, 2, 3), between(rng, 2, 4), *[between(rng, low, high) for _ in range(axes)])
    else:
        shape = (between(rng, 2, 3), between(rng, 3, 5))
        ids = rng.integers(0, 9, shape)
        part = sequences.embedding(rng, 9)
        return [part], ids, part.layer.output_shape(shape)
    return [], rng.standard_normal(shape), shape


def _head(rng, family):
    """The kinds that an architecture ends with: they leave ``(batch, features)``."""
    first = {"images": [vectors.flattened, vectors.reshaped], "sequences": sequences.LAST, "vectors": [no_op]}[family]
    return [choose(rng, *first), choose(rng, *vectors.VECTORS), functools.partial(dense, linear=True)]


def architecture(seed):
    """The part that this seed draws, and an input of it."""
    rng = np.random.default_rng([SALT, seed])
    names = list(FAMILIES)
    family, number = names[seed % len(names)], seed // len(names)
    kinds = _kinds(family)
    shares = COUNT // len(names)
    share = kinds[number % shares :: shares]
    parts, x, shape = _input(rng, family, 1 + number % 3)
    for kind in [*[share[i] for i in rng.permutation(len(share))], *_head(rng, family)]:
        part = kind(rng, shape)
        if part is not None:
            parts.append(part)
            shape = part.layer.output_shape(shape)
    return chain(rng, parts), x
