"""The program of a rule: which rules run over which stretch of the flat buffers, and how they are run.

`run` is the one place where parameters change. It works on plain flat arrays and a table of stretches, so
that a kernel can take its place where there is one for the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from culux.backends import Array, backend_of
from culux.backends.registry import namespace_of
from culux.optim.flat import Layout
from culux.optim.rules import Rule

__all__ = ["Lane", "Program", "program_of", "run"]

BLOCK = 2**19  # elements a rule gets at a time on a CPU: large models keep small temporaries

Stretch = tuple[int, int, int, tuple[int, ...] | None]
"""start, stop and the count of updates of the parameters between them; the shape of a parameter that is taken whole."""


@dataclass(frozen=True)
class Lane:
    """A stretch of a buffer whose segments go through the same rules."""

    part: int
    first: int
    last: int
    start: int
    stop: int
    rules: tuple[Rule, ...]
    places: tuple[tuple[int, ...], ...]
    moments: tuple[slice, ...]  # which of the buffers' moments each rule has

    @property
    def whole(self) -> bool:
        """Whether a rule takes every parameter in its shape."""
        return any(rule.whole for rule in self.rules)


@dataclass(frozen=True)
class Program:
    """The lanes, and the places of the rules that measure all their gradients, in the order of running."""

    lanes: tuple[Lane, ...]
    measures: tuple[tuple[int, ...], ...]
    moments: int  # how many each buffer has


def program_of(rule: Rule, layout: Layout) -> Program:
    """The program of a rule on a layout."""
    lanes: list[Lane] = []
    for number, part in enumerate(layout.parts):
        members = range(part.first, part.last)
        for places, indices in groupby(members, key=lambda i: layout.segments[i].places):
            segments = list(indices)
            first, last = segments[0], segments[-1]
            rules = tuple(stage for stage, _ in rule.stages(layout.segments[first].path))
            ends = [sum(r.moments for r in rules[: k + 1]) for k in range(len(rules))]
            moments = tuple(slice(end - r.moments, end) for r, end in zip(rules, ends, strict=True))
            start, stop = layout.segments[first].start, layout.segments[last].stop
            lanes.append(Lane(number, first, last + 1, start, stop, rules, places, moments))
    measures = {place for lane in lanes for r, place in zip(lane.rules, lane.places, strict=True) if r.spans_tree}
    count = max((lane.moments[-1].stop for lane in lanes), default=0)
    return Program(tuple(lanes), tuple(sorted(measures)), count)


def run(
    program: Program,
    layout: Layout,
    step: int,
    counts: Sequence[int | None] | int,
    xs: Sequence[Array],
    ds: Sequence[Array],
    moments: Sequence[Sequence[Array]],
) -> None:
    """One update of the parameters in the flat buffers, in place.

    Args:
        program: the program.
        layout: its layout.
        step: the step from 0, for schedules.
        counts: how many updates each segment has had, this one included; None: it is left as it is. One
            number where all have had the same.
        xs: the parameters, one buffer per part; changed.
        ds: the gradients; scratch afterwards.
        moments: the moments of every part; changed.
    """
    rules = [[rule.at(step) for rule in lane.rules] for lane in program.lanes]
    stretches = [_stretches(layout, lane, counts) for lane in program.lanes]
    done = [0] * len(program.lanes)

    def sweep(number: int, until: int, *, last: bool) -> None:
        lane = program.lanes[number]
        stages = list(zip(rules[number], lane.moments, strict=True))[done[number] : until]
        for stretch in stretches[number]:
            _sweep(stages, stretch, xs[lane.part], ds[lane.part], moments[lane.part], last)
        done[number] = until

    for place in program.measures:
        spanned = [(k, lane.places.index(place)) for k, lane in enumerate(program.lanes) if place in lane.places]
        for number, position in spanned:
            if position > done[number]:
                sweep(number, position, last=False)
        lanes = [program.lanes[number] for number, _ in spanned]
        measured = rules[spanned[0][0]][spanned[0][1]].measured(
            [ds[lane.part][lane.start : lane.stop] for lane in lanes]
        )
        for number, position in spanned:
            rules[number][position] = measured
    for number, lane in enumerate(program.lanes):
        sweep(number, len(lane.rules), last=True)


def _stretches(layout: Layout, lane: Lane, counts: Sequence[int | None] | int) -> list[Stretch]:
    """The segments of a lane that are updated, neighbours of the same count together."""
    if isinstance(counts, int):
        if not lane.whole:
            return [(lane.start, lane.stop, counts, None)]
        counts = [counts] * len(layout.segments)
    found: list[Stretch] = []
    for segment, count in zip(layout.segments[lane.first : lane.last], counts[lane.first : lane.last], strict=True):
        if count is None:
            continue
        if lane.whole:
            found.append((segment.start, segment.start + segment.size, count, segment.shape))
        elif found and found[-1][1] == segment.start and found[-1][2] == count:
            found[-1] = (found[-1][0], segment.stop, count, None)
        else:
            found.append((segment.start, segment.stop, count, None))
    return found


def _sweep(
    stages: list[tuple[Rule, slice]], stretch: Stretch, x: Array, d: Array, moments: Sequence[Array], last: bool
) -> None:
    """Some rules over a stretch, block by block; the last ones subtract their step."""
    start, stop, count, shape = stretch
    xp = namespace_of(x)
    block = BLOCK if shape is None and backend_of(x).kind == "cpu" else max(stop - start, 1)
    for a in range(start, stop, block):
        b = min(a + block, stop)
        old, new, *own = [flat[a:b] if shape is None else flat[a:b].reshape(shape) for flat in (x, d, *moments)]
        step = new
        wide = old if old.dtype == step.dtype else old.astype(step.dtype)
        for rule, which in stages:
            step = rule.apply(count, step, wide, *own[which])
        if last:
            xp.subtract(wide, step, out=old, casting="unsafe")
        else:
            new[...] = step
