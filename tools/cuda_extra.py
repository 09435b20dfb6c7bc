"""Print the extra of culux whose CuPy fits this machine's NVIDIA driver: cuda12, cuda13, or nothing.

Run by the Makefile with the Python that culux is installed into.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from importlib.metadata import distributions

MAJORS = (12, 13)


def driver_cuda_major() -> int | None:
    """The CUDA major version of the driver, as libcuda says it, else nvidia-smi; None without a driver."""
    try:
        version = ctypes.c_int()
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0:
            return version.value // 1000
    except (OSError, AttributeError):
        pass  # no driver library on the search path
    try:
        report = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_major(report)


def parse_major(report: str) -> int | None:
    """The CUDA major version in the report that nvidia-smi prints."""
    found = re.search(r"CUDA(?: UMD)? Version\s*:\s*(\d+)", report)
    return int(found[1]) if found else None


def choose(major: int | None, installed: set[str]) -> str:
    """The extra for a driver's CUDA major version, beside the distributions that are installed."""
    for present in MAJORS:
        if f"cupy-cuda{present}x" in installed:
            return f"cuda{present}"  # both wheels install the package cupy: never a second one
    if major is None or "cupy" in installed:
        return ""
    return f"cuda{min(major, MAJORS[-1])}" if major >= MAJORS[0] else ""


def main() -> None:
    """Print the extra; a driver that is too old is said on stderr."""
    major = driver_cuda_major()
    if major is not None and major < MAJORS[0]:
        print(f"expected a driver for CUDA 12 or newer, got CUDA {major}: installing without CuPy", file=sys.stderr)
    names = (found.metadata["Name"] or "" for found in distributions())
    print(choose(major, {name.lower().replace("_", "-") for name in names}))


if __name__ == "__main__":
    main()
