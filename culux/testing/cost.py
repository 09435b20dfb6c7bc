"""What a function costs, counted: launches, bytes, transfers, allocations, and what gradients keep alive."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import CellType, FunctionType, MethodType
from typing import Any

from culux import tree
from culux.backends import is_array
from culux.backends.counting import counting
from culux.backends.registry import get_backend, loaded

__all__ = ["Cost", "cost"]


@dataclass(frozen=True)
class Cost:
    """What one call of a function took; equal on every run, so that a test can assert it.

    Attributes:
        kernels: the launches by the name of the kernel or of the library's product.
        bytes: of the arrays that launches were given: the reads and writes of kernels that touch every element
            once.
        transfers: bytes copied, by direction: ``"to device"``, ``"to host"``, ``"between devices"``, with the
            number of copies.
        allocations: pieces of device memory asked of the pool, whether it had them or not.
        allocated_bytes: their bytes, as asked.
        saved_bytes: what a traced function keeps for its backward pass: the arrays that its pullbacks hold, each
            piece of memory once, the function's own arguments included where they are held.
    """

    kernels: tuple[tuple[str, int], ...]
    bytes: int
    transfers: tuple[tuple[str, int, int], ...]
    allocations: int
    allocated_bytes: int
    saved_bytes: int

    @property
    def launches(self) -> int:
        """How many kernels and library products were launched."""
        return sum(count for _, count in self.kernels)

    def __str__(self) -> str:
        kernels = ", ".join(f"{count} x {name}" for name, count in self.kernels)
        lines = [
            f"launches     {self.launches:>14,}{f'  ({kernels})' if kernels else ''}",
            f"bytes        {self.bytes:>14,}",
            *(f"{name:<18}{nbytes:>9,}  in {count} copies" for name, count, nbytes in self.transfers),
            f"allocations  {self.allocations:>14,}  of {self.allocated_bytes:,} bytes",
            f"saved bytes  {self.saved_bytes:>14,}",
        ]
        return "\n".join(lines)


def cost(f: Callable[..., Any], *args: Any) -> Cost:
    """Call ``f(*args)`` and count what it does on the devices of this thread.

    A kernel's first launch compiles it and the autotuner's first call times its candidates: call `f` once
    before. Launches are those of culux's kernels and products; operations of an array library itself (the sums and
    products of the user's own code) show in `allocations`. NumPy's arrays have neither launches nor allocations,
    and `saved_bytes` as others have.

    Args:
        f: any function.
        *args: its arguments.

    Returns:
        The counts.
    """
    counter = _Counter()
    if "cupy" in sys.modules:
        get_backend("cupy")
    with ExitStack() as stack:
        for backend in loaded():
            stack.enter_context(backend.allocations(counter.allocation))
        stack.enter_context(counting(counter))
        f(*args)
    return counter.cost()


class _Counter:
    """Collects what the backends and the tape tell."""

    def __init__(self) -> None:
        self._kernels: Counter[str] = Counter()
        self._transfers: Counter[str] = Counter()
        self._transferred: Counter[str] = Counter()
        self._bytes = 0
        self._allocations: list[int] = []
        self._saved: dict[int, int] = {}

    def launch(self, name: str, args: Sequence[Any]) -> None:
        self._kernels[name] += 1
        self._bytes += sum(arg.nbytes for arg in args if is_array(arg))

    def transfer(self, name: str, nbytes: int) -> None:
        self._transfers[name] += 1
        self._transferred[name] += nbytes

    def allocation(self, nbytes: int) -> None:
        self._allocations.append(nbytes)

    def saved(self, pullbacks: Sequence[Any]) -> None:
        for array in _arrays_in(pullbacks):
            owner = array
            while is_array(getattr(owner, "base", None)):
                owner = owner.base
            self._saved[id(owner)] = owner.nbytes

    def cost(self) -> Cost:
        return Cost(
            tuple(sorted(self._kernels.items())),
            self._bytes,
            tuple((name, count, self._transferred[name]) for name, count in sorted(self._transfers.items())),
            len(self._allocations),
            sum(self._allocations),
            sum(self._saved.values()),
        )


def _arrays_in(root: Any) -> Iterator[Any]:
    """The arrays that functions hold in their closures, defaults and partial arguments, through containers."""
    waiting, seen = [root], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if is_array(value):
            yield value
        elif isinstance(value, FunctionType):
            waiting += [*(value.__closure__ or ()), *(value.__defaults__ or ())]
        elif isinstance(value, CellType):
            waiting += _content(value)
        elif isinstance(value, functools.partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            waiting += [value.__func__, value.__self__]
        elif isinstance(value, (list, tuple, dict)):
            waiting += tree.leaves(value) if isinstance(value, dict) else value


def _content(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # an empty cell
        return []
