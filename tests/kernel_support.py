"""Kernels of the library under the checks of the emulator, and CuPy arrays of the stand-in from host ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from tests.support import requires

DTYPES = ("float32", "float64", "float16", "bfloat16")
TOLERANCE = {"float32": 2e-5, "float64": 1e-12, "float16": 4e-3, "bfloat16": 3e-2}


def dtype_of(name):
    """The NumPy dtype of this name, bfloat16 included."""
    return np.dtype(requires("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def check(kernel, grid, block, *args, shared=0, reference=None, **options):
    """Run a `culux.kernels.Kernel` on NumPy arrays under bounds, race, initialisation and schedule checks."""
    requires("compiler")
    from culux.testing.cuda import check_kernel

    packed = [
        value if p.pointer or p.dtype is None else p.dtype.type(value)
        for p, value in zip(kernel.parameters, args, strict=True)
    ]
    report = check_kernel(
        kernel.program.text, packed, grid, block, name=kernel.name, shared=shared, reference=reference, **options
    )
    note(kernel.program.family, kernel.name, report)
    return report


def note(family, kernel, report):
    """Leave what was run for the table of `make kernels`."""
    folder = os.environ.get("CULUX_KERNEL_REPORT")
    if folder:
        runs = [{"mode": run.mode, "seconds": run.seconds} for run in report.runs]
        entry = {"family": family, "kernel": kernel, "runs": runs}
        with (Path(folder) / f"checks-{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")


def close(actual, expected, dtype, scale=1.0):
    """Assert that a result of this dtype equals a float64 formula within the dtype's rounding."""
    actual = actual.get() if hasattr(actual, "get") else actual
    assert actual.dtype == dtype_of(dtype)
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    tolerance = TOLERANCE[dtype] * scale
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=tolerance, atol=tolerance)


def work(cupy, f):
    """What ``f()`` makes the stand-in do: raw kernels launched, and operations of the array library."""
    launches, calls = cupy.machine.launches, cupy.machine.library_calls
    f()
    return cupy.machine.launches - launches, cupy.machine.library_calls - calls
