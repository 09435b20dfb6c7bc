"""Resizing of the spatial axes: `upsample` and `pixel_shuffle`."""

from __future__ import annotations

import math
from typing import Any

from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.errors import LayerError, ShapeError, describe
from culux.nn.axis_taps import AxisTaps, tapped
from culux.nn.fused import narrow, require_float, widen

__all__ = ["MODES", "check_resizing", "pixel_shuffle", "resized", "shuffled", "upsample"]

MODES = {"nearest": (1, 2, 3), "linear": (1,), "bilinear": (2,), "trilinear": (3,)}
"""The ways of `upsample`, and the numbers of spatial axes that they take."""

Scale = float | tuple[float, ...]
Size = int | tuple[int, ...]


def upsample(
    x: Array, *, mode: str = "nearest", scale: Scale | None = None, size: Size | None = None,
    align_corners: bool = False,
) -> Array:  # fmt: skip
    """`x` at more (or fewer) places along its spatial axes, with torch's rules for where these are.

    "nearest" takes ``x[floor(i / scale)]``; the linear modes interpolate between the two neighbours along every
    axis at ``(i + 0.5) / scale - 0.5``, or with `align_corners` at ``i * (in - 1) / (out - 1)``.

    Args:
        x: (N, C, *spatial), float.
        mode: "nearest", or for one, two and three spatial axes "linear", "bilinear" and "trilinear".
        scale: the factor of every spatial axis, or one for all; ``out = floor(in * scale)``.
        size: in its place the lengths of the spatial axes of y, or one for all.
        align_corners: whether the first and last elements of x and y are at the same places.

    Returns:
        y (N, C, *out), of the dtype of `x`.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: for an `x` that they do not fit.
        DTypeError: for an `x` that is no float array.
    """
    require_float("upsample", x)
    check_resizing("upsample", mode, scale, size, align_corners)
    out = resized("upsample", tuple(x.shape), mode, scale, size)
    scales = scale if isinstance(scale, tuple) else (scale,) * len(out)
    wide = x if mode == "nearest" else widen(x)
    for axis, (length, factor) in enumerate(zip(out, scales, strict=True), 2):
        if mode == "nearest":
            wide = _nearest(wide, axis, length, factor)
        elif length != x.shape[axis]:  # else a copy, as in torch, whatever fraction of an element is left over
            step = x.shape[axis] / length if factor is None else 1 / factor
            kind = "corners" if align_corners else "linear"
            wide = tapped(wide, taps=AxisTaps(axis, x.shape[axis], length, kind, step))
    return wide if mode == "nearest" else narrow(wide, x)


def check_resizing(function: str, mode: Any, scale: Any, size: Any, align_corners: Any) -> None:
    """Raise a `LayerError` where these are no arguments of `upsample`, whatever the input."""
    if not isinstance(mode, str) or mode not in MODES:
        hint = f"; {function}(scale={mode})" if isinstance(mode, int | float) else ""
        raise LayerError(
            f"{function}: expected mode to be one of {', '.join(map(repr, MODES))}, got {describe(mode)}{hint}"
        )
    if (scale is None) == (size is None):
        raise LayerError(f"{function}: expected scale or size, got {'neither' if scale is None else 'both'}")
    for name, value, kinds in (("scale", scale, (int, float)), ("size", size, (int,))):
        parts = value if isinstance(value, tuple) else (value,)
        right = parts and all(isinstance(n, kinds) and not isinstance(n, bool) and 0 < n < math.inf for n in parts)
        if value is not None and not right:
            kind = "number" if name == "scale" else "int"
            raise LayerError(
                f"{function}: expected {name} to be a positive {kind} or a tuple of them, got {describe(value)}"
            )
    if align_corners and mode == "nearest":
        raise LayerError(f"{function}: align_corners=True needs a linear mode, got mode='nearest'")


def resized(
    function: str, shape: tuple[int, ...], mode: str, scale: Scale | None, size: Size | None
) -> tuple[int, ...]:
    """The spatial axes of `upsample`'s output for an input of this shape.

    Raises:
        ShapeError: for a shape that `mode`, `scale` or `size` do not fit.
    """
    spatial = shape[2:]
    if len(spatial) not in MODES[mode] or not all(spatial):
        counts = " or ".join(map(str, MODES[mode]))
        raise ShapeError(
            f"{function}: expected x of shape (batch, channels, *spatial) with {counts} spatial axes for "
            f"mode={mode!r}, none of them empty, got {shape}"
        )
    name, value = ("size", size) if scale is None else ("scale", scale)
    if isinstance(value, tuple) and len(value) != len(spatial):
        raise ShapeError(
            f"{function}: expected {name} to have {len(spatial)} numbers, one per spatial axis, got {value} "
            f"(x has shape {shape})"
        )
    each: tuple[Any, ...] = value if isinstance(value, tuple) else (value,) * len(spatial)
    out = each if scale is None else tuple(math.floor(n * s) for n, s in zip(spatial, each, strict=True))
    if not all(out):
        raise ShapeError(
            f"{function}: expected a scale that leaves something of the spatial axes {spatial}, got {scale} "
            f"(x has shape {shape})"
        )
    return out


def _nearest(x: Array, axis: int, out: int, factor: float | None) -> Array:
    """``x[floor(i / factor)]`` along an axis; without a factor that of the lengths."""
    size, xp = x.shape[axis], namespace_of(x)
    if out % size or factor not in (None, out // size):
        return tapped(x, taps=AxisTaps(axis, size, out, "nearest", size / out if factor is None else 1 / factor))
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    spread = xp.broadcast_to(xp.expand_dims(x, axis=axis + 1), (*before, size, out // size, *after))
    return xp.reshape(spread, (*before, out, *after))


def pixel_shuffle(x: Array, factor: int) -> Array:
    """Channels laid out in space: ``y[n, c, h * r + i, w * r + j] = x[n, (c * r + i) * r + j, h, w]``, r the factor.

    (Shi et al., "Real-time single image and video super-resolution ...", 2016; the order of channels is torch's.)

    Args:
        x: (N, C * factor**k, *spatial), with k spatial axes, one at least.
        factor: by how much every spatial axis grows.

    Returns:
        y (N, C, *out), ``out = size * factor``, of the dtype of `x`.

    Raises:
        LayerError: for a factor that is no positive int.
        ShapeError: for an `x` without spatial axes, or whose channels the factor does not divide.
    """
    shape = shuffled("pixel_shuffle", tuple(x.shape), factor)
    spatial = tuple(x.shape[2:])
    count, xp = len(spatial), namespace_of(x)
    parts = xp.reshape(x, (*shape[:2], *(factor,) * count, *spatial))
    # Every factor's axis goes behind the axis that it makes longer.
    parts = xp.moveaxis(parts, tuple(range(2, 2 + count)), tuple(range(3, 3 + 2 * count, 2)))
    return xp.reshape(parts, shape)


def shuffled(function: str, shape: tuple[int, ...], factor: int) -> tuple[int, ...]:
    """The shape of `pixel_shuffle`'s output for an input of this shape.

    Raises:
        LayerError: for a factor that is no positive int.
        ShapeError: for a shape that it does not fit.
    """
    if not isinstance(factor, int) or isinstance(factor, bool) or factor < 1:
        raise LayerError(f"{function}: expected factor to be a positive int, got {describe(factor)}")
    count = len(shape) - 2
    if count < 1 or shape[1] % factor**count:
        needed = f" and channels that {factor}**{count} = {factor**count} divides" if count > 0 else ""
        raise ShapeError(f"{function}: expected x of shape (batch, channels, *spatial){needed}, got {shape}")
    return (shape[0], shape[1] // factor**count, *(n * factor for n in shape[2:]))
