"""The compile gate: NVIDIA's own compiler over every kernel and GPU architecture, on a machine without a GPU.

`compile_kernel` compiles one source for one architecture with the options that CuPy uses, and tells what each
kernel takes of the chip; `gate` does so for all sources and architectures and reports what does not compile,
spills registers or takes too much. NVRTC comes from NVIDIA's wheels or from a CUDA toolkit; CuPy is not needed.

    report = gate({"scale": pathlib.Path("scale.cu")})
    print(report)
    report.check()
"""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from culux.errors import KernelError
from culux.testing.cuda import nvrtc_library, ptxas
from culux.testing.cuda.ptxas import KernelUsage

__all__ = [
    "ARCHITECTURES",
    "Compiled",
    "Failure",
    "GateReport",
    "KernelUsage",
    "Row",
    "Source",
    "available",
    "compile_kernel",
    "gate",
]

ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
"""The compute capabilities that kernels are compiled for unless others are asked for."""

# What CuPy adds to a RawModule's options, with its `-arch=sm_..`; a `-std` of the user's own replaces the standard.
_CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
_CUPY_STANDARD = "--std=c++17"


@dataclass(frozen=True)
class Compiled:
    """One source, compiled for one architecture.

    Attributes:
        architecture: such as ``"90"``.
        cubin: the machine code; `cupy.RawModule(path=...)` loads it from a file.
        log: all that the compiler said.
        kernels: what each kernel takes, by its name expression or symbol.
    """

    architecture: str
    cubin: bytes = field(repr=False)
    log: str = field(repr=False)
    kernels: Mapping[str, KernelUsage]


@dataclass(frozen=True)
class Source:
    """A source for `gate` that needs options or name expressions.

    Attributes:
        source: CUDA C++ text, or the path of a file.
        options: compiler options, such as ``("-DTILE=16",)``.
        name_expressions: kernels to instantiate, such as ``("softmax<float>",)``.
    """

    source: str | Path
    options: tuple[str, ...] = ()
    name_expressions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """One thing that `gate` refuses: the source's name ("" for all of them), the architecture, and what is wrong."""

    source: str
    architecture: str
    message: str


@dataclass(frozen=True)
class Row:
    """A kernel over all the architectures it compiled for: the least and most registers, the most of the others.

    Attributes:
        source: the name of its source.
        kernel: its name.
        architectures: those it compiled for.
        registers: the least and the most registers per thread.
        spills: bytes spilled per thread, stores and loads together.
        shared: bytes of static shared memory per block.
    """

    source: str
    kernel: str
    architectures: tuple[str, ...]
    registers: tuple[int, int]
    spills: int
    shared: int


@dataclass(frozen=True)
class GateReport:
    """What `gate` found; printed, a table of the kernels and the failures below it.

    Attributes:
        compiled: the name of the source and what became of it, for every source and architecture that compiled.
        failures: all that was refused; empty if every kernel passed.
    """

    compiled: tuple[tuple[str, Compiled], ...]
    failures: tuple[Failure, ...]

    def rows(self) -> list[Row]:
        """The kernels that compiled, each over all its architectures."""
        found: defaultdict[tuple[str, str], list[tuple[str, KernelUsage]]] = defaultdict(list)
        for source, compiled in self.compiled:
            for name, usage in compiled.kernels.items():
                found[source, name].append((compiled.architecture, usage))
        return [_row(source, kernel, usages) for (source, kernel), usages in found.items()]

    def check(self) -> None:
        """Do nothing if every kernel passed.

        Raises:
            KernelError: otherwise, with all the failures: source, architectures, what is wrong.
        """
        if self.failures:
            raise KernelError(f"the compile gate refuses:{_listed(self.failures)}")

    def __str__(self) -> str:
        cells = [("source", "kernel", "architectures", "registers", "spilled bytes", "shared bytes")]
        for row in self.rows():
            registers = "-".join(str(n) for n in sorted(set(row.registers)))
            architectures = " ".join(row.architectures)
            cells.append((row.source, row.kernel, architectures, registers, str(row.spills), str(row.shared)))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        return "\n".join([*lines, "", f"failures:{_listed(self.failures) or ' none'}"])


def available() -> str:
    """Why NVRTC cannot be used here and how to install it; "" where it can."""
    try:
        nvrtc_library.load()
    except KernelError as error:
        return str(error)
    return ""


def compile_kernel(
    source: str | Path,
    name: str | None = None,
    *,
    architecture: str,
    options: Sequence[str] = (),
    name_expressions: Sequence[str] = (),
) -> Compiled:
    """The machine code of a CUDA C++ source for one architecture, and what each of its kernels takes.

    The options are those that CuPy compiles a RawModule with (``-ftz=true``: denormals flush to zero; C++17), so
    that this is the code that runs.

    Args:
        source: CUDA C++ text, or the path of a file, beside which quoted includes are looked for.
        name: the file name in the compiler's messages; by default that of the file, else ``"kernel.cu"``.
        architecture: a compute capability, such as ``"75"`` or ``"90a"``.
        options: further options, as for `cupy.RawModule`.
        name_expressions: templates to instantiate, such as ``("scale<float>",)``.

    Returns:
        The compiled source.

    Raises:
        KernelError: if it does not compile (the compiler's log is in the text), the architecture is not known to
            the installed NVRTC, there is no NVRTC, or the log of its assembler is of an unknown form.
    """
    nvrtc = nvrtc_library.load()
    refusal = nvrtc.refuses(architecture)
    if refusal:
        raise KernelError(refusal)
    if isinstance(source, Path):
        name, source = name or str(source), source.read_text(encoding="utf-8")
    name = name or "kernel.cu"
    if not any("std=" in option for option in options):
        options = (*options, _CUPY_STANDARD)
    options = (*options, *_CUPY_OPTIONS, f"-arch=sm_{architecture}", *(f"-I{path}" for path in nvrtc.includes))
    cubin, log, symbols = nvrtc.compile(source, name, (*options, "--ptxas-options=-v"), name_expressions)
    if cubin is None:
        raise KernelError(f"{name} does not compile for sm_{architecture}:\n{log}{nvrtc.hint(log)}")
    return Compiled(architecture, cubin, log, ptxas.parse(log, cubin, symbols))


def gate(
    sources: Mapping[str, str | Path | Source],
    architectures: Sequence[str] = ARCHITECTURES,
    *,
    max_registers: int = 255,
    max_shared: int = 48 * 1024,
    allow_spills: bool = False,
) -> GateReport:
    """Compile every source for every architecture and say what does not pass.

    Refused are: a source that does not compile, or holds no kernel; a kernel that spills registers or is over a
    limit; an architecture that the installed NVRTC does not know.

    Args:
        sources: by name: CUDA C++ text, a path, or a `Source` with options and name expressions.
        architectures: compute capabilities.
        max_registers: registers that a thread may take.
        max_shared: bytes of static shared memory that a block may take; NVIDIA's compiler takes 48 KiB at most.
        allow_spills: whether kernels may spill registers.

    Returns:
        The report; its `check` raises if anything was refused.

    Raises:
        KernelError: if there is no NVRTC, or nothing to compile.
    """
    if not sources or not architectures:
        raise KernelError(f"nothing to compile: {len(sources)} sources for {len(architectures)} architectures")
    nvrtc = nvrtc_library.load()
    unknown = {a: refusal for a in architectures if (refusal := nvrtc.refuses(a))}
    failures = [Failure("", architecture, refusal) for architecture, refusal in unknown.items()]
    jobs = [(name, a) for name, a in itertools.product(sources, architectures) if a not in unknown]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        results = list(threads.map(lambda job: _attempt(job[0], sources[job[0]], job[1]), jobs))
    compiled: list[tuple[str, Compiled]] = []
    for (name, architecture), result in zip(jobs, results, strict=True):
        if isinstance(result, Compiled):
            compiled.append((name, result))
            messages = _excesses(result, max_registers, max_shared, allow_spills)
        else:
            messages = _errors(str(result)) or [str(result)]
        failures += [Failure(name, architecture, message) for message in messages]
    return GateReport(tuple(compiled), tuple(failures))


def _attempt(name: str, given: str | Path | Source, architecture: str) -> Compiled | KernelError:
    entry = given if isinstance(given, Source) else Source(given)
    try:
        return compile_kernel(
            entry.source,
            name if isinstance(entry.source, str) else None,
            architecture=architecture,
            options=entry.options,
            name_expressions=entry.name_expressions,
        )
    except KernelError as error:
        return error


def _excesses(compiled: Compiled, max_registers: int, max_shared: int, allow_spills: bool) -> list[str]:
    """What is wrong with a source that compiled."""
    if not compiled.kernels:
        return ["it holds no kernel; a template is compiled only where name_expressions asks for it"]
    messages = []
    for name, usage in compiled.kernels.items():
        if usage.spill_stores + usage.spill_loads and not allow_spills:
            messages.append(
                f"kernel {name} spills registers: {usage.spill_stores} bytes stored and {usage.spill_loads} loaded "
                f"per thread, with {usage.registers} registers"
            )
        if usage.registers > max_registers:
            messages.append(f"kernel {name} takes {usage.registers} registers, more than max_registers={max_registers}")
        if usage.shared > max_shared:
            messages.append(
                f"kernel {name} takes {usage.shared} bytes of static shared memory, more than max_shared={max_shared}"
            )
    return messages


def _row(source: str, kernel: str, usages: Sequence[tuple[str, KernelUsage]]) -> Row:
    registers = [usage.registers for _, usage in usages]
    return Row(
        source,
        kernel,
        tuple(architecture for architecture, _ in usages),
        (min(registers), max(registers)),
        max(usage.spill_stores + usage.spill_loads for _, usage in usages),
        max(usage.shared for _, usage in usages),
    )


def _listed(failures: Iterable[Failure]) -> str:
    """The failures as text, one a line; what several architectures share stands once."""
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for failure in failures:
        found[failure.source, failure.message].append(f"sm_{failure.architecture}")
    return "".join(
        f"\n  {source + ' ' if source else ''}({', '.join(names)}): {message}"
        for (source, message), names in found.items()
    )


def _errors(log: str) -> list[str]:
    """The lines of a log that name an error; not the quoted source, which is indented."""
    return [line for line in log.splitlines() if re.match(r"(?!\s).*\b(error|fatal)\b[^:]{0,12}:", line)]
