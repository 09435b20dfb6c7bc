"""The optimiser's state, and what moves it on: `setup`, `update`, `adjust`, `freeze`, `thaw`.

The state owns flat buffers with the moments. `update` gathers gradients and parameters into flat buffers of
its own, runs the rule there, and returns parameters that are views of a fresh buffer. It remembers these
views: where they come back, the parameters need no gathering.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from culux.backends import Array, backend_of
from culux.errors import LayerError, ShapeError, check_keywords, describe
from culux.optim.buffers import Pool
from culux.optim.combinators import check_patterns, require_match
from culux.optim.flat import (
    Layout,
    Part,
    check_dtypes,
    check_place,
    collect,
    gather,
    layout_of,
    mismatch,
    rebuild,
    views,
)
from culux.optim.fused import is_fused, update_fused
from culux.optim.program import Program, program_of, run
from culux.optim.rules import Rule
from culux.tree import Tree

__all__ = ["OptimizerState", "adjust", "freeze", "own", "setup", "thaw", "update", "update_in_place"]

FORM = "opt, ps = culux.optim.update(opt, ps, grads)"


class _Known(NamedTuple):
    """Parameters seen before: the arrays of the segments, and the flat buffers that they are views of."""

    arrays: list[Array]
    buffers: list[Array] | None = None
    tree: Any = None  # the parameters themselves, where their tree cannot change
    leaves: Sequence[Any] = ()


class OptimizerState:
    """What an optimiser carries from step to step; made by `setup`, moved on by `update`.

    A tree node: its leaves are the step, how many steps each parameter sat out, and the moments in flat
    buffers, ``moments.float32.0`` and so on. It is saved, loaded and moved to a device like any tree.
    """

    __slots__ = ("_known", "_pool", "_program", "_scratch", "frozen", "layout", "moments", "rule", "skipped", "step")

    def __init__(
        self,
        rule: Rule,
        layout: Layout,
        frozen: frozenset[int],
        step: int,
        skipped: tuple[int, ...],
        moments: Tree,
        program: Program | None = None,
        known: _Known | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.rule = rule
        self.layout = layout
        self.frozen = frozen
        self.step = step
        self.skipped = skipped
        self.moments = moments
        self._program = program or program_of(rule, layout)
        self._known = known
        self._pool = pool or Pool()
        self._scratch: tuple[list[Array], list[Array]] | None = None  # see `_gathered`

    def __tree_flatten__(self) -> tuple[Mapping[str, Any], Any]:
        """The step, the counts and the moments; the rule and the layout are static."""
        children = {"step": self.step, "skipped": self.skipped, "moments": self.moments}
        return children, (self.rule, self.layout, self.frozen)

    @classmethod
    def __tree_unflatten__(cls, static: Any, children: Mapping[str, Any]) -> OptimizerState:
        """The state of such children; the parameters are gathered at its next update."""
        return cls(*static, **children)

    def __reduce__(self) -> tuple[Any, ...]:  # without the known parameters: a copy's are others
        children, static = self.__tree_flatten__()
        return OptimizerState, (*static, *children.values())

    def __repr__(self) -> str:
        frozen = ", ".join(self.layout.segments[i].path for i in sorted(self.frozen))
        return f"OptimizerState({self.rule!r}, step={self.step}" + (f", frozen: {frozen})" if frozen else ")")


def setup(rule: Rule, ps: Any) -> OptimizerState:
    """The state of an optimiser before its first step: moments of zero for every float array of `ps`.

    Leaves that are one array (tied weights) are updated as one, by the sum of their gradients.

    Args:
        rule: an update rule, ``Adam(1e-3)``.
        ps: a tree of parameters, or a functor; other leaves than float arrays are left alone.

    Raises:
        LayerError: for a `rule` that is none, or a model in the place of `ps`.
        DTypeError: for a leaf that is a Python float or no kind of leaf that culux knows.
        DeviceError: for parameters on several devices.
        EntryError: for a pattern of `groups` that fits no parameter.
    """
    if not isinstance(rule, Rule):
        hint = "; call it first" if isinstance(rule, type) and issubclass(rule, Rule) else ""
        raise LayerError(
            f"expected a rule such as Adam(1e-3), got {describe(rule)}{hint}; "
            "opt = culux.optim.setup(culux.optim.Adam(1e-3), ps)"
        )
    layout, arrays = layout_of(rule, _parameters(ps))
    check_patterns(rule, [segment.path for segment in layout.segments])
    program = program_of(rule, layout)
    backend = backend_of(*arrays[:1])
    device = backend.place_of(arrays[0]).index if arrays else 0

    def zeros(part: Part) -> Array:
        return backend.move(backend.xp.zeros(part.size, dtype=part.compute_dtype), device)

    moments = {part.dtype: tuple(zeros(part) for _ in range(program.moments)) for part in layout.parts}
    skipped = (0,) * len(layout.segments)
    return OptimizerState(rule, layout, frozenset(), 0, skipped, Tree(moments), program, _Known(arrays))


def update(opt_state: OptimizerState, ps: Any, grads: Any) -> tuple[OptimizerState, Any]:
    """The state and the parameters after one step of the optimiser; nothing that is given is written to.

    ``opt, ps = culux.optim.update(opt, ps, grads)``. A gradient of None leaves its parameter
    alone: no decay, and its moments and its count stay. Gradients that are not finite are applied as they are.

    Swapped `ps` and `grads`, trees of one structure, are told apart by identity: `grads` are refused that are
    the parameters that `setup` got or the last update returned. A state that was pickled, copied, loaded or
    moved knows none, and parameters that were replaced since are others: one swapped update then goes unseen,
    unless `ps` have None where `grads` do not. A loop that swaps them is refused at its second update.

    Args:
        opt_state: the state.
        ps: the parameters.
        grads: their gradient, a tree of the same structure.

    Returns:
        The next state and the next parameters, whose arrays are views of one flat buffer per dtype.

    Raises:
        LayerError: for arguments in another order, as far as it can be seen.
        ShapeError: for gradients of another structure or shape, with the paths.
        DTypeError: for parameters or moments that have been converted since `setup`.
        DeviceError: for arrays on several devices.
    """
    return _update(opt_state, ps, grads, in_place=False)


def update_in_place(opt_state: OptimizerState, ps: Any, grads: Any) -> tuple[OptimizerState, Any]:
    """`update` that overwrites the moments of `opt_state`, and `ps` where it came from an update.

    For loops that own both: what `own` or an earlier `update_in_place` returned, and nobody else holds.
    """
    return _update(opt_state, ps, grads, in_place=True)


def own(opt_state: OptimizerState, ps: Any) -> tuple[OptimizerState, Any]:
    """Copies of a state and its parameters that `update_in_place` may overwrite."""
    state = _state(opt_state)
    leaves, arrays = _leaves(state, ps)
    nothing = [None] * len(arrays)
    buffers, moments = _advanced(state, arrays, None, nothing, nothing, in_place=False)
    new = views(state.layout, buffers)
    known, ps = _rebuilt(state, ps, leaves, new, buffers)
    return _replaced(state, moments=moments, _known=known, _scratch=None), ps


def adjust(opt_state: OptimizerState, **hypers: Any) -> OptimizerState:
    """The state with other hyper-parameters, ``adjust(opt, learning_rate=1e-4)``; its moments stay.

    In a `chain` or `groups` every rule that has the hyper-parameter gets it.

    Args:
        opt_state: the state.
        **hypers: the new values, numbers or schedules.

    Raises:
        LayerError: for a hyper-parameter that no rule of the state has, or a value out of its range.
    """
    state = _state(opt_state)
    known = [field.name for part in state.rule.parts() for field in fields(part)]
    check_keywords(f"adjust of {state.rule!r}", hypers, dict.fromkeys(known))
    rule = state.rule.adjusted(hypers)
    return _replaced(state, rule=rule, _program=program_of(rule, state.layout))


def freeze(opt_state: OptimizerState, pattern: str) -> OptimizerState:
    """The state in which no parameter that fits the pattern moves: as if its gradients were None.

    Args:
        opt_state: the state.
        pattern: of paths, as in `culux.tree.select`: ``"layer_1.*"``, ``"*.bias"``.

    Raises:
        EntryError: where no parameter fits.
    """
    state = _state(opt_state)
    return _replaced(state, frozen=state.frozen | _matched("freeze", state, pattern))


def thaw(opt_state: OptimizerState, pattern: str) -> OptimizerState:
    """The state in which the parameters that fit the pattern move again, from the moments that they had.

    Args:
        opt_state: the state.
        pattern: of paths, as in `freeze`.

    Raises:
        EntryError: where no parameter fits.
    """
    state = _state(opt_state)
    return _replaced(state, frozen=state.frozen - _matched("thaw", state, pattern))


def _matched(owner: str, state: OptimizerState, pattern: str) -> frozenset[int]:
    paths = [segment.path for segment in state.layout.segments]
    found = set(require_match(owner, pattern, paths))
    return frozenset(i for i, path in enumerate(paths) if path in found)


def _replaced(state: OptimizerState, **entries: Any) -> OptimizerState:
    """The state with some of its attributes replaced."""
    new = OptimizerState.__new__(OptimizerState)
    for name in OptimizerState.__slots__:
        setattr(new, name, entries[name] if name in entries else getattr(state, name))
    return new


def _update(state: OptimizerState, ps: Any, grads: Any, *, in_place: bool) -> tuple[OptimizerState, Any]:
    state = _state(state)
    layout, known = state.layout, state._known
    leaves, arrays = _leaves(state, ps)
    gradients = _gradients(state, leaves, grads)
    same = known is not None and _same(arrays, known.arrays)
    if known is not None and not same and arrays and _same(gradients, known.arrays):
        raise LayerError(f"grads are the parameters and ps are not: they came in the wrong order; {FORM}")
    if not layout.parts:
        return _replaced(state, step=state.step + 1), ps
    held = known.buffers if known is not None and same else None
    counts, skipped = _counts(state, gradients)
    xs, moments = _advanced(state, arrays, held, gradients, counts, in_place=in_place)
    if held is xs:
        return _replaced(state, step=state.step + 1, skipped=skipped), ps
    new = views(layout, xs)
    known, ps = _rebuilt(state, ps, leaves, new, xs)
    return _replaced(state, step=state.step + 1, skipped=skipped, moments=moments, _known=known), ps


def _advanced(
    state: OptimizerState,
    arrays: list[Array],
    held: list[Array] | None,
    gradients: Sequence[Any],
    counts: Sequence[int | None] | int,
    *,
    in_place: bool,
) -> tuple[list[Array], Tree]:
    """The new parameters in flat buffers, and the new moments."""
    layout, moments = state.layout, state.moments
    if arrays and is_fused(state._program, arrays[0]):
        return update_fused(
            state._program, layout, state.step, counts, arrays, held, gradients, moments, state._pool, in_place=in_place
        )
    if held is None:
        xs = gather(layout, arrays, "ps", state._pool, compute=False)
    else:
        xs = held if in_place else [state._pool.copy(x) for x in held]
    if not in_place:
        moments = Tree({dtype: tuple(state._pool.copy(m) for m in buffers) for dtype, buffers in moments.items()})
    if isinstance(counts, int) or any(count is not None for count in counts):
        ds = _gathered(state, gradients, in_place)
        check_place(xs[0], ds[0], state.moments)
        run(state._program, layout, state.step, counts, xs, ds, [moments[part.dtype] for part in layout.parts])
    return xs, moments


def _gathered(state: OptimizerState, gradients: Sequence[Any], in_place: bool) -> list[Array]:
    """The gradients in flat buffers: new ones, or those of the last step where they are the state's own."""
    layout = state.layout
    shapes = [gradient.shape if type(gradient) is np.ndarray else None for gradient in gradients]
    if not in_place or state._program.measures or shapes != layout.shapes:
        return gather(layout, gradients, "grads", state._pool, compute=True)
    if state._scratch is None:
        buffers = [np.zeros(part.size, part.compute_dtype) for part in layout.parts]
        state._scratch = buffers, views(layout, buffers)
    buffers, places = state._scratch
    for place, gradient in zip(places, gradients, strict=True):
        place[...] = gradient
    return buffers


def _same(arrays: list[Any], others: list[Any]) -> bool:
    return arrays is others or (len(arrays) == len(others) and all(map(operator.is_, arrays, others)))


def _counts(state: OptimizerState, gradients: list[Any]) -> tuple[list[int | None] | int, tuple[int, ...]]:
    """How many updates every parameter has had, this one included, None where it sits out; and the next `skipped`."""
    count, skipped = state.step + 1, state.skipped
    for i in state.frozen:
        gradients[i] = None
    absent = [gradient is None for gradient in gradients]
    if not any(absent):
        return ([count - s for s in skipped], skipped) if any(skipped) else (count, skipped)
    counts = [None if out else count - s for out, s in zip(absent, skipped, strict=True)]
    return counts, tuple(s + out for out, s in zip(absent, skipped, strict=True))


def _leaves(state: OptimizerState, ps: Any) -> tuple[Sequence[Any], list[Array]]:
    """All leaves of the parameters, and the arrays of the segments among them."""
    known = state._known
    if known is not None and ps is known.tree and ps is not None:
        return known.leaves, known.arrays
    ps = _parameters(ps)
    layout, leaves = state.layout, list[Any]()
    if not collect(layout.structure, ps, leaves):
        raise mismatch(layout.structure, ps, "ps")
    arrays = [leaves[i] for i in layout.owners]
    for i, leaf in layout.ties:
        if leaves[leaf] is not arrays[i]:
            raise ShapeError(
                f"{layout.segments[i].path} was one array with another parameter when optim.setup got it, and they "
                "are two now; tie them again, or call optim.setup"
            )
    if any(array is None for array in arrays):
        raise mismatch(layout.structure, ps, "ps")
    check_dtypes(layout, arrays, state.moments)
    return leaves, arrays


def _gradients(state: OptimizerState, parameters: Sequence[Any], grads: Any) -> list[Any]:
    """The gradients of the segments; those of tied leaves are added."""
    layout, leaves = state.layout, list[Any]()
    if not collect(layout.structure, grads, leaves):
        raise mismatch(layout.structure, grads, "grads")
    for i in layout.untrained:
        if parameters[i] is None and leaves[i] is not None:
            got = describe(leaves[i])
            raise LayerError(f"grads have {got} where ps have None: they came in the wrong order; {FORM}")
    gradients = [leaves[i] for i in layout.owners]
    for i, leaf in layout.ties:
        both = [gradient for gradient in (gradients[i], leaves[leaf]) if gradient is not None]
        gradients[i] = both[0] + both[1] if len(both) == 2 else (both or [None])[0]
    return gradients


def _rebuilt(
    state: OptimizerState, ps: Any, leaves: Sequence[Any], arrays: list[Array], buffers: list[Array]
) -> tuple[_Known, Any]:
    """The parameters with new arrays, in the kind of object that they came in, and what is known of them."""
    layout = state.layout
    leaves = [leaf if slot is None else arrays[slot] for leaf, slot in zip(leaves, layout.slots, strict=True)]
    new = rebuild(layout.structure, leaves)
    known = _Known(arrays, buffers, new if layout.is_fixed else None, leaves)
    return known, ps.__culux_replace__(new) if hasattr(type(ps), "__culux_replace__") else new


def _parameters(ps: Any) -> Any:
    """The tree of trained arrays of a model that names them; anything else as it is."""
    return ps.__culux_trainable__() if hasattr(type(ps), "__culux_trainable__") else ps


def _state(value: Any) -> OptimizerState:
    if type(value) is OptimizerState:
        return value
    raise LayerError(f"expected an OptimizerState first, got {describe(value)}; {FORM}")
