"""`alpha_dropout`: dropout that keeps mean and variance of what `selu` gives."""

from __future__ import annotations

from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.errors import LayerError
from culux.nn.fused import narrow, require_float, widen
from culux.random import dropout_mask
from culux.tree import Tree

__all__ = ["alpha_dropout"]

_ALPHA = -1.7580993408473766  # what selu tends to: -scale * alpha


def alpha_dropout(x: Array, rng_state: Tree, *, p: float, training: bool) -> tuple[Array, Tree]:
    """``y = a * where(u >= p, x, alpha) + b`` with u uniform in [0, 1); p = 1 gives zeros.

    ``alpha = -1.7581`` is the limit of `selu`; ``a = ((1 - p) * (1 + p * alpha**2)) ** -0.5`` and
    ``b = -a * p * alpha`` keep mean 0 and variance 1. The same state gives the same mask, that of `dropout`.
    Where not training, or p = 0, it is `x` itself and the same state. (Klambauer et al., "Self-normalizing neural
    networks", 2017.)

    Args:
        x: any shape, float.
        rng_state: what `culux.random.rng_state` or an earlier draw returned.
        p: the probability of dropping, from 0 to 1.
        training: whether elements are dropped.

    Returns:
        y of the shape and dtype of `x`, and the state after the draw.

    Raises:
        LayerError: for a `p` outside [0, 1].
        DTypeError: for an `x` that is no float array, or a state that is none.
    """
    if not 0 <= p <= 1:
        raise LayerError(f"expected 0 <= p <= 1, the probability of dropping, got {p}")
    if not training or p == 0:
        return x, rng_state
    require_float("alpha_dropout", x)
    mask, after = dropout_mask(rng_state, p, x.shape, like=x)
    if p == 1:
        return namespace_of(x).zeros_like(x), after
    scale = ((1 - p) * (1 + p * _ALPHA**2)) ** -0.5
    wide = widen(x)
    return narrow(scale * namespace_of(wide).where(mask, wide, _ALPHA) - scale * p * _ALPHA, x), after
