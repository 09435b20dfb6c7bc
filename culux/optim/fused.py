"""The update of CuPy's arrays: one launch for every flat buffer, and one before it for the norm of `clip_norm`.

The kernel takes over from `culux.optim.program.run` where every lane is a rule of culux's own, after at most
`clip_norm`, `clip_value` and `weight_decay` in this order. It reads gradients, and parameters that are in no flat
buffer yet, where they lie; where their dtypes or places forbid it they are gathered first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from culux.backends import Array, backend_of
from culux.kernels import contiguous, empty, optimise
from culux.optim.buffers import Pool
from culux.optim.combinators import clip_norm, clip_value, weight_decay
from culux.optim.flat import Layout, Part, check_place, gather, views
from culux.optim.program import Program
from culux.optim.rules import Adam, AdamW, Descent, Lion, Momentum, Nesterov, RMSProp, Rule
from culux.tree import Tree

__all__ = ["is_fused", "update_fused"]

Counts = Sequence[int | None] | int

_TRANSFORMS: list[type[Rule]] = [clip_norm, clip_value, weight_decay]
# A subclass may have another `apply`, so types are looked up, not instances asked.
_RULES: dict[type[Rule], str] = {
    Descent: "descent", Momentum: "momentum", Nesterov: "nesterov", RMSProp: "rmsprop", Adam: "adam", AdamW: "adamw",
    Lion: "lion",
}  # fmt: skip


class _Located(NamedTuple):
    """Where the arrays of the segments are: addresses, 0 for None; the dtype in every part; what must be kept."""

    addresses: list[int]
    dtypes: list[np.dtype[Any]]
    arrays: list[Array]


def is_fused(program: Program, x: Array) -> bool:
    """Whether the kernel updates such parameters by this program."""
    return (
        type(x) is not np.ndarray
        and backend_of(x).name == "cupy"
        and all(_is_known([type(rule) for rule in lane.rules]) for lane in program.lanes)
    )


def _is_known(kinds: list[type[Rule]]) -> bool:
    *transforms, last = kinds
    return last in _RULES and transforms == [kind for kind in _TRANSFORMS if kind in transforms]


def update_fused(
    program: Program,
    layout: Layout,
    step: int,
    counts: Counts,
    arrays: Sequence[Array],
    held: list[Array] | None,
    gradients: Sequence[Any],
    moments: Tree,
    pool: Pool,
    *,
    in_place: bool,
) -> tuple[list[Array], Tree]:
    """One update; the new parameters in flat buffers, and the new moments.

    Args:
        program: one that `is_fused`.
        layout: its layout.
        step: the step from 0, for schedules.
        counts: how many updates each segment has had, as in `culux.optim.program.run`.
        arrays: the parameters of the segments.
        held: the flat buffers that they are views of; None where they are loose.
        gradients: the gradients of the segments, None where there is none.
        moments: the moments of every dtype.
        pool: the optimiser's.
        in_place: whether `held` and `moments` are overwritten.
    """
    like = arrays[0]
    check_place(like, next((gradient for gradient in gradients if gradient is not None), None), moments)
    loose = _located(layout, arrays, "ps", pool, like, compute=False) if held is None else None
    found = _located(layout, gradients, "grads", pool, like, compute=True)
    rows, which = _recipes(program, step, counts)
    launches = _launches(layout, _chunks(layout, like, pool), rows, which, found, loose)
    norms = len(program.measures) if len(rows) > 1 else 0  # the first keeps what there is
    partials = optimise.square_sums([one for part in launches for one in part], norms, like) if norms else None
    xs = held if in_place and held is not None else [empty(like, (p.size,), np.dtype(p.dtype)) for p in layout.parts]
    new = moments if in_place else Tree({dtype: tuple(empty(m) for m in old) for dtype, old in moments.items()})
    for number, part in enumerate(layout.parts):
        x = None if held is None else held[number]
        for launch in launches[number]:
            optimise.update(launch, partials, x, moments[part.dtype], xs[number], new[part.dtype])
    return xs, new


def _located(layout: Layout, arrays: Sequence[Any], what: str, pool: Pool, like: Array, *, compute: bool) -> _Located:
    """Where the arrays are; those that the kernel does not read as they are come into flat buffers first.

    Raises:
        ShapeError: for an array of another shape than the parameter's, with its path.
        DeviceError: for arrays of two devices.
    """
    found = _addresses(layout, arrays, like, compute)
    if found is not None:
        return found
    buffers = gather(layout, arrays, what, pool, compute=compute)
    places = views(layout, buffers)
    return _Located([place.data.ptr for place in places], [buffer.dtype for buffer in buffers], places)


def _addresses(layout: Layout, arrays: Sequence[Any], like: Array, compute: bool) -> _Located | None:
    """Where the arrays are if they can be read there: on the device of `like`, in their part's dtypes."""
    kind, device = type(like), like.data.device_id
    addresses: list[int] = []
    kept: list[Array] = []
    dtypes: list[np.dtype[Any]] = []
    for part in layout.parts:
        known: np.dtype[Any] | None = None
        for i in range(part.first, part.last):
            array = arrays[i]
            if array is None:
                addresses.append(0)
                continue
            if type(array) is not kind or array.shape != layout.shapes[i]:
                return None
            if known is None:
                known = array.dtype
                if known.name not in (part.dtype, part.compute_dtype)[: 1 + compute]:
                    return None
            elif array.dtype != known:
                return None
            array = contiguous(array)
            memory = array.data
            if memory.device_id != device:
                return None
            addresses.append(memory.ptr)
            kept.append(array)
        dtypes.append(np.dtype(part.dtype) if known is None else known)
    return _Located(addresses, dtypes, kept)


def _recipes(program: Program, step: int, counts: Counts) -> tuple[list[tuple[float, ...]], list[int]]:
    """The recipes of a step, the first of which keeps what there is, and which one every segment has."""
    names = optimise.recipe_fields()
    rows: list[tuple[float, ...]] = [(0,) * len(names)]
    which: list[int] = []
    for lane in program.lanes:
        rules = [rule.at(step) for rule in lane.rules]
        norm = program.measures.index(lane.places[0]) + 1 if type(rules[0]) is clip_norm else 0
        numbers: dict[int | None, int] = {None: 0}
        for count in [counts] * (lane.last - lane.first) if isinstance(counts, int) else counts[lane.first : lane.last]:
            if count is not None and count not in numbers:
                numbers[count] = len(rows)
                recipe = _recipe(rules, norm, count)
                rows.append(tuple(recipe.get(name, 0) for name in names))
            which.append(numbers[count])
    return rows, which


def _recipe(rules: Sequence[Rule], norm: int, count: int) -> dict[str, float]:
    """What the kernel is told of the rules at this count of updates; what is left out is 0."""
    recipe: dict[str, float] = {"rule": optimise.RULES.index(_RULES[type(rules[-1])]), "max_value": math.inf}
    for rule in rules:
        match rule:
            case clip_norm():
                recipe |= {"norm": norm, "max_norm": rule.max}
            case clip_value():
                recipe["max_value"] = rule.max
            case weight_decay():
                recipe["coefficient"] = rule.coefficient
            case Descent():
                recipe["rate"] = rule.learning_rate
            case Momentum() | Nesterov():
                recipe |= {"rate": rule.learning_rate, "beta1": rule.momentum}
            case RMSProp():
                recipe |= {"beta1": rule.alpha, "rest1": 1 - rule.alpha}
                recipe |= {"rate": rule.learning_rate, "epsilon": rule.epsilon}
            case Adam() | Lion():
                beta1, beta2 = rule.betas
                recipe |= {"beta1": beta1, "rest1": 1 - beta1, "beta2": beta2, "rest2": 1 - beta2}
                rate, epsilon = rule.corrected(count) if isinstance(rule, Adam) else (rule.learning_rate, 0)
                recipe |= {"rate": rate, "epsilon": epsilon}
        if isinstance(rule, AdamW):
            recipe["decay"] = rule.learning_rate * rule.weight_decay
    return recipe


def _launches(
    layout: Layout,
    chunks: Sequence[optimise.Chunks],
    rows: list[tuple[float, ...]],
    which: list[int],
    gradients: _Located,
    loose: _Located | None,
) -> list[list[optimise.Launch]]:
    """The launches of every flat buffer; one, but for very many segments or recipes."""
    launches: list[list[optimise.Launch]] = []
    for number, part in enumerate(layout.parts):
        launches.append([])
        for first, last, used in _batches(which, part, optimise.TENSORS // (1 if loose is None else 2)):
            place = {row: k for k, row in enumerate(used)}
            table = optimise.table(
                [rows[row] for row in used],
                [place[row] for row in which[first:last]],
                gradients.addresses[first:last],
                None if loose is None else loose.addresses[first:last],
                double=part.compute_dtype == "float64",
            )
            begin, end = first - part.first, last - part.first
            dtypes = np.dtype(part.dtype), gradients.dtypes[number]
            launches[-1].append(optimise.Launch(table, begin, end, chunks[number], *dtypes))
    return launches


def _batches(which: list[int], part: Part, limit: int) -> Iterator[tuple[int, int, list[int]]]:
    """The segments of every launch, and the recipes that they need; 0 is always one of them."""
    first, used = part.first, {0}
    for i in range(part.first, part.last):
        if i - first == limit or (which[i] not in used and len(used) == optimise.RECIPES):
            yield first, i, sorted(used)
            first, used = i, {0}
        used.add(which[i])
    yield first, part.last, sorted(used)


def _chunks(layout: Layout, like: Array, pool: Pool) -> list[optimise.Chunks]:
    """The chunks of every flat buffer on the device of `like`; made once for an optimiser."""
    device = like.data.device_id
    if device not in pool.chunks:
        members = [layout.segments[part.first : part.last] for part in layout.parts]
        pool.chunks[device] = [
            optimise.chunks(like, [s.start for s in segments], [s.size for s in segments]) for segments in members
        ]
    found: list[optimise.Chunks] = pool.chunks[device]
    return found
