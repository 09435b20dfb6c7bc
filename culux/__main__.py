"""``python -m culux``: what is there and what is missing; ``python -m culux tune``: what the autotuner picked."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import culux
from culux.backends import Backend, get_backend, installed
from culux.errors import KernelError
from culux.kernels import records
from culux.kernels.cublaslt import cublaslt_for
from culux.kernels.cudnn import cudnn_for

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

TUNED = ("operation", "key", "device", "winner", "us", "default", "us", "gain", "over next", "when", "versions")


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
        if name == "cupy":
            write(f"    matrix products: {_products(backend)}")
            write(f"    convolutions: {_convolutions(backend)}")
    write("\noptional parts")
    for part, (module, distribution, install) in PARTS.items():
        if importlib.util.find_spec(module) is None:
            write(f"  {part}: missing, pip install {install}")
        else:
            write(f"  {part}: {distribution} {_version(distribution)}")


def _products(backend: Backend) -> str:
    """What computes the products of CuPy's arrays."""
    try:
        found = cublaslt_for(backend)
    except KernelError as error:
        return f"CULUX_CUBLASLT is wrong: {error}"
    return "CuPy's own; no cuBLASLt was found" if found is None else f"cuBLASLt {found.library.version}"


def _convolutions(backend: Backend) -> str:
    """What computes the convolutions of CuPy's arrays."""
    try:
        found = cudnn_for(backend)
    except KernelError as error:
        return f"CULUX_CUDNN is wrong: {error}"
    return f"culux's own; {found.reason}" if found.layer is None else f"cuDNN {found.layer.version}"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(version unknown)"


def show_tuned() -> None:
    """Print a table of what the autotuner picked, on every device and under all versions, and by how much."""
    found = records.load_all()
    if not found:
        print(
            f"Nothing was tuned yet: there is no file in {records.folder()}.\n"
            "Run a model on a GPU, without CULUX_AUTOTUNE=0: the first call of an operation with new shapes times "
            "its candidates."
        )
        return
    cells = [TUNED, *map(_tuned, found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    for record in found:
        for name, reason in record.failed.items():
            print(f"{record.operation} ({_key(record)}): {name} could not be run: {reason}")


def clear_tuned() -> None:
    """Delete what the autotuner keeps on disk, and print what was deleted."""
    deleted = records.clear()
    for path in deleted:
        print(f"deleted {path}")
    if not deleted:
        print(f"Nothing to delete in {records.folder()}.")


def _tuned(record: records.Record) -> tuple[str, ...]:
    default = f"{record.times[record.default]:.1f}" if record.default in record.times else "failed"
    return (
        record.operation,
        _key(record),
        record.device,
        record.winner,
        f"{record.times[record.winner]:.1f}",
        record.default,
        default,
        _percent(record.gain),
        _percent(record.margin),
        record.when,
        ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    )


def _key(record: records.Record) -> str:
    return " ".join(map(str, record.key))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{round(100 * share)} %"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status.

    Args:
        arguments: those after ``python -m culux``; by default the process's own.
    """
    asked = _parser().parse_args(arguments)
    if asked.command is None:
        report()
        return 0
    try:
        (show_tuned if asked.show else clear_tuned)()
    except OSError as error:
        print(f"python -m culux: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m culux",
        usage="%(prog)s [-h] [tune {--show,--clear}]",
        description="Without a command: the versions, backends and devices that are there, and what is missing with "
        "the command that installs it.",
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND", prog=parser.prog)
    tune = commands.add_parser(
        "tune",
        help="what the autotuner picked: --show lists it, --clear deletes it",
        description="The first time that an operation meets new shapes on a GPU, culux times the ways to compute it "
        "and keeps the fastest, for the process and in files for the processes to come.",
        epilog="CULUX_AUTOTUNE=0 times nothing and takes the built-in heuristics; CULUX_CACHE_DIR says where the "
        "files are (by default ~/.cache/culux).",
    )
    what = tune.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--show",
        action="store_true",
        help="a table of what was picked: the times in microseconds of the winner and of the default that the "
        "heuristics would take, the share of the default's time that is gained, the share of the next best "
        "candidate's, when, and under which versions",
    )
    what.add_argument("--clear", action="store_true", help="delete the files; a running process keeps its picks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
