"""`dense`: the affine map of a Dense layer with its activation, as one operation."""

from __future__ import annotations

from typing import Any, NoReturn

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
    if len(shape) != 2 or x.shape[-1:] != shape[1:] or (bias is not None and bias.shape != shape[:1]):
        _explain_misfit(x, weight, bias)
    return _dense(x, weight, bias, activation=activation)


def _explain_misfit(x: Array, weight: Array, bias: Array | None) -> NoReturn:
    shape = weight.shape
    if len(shape) != 2:
        raise ShapeError(f"expected weight of shape (out_dims, in_dims), got {tuple(shape)}")
    if x.shape[-1:] != shape[1:]:
        got = x.shape[-1] if x.ndim else "no axis"
        raise ShapeError(f"expected x.shape[-1] == {shape[1]}, got {got} (x has shape {tuple(x.shape)})")
    raise ShapeError(f"expected bias of shape ({shape[0]},), got {() if bias is None else tuple(bias.shape)}")


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
    rows = x.reshape(-1, x.shape[-1])
    z: np.ndarray = rows @ weight.T
    if bias is not None:
        z += bias
    y, kept_z, kept_y = overwrite(activation, z)
    shape = y.shape  # the pullback holds no array that it does not read

    def pullback(dy: Array) -> tuple[Any, ...]:
        if type(dy) is not np.ndarray:  # traced: a derivative of this derivative is being taken
            return decompose(_dense, needs, (x, weight, bias), {"activation": activation})[1](dy)
        dz = activation.backward(dy.reshape(shape), kept_z, kept_y)
        return (
            (dz @ weight).reshape(x.shape) if needs[0] else None,
            dz.T @ rows if needs[1] else None,
            column_sum(dz) if needs[2] else None,
        )

    return y.reshape(*x.shape[:-1], len(weight)), pullback


evaluate_by_rule(_dense, "numpy")
