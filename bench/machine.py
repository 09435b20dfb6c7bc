"""The machine a benchmark runs on, and how many threads its libraries may take.

Imports neither NumPy nor torch: their threads are set by environment variables that they read when imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
ROOT = Path(__file__).parent.parent


def environment(threads: int, base: Mapping[str, str]) -> dict[str, str]:
    """`base` with every library held to that many threads."""
    return {**base, **dict.fromkeys(THREAD_VARIABLES, str(threads))}


def restart_with_threads(threads: int) -> None:
    """Run this same command again with its threads set, unless they are already."""
    wanted = environment(threads, os.environ)
    if wanted != dict(os.environ):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]], wanted)


def threads() -> int:
    """The threads that the environment grants to the libraries; all cores where it says nothing."""
    return int(os.environ.get(THREAD_VARIABLES[0]) or os.cpu_count() or 1)


def has_torch() -> bool:
    """Whether torch is installed; does not import it."""
    return importlib.util.find_spec("torch") is not None


def facts() -> dict[str, Any]:
    """What a reader needs to judge the numbers: processor, threads, versions, commit."""
    import numpy as np

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads(),
        "device": "cpu",
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas['name']} {blas['version']}",
        "torch": importlib.metadata.version("torch") if has_torch() else None,
        "commit": commit(),
    }


def cpu_model() -> str:
    """The processor's name as Linux gives it, with its family and model where the name says little."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if "model name" not in fields:
        return platform.machine()
    return f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})"


def slug(text: str) -> str:
    """`text` as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.partition("(family")[0].lower()).strip("-")


def commit() -> str:
    """The checked-out commit, with ``+changes`` where files differ from it; ``unknown`` outside a clone."""
    head, changes = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain")
    return (head + ("+changes" if changes else "")) if head else "unknown"


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()
