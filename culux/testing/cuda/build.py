"""The emulator's programs: compiled by the machine's C++ compiler, kept in a cache on disk.

Three builds of a kernel: a library that Python calls (`plain`), and two programs that run one launch under
AddressSanitizer and UndefinedBehaviorSanitizer (`bounds`) or under ThreadSanitizer (`races`).
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from culux.backends.cache import cache_folder
from culux.errors import KernelError
from culux.testing.cuda.source import Translation

__all__ = ["build", "compiler"]

Build = Literal["plain", "bounds", "races"]

_RUNTIME = Path(__file__).parent / "runtime"
# Hidden: the static variables of templates would else be one and the same in the libraries of two kernels.
_COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread")
# CUDA code looks at memory through other types; -g1 has the lines and no more.
_KERNEL = ("-g1", "-ffp-contract=off", "-fno-strict-aliasing", "-w")
_KINDS: dict[Build, tuple[str, ...]] = {
    "plain": ("-O2",),
    "bounds": ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"),
    "races": ("-O1", "-fsanitize=thread", "-fno-omit-frame-pointer"),
}


def compiler() -> str:
    """The C++ compiler: $CXX, g++ or clang++.

    Raises:
        KernelError: there is none.
    """
    for name in (os.environ.get("CXX", ""), "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise KernelError(
        "running CUDA kernels on the CPU needs a C++ compiler, and neither $CXX nor g++ nor clang++ is there; "
        "install one: apt-get install g++ (Debian, Ubuntu) or dnf install gcc-c++ libasan libubsan libtsan (Fedora)"
    )


def build(kind: Build, translation: Translation, options: Sequence[str] = ()) -> Path:
    """Compile a translated source, or find it in the cache.

    Args:
        kind: which build.
        translation: the source.
        options: the compiler options of the kernel; those that are macros and include folders count.

    Returns:
        The library (`plain`) or the program.

    Raises:
        KernelError: there is no compiler, or the source does not compile; the text has the compiler's messages.
    """
    chosen = [option for option in options if option.startswith(("-D", "-U", "-I"))]
    flags = [*_COMMON, *_KERNEL, *_KINDS[kind], *chosen, f"-I{_RUNTIME / 'include'}"]
    link = ["-shared", "-Wl,-Bsymbolic"] if kind == "plain" else []
    parts = ["scheduler", "block", "fibers"] + ([] if kind == "plain" else ["runner"])
    objects = [str(_runtime_object(part, races=kind == "races")) for part in parts]
    key = _key(*flags, translation.text)
    target = cache_folder("kernels") / f"kernel-{key}{'.so' if kind == 'plain' else ''}"
    arguments = [*flags, *link, "-x", "c++", "-", "-x", "none", *objects]
    _compile(arguments, target, translation.text, f"{translation.label} does not compile for the emulator")
    return target


def _runtime_object(part: str, *, races: bool) -> Path:
    flags = [*_COMMON, "-O2", "-fno-tree-loop-distribute-patterns", f"-I{_RUNTIME / 'include'}", f"-I{_RUNTIME}", "-c"]
    flags += ["-DCULUX_RACES"] if races else []
    target = cache_folder("kernels") / f"{part}-{_key(*flags)}.o"
    source = _RUNTIME / f"{part}.cpp"
    _compile([*flags, str(source)], target, None, "the emulator's runtime does not compile")
    return target


_locks: dict[Path, threading.Lock] = {}


def _compile(arguments: Sequence[str], target: Path, source: str | None, complaint: str) -> None:
    """Run the compiler unless `target` is there; written beside it and renamed, so that none is ever half there."""
    with _locks.setdefault(target, threading.Lock()):
        if target.exists():
            return
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        command = [compiler(), *arguments, "-o", str(partial)]
        done = subprocess.run(command, input=source, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise KernelError(f"{complaint} ({' '.join(command[:1])}):\n{done.stderr.strip()}")
        partial.replace(target)


def _key(*parts: str) -> str:
    """What a compiled file depends on: its options and text, the compiler, the emulator's own sources."""
    digest = hashlib.sha256()
    for part in (*parts, _toolchain()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:32]


@functools.cache
def _toolchain() -> str:
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    sources = sorted(path for path in _RUNTIME.rglob("*") if path.suffix in (".h", ".cpp"))
    return version + "".join(path.read_text() for path in sources)
