"""What `fit` shows: a table that grows by a row per epoch, and on a terminal a bar below it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from culux.training.history import header, line

__all__ = ["Progress"]

_SILENCE = 10.0  # seconds after which a log without a bar gets a line from within an epoch


class Progress:
    """Shows a run on stderr: whole lines, and with tqdm on a terminal a bar that goes away.

    Args:
        epochs: how many epochs there will be.
        steps: how many steps an epoch has; None where it is not known.
        enabled: False shows nothing.
    """

    def __init__(self, epochs: int, steps: int | None, enabled: bool) -> None:
        self._epochs = epochs
        self._steps = steps
        self._enabled = enabled
        self._stream = sys.stderr
        self._bar: Any = None
        self._title = ""
        self._step = 0
        self._header_shown = False
        self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_bar()

    def start_epoch(self, epoch: int) -> None:
        """Begin with the steps of an epoch, counted from 1."""
        self._step = 0
        self._title = f"epoch {epoch}/{self._epochs}"
        if self._enabled and self._stream.isatty():
            self._bar = _new_bar(self._title, self._steps, self._stream)

    def step(self) -> None:
        """One step more."""
        self._step += 1
        if self._bar is not None:
            self._bar.update()

    def loss(self, loss: float) -> None:
        """Show a loss that was read."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        elif time.monotonic() - self._last_line > _SILENCE:
            self._print(f"{self._title}, step {self._step}/{self._steps or '?'}, loss {loss:.4g}")

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        """Show the row of an epoch."""
        self._close_bar()
        if not self._header_shown:
            self._print(header(row))
            self._header_shown = True
        self._print(line(row))

    def note(self, text: str) -> None:
        """Show a line."""
        self._print(text)

    def _print(self, text: str) -> None:
        if self._enabled:
            print(text, file=self._stream, flush=True)
            self._last_line = time.monotonic()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _new_bar(title: str, steps: int | None, stream: Any) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=steps, desc=title, leave=False, file=stream, dynamic_ncols=True, unit="step")
