"""Schedules: hyper-parameters as functions of the step, which counts the updates from 0.

A schedule takes the place of a number: ``Adam(cosine(1e-3, steps=10_000))``. Any function of the step does
too; these are records, so that rules which hold them compare, hash and pickle.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

from culux.core.record import Record
from culux.errors import LayerError, describe

__all__ = ["constant", "cosine", "exponential", "join", "linear", "step_decay", "warmup_cosine"]


class constant(Record):
    """``value`` at every step.

    Args:
        value: the value.
    """

    value: float

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return self.value


class step_decay(Record):
    """``initial * factor ** floor(step / every)``: a staircase.

    Args:
        initial: the value at step 0.
        every: how many steps a stair is long.
        factor: what a stair multiplies by.

    Raises:
        LayerError: for `every` below 1.
    """

    initial: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _check_steps(self, "every", self.every)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return float(self.initial * self.factor ** (step // self.every))


class exponential(Record):
    """``initial * factor ** step``.

    Args:
        initial: the value at step 0.
        factor: what every step multiplies by.
    """

    initial: float
    factor: float

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return float(self.initial * self.factor**step)


class linear(Record):
    """``initial + (final - initial) * min(step / steps, 1)``: a straight line, then `final`.

    Args:
        initial: the value at step 0.
        final: the value from step `steps` on.
        steps: how many steps the line is long.

    Raises:
        LayerError: for `steps` below 1.
    """

    initial: float
    final: float
    steps: int

    def __post_init__(self) -> None:
        _check_steps(self, "steps", self.steps)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return self.initial + (self.final - self.initial) * min(step / self.steps, 1.0)


class cosine(Record):
    """``final + (initial - final) * (1 + cos(pi * min(step / steps, 1))) / 2``: half a cosine, then `final`.

    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, without restarts.

    Args:
        initial: the value at step 0.
        steps: how many steps the descent is long.
        final: the value from step `steps` on.

    Raises:
        LayerError: for `steps` below 1.
    """

    initial: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_steps(self, "steps", self.steps)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return self.final + (self.initial - self.final) * (1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2


class warmup_cosine(Record):
    """A line from `initial` up to `peak` in `warmup` steps, then half a cosine down to `final` at step `steps`.

    Args:
        peak: the value at step `warmup`.
        warmup: how many steps the line is long.
        steps: at which step the descent ends; the warm-up is part of it.
        initial: the value at step 0.
        final: the value from step `steps` on.

    Raises:
        LayerError: unless ``1 <= warmup < steps``.
    """

    peak: float
    warmup: int
    steps: int
    initial: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_steps(self, "warmup", self.warmup)
        if self.steps <= self.warmup:
            raise LayerError(
                f"warmup_cosine: expected steps > warmup, got steps={self.steps} and warmup={self.warmup}; "
                "steps counts the warm-up too"
            )

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        if step < self.warmup:
            return linear(self.initial, self.peak, self.warmup)(step)
        return cosine(self.peak, self.steps - self.warmup, self.final)(step - self.warmup)


class join(Record):
    """Schedules one after another: from a boundary on the next one holds, and counts its steps from there.

    Args:
        schedules: the schedules.
        boundaries: the steps at which the second and every later one begins.

    Raises:
        LayerError: unless there is one boundary less than schedules, and they rise.
    """

    schedules: tuple[Callable[[int], float], ...]
    boundaries: tuple[int, ...]

    def __init__(self, schedules: Sequence[Callable[[int], float]], boundaries: Sequence[int]) -> None:
        object.__setattr__(self, "schedules", tuple(schedules))
        object.__setattr__(self, "boundaries", tuple(boundaries))
        for schedule in self.schedules:
            if not callable(schedule):
                raise LayerError(f"join: expected schedules, got {describe(schedule)}; a number is constant(number)")
        if len(self.boundaries) != len(self.schedules) - 1:
            raise LayerError(
                f"join: expected {len(self.schedules) - 1} boundaries between {len(self.schedules)} schedules, "
                f"got {len(self.boundaries)}"
            )
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise LayerError(f"join: expected boundaries that rise, got {self.boundaries}")

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        i = bisect.bisect_right(self.boundaries, step)
        return self.schedules[i](step - (self.boundaries[i - 1] if i else 0))


def _check_steps(schedule: Record, name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LayerError(
            f"{type(schedule).__name__}: expected {name} to be a number of steps, 1 or more, got {describe(value)}"
        )
