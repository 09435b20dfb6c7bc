"""CUDA C++ kernels run on NumPy arrays: the very same source, compiled for the CPU, one fiber per CUDA thread."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from culux.errors import KernelError, nearest
from culux.testing.cuda.arguments import Parameter, check_arguments, parse_parameters
from culux.testing.cuda.build import build
from culux.testing.cuda.source import translate

__all__ = ["EmulatedKernel", "EmulatedModule"]

Schedule = Literal["in order", "reversed", "random", "unfair"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

# The emulator has one set of threads and static shared memory, as one GPU has.
_launching = threading.Lock()
_stacks = ctypes.c_void_p()  # of the threads, for all kernels; made by the first launch


class EmulatedModule:
    """The kernels of a CUDA source, compiled for the CPU; the counterpart of `cupy.RawModule`.

    Args:
        source: CUDA C++, or the path of a ``.cu`` file.
        names: instances of templates, as in `name_expressions`: ``("axpy<float>",)``.
        options: compiler options; ``-D``, ``-U`` and ``-I`` count, the others are NVRTC's.

    Raises:
        KernelError: there is no C++ compiler, or the source does not compile.
    """

    def __init__(self, source: str | Path, *, names: Sequence[str] = (), options: Sequence[str] = ()) -> None:
        self.source, label = read_source(source)
        self.options = tuple(options)
        self.translation = translate(self.source, label, names)
        library = ctypes.CDLL(str(build("plain", self.translation, self.options)))
        library.culux_emu_parameters.restype = ctypes.c_char_p
        library.culux_emu_launch.restype = ctypes.c_char_p
        pointer = ctypes.c_void_p
        library.culux_emu_launch.argtypes = [ctypes.c_int, pointer, pointer, ctypes.c_uint64, pointer]
        self._library = library

    def kernel(self, name: str | None = None) -> EmulatedKernel:
        """The kernel called `name`; without one, the only kernel of the source.

        Raises:
            KernelError: there is no such kernel, or there are several and no name.
        """
        kernels = self.translation.kernels
        label = self.translation.label
        if name is None:
            if len(kernels) != 1:
                raise KernelError(f"{label} has {len(kernels)} kernels ({', '.join(kernels)}): say which, with name=")
            name = kernels[0]
        if name not in kernels:
            raise KernelError(f"{label} has no kernel {name!r}{nearest(name, kernels)}; it has: {', '.join(kernels)}")
        return EmulatedKernel(self, name, kernels.index(name))


class EmulatedKernel:
    """One kernel, called as a `cupy.RawKernel` is: ``kernel(grid, block, args, shared_mem=0)``.

    Args:
        module: the source it is from.
        name: its name.
        number: its place in the module.
    """

    def __init__(self, module: EmulatedModule, name: str, number: int) -> None:
        self.module = module
        self.name = name
        self.number = number
        described: bytes = module._library.culux_emu_parameters(number)
        self.parameters: tuple[Parameter, ...] = parse_parameters(described.decode())

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        schedule: Schedule = "in order",
        seed: int = 0,
        poison: int = 0xFF,
    ) -> None:
        """Run the kernel, which writes into the arrays of `args`.

        Args:
            grid: the number of blocks, one to three integers.
            block: the number of threads of a block, one to three integers.
            args: NumPy arrays (C-contiguous) or None for pointers, NumPy scalars for values.
            shared_mem: bytes of dynamic shared memory.
            schedule: who runs when a thread waits: the next one in order or in reversed order, one at random, or,
                unfair, a random warp as far as it can. Blocks come in the same order, or shuffled.
            seed: of the random schedules.
            poison: the byte that shared memory is full of before a block begins; 0xFF is NaN.

        Raises:
            KernelError: the arguments do not fit, or threads wait for others that never come. An access out of
                bounds is not seen here, and may end the process: `check_kernel` runs it apart.
        """
        check_arguments(self.name, self.parameters, args)
        config = (ctypes.c_int * 9)(*launch_config(self.name, grid, block, shared_mem, schedule, poison))
        values = [_as_value(parameter, value) for parameter, value in zip(self.parameters, args, strict=True)]
        pointers = (ctypes.c_void_p * max(len(values), 1))(*(value.ctypes.data for value in values))
        with _launching:
            failure = self.module._library.culux_emu_launch(self.number, pointers, config, seed, ctypes.byref(_stacks))
        if failure is not None:
            raise KernelError(f"kernel {self.name}: {failure.decode()} [schedule {schedule}, seed {seed}]")


def _as_value(parameter: Parameter, value: Any) -> np.ndarray:
    """What a launch takes the address of: the scalar, or the address of the array."""
    if parameter.pointer:
        return np.array(0 if value is None else value.ctypes.data, np.uint64)
    if isinstance(value, np.generic):
        return np.asarray(value)
    return np.array(value, parameter.dtype)  # a Python number that CuPy passes right


def launch_config(
    name: str, grid: Sequence[int], block: Sequence[int], shared: int, schedule: str, poison: int
) -> tuple[int, ...]:
    """The nine integers of a launch, for the runtime.

    Raises:
        KernelError: the grid or the block is none that a GPU takes, or there is no such schedule.
    """
    for what, sizes, limits in (("grid", grid, (2**31 - 1, 65535, 65535)), ("block", block, (1024, 1024, 64))):
        fits = 1 <= len(sizes) <= 3 and all(1 <= size <= most for size, most in zip(sizes, limits, strict=False))
        if not fits or (what == "block" and np.prod(sizes) > 1024):
            raise KernelError(
                f"kernel {name}: expected {what} to be 1 to 3 integers from 1 to {limits}"
                f"{' and 1024 threads at most' if what == 'block' else ''}, got {tuple(sizes)}"
            )
    if schedule not in SCHEDULES:
        raise KernelError(f"no schedule {schedule!r}{nearest(schedule, SCHEDULES)}; there are: {', '.join(SCHEDULES)}")
    if not 0 <= shared <= 227 * 1024:
        raise KernelError(f"kernel {name}: expected 0 to {227 * 1024} bytes of shared memory, got {shared}")
    full = [*(int(size) for size in (*grid, 1, 1)[:3]), *(int(size) for size in (*block, 1, 1)[:3])]
    return (*full, int(shared), SCHEDULES.index(schedule), poison)


def read_source(source: str | Path) -> tuple[str, str]:
    """The text of a CUDA source and what messages call it; a string without a line end that ends in .cu is a path."""
    if isinstance(source, Path) or re.fullmatch(r"[^\n{}]*\.cuh?", source):
        path = Path(source)
        try:
            return path.read_text(), path.name
        except OSError as error:
            raise KernelError(f"cannot read the kernel source {path}: {error.strerror}") from error
    return source, "kernel.cu"
