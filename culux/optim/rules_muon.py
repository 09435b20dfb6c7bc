"""Muon: momentum whose direction is made orthogonal, for matrices."""

from __future__ import annotations

import math

from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.errors import LayerError, describe
from culux.optim.rules import AdamW, Hyper, Rule

__all__ = ["Muon"]

# A quintic that moves singular values from (0, 1] towards 1, steep at 0 so that few iterations do.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(Rule):
    """Orthogonalised momentum of matrices: ``x <- x - learning_rate * (weight_decay * x + s * U V^T)``.

    ``m <- momentum * m + g``; ``U S V^T`` is the singular value decomposition of ``g + momentum * m``, of which
    ``U V^T`` is found by a Newton-Schulz iteration; ``s = sqrt(max(1, out / in))``. Parameters with another number of
    axes than two take the `fallback`; for embeddings and the last layer, matrices too, give another rule by `groups`.
    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024 (as torch's, but for the iteration's
    precision, which is that of the parameters here and bfloat16 there).

    Args:
        learning_rate: the step length; all singular values of a step are about ``learning_rate * s``.
        momentum: what remains of the last direction.
        weight_decay: how strongly matrices are pulled to zero.
        epsilon: the smallest norm that is divided by.
        fallback: the rule of all other parameters.

    Raises:
        LayerError: for a fallback that is no single rule.
    """

    learning_rate: Hyper = 1e-3
    momentum: Hyper = 0.95
    weight_decay: Hyper = 0.1
    epsilon: Hyper = 1e-7
    fallback: Rule = AdamW()
    whole = True

    def __post_init__(self) -> None:
        rule = self.fallback
        if not isinstance(rule, Rule) or rule.parts() != (rule,) or rule.spans_tree:
            raise LayerError(f"Muon: expected fallback to be one rule such as AdamW(1e-3), got {describe(rule)}")
        object.__setattr__(self, "moments", max(1, rule.moments))
        super().__post_init__()

    def parts(self) -> tuple[Rule, ...]:
        """The rule and its fallback."""
        return self, self.fallback

    def adjusted(self, hypers: dict[str, object]) -> Rule:
        """Both rules with other hyper-parameters."""
        return super().adjusted({"fallback": self.fallback.adjusted(hypers), **hypers})

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        if x.ndim != 2:
            return self.fallback.apply(count, d, x, *moments[: self.fallback.moments])
        m = moments[0]
        m *= self.momentum
        m += d
        scale = math.sqrt(max(1, x.shape[0] / x.shape[1]))
        direction = _orthogonal(d + self.momentum * m, self.epsilon)
        return self.learning_rate * (self.weight_decay * x + scale * direction)


def _orthogonal(matrix: Array, epsilon: float) -> Array:
    """About ``U V^T`` of ``U S V^T``: the iteration moves the singular values to between 0.7 and 1.2."""
    if matrix.shape[0] > matrix.shape[1]:
        return _orthogonal(matrix.T, epsilon).T
    xp = namespace_of(matrix)
    matrix = matrix / xp.maximum(xp.sqrt(xp.sum(matrix * matrix)), epsilon)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = matrix @ matrix.T
        matrix = a * matrix + (b * gram + c * (gram @ gram)) @ matrix
    return matrix
