"""The autotuner: of several ways to compute the same, the one that is fastest here, found by timing them once.

An operation, what its times depend on (shapes, dtypes, flags) and the device together are timed once. The pick
is kept for the process, and on disk under the versions of culux, CUDA and the driver. ``CULUX_AUTOTUNE=0`` times
nothing and takes the defaults; ``python -m culux tune --show`` lists what was picked.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from culux.backends import Timer
from culux.errors import KernelError
from culux.kernels import records
from culux.kernels.records import Key, Record

__all__ = ["choose"]

WARM_UP = 2  # the first call may compile; the second says how many make a sample
ROUNDS = 7  # odd: the median is one of them
SAMPLE = 500.0  # microseconds of work in a sample, far above the resolution of events
MAX_REPEATS = 100
RESOLUTION = 1e-3  # microseconds; no call takes less
TIE = 1.02  # the default stays unless it is slower than this

_lock = threading.RLock()  # one thread at a time: two that time on one device time each other
_winners: dict[tuple[str, Key, str], str] = {}
_on_disk: dict[Path, dict[tuple[str, Key], Record]] = {}
_not_kept: set[str] = set()


def choose(
    operation: str,
    key: Key,
    candidates: Mapping[str, Callable[[], Any]],
    default: str,
    *,
    device: str,
    timer: Timer | None = None,
) -> str:
    """The name of the candidate to run: the one with the lowest median time on this device.

    Where the default is within 2 % of the fastest, it is the default. A candidate that fails with a `KernelError`
    or for want of memory is out. The default is the answer, and nothing is kept, with ``CULUX_AUTOTUNE=0``,
    without a timer, and while the stream is being captured, unless the pick is known already. Safe in threads.

    Args:
        operation: what the candidates compute.
        key: what their times depend on: shapes, dtypes, flags.
        candidates: functions by name, each of which does all of the work; the same names for the same key. They
            are called hundreds of times, so they must not change what they read.
        default: the candidate that the built-in heuristics take.
        device: the device's name, as ``timer.device`` has it.
        timer: what times them, as ``backend.timer(index)`` gives it.

    Raises:
        KernelError: for a default that is no candidate, a key with anything but integers and strings, or where
            every candidate fails: the default's error.
        MemoryError: where every candidate fails and the default for want of memory.
    """
    winner = _winners.get((operation, key, device))
    return _pick(operation, key, candidates, default, device, timer) if winner is None else winner


def _enabled() -> bool:
    """Whether candidates are timed: what the environment variable ``CULUX_AUTOTUNE`` says, 1 by default.

    Raises:
        KernelError: where it is neither 0 nor 1.
    """
    value = os.environ.get("CULUX_AUTOTUNE") or "1"
    if value not in ("0", "1"):
        raise KernelError(
            f"expected the environment variable CULUX_AUTOTUNE to be 1 (time the candidates, the default) or 0 (take "
            f"the built-in heuristics), got {value!r}"
        )
    return value == "1"


def _pick(
    operation: str,
    key: Key,
    candidates: Mapping[str, Callable[[], Any]],
    default: str,
    device: str,
    timer: Timer | None,
) -> str:
    if default not in candidates:
        raise KernelError(f"{operation}: expected a default among {', '.join(candidates)}, got {default!r}")
    if not _enabled() or timer is None or len(candidates) == 1:
        return default
    if not all(isinstance(part, int | str) for part in key):
        raise KernelError(f"{operation}: expected a key of integers and strings, got {key!r}")
    with _lock:
        if (operation, key, device) not in _winners:  # another thread may have timed it meanwhile
            versions = {"culux": _version(), **timer.versions}
            record = _known(device, versions).get((operation, key))
            if record is None or {*record.times, *record.failed} != {*candidates}:
                measured = _measure(candidates, default, timer)
                if measured is None:
                    return default
                when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                record = Record(operation, key, device, versions, default, *measured, when)
                _keep(record)
            _winners[operation, key, device] = record.winner
        return _winners[operation, key, device]


def _measure(
    candidates: Mapping[str, Callable[[], Any]], default: str, timer: Timer
) -> tuple[str, dict[str, float], dict[str, str]] | None:
    """The winner, the median times, and why others failed; None where nothing can be timed now."""
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    repeats = dict.fromkeys(candidates, 1)
    errors: dict[str, Exception] = {}
    names = list(candidates)
    for turn in range(-WARM_UP, ROUNDS):
        names.reverse()  # so that none is always the one after the slowest, which leaves the device warm
        for name in names:
            if name in errors:
                continue
            try:
                elapsed = timer.elapsed(candidates[name], repeats[name])
            except (KernelError, MemoryError) as error:
                errors[name] = error.with_traceback(None)  # the frames hold arrays
                continue
            if elapsed is None:
                return None
            elapsed = max(float(elapsed), RESOLUTION)
            if turn < 0:
                repeats[name] = max(1, min(MAX_REPEATS, round(SAMPLE / elapsed)))
            else:
                samples[name].append(elapsed)
    times = {name: sorted(samples[name])[ROUNDS // 2] for name in candidates if name not in errors}
    if not times:
        raise errors[default]
    best = min(times, key=times.__getitem__)
    winner = default if times.get(default, float("inf")) <= TIE * times[best] else best
    return winner, times, {name: _summary(error) for name, error in errors.items()}


def _known(device: str, versions: Mapping[str, str]) -> dict[tuple[str, Key], Record]:
    """What is on disk for a device; read once per process."""
    try:
        path = records.file_of(device, versions)
        if path not in _on_disk:
            _on_disk[path] = {}
            _on_disk[path] = records.load(path)
        return _on_disk[path]
    except OSError as error:
        _say(device, error)
        return {}


def _keep(record: Record) -> None:
    """Write to the disk, where that is possible."""
    try:
        _on_disk[records.file_of(record.device, record.versions)] = records.add(record)
    except OSError as error:
        _say(record.device, error)


def _say(device: str, error: OSError) -> None:
    """Say once for a device that the disk cannot be used."""
    if device not in _not_kept:
        _not_kept.add(device)
        warnings.warn(f"what the autotuner picks for {device} is not kept on disk: {error}", stacklevel=2)


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _version() -> str:
    # Nothing below the layers imports the whole package, which imports everything; here it is long there.
    return str(sys.modules["culux"].__version__)
