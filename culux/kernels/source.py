"""The text of a kernel program: types, activation and constants, then the shared header, then the family's source.

A program is one text without templates or options, so that CuPy, the compile gate and the emulator see the same.
``#line`` directives make every message name the file and line in which the code stands.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from culux.errors import KernelError

__all__ = ["IDENTITY", "ActivationCode", "Parameter", "Program", "program", "supports"]

_FOLDER = Path(__file__).parent
# Of a dtype: the type in memory, the type to compute in, the header that has it.
_TYPES = {
    "float32": ("float", "float", ""),
    "float64": ("double", "double", ""),
    "float16": ("__half", "float", "cuda_fp16.h"),
    "bfloat16": ("__nv_bfloat16", "float", "cuda_bf16.h"),
}
_SCALARS = {
    "int": "int32", "unsigned": "uint32", "Index": "int64", "long long": "int64", "unsigned long long": "uint64",
    "float": "float32", "double": "float64", "bool": "bool", "unsigned char": "uint8", "short": "int16",
}  # fmt: skip
_ENTRY = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(([^)]*)\)', re.DOTALL)
_PARAMETER = re.compile(r"(const )?([A-Za-z_ ]+?)\s*(\*?)\s*(?:__restrict__ )?(\w+)")


class ActivationCode(NamedTuple):
    """An activation in CUDA C++.

    Attributes:
        name: what messages and tables call it.
        forward: y as an expression of ``x``, of type ``T``.
        derivative: dy/dx as an expression of ``x`` or ``y``, the one in `saves`.
        saves: what the derivative reads: ``"x"``, ``"y"``, or None where it is 1 everywhere.
    """

    name: str
    forward: str
    derivative: str
    saves: Literal["x", "y"] | None


IDENTITY = ActivationCode("identity", "x", "T(1)", None)
"""``y = x``."""


class Parameter(NamedTuple):
    """One parameter of a kernel: its name, the C++ type as written, the dtype, and whether it is a pointer."""

    name: str
    type: str
    dtype: np.dtype[Any] | None  # None: a struct, or any dtype
    pointer: bool
    const: bool


@dataclass(frozen=True)
class Program:
    """A CUDA source that is complete, and its kernels.

    Attributes:
        family: the stem of the ``.cu`` file.
        label: the family, dtype, activation and constants, for tables.
        text: the source.
        kernels: by name, the parameters of each kernel.
    """

    family: str
    label: str
    text: str
    kernels: dict[str, tuple[Parameter, ...]]


@functools.cache  # a NumPy dtype makes its name anew each time it is asked
def supports(dtype: object) -> bool:
    """Whether kernels are made for arrays of this dtype: float32, float64, float16 or bfloat16."""
    return getattr(dtype, "name", "") in _TYPES


@functools.cache
def program(
    family: str,
    dtype: str,
    *,
    parameters: str = "",
    activation: ActivationCode = IDENTITY,
    constants: tuple[tuple[str, int], ...] = (),
) -> Program:
    """The program of a family for one dtype.

    Args:
        family: the stem of the ``.cu`` file.
        dtype: the dtype of the data: ``S``; computed in float32, of float64 in float64: ``T``.
        parameters: the dtype of the parameters: ``P``; by default that of the data.
        activation: what ``activation`` and ``derivative`` compute.
        constants: names and values of macros.

    Raises:
        KernelError: for a dtype that there are no kernels for.
    """
    for name in (dtype, parameters or dtype):
        if name not in _TYPES:
            raise KernelError(f"{family}: there are kernels for {', '.join(_TYPES)}, not for {name}")
    storage, compute, header = _TYPES[dtype]
    parameter, _, other_header = _TYPES[parameters or dtype]
    includes = [f"#include <{name}>\n" for name in sorted({header, other_header} - {""})]
    macros = [f"#define {name} {value}\n" for name, value in constants]
    saved = activation.saves or "x"
    prologue = (
        f"{''.join(includes)}{''.join(macros)}"
        f"typedef {storage} S;\ntypedef {parameter} P;\ntypedef {compute} T;\n"
        f"#define KEEPS_X {int(activation.saves == 'x')}\n#define KEEPS_Y {int(activation.saves == 'y')}\n"
        f"__device__ __forceinline__ T activation(T x) {{ return {activation.forward}; }}\n"
        f"__device__ __forceinline__ T derivative(T {saved}) {{ return {activation.derivative}; }}\n"
    )
    text = "".join(
        (
            f'#line 1 "culux/kernels/{family} prologue"\n{prologue}',
            f'#line 1 "culux/kernels/common.cuh"\n{_read("common.cuh")}',
            f'#line 1 "culux/kernels/{family}.cu"\n{_read(f"{family}.cu")}',
        )
    )
    types = {"S": dtype, "P": parameters or dtype, "T": "float64" if dtype == "float64" else "float32"}
    words = [family, dtype, *([f"P={parameters}"] if parameters not in ("", dtype) else [])]
    words += [activation.name] if activation != IDENTITY else []
    label = " ".join([*words, *(f"{name}={value}" for name, value in constants)])
    return Program(family, label, text, _kernels(_read(f"{family}.cu"), types))


@functools.cache
def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _kernels(text: str, types: dict[str, str]) -> dict[str, tuple[Parameter, ...]]:
    """The kernels of a source and what they declare."""
    return {
        name: tuple(_parameter(name, part.strip(), types) for part in declared.split(","))
        for name, declared in _ENTRY.findall(text)
    }


def _parameter(kernel: str, declared: str, types: dict[str, str]) -> Parameter:
    match = _PARAMETER.fullmatch(" ".join(declared.split()))
    if match is None:
        raise KernelError(f"kernel {kernel}: the parameter {declared!r} is of a form that the launcher does not know")
    const, kind, star, name = match.groups()
    dtype = types.get(kind, _SCALARS.get(kind))
    return Parameter(name, kind, None if dtype is None else _dtype(dtype), bool(star), bool(const))


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)
