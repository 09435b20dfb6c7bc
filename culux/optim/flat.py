"""Flat buffers: where every parameter of a tree lies in one array per dtype.

A segment is a parameter's place in its buffer, padded to 128 bytes. Segments whose gradients go through the
same rules lie side by side, so that a rule runs over one stretch of a buffer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from culux import tree
from culux.backends import Array, is_array, is_float_array
from culux.backends.dtypes import dtype_named
from culux.backends.numpy_backend import SCALARS
from culux.backends.registry import is_mixed, mixed_message, namespace_of
from culux.core.fields import is_layer
from culux.errors import DeviceError, DifferentiationError, DTypeError, LayerError, ShapeError, describe
from culux.optim.buffers import Pool
from culux.optim.rules import Rule
from culux.tree import Structure, Tree, as_tree, trusted

__all__ = [
    "Layout",
    "Part",
    "Segment",
    "check_dtypes",
    "check_place",
    "collect",
    "gather",
    "layout_of",
    "mismatch",
    "rebuild",
    "views",
]

ALIGNMENT = 128  # bytes


@dataclass(frozen=True)
class Segment:
    """A parameter's place in the flat buffer of its dtype."""

    path: str
    shape: tuple[int, ...]
    start: int
    size: int
    padding: int  # zeros after it
    places: tuple[tuple[int, ...], ...]  # of its rules, see `Rule.stages`

    @property
    def stop(self) -> int:
        """Where the next segment starts."""
        return self.start + self.size + self.padding


@dataclass(frozen=True)
class Part:
    """The flat buffer of one dtype, and the segments ``first <= i < last`` that lie in it."""

    dtype: str
    compute_dtype: str  # of gradients and moments: float32 for parameters of 16 bits
    first: int
    last: int
    size: int


@dataclass(frozen=True)
class Layout:
    """Which leaf of a tree lies where. Several leaves that are one array share a segment."""

    structure: Structure
    slots: tuple[int | None, ...]  # leaf -> segment; None for what is not trained
    segments: tuple[Segment, ...]
    parts: tuple[Part, ...]

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of every segment."""
        return [segment.shape for segment in self.segments]

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """The first leaf of every segment."""
        return tuple(self.slots.index(i) for i in range(len(self.segments)))

    @cached_property
    def is_fixed(self) -> bool:
        """Whether a tree of this structure cannot change: one that was seen before needs no second look."""
        return _is_fixed(self.structure)

    @cached_property
    def untrained(self) -> tuple[int, ...]:
        """The leaves without a segment."""
        return tuple(leaf for leaf, slot in enumerate(self.slots) if slot is None)

    @cached_property
    def ties(self) -> tuple[tuple[int, int], ...]:
        """Pairs of segment and leaf for every further leaf of a segment."""
        return tuple((i, leaf) for leaf, i in enumerate(self.slots) if i is not None and self.owners[i] != leaf)


def _is_fixed(structure: Structure) -> bool:
    return structure.kind in (None, Tree, tuple, type(None)) and all(map(_is_fixed, structure.children))


def layout_of(rule: Rule, ps: Any) -> tuple[Layout, list[Array]]:
    """The layout of a tree of parameters, and the array of every segment.

    Raises:
        LayerError: for leaves that are no parameters, or a tied one that gets different rules.
        DeviceError: for arrays on different devices.
    """
    ps = as_tree(ps)
    named = tree.leaves_with_path(ps)
    groups: dict[str, dict[Any, list[tuple[str, Array]]]] = {}  # by dtype, then by the places of the rules
    first_path: dict[int, str] = {}
    for path, leaf in named:
        if not _is_trained(path, leaf):
            continue
        places = tuple(place for _, place in rule.stages(path))
        if id(leaf) not in first_path:
            first_path[id(leaf)] = path
            groups.setdefault(str(leaf.dtype), {}).setdefault(places, []).append((path, leaf))
        elif tuple(place for _, place in rule.stages(first_path[id(leaf)])) != places:
            raise LayerError(
                f"{first_path[id(leaf)]} and {path} are one array, and groups gives them different rules; "
                "write a pattern that fits both, or copy the array"
            )
    segments: list[Segment] = []
    arrays: list[Array] = []
    parts = [_part(dtype, lanes, segments, arrays) for dtype, lanes in groups.items()]
    _check_one_device([(s.path, array) for s, array in zip(segments, arrays, strict=True)])
    position = {segment.path: i for i, segment in enumerate(segments)}
    slots = tuple(position[first_path[id(leaf)]] if id(leaf) in first_path else None for _, leaf in named)
    return Layout(tree.structure(ps), slots, tuple(segments), tuple(parts)), arrays


def _part(dtype: str, lanes: dict[Any, list[tuple[str, Array]]], segments: list[Segment], arrays: list[Array]) -> Part:
    first, end = len(segments), 0
    itemsize = next(iter(lanes.values()))[0][1].dtype.itemsize
    unit = ALIGNMENT // itemsize
    for places, members in lanes.items():
        for path, array in members:
            size = math.prod(array.shape)
            padding = -size % unit
            segments.append(Segment(path, tuple(array.shape), end, size, padding, places))
            arrays.append(array)
            end += size + padding
    return Part(dtype, "float32" if itemsize == 2 else dtype, first, len(segments), end)


def _is_trained(path: str, leaf: Any) -> bool:
    if is_float_array(leaf):
        return True
    if hasattr(leaf, "__culux_value__"):
        raise _traced(path)
    if is_layer(leaf):
        raise LayerError(f"expected parameters, got {describe(leaf)}; ps, st = culux.setup(rng, model)")
    kind = getattr(getattr(leaf, "dtype", None), "kind", "")
    if type(leaf) is float or (kind == "f" and not is_array(leaf)):
        raise DTypeError(f"{path} is {describe(leaf)}; a parameter is an array: numpy.asarray({leaf}, 'float32')")
    if is_array(leaf) or type(leaf) in SCALARS or kind:
        return False
    raise DTypeError(f"{path}: expected an array, a number, a string or None, got {describe(leaf)}")


def _traced(what: str) -> DifferentiationError:
    return DifferentiationError(f"{what}: expected plain arrays, got traced ones; update outside of culux.gradient")


def _check_one_device(named: Sequence[tuple[str, Any]]) -> None:
    for path, array in named:
        if is_mixed([named[0][1], array]):
            raise DeviceError(mixed_message([named[0][1], array], (named[0][0], path)))


def check_place(x: Array, d: Array | None, moments: Mapping[str, Sequence[Array]]) -> None:
    """Raise a `DeviceError` where parameters, gradients and moments are not on one device."""
    names = ("ps", "grads", "the optimiser state")
    values = [x, d, *[buffers[0] for buffers in moments.values() if buffers][:1]]
    if any(type(value) is not np.ndarray for value in values) and is_mixed(values):
        raise DeviceError(mixed_message(values, names) + "; the optimiser state too: opt = device(opt)")


def check_dtypes(layout: Layout, arrays: Sequence[Any], moments: Mapping[str, Sequence[Array]]) -> None:
    """Raise a `DTypeError` where parameters or moments have been converted since `optim.setup`."""
    for part in layout.parts:
        first, last = part.first, part.last
        _check_dtype(part.dtype, layout.segments[first:last], arrays[first:last])
        _check_dtype(part.compute_dtype, (), moments[part.dtype][:1])


def _check_dtype(name: str, segments: Sequence[Segment], arrays: Sequence[Any]) -> None:
    expected = dtype_named(name)
    for i, array in enumerate(arrays):
        dtype = getattr(array, "dtype", expected)
        if dtype != expected and str(dtype) != name:  # the first is fast, the second also knows other libraries' dtypes
            place = f"ps.{segments[i].path}" if segments else "the optimiser state"
            raise DTypeError(
                f"{place}: expected {name}, which optim.setup got, got {describe(array)}; after a conversion "
                "make the state anew: opt = culux.optim.setup(rule, ps)"
            )


def collect(structure: Structure, node: Any, found: list[Any]) -> bool:
    """Append the leaves of a tree of this structure to `found`; False where it has another.

    The order of entries does not matter, and None stands for any subtree: Nones are its leaves.
    """
    kind = structure.kind
    if kind is None:
        found.append(node)
        return not isinstance(node, (dict, list, tuple))
    if node is None:
        found.extend([None] * structure.num_leaves)
        return True
    if issubclass(kind, dict):
        if not isinstance(node, dict) or len(node) != len(structure.names):
            return False
        for name, child in zip(structure.names, structure.children, strict=True):
            if name not in node:
                return False
            value = node[name]
            if child.kind is None and not isinstance(value, (dict, list, tuple)):  # a leaf, without a call
                found.append(value)
            elif not collect(child, value, found):
                return False
        return True
    if kind in (tuple, list):
        if type(node) not in (tuple, list) or len(node) != len(structure.children):
            return False
        return all(collect(child, item, found) for child, item in zip(structure.children, node, strict=True))
    leaves, other = tree.flatten(node)
    found.extend(leaves)
    return other == structure


def rebuild(structure: Structure, leaves: Sequence[Any]) -> Any:
    """The tree of this structure with these leaves."""
    return _rebuild(structure, iter(leaves))


def _rebuild(structure: Structure, leaves: Any) -> Any:
    if structure.kind is None:
        return next(leaves)
    if structure.kind is Tree:
        return trusted(
            {name: _rebuild(child, leaves) for name, child in zip(structure.names, structure.children, strict=True)}
        )
    return tree.unflatten(structure, [next(leaves) for _ in range(structure.num_leaves)])


def gather(layout: Layout, arrays: Sequence[Array | None], what: str, pool: Pool, *, compute: bool) -> list[Array]:
    """New flat buffers, one per part, with the arrays of the segments in their places; zeros for None.

    Args:
        layout: the layout.
        arrays: one per segment.
        what: the tree they come from, for messages.
        pool: where memory on the host comes from.
        compute: in the dtype of gradients, not in that of the parameters.

    Raises:
        ShapeError: for an array of another shape than the parameter's, with its path.
        DeviceError: for arrays of two devices.
    """
    like = next((array for array in arrays if array is not None), None)
    return [_gather(layout, part, arrays, like, what, pool, compute) for part in layout.parts]


def _gather(
    layout: Layout, part: Part, arrays: Sequence[Array | None], like: Any, what: str, pool: Pool, compute: bool
) -> Array:
    xp = namespace_of(like)
    dtype = part.compute_dtype if compute else part.dtype
    zeros = xp.zeros(ALIGNMENT, dtype=dtype)
    pieces = []
    members = slice(part.first, part.last)
    for segment, array in zip(layout.segments[members], arrays[members], strict=True):
        if array is None:
            pieces.append(xp.zeros(segment.size + segment.padding, dtype=dtype))
            continue
        if getattr(array, "shape", None) != segment.shape:
            array = _as_parameter(what, segment, array, like)
        pieces.append(array.reshape(-1))
        if segment.padding:
            pieces.append(zeros[: segment.padding])
    try:
        if xp is not np:
            return xp.concatenate(pieces, dtype=dtype, casting="unsafe")
        return np.concatenate(pieces, out=pool.empty(part.size, dtype), casting="unsafe")
    except (TypeError, ValueError) as error:
        if any(hasattr(piece, "__culux_value__") for piece in pieces):
            raise _traced(what) from error
        named = [(f"{what}.{s.path}", a) for s, a in zip(layout.segments, arrays, strict=True) if a is not None]
        _check_one_device(named)
        raise DTypeError(f"{what}: expected arrays like the parameters', got something else: {error}") from error


def _as_parameter(what: str, segment: Segment, array: Any, like: Array) -> Array:
    """A Python number for a parameter of shape (); an error for anything else."""
    if type(array) in (int, float) and segment.shape == ():
        return namespace_of(like).asarray(array)
    raise ShapeError(
        f"{what} at {segment.path or 'the top'}: expected an array of shape {segment.shape}, got {describe(array)}"
    )


def views(layout: Layout, buffers: Sequence[Array]) -> list[Array]:
    """The arrays of the segments as views of flat buffers."""
    found: list[Array] = []
    for part, flat in zip(layout.parts, buffers, strict=True):
        found += [flat[s.start : s.start + s.size].reshape(s.shape) for s in layout.segments[part.first : part.last]]
    return found


def mismatch(structure: Structure, node: Any, what: str) -> ShapeError:
    """The error for a tree of another structure, with the paths in which they differ."""
    expected = [path for path, _ in tree.leaves_with_path(rebuild(structure, [0] * structure.num_leaves))]
    got = [path for path, _ in tree.leaves_with_path(node)]
    missing = [path for path in expected if path not in got]
    extra = [path for path in got if path not in expected]
    return ShapeError(
        f"{what}: expected the tree that optim.setup got"
        + (f"; missing: {', '.join(missing)}" if missing else "")
        + (f"; not expected: {', '.join(path or 'an array at the top' for path in extra)}" if extra else "")
        + f"; got {describe(node)}" * (not missing and not extra)
    )
