"""Who watches the calls of layers: `culux.debug_mode`, `culux.summary` and `culux.testing.diff_devices` do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from culux.core.fields import child_name

__all__ = ["Watcher", "note_use", "watching"]


class Watcher:
    """Sees every call of a layer in its thread, and knows where in the model it is.

    Override `before` and `after`; `path` and `layers` say which layer is running.
    """

    def __init__(self) -> None:
        self.layers: list[tuple[Any, Any]] = []  # the layers that run now with their parameters, outermost first
        self._names: list[str] = []

    @property
    def path(self) -> str:
        """The names that lead to the layer that runs, joined by dots; empty for the outermost."""
        return ".".join(name for name in self._names if name)

    def call(self, function: Callable[..., Any], layer: Any, x: Any, ps: Any, st: Any) -> Any:
        """``function(layer, x, ps, st)``, a layer's own ``__call__``, between `before` and `after`."""
        name = child_name(*self.layers[-1], id(layer), id(ps)) if self.layers else None
        self.layers.append((layer, ps))
        self._names.append(name or "")
        try:
            self.before(x, ps, st)
            result = function(layer, x, ps, st)
            self.after(result)
            return result
        finally:
            self.layers.pop()
            self._names.pop()

    def before(self, x: Any, ps: Any, st: Any) -> None:
        """A layer is about to run on `x`."""

    def after(self, result: Any) -> None:
        """A layer returned `result`, ``(y, st)`` where it keeps the contract."""

    def use(self, ts: Any, function: str) -> None:
        """`function` takes a training state and gives its successor."""


class _Watching(threading.local):
    watcher: Watcher | None = None


current = _Watching()


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """A context in which `watcher` sees the calls of this thread, in place of one outside of it."""
    before = current.watcher
    current.watcher = watcher
    try:
        yield
    finally:
        current.watcher = before


def note_use(ts: Any, function: str) -> None:
    """Tell who watches that `function` takes a training state and gives its successor."""
    if current.watcher is not None:
        current.watcher.use(ts, function)
