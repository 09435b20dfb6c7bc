"""What each kernel takes of a GPU, read from the log of NVIDIA's assembler (``ptxas -v``)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from culux.errors import KernelError

__all__ = ["KernelUsage", "parse"]

_ENTRY = re.compile(r"Compiling entry function '(.+)' for 'sm_\w+'")
_PROPERTIES = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:, (.*))?$")
_MEMORY = re.compile(r"(\d+) bytes (cumulative stack size|smem|lmem|cmem\[\d+\])")
_OTHER = re.compile(r"used \d+ barriers|\d+ (textures|samplers|surfaces)")


@dataclass(frozen=True)
class KernelUsage:
    """What one kernel takes of one architecture, as the assembler reports it.

    Attributes:
        name: the name expression it was asked for by, else its symbol.
        symbol: its (mangled) name in the cubin.
        registers: registers per thread.
        spill_stores: bytes per thread that are written to local memory for want of registers, in the kernel and
            in the functions that were compiled for it and not inlined.
        spill_loads: bytes per thread read back.
        stack: bytes of stack per thread, that of its calls included; spills are part of it.
        shared: bytes of static shared memory per block.
        constant: bytes of constant memory, the arguments included; 0 where the assembler reports none (from sm_90 on).
    """

    name: str
    symbol: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int
    constant: int


def parse(log: str, cubin: bytes, symbols: Mapping[str, str]) -> dict[str, KernelUsage]:
    """What each kernel takes, from the log of ``ptxas -v``; checked against the kernels in the cubin."""
    sections: dict[str, list[str]] = {}
    section: list[str] = []
    for line in log.splitlines():
        entry = _ENTRY.search(line)
        if entry:
            section = sections.setdefault(entry[1], [])
        section.append(line)
    # Every kernel has a section of constant memory for its arguments, and nothing else has one.
    in_cubin = {name.decode() for name in re.findall(rb"\.nv\.constant0\.([^\0]+)", cubin)}
    if set(sections) != in_cubin:
        raise _unknown_form(f"it names the kernels {sorted(sections)} and the cubin holds {sorted(in_cubin)}", log)
    names = {symbol: name for name, symbol in symbols.items()}
    usages = [_usage(names.get(symbol, symbol), symbol, lines) for symbol, lines in sections.items()]
    return {usage.name: usage for usage in usages}


def _usage(name: str, symbol: str, lines: Sequence[str]) -> KernelUsage:
    # A function that is not inlined has properties of its own, after those of the kernel.
    properties = [found for line in lines if (found := _PROPERTIES.search(line))]
    used = [found for line in lines if (found := _USED.search(line))]
    if not properties or len(used) != 1:
        raise _unknown_form(f"it does not tell what kernel {name} takes", "\n".join(lines))
    memory: defaultdict[str, int] = defaultdict(int)
    for part in filter(None, (used[0][2] or "").split(", ")):
        amount = _MEMORY.fullmatch(part)
        if amount:
            memory[amount[2].partition("[")[0]] += int(amount[1])
        elif not _OTHER.fullmatch(part):
            raise _unknown_form(f"{part!r} of kernel {name} is new", "\n".join(lines))
    return KernelUsage(
        name,
        symbol,
        registers=int(used[0][1]),
        spill_stores=sum(int(found[2]) for found in properties),
        spill_loads=sum(int(found[3]) for found in properties),
        stack=max(int(properties[0][1]), memory["cumulative stack size"]),
        shared=memory["smem"],
        constant=memory["cmem"],
    )


def _unknown_form(what: str, log: str) -> KernelError:
    return KernelError(f"the log of this NVRTC's assembler is of a form that culux does not know: {what}:\n{log}")
