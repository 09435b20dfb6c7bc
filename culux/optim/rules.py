"""Update rules: one frozen record each, whose `apply` reads as the paper's equations.

A rule works on flat arrays: the gradient ``d`` of some parameters ``x``, and its moments, which it changes
in place. It returns the step to be subtracted: ``x <- x - rule.apply(count, d, x, *moments)``. `apply` gets
blocks that fit into a CPU's cache, so plain expressions cost no more than hand-placed buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np

from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.core.record import Record
from culux.errors import LayerError, describe

__all__ = ["Adam", "AdamW", "Descent", "Hyper", "Lion", "Momentum", "Nesterov", "RMSProp", "Rule", "Stage"]

Hyper: TypeAlias = Any
"""A hyper-parameter: a number, or a schedule, which is a function of the step from 0."""

Stage: TypeAlias = tuple["Rule", tuple[int, ...]]
"""A rule that has no parts, and where it stands in the rule that it is a part of."""

# The numbers that each hyper-parameter may take; those without an entry take any.
_NOT_NEGATIVE = ("expected {} >= 0", lambda value: value >= 0)
_POSITIVE = ("expected {} > 0", lambda value: value > 0)
_FRACTION = ("expected 0 <= {} < 1", lambda value: 0 <= value < 1)
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "learning_rate": _NOT_NEGATIVE,
    "epsilon": _POSITIVE,
    "momentum": _NOT_NEGATIVE,
    "coefficient": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "max": _POSITIVE,
    "betas": _FRACTION,
    "alpha": _FRACTION,
    "rho": _FRACTION,
    "momentum_decay": _NOT_NEGATIVE,
    "etas": _POSITIVE,
    "step_sizes": _POSITIVE,
}
_PAIRS = {"betas": "(beta1, beta2)", "etas": "(shrink, grow)", "step_sizes": "(smallest, largest)"}


class Rule(Record):
    """The base of update rules: subclass it with the hyper-parameters as fields, and define `apply`.

    A field may hold a schedule; `apply` sees its number. Set `moments` to how many moments `apply` takes;
    they start at zero.

    Raises:
        LayerError: for a hyper-parameter that is no number and no schedule, or out of its range.
    """

    moments: ClassVar[int] = 0
    spans_tree: ClassVar[bool] = False
    """Whether the rule needs all its gradients before the first element, by `measured`."""
    whole: ClassVar[bool] = False
    """Whether `apply` gets every parameter on its own and in its shape, instead of flat blocks."""
    _scheduled = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _checked(type(self).__name__, field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            if any(_is_scheduled(part) for part in (value if type(value) is tuple else (value,))):
                object.__setattr__(self, "_scheduled", True)

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step to subtract from `x`, for the gradient `d`; the moments are changed in place.

        Args:
            count: how many updates these parameters have had, this one included.
            d: the gradient, or what the rule before this one in a chain made of it; not to be written to.
            x: the parameters, a flat array of the same size; not to be written to.
            *moments: flat arrays of the same size. With `whole` all have the shape of one parameter.
        """
        raise LayerError(f"{type(self).__name__} does not define apply(self, count, d, x, *moments)")

    def measured(self, gradients: Sequence[Array]) -> Rule:
        """The rule for these gradients, flat arrays of all that it gets; for one that `spans_tree`."""
        raise LayerError(f"{type(self).__name__} does not define measured(self, gradients)")

    def at(self, step: int) -> Self:
        """The rule with its schedules replaced by their values at a step, which counts from 0."""
        if not self._scheduled:
            return self
        return replace(self, **{field.name: _value_at(getattr(self, field.name), step) for field in fields(self)})

    def stages(self, path: str, place: tuple[int, ...] = ()) -> tuple[Stage, ...]:
        """The rules that a parameter goes through, by its path; see `chain` and `groups`."""
        return ((self, place),)

    def parts(self) -> tuple[Rule, ...]:
        """The rules without parts that this one is made of."""
        return (self,)

    def adjusted(self, hypers: dict[str, Any]) -> Rule:
        """The rule with other values for those hyper-parameters that it has."""
        names = {field.name for field in fields(self)}
        return replace(self, **{name: value for name, value in hypers.items() if name in names})


class Descent(Rule):
    """Gradient descent: ``x <- x - learning_rate * g``.

    Args:
        learning_rate: the step length; a number or a schedule, as every hyper-parameter.
    """

    learning_rate: Hyper = 1e-3

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        return self.learning_rate * d


class Momentum(Rule):
    """Gradient descent with momentum: ``m <- momentum * m + g``, ``x <- x - learning_rate * m`` (as torch's SGD).

    Args:
        learning_rate: the step length.
        momentum: what remains of the last direction.
    """

    learning_rate: Hyper = 1e-3
    momentum: Hyper = 0.9
    moments = 1

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        (m,) = moments
        m *= self.momentum
        m += d
        return self.learning_rate * m


class Nesterov(Rule):
    """Nesterov's momentum: ``m <- momentum * m + g``, ``x <- x - learning_rate * (g + momentum * m)`` (as torch's SGD).

    Args:
        learning_rate: the step length.
        momentum: what remains of the last direction.
    """

    learning_rate: Hyper = 1e-3
    momentum: Hyper = 0.9
    moments = 1

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        (m,) = moments
        m *= self.momentum
        m += d
        return self.learning_rate * (d + self.momentum * m)


class RMSProp(Rule):
    """Steps scaled by the root mean square: ``x <- x - learning_rate * g / (sqrt(v) + epsilon)``.

    ``v <- alpha * v + (1 - alpha) * g^2``. Tieleman and Hinton, "Lecture 6.5: RMSProp", 2012.

    Args:
        learning_rate: the step length.
        alpha: what remains of the mean square.
        epsilon: keeps the quotient finite.
    """

    learning_rate: Hyper = 1e-2
    alpha: Hyper = 0.99
    epsilon: Hyper = 1e-8
    moments = 1

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        (v,) = moments
        v *= self.alpha
        v += (1 - self.alpha) * d * d
        return self.learning_rate * d / (namespace_of(v).sqrt(v) + self.epsilon)


class Adam(Rule):
    """Adam: ``x <- x - learning_rate * m' / (sqrt(v') + epsilon)``.

    ``m <- b1 m + (1 - b1) g`` and ``v <- b2 v + (1 - b2) g^2``; ``m' = m / (1 - b1^t)`` and
    ``v' = v / (1 - b2^t)`` correct the start from zero; t counts the updates that a parameter has had.
    Kingma and Ba, "Adam: a method for stochastic optimization", 2015.

    Args:
        learning_rate: the step length.
        betas: what remains of the first and of the second moment.
        epsilon: keeps the quotient finite.
    """

    learning_rate: Hyper = 1e-3
    betas: tuple[Hyper, Hyper] = (0.9, 0.999)
    epsilon: Hyper = 1e-8
    moments = 2

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        m, v = moments
        beta1, beta2 = self.betas
        m *= beta1
        m += (1 - beta1) * d
        v *= beta2
        v += (1 - beta2) * d * d
        rate, epsilon = self.corrected(count)
        root = namespace_of(v).sqrt(v)  # and on in place: fewer temporaries leave more of the cache to the moments
        root += epsilon
        step = m / root
        step *= rate
        return step

    def corrected(self, count: int) -> tuple[float, float]:
        """`learning_rate` and `epsilon` with the corrections of m and v, taken out of the arrays into the two."""
        beta1, beta2 = self.betas
        root = math.sqrt(1 - beta2**count)
        return self.learning_rate * root / (1 - beta1**count), self.epsilon * root


class AdamW(Adam):
    """Adam with decoupled weight decay: ``x <- x - learning_rate * (adam + weight_decay * x)``.

    Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.

    Args:
        learning_rate: the step length.
        betas: what remains of the first and of the second moment.
        epsilon: keeps the quotient finite.
        weight_decay: how strongly parameters are pulled to zero.
    """

    weight_decay: Hyper = 0.01

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        return super().apply(count, d, x, *moments) + (self.learning_rate * self.weight_decay) * x


class Lion(Rule):
    """Steps by sign: ``x <- x - learning_rate * sign(b1 m + (1 - b1) g)``, then ``m <- b2 m + (1 - b2) g``.

    Chen et al., "Symbolic discovery of optimization algorithms", 2023; weight decay comes by a chain.

    Args:
        learning_rate: the step length.
        betas: what remains of the moment in the step, and from step to step.
    """

    learning_rate: Hyper = 1e-4
    betas: tuple[Hyper, Hyper] = (0.9, 0.99)
    moments = 1

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        (m,) = moments
        beta1, beta2 = self.betas
        direction = namespace_of(m).sign(beta1 * m + (1 - beta1) * d)
        m *= beta2
        m += (1 - beta2) * d
        return self.learning_rate * direction


def _is_scheduled(value: Any) -> bool:
    return value._scheduled if isinstance(value, Rule) else callable(value)


def _value_at(value: Any, step: int) -> Any:
    if type(value) is tuple:
        return tuple(_value_at(part, step) for part in value)
    if isinstance(value, Rule):
        return value.at(step)
    return float(value(step)) if callable(value) else value


def _checked(owner: str, name: str, value: Any) -> Any:
    """A hyper-parameter as a Python number, a schedule, or a pair of them."""
    if name == "fallback":
        return value  # a rule, which has checked its own
    if name in _PAIRS:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise LayerError(f"{owner}: expected {name}={_PAIRS[name]}, got {describe(value)}")
        return tuple(_number(owner, name, part) for part in value)
    return _number(owner, name, value)


def _number(owner: str, name: str, value: Any) -> Any:
    if callable(value) and not isinstance(value, type):
        return value
    if isinstance(value, np.generic):
        value = value.item()  # a NumPy float64 would make float32 arrays float64
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        hint = "" if name != "learning_rate" else f"; a rule holds no parameters: culux.optim.setup({owner}(1e-3), ps)"
        raise LayerError(f"{owner}: expected {name} to be a number or a schedule, got {describe(value)}{hint}")
    expected, fits = _RANGES.get(name, ("", lambda value: True))
    if not fits(value):
        raise LayerError(f"{owner}: {expected.format(name)}, got {value}")
    return value
