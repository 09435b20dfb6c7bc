"""What tests need of the machine: a tool or a reason to skip."""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import re
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest

NO_GPU = "no CUDA GPU"


def requires(tool: str) -> Any:
    """The tool, or a skip of the running test: an imported module, or the path of `compiler` or `nvrtc`."""
    found = FINDERS.get(tool, lambda: _module(tool))()
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name.partition(".")[0]:
            return None
        raise  # it is installed and broken: that is no reason to skip


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))), None)


def _nvrtc() -> str | None:
    wheels = Path(sysconfig.get_path("purelib"), "nvidia")
    return next((str(path) for path in sorted(wheels.glob("*/lib/libnvrtc.so.*"))), None)


FINDERS = {"compiler": _compiler, "nvrtc": _nvrtc}


@functools.cache
def has_gpu() -> bool:
    """Whether the CUDA driver has a device; asked of the driver, since `cupy` may be a stand-in."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def required_tools() -> set[str]:
    """The tools that CULUX_REQUIRE says are there: a skip for want of one is a failure."""
    return {tool for tool in os.environ.get("CULUX_REQUIRE", "").split(",") if tool}


def skip_class(reason: str) -> str:
    """The reason of a skip as it is counted; that of `pytest.importorskip` reads like that of `requires`."""
    reason = reason.removeprefix("Skipped: ")
    missing = re.match(r"could not import '([^'.]+)", reason)
    return f"{missing[1]} is not installed" if missing else reason


def missing_tool(reason: str) -> str | None:
    """The tool that a skip names as missing, `gpu` for a GPU; None for a skip of another reason."""
    reason = skip_class(reason)
    if reason == NO_GPU:
        return "gpu"
    tool, missing, _ = reason.partition(" is not installed")
    return tool if missing else None
