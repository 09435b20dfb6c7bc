"""The device under test, and its ceilings: how fast it copies and multiplies, measured first."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import platform
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import machine
from bench.gpu.timing import by_events

COPY_BYTES = 2**30  # far beyond the L2 cache
PRODUCT = 8192


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches with nothing but copies and large products.

    Attributes:
        copy: bytes per second of a device-to-device copy, read and written bytes counted.
        products: floating-point operations per second of a large square product, by precision.
    """

    copy: float
    products: dict[str, float]


def unusable() -> str:
    """Why there is nothing to measure here, or ``""``."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed: pip install cupy-cuda12x or cupy-cuda13x, as the driver asks"
    import cupy

    try:
        return "" if cupy.cuda.runtime.getDeviceCount() else "there is no CUDA device"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no CUDA device: {error}"


def facts() -> dict[str, Any]:
    """The device, driver, versions and commit."""
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    return {
        "device": properties["name"].decode(),
        "multiprocessors": properties["multiProcessorCount"],
        "l2_bytes": properties["l2CacheSize"],
        "compute_capability": cupy.cuda.Device(0).compute_capability,
        "driver": runtime.driverGetVersion(),
        "cuda": runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        "numpy": np.__version__,
        "torch": _version("torch"),
        "jax": _version("jax"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": machine.cpu_model(),
        "commit": machine.commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def measure_ceilings(*, copy_bytes: int = COPY_BYTES, product: int = PRODUCT, seconds: float = 0.1) -> Ceilings:
    """Copy bandwidth, and the rates of products in float32, TF32, float16 and bfloat16."""
    import cupy

    import culux
    from culux.kernels.gemm import gemm

    source = cupy.asarray(np.random.default_rng(0).random(copy_bytes // 4, dtype=np.float32))
    target = cupy.empty_like(source)
    copy = by_events(functools.partial(cupy.copyto, target, source), seconds, 5)
    del source, target
    rates: dict[str, float] = {}
    rng = np.random.default_rng(0)
    block = rng.standard_normal((product, product), dtype=np.float32)
    for name in ("float32", "tf32", "float16", "bfloat16"):
        a = cupy.asarray(block)
        if name == "float16":
            a = a.astype(np.float16)
        elif name == "bfloat16":
            if importlib.util.find_spec("ml_dtypes") is None:
                continue
            import ml_dtypes

            a = a.astype(ml_dtypes.bfloat16)
        with culux.matmul_precision("tf32" if name == "tf32" else "float32"):
            rates[name] = 2 * product**3 / (1e-6 * by_events(functools.partial(gemm, a, a), seconds, 5))
    return Ceilings(2 * copy_bytes / (1e-6 * copy), rates)
