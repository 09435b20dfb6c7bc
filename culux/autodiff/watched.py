"""Watching the operations of layers: the base of `culux.debug_mode` and `culux.summary`."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from culux import tree
from culux.autodiff.tracer import nesting_level
from culux.backends import is_float_array
from culux.core.watch import Watcher

__all__ = ["TracingWatcher"]


class TracingWatcher(Watcher):
    """A watcher for which the outermost layer runs in a trace, so that its operations are seen too.

    A layer that takes plain arrays only runs again on those.
    """

    @abstractmethod
    def open(self) -> Any:
        """A new trace, whose ``lift(array)`` gives traced arrays."""

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """The call in the trace ended with an error; raise it where the one on plain arrays is of no use."""

    def call(self, function: Callable[..., Any], layer: Any, x: Any, ps: Any, st: Any) -> Any:
        """The layer's call, in a trace where none is open."""
        if self.layers or nesting_level():
            return super().call(function, layer, x, ps, st)
        try:
            with self.open() as trace:
                lifted = (tree.map(functools.partial(_lifted, trace), value) for value in (x, ps, st))
                result = super().call(function, layer, *lifted)
            return tree.map(trace.lower, result)
        except Exception as error:
            self.failed(error)
            return super().call(function, layer, x, ps, st)


def _lifted(trace: Any, leaf: Any) -> Any:
    return trace.lift(leaf) if is_float_array(leaf) else leaf
