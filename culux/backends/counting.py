"""Who counts what backends do: `culux.testing.cost` listens here while it runs a function."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

__all__ = ["Counter", "counting", "note_launch", "note_saved", "note_transfer"]


class Counter(Protocol):
    """What is told of the work of this thread."""

    def launch(self, name: str, args: Sequence[Any]) -> None:
        """A kernel or a library's product was launched with these arguments."""
        ...

    def transfer(self, name: str, nbytes: int) -> None:
        """Bytes were copied: ``"to device"``, ``"to host"`` or ``"between devices"``."""
        ...

    def saved(self, pullbacks: Sequence[Any]) -> None:
        """A function was traced, and these pullbacks wait for the backward pass."""
        ...


class _Counters(threading.local):
    listening: tuple[Counter, ...] = ()


_counters = _Counters()


def note_launch(name: str, args: Sequence[Any]) -> None:
    """Tell those who count of a launch."""
    for counter in _counters.listening:
        counter.launch(name, args)


def note_transfer(name: str, nbytes: int) -> None:
    """Tell those who count of a copy."""
    for counter in _counters.listening:
        counter.transfer(name, nbytes)


def note_saved(pullbacks: Sequence[Any]) -> None:
    """Tell those who count of what a trace holds for its backward pass."""
    for counter in _counters.listening:
        counter.saved(pullbacks)


@contextmanager
def counting(counter: Counter) -> Iterator[None]:
    """A context in which `counter` is told of this thread's work."""
    before = _counters.listening
    _counters.listening = (*before, counter)
    try:
        yield
    finally:
        _counters.listening = before
