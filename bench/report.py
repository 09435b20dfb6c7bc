"""The table of a run, and its files."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.harness import REFERENCE, Row

COLUMNS = {"culux": "culux", REFERENCE: "torch eager", "torch_fusedadam": "torch, fused Adam", "numpy": "NumPy by hand"}


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: the median of each library, with its ratio to torch eager; the score, goal and verdict."""
    head = ["what", *COLUMNS.values(), "ratio", "of minima", "goal", ""]
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)
    return "\n".join(padded)


def _cells(row: Row) -> list[str]:
    score = "–" if row.score is None else f"{row.score:.3g}{row.unit}"
    goal = "–" if row.goal is None else f"<= {row.goal:g}{row.unit}"
    ours = row.timings["culux"]
    minimum = f"{ours.minimum_ratio:.3g}" if REFERENCE in row.timings and not row.unit else "–"
    return [row.what, *(_time(row, name) for name in COLUMNS), score, minimum, goal, row.verdict]


def _time(row: Row, name: str) -> str:
    timing = row.timings.get(name)
    if timing is None:
        return "–"
    compared = name not in ("culux", REFERENCE) and REFERENCE in row.timings
    return f"{1e3 * timing.median:.4g} ms" + (f" ({timing.ratio:.2f})" if compared else "")


def heading(facts: dict[str, Any]) -> str:
    """One line on the machine."""
    clock = "process CPU time" if facts["threads"] == 1 else "wall clock"
    torch = f"torch {facts['torch']}" if facts["torch"] else "no torch"
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} thread(s), {clock}; Python {facts['python']}, "
        f"NumPy {facts['numpy']} ({facts['blas']}), {torch}, commit {facts['commit']}"
    )


def notes(rows: Sequence[Row]) -> list[str]:
    """The remarks on single rows."""
    return [f"{row.what}: {row.note}" for row in rows if row.note]


def save(rows: Sequence[Row], facts: dict[str, Any], folder: Path) -> Path:
    """Write ``<cpu>-<threads>t-<date>.md`` and ``.json``; returns the path of the first."""
    date = datetime.datetime.now(datetime.UTC).date()
    stem = folder / f"{machine.slug(facts['cpu'])}-{facts['threads']}t-{date}"
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join([heading(facts), "", table(rows), "", *notes(rows)]).rstrip() + "\n"
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    entries = [{**dataclasses.asdict(row), "verdict": row.verdict} for row in rows]
    document = {"machine": facts, "rows": entries}
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return stem.with_suffix(".md")
