"""Parts of a layer around another that changes what becomes of its parameters or dtypes."""

from __future__ import annotations

import culux
from tests.architectures.part import Part, chain, choose, dense, dropout, torch


def normalized(part, name, dims):
    """A WeightNorm of a part whose parameter `name` is normalised."""

    def twin(x, ps, st, training):
        v, g = ps["normalized"][f"{name}_v"], ps["normalized"][f"{name}_g"]
        axes = [i for i in range(v.ndim) if i not in (dims if isinstance(dims, tuple) else (dims,))]
        norm = torch.linalg.vector_norm(v, dim=axes, keepdim=True)
        return part.twin(x, {**ps["unnormalized"], name: g * v / norm}, st, training)

    return Part(culux.WeightNorm(part.layer, name, dims), twin)


def weight_norm(rng, shape):
    return normalized(dense(rng, shape), "weight", choose(rng, 0, 1, None))


def alternate_precision(rng, shape):
    """float32 at the border of a Dense, whose parameters stay float64."""
    part = dense(rng, shape)
    return Part(
        culux.AlternatePrecision("float32", part.layer),
        lambda x, ps, st, training: part.twin(x.float().double(), ps, st, training),
    )


def with_precision(rng, shape):
    """The way through another dtype, which is the one that all have."""
    part = dense(rng, shape)
    return Part(culux.with_precision(part.layer, "float64"), part.twin)


def _merged(entries, others):
    """The entries of both, at their places."""
    both = dict(entries)
    for name, other in others.items():
        both[name] = _merged(entries.get(name, {}), other) if isinstance(other, dict) else other
    return both


def frozen(rng, shape):
    """A Frozen of two layers, of one of them, or of their weights, around one with states."""
    part = chain(rng, [dense(rng, shape), dropout(rng, shape), dense(rng, shape)])
    which = choose(rng, "*", "*.weight", f"{next(iter(part.layer.children()))}.*")

    def twin(x, ps, st, training):
        return part.twin(x, _merged(ps, st["frozen"]), st["states"], training)

    return Part(culux.Frozen(part.layer, which), twin)


def shared(rng, shape):
    """A Shared of a layer that stands at two places, with all parameters or the weight shared."""
    twice = dense(rng, shape)
    part = chain(rng, [twice, dense(rng, shape), twice])
    source, _, place = part.layer.children()
    whole = choose(rng, True, False)
    ties = {place: source} if whole else {f"{place}.weight": f"{source}.weight"}

    def twin(x, ps, st, training):
        own = ps[source] if whole else {**ps[place], "weight": ps[source]["weight"]}
        return part.twin(x, {**ps, place: own}, st, training)

    return Part(culux.Shared(part.layer, ties), twin)


WRAPPING = [weight_norm, alternate_precision, with_precision, frozen, shared]
