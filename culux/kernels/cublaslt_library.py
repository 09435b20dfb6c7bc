"""cuBLASLt's shared library: where it is, and typed calls of it through ctypes.

Functions, enumerations and the sizes of attributes are those of NVIDIA's ``cublasLt.h`` of CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from typing import Any

from culux.errors import KernelError

__all__ = ["HeuristicResult", "Library", "load"]

INVALID_VALUE, NOT_SUPPORTED = 7, 15  # CUBLAS_STATUS_INVALID_VALUE, CUBLAS_STATUS_NOT_SUPPORTED


class HeuristicResult(ctypes.Structure):
    """``cublasLtMatmulHeuristicResult_t``: an algorithm and what it needs."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


_ATTRIBUTE = [c_void_p, c_int, c_void_p, c_size_t]
_SIGNATURES: dict[str, list[Any]] = {
    "Create": [POINTER(c_void_p)],
    "MatmulDescCreate": [POINTER(c_void_p), c_int, c_int],
    "MatmulDescDestroy": [c_void_p],
    "MatmulDescSetAttribute": _ATTRIBUTE,
    "MatrixLayoutCreate": [POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64],
    "MatrixLayoutDestroy": [c_void_p],
    "MatmulPreferenceCreate": [POINTER(c_void_p)],
    "MatmulPreferenceDestroy": [c_void_p],
    "MatmulPreferenceSetAttribute": _ATTRIBUTE,
    "MatmulAlgoGetHeuristic": [*[c_void_p] * 7, c_int, POINTER(HeuristicResult), POINTER(c_int)],
    "Matmul": [*[c_void_p] * 14, c_size_t, c_void_p],
}


class Library:
    """A loaded libcublasLt.

    Args:
        path: the file, or a name for the system's loader.

    Attributes:
        version: ``major * 10000 + minor * 100 + patch``.
        functions: the entry points by name without ``cublasLt``; each returns a status.

    Raises:
        OSError: where it does not load.
        KernelError: where it lacks a function.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        try:
            self.functions = {name: getattr(library, f"cublasLt{name}") for name in _SIGNATURES}
            self._status_name, version = library.cublasLtGetStatusName, library.cublasLtGetVersion
        except AttributeError as error:
            raise KernelError(
                f"expected cuBLASLt of CUDA 12 or 13, got {path}, which lacks a function: {error}"
            ) from error
        for name, types in _SIGNATURES.items():
            self.functions[name].argtypes, self.functions[name].restype = types, c_int
        self._status_name.argtypes, self._status_name.restype = [c_int], c_char_p
        version.argtypes, version.restype = [], c_size_t
        self.version = int(version())

    def call(self, function: str, *args: object, problem: object) -> None:
        """Call an entry point.

        Raises:
            KernelError: for a status that is not success; it names the function, the status and the problem.
        """
        status = self.functions[function](*args)
        if status:
            raise self.error(function, status, problem)

    def error(self, function: str, status: int, problem: object) -> KernelError:
        """The error for a status: what was called, what it answered, and for which problem."""
        name = self._status_name(status).decode()
        return KernelError(f"cublasLt{function} answered {name} ({status}) for {problem} (cuBLASLt {self.version})")


def load(cuda: int) -> Library | None:
    """The library for a major version of CUDA; None where there is none.

    The environment variable CULUX_CUBLASLT names the file to load; with ``0`` there is no library.

    Args:
        cuda: 12 or 13, the version that the array library uses.

    Raises:
        KernelError: where CULUX_CUBLASLT names a file that does not load.
    """
    wanted = os.environ.get("CULUX_CUBLASLT", "")
    if wanted == "0":
        return None
    if wanted:
        try:
            return Library(wanted)
        except OSError as error:
            raise KernelError(
                f"CULUX_CUBLASLT={wanted} cannot be loaded: {error}; "
                "name libcublasLt.so of CUDA 12 or 13, or leave the variable out"
            ) from error
    for path in _places(cuda):
        try:
            return Library(path)
        except OSError:
            continue
    return None


def _places(cuda: int) -> Iterator[str]:
    """Where the library may be: what CuPy's wheels bring is found by cuda-pathfinder, the rest by the loader."""
    name = f"libcublasLt.so.{cuda}"
    try:
        path = importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cublasLt").abs_path
        if path is not None and os.path.basename(path).startswith(name):
            yield path
    except (ImportError, RuntimeError):  # what pathfinder raises for a library that is not there
        pass
    yield name
