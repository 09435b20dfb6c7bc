"""The files of a run: one JSON with everything, and a Markdown table."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.gpu.device import Ceilings
from bench.gpu.models import Stepped
from bench.gpu.operations import Measured


class Report:
    """What has been measured so far; written after every part, so that a run that is cut off leaves its results.

    Args:
        facts: of the device; its name is in the files' names.
        folder: where the files go.
    """

    def __init__(self, facts: dict[str, Any], folder: Path) -> None:
        self.facts = facts
        self.tests = ""
        self.ceilings: Ceilings | None = None
        self.operations: dict[str, list[Measured]] = {}
        self.models: dict[str, list[Stepped]] = {}
        date = datetime.datetime.now(datetime.UTC).date()
        self.stem = folder / f"gpu-{machine.slug(str(facts['device']))}-{date}"

    @property
    def failures(self) -> list[str]:
        """What failed or was wrong, a line each."""
        rows = [row for part in self.operations.values() for row in part]
        wrong = [
            f"{row.what}: relative error {row.error:.1e}" for row in rows if row.error is not None and not row.correct
        ]
        broken = [f"{row.what}: {row.problem.strip().splitlines()[-1]}" for row in rows if row.problem]
        models = [
            f"{row.model} {row.library}: {row.problem.strip().splitlines()[-1]}"
            for part in self.models.values()
            for row in part
            if row.problem and row.library.startswith("culux")
        ]
        ran = not self.tests or ("passed" in self.tests and not any(word in self.tests for word in ("failed", "error")))
        tests = [] if ran else [f"tests: {self.tests}"]
        return [*tests, *wrong, *broken, *models]

    def save(self) -> Path:
        """Write both files; returns the path of the table."""
        self.stem.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "machine": self.facts,
            "tests": self.tests,
            "ceilings": None if self.ceilings is None else dataclasses.asdict(self.ceilings),
            "operations": {name: [dataclasses.asdict(row) for row in part] for name, part in self.operations.items()},
            "models": {name: [dataclasses.asdict(row) for row in part] for name, part in self.models.items()},
            "failures": self.failures,
        }
        self.stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        path = self.stem.with_suffix(".md")
        path.write_text(self.text(), encoding="utf-8")
        return path

    def text(self) -> str:
        """The run as Markdown."""
        f = self.facts
        parts = [
            f"# {f['device']}\n\n{f['multiprocessors']} multiprocessors, compute capability {f['compute_capability']}, "
            f"driver {f['driver']}, CUDA {f['cuda']}; CuPy {f['cupy']}, NumPy {f['numpy']}, torch {f['torch']}, "
            f"jax {f['jax']}, Python {f['python']}; commit {f['commit']}"
        ]
        if self.tests:
            parts.append(f"Tests marked gpu: {self.tests}")
        if self.ceilings is not None:
            rates = ", ".join(f"{name} {rate / 1e12:.0f}" for name, rate in self.ceilings.products.items())
            parts.append(f"Ceilings, measured: copy {self.ceilings.copy / 1e12:.2f} TB/s; products in TFLOP/s: {rates}")
        for precision, rows in self.operations.items():
            parts += [f"## Operations, float32 products in {precision}", _operations(rows)]
        for precision, steps in self.models.items():
            parts += [f"## Training steps, float32 products in {precision}", _models(steps)]
        parts.append("failures: none" if not self.failures else "failures:\n\n- " + "\n- ".join(self.failures))
        return "\n\n".join(parts) + "\n"


def _operations(rows: Sequence[Measured]) -> str:
    lines = [["what", "error", "call µs", "device µs", "share of ceiling", "torch eager µs", "ratio"]]
    for row in rows:
        if row.time is None:
            lines.append([row.what, "failed", *[""] * 5])
            continue
        device = "–" if row.time.device is None else f"{row.time.device:.1f}"
        share = "–" if row.share is None else f"{row.share:.0%}"
        peer = ["–", "–"] if row.torch is None else [f"{row.torch:.1f}", f"{row.time.call / row.torch:.2f}"]
        error = f"{row.error:.1e}{'' if row.correct else ' WRONG'}"
        lines.append([row.what, error, f"{row.time.call:.1f}", device, share, *peer])
    return _table(lines)


def _models(rows: Sequence[Stepped]) -> str:
    lines = [["model", "library", "µs a step", "losses"]]
    for row in rows:
        time = "failed" if row.microseconds is None else f"{row.microseconds:.1f}"
        lines.append([row.model, row.library, time, " ".join(f"{loss:.4f}" for loss in row.losses)])
    return _table(lines)


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    padded.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(padded)
