"""Smooth activations, in forms that neither overflow nor cancel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback
from culux.backends import Array
from culux.backends.registry import backend_of, namespace_of
from culux.nn.activation import Activation

_INF = math.inf
_CUDA_SIGMOID = "(x >= T(0) ? T(1) / (T(1) + exp(-x)) : exp(x) / (T(1) + exp(x)))"


def _sigmoid(xp: Any, x: Array) -> Array:
    """``1 / (1 + exp(-x))``, with x bounded to where exp does not overflow."""
    e = xp.clip(x, -88.0 if getattr(x, "dtype", None) == xp.float32 else -700.0, _INF)
    e *= -1
    e = np.exp(e, out=e) if type(e) is np.ndarray else xp.exp(e)
    e += 1
    return 1 / e


# gelu(x) = x (1 + tanh(_GELU_A x + _GELU_B x^3)) / 2
_GELU_A = math.sqrt(2 / math.pi)
_GELU_B = 0.044715 * _GELU_A


class Gelu(Activation):
    """``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))``, the tanh form (Hendrycks & Gimpel 2016)."""

    _tanh = f"tanh(x * (T({_GELU_A}) + T({_GELU_B}) * x * x))"
    _slope = f"x * (T(1) - {_tanh} * {_tanh}) * (T({_GELU_A}) + T({3 * _GELU_B}) * x * x)"
    cuda_forward = f"T(0.5) * x * (T(1) + {_tanh})"
    cuda_derivative = f"T(0.5) * (T(1) + {_tanh} + {_slope})"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        t = x * x
        t *= _GELU_B
        t += _GELU_A
        t *= x
        t = np.tanh(t, out=t) if type(t) is np.ndarray else xp.tanh(t)
        t += 1
        t *= x
        t *= 0.5
        return t

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        square = x * x
        t = xp.tanh(x * (square * _GELU_B + _GELU_A))
        slope = (1 - t * t) * x  # first, so that it is 0 before the next factor is large
        slope *= square * (3 * _GELU_B) + _GELU_A
        slope += t
        slope += 1
        slope *= 0.5
        return slope


@primitive
def erf(x: Array) -> Array:
    """The error function ``2 / sqrt(pi) * int_0^x exp(-t^2) dt``, elementwise; on the CPU SciPy's."""
    from scipy.special import erf as scipy_erf  # `import culux` loads no SciPy

    backend = backend_of(x)
    if backend.name == "numpy":
        return scipy_erf(x)
    return backend.from_host(np.asarray(scipy_erf(backend.to_host(x))), backend.place_of(x).index)


@erf.implementation("cupy")
def _(x: Array) -> Array:
    from cupyx.scipy.special import erf as cupy_erf

    return cupy_erf(x)


@erf.rule
def _(needs: tuple[bool, ...], x: Array) -> tuple[Array, Pullback]:
    return erf(x), lambda dy: (dy * namespace_of(x).exp(-x * x) * (2 / math.sqrt(math.pi)),)


class GeluErf(Activation):
    """``x / 2 * (1 + erf(x / sqrt(2)))``, the exact form (Hendrycks & Gimpel 2016)."""

    name = "gelu_erf"
    cuda_forward = f"T(0.5) * x * (T(1) + erf(x * T({math.sqrt(0.5)})))"
    cuda_derivative = (
        f"T(0.5) * (T(1) + erf(x * T({math.sqrt(0.5)}))) + x * exp(T(-0.5) * x * x) * T({1 / math.sqrt(2 * math.pi)})"
    )

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        y = erf(x * math.sqrt(0.5))
        y += 1
        y *= x
        y *= 0.5
        return y

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        density = xp.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
        return (erf(x * math.sqrt(0.5)) + 1) * 0.5 + x * density


class Swish(Activation):
    """``x * sigmoid(x)``, also called SiLU (Ramachandran et al. 2017)."""

    cuda_forward = f"x * {_CUDA_SIGMOID}"
    cuda_derivative = f"{_CUDA_SIGMOID} * (T(1) + x * (T(1) - {_CUDA_SIGMOID}))"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        y = _sigmoid(xp, x)
        y *= x
        return y

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        s = Sigmoid()(x)
        factor = 1 - s
        factor *= x
        factor += 1
        factor *= s
        return factor


class Mish(Activation):
    """``x * tanh(softplus(x))`` (Misra 2019)."""

    # With u = exp(x) and w = u (u + 2), tanh(softplus(x)) = w / (w + 2), which is 1 from x = 20 on.
    _u = "exp(x < T(20) ? x : T(20))"
    _w = f"({_u} * ({_u} + T(2)))"
    cuda_forward = f"x * ({_w} / ({_w} + T(2)))"
    cuda_derivative = f"{_w} / ({_w} + T(2)) + T(4) * x * ({_u} * ({_u} + T(1)) / ({_w} + T(2))) / ({_w} + T(2))"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        u = xp.exp(xp.clip(x, -_INF, 20))
        w = u + 2
        w *= u
        return x * (w / (w + 2))

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        u = xp.exp(xp.clip(x, -_INF, 20))
        w = u * (u + 2)
        return w / (w + 2) + x * (u * (u + 1) / (w + 2)) * (4 / (w + 2))


class Sigmoid(Activation):
    """``1 / (1 + exp(-x))``."""

    saves = "y"
    cuda_forward = _CUDA_SIGMOID
    cuda_derivative = "y * (T(1) - y)"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return _sigmoid(xp, x)

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        return (1 - y) * y


class LogSigmoid(Activation):
    """``log(sigmoid(x)) = min(x, 0) - log(1 + exp(-|x|))``."""

    saves = "y"
    cuda_forward = "(x < T(0) ? x : x > T(0) ? T(0) : x) - log1p(exp(-fabs(x)))"
    cuda_derivative = "-expm1(y)"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return xp.clip(x, -_INF, 0) - xp.log1p(xp.exp(-xp.abs(x)))

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        return -xp.expm1(y)


class Tanh(Activation):
    """``tanh(x)``."""

    saves = "y"
    cuda_forward = "tanh(x)"
    cuda_derivative = "T(1) - y * y"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return xp.tanh(x)

    def overwrite(self, x: np.ndarray) -> np.ndarray:
        """``f(x)``."""
        np.tanh(x, out=x)
        return x

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        return 1 - y * y


class TanhShrink(Activation):
    """``x - tanh(x)``."""

    cuda_forward = "x - tanh(x)"
    cuda_derivative = "tanh(x) * tanh(x)"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return x - xp.tanh(x)

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        t = xp.tanh(x)
        return t * t


class Softplus(Activation):
    """``log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))``."""

    saves = "y"
    cuda_forward = "(x > T(0) ? x : x < T(0) ? T(0) : x) + log1p(exp(-fabs(x)))"
    cuda_derivative = "-expm1(-y)"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return xp.clip(x, 0, _INF) + xp.log1p(xp.exp(-xp.abs(x)))

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        return -xp.expm1(-y)


class Softsign(Activation):
    """``x / (1 + |x|)``."""

    cuda_forward = "x / (T(1) + fabs(x))"
    cuda_derivative = "T(1) / ((T(1) + fabs(x)) * (T(1) + fabs(x)))"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return x / (xp.abs(x) + 1)

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        slope = 1 / (xp.abs(x) + 1)
        return slope * slope


class Lisht(Activation):
    """``x * tanh(x)`` (Roy et al. 2019)."""

    cuda_forward = "x * tanh(x)"
    cuda_derivative = "tanh(x) + x * (T(1) - tanh(x) * tanh(x))"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        return xp.tanh(x) * x

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        t = xp.tanh(x)
        return t + x * (1 - t * t)


class LogCosh(Activation):
    """``log(cosh(x))``."""

    # log(cosh(x)) = log1p(2 sinh(x / 2)^2); from |x| = 20 on it is |x| plus a constant, to all digits.
    _m = "(fabs(x) > T(20) ? T(20) : fabs(x))"
    cuda_forward = f"log1p(T(2) * sinh(T(0.5) * {_m}) * sinh(T(0.5) * {_m})) + (fabs(x) - {_m})"
    cuda_derivative = "tanh(x)"

    def forward(self, xp: Any, x: Array) -> Array:
        """``f(x)``."""
        size = xp.abs(x)
        small = xp.clip(size, 0, 20)
        s = xp.sinh(small * 0.5)
        s *= s
        s *= 2
        return xp.log1p(s) + (size - small)

    def derivative(self, xp: Any, x: Array, y: Array) -> Array:
        """``f'(x)``."""
        return xp.tanh(x)
