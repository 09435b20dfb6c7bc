"""`apply_rotary_embedding`: positions as angles by which pairs of features are turned."""

from __future__ import annotations

from culux import numpy as cnp
from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback
from culux.backends import Array
from culux.errors import ShapeError
from culux.nn.fused import decompose, narrow, require_float, widen
from culux.numpy.broadcasting import fit, outline

__all__ = ["apply_rotary_embedding"]


def apply_rotary_embedding(x: Array, cos: Array, sin: Array) -> Array:
    """``y = (x1 * cos - x2 * sin, x2 * cos + x1 * sin)``, x1 and x2 being the two halves of every head's features.

    Each pair of features is turned by the angle of its step, so that the product of two turned heads depends on the
    distance of their steps alone. (Su et al., "RoFormer", 2021.) float16 and bfloat16 are computed in float32.

    Args:
        x: (..., length, heads, dims), float, dims even.
        cos: the cosines of the angles, (length, dims / 2) or (..., length, dims / 2).
        sin: the sines, of the same shape.

    Returns:
        y of the shape and dtype of `x`.

    Raises:
        ShapeError: for shapes that do not fit.
        DTypeError: for an `x`, `cos` or `sin` that is no float array.
    """
    for name, array in (("x", x), ("cos", cos), ("sin", sin)):
        require_float("apply_rotary_embedding", array, name)
    shape, angles = tuple(x.shape), tuple(cos.shape)
    known = len(shape) >= 3 and not shape[-1] % 2
    if not known or angles not in ((shape[-3], shape[-1] // 2), (*shape[:-2], shape[-1] // 2)) or sin.shape != angles:
        raise ShapeError(
            "apply_rotary_embedding: expected x of shape (..., length, heads, dims), dims even, and cos and sin of "
            f"shape (length, dims / 2) or (..., length, dims / 2), got {shape}, {angles} and {tuple(sin.shape)}"
        )
    return narrow(_rotary(widen(x), widen(cos)[..., None, :], widen(sin)[..., None, :]), x)


@primitive(composite=True)
def _rotary(x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return cnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@_rotary.rule
def _(needs: tuple[bool, ...], x: Array, cos: Array, sin: Array) -> tuple[Array, Pullback]:
    if needs[1] or needs[2]:
        return decompose(_rotary, needs, (x, cos, sin), {})
    like = outline(x)
    # The way back is the turn by the opposite angle.
    return _rotary(x, cos, sin), lambda dy: (fit(_rotary(dy, cos, -sin), like), None, None)
