"""``python -m tests.kernel_table FOLDER``: the table that `make kernels` ends with.

FOLDER holds what the tests left there: what the compiler told (test_kernel_gate.py), what the emulator ran
(kernel_support.py), and the launches of each call, counted on the stand-in for CuPy (test_kernel_cost.py).
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

HEAD = ("kernel", "architectures", "registers", "spilled", "shared", "emulator", "checks", "launches per call")


def main(folder):
    gate = [row for path in sorted(folder.glob("gate-*.json")) for row in json.loads(path.read_text())]
    checks = [json.loads(line) for path in folder.glob("checks-*.jsonl") for line in path.read_text().splitlines()]
    calls = launches(folder)
    lines = [HEAD]
    for family, kernel in dict.fromkeys((row["family"], row["kernel"]) for row in gate):
        rows = [row for row in gate if (row["family"], row["kernel"]) == (family, kernel)]
        runs = [run for c in checks if (c["family"], c["kernel"]) == (family, kernel) for run in c["runs"]]
        lines.append((f"{family}: {kernel}", *compiled(rows), *emulated(runs), ", ".join(calls.get(kernel, ["–"]))))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    print("\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines))
    print(f"\n{len(lines) - 1} kernels in {len({row['source'] for row in gate})} programs")
    return 0 if len(lines) > 1 else 1


def compiled(rows):
    """Architectures, registers a thread, bytes spilled, bytes of static shared memory, over all programs."""
    architectures = min((row["architectures"] for row in rows), key=len)
    registers = [n for row in rows for n in row["registers"]]
    return (
        " ".join(architectures),
        f"{min(registers)}-{max(registers)}",
        str(max(row["spills"] for row in rows)),
        str(max(row["shared"] for row in rows)),
    )


def emulated(runs):
    """Milliseconds of a plain emulated launch, and which checks it passed."""
    plain = [run["seconds"] for run in runs if run["mode"] == "schedule"]
    checks = [mode for mode in ("bounds", "races", "uninitialised") if any(run["mode"] == mode for run in runs)]
    return (f"{1000 * min(plain):.1f} ms" if plain else "–"), " ".join(checks) or "–"


def launches(folder):
    """By kernel: how often which call launches it."""
    found = defaultdict(list)
    path = folder / "calls.json"
    for call, kernels in json.loads(path.read_text()).items() if path.exists() else ():
        for kernel, count in kernels:
            found[kernel].append(f"{count} in {call}")
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
