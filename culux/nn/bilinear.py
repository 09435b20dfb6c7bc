"""`bilinear`: a product of two inputs with a weight for every pair of their features."""

from __future__ import annotations

from culux.backends import Array
from culux.errors import ShapeError
from culux.nn.activation import ActivationLike, apply_activation
from culux.nn.activations import identity
from culux.nn.fused import narrow, require_float, widen
from culux.numpy.broadcasting import common_namespace

__all__ = ["bilinear"]


def bilinear(
    x: Array, y: Array, weight: Array, bias: Array | None = None, *, activation: ActivationLike = identity
) -> Array:
    """``z[..., o] = activation(sum_ij x[..., i] * weight[o, i, j] * y[..., j] + bias[o])``.

    float16 and bfloat16 are summed in float32.

    Args:
        x: (..., in1), float.
        y: (..., in2), the leading axes those of `x`.
        weight: (out, in1, in2).
        bias: (out,) or None for 0.
        activation: a record of `culux.nn`, or any function of an array.

    Returns:
        z (..., out), of the dtype of `x`.

    Raises:
        ShapeError: for shapes that do not fit.
        DTypeError: for an `x` or `y` that is no float array.
    """
    require_float("bilinear", x)
    require_float("bilinear", y, "y")
    out, first, second = weight.shape
    lead = tuple(x.shape[:-1])
    if (*x.shape[-1:], *y.shape[-1:]) != (first, second) or tuple(y.shape[:-1]) != lead:
        raise ShapeError(
            f"bilinear: expected x of shape (..., {first}) and y of shape (..., {second}) with the same leading axes, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    xp = common_namespace(x, y, weight)
    # One product for all pairs of features and outputs, then a sum for each sample: what BLAS takes.
    flat = xp.reshape(xp.moveaxis(widen(weight), 1, 0), (first, out * second))
    pairs = xp.reshape(xp.reshape(widen(x), (-1, first)) @ flat, (-1, out, second))
    z = xp.reshape((pairs @ xp.reshape(widen(y), (-1, second, 1)))[..., 0], (*lead, out))
    z = z if bias is None else z + widen(bias)
    return narrow(apply_activation(activation, z), x)
