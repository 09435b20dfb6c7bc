"""What a library has planned for a problem, kept for the next call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

__all__ = ["recall"]

P = TypeVar("P")
V = TypeVar("V")


def recall(plans: OrderedDict[P, V], problem: P, make: Callable[[P], V], most: int) -> V:
    """The plan for a problem, made where none is kept.

    Args:
        plans: those kept, the one used last at the end; the caller holds the lock on them.
        problem: the problem.
        make: what plans one; where it raises nothing is kept.
        most: how many plans are kept, those used last.
    """
    try:
        plans.move_to_end(problem)
    except KeyError:
        pass  # planned outside of this handler: an error of `make` is no consequence of this one
    else:
        return plans[problem]
    plan = plans[problem] = make(problem)
    if len(plans) > most:
        plans.popitem(last=False)
    return plan
