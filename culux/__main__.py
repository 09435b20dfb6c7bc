"""``python -m culux``: versions, backends and devices, and what is missing with the command that installs it."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

import culux
from culux.backends import get_backend, installed

# What each part needs: the module that must be importable, its distribution, and what to install.
PARTS: Mapping[str, tuple[str, str, str]] = {
    "checkpoints": ("safetensors", "safetensors", "safetensors"),
    "gelu_erf": ("scipy", "scipy", "scipy"),
    "progress bars": ("tqdm", "tqdm", "tqdm"),
    "culux.transform of torch modules": ("torch", "torch", '"culux[torch]"'),
    "bfloat16": ("ml_dtypes", "ml_dtypes", "ml_dtypes"),
    "the examples": ("sklearn", "scikit-learn", '"culux[examples]"'),
}

GPU_HINT = 'for an NVIDIA GPU: pip install "culux[cuda12]" or "culux[cuda13]", as the driver\'s CUDA version is'


def report(write: Callable[[str], object] = print) -> None:
    """Write what is installed, which devices can be used, and what is missing."""
    write(f"culux {culux.__version__}, Python {platform.python_version()}, {platform.platform()}")
    write(f"numpy {version('numpy')}")
    write("\nbackends and devices")
    for name, problem in installed().items():
        if problem:
            write(f"  {name}: not usable ({problem.splitlines()[0]})")
            if name == "cupy":
                write(f"    {GPU_HINT}")
            continue
        backend = get_backend(name)
        for index in range(backend.device_count()):
            memory = backend.memory(index)
            total = f", {memory.total / 2**30:.1f} GiB" if memory.total else ""
            label = backend.kind if backend.kind == "cpu" else f"{backend.kind}:{index}"
            write(f"  {name}: {label}{total}")
    write("\noptional parts")
    for part, (module, distribution, install) in PARTS.items():
        if importlib.util.find_spec(module) is None:
            write(f"  {part}: missing, pip install {install}")
        else:
            write(f"  {part}: {distribution} {_version(distribution)}")


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(version unknown)"


if __name__ == "__main__":
    report(lambda text: sys.stdout.write(text + "\n"))
