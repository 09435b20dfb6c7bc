"""The launcher: the one way to a kernel, which checks what the GPU would silently misread.

A launch on the GPU is told addresses and bytes only: it ignores strides, dtypes and the types of scalars. The
checks come from the kernel's own declaration in its ``.cu`` file.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from culux.backends import Array, backend_of
from culux.backends.registry import describe_place
from culux.errors import KernelError
from culux.kernels.source import IDENTITY, ActivationCode, Parameter, Program, program

__all__ = ["MOST_BLOCKS", "MULTIPROCESSORS", "Kernel", "compute_dtype", "contiguous", "empty", "get_kernel"]

MULTIPROCESSORS = 132
"""Multiprocessors of the largest chip, for the number of blocks."""
MOST_BLOCKS = MULTIPROCESSORS * 8
"""Eight blocks for each multiprocessor, where threads loop over the rest."""


class Kernel:
    """A kernel of a program, called as ``kernel(grid, block, *args, shared=0)``; compiled at its first launch.

    Args:
        source: the program.
        name: the kernel's name in it.
    """

    def __init__(self, source: Program, name: str) -> None:
        self.program = source
        self.name = name
        self.parameters = source.kernels[name]
        self._pointers = [(i, p.dtype) for i, p in enumerate(self.parameters) if p.pointer]
        self._scalars = [
            (i, p.dtype.type) for i, p in enumerate(self.parameters) if not p.pointer and p.dtype is not None
        ]
        self._compiled: dict[str, Any] = {}

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], *args: Any, shared: int = 0) -> None:
        """Launch on the current stream of the arrays' device; an empty grid launches nothing.

        Args:
            grid: the number of blocks, one to three integers.
            block: the number of threads of a block, one to three integers.
            args: C-contiguous arrays or None for pointers; numbers for scalars, structured
                arrays of one element for structs.
            shared: bytes of dynamic shared memory.

        Raises:
            KernelError: for arguments that are not what the kernel declares, or a source that does not compile.
            DeviceError: for arrays on different devices.
        """
        if len(args) != len(self.parameters):
            raise KernelError(f"{self}: expected {len(self.parameters)} arguments, got {len(args)}")
        arrays = []
        for i, dtype in self._pointers:
            value = args[i]
            if value is None:
                continue
            try:
                fits = (value.dtype is dtype or dtype is None or value.dtype == dtype) and value.flags.c_contiguous
            except AttributeError:
                fits = False
            if not fits:
                self._refuse(i, value)
            arrays.append(value)
        packed = list(args)
        for i, kind in self._scalars:
            packed[i] = self._scalar(kind, args[i], i)
        backend = backend_of(*arrays)
        compiled = self._compiled.get(backend.name)
        if compiled is None:
            compiled = self._compiled[backend.name] = backend.compile(self.program.text, self.name)
        backend.launch(compiled, grid, block, packed, shared)

    def _scalar(self, kind: Any, value: Any, position: int) -> Any:
        """A number as the NumPy scalar that the kernel declares; one that does not fit is refused."""
        if type(value) is kind:
            return value
        try:
            if kind in (np.float32, np.float64) or type(value) is not float:
                return kind(value)
        except (OverflowError, TypeError, ValueError):
            pass
        self._refuse(position, value)

    def _refuse(self, position: int, value: Any) -> NoReturn:
        parameter: Parameter = self.parameters[position]
        kind = parameter.type if parameter.dtype is None else parameter.dtype.name
        expected = f"a C-contiguous array of {kind} or None" if parameter.pointer else f"a number that fits {kind}"
        got = describe_place(value) if hasattr(value, "shape") else repr(value)
        strides = getattr(value, "strides", None)
        if parameter.pointer and strides and not value.flags.c_contiguous:
            got += f" with strides {strides}"
        raise KernelError(f"{self}, argument {parameter.name}: expected {expected}, got {got}")

    def __str__(self) -> str:
        return f"kernel {self.name} (culux/kernels/{self.program.family}.cu)"


@functools.cache
def get_kernel(
    family: str,
    name: str,
    dtype: Any,
    *,
    parameters: Any = None,
    activation: ActivationCode = IDENTITY,
    constants: tuple[tuple[str, int], ...] = (),
) -> Kernel:
    """The kernel `name` of ``culux/kernels/<family>.cu``; the same object for the same arguments.

    Args:
        family: the stem of the source file.
        name: the kernel.
        dtype: the NumPy dtype of the data, ``S`` in the source.
        parameters: the NumPy dtype of the parameters, ``P`` in the source; by default that of the data.
        activation: what ``activation`` and ``derivative`` compute there.
        constants: macros: pairs of a name and an integer.

    Raises:
        KernelError: for a dtype that there are no kernels for.
    """
    second = "" if parameters is None else parameters.name
    source = program(family, dtype.name, parameters=second, activation=activation, constants=constants)
    return Kernel(source, name)


def empty(like: Array, shape: Sequence[int] | None = None, dtype: Any = None) -> Array:
    """A new array of any content on the device of `like`, by default of its shape and dtype."""
    return backend_of(like).empty(
        like, like.shape if shape is None else tuple(shape), like.dtype if dtype is None else dtype
    )


def contiguous(array: Array) -> Array:
    """`array` in row-major order without gaps, as kernels read it: itself where it is so, else a copy."""
    return array if array.flags.c_contiguous else backend_of(array).contiguous(array)


def compute_dtype(x: Array) -> np.dtype[np.floating]:
    """The dtype that kernels compute in, ``T`` in their sources: float64 for float64, else float32."""
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
