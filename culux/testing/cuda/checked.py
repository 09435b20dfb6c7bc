"""A launch in a process of its own, watched by sanitizers, and their reports in one line each."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from culux.errors import KernelError
from culux.testing.cuda.build import Build, build
from culux.testing.cuda.emulator import EmulatedKernel

__all__ = ["run_checked"]

# No leaks: a process that ends frees nothing. The first race is enough, as one bug often makes thousands.
_ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=0",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:report_signal_unsafe=0",
}


def run_checked(
    kind: Build, kernel: EmulatedKernel, args: Sequence[Any], config: Sequence[int], seed: int, timeout: float
) -> list[Any]:
    """Run one launch in the program of a checked build.

    Args:
        kind: `bounds` or `races`.
        kernel: the kernel.
        args: its arguments, checked; they are not written.
        config: the nine integers of the launch.
        seed: of the random schedules.
        timeout: the seconds after which the kernel is taken to hang.

    Returns:
        The arguments, with copies of the arrays as the kernel left them.

    Raises:
        KernelError: what a sanitizer or the scheduler found; the text names kernel and line.
    """
    program = build(kind, kernel.module.translation, kernel.module.options)
    with tempfile.TemporaryDirectory(prefix="culux-launch-") as folder:
        launch, result = Path(folder, "launch"), Path(folder, "result")
        launch.write_bytes(_serialise(kernel, args, config, seed))
        command = [str(program), str(launch), str(result)]
        done = _run(command, kernel.name, timeout)
        # Random addresses of some systems do not suit ThreadSanitizer; setarch (util-linux) fixes them.
        if "unexpected memory mapping" in done.stderr and (setarch := shutil.which("setarch")):
            done = _run([setarch, "-R", *command], kernel.name, timeout)
        if done.returncode:
            text = explain(done.stderr, kernel.module.translation.label)
            raise KernelError(f"kernel {kernel.name}: {text or f'ended with status {done.returncode}: {done.stderr}'}")
        return _results(args, result.read_bytes())


def _run(command: Sequence[str], name: str, timeout: float) -> subprocess.CompletedProcess[str]:
    environment: Mapping[str, str] = {**os.environ, **_ENVIRONMENT}
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise KernelError(
            f"kernel {name}: did not end within {timeout:g} s; does a loop never end, or wait for another block? "
            "(blocks run one after another here); else use a smaller case or a larger timeout="
        ) from error


def _serialise(kernel: EmulatedKernel, args: Sequence[Any], config: Sequence[int], seed: int) -> bytes:
    """A launch as runner.cpp reads it."""
    parts = [struct.pack("<10iQi", kernel.number, *config, seed, len(args))]
    for parameter, value in zip(kernel.parameters, args, strict=True):
        if value is None:
            parts.append(struct.pack("<iiq", 2, 0, 0))
            continue
        array = value if isinstance(value, (np.ndarray, np.generic)) else np.array(value, parameter.dtype)
        # An array that begins off a boundary of 16 bytes does so there too.
        offset = value.ctypes.data % 16 if parameter.pointer else 0
        parts.append(struct.pack("<iiq", int(parameter.pointer), offset, array.nbytes) + array.tobytes())
    return b"".join(parts)


def _results(args: Sequence[Any], written: bytes) -> list[Any]:
    results, position = [], 0
    for value in args:
        if isinstance(value, np.ndarray):
            flat = np.frombuffer(written, np.uint8, value.nbytes, position)
            results.append(flat.view(value.dtype).reshape(value.shape).copy())
            position += value.nbytes
        else:
            results.append(value)
    return results


def explain(report: str, label: str) -> str:
    """One line for the report of a sanitizer or the scheduler: what, and where in the file `label`; "" if unknown."""
    if match := re.search(r"^culux: (.*)", report, re.MULTILINE):
        return match[1]
    if match := re.search(r"^(\S+:\d+):\d+: runtime error: (.*)", report, re.MULTILINE):
        return f"{match[2]} at {_place(match[1], label) or match[1]}"
    if "ThreadSanitizer: data race" in report:
        return _explain_race(report, label)
    if match := re.search(r"ERROR: AddressSanitizer:? (\S+)", report):
        access = re.search(r"^(READ|WRITE) of size (\d+)", report, re.MULTILINE)
        what = f"{access[1].lower()} of {access[2]} bytes, " if access else ""
        text = f"{what}{match[1]} at {_place(report, label) or 'an unknown line'}"
        region = re.search(r"is located (\d+) bytes (?:to the )?(\w+)(?: of)? (\d+)-byte region", report)
        if region:
            side = {"left": "before", "right": "after"}.get(region[2], region[2])
            text += f", {region[1]} bytes {side} an array of {region[3]} bytes"
        variable = re.search(r"global variable '([^']*)'", report)
        return text + (f", beside the variable {variable[1]}" if variable else "")
    return ""


def _explain_race(report: str, label: str) -> str:
    """Both accesses of the first race and the variable, as ThreadSanitizer tells them."""
    pattern = r"^  (?:Previous )?(?:atomic )?(read|write) of size (\d+)[^\n]*\n(.*?)\n\n"
    accesses = [
        f"{match[1].lower()} of {match[2]} bytes at {_place(match[3], label) or 'an unknown line'}"
        for match in re.finditer(pattern, report + "\n\n", re.MULTILINE | re.DOTALL | re.IGNORECASE)
    ]
    variable = re.search(r"Location is global '([^']*)'", report)
    where = f" on {variable[1]}" if variable else ""
    return f"data race{where}: {' and '.join(accesses[:2])}, with no barrier between the two threads"


def _place(text: str, label: str) -> str:
    """The first ``label:line`` of a text: the innermost frame that is the kernel's own file."""
    match = re.search(rf"(?:^|[\s/]){re.escape(label)}:(\d+)", text)
    return f"{label}:{match[1]}" if match else ""
