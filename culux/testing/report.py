"""The reports of checks: what passed, what was left out and why, and the error that lists everything that failed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from culux.errors import CheckError

__all__ = ["CheckReport", "Checks", "LeftOut"]

_OWN = tuple(str(Path(file).parent) for file in (Path(__file__).parent, np.__file__))


@dataclass(frozen=True)
class CheckReport:
    """What was checked, all of it passed; printed, a table.

    Attributes:
        subject: what was checked.
        passed: the names of the checks, in their order.
        left_out: the names of the checks that were not made, with the reason.
    """

    subject: str
    passed: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        rows = [(name, "passed") for name in self.passed]
        rows += [(name, f"left out: {reason}") for name, reason in self.left_out]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {text}" for name, text in rows]
        return "\n".join([f"{self.subject}: passed", *(f"  {line}" for line in lines)])


class LeftOut(Exception):
    """Raised in a check that cannot be made, with the reason."""


class Checks:
    """Runs checks one by one and gathers what fails."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._passed: list[str] = []
        self._left_out: list[tuple[str, str]] = []
        self._failed: dict[str, list[str]] = {}

    @contextmanager
    def __call__(self, name: str, hint: str) -> Iterator[Callable[[str], None]]:
        """A context that is one check: it gives a function that notes a problem; exceptions are problems too.

        Args:
            name: of the check, a new one.
            hint: what to do where it fails.
        """
        problems: list[str] = []
        try:
            yield problems.append
        except LeftOut as left_out:
            self.leave_out(name, str(left_out))
            return
        except Exception as error:
            problems.append(_raised(error))
        if problems:
            self._failed[name] = [*problems[:-1], f"{problems[-1]}; {hint}"]
        else:
            self._passed.append(name)

    def leave_out(self, name: str, reason: str) -> None:
        """Note that a check is not made, and why."""
        self._left_out.append((name, reason))

    def stop_if_failed(self, name: str) -> None:
        """End here where this check failed: what comes next needs what it checked."""
        if name in self._failed:
            self._fail(f"; those after {name!r} need it and were not made")

    def report(self) -> CheckReport:
        """What passed and what was left out.

        Raises:
            CheckError: where a check failed; the text lists all of them.
        """
        if self._failed:
            self._fail("")
        return CheckReport(self._subject, tuple(self._passed), tuple(self._left_out))

    def _fail(self, rest: str) -> None:
        count = len(self._passed) + len(self._failed)
        lines = [f"- {name}: {problem}" for name, problems in self._failed.items() for problem in problems]
        raise CheckError("\n".join([f"{self._subject}: {len(self._failed)} of {count} checks failed{rest}", *lines]))


def _raised(error: Exception) -> str:
    """An exception in a line, with the innermost place outside of culux and NumPy."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_OWN)]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
