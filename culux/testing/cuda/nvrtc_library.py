"""NVRTC, NVIDIA's runtime compiler: where it is, and calls of it through ctypes."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from culux.errors import KernelError

__all__ = ["INSTALL", "NVRTC", "load"]

INSTALL = "pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12"
"""The command that installs NVRTC and CUDA's headers."""


class NVRTC:
    """A loaded NVRTC and the folders of CUDA's headers that belong to it."""

    def __init__(self, library: ctypes.CDLL, includes: Sequence[Path]) -> None:
        self.nvrtc = library
        self.includes = [path for path in includes if path.is_dir()]
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        numbers = ctypes.c_int(), ctypes.c_int()
        self._call("Version", *map(ctypes.byref, numbers))
        self.version = f"{numbers[0].value}.{numbers[1].value}"
        count = ctypes.c_int()
        self._call("GetNumSupportedArchs", ctypes.byref(count))
        architectures = (ctypes.c_int * count.value)()
        self._call("GetSupportedArchs", architectures)
        self.architectures = list(architectures)

    def refuses(self, architecture: str) -> str:
        """Why this version does not compile for an architecture; "" if it does."""
        form = re.fullmatch(r"(\d+)[af]?", architecture)
        if not form:
            raise KernelError(f"expected an architecture such as '75' or '90a', got {architecture!r}")
        if int(form[1]) in self.architectures:
            return ""
        known = ", ".join(map(str, self.architectures))
        return f"NVRTC {self.version} does not know sm_{architecture}, only {known}: install another version of it"

    def hint(self, log: str) -> str:
        """What to do about CUDA's headers where they are missed and missing."""
        if "open source file" not in log or any((path / "cuda_fp16.h").is_file() for path in self.includes):
            return ""
        return f"error: CUDA's headers are not installed beside NVRTC: {INSTALL}"

    def compile(
        self, source: str, name: str, options: Sequence[str], name_expressions: Sequence[str]
    ) -> tuple[bytes | None, str, dict[str, str]]:
        """The cubin (None if there were errors), the log, and the symbols of the name expressions."""
        program = ctypes.c_void_p()
        self._call("CreateProgram", ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
        try:
            for expression in name_expressions:
                self._call("AddNameExpression", program, expression.encode())
            encoded = [option.encode() for option in options]
            status = self.nvrtc.nvrtcCompileProgram(program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
            # A zero byte stands within the log too, before what the assembler says after its list of resources.
            log = self._bytes("ProgramLog", program).replace(b"\0", b"").decode(errors="replace")
            if status:
                return None, log or self._error(status), {}
            symbols = {expression: self._symbol(program, expression) for expression in name_expressions}
            return self._bytes("CUBIN", program), log, symbols
        finally:
            self.nvrtc.nvrtcDestroyProgram(ctypes.byref(program))

    def _symbol(self, program: ctypes.c_void_p, expression: str) -> str:
        symbol = ctypes.c_char_p()
        self._call("GetLoweredName", program, expression.encode(), ctypes.byref(symbol))
        return (symbol.value or b"").decode()

    def _bytes(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, buffer)
        return buffer.raw

    def _call(self, function: str, *args: object) -> None:
        status = getattr(self.nvrtc, f"nvrtc{function}")(*args)
        if status:
            raise KernelError(f"nvrtc{function} failed: {self._error(status)}")

    def _error(self, status: int) -> str:
        text: bytes = self.nvrtc.nvrtcGetErrorString(status)
        return f"nvrtc: error: {text.decode()}"


@functools.cache
def load() -> NVRTC:
    """The first NVRTC that loads: of NVIDIA's wheels, of a CUDA toolkit, of the loader's path."""
    refused: list[str] = []
    for library, includes in _places():
        try:
            return NVRTC(ctypes.CDLL(library), includes)
        except OSError as error:
            refused.append(str(error))
    raise KernelError(f"NVRTC, NVIDIA's runtime compiler, cannot be loaded: {INSTALL} (tried: {'; '.join(refused)})")


def _places() -> Iterator[tuple[str, list[Path]]]:
    """Where NVRTC may be, each with the folders of its headers."""
    wheels = importlib.util.find_spec("nvidia")
    for folder in map(Path, (wheels and wheels.submodule_search_locations) or ()):
        for library in sorted(folder.glob("*/lib/libnvrtc.so.*")):
            # One folder holds all of CUDA 13; CUDA 12 has one a wheel.
            root = library.parents[1]
            parts = (folder / "cuda_runtime", folder / "cuda_cccl") if root.name == "cuda_nvrtc" else (root,)
            yield str(library), [part / "include" for part in parts]
    toolkits = [Path(root) for root in (os.environ.get("CUDA_PATH"), "/usr/local/cuda") if root]
    for root in toolkits:
        for library in sorted(root.glob("lib*/libnvrtc.so.*")):
            yield str(library), [root / "include"]
    for name in ("libnvrtc.so.13", "libnvrtc.so.12"):
        yield name, [root / "include" for root in toolkits]
