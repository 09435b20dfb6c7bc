"""`dense`: the affine map of a Dense layer with its activation, as one operation."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback
from culux.backends import Array
from culux.errors import ShapeError
from culux.kernels import ActivationCode, contiguous
from culux.kernels import dense as kernels
from culux.nn.activation import Activation, ActivationLike, apply_activation, overwrite
from culux.nn.activations import gelu, identity, relu
from culux.nn.fused import column_sum, decompose, evaluate_by_rule, is_plain, narrow, on_kernels, require_float, widen
from culux.numpy.broadcasting import common_namespace, is_half

__all__ = ["dense"]

_IN_LIBRARY: dict[type, kernels.LibraryActivation] = {type(relu): "relu", type(gelu): "gelu"}  # its names for them


def dense(x: Array, weight: Array, bias: Array | None = None, *, activation: ActivationLike = identity) -> Array:
    """``y = activation(x @ weight.T + bias)``.

    float16 and bfloat16 accumulate in float32. On a GPU, arrays of one dtype are computed by fused kernels, for which
    strided arrays are copied; small products are one launch, and so are their gradients.

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
    y = xp.reshape(widen(x), (math.prod(x.shape[:-1]), x.shape[-1])) @ widen(weight).T
    if bias is not None:
        y = y + widen(bias)
    y = xp.reshape(apply_activation(activation, y), (*x.shape[:-1], weight.shape[0]))
    return narrow(y, x) if narrows else y


@_dense.rule
def _(
    needs: tuple[bool, ...], x: Array, weight: Array, bias: Array | None, *, activation: ActivationLike
) -> tuple[Array, Pullback]:
    if isinstance(activation, Activation):
        if is_plain(x, weight, bias):
            return _by_numpy(needs, x, weight, bias, activation)
        code = activation.cuda()
        if code is not None and on_kernels(x, weight, bias) and weight.dtype == x.dtype:
            return _by_kernels(needs, x, weight, bias, activation, code)
    return decompose(_dense, needs, (x, weight, bias), {"activation": activation})


def _by_numpy(
    needs: tuple[bool, ...], x: Array, weight: Array, bias: Array | None, activation: Activation
) -> tuple[Array, Pullback]:
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
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


def _by_kernels(
    needs: tuple[bool, ...], x: Array, weight: Array, bias: Array | None, activation: Activation, code: ActivationCode
) -> tuple[Array, Pullback]:
    rows, factors = _matrix(x), contiguous(weight)
    shift = None if bias is None else contiguous(bias)
    keep = True in needs
    y, saved = kernels.forward(rows, factors, shift, code, keep=keep, library=_IN_LIBRARY.get(type(activation)))
    # Copies of strided arrays are kept only where the pullback reads them.
    kept_rows, kept_factors = rows if needs[1] else None, factors if needs[0] else None

    def pullback(dy: Array) -> tuple[Any, ...]:
        if not on_kernels(dy):  # traced: a derivative of this derivative is being taken
            return decompose(_dense, needs, (x, weight, bias), {"activation": activation})[1](dy)
        dx, dweight, dbias = kernels.backward(_matrix(dy), saved, kept_rows, kept_factors, code, needs=needs)
        return dx if dx is None or x.ndim == 2 else dx.reshape(x.shape), dweight, dbias

    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], weight.shape[0]), pullback


def _matrix(x: Array) -> Array:
    """An array of any leading axes as a matrix in row-major order."""
    x = contiguous(x)
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


evaluate_by_rule(_dense, "numpy", "cupy")
