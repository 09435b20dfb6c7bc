"""Activations that are linear, or an exponential, in pieces.

Where the function has a kink the derivative is torch's. NumPy's ``clip`` between floats takes a third of the
time of ``maximum`` with a scalar, so it stands in for it; like ``maximum`` it keeps NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.errors import LayerError
from culux.nn.activation import Activation

_INF = math.inf


def _as_float(mask: Array, like: Array) -> Array:
    """A mask as zeros and ones in the dtype of `like`: NumPy multiplies by those faster than by booleans."""
    return namespace_of(mask).asarray(mask, dtype=getattr(like, "dtype", float))


class Identity(Activation):
    """``x``."""

    saves = None
    cuda_forward = "x"
    cuda_derivative = "T(1)"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``, which is `x` itself."""
        return x

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        return 1


class Relu(Activation):
    """``max(x, 0)``; the derivative at 0 is 0."""

    saves = "y"
    cuda_forward = "x < T(0) ? T(0) : x"
    cuda_derivative = "y > T(0) ? T(1) : T(0)"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return xp.clip(x, 0, _INF)

    def overwrite(self, x: np.ndarray) -> np.ndarray:
        """``f(x)``."""
        return x.clip(0, _INF, out=x)

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        return _as_float(y > 0, y)


class Relu6(Activation):
    """``min(max(x, 0), 6)``; the derivative at 0 and 6 is 0."""

    saves = "y"
    cuda_forward = "x < T(0) ? T(0) : x > T(6) ? T(6) : x"
    cuda_derivative = "y > T(0) && y < T(6) ? T(1) : T(0)"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return xp.clip(x, 0, 6)

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        return _as_float((y > 0) & (y < 6), y)


def _require_positive(activation: Activation, **parameters: float) -> None:
    """The derivative tells the sign of x by that of y: parameters must not turn it."""
    for name, value in parameters.items():
        if not 0 <= value < _INF:
            raise LayerError(f"{type(activation).__name__}: expected a finite {name} >= 0, got {value}")


@dataclass(frozen=True, repr=False)
class LeakyRelu(Activation):
    """``x`` where x > 0, else ``slope * x``; the derivative at 0 is `slope`."""

    slope: float = 0.01
    saves = "y"
    cuda_forward = "x > T(0) ? x : {slope} * x"
    cuda_derivative = "y > T(0) ? T(1) : {slope}"

    def __post_init__(self) -> None:
        _require_positive(self, slope=self.slope)

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return (xp.maximum if self.slope <= 1 else xp.minimum)(x, x * self.slope)

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        factor = _as_float(y > 0, y)
        factor *= 1 - self.slope
        factor += self.slope
        return factor


def _exponential(xp: Any, x: Array, alpha: float, scale: float) -> Array:
    """``max(x, 0) + alpha * (exp(min(x, 0) / scale) - 1)``."""
    t = xp.clip(x, -_INF, 0)
    if scale != 1:
        t /= scale
    t = xp.expm1(t)
    if alpha != 1:
        t *= alpha
    t += xp.clip(x, 0, _INF)
    return t


@dataclass(frozen=True, repr=False)
class Elu(Activation):
    """``x`` where x > 0, else ``alpha * (exp(x) - 1)`` (Clevert et al. 2016)."""

    alpha: float = 1.0
    saves = "y"
    cuda_forward = "x > T(0) ? x : {alpha} * expm1(x)"
    cuda_derivative = "y > T(0) ? T(1) : y + {alpha}"

    def __post_init__(self) -> None:
        _require_positive(self, alpha=self.alpha)

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return _exponential(xp, x, self.alpha, 1)

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        factor = xp.clip(y, -_INF, 0) + self.alpha
        return factor if self.alpha == 1 else factor + _as_float(y > 0, y) * (1 - self.alpha)


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


class Selu(Activation):
    """``1.0507 * elu(x, alpha=1.6733)``, which keeps mean 0 and variance 1 (Klambauer et al. 2017)."""

    saves = "y"
    cuda_forward = f"x > T(0) ? T({_SELU_SCALE}) * x : T({_SELU_SCALE * _SELU_ALPHA}) * expm1(x)"
    cuda_derivative = f"y > T(0) ? T({_SELU_SCALE}) : y + T({_SELU_SCALE * _SELU_ALPHA})"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        y = _exponential(xp, x, _SELU_ALPHA, 1)
        y *= _SELU_SCALE
        return y

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        low = _SELU_SCALE * _SELU_ALPHA
        return xp.clip(y, -_INF, 0) + low + _as_float(y > 0, y) * (_SELU_SCALE - low)


@dataclass(frozen=True, repr=False)
class Celu(Activation):
    """``x`` where x > 0, else ``alpha * (exp(x / alpha) - 1)`` (Barron 2017)."""

    alpha: float = 1.0
    saves = "y"
    cuda_forward = "x > T(0) ? x : {alpha} * expm1(x / {alpha})"
    cuda_derivative = "y > T(0) ? T(1) : y / {alpha} + T(1)"

    def __post_init__(self) -> None:
        _require_positive(self, alpha=self.alpha)
        if self.alpha == 0:
            raise LayerError("Celu: expected alpha > 0, got 0")

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return _exponential(xp, x, self.alpha, self.alpha)

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        return xp.clip(y, -_INF, 0) / self.alpha + 1


class HardSwish(Activation):
    """``x * min(max(x / 6 + 1 / 2, 0), 1)`` (Howard et al. 2019)."""

    cuda_forward = "x <= T(-3) ? T(0) : x >= T(3) ? x : x * (x / T(6) + T(0.5))"
    cuda_derivative = "x <= T(-3) ? T(0) : x >= T(3) ? T(1) : x / T(3) + T(0.5)"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        y = xp.clip(x / 6 + 0.5, 0, 1)
        y *= x
        return y

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        inside = xp.clip(x, -3, 3) / 3 + 0.5
        return inside * _as_float((x > -3) & (x < 3), x) + _as_float(x >= 3, x)


class HardSigmoid(Activation):
    """``min(max(x / 6 + 1 / 2, 0), 1)``; the derivative at -3 and 3 is 0."""

    saves = "y"
    cuda_forward = "x <= T(-3) ? T(0) : x >= T(3) ? T(1) : x / T(6) + T(0.5)"
    cuda_derivative = "y > T(0) && y < T(1) ? T(1) / T(6) : T(0)"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return xp.clip(x / 6 + 0.5, 0, 1)

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        return _as_float((y > 0) & (y < 1), y) / 6


class HardTanh(Activation):
    """``min(max(x, -1), 1)``; the derivative at -1 and 1 is 0."""

    saves = "y"
    cuda_forward = "x < T(-1) ? T(-1) : x > T(1) ? T(1) : x"
    cuda_derivative = "y > T(-1) && y < T(1) ? T(1) : T(0)"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return xp.clip(x, -1, 1)

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        return _as_float((y > -1) & (y < 1), y)


@dataclass(frozen=True, repr=False)
class SoftShrink(Activation):
    """``x - threshold`` where x > threshold, ``x + threshold`` where x < -threshold, else 0."""

    threshold: float = 0.5
    saves = "y"
    cuda_forward = "x > {threshold} ? x - {threshold} : x < -{threshold} ? x + {threshold} : x * T(0)"
    cuda_derivative = "y != T(0) ? T(1) : T(0)"

    def __post_init__(self) -> None:
        _require_positive(self, threshold=self.threshold)

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return x - xp.clip(x, -self.threshold, self.threshold)

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        return _as_float(y != 0, y)


@dataclass(frozen=True, repr=False)
class Trelu(Activation):
    """``x`` where x > threshold, else 0 (Konda et al. 2014)."""

    threshold: float = 1.0
    saves = "y"
    cuda_forward = "x <= {threshold} ? T(0) : x"
    cuda_derivative = "y > T(0) ? T(1) : T(0)"

    def __post_init__(self) -> None:
        _require_positive(self, threshold=self.threshold)

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return xp.where(x <= self.threshold, 0, x)  # a product would make NaN of -inf

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        return _as_float(y > 0, y)
