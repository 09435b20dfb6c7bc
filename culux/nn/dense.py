"""`dense`: the affine map of a Dense layer with its activation, as one operation."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback
from culux.backends import Array
from culux.errors import ShapeError
from culux.nn.activation import Activation, ActivationLike, apply_activation, overwrite
from culux.nn.activations import identity
from culux.nn.fused import column_sum, decompose, evaluate_by_rule, is_plain, narrow, require_float, widen
from culux.numpy.broadcasting import common_namespace, is_half

__all__ = ["dense"]


def dense(x: Array, weight: Array, bias: Array | None = None, *, activation: ActivationLike = identity) -> Array:
    """``y = activation(x @ weight.T + bias)``.

    float16 and bfloat16 accumulate in float32.

    Args:
        x: (..., in_dims), float; one axis at least.
        weight: (out_dims, in_dims).
        bias: (out_dims,) or None.
        activation: a record of `culux.nn`, or any function of an array.

    Returns:
        (..., out_dims).

    Raises:
        ShapeError: for shapes that do not fit.
        DTypeError: for an `x` that is no float array.
    """
    require_float("dense", x)
    shape = weight.shape
    if len(shape) != 2:
        raise ShapeError(f"expected weight of shape (out_dims, in_dims), got {tuple(shape)}")
    if x.ndim == 0 or x.shape[-1] != shape[1]:
        got = x.shape[-1] if x.ndim else "no axis"
        raise ShapeError(f"expected x.shape[-1] == {shape[1]}, got {got} (x has shape {tuple(x.shape)})")
    if bias is not None and bias.shape != shape[:1]:
        raise ShapeError(f"expected bias of shape ({shape[0]},), got {tuple(bias.shape)}")
    return _dense(x, weight, bias, activation=activation)


@primitive(composite=True)
def _dense(x: Array, weight: Array, bias: Array | None, *, activation: ActivationLike) -> Array:
    """The portable form."""
    narrows = is_half(x) and weight.dtype == x.dtype
    xp = common_namespace(x, weight, bias)
    y = xp.reshape(widen(x), (-1, x.shape[-1])) @ widen(weight).T
    if bias is not None:
        y = y + widen(bias)
    y = xp.reshape(apply_activation(activation, y), (*x.shape[:-1], weight.shape[0]))
    return narrow(y, x) if narrows else y


@_dense.rule
def _(
    needs: tuple[bool, ...], x: Array, weight: Array, bias: Array | None, *, activation: ActivationLike
) -> tuple[Array, Pullback]:
    if not (isinstance(activation, Activation) and is_plain(x, weight, bias)):
        return decompose(_dense, needs, (x, weight, bias), {"activation": activation})
    z: np.ndarray = x.reshape(-1, x.shape[-1]) @ weight.T
    if bias is not None:
        z += bias
    y, kept_z, kept_y = overwrite(activation, z)

    def pullback(dy: Array) -> tuple[Any, ...]:
        if type(dy) is not np.ndarray:  # traced: a derivative of this derivative is being taken
            return decompose(_dense, needs, (x, weight, bias), {"activation": activation})[1](dy)
        dz = activation.backward(dy.reshape(y.shape), kept_z, kept_y)
        return (
            (dz @ weight).reshape(x.shape) if needs[0] else None,
            dz.T @ x.reshape(-1, x.shape[-1]) if needs[1] else None,
            column_sum(dz) if needs[2] else None,
        )

    return y.reshape(*x.shape[:-1], len(weight)), pullback


evaluate_by_rule(_dense, "numpy")
