"""A CUDA source as C++ for the emulator: the few things that a header cannot redefine are rewritten.

Three rewrites, all within their line, so that every message has the line of the kernel's own file:

- ``__shared__ T x[n];`` becomes a static variable and a call that fills it with the poison once a block;
- ``extern __shared__ T x[];`` becomes a pointer to a buffer of exactly the launch's dynamic shared memory;
- a table of the kernels is put after the end.

The rewriting works on text: ``__shared__`` that a macro brings is not poisoned, ``extern __shared__`` must stand inside
the kernel, and inline PTX is not for it (guard it with ``#ifdef __CULUX_EMULATOR__``).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

__all__ = ["Translation", "translate"]

_COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)
_DYNAMIC = re.compile(r"\bextern\s+__shared__\s+([^;{}]*?)(\w+)\s*\[\s*\]\s*;")
_STATIC = re.compile(r"\b__shared__\s+([^;{}]*);")
_ALIGNMENT = re.compile(r"(?:alignas|__align__)\s*\(([^()]*)\)\s*")
_KERNEL = re.compile(
    r"\b__global__\b(?:[^;{}()]|__launch_bounds__\s*\([^()]*(?:\([^()]*\))?[^()]*\))*?\b(?!__launch_bounds__)(\w+)\s*\("
)


@dataclasses.dataclass(frozen=True)
class Translation:
    """A CUDA source translated for the emulator.

    Args:
        text: the C++ source.
        label: the name of the file in messages.
        kernels: the names in the table of kernels, in its order.
        shared: the shared variables, each as ``name (file:line)``.
    """

    text: str
    label: str
    kernels: tuple[str, ...]
    shared: tuple[str, ...]


def translate(source: str, label: str, names: Iterable[str] = ()) -> Translation:
    """Translate CUDA C++ into C++ for the emulator.

    Args:
        source: the text of a ``.cu`` file.
        label: what messages call the file.
        names: kernels to have besides those that are no templates, such as ``"axpy<float>"``.

    Returns:
        The translation.
    """
    code = _blank(source)
    kernels = dict.fromkeys(_plain_kernels(code))
    kernels.update(dict.fromkeys(names))
    shared: list[str] = []
    text, position = [], 0
    for start, end, replacement, variables in _declarations(code):
        line = source.count("\n", 0, start) + 1
        shared.extend(f"{variable} ({label}:{line})" for variable in variables)
        lines = source.count("\n", start, end)
        text += [source[position:start], replacement.replace("\n", " "), "\n" * lines]
        position = end
    text.append(source[position:])
    entries = "".join(f"    culux_emu::entry<(&{name})>(),\n" for name in kernels)
    table = (
        f'\n#line 1 "culux table of kernels"\nextern "C" const culux_emu::Entry culux_emu_entries[] = {{\n{entries}'
        "    {nullptr, nullptr}};\n"
    )
    prologue = f'#include "cuda_emulator.h"\n#line 1 "{label}"\n'
    return Translation(prologue + "".join(text) + table, label, tuple(kernels), tuple(shared))


def _blank(source: str) -> str:
    """The source with comments and the contents of strings as spaces; every character keeps its place."""
    return _COMMENT_OR_STRING.sub(lambda match: re.sub(r"[^\n\"']", " ", match[0]), source)


def _declarations(code: str) -> Iterable[tuple[int, int, str, list[str]]]:
    """The declarations of shared memory in order: start, end, what replaces them, and their variables."""
    found = []
    for match in _DYNAMIC.finditer(code):
        element = _ALIGNMENT.sub("", match[1]).strip()
        pointer = f"{element}* {match[2]} = static_cast<{element}*>(culux_emu::dynamic_shared());"
        found.append((*match.span(), pointer, [match[2]]))
    for match in _STATIC.finditer(code):
        if re.search(r"\bextern\s+$", code[: match.start()]):
            continue
        alignment = "".join(f"alignas({argument}) " for argument in _ALIGNMENT.findall(match[1]))
        variables = _variables(match[1])
        poison = "".join(f" CULUX_POISON({variable});" for variable in variables)
        found.append((*match.span(), f"{alignment}static {_ALIGNMENT.sub('', match[1])};{poison}", variables))
    return sorted(found)


def _variables(declaration: str) -> list[str]:
    """The names that ``T<A, B> x[2], y`` declares: x and y."""
    bare, before = _ALIGNMENT.sub("", declaration), ""
    while bare != before:
        before, bare = bare, re.sub(r"\[[^\[\]]*\]|<[^<>]*>|\([^()]*\)", " ", bare)
    return [re.findall(r"\w+", part)[-1] for part in bare.split(",") if re.search(r"\w", part)]


def _plain_kernels(code: str) -> Iterable[str]:
    """The kernels at file scope that are no templates."""
    for match in _KERNEL.finditer(code):
        before = re.sub(r'extern\s*"[^"]*"\s*\{', "", code[: match.start()])
        statement = re.split(r"[;}]", before)[-1]
        if before.count("{") <= before.count("}") and not re.search(r"\btemplate\s*<", statement):
            yield match[1]
