"""`dropout`, with its random state in and out."""

from __future__ import annotations

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback
from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.errors import LayerError
from culux.nn.fused import narrow, require_float, widen
from culux.random import dropout_mask
from culux.tree import Tree

__all__ = ["dropout"]


def dropout(x: Array, rng_state: Tree, *, p: float, training: bool) -> tuple[Array, Tree]:
    """``y = x * (u >= p) / (1 - p)`` with u uniform in [0, 1); p = 1 gives zeros.

    The same state gives the same mask, on every device. Where not training, or p = 0, it is `x` itself and
    the same state. (Srivastava et al., "Dropout", 2014.)

    Args:
        x: any shape, float.
        rng_state: what `culux.random.rng_state` or an earlier draw returned.
        p: the probability of dropping, from 0 to 1.
        training: whether elements are dropped.

    Returns:
        y of the shape and dtype of `x`, and the state after the draw.

    Raises:
        LayerError: for a `p` outside [0, 1].
        DTypeError: for an `x` that is no float array.
    """
    if not 0 <= p <= 1:
        raise LayerError(f"expected 0 <= p <= 1, the probability of dropping, got {p}")
    if not training or p == 0:
        return x, rng_state
    require_float("dropout", x)
    mask, after = dropout_mask(rng_state, p, x.shape, like=x)
    if p == 1:
        return namespace_of(x).zeros_like(x), after  # infinite elements too
    return _scaled(x, mask, scale=1 / (1 - p)), after


@primitive
def _scaled(x: Array, mask: Array, *, scale: float) -> Array:
    """`x` times `scale` where `mask` is true, else 0 (infinite elements, dropped, give NaN as in torch)."""
    wide = widen(x)
    return narrow(wide * (namespace_of(mask).asarray(mask, dtype=wide.dtype) * scale), x)


@_scaled.rule
def _(needs: tuple[bool, ...], x: Array, mask: Array, *, scale: float) -> tuple[Array, Pullback]:
    return _scaled(x, mask, scale=scale), lambda dy: (_scaled(dy, mask, scale=scale), None)
