"""Update rules that scale every element's step by its gradients so far: Adam's relatives and those before it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.optim.rules import Adam, Hyper, RMSProp, Rule

__all__ = [
    "AMSGrad",
    "AdaBelief",
    "AdaDelta",
    "AdaGrad",
    "AdaMax",
    "CentredRMSProp",
    "NAdam",
    "OAdam",
    "RAdam",
    "Rprop",
]


class CentredRMSProp(RMSProp):
    """RMSProp by the variance: ``x <- x - learning_rate * g / (sqrt(v - m^2) + epsilon)``.

    ``v <- alpha * v + (1 - alpha) * g^2`` and ``m <- alpha * m + (1 - alpha) * g`` (as torch's RMSprop with
    ``centered=True``). Graves, "Generating sequences with recurrent neural networks", 2013.

    Args:
        learning_rate: the step length.
        alpha: what remains of the means.
        epsilon: keeps the quotient finite.
    """

    moments = 2

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        v, m = moments
        v *= self.alpha
        v += (1 - self.alpha) * d * d
        m *= self.alpha
        m += (1 - self.alpha) * d
        xp = namespace_of(v)
        variance = xp.maximum(v - m * m, 0)  # never below 0 but by rounding
        return self.learning_rate * d / (xp.sqrt(variance) + self.epsilon)


class AdaGrad(Rule):
    """Steps that shrink with all gradients: ``v <- v + g^2``, ``x <- x - learning_rate * g / (sqrt(v) + epsilon)``.

    Duchi et al., "Adaptive subgradient methods for online learning and stochastic optimization", 2011 (as torch's).

    Args:
        learning_rate: the step length.
        epsilon: keeps the quotient finite.
    """

    learning_rate: Hyper = 1e-2
    epsilon: Hyper = 1e-10
    moments = 1

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        (v,) = moments
        v += d * d
        return self.learning_rate * d / (namespace_of(v).sqrt(v) + self.epsilon)


class AdaDelta(Rule):
    """Steps in the unit of the parameters: ``x <- x - learning_rate * s``, ``s = g * sqrt(u + eps) / sqrt(v + eps)``.

    ``v <- rho * v + (1 - rho) * g^2`` before, and ``u <- rho * u + (1 - rho) * s^2`` after. Zeiler, "ADADELTA: an
    adaptive learning rate method", 2012, which has no learning rate (as torch's).

    Args:
        learning_rate: a factor on the step.
        rho: what remains of the mean squares.
        epsilon: keeps the quotient finite, and the first steps from being 0.
    """

    learning_rate: Hyper = 1.0
    rho: Hyper = 0.9
    epsilon: Hyper = 1e-6
    moments = 2

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        v, u = moments
        v *= self.rho
        v += (1 - self.rho) * d * d
        xp = namespace_of(v)
        step = d * (xp.sqrt(u + self.epsilon) / xp.sqrt(v + self.epsilon))
        u *= self.rho
        u += (1 - self.rho) * step * step
        return self.learning_rate * step


class Rprop(Rule):
    """Steps by sign, longer while the sign stays: ``x <- x - s * sign(g)``, with a step length ``s`` per element.

    Where the gradient keeps its sign ``s <- min(etas[1] * s, step_sizes[1])``; where it changes
    ``s <- max(etas[0] * s, step_sizes[0])`` and the element waits for one update. For gradients of the whole data.
    Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning", 1993 (as torch's).

    Args:
        learning_rate: the first step length.
        etas: the factors where the sign changes, and where it stays.
        step_sizes: the smallest and the largest step length.
    """

    learning_rate: Hyper = 1e-2
    etas: tuple[Hyper, Hyper] = (0.5, 1.2)
    step_sizes: tuple[Hyper, Hyper] = (1e-6, 50.0)
    moments = 2

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        last, length = moments
        xp = namespace_of(d)
        if count == 1:
            length[...] = self.learning_rate
        same = xp.sign(d * last)
        length *= xp.where(same > 0, self.etas[1], xp.where(same < 0, self.etas[0], 1)).astype(length.dtype)
        xp.clip(length, *self.step_sizes, out=length)
        last[...] = xp.where(same < 0, 0, d)
        return length * xp.sign(last)


class AMSGrad(Adam):
    """Adam with the largest second moment so far: ``x <- x - learning_rate * m' / (sqrt(max(v)') + epsilon)``.

    Both are corrected as Adam's (as torch's with ``amsgrad=True``). Reddi et al., "On the convergence of Adam and
    beyond", 2018.

    Args:
        learning_rate: the step length.
        betas: what remains of the first and of the second moment.
        epsilon: keeps the quotient finite.
    """

    moments = 3

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        m, v, largest = moments
        _move(m, v, d, self.betas)
        xp = namespace_of(v)
        xp.maximum(largest, v, out=largest)
        rate, epsilon = self.corrected(count)
        return rate * m / (xp.sqrt(largest) + epsilon)


class AdaMax(Rule):
    """Adam by the maximum norm: ``x <- x - learning_rate / (1 - b1^t) * m / u``, ``u <- max(b2 u, |g| + epsilon)``.

    ``m <- b1 m + (1 - b1) g``. Kingma and Ba, "Adam: a method for stochastic optimization", 2015 (as torch's Adamax).

    Args:
        learning_rate: the step length.
        betas: what remains of the first moment and of the norm.
        epsilon: keeps the quotient finite.
    """

    learning_rate: Hyper = 2e-3
    betas: tuple[Hyper, Hyper] = (0.9, 0.999)
    epsilon: Hyper = 1e-8
    moments = 2

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        m, u = moments
        beta1, beta2 = self.betas
        m *= beta1
        m += (1 - beta1) * d
        u *= beta2
        xp = namespace_of(u)
        xp.maximum(u, xp.abs(d) + self.epsilon, out=u)
        return self.learning_rate / (1 - beta1**count) * m / u


class NAdam(Rule):
    """Adam with Nesterov's momentum, ``m' = mu_{t+1} m / (1 - P_{t+1}) + (1 - mu_t) g / (1 - P_t)``.

    ``mu_t = b1 * (1 - 0.96^(t * momentum_decay) / 2)``, and ``P_t`` is the product of the first t of them; otherwise
    as `Adam`. Dozat, "Incorporating Nesterov momentum into Adam", 2016 (as torch's).

    Args:
        learning_rate: the step length.
        betas: what remains of the first and of the second moment.
        epsilon: keeps the quotient finite.
        momentum_decay: how fast ``mu`` comes to b1.
    """

    learning_rate: Hyper = 2e-3
    betas: tuple[Hyper, Hyper] = (0.9, 0.999)
    epsilon: Hyper = 1e-8
    momentum_decay: Hyper = 4e-3
    moments = 2

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        m, v = moments
        _move(m, v, d, self.betas)
        beta1, beta2 = self.betas
        # Behind this count the product is below the rounding of 1 - product.
        last = min(count, math.ceil(40 / -math.log(beta1))) if beta1 else 1
        product = float(np.prod(self._mu(np.arange(1, last + 1))))
        mu, after = self._mu(count), self._mu(count + 1)
        direction = (after / (1 - product * after)) * m + ((1 - mu) / (1 - product)) * d
        root = namespace_of(v).sqrt(v / (1 - beta2**count))
        return self.learning_rate * direction / (root + self.epsilon)

    def _mu(self, count: Any) -> Any:
        return self.betas[0] * (1 - 0.5 * 0.96 ** (count * self.momentum_decay))


class RAdam(Adam):
    """Adam whose first steps are those of momentum, until the variance of ``1 / sqrt(v)`` is known, and then rectified.

    With ``r = 2 / (1 - b2) - 1`` and ``r_t = r - 2 t b2^t / (1 - b2^t)`` Adam's step times
    ``sqrt((r_t - 4)(r_t - 2) r / ((r - 4)(r - 2) r_t))`` where ``r_t > 5``, else ``learning_rate * m'``. Liu et al.,
    "On the variance of the adaptive learning rate and beyond", 2020 (as torch's).

    Args:
        learning_rate: the step length.
        betas: what remains of the first and of the second moment.
        epsilon: keeps the quotient finite.
    """

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        m, v = moments
        _move(m, v, d, self.betas)
        beta1, beta2 = self.betas
        most = 2 / (1 - beta2) - 1
        now = most - 2 * count * beta2**count / (1 - beta2**count)
        rate = self.learning_rate / (1 - beta1**count)
        if now <= 5:
            return rate * m
        rate *= math.sqrt((now - 4) * (now - 2) * most / ((most - 4) * (most - 2) * now) * (1 - beta2**count))
        return rate * m / (namespace_of(v).sqrt(v) + self.epsilon)


class OAdam(Adam):
    """Optimistic Adam: ``x <- x - 2 s_t + s_{t-1}``, where ``s`` are Adam's steps; for games such as GANs.

    Daskalakis et al., "Training GANs with optimism", 2018.

    Args:
        learning_rate: the step length.
        betas: what remains of the first and of the second moment.
        epsilon: keeps the quotient finite.
    """

    betas: tuple[Hyper, Hyper] = (0.5, 0.9)
    moments = 3

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        m, v, last = moments
        step = super().apply(count, d, x, m, v)
        optimistic = 2 * step - last
        last[...] = step
        return optimistic


class AdaBelief(Adam):
    """Adam by how far gradients are from their mean: ``x <- x - learning_rate * m' / (sqrt(s') + epsilon)``.

    ``m <- b1 m + (1 - b1) g`` and ``s <- b2 s + (1 - b2) (g - m)^2 + epsilon``, corrected as Adam's. Zhuang et al.,
    "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients", 2020.

    Args:
        learning_rate: the step length.
        betas: what remains of the first and of the second moment.
        epsilon: keeps the quotient finite.
    """

    def apply(self, count: int, d: Array, x: Array, *moments: Array) -> Array:
        """The step; see `Rule.apply`."""
        m, s = moments
        beta1, beta2 = self.betas
        m *= beta1
        m += (1 - beta1) * d
        s *= beta2
        s += (1 - beta2) * (d - m) ** 2 + self.epsilon
        rate, epsilon = self.corrected(count)
        return rate * m / (namespace_of(s).sqrt(s) + epsilon)


def _move(m: Array, v: Array, d: Array, betas: tuple[float, float]) -> None:
    """Adam's moments with the next gradient, in place."""
    beta1, beta2 = betas
    m *= beta1
    m += (1 - beta1) * d
    v *= beta2
    v += (1 - beta2) * d * d
