"""`check_kernel`: one CUDA kernel through every check that needs no GPU.

The kernel's own source is compiled for the CPU. It runs under address and alignment checks (`bounds`), under a race
check (`races`), with different garbage in shared memory and outputs (`uninitialised`) and in different orders of its
threads (`schedules`). Outputs are the arrays passed to pointers to non-const, unless they are named in `inout`: every
element of them must be written, whatever they held before.

Choose small arrays: a launch costs about 50 ns a thread and barrier, and many times that when checked. Not seen are
races between blocks (blocks run one after another), weak memory ordering, inline PTX, denormals that the GPU flushes
to zero, the GPU's own roundings of fast mathematics, and everything about speed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from culux.errors import KernelError, describe
from culux.testing.cuda import nvrtc
from culux.testing.cuda.arguments import check_arguments
from culux.testing.cuda.build import Build
from culux.testing.cuda.checked import run_checked
from culux.testing.cuda.emulator import SCHEDULES, EmulatedKernel, EmulatedModule, Schedule, launch_config

__all__ = ["Report", "Run", "check_kernel"]

# Bytes of poison: NaN; large numbers, which max(x, y) does not hide as it hides NaN; and numbers that y += x changes.
_NAN, _LARGE, _SMALL = 0xFF, 0x7B, 0x3C
_TOLERANCES = {"float16": 1e-2, "bfloat16": 4e-2, "float32": 1e-4, "float64": 1e-10, "complex64": 1e-4}
_SEEDS = {"random": range(2), "unfair": range(4)}


@dataclasses.dataclass(frozen=True)
class Run:
    """One check that passed: its mode, what it ran with, its seconds, and what it found."""

    mode: str
    detail: str
    seconds: float
    result: str


@dataclasses.dataclass
class Report:
    """What `check_kernel` ran, all of it passed; printed, a table.

    Attributes:
        kernel: the kernel's name.
        runs: the checks in the order they ran.
        outputs: by argument, the arrays that the kernel wrote, of the first schedule.
    """

    kernel: str
    runs: list[Run] = dataclasses.field(default_factory=list)
    outputs: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        lines = [f"{run.mode:<14}{run.detail:<22}{run.seconds:8.3f} s  {run.result}" for run in self.runs]
        return "\n".join([f"kernel {self.kernel}: passed", *(f"  {line}" for line in lines)])


def check_kernel(
    kernel: Any,
    args: Sequence[Any],
    grid: Sequence[int],
    block: Sequence[int],
    *,
    name: str | None = None,
    shared: int = 0,
    reference: Callable[..., Any] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    inout: Sequence[int] = (),
    schedules: Sequence[Schedule] = SCHEDULES,
    bounds: bool = True,
    races: bool = True,
    uninitialised: bool = True,
    architectures: Sequence[str] = (),
    timeout: float = 60.0,
) -> Report:
    """Run a CUDA kernel on NumPy arrays, without a GPU, and raise at what is wrong with it.

    Args:
        kernel: CUDA C++ source, the path of a ``.cu`` file, a `cupy.RawKernel` or `RawModule`, or an `EmulatedKernel`.
        args: NumPy arrays or None for pointers, NumPy scalars (``np.int32(n)``) for values. They are not written.
        grid: the number of blocks, one to three integers.
        block: the number of threads of a block, one to three integers.
        name: which kernel, ``"axpy<float>"`` for a template; may be left out where there is one.
        shared: bytes of dynamic shared memory.
        reference: called with copies of `args`; returns the expected outputs in order, or writes them into the copies.
        rtol: relative tolerance; by default that of the dtype (1e-4 for float32), integers must be equal.
        atol: absolute tolerance; by default `rtol`.
        inout: the positions in `args` of arrays that the kernel reads and writes; others are full of garbage before.
        schedules: the orders of the threads; all must give the reference's results, or those of the first order.
        bounds: check addresses, alignment and undefined behaviour.
        races: check for races between the threads of a block.
        uninitialised: check for reads of memory before it is written, and for unwritten outputs.
        architectures: compute capabilities, such as ``"90"``, to compile for with NVRTC as well.
        timeout: seconds after which a checked run is taken to hang.

    Returns:
        What ran, with times, and the outputs.

    Raises:
        KernelError: what was found, in which kernel, where, and by which check; or there is no C++ compiler.
    """
    emulated = _emulated(kernel, name)
    case = _Case(emulated, args, grid, block, shared, reference, rtol, atol, frozenset(inout), timeout)
    return case.report(architectures, schedules, bounds=bounds, races=races, uninitialised=uninitialised)


def _emulated(kernel: Any, name: str | None) -> EmulatedKernel:
    """The kernel compiled for the CPU, whatever it came as."""
    if isinstance(kernel, EmulatedKernel):
        return kernel
    source, options = kernel, ()
    if not isinstance(kernel, (str, Path)):
        source = getattr(kernel, "code", None)
        name = name or getattr(kernel, "name", None)
        options = getattr(kernel, "options", None) or ()
    if not isinstance(source, (str, Path)):
        raise KernelError(
            "check_kernel takes CUDA source, the path of a .cu file, or a cupy.RawKernel made from source, got "
            f"{describe(kernel)}"
        )
    instance = (name,) if name is not None and ("<" in name or "::" in name) else ()
    return EmulatedModule(source, names=instance, options=options).kernel(name)


_Steps = Iterator[tuple[str, str, str]]


@dataclasses.dataclass
class _Case:
    """One launch and what it should give; each check yields a step (mode, detail, result) or raises."""

    kernel: EmulatedKernel
    args: Sequence[Any]
    grid: Sequence[int]
    block: Sequence[int]
    shared: int
    reference: Callable[..., Any] | None
    rtol: float | None
    atol: float | None
    inout: frozenset[int]
    timeout: float

    def report(
        self,
        architectures: Sequence[str],
        schedules: Sequence[Schedule],
        *,
        bounds: bool,
        races: bool,
        uninitialised: bool,
    ) -> Report:
        """Run the checks that were asked for; those in a process of their own first, as a bad address ends it."""
        check_arguments(self.kernel.name, self.kernel.parameters, self.args)
        report = Report(self.kernel.name)
        checks = [self.compile_for(architectures)]
        checks += [self.check_bounds()] if bounds else []
        checks += [self.check_races()] if races else []
        checks += [self.check_uninitialised()] if uninitialised else []
        checks += [self.check_schedules(schedules, report)]
        for check in checks:
            started = time.perf_counter()
            for mode, detail, result in check:
                report.runs.append(Run(mode, detail, time.perf_counter() - started, result))
                started = time.perf_counter()
        return report

    @property
    def written(self) -> list[int]:
        """The positions of the arrays that the kernel may write."""
        parameters = self.kernel.parameters
        return [
            position
            for position, (parameter, value) in enumerate(zip(parameters, self.args, strict=True))
            if parameter.pointer and not parameter.const and value is not None
        ]

    def arguments(self, poison: int = _NAN) -> list[Any]:
        """The arguments of one run, outputs full of the poison byte; arrays copied where they may be written."""
        copies = list(self.args)
        for position in self.written:
            copies[position] = self.args[position].copy()
            if position not in self.inout:
                copies[position].reshape(-1).view(np.uint8).fill(poison)
        return copies

    def run(self, kind: Build, shared_poison: int = _NAN, output_poison: int = _NAN) -> list[Any]:
        """The arguments after a run in a checked build."""
        name = self.kernel.name
        config = launch_config(name, self.grid, self.block, self.shared, "in order", shared_poison)
        args = self.arguments(output_poison)
        try:
            return run_checked(kind, self.kernel, args, config, 0, self.timeout)
        except KernelError as error:
            raise KernelError(f"{error} [found by: {kind}]") from None

    def expected(self) -> dict[int, np.ndarray] | None:
        """By position, what the reference says the kernel writes; None without a reference."""
        if self.reference is None:
            return None
        copies = [value.copy() if isinstance(value, np.ndarray) else value for value in self.arguments()]
        returned = self.reference(*copies)
        if returned is None:
            return {position: copies[position] for position in self.written}
        outputs = returned if isinstance(returned, tuple) else (returned,)
        if len(outputs) != len(self.written):
            raise KernelError(
                f"kernel {self.kernel.name} writes {len(self.written)} arrays (arguments {self.written}: those that "
                f"are no pointers to const), but the reference returned {len(outputs)}"
            )
        return dict(zip(self.written, map(np.asarray, outputs), strict=True))

    def compile_for(self, architectures: Sequence[str]) -> _Steps:
        module = self.kernel.module
        for architecture in architectures:
            names = [name for name in module.translation.kernels if "<" in name or "::" in name]
            compiled = nvrtc.compile_kernel(
                module.source,
                module.translation.label,
                architecture=architecture,
                options=module.options,
                name_expressions=names,
            )
            yield "compile", f"sm_{architecture}", f"{len(compiled.cubin)} bytes"

    def check_bounds(self) -> _Steps:
        self.run("bounds")
        yield "bounds", "in order", "no access out of bounds, none misaligned"

    def check_races(self) -> _Steps:
        self.run("races")
        yield "races", "in order", "no race"

    def check_uninitialised(self) -> _Steps:
        """Runs that differ only in garbage must agree: in every bit, as the order of the threads is the same."""
        first = self.run("bounds")
        other_shared = self.run("bounds", shared_poison=_LARGE)
        other_outputs = self.run("bounds", output_poison=_SMALL)
        expected = self.expected()
        for position in self.written:
            bits = _elements(first[position])
            changed = (bits != _elements(other_shared[position])).any(axis=1)
            if changed.any():
                shared = self.kernel.module.translation.shared
                self.fail(
                    position, changed, "depends on shared memory that no thread wrote", f"one of {', '.join(shared)}"
                )
            if position in self.inout:
                continue
            others = _elements(other_outputs[position])
            unwritten = (bits == _NAN).all(axis=1) & (others == _SMALL).all(axis=1)
            if expected is not None and expected[position].dtype == first[position].dtype:
                left = _elements(np.ascontiguousarray(expected[position]))
                # A reference that writes in place may leave elements alone as well.
                unwritten &= ~(left == _NAN).all(axis=1) if left.shape == bits.shape else True
            if unwritten.any():
                self.fail(position, unwritten, "is never written")
            changed = (bits != others).any(axis=1) & ~((bits == _NAN).all(axis=1) & (others == _SMALL).all(axis=1))
            if changed.any():
                hint = f"if that is meant, pass inout=({position},)"
                self.fail(position, changed, "depends on what the output held before the launch", hint)
        yield "uninitialised", "2 kinds of garbage", "no unwritten output, no read of unwritten memory"

    def fail(self, position: int, found: np.ndarray, what: str, hint: str = "") -> None:
        raise KernelError(
            f"kernel {self.kernel.name}: argument {position} ({self.kernel.parameters[position]}) {what} at index "
            f"{self.index(position, int(np.argmax(found)))}, {int(found.sum())} elements in all"
            f"{f' ({hint})' if hint else ''} [found by: uninitialised]"
        )

    def check_schedules(self, schedules: Sequence[Schedule], report: Report) -> _Steps:
        expected = self.expected()
        against = "the reference" if expected is not None else "the first schedule"
        for schedule in schedules:
            for seed in _SEEDS.get(schedule, range(1)):
                args = self.arguments()
                self.kernel(self.grid, self.block, args, shared_mem=self.shared, schedule=schedule, seed=seed)
                outputs = {position: args[position] for position in self.written}
                report.outputs = report.outputs or outputs
                expected = outputs if expected is None else expected
                detail = f"{schedule}, seed {seed}" if schedule in _SEEDS else schedule
                worst = [self.compare(position, args, expected, against, detail) for position in outputs]
                yield "schedule", detail, f"largest difference from {against}: {max(worst, default=0.0):.2g}"

    def compare(
        self, position: int, args: Sequence[Any], expected: dict[int, np.ndarray], against: str, detail: str
    ) -> float:
        """The largest difference of one output from what is expected, or an error."""
        got, want = args[position], expected[position]
        where = f"argument {position} ({self.kernel.parameters[position]})"
        if want.size != got.size:
            raise KernelError(
                f"kernel {self.kernel.name}: {where} has shape {got.shape}, but {against} gives shape {want.shape}"
            )
        exact = got.dtype.kind in "iub"
        if not exact:
            wide = np.complex128 if got.dtype.kind == "c" else np.float64
            got, want = got.astype(wide), want.astype(wide)
        got, want = got.reshape(-1), want.reshape(-1)
        rtol = _TOLERANCES.get(args[position].dtype.name, 0.0) if self.rtol is None else self.rtol
        atol = rtol if self.atol is None else self.atol
        fits = got == want if exact else np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
        if not fits.all():
            first = int(np.argmin(fits))
            raise KernelError(
                f"kernel {self.kernel.name}: {where} differs from {against} in {int((~fits).sum())} of {got.size} "
                f"elements, first at index {self.index(position, first)}: expected {want[first]}, got {got[first]} "
                f"(rtol {rtol:g}, atol {atol:g}) [found by: schedule {detail}]"
            )
        finite = np.isfinite(got) & np.isfinite(want)
        return 0.0 if exact else float(np.abs(got[finite] - want[finite]).max(initial=0.0))

    def index(self, position: int, element: int) -> tuple[int, ...]:
        """The index of the n-th element of an argument."""
        return tuple(int(i) for i in np.unravel_index(element, self.args[position].shape or (1,)))


def _elements(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, one row per element."""
    return array.reshape(-1).view(np.uint8).reshape(array.size, array.dtype.itemsize)
