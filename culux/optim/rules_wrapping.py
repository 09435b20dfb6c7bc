"""Rules beside others: accumulated gradients, full precision beside half, decay by sign, norms of single gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.errors import LayerError, describe
from culux.optim.combinators import chain
from culux.optim.rules import Hyper, Rule, Stage

__all__ = ["accumulate", "clip_each_norm", "master_weights", "sign_decay"]


class sign_decay(Rule):
    """Coupled decay by sign, ``g + coefficient * sign(x)``, before a rule in a chain: the gradient of ``|x|_1``.

    Args:
        coefficient: how strongly parameters are pulled to zero.
    """

    coefficient: Hyper = 1e-3

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The gradient with the decay added; see `Rule.apply`."""
        return d + self.coefficient * namespace_of(x).sign(x)


class clip_each_norm(Rule):
    """The gradient of every parameter scaled down to a norm of `max`: ``g * min(1, max / (|g| + 1e-6))``.

    `clip_norm` takes the norm of all gradients together.

    Args:
        max: the largest norm.
    """

    max: Hyper
    whole = True

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The scaled gradient; see `Rule.apply`."""
        xp = namespace_of(d)
        return d * xp.minimum(self.max / (xp.sqrt(xp.sum(d * d)) + 1e-6), 1.0).astype(d.dtype)


class master_weights(Rule):
    """Parameters of 16 bits updated in float32, at the end of a chain: ``chain(Adam(1e-3), master_weights())``.

    The sum of all steps is kept in float32, and the parameters are its rounding, so that steps below their
    precision are not lost. Parameters that were changed other than by `update` go back to that sum. Micikevicius
    et al., "Mixed precision training", 2018.
    """

    moments = 1

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step to the sum of all steps; see `Rule.apply`."""
        (master,) = moments
        if count == 1:
            master[...] = x
        master -= d
        return x - master


class accumulate(chain):
    """A rule that takes a step for the mean of every n gradients: ``accumulate(4, Adam(1e-3))``.

    The n - 1 updates between leave the parameters and the moments of `rule` as they are, bit for bit, and `rule`
    counts its own steps. A schedule counts every update.

    Args:
        n: how many gradients make a step.
        rule: any rule, chains and groups too.

    Raises:
        LayerError: for an n below 1, or something that is no rule.
    """

    n: int

    def __init__(self, n: int, rule: Rule) -> None:
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise LayerError(f"accumulate: expected n >= 1, how many gradients make a step, got {describe(n)}")
        if not isinstance(rule, Rule):
            raise LayerError(f"accumulate: expected a rule such as Adam(1e-3), got {describe(rule)}")
        super().__init__(rule)
        object.__setattr__(self, "n", n)

    def __repr__(self) -> str:
        return f"accumulate({self.n}, {self.rules[0]!r})"

    def stages(self, path: str, place: tuple[int, ...] = ()) -> tuple[Stage, ...]:
        """The mean of the gradients, then the stages of the rule, which wait for it."""
        inner = self.rules[0].stages(path, (*place, 1))
        return ((_Mean(self.n), (*place, 0)), *[(_Waiting(self.n, rule), at) for rule, at in inner])

    def adjusted(self, hypers: dict[str, Any]) -> Rule:
        """The same around the adjusted rule."""
        return accumulate(self.n, self.rules[0].adjusted(hypers))


class _Mean(Rule):
    """The mean of n gradients at every n-th, 0 between."""

    n: int
    moments = 1

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The mean, or 0, the step that the waiting rules hand on; see `Rule.apply`."""
        (total,) = moments
        total += d
        if count % self.n:
            return namespace_of(d).zeros_like(d)
        mean = total / self.n
        total[...] = 0
        return mean


class _Waiting(Rule):
    """A rule of which every n-th update is one; the others hand on what they get."""

    n: int
    rule: Rule

    def __post_init__(self) -> None:
        for name in ("moments", "spans_tree", "whole"):
            object.__setattr__(self, name, getattr(self.rule, name))

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The rule's step at every n-th update; see `Rule.apply`."""
        return d if count % self.n else self.rule.apply(count // self.n, d, x, *moments)

    def measured(self, gradients: Sequence[Array]) -> Rule:
        """The rule for these gradients; see `Rule.measured`."""
        return _Waiting(self.n, self.rule.measured(gradients))

    def at(self, step: int) -> Self:
        """The rule with its schedules replaced by their values at a step."""
        return replace(self, rule=self.rule.at(step))
