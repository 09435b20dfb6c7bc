"""The kernel programs of culux itself, for the compile gate."""

from __future__ import annotations

import importlib
from pathlib import Path

from culux import kernels, nn
from culux.kernels.source import ActivationCode, Program

__all__ = ["activation_codes", "families", "programs"]


def families() -> tuple[str, ...]:
    """The families of kernels: the stems of the ``.cu`` files."""
    return tuple(sorted(path.stem for path in Path(kernels.__file__).parent.glob("*.cu")))


def activation_codes() -> dict[str, ActivationCode]:
    """The CUDA expressions of every activation of `culux.nn`, by its name."""
    records = {name: value for name, value in vars(nn).items() if isinstance(value, nn.Activation)}
    return {name: code for name, record in records.items() if (code := record.cuda()) is not None}


def programs(family: str) -> dict[str, Program]:
    """The programs of a family that the library can ask for, by their labels."""
    module = importlib.import_module(f"culux.kernels.{family}")
    return {program.label: program for program in module.programs(activation_codes())}
