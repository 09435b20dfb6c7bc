"""`dropout`, with its random state in and out."""

from __future__ import annotations

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback, plain
from culux.backends import Array, backend_of
from culux.backends.registry import namespace_of
from culux.errors import LayerError, ShapeError
from culux.kernels import philox
from culux.nn.fused import narrow, on_kernels, require_float, widen
from culux.random import check_state, dropout_mask
from culux.tree import Tree

__all__ = ["dropout", "mask_shape"]


def dropout(
    x: Array, rng_state: Tree, *, p: float, training: bool, axes: tuple[int, ...] | None = None
) -> tuple[Array, Tree]:
    """``y = x * (u >= p) / (1 - p)`` with u uniform in [0, 1); p = 1 gives zeros.

    The same state gives the same mask, on every device. Where not training, or p = 0, it is `x` itself and
    the same state. (Srivastava et al., "Dropout", 2014.)

    Args:
        x: any shape, float.
        rng_state: what `culux.random.rng_state` or an earlier draw returned.
        p: the probability of dropping, from 0 to 1.
        training: whether elements are dropped.
        axes: the axes along which elements are dropped apart; along the others they are dropped together, as with
            ``axes=(0, 1)`` the channels of images. None for all axes.

    Returns:
        y of the shape and dtype of `x`, and the state after the draw.

    Raises:
        LayerError: for a `p` outside [0, 1].
        ShapeError: for axes that `x` does not have.
        DTypeError: for an `x` that is no float array.
    """
    if not 0 <= p <= 1:
        raise LayerError(f"expected 0 <= p <= 1, the probability of dropping, got {p}")
    if not training or p == 0:
        return x, rng_state
    require_float("dropout", x)
    check_state(rng_state)
    key, counter = rng_state.key, rng_state.counter
    if axes is None and on_kernels(plain(x)) and _together(plain(x), key, counter):
        moved: list[Array] = []
        y = _drop(x, key, counter, p=p, moved=moved)
        return y, rng_state.replace(counter=moved[-1])
    mask, after = dropout_mask(rng_state, p, mask_shape(x.shape, axes), like=x)
    if p == 1:
        return namespace_of(x).zeros_like(x), after  # infinite elements too
    return _scaled(x, mask, scale=1 / (1 - p)), after


def mask_shape(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of a mask that drops along `axes` apart: 1 along the others.

    Raises:
        ShapeError: for axes that are not there.
    """
    if axes is None:
        return tuple(shape)
    if any(not -len(shape) <= axis < len(shape) for axis in axes):
        raise ShapeError(
            f"expected axes from {-len(shape)} to {len(shape) - 1}, got {axes} (x has shape {tuple(shape)})"
        )
    kept = {axis % len(shape) for axis in axes}
    return tuple(n if i in kept else 1 for i, n in enumerate(shape))


@primitive
def _scaled(x: Array, mask: Array, *, scale: float) -> Array:
    """`x` times `scale` where `mask` is true, else 0 (infinite elements, dropped, give NaN as in torch)."""
    wide = widen(x)
    return narrow(wide * (namespace_of(mask).asarray(mask, dtype=wide.dtype) * scale), x)


@_scaled.rule
def _(needs: tuple[bool, ...], x: Array, mask: Array, *, scale: float) -> tuple[Array, Pullback]:
    return _scaled(x, mask, scale=scale), lambda dy: (_scaled(dy, mask, scale=scale), None)


def _together(*arrays: Array) -> bool:
    """Whether the arrays are on one device."""
    return len({backend_of(a).place_of(a) for a in arrays}) == 1


@primitive
def _drop(x: Array, key: Array, counter: Array, *, p: float, moved: list[Array] | None = None) -> Array:
    """`dropout` that saves no mask; the counter after the draw is appended to `moved`.

    As an output the counter would be an entry on the tape that no gradient goes through.
    """
    mask, after = dropout_mask(Tree(key=key, counter=counter), p, x.shape, like=x)
    if moved is not None:
        moved.append(after.counter)
    return namespace_of(x).zeros_like(x) if p == 1 else _scaled(x, mask, scale=1 / (1 - p))


@_drop.implementation("cupy")
def _(x: Array, key: Array, counter: Array, *, p: float, moved: list[Array] | None = None) -> Array:
    y, after = philox.dropout(x, key, counter, p, advance=moved is not None)
    if moved is not None:
        moved.append(after)
    return y


@_drop.rule
def _(
    needs: tuple[bool, ...], x: Array, key: Array, counter: Array, *, p: float, moved: list[Array] | None = None
) -> tuple[Array, Pullback]:
    y = _drop(x, key, counter, p=p, moved=moved)
    return y, lambda dy: (_drop(dy, key, counter, p=p), None, None)
