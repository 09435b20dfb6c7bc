"""`History`: what `fit` returns beside the train state, and prints as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from culux.errors import EntryError, nearest
from culux.tree import Tree

__all__ = ["COLUMNS", "History", "header", "line"]

COLUMNS = ("epoch", "step", "loss", "learning_rate", "seconds")
"""The columns that every history has; stats and validation add theirs."""


@dataclass(frozen=True)
class History:
    """One row per epoch: epoch, step, loss, the stats, learning_rate, val_loss, val_<metric>, seconds.

    ``history["val_loss"]`` is a column, ``history.rows[-1]`` the last row, ``print(history)`` a table.

    Args:
        rows: the rows.
    """

    rows: tuple[Tree, ...] = ()

    def __getitem__(self, name: str) -> list[Any]:
        if self.rows and name not in self.rows[0]:
            raise EntryError(f"no column {name!r}{nearest(name, self.rows[0])}; there are: {', '.join(self.rows[0])}")
        return [row[name] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return "\n".join([header(self.rows[0]), *map(line, self.rows)]) if self.rows else "no epochs"


def header(row: Mapping[str, Any]) -> str:
    """The names of a table's columns."""
    return "  ".join(name.rjust(_width(name)) for name in row)


def line(row: Mapping[str, Any]) -> str:
    """A row of a table, under `header`."""
    return "  ".join(_text(name, value).rjust(_width(name)) for name, value in row.items())


def _width(name: str) -> int:
    return max(len(name), 5 if name in ("epoch", "step") else 8)


def _text(name: str, value: Any) -> str:
    if name == "seconds":
        return f"{value:.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
