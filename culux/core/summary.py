"""The text that `print(layer)` shows: the tree of layers with parameter and state counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux import tree
from culux.core.fields import CHILDREN

__all__ = ["count", "summary"]


def count(value: Any) -> int:
    """The number of elements in a tree; a leaf that is no array counts one."""
    return sum(int(getattr(leaf, "size", 1)) for leaf in tree.leaves(value))


def summary(layer: Any) -> str:
    """The layers, one a line, with what each adds, and the totals."""
    rng = np.random.default_rng(0)
    ps, st = layer._gather(rng, "initial_parameters"), layer._gather(rng, "initial_states")
    rows: list[tuple[str, str]] = []
    _rows(layer, "", "", ps, st, rows)
    width = max(len(text) for text, _ in rows)
    lines = [f"{text:<{width}}  {note}".rstrip() for text, note in rows]
    return "\n".join([*lines, f"total: {_counts(count(ps), count(st)) or 'no parameters'}"])


def _rows(layer: Any, indent: str, name: str, ps: Any, st: Any, rows: list[tuple[str, str]]) -> None:
    label = f"{indent}{name + ' = ' if name else ''}"
    children = layer.__dict__[CHILDREN]
    if not children or not layer._nests_children:
        rows.append((f"{label}{layer!r}", _note(ps, st)))
        return
    rows.append((f"{label}{type(layer).__name__}(", ""))
    for child_name, child in children.items():
        _rows(child, indent + "    ", child_name, ps[child_name], st[child_name], rows)
    own = [{k: v for k, v in entries.items() if k not in children} for entries in (ps, st)]
    rows.append((f"{indent})", _note(*own)))


def _note(ps: Any, st: Any) -> str:
    counts = _counts(count(ps), count(st))
    return f"# {counts}" if counts else ""


def _counts(parameters: int, states: int) -> str:
    parts = [f"{parameters:,} parameters"] if parameters else []
    parts += [f"{states:,} states"] if states else []
    return ", plus ".join(parts)
