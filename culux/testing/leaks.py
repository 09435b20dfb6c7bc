"""Which traced arrays outlive their trace, and who holds them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

from culux.autodiff.tape import ReverseTrace, recording
from culux.autodiff.tracer import Tracer
from culux.errors import describe

__all__ = ["holders", "watched_traces"]


class _WatchedTrace(ReverseTrace):
    """A trace that can be referred to weakly: no `__slots__`."""


@contextmanager
def watched_traces() -> Iterator[list[weakref.ref[ReverseTrace]]]:
    """A context whose list gets every trace that a gradient of this thread opens."""
    opened: list[weakref.ref[ReverseTrace]] = []

    def make() -> ReverseTrace:
        trace = _WatchedTrace()
        opened.append(weakref.ref(trace))
        return trace

    before = recording.make
    recording.make = make
    try:
        yield opened
    finally:
        recording.make = before


def holders(opened: list[weakref.ref[ReverseTrace]]) -> list[str]:
    """What to say of the traced arrays that are still there: each is held by somebody."""
    if all(trace() is None for trace in opened):
        return []
    gc.collect()
    return sorted({line for reference in opened for line in _held(reference())})


def _held(trace: ReverseTrace | None) -> Iterator[str]:
    if trace is None:
        return
    traced = [value for value in gc.get_referrers(trace) if type(value) is Tracer]
    for value in traced:
        owners = [owner for owner in gc.get_referrers(value) if owner is not traced and type(owner) is not FrameType]
        names = ", ".join(sorted({_owner(owner) for owner in owners}))
        yield f"a traced {describe(value)} is kept by {names or 'a running function'}"


def _owner(owner: Any) -> str:
    """Who holds an object, in words: for a dict of attributes, whose they are."""
    if type(owner) is dict:
        for user in gc.get_referrers(owner):
            if getattr(user, "__dict__", None) is owner:
                return f"the module {user.__name__}" if isinstance(user, ModuleType) else f"a {type(user).__name__}"
    return f"a {type(owner).__name__}"
