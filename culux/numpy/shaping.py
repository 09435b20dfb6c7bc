"""Shapes, joining and repeating, each with its derivative beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback, plain
from culux.backends import Array
from culux.backends.registry import backend_of, namespace_of
from culux.errors import ShapeError
from culux.numpy.broadcasting import axis_of, common_namespace, fit, normalize_axes, outline, shape_of
from culux.numpy.elementwise import asarray
from culux.numpy.indexing import getitem, take

Shape = tuple[int, ...]
Widths = tuple[tuple[int, int], ...]


def shape(a: Array) -> Shape:
    """The lengths of the axes."""
    return a.shape if hasattr(a, "shape") else np.shape(a)


def ndim(a: Array) -> int:
    """The number of axes."""
    return len(shape(a))


def size(a: Array, axis: int | None = None) -> int:
    """The number of elements, or the length of an axis."""
    return math.prod(shape(a)) if axis is None else shape(a)[axis]


@primitive
def _reshape(x: Array, *, shape: Any) -> Array:
    return namespace_of(x).reshape(x, shape)


@_reshape.rule
def _(needs: tuple[bool, ...], x: Array, *, shape: Any) -> tuple[Array, Pullback]:
    before = shape_of(x)
    return namespace_of(x).reshape(x, shape), lambda dy: (namespace_of(dy).reshape(dy, before),)


def reshape(a: Array, shape: int | Shape, order: str = "C") -> Array:
    """`a` in another shape of the same size, in C or Fortran order; one entry may be -1."""
    target = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    if order not in ("C", "F"):
        raise ShapeError(f"reshape: expected order 'C' or 'F', got {order!r}")
    return _reshape(a, shape=target) if order == "C" else transpose(_reshape(transpose(a), shape=target[::-1]))


def ravel(a: Array, order: str = "C") -> Array:
    """`a` as one axis, in C or Fortran order."""
    return reshape(a, -1, order)


@primitive
def _transpose(x: Array, *, axes: Shape) -> Array:
    xp = namespace_of(x)
    return xp.permute_dims(x, axes) if hasattr(xp, "permute_dims") else xp.transpose(x, axes)


@_transpose.rule
def _(needs: tuple[bool, ...], x: Array, *, axes: Shape) -> tuple[Array, Pullback]:
    inverse = tuple(int(i) for i in np.argsort(axes))
    return _transpose(x, axes=axes), lambda dy: (_transpose(dy, axes=inverse),)


def transpose(a: Array, axes: Sequence[int] | None = None) -> Array:
    """`a` with its axes in another order; reversed if None."""
    order = range(a.ndim)[::-1] if axes is None else [axis_of(i, a.ndim) for i in axes]
    return _transpose(a, axes=tuple(order))


def swapaxes(a: Array, axis1: int, axis2: int) -> Array:
    """`a` with two axes exchanged."""
    order = list(range(a.ndim))
    first, second = axis_of(axis1, a.ndim), axis_of(axis2, a.ndim)
    order[first], order[second] = second, first
    return _transpose(a, axes=tuple(order))


def matrix_transpose(x: Array) -> Array:
    """`x` with its last two axes exchanged."""
    return swapaxes(x, -1, -2)


def moveaxis(a: Array, source: int | Sequence[int], destination: int | Sequence[int]) -> Array:
    """`a` with axes moved to other positions; the others keep their order."""
    sources = [source] if isinstance(source, int) else list(source)
    targets = [destination] if isinstance(destination, int) else list(destination)
    pairs = sorted((axis_of(t, a.ndim), axis_of(s, a.ndim)) for s, t in zip(sources, targets, strict=True))
    moved = {s for _, s in pairs}
    order = [i for i in range(a.ndim) if i not in moved]
    for target, origin in pairs:
        order.insert(target, origin)
    return _transpose(a, axes=tuple(order))


def squeeze(a: Array, axis: int | Shape | None = None) -> Array:
    """`a` without axes of length 1: all of them, or those named."""
    drop = [i for i, n in enumerate(a.shape) if n == 1] if axis is None else normalize_axes(axis, a.ndim)
    wrong = [i for i in drop if a.shape[i] != 1]
    if wrong:
        raise ShapeError(f"squeeze: expected axes of length 1, got {wrong} of shape {tuple(a.shape)}")
    return _reshape(a, shape=tuple(n for i, n in enumerate(a.shape) if i not in drop))


def expand_dims(a: Array, axis: int | Shape) -> Array:
    """`a` with new axes of length 1 at these positions of the result."""
    ndim = len(shape_of(a)) + (len(axis) if isinstance(axis, (tuple, list)) else 1)
    new = normalize_axes(axis, ndim)
    old = iter(shape_of(a))
    return _reshape(a, shape=tuple(1 if i in new else next(old) for i in range(ndim)))


@primitive
def _broadcast_to(x: Array, *, shape: Shape) -> Array:
    return namespace_of(x).broadcast_to(x, shape)


@_broadcast_to.rule
def _(needs: tuple[bool, ...], x: Array, *, shape: Shape) -> tuple[Array, Pullback]:
    like = outline(x)
    return namespace_of(x).broadcast_to(x, shape), lambda dy: (fit(dy, like),)


def broadcast_to(array: Array, shape: int | Shape) -> Array:
    """`array` repeated to a shape by the broadcasting rules; a read-only view."""
    return _broadcast_to(array, shape=(shape,) if isinstance(shape, int) else tuple(shape))


@primitive
def _concatenate(*arrays: Array, axis: int) -> Array:
    xp = common_namespace(*arrays)
    return (xp.concat if hasattr(xp, "concat") else xp.concatenate)(arrays, axis=axis)


@_concatenate.rule
def _(needs: tuple[bool, ...], *arrays: Array, axis: int) -> tuple[Array, Pullback]:
    y = _concatenate(*arrays, axis=axis)
    likes = [outline(array) for array in arrays]

    def pullback(dy: Array) -> tuple[Any, ...]:
        pieces, start = [], 0
        for like, need in zip(likes, needs, strict=True):
            stop = start + like.shape[axis]
            key = (slice(None),) * axis_of(axis, dy.ndim) + (slice(start, stop),)
            pieces.append(fit(dy[key], like) if need else None)
            start = stop
        return tuple(pieces)

    return y, pullback


def concatenate(arrays: Sequence[Array], axis: int | None = 0) -> Array:
    """Arrays joined along an axis that they have; flattened ones if None."""
    if len(arrays) == 0:
        raise ShapeError("concatenate: expected at least one array, got none")
    if axis is None:
        return _concatenate(*[ravel(a) for a in arrays], axis=0)
    return _concatenate(*[asarray(a) for a in arrays], axis=axis)


def stack(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Arrays of one shape joined along a new axis."""
    shapes = {tuple(shape_of(a)) for a in arrays}
    if len(shapes) != 1:
        raise ShapeError(f"stack: expected arrays of one shape, got {', '.join(map(str, sorted(shapes))) or 'none'}")
    return _concatenate(*[expand_dims(a, axis) for a in arrays], axis=axis)


def vstack(tup: Sequence[Array]) -> Array:
    """Arrays joined along the first axis; those with one axis are rows."""
    return concatenate([atleast_2d(a) for a in tup], 0)


def hstack(tup: Sequence[Array]) -> Array:
    """Arrays joined along the second axis; along the first where they have one."""
    arrays = [atleast_1d(a) for a in tup]
    return concatenate(arrays, 0 if arrays and arrays[0].ndim == 1 else 1)


def split(ary: Array, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Array]:
    """`ary` cut along an axis into equal sections, or before the given indices."""
    length = ary.shape[axis]
    if isinstance(indices_or_sections, int):
        if length % indices_or_sections:
            raise ShapeError(f"split: expected {indices_or_sections} equal sections, got an axis of length {length}")
        step = length // indices_or_sections
        cuts = [step * i for i in range(1, indices_or_sections)]
    else:
        cuts = list(indices_or_sections)
    lead = (slice(None),) * axis_of(axis, ary.ndim)
    return [getitem(ary, (*lead, slice(start, stop))) for start, stop in zip([0, *cuts], [*cuts, None], strict=True)]


def flip(m: Array, axis: int | Shape | None = None) -> Array:
    """`m` reversed along axes, all of them if None."""
    turned = normalize_axes(axis, m.ndim)
    return getitem(m, tuple(slice(None, None, -1) if i in turned else slice(None) for i in range(m.ndim)))


def roll(a: Array, shift: int | Shape, axis: int | Shape | None = None) -> Array:
    """`a` shifted cyclically along axes; the flattened array if None."""
    if axis is None:
        return reshape(roll(ravel(a), shift, 0), a.shape)
    shifts = (shift,) if isinstance(shift, int) else shift
    axes = (axis,) if isinstance(axis, int) else axis
    for by, along in zip(shifts, axes, strict=True):
        cut = (-by) % a.shape[along] if a.shape[along] else 0
        if cut:
            first, second = split(a, [cut], along)
            a = concatenate([second, first], along)
    return a


@primitive
def _pad(x: Array, *, widths: Widths, value: float) -> Array:
    return namespace_of(x).pad(x, widths, constant_values=value)


@_pad.rule
def _(
    needs: tuple[bool, ...], x: Array, *, widths: tuple[tuple[int, int], ...], value: float
) -> tuple[Array, Pullback]:
    inside = tuple(slice(low, low + n) for (low, _), n in zip(widths, x.shape, strict=True))
    return _pad(x, widths=widths, value=value), lambda dy: (dy[inside],)


def pad(array: Array, pad_width: Any, mode: str = "constant", *, constant_values: float = 0) -> Array:
    """`array` with a border: a constant, or what NumPy's modes ``edge``, ``reflect``, ``symmetric``, ``wrap`` repeat.

    `pad_width` is what NumPy takes: n, (low, high), or a pair per axis.
    """
    widths = tuple((int(low), int(high)) for low, high in np.broadcast_to(np.asarray(pad_width), (array.ndim, 2)))
    if mode == "constant":
        return _pad(array, widths=widths, value=constant_values)
    xp = backend_of(plain(array)).xp
    for axis, (n, width) in enumerate(zip(array.shape, widths, strict=True)):
        if any(width):  # a border of copies is a reading of the array at padded indices
            places = np.pad(np.arange(n), width, mode=mode)  # type: ignore[call-overload]  # NumPy wants a literal
            array = take(array, xp.asarray(places), axis)
    return array


def tile(A: Array, reps: int | Sequence[int]) -> Array:
    """`A` repeated as a whole, `reps` times along each axis."""
    counts = (reps,) if isinstance(reps, int) else tuple(reps)
    counts = (1,) * (A.ndim - len(counts)) + counts
    shape = (1,) * (len(counts) - A.ndim) + tuple(A.shape)
    doubled = tuple(n for pair in zip([1] * len(shape), shape, strict=True) for n in pair)
    spread = tuple(n for pair in zip(counts, shape, strict=True) for n in pair)
    out = tuple(c * n for c, n in zip(counts, shape, strict=True))
    return reshape(broadcast_to(reshape(A, doubled), spread), out)


def repeat(a: Array, repeats: int | Sequence[int], axis: int | None = None) -> Array:
    """Every element repeated along an axis, `repeats` times or its own number; of the flattened array if None."""
    if axis is None:
        return repeat(ravel(a), repeats, 0)
    if isinstance(repeats, int):
        axis = axis_of(axis, a.ndim)
        before, n, after = a.shape[:axis], a.shape[axis], a.shape[axis + 1 :]
        spread = broadcast_to(expand_dims(a, axis + 1), (*before, n, repeats, *after))
        return reshape(spread, (*before, n * repeats, *after))
    indices = np.repeat(np.arange(a.shape[axis]), repeats)
    return take(a, backend_of(plain(a)).xp.asarray(indices), axis)


def atleast_1d(a: Array) -> Array:
    """`a`, or where it is a scalar an array with one axis."""
    return a if len(shape_of(a)) >= 1 else reshape(a, (1,))


def atleast_2d(a: Array) -> Array:
    """`a` with leading axes of length 1 so that it has two at least."""
    shape = shape_of(a)
    return a if len(shape) >= 2 else reshape(a, (1,) * (2 - len(shape)) + tuple(shape))
