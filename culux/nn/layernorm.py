"""`layernorm`: normalisation over the trailing axes with its activation, as one operation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback
from culux.backends import Array
from culux.errors import ShapeError
from culux.kernels import ActivationCode, contiguous, rownorm
from culux.nn.activation import Activation, ActivationLike, apply_activation, code_of, overwrite
from culux.nn.activations import identity
from culux.nn.fused import column_sum, decompose, evaluate_by_rule, is_plain, narrow, on_kernels, require_float, widen
from culux.numpy.broadcasting import common_namespace

__all__ = ["layernorm"]


def layernorm(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    *,
    ndim: int,
    epsilon: float = 1e-5,
    activation: ActivationLike = identity,
) -> Array:
    """``y = activation((x - mean) / sqrt(var + epsilon) * scale + bias)``, mean and var over the trailing axes.

    The variance is the biased one; statistics of float16 and bfloat16 are taken in float32. (Ba, Kiros &
    Hinton, "Layer normalization", 2016.)

    Args:
        x: (..., *normalised), float.
        scale: of the shape of the normalised axes, or None for 1.
        bias: of the shape of the normalised axes, or None for 0.
        ndim: how many trailing axes are normalised, at least 1.
        epsilon: added to the variance.
        activation: a record of `culux.nn`, or any function of an array.

    Returns:
        y of the shape of `x`.

    Raises:
        ShapeError: for shapes that do not fit.
        DTypeError: for an `x` that is no float array.
    """
    check_trailing_axes("layernorm", x, ndim, scale=scale, bias=bias)
    return _layernorm(x, scale, bias, ndim=ndim, epsilon=epsilon, activation=activation)


def check_trailing_axes(function: str, x: Array, ndim: int, **parameters: Array | None) -> None:
    """Raise where `x` is no float array or has not `ndim` axes, or a parameter is not of the shape of the last."""
    require_float(function, x)
    if not 1 <= ndim <= x.ndim:
        raise ShapeError(f"expected ndim from 1 to {x.ndim}, got {ndim} (x has shape {tuple(x.shape)})")
    trailing = tuple(x.shape[x.ndim - ndim :])
    for name, array in parameters.items():
        if array is not None and tuple(array.shape) != trailing:
            raise ShapeError(
                f"expected {name} of shape {trailing}, got {tuple(array.shape)} (x has shape {tuple(x.shape)})"
            )


@primitive(composite=True)
def _layernorm(
    x: Array, scale: Array | None, bias: Array | None, *, ndim: int, epsilon: float, activation: ActivationLike
) -> Array:
    """The portable form."""
    wide = widen(x)
    xp = common_namespace(x, scale, bias)
    axes = tuple(range(x.ndim - ndim, x.ndim))
    centred = wide - xp.mean(wide, axis=axes, keepdims=True)
    y = centred / xp.sqrt(xp.mean(centred * centred, axis=axes, keepdims=True) + epsilon)
    y = y if scale is None else y * widen(scale)
    y = y if bias is None else y + widen(bias)
    return narrow(apply_activation(activation, y), x)


@_layernorm.rule
def _(
    needs: tuple[bool, ...], x: Array, scale: Array | None, bias: Array | None, *, ndim: int, epsilon: float,
    activation: ActivationLike,
) -> tuple[Array, Pullback]:  # fmt: skip
    static = {"ndim": ndim, "epsilon": epsilon, "activation": activation}
    size = math.prod(x.shape[x.ndim - ndim :])
    code = code_of(activation)
    if code is not None and on_kernels(x, scale, bias):
        y, pullback = _on_gpu(needs, x, scale, bias, size, epsilon, code)
    elif isinstance(activation, Activation) and is_plain(x, scale, bias):
        y, pullback = _on_host(needs, x, scale, bias, size, epsilon, activation)
    else:
        return decompose(_layernorm, needs, (x, scale, bias), static)

    def differentiable(dy: Any) -> tuple[Any, ...]:
        if type(dy) is not type(y):  # traced: a derivative of this derivative is being taken
            return decompose(_layernorm, needs, (x, scale, bias), static)[1](dy)
        return pullback(dy)

    return y, differentiable


def _on_gpu(
    needs: tuple[bool, ...], x: Array, scale: Array | None, bias: Array | None, size: int, epsilon: float,
    code: ActivationCode,
) -> tuple[Array, Pullback]:  # fmt: skip
    x = contiguous(x)
    y, mean, inverse = rownorm.forward(
        x, scale, bias, size=size, epsilon=epsilon, centred=True, code=code, statistics=any(needs)
    )

    def pullback(dy: Array) -> tuple[Array | None, ...]:
        return rownorm.backward(dy, x, scale, bias, mean, inverse, size=size, code=code, needs=needs)

    return y, pullback


def _on_host(
    needs: tuple[bool, ...], x: np.ndarray, scale: np.ndarray | None, bias: np.ndarray | None, size: int,
    epsilon: float, activation: Activation,
) -> tuple[np.ndarray, Pullback]:  # fmt: skip
    rows = x.reshape(-1, size)
    # Products with these take a third of the time of mean(1).
    weights = np.full((size, 1), 1 / size, x.dtype)
    gains = None if scale is None else scale.reshape(-1)
    xhat = rows - rows @ weights
    inverse = 1 / np.sqrt(np.vecdot(xhat, xhat)[:, None] / size + epsilon)
    xhat *= inverse
    z = xhat.copy() if gains is None else xhat * gains
    if bias is not None:
        z += bias.reshape(-1)
    y, kept_z, kept_y = overwrite(activation, z)

    def pullback(dy: np.ndarray) -> tuple[np.ndarray | None, ...]:
        dz = activation.backward(dy.reshape(rows.shape), kept_z, kept_y)
        product = dz * xhat
        dscale = column_sum(product).reshape(scale.shape) if needs[1] and scale is not None else None
        dbias = column_sum(dz).reshape(bias.shape) if needs[2] and bias is not None else None
        if not needs[0]:
            return None, dscale, dbias
        # With g = dz * scale: dx = inverse * (g - mean(g) - xhat * mean(g * xhat)).
        weighted = weights if gains is None else weights * gains[:, None]
        along = product @ weighted
        dx = np.multiply(xhat, along, out=product)
        dx += dz @ weighted
        np.subtract(dz if gains is None else dz * gains, dx, out=dx)
        dx *= inverse
        return dx.reshape(x.shape), dscale, dbias

    return y.reshape(x.shape), pullback


evaluate_by_rule(_layernorm, "numpy", "cupy")
