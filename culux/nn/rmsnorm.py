"""`rmsnorm`: division by the root mean square over the trailing axes with its activation, as one operation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback
from culux.backends import Array
from culux.kernels import ActivationCode, contiguous, rownorm
from culux.nn.activation import Activation, ActivationLike, apply_activation, code_of, overwrite
from culux.nn.activations import identity
from culux.nn.fused import column_sum, decompose, evaluate_by_rule, is_plain, narrow, on_kernels, widen
from culux.nn.layernorm import check_trailing_axes
from culux.numpy.broadcasting import common_namespace

__all__ = ["rmsnorm"]


def rmsnorm(
    x: Array,
    scale: Array | None,
    *,
    ndim: int,
    epsilon: float | None = None,
    activation: ActivationLike = identity,
) -> Array:
    """``y = activation(x / sqrt(mean(x**2) + epsilon) * scale)``, the mean over the trailing axes.

    The mean of float16 and bfloat16 is taken in float32. (Zhang & Sennrich, "Root mean square layer
    normalization", 2019.)

    Args:
        x: (..., *normalised), float.
        scale: of the shape of the normalised axes, or None for 1.
        ndim: how many trailing axes are normalised, at least 1.
        epsilon: added to the mean square; None for the machine epsilon of what is computed in, as torch has it:
            2**-52 for float64, 2**-23 for float32 and below.
        activation: a record of `culux.nn`, or any function of an array.

    Returns:
        y of the shape of `x`.

    Raises:
        ShapeError: for shapes that do not fit.
        DTypeError: for an `x` that is no float array.
    """
    check_trailing_axes("rmsnorm", x, ndim, scale=scale)
    if epsilon is None:
        epsilon = 2.0**-52 if str(x.dtype).endswith("float64") else 2.0**-23
    return _rmsnorm(x, scale, ndim=ndim, epsilon=epsilon, activation=activation)


@primitive(composite=True)
def _rmsnorm(x: Array, scale: Array | None, *, ndim: int, epsilon: float, activation: ActivationLike) -> Array:
    """The portable form."""
    wide = widen(x)
    xp = common_namespace(x, scale)
    axes = tuple(range(x.ndim - ndim, x.ndim))
    y = wide / xp.sqrt(xp.mean(wide * wide, axis=axes, keepdims=True) + epsilon)
    y = y if scale is None else y * widen(scale)
    return narrow(apply_activation(activation, y), x)


@_rmsnorm.rule
def _(
    needs: tuple[bool, ...], x: Array, scale: Array | None, *, ndim: int, epsilon: float, activation: ActivationLike
) -> tuple[Array, Pullback]:
    static = {"ndim": ndim, "epsilon": epsilon, "activation": activation}
    size = math.prod(x.shape[x.ndim - ndim :])
    code = code_of(activation)
    if code is not None and on_kernels(x, scale):
        y, pullback = _on_gpu(needs, x, scale, size, epsilon, code)
    elif isinstance(activation, Activation) and is_plain(x, scale):
        y, pullback = _on_host(needs, x, scale, size, epsilon, activation)
    else:
        return decompose(_rmsnorm, needs, (x, scale), static)

    def differentiable(dy: Any) -> tuple[Any, ...]:
        if type(dy) is not type(y):  # traced: a derivative of this derivative is being taken
            return decompose(_rmsnorm, needs, (x, scale), static)[1](dy)
        return pullback(dy)

    return y, differentiable


def _on_gpu(
    needs: tuple[bool, ...], x: Array, scale: Array | None, size: int, epsilon: float, code: ActivationCode
) -> tuple[Array, Pullback]:
    x = contiguous(x)
    y, _, inverse = rownorm.forward(
        x, scale, None, size=size, epsilon=epsilon, centred=False, code=code, statistics=any(needs)
    )

    def pullback(dy: Array) -> tuple[Array | None, ...]:
        return rownorm.backward(
            dy, x, scale, None, None, inverse, size=size, code=code, needs=(*needs, False)
        )[:2]  # fmt: skip

    return y, pullback


def _on_host(
    needs: tuple[bool, ...], x: np.ndarray, scale: np.ndarray | None, size: int, epsilon: float, activation: Activation
) -> tuple[np.ndarray, Pullback]:
    rows = x.reshape(-1, size)
    gains = None if scale is None else scale.reshape(-1)
    inverse = 1 / np.sqrt(np.vecdot(rows, rows)[:, None] / size + epsilon)
    xhat = rows * inverse
    y, kept_z, kept_y = overwrite(activation, xhat.copy() if gains is None else xhat * gains)

    def pullback(dy: np.ndarray) -> tuple[np.ndarray | None, ...]:
        dz = activation.backward(dy.reshape(rows.shape), kept_z, kept_y)
        dscale = column_sum(dz * xhat).reshape(scale.shape) if needs[1] and scale is not None else None
        if not needs[0]:
            return None, dscale
        # With g = dz * scale: dx = inverse * (g - xhat * mean(g * xhat)).
        g = dz if gains is None else dz * gains
        dx = xhat * (np.vecdot(g, xhat)[:, None] / -size)
        dx += g
        dx *= inverse
        return dx.reshape(x.shape), dscale

    return y.reshape(x.shape), pullback


evaluate_by_rule(_rmsnorm, "numpy", "cupy")
