"""Rules made of rules, and the rules that only make sense in a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.errors import EntryError, LayerError, describe, nearest
from culux.optim.rules import Hyper, Rule, Stage
from culux.tree import matches

__all__ = ["chain", "clip_norm", "clip_value", "groups", "weight_decay"]


class chain(Rule):
    """Rules one after another: each takes what the one before it made of the gradient.

    ``chain(clip_norm(1.0), weight_decay(1e-4), Momentum(0.1))``. What the last one returns is subtracted from
    the parameters, so a chain ends in a rule with a learning rate.

    Args:
        *rules: the rules in order.

    Raises:
        LayerError: for something that is no rule.
    """

    rules: tuple[Rule, ...]

    def __init__(self, *rules: Rule) -> None:
        object.__setattr__(self, "rules", tuple(_rule("chain", rule) for rule in rules))
        if not rules:
            raise LayerError("chain: expected rules, got none; chain(clip_norm(1.0), Adam(1e-3))")

    def stages(self, path: str, place: tuple[int, ...] = ()) -> tuple[Stage, ...]:
        """The stages of all the rules in order."""
        return tuple(stage for i, rule in enumerate(self.rules) for stage in rule.stages(path, (*place, i)))

    def parts(self) -> tuple[Rule, ...]:
        """The parts of all the rules."""
        return tuple(part for rule in self.rules for part in rule.parts())

    def adjusted(self, hypers: dict[str, Any]) -> Rule:
        """The chain of the adjusted rules."""
        return chain(*[rule.adjusted(hypers) for rule in self.rules])


class groups(Rule):
    """Different rules for different parameters, by their paths: the first pattern that fits decides.

    ``groups({"*.bias": Descent(0.1), "layer_1.*": Adam(1e-4)}, default=Adam(1e-3))``; patterns as in
    `culux.tree.select`.

    Args:
        rules: pattern -> rule.
        default: the rule for all other parameters.

    Raises:
        LayerError: for something that is no rule.
        EntryError: from `setup`, for a pattern that fits no parameter.
    """

    patterns: tuple[str, ...]
    rules: tuple[Rule, ...]
    default: Rule

    def __init__(self, rules: Mapping[str, Rule], *, default: Rule) -> None:
        if not isinstance(rules, Mapping):
            raise LayerError(f"groups: expected a dict of pattern -> rule, got {describe(rules)}")
        object.__setattr__(self, "patterns", tuple(rules))
        object.__setattr__(self, "rules", tuple(_rule(f"groups at {name!r}", rule) for name, rule in rules.items()))
        object.__setattr__(self, "default", _rule("groups: default", default))

    def __repr__(self) -> str:
        return f"groups({dict(zip(self.patterns, self.rules, strict=True))!r}, default={self.default!r})"

    def stages(self, path: str, place: tuple[int, ...] = ()) -> tuple[Stage, ...]:
        """The stages of the rule whose pattern fits the path."""
        for i, (pattern, rule) in enumerate(zip(self.patterns, self.rules, strict=True)):
            if matches(path, pattern):
                return rule.stages(path, (*place, i))
        return self.default.stages(path, (*place, len(self.rules)))

    def parts(self) -> tuple[Rule, ...]:
        """The parts of all the rules."""
        return tuple(part for rule in (*self.rules, self.default) for part in rule.parts())

    def adjusted(self, hypers: dict[str, Any]) -> Rule:
        """The groups with adjusted rules."""
        adjusted = [rule.adjusted(hypers) for rule in self.rules]
        return groups(dict(zip(self.patterns, adjusted, strict=True)), default=self.default.adjusted(hypers))


class weight_decay(Rule):
    """Coupled weight decay, ``g + coefficient * x``, before a rule in a chain.

    It adds the gradient of ``coefficient |x|^2 / 2``, which is what torch's ``weight_decay=`` does in SGD and
    Adam. `AdamW` has the decoupled form; after a rule, ``chain(Adam(1e-3), weight_decay(1e-5))``, it is decoupled
    from the rule's learning rate too.

    Args:
        coefficient: how strongly parameters are pulled to zero.
    """

    coefficient: Hyper

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The gradient with the decay added; see `Rule.apply`."""
        return d + self.coefficient * x


class clip_value(Rule):
    """Every element of the gradient clipped to ``[-max, max]``.

    Args:
        max: the largest absolute value.
    """

    max: Hyper

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The clipped gradient; see `Rule.apply`."""
        return namespace_of(d).clip(d, -self.max, self.max)


class clip_norm(Rule):
    """The gradient scaled down to a norm of `max`: ``g * min(1, max / (|g| + 1e-6))`` (as torch's clip_grad_norm_).

    The norm is that of all gradients together which the rule gets: the whole tree, or its group.

    Args:
        max: the largest norm.
    """

    max: Hyper
    spans_tree = True

    def measured(self, gradients: Sequence[Array]) -> Rule:
        """The scaling for these gradients, flat arrays of one device."""
        total = sum(namespace_of(d).sum(d * d) for d in gradients)
        xp = namespace_of(gradients[0])
        return _Scale(xp.minimum(self.max / (xp.sqrt(total) + 1e-6), 1.0))


class _Scale(Rule):
    """``factor * g``; the factor is a 0-d array, so that a GPU is not waited for."""

    factor: Array

    def __post_init__(self) -> None:
        """No check: the factor is culux's own."""

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The scaled gradient; see `Rule.apply`."""
        return d * self.factor.astype(d.dtype)


def check_patterns(rule: Rule, paths: Sequence[str]) -> None:
    """Raise an `EntryError` where a pattern of `groups` fits no path."""
    if isinstance(rule, groups):
        for pattern in rule.patterns:
            require_match("groups", pattern, paths)
        children: tuple[Rule, ...] = (*rule.rules, rule.default)
    else:
        children = rule.rules if isinstance(rule, chain) else ()
    for child in children:
        check_patterns(child, paths)


def require_match(owner: str, pattern: str, paths: Sequence[str]) -> list[str]:
    """The paths that a pattern fits; an `EntryError` where there is none."""
    found = [path for path in paths if matches(path, pattern)]
    if not found:
        known = ", ".join(paths) or "none"
        raise EntryError(f"{owner}: no parameter fits {pattern!r}{nearest(pattern, paths)}; the paths are: {known}")
    return found


def _rule(owner: str, value: Any) -> Rule:
    if isinstance(value, Rule):
        return value
    call = "; call it: " + value.__name__ + "(...)" if isinstance(value, type) and issubclass(value, Rule) else ""
    raise LayerError(f"{owner}: expected a rule such as Adam(1e-3), got {describe(value)}{call}")
