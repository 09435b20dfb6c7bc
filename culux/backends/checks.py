"""What kernels find wrong with their data is said at the next synchronisation: no launch waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias
from weakref import WeakKeyDictionary

from culux.backends.base import Backend

__all__ = ["Check", "expect_check", "on_synchronize", "synchronized"]

Check: TypeAlias = Callable[[Backend, int], None]
"""``check(backend, index)``: raise where kernels that have run on device `index` found something wrong."""

_checks: list[Check] = []
_expected: WeakKeyDictionary[Backend, set[int]] = WeakKeyDictionary()


def on_synchronize(check: Check) -> Check:
    """Have `check` called when the host has waited for a device for which an `expect_check` came before.

    It may itself synchronise.
    """
    _checks.append(check)
    return check


def expect_check(backend: Backend, index: int) -> None:
    """Let the next synchronisation of device `index` of a backend call the checks, once.

    For who launches a kernel that can find its data wrong, at once or by replaying a graph that has it.
    """
    _expected.setdefault(backend, set()).add(index)


def synchronized(backend: Backend, index: int) -> None:
    """The host has waited for work on device `index`: call the checks where they are expected."""
    devices = _expected.get(backend)
    if devices and index in devices:
        devices.discard(index)  # first: a check synchronises, which leads here again
        for check in _checks:
            check(backend, index)
