"""`groupnorm` and `instancenorm`: normalisation of groups of channels of each sample, over their spatial axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback, plain
from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.errors import LayerError, ShapeError
from culux.nn.activation import Activation, ActivationLike, apply_activation, overwrite
from culux.nn.activations import identity
from culux.nn.batchnorm import batchnorm
from culux.nn.fused import decompose, evaluate_by_rule, is_plain, narrow, require_float, row_of_ones, widen
from culux.nn.layernorm import layernorm

__all__ = ["groupnorm", "instancenorm"]


def groupnorm(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    *,
    groups: int,
    epsilon: float = 1e-5,
    activation: ActivationLike = identity,
) -> Array:
    """``y = activation((x - mean) / sqrt(var + epsilon) * scale + bias)``, per sample and group of channels.

    A group is ``channels // groups`` neighbouring channels; mean and the biased variance are taken over them and
    all spatial axes, of float16 and bfloat16 in float32. (Wu & He, "Group normalization", 2018.)

    Args:
        x: (batch, channels, *spatial), float.
        scale: (channels,) or None for 1.
        bias: (channels,) or None for 0.
        groups: how many groups there are; it divides the channels.
        epsilon: added to the variance.
        activation: a record of `culux.nn`, or any function of an array.

    Returns:
        y of the shape and dtype of `x`.

    Raises:
        LayerError: for a number of groups that does not divide the channels.
        ShapeError: for shapes that do not fit.
        DTypeError: for an `x` that is no float array.
    """
    require_float("groupnorm", x)
    _check_channelwise("groupnorm", x, scale=scale, bias=bias)
    shape = tuple(x.shape)
    if groups < 1 or shape[1] % groups:
        raise LayerError(f"groupnorm: expected groups to divide the {shape[1]} channels, got {groups}")
    return _groupnorm(x, scale, bias, groups=groups, epsilon=epsilon, activation=activation)


@primitive(composite=True)
def _groupnorm(
    x: Array, scale: Array | None, bias: Array | None, *, groups: int, epsilon: float, activation: ActivationLike
) -> Array:
    """The portable form."""
    wide, shape = widen(x), tuple(x.shape)
    rows = namespace_of(wide).reshape(wide, (shape[0] * groups, math.prod(shape[1:]) // groups))
    y = namespace_of(wide).reshape(layernorm(rows, None, None, ndim=1, epsilon=epsilon), shape)
    along = (-1,) + (1,) * (len(shape) - 2)
    y = y if scale is None else y * namespace_of(scale).reshape(widen(scale), along)
    y = y if bias is None else y + namespace_of(bias).reshape(widen(bias), along)
    return narrow(apply_activation(activation, y), x)


@_groupnorm.rule
def _(
    needs: tuple[bool, ...], x: Array, scale: Array | None, bias: Array | None, *, groups: int, epsilon: float,
    activation: ActivationLike,
) -> tuple[Array, Pullback]:  # fmt: skip
    static = {"groups": groups, "epsilon": epsilon, "activation": activation}
    if not isinstance(activation, Activation) or not is_plain(x, scale, bias):
        return decompose(_groupnorm, needs, (x, scale, bias), static)
    y, pullback = _on_host(needs, x, scale, bias, groups, epsilon, activation)

    def differentiable(dy: Any) -> tuple[Any, ...]:
        if type(dy) is not np.ndarray:  # traced: a derivative of this derivative is being taken
            return decompose(_groupnorm, needs, (x, scale, bias), static)[1](dy)
        return pullback(dy)

    return y, differentiable


evaluate_by_rule(_groupnorm, "numpy")


def _on_host(
    needs: tuple[bool, ...], x: np.ndarray, scale: np.ndarray | None, bias: np.ndarray | None, groups: int,
    epsilon: float, activation: Activation,
) -> tuple[np.ndarray, Pullback]:  # fmt: skip
    batch, channels, size = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    rows, count = x.reshape(batch * groups, channels // groups * size), max(channels // groups * size, 1)
    xhat = rows - rows @ np.full((rows.shape[1], 1), 1 / count, x.dtype)
    inverse = 1 / np.sqrt(np.vecdot(xhat, xhat)[:, None] / count + epsilon)
    xhat *= inverse
    xhat = xhat.reshape(batch, channels, size)
    z = xhat.copy() if scale is None else xhat * scale[:, None]
    if bias is not None:
        z += bias[:, None]
    y, kept_z, kept_y = overwrite(activation, z)

    def by_channel(of_groups: np.ndarray) -> np.ndarray:
        return np.repeat(of_groups.reshape(batch, groups), channels // groups, 1)[:, :, None]

    def pullback(dy: np.ndarray) -> tuple[np.ndarray | None, ...]:
        dz = activation.backward(dy.reshape(xhat.shape), kept_z, kept_y)
        product = dz * xhat
        ones = row_of_ones(size, x.dtype)
        total, along = dz @ ones, product @ ones  # per sample and channel
        dscale = along.sum(0) if needs[1] and scale is not None else None
        dbias = total.sum(0) if needs[2] and bias is not None else None
        if not needs[0]:
            return None, dscale, dbias
        # With g = dz * scale: dx = inverse * (g - mean(g) - xhat * mean(g * xhat)), the means over a group.
        gains = np.ones(channels, x.dtype) if scale is None else scale
        means = [(sums * gains).reshape(batch * groups, -1).sum(1, keepdims=True) / count for sums in (total, along)]
        dx = np.multiply(xhat, by_channel(means[1] * inverse), out=product)
        dx += by_channel(means[0] * inverse)
        np.subtract(dz * (by_channel(inverse) * gains[:, None]), dx, out=dx)
        return dx.reshape(x.shape), dscale, dbias

    return y.reshape(x.shape), pullback


def instancenorm(
    x: Array, scale: Array | None, bias: Array | None, running_mean: Array | None, running_var: Array | None,
    *, training: bool, momentum: float = 0.1, epsilon: float = 1e-5, activation: ActivationLike = identity,
) -> tuple[Array, Array | None, Array | None]:  # fmt: skip
    """``y = activation((x - mean) / sqrt(var + epsilon) * scale + bias)``, per sample and channel.

    In training, and where there are no running statistics, mean and the biased variance are those of the
    sample's channel over the spatial axes; running ones move by the mean of these over the batch, the variance
    unbiased. Else the running ones are used. (Ulyanov et al., "Instance normalization", 2016.)

    Args:
        x: (batch, channels, *spatial), float, with one spatial axis at least.
        scale: (channels,) or None for 1.
        bias: (channels,) or None for 0.
        running_mean: (channels,) or None.
        running_var: (channels,) or None.
        training: whether the statistics are the sample's, and the running ones move.
        momentum: the weight of the batch in the running statistics.
        epsilon: added to the variance.
        activation: a record of `culux.nn`, or any function of an array.

    Returns:
        y of the shape and dtype of `x`, and the running mean and variance after it, plain arrays.

    Raises:
        ShapeError: for shapes that do not fit, or one spatial element where statistics are taken.
        DTypeError: for an `x` that is no float array.
    """
    require_float("instancenorm", x)
    _check_channelwise("instancenorm", x, scale=scale, bias=bias, running_mean=running_mean, running_var=running_var)
    if x.ndim < 3:
        raise ShapeError(f"instancenorm: expected x of shape (batch, channels, *spatial), got {tuple(x.shape)}")
    mean, var = plain(running_mean), plain(running_var)
    tracked = mean is not None and var is not None
    if tracked and not training:
        return batchnorm(x, scale, bias, mean, var, training=False, epsilon=epsilon, activation=activation)
    _require_elements(x)
    if tracked:
        mean, var = _moved(plain(x), mean, var, momentum)
    y = groupnorm(x, scale, bias, groups=x.shape[1], epsilon=epsilon, activation=activation)
    return y, mean, var


def _moved(x: Array, running_mean: Array, running_var: Array, momentum: float) -> tuple[Array, Array]:
    """The running statistics after a batch; the variance is the unbiased one."""
    xp, wide = namespace_of(x), widen(x)
    axes = tuple(range(2, x.ndim))
    count = math.prod(x.shape[2:])
    mean = xp.mean(wide, axis=axes, keepdims=True)
    var = xp.mean((wide - mean) ** 2, axis=axes) * (count / (count - 1))
    moved = (
        running_mean * (1 - momentum) + xp.mean(mean, axis=(0, *axes)) * momentum,
        running_var * (1 - momentum) + xp.mean(var, axis=0) * momentum,
    )
    return narrow(moved[0], running_mean), narrow(moved[1], running_var)


def _require_elements(x: Array) -> None:
    """Refuse channels of one element, whose variance says nothing."""
    if math.prod(x.shape[2:]) < 2:
        raise ShapeError(
            f"instancenorm: expected more than one spatial element per channel, got x of shape {tuple(x.shape)}"
        )


def _check_channelwise(function: str, x: Array, **channelwise: Array | None) -> None:
    """Raise where `x` has no channels, or an array is not of one number per channel."""
    if x.ndim < 2:
        raise ShapeError(f"{function}: expected x of shape (batch, channels, *spatial), got {tuple(x.shape)}")
    for name, array in channelwise.items():
        if array is not None and tuple(array.shape) != (x.shape[1],):
            raise ShapeError(
                f"{function}: expected {name} of shape ({x.shape[1]},), got {tuple(array.shape)} "
                f"(x has shape {tuple(x.shape)})"
            )
