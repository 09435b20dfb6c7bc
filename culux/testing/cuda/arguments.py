"""The arguments of a launch against the kernel's parameters, which the compiled kernel itself describes.

A GPU is told nothing but addresses and bytes: it misreads a float64 where a float32 is declared, ignores strides, and
reads past the arguments where there are too few. Here each of these is an error before the launch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from culux.errors import KernelError, describe

__all__ = ["Parameter", "check_arguments", "parse_parameters"]

_WORDS = {
    "f4": "float", "f8": "double", "i1": "signed char", "i2": "short", "i4": "int", "i8": "long long",
    "u1": "unsigned char", "u2": "unsigned short", "u4": "unsigned int", "u8": "unsigned long long",
    "b1": "bool", "h2": "__half", "g2": "__nv_bfloat16", "v1": "void",
}  # fmt: skip
_DTYPES = {"h": "float16", "g": "bfloat16", "b": "bool"}
# The bare Python numbers that CuPy passes as what these parameters are.
_PYTHON = {"i8": int, "f8": float, "b1": bool}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Args:
        pointer: whether it is a pointer.
        const: whether it is a pointer to const.
        kind: the type or what is pointed to: f, i, u, b, h (half), g (bfloat16), v (void), s (a struct).
        size: its bytes.
    """

    pointer: bool
    const: bool
    kind: str
    size: int

    def __str__(self) -> str:
        word = _WORDS.get(f"{self.kind}{self.size}", f"a struct of {self.size} bytes")
        return f"{'const ' if self.const else ''}{word}{'*' if self.pointer else ''}"

    @property
    def dtype(self) -> str:
        """The NumPy dtype that fits, or a description of it."""
        if self.kind in _DTYPES:
            return _DTYPES[self.kind]
        if self.kind in "fiu":
            return np.dtype(f"{self.kind}{self.size}").name
        return "any dtype" if self.kind == "v" else f"a dtype that divides {self.size} bytes"

    def fits(self, dtype: np.dtype[Any]) -> bool:
        """Whether values of `dtype` are what this type reads."""
        if self.kind == "v":
            return True
        if self.kind == "s":
            return self.size % dtype.itemsize == 0 if self.pointer else self.size == dtype.itemsize
        if self.kind == "g":
            return dtype.name in ("bfloat16", "uint16")
        if self.kind == "u" and self.size == 1:
            return dtype.kind in "ub" and dtype.itemsize == 1
        return dtype.isnative and dtype.name == self.dtype


def parse_parameters(text: str) -> tuple[Parameter, ...]:
    """The parameters that a compiled kernel describes as ``cf4;pf4;i4;``."""
    found = []
    for part in filter(None, text.split(";")):
        match = re.fullmatch(r"([cp]*)([a-z])(\d+)", part)
        if match is None:
            raise KernelError(f"the compiled kernel describes a parameter as {part!r}, which is not understood")
        marks = match[1]
        found.append(Parameter(bool(marks), marks == "c", "v" if len(marks) > 1 else match[2], int(match[3])))
    return tuple(found)


def check_arguments(name: str, parameters: Sequence[Parameter], args: Sequence[Any]) -> None:
    """Raise a `KernelError` unless `args` is what the kernel declares.

    Args:
        name: the kernel.
        parameters: what it declares.
        args: NumPy arrays or None for pointers, NumPy scalars for values.
    """
    if len(args) != len(parameters):
        declared = ", ".join(map(str, parameters))
        raise KernelError(f"kernel {name} takes {len(parameters)} arguments ({declared}), got {len(args)}")
    for position, (parameter, value) in enumerate(zip(parameters, args, strict=True)):
        problem = _array_problem(parameter, value) if parameter.pointer else _scalar_problem(parameter, value)
        if problem:
            raise KernelError(f"argument {position} of kernel {name} ({parameter}): {problem}")


def _array_problem(parameter: Parameter, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, np.ndarray):
        return f"expected a NumPy array of {parameter.dtype} or None, got {describe(value)}"
    if not parameter.fits(value.dtype):
        return f"expected an array of {parameter.dtype}, got {describe(value)}; convert it with .astype"
    if not value.flags.c_contiguous:
        return (
            f"expected a C-contiguous array, got {describe(value)} with strides {value.strides}, which a kernel does "
            "not see; copy it with np.ascontiguousarray"
        )
    if not parameter.const and not value.flags.writeable:
        return f"expected an array that can be written, got a read-only {describe(value)}"
    return None


def _scalar_problem(parameter: Parameter, value: Any) -> str | None:
    if type(value) is _PYTHON.get(f"{parameter.kind}{parameter.size}"):
        return None
    if type(value) in (bool, int, float, complex):
        passed = {bool: "bool", int: "int64", float: "float64", complex: "complex128"}[type(value)]
        return f"got the Python number {value!r}, which CuPy passes as {passed}; pass np.{parameter.dtype}({value!r})"
    if not isinstance(value, np.generic):
        return f"expected a NumPy scalar of {parameter.dtype}, got {describe(value)}"
    if not parameter.fits(value.dtype):
        return f"expected a scalar of {parameter.dtype}, got {value.dtype.name} {value!s}; pass np.{parameter.dtype}"
    return None
