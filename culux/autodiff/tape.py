"""The tape: one entry per operation, and the backward pass over it. Read this file and `tracer` first.

`ReverseTrace` appends to a linear tape what each operation's rule returns: the pullback, and the
positions of its arguments' entries. The backward pass walks the tape from the end; it is iterative.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from threading import get_ident
from typing import Any, TypeAlias

from culux.autodiff.tracer import Operation, Pullback, Trace, Tracer
from culux.backends import Array
from culux.backends.registry import out_of_memory
from culux.errors import CuluxError

__all__ = ["ReverseTrace", "backward", "recording"]

Entry: TypeAlias = tuple[Any, ...]
"""``(pullback, *parents)``: the positions of the arguments' entries, -1 for one that is no input of the tape."""


class _Parts(dict[int, Any]):
    """Cotangents of some outputs of one operation, gathered on the tape."""

    def __add__(self, other: _Parts) -> _Parts:
        return _Parts(self | other)


_INPUT: Entry = (None,)
_ONE, _FIRST, _SECOND, _BOTH = (True,), (True, False), (False, True), (True, True)


class ReverseTrace(Trace):
    """Reverse mode: a linear tape of pullbacks."""

    __slots__ = ("tape",)

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[Entry] = []

    def lift(self, value: Any) -> Tracer:
        """A tracer for an input."""
        tape = self.tape
        tape.append(_INPUT)
        return Tracer(value, self, len(tape) - 1)

    def process(self, primitive: Operation, args: tuple[Any, ...], static: Mapping[str, Any]) -> Any:
        """Run the rule one level down and put its pullback on the tape."""
        if self.thread != get_ident():
            self.refuse(primitive)
        rule = primitive.vjp_rule
        if rule is None or (self.level > 1 and primitive.composite and self._holds_outer(args)):
            return self.through(primitive, args, static)
        entry: Entry
        if static or len(args) > 2:
            needs = tuple([type(a) is Tracer and a.scope is self for a in args])
            y, pullback = rule(needs, *map(self.lower, args), **static)
            entry = (pullback, *[a.node if need else -1 for a, need in zip(args, needs, strict=True)])
        elif len(args) == 1:  # the commonest cases unrolled: half of what an operation costs otherwise
            (a,) = args
            y, pullback = rule(_ONE, a.value)
            entry = (pullback, a.node)
        else:
            a, b = args
            if type(b) is not Tracer or b.scope is not self:
                y, pullback = rule(_FIRST, a.value, b)
                entry = (pullback, a.node, -1)
            elif type(a) is not Tracer or a.scope is not self:
                y, pullback = rule(_SECOND, a, b.value)
                entry = (pullback, -1, b.node)
            else:
                y, pullback = rule(_BOTH, a.value, b.value)
                entry = (pullback, a.node, b.node)
        if pullback is None:
            return y
        tape = self.tape
        tape.append(entry)
        if type(y) is tuple:
            return self._outputs(y, pullback)
        return Tracer(y, self, len(tape) - 1)

    def _holds_outer(self, args: tuple[Any, ...]) -> bool:
        return any([type(self.lower(a)) is Tracer for a in args])  # noqa: C419 (a list is faster for few arguments)

    def _outputs(self, y: tuple[Any, ...], pullback: Pullback) -> tuple[Tracer, ...]:
        """One entry per output above the operation's own, which gathers their cotangents."""
        tape, count = self.tape, len(y)
        node = len(tape) - 1
        tape[node] = (lambda parts: pullback(tuple([parts.get(i) for i in range(count)])), *tape[node][1:])
        outputs = []
        for i, value in enumerate(y):
            tape.append((lambda dy, i=i: (_Parts({i: dy}),), node))
            outputs.append(Tracer(value, self, len(tape) - 1))
        return tuple(outputs)


class _Recording(threading.local):
    make: Callable[[], ReverseTrace] = ReverseTrace


recording = _Recording()
"""What a gradient of this thread records with; `culux.debug_mode` puts a trace in place that looks at values."""


def backward(tape: list[Entry], seeds: Iterable[tuple[int, Array]], inputs: int, *, once: bool) -> list[Any]:
    """The cotangents of the first `inputs` entries of a tape.

    Args:
        tape: what a `ReverseTrace` recorded.
        seeds: positions of outputs with their cotangents.
        inputs: how many inputs there are.
        once: the tape is not needed again; what its pullbacks saved is freed on the way.
    """
    cotangents: list[Any] = [None] * len(tape)
    last = -1
    for position, cotangent in seeds:
        held = cotangents[position]
        cotangents[position] = cotangent if held is None else held + cotangent
        last = max(last, position)
    if once:
        del tape[last + 1 :]
    take = tape.pop if once else tape.__getitem__
    entry = _INPUT
    try:
        for position in range(last, inputs - 1, -1):
            entry = take(position)
            dy = cotangents[position]
            if dy is None:
                continue
            cotangents[position] = None
            if len(entry) == 2:
                pullback, parent = entry
                cotangent = pullback(dy)
                if type(cotangent) is tuple:
                    (cotangent,) = cotangent
                if cotangent is not None:
                    held = cotangents[parent]
                    cotangents[parent] = cotangent if held is None else held + cotangent
                continue
            for parent, cotangent in zip(entry[1:], entry[0](dy), strict=True):
                if cotangent is not None and parent >= 0:
                    held = cotangents[parent]
                    cotangents[parent] = cotangent if held is None else held + cotangent
    except MemoryError as error:
        if isinstance(error, CuluxError):
            raise
        module = getattr(entry[0], "func", entry[0]).__module__  # a partial's is its function's
        raise out_of_memory(f"the backward pass of {module}", cotangents, error) from error
    return cotangents[:inputs]
