"""`debug_mode`: say where a NaN, a float64 or a training state used twice first came from."""

from __future__ import annotations

import functools
import math
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from culux import tree
from culux.autodiff.tape import ReverseTrace, recording
from culux.autodiff.tracer import Operation, Pullback, plain
from culux.autodiff.watched import TracingWatcher
from culux.backends import is_float_array
from culux.backends.registry import namespace_of
from culux.core.watch import watching
from culux.errors import DTypeError, LayerError, NonFiniteError, describe

__all__ = ["debug_mode"]


@contextmanager
def debug_mode(*, nan: bool = True, promotion: bool = True, reuse: bool = True) -> Iterator[None]:
    """A context in which layers and gradients of this thread are checked; an error says where it first went wrong.

    Every operation that a gradient or a layer's call goes through is looked at, forward and backward, so it is slow,
    and on a GPU it waits for the device each time.

    Args:
        nan: raise a `NonFiniteError` that names the layer and the operation where a NaN first appears, in the values
            or in the cotangents of the backward pass; an infinity alone is none, masks have them.
        promotion: raise a `DTypeError` that names the operation that first makes float64 of narrower floats; a
            conversion that is written out (``x.astype("float64")``) may.
        reuse: raise a `LayerError` where a training state is used twice: the second step would not know of the first.
    """
    debugger = _Debugger(nan, promotion, reuse)
    before = recording.make
    recording.make = functools.partial(_CheckedTrace, debugger)
    try:
        with watching(debugger), np.errstate(invalid="ignore" if nan else None):  # the error says more than the warning
            yield
    finally:
        recording.make = before


class _Debugger(TracingWatcher):
    """What is looked for, and what the layers that run now are."""

    def __init__(self, nan: bool, promotion: bool, reuse: bool) -> None:
        super().__init__()
        self.nan, self.promotion, self.reuse = nan, promotion, reuse
        self._found: Exception | None = None
        self._used: dict[int, tuple[Callable[[], Any], str]] = {}

    def open(self) -> _CheckedTrace:
        """A trace that shows its operations here."""
        return _CheckedTrace(self)

    def failed(self, error: Exception) -> None:
        """What was found stands."""
        if error is self._found:
            raise error

    def before(self, x: Any, ps: Any, st: Any) -> None:
        """Look at what comes from outside: all of it at the outermost layer, `x` at the others."""
        given = {"x": x} if len(self.layers) > 1 else {"x": x, "ps": ps, "st": st}
        for path, leaf in tree.leaves_with_path(given):
            if self._has_nan(leaf):
                self._raise(NonFiniteError(f"{path} holds NaN when it comes to this layer: {_values(leaf)}"))

    def after(self, result: Any) -> None:
        """Look at what a layer made by operations that no trace saw."""
        for leaf in tree.leaves(result):
            if self._has_nan(leaf):
                self._raise(NonFiniteError(f"NaN appears in what this layer returns: {_values(leaf)}"))

    def use(self, ts: Any, function: str) -> None:
        """Refuse a training state that was used before."""
        known, by = self._used.get(id(ts), (lambda: None, ""))  # an id is given again when its owner is gone
        if self.reuse and known() is ts:
            self._raise(
                LayerError(
                    f"{function} got the training state of step {ts.step} that {by} has used already; each call "
                    "returns the state to go on with: loss, stats, ts = single_train_step(objective, batch, ts)"
                )
            )
        self._used[id(ts)] = weakref.ref(ts), function

    def check_values(self, name: str, args: tuple[Any, ...], static: Mapping[str, Any], y: Any) -> None:
        """Look at what an operation made of its arguments."""
        for output in y if type(y) is tuple else (y,):
            if self._has_nan(output):
                self._raise(NonFiniteError(f"{name} gives NaN ({_values(output)}) from {_listed(args)}"))
            if self.promotion and _is_wide(output) and "dtype" not in static and any(map(_is_narrow, args)):
                self._raise(
                    DTypeError(
                        f"{name} gives float64 from {_listed(args)}; convert the wider one (x.astype('float32')), "
                        "or a whole tree: culux.cpu_device(dtype='float32')(tree)"
                    )
                )

    def check_cotangents(self, name: str, where: str, dy: Any, cotangents: Any) -> None:
        """Look at what a pullback made of the cotangent of its operation's output."""
        for i, cotangent in enumerate(cotangents if type(cotangents) is tuple else (cotangents,)):
            if self._has_nan(cotangent):
                parts = dy if type(dy) is tuple else (dy,)
                self._raise(
                    NonFiniteError(
                        f"in the backward pass of {where}: {name} gives NaN for argument {i + 1} "
                        f"({_values(cotangent)}) from the cotangent {_listed(parts)}"
                    )
                )

    def where(self) -> str:
        """The layer that runs now, or the line outside of culux that does."""
        if not self.layers:
            frames = (frame for frame, _ in traceback.walk_stack(None))
            users = (f for f in frames if f.f_globals.get("__name__", "").partition(".")[0] not in ("culux", "numpy"))
            frame = next(users)
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        layer, path = self.layers[-1][0], self.path
        return f"{path} ({layer!r})" if path else repr(layer)

    def _has_nan(self, value: Any) -> bool:
        if not self.nan:
            return False
        value = plain(value)
        if isinstance(value, float):
            return math.isnan(value)
        return is_float_array(value) and bool(namespace_of(value).isnan(value).any())

    def _raise(self, error: Exception) -> NoReturn:
        self._found = error
        raise error


class _CheckedTrace(ReverseTrace):
    """A reverse trace that shows a debugger what goes in and out of every operation, both ways."""

    __slots__ = ("_debugger",)

    def __init__(self, debugger: _Debugger) -> None:
        super().__init__()
        self._debugger = debugger

    def process(self, primitive: Operation, args: tuple[Any, ...], static: Mapping[str, Any]) -> Any:
        """The operation, its values checked, its pullback put under a check."""
        first, debugger = len(self.tape), self._debugger
        y = super().process(primitive, args, static)
        debugger.check_values(primitive.name, args, static, y)
        if len(self.tape) > first and not isinstance(self.tape[first][0], _CheckedPullback):
            pullback, *parents = self.tape[first]
            self.tape[first] = (_CheckedPullback(pullback, debugger, primitive.name), *parents)
        return y


class _CheckedPullback:
    """A pullback whose cotangents a debugger looks at."""

    def __init__(self, func: Pullback, debugger: _Debugger, name: str) -> None:
        self.func, self._debugger, self._name = func, debugger, name
        self._where = debugger.where()

    def __call__(self, dy: Any) -> Any:
        cotangents = self.func(dy)
        self._debugger.check_cotangents(self._name, self._where, dy, cotangents)
        return cotangents


def _is_wide(value: Any) -> bool:
    return bool(getattr(value, "dtype", None) == np.float64)


def _is_narrow(value: Any) -> bool:
    value = plain(value)
    return is_float_array(value) and value.dtype.itemsize < 8


def _values(value: Any) -> str:
    """An array in a few words, with how many of its elements are NaN and between what the others lie."""
    value = plain(value)
    if not is_float_array(value):
        return describe(value)
    xp = namespace_of(value)
    missing = int(xp.isnan(value).sum())
    text = f"{describe(value)}, NaN in {missing} of {value.size} elements" if missing else describe(value)
    if missing == value.size:
        return text
    low, high = (float(f(xp.where(xp.isnan(value), n, value))) for f, n in ((xp.min, math.inf), (xp.max, -math.inf)))
    return f"{text}, {'the others ' if missing else ''}in [{low:.4g}, {high:.4g}]"


def _listed(values: tuple[Any, ...]) -> str:
    return "; ".join(_values(value) for value in values if value is not None) or "nothing"
