"""Parts made of parts that keep the shape of their input: `inner()` draws one."""

from __future__ import annotations

import operator

import numpy as np

import culux
from culux import numpy as cnp
from tests.architectures.part import Part, between, chain, choose, flag, side_by_side, split, torch


class Beside(culux.Layer):
    """A connection that is a layer: the sum of the outputs, each times a trained number; it counts its calls."""

    count: int

    def initial_parameters(self, rng):
        return {"gains": rng.uniform(0.5, 1, self.count)}

    def initial_states(self, rng):
        return {"calls": 0}

    def output_shape(self, input_shapes):
        return np.broadcast_shapes(*input_shapes)

    def __call__(self, x, ps, st):
        return sum(ps.gains[i] * x[i] for i in range(self.count)), st.replace(calls=st.calls + 1)


# Functions of culux or of Python, and torch's.
CONNECTIONS = [
    (operator.add, lambda *ys: sum(ys)),
    (cnp.multiply, lambda a, b: a * b),
    (cnp.maximum, lambda a, b: torch.maximum(a, b)),
    (np.subtract, lambda a, b: a - b),
]


def connection(rng, count=2):
    """How outputs are joined: a function, or a layer, as ``(join, twin of (outputs, ps, st))``."""
    if count != 2 or flag(rng):
        return Beside(count), _beside
    join, function = choose(rng, *CONNECTIONS)
    return join, lambda ys, ps, st: function(*ys)


def _beside(ys, ps, st):
    st["calls"] += 1
    return sum(gain * y for gain, y in zip(ps["gains"], ys, strict=True))


def _below(entries, name):
    return entries.get(name, {})


def skip_connection(rng, shape, inner):
    part, (join, joined) = inner(), connection(rng)

    def twin(x, ps, st, training):
        y = part.twin(x, ps["layers"], st["layers"], training)
        return joined((y, x), _below(ps, "connection"), _below(st, "connection"))

    return Part(culux.SkipConnection(part.layer, join), twin)


def branch(rng, shape, inner):
    parts = [inner() for _ in range(between(rng, 2, 3))]
    join, joined = connection(rng, len(parts))

    def twin(x, ps, st, training):
        return joined(side_by_side(parts, x, ps, st, training), _below(ps, "fusion"), _below(st, "fusion"))

    return Part(culux.BranchLayer(*[part.layer for part in parts], fusion=join), twin)


def parallel(rng, shape, inner):
    """A Parallel of one input for all, or of a tuple."""
    parts = [inner() for _ in range(2)]
    join, joined = connection(rng)

    def twin(x, ps, st, training):
        return joined(side_by_side(parts, x, ps, st, training), _below(ps, "connection"), _below(st, "connection"))

    part = Part(culux.Parallel(join, *[part.layer for part in parts]), twin)
    return chain(rng, [split([inner(), inner()]), part]) if flag(rng) else part


def pairwise_fusion(rng, shape, inner):
    """A PairwiseFusion of one input for all, or of a tuple."""
    parts = [inner() for _ in range(2)]
    join, joined = connection(rng)

    def twin(x, ps, st, training):
        y, *others = x if isinstance(x, tuple) else (x,) * 3
        for i, (part, other) in enumerate(zip(parts, others, strict=True)):
            y = part.twin(y, ps[f"layer_{i + 1}"], st[f"layer_{i + 1}"], training)
            y = joined((y, other), _below(ps, "connection"), _below(st, "connection"))
        return y

    part = Part(culux.PairwiseFusion(join, *[part.layer for part in parts]), twin)
    return chain(rng, [split([inner(), inner(), inner()]), part]) if flag(rng) else part


def maxout(rng, shape, inner):
    """The largest of several parts, or of copies of one."""
    copies = between(rng, 2, 3)
    parts = [inner()] * copies if flag(rng) else [inner() for _ in range(copies)]
    layer = culux.Maxout(parts[0].layer, copies) if parts[0] is parts[1] else culux.Maxout(*[p.layer for p in parts])

    def twin(x, ps, st, training):
        first, *others = side_by_side(parts, x, ps, st, training)
        for other in others:
            first = torch.maximum(first, other)
        return first

    return Part(layer, twin)


def repeated_layer(rng, shape, inner):
    part, repeats = inner(), between(rng, 2, 3)

    def twin(x, ps, st, training):
        for _ in range(repeats):
            x = part.twin(x, ps, st, training)
        return x

    return Part(culux.RepeatedLayer(part.layer, repeats=repeats), twin)


def repeated_with_input(rng, shape, inner):
    """A RepeatedLayer that gets the input again every time."""
    parts, repeats = [inner() for _ in range(2)], between(rng, 2, 3)

    def twin(x, ps, st, training):
        y = x
        for _ in range(repeats):
            y = sum(side_by_side(parts, (y, x), ps, st, training))
        return y

    layer = culux.Parallel(operator.add, *[part.layer for part in parts])
    return Part(culux.RepeatedLayer(layer, repeats=repeats, input_injection=True), twin)


COMBINING = [
    skip_connection,
    branch,
    parallel,
    pairwise_fusion,
    maxout,
    repeated_layer,
    repeated_with_input,
]
