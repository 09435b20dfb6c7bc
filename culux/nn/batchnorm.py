"""`batchnorm`: batch normalisation with its activation, as one operation.

NumPy's rules see (N, C, *spatial) as a matrix of N rows: sums over the rows are products with ones, and a
channel's values are repeated along its part of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback, plain
from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.errors import ShapeError
from culux.kernels import ActivationCode, contiguous
from culux.kernels import batchnorm as kernels
from culux.nn.activation import Activation, ActivationLike, apply_activation, code_of, overwrite
from culux.nn.activations import identity
from culux.nn.fused import (
    decompose,
    evaluate_by_rule,
    is_plain,
    narrow,
    on_kernels,
    require_float,
    row_of_ones,
    widen,
)
from culux.numpy.broadcasting import is_half

__all__ = ["batchnorm"]


def batchnorm(
    x: Array, scale: Array | None, bias: Array | None, running_mean: Array | None, running_var: Array | None,
    *, training: bool, momentum: float = 0.1, epsilon: float = 1e-5, activation: ActivationLike = identity,
) -> tuple[Array, Array | None, Array | None]:  # fmt: skip
    """``y = activation((x - mean) / sqrt(var + epsilon) * scale + bias)``, per channel.

    In training, mean and var (the biased one) are those of the batch, and the running statistics move:
    ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance. Else they are the
    running statistics, or those of the batch where there are none. Statistics are taken in two passes, of
    float16 and bfloat16 in float32. (Ioffe & Szegedy, "Batch normalization", 2015.)

    Args:
        x: (batch, channels, *spatial), float.
        scale: (channels,) or None for 1.
        bias: (channels,) or None for 0.
        running_mean: (channels,) or None.
        running_var: (channels,) or None.
        training: whether the statistics are the batch's, and the running ones move.
        momentum: the weight of the batch in the running statistics.
        epsilon: added to the variance.
        activation: a record of `culux.nn`, or any function of an array.

    Returns:
        y of the shape of `x`, and the running mean and variance after it, plain arrays.

    Raises:
        ShapeError: for shapes that do not fit, or one value per channel in training.
        DTypeError: for an `x` that is no float array.
    """
    require_float("batchnorm", x)
    shape = x.shape
    given = [a.shape for a in (scale, bias, running_mean, running_var) if a is not None]
    if len(shape) < 2 or given.count(shape[1:2]) != len(given):
        _explain_misfit(x, scale=scale, bias=bias, running_mean=running_mean, running_var=running_var)
    old_mean, old_var = plain(running_mean), plain(running_var)
    tracked = old_mean is not None and old_var is not None
    if tracked and not is_half(old_mean):  # kernels take parameters and statistics of one dtype
        scale, bias = widen(scale), widen(bias)
    if tracked and not training:
        y = _normalize(x, scale, bias, old_mean, old_var, epsilon=epsilon, activation=activation)
        return y, old_mean, old_var
    _require_values(shape)
    if not tracked:
        y = _normalize_batch(x, scale, bias, epsilon=epsilon, activation=activation, running=None)
        return y, old_mean, old_var
    running = _Running(old_mean, old_var, momentum)
    y = _normalize_batch(x, scale, bias, epsilon=epsilon, activation=activation, running=running)
    return y, *running.moved


class _Running:
    """Running statistics, and what a batch makes of them.

    An operation on the batch leaves them here: as outputs they would be three entries on the tape for what no
    gradient goes through.
    """

    __slots__ = ("mean", "momentum", "moved", "var")

    def __init__(self, mean: Array, var: Array, momentum: float) -> None:
        self.mean, self.var, self.momentum = mean, var, momentum
        self.moved: tuple[Array, Array] = mean, var

    def move(self, mean: Array, var: Array, count: int) -> None:
        """By the mean and biased variance of `count` values of each channel; float16 and bfloat16 stay so."""
        keep, unbiased = 1 - self.momentum, self.momentum * count / (count - 1)
        moved = self.mean * keep + mean * self.momentum, self.var * keep + var * unbiased
        self.moved = narrow(moved[0], self.mean), narrow(moved[1], self.var)


def _require_values(shape: tuple[int, ...]) -> None:
    """Refuse a batch of one value per channel."""
    if not shape[1] or math.prod(shape) // shape[1] <= 1:
        raise ShapeError(
            f"expected more than one value per channel when training, got x of shape {tuple(shape)}; "
            "use a larger batch, or culux.test_mode(st)"
        )


def _explain_misfit(x: Array, **channelwise: Array | None) -> None:
    if x.ndim < 2:
        raise ShapeError(f"expected x of shape (batch, channels, *spatial), got {tuple(x.shape)}")
    for name, array in channelwise.items():
        if array is None:
            continue
        if array.ndim != 1:
            raise ShapeError(f"expected {name} of shape (channels,), got {tuple(array.shape)}")
        if array.shape[0] != x.shape[1]:
            raise ShapeError(
                f"expected x.shape[1] == {array.shape[0]}, got {x.shape[1]} (x has shape {tuple(x.shape)})"
            )


def _along_channels(v: Array, ndim: int) -> Array:
    """A value per channel in the shape that broadcasts over (N, C, *spatial)."""
    return namespace_of(v).reshape(v, (1, -1) + (1,) * (ndim - 2))


def _affine(x: Array, xhat: Array, scale: Array | None, bias: Array | None, activation: ActivationLike) -> Array:
    """The last part of both portable forms, in the dtype of a half-precision `x`."""
    y = xhat if scale is None else xhat * _along_channels(widen(scale), x.ndim)
    y = y if bias is None else y + _along_channels(widen(bias), x.ndim)
    return narrow(apply_activation(activation, y), x)


@primitive(composite=True)
def _normalize_batch(
    x: Array, scale: Array | None, bias: Array | None, *, epsilon: float, activation: ActivationLike,
    running: _Running | None,
) -> Array:  # fmt: skip
    """``y`` by the statistics of the batch, by which `running` moves; the portable form."""
    wide = widen(x)
    xp = namespace_of(wide)
    axes = (0, *range(2, x.ndim))
    first = xp.mean(wide, axis=axes, keepdims=True)
    # The mean of large numbers is off by rounding; that of the differences is not.
    rest = xp.mean(wide - first, axis=axes, keepdims=True)
    mean = first + rest
    centred = wide - first - rest
    var = xp.mean(centred * centred, axis=axes, keepdims=True)
    if running is not None:
        running.move(plain(xp.reshape(mean, (-1,))), plain(xp.reshape(var, (-1,))), x.size // x.shape[1])
    return _affine(x, centred / xp.sqrt(var + epsilon), scale, bias, activation)


@_normalize_batch.rule
def _(
    needs: tuple[bool, ...], x: Array, scale: Array | None, bias: Array | None, *, epsilon: float,
    activation: ActivationLike, running: _Running | None,
) -> tuple[Array, Pullback]:  # fmt: skip
    if isinstance(activation, Activation) and is_plain(x, scale, bias):
        return _batch_on_numpy(needs, x, scale, bias, epsilon, activation, running)
    code = code_of(activation)
    statistics = () if running is None else (running.mean, running.var)
    if code is not None and on_kernels(x, scale, bias, *statistics):
        return _batch_on_kernels(needs, x, scale, bias, epsilon, activation, code, running)
    static = {"epsilon": epsilon, "activation": activation, "running": running}
    return decompose(_normalize_batch, needs, (x, scale, bias), static)


def _batch_on_kernels(
    needs: tuple[bool, ...], x: Array, scale: Array | None, bias: Array | None, epsilon: float,
    activation: ActivationLike, code: ActivationCode, running: _Running | None,
) -> tuple[Array, Pullback]:  # fmt: skip
    x = contiguous(x)
    mean, var, momentum = (None, None, 0.0) if running is None else (running.mean, running.var, running.momentum)
    y, saved, *moved = kernels.forward(x, scale, bias, mean, var, momentum=momentum, epsilon=epsilon, code=code)
    if running is not None:
        running.moved = moved[0], moved[1]

    def pullback(dy: Any) -> tuple[Any, ...]:
        if not on_kernels(dy):  # traced: a derivative of this derivative is being taken
            static = {"epsilon": epsilon, "activation": activation, "running": None}
            return decompose(_normalize_batch, needs, (x, scale, bias), static)[1](dy)
        return kernels.backward(dy, x, saved, scale, bias, needs=needs, code=code)

    return y, pullback


def _batch_on_numpy(
    needs: tuple[bool, ...], x: np.ndarray, scale: Array | None, bias: Array | None, epsilon: float,
    activation: Activation, running: _Running | None,
) -> tuple[Array, Pullback]:  # fmt: skip
    shape = x.shape
    repeats = math.prod(shape[2:])
    rows = x.reshape(shape[0], shape[1] * repeats)
    # An array without axes: NumPy takes twice as long for a short array times a Python number.
    part = np.asarray(1 / (len(rows) * repeats), rows.dtype)
    sums = _channel_sums(rows, shape[1], repeats)
    mean, centred, rest, var = _statistics(rows, repeats, sums, part)
    inverse = np.reciprocal(np.sqrt(var + epsilon))
    factor = inverse if scale is None else inverse * scale
    z = centred * _spread(factor, repeats)
    shift = rest * factor
    z -= _spread(shift if bias is None else np.subtract(shift, bias, out=shift), repeats)
    y, kept_z, kept_y = overwrite(activation, z)

    def pullback(dy: Any) -> tuple[Any, ...]:
        if type(dy) is not np.ndarray:
            again = (centred + _spread(mean, repeats)).reshape(shape)  # x itself is not kept alive for this
            static = {"epsilon": epsilon, "activation": activation, "running": None}
            return decompose(_normalize_batch, needs, (again, scale, bias), static)[1](dy)
        dz = activation.backward(dy.reshape(centred.shape), kept_z, kept_y)
        product = dz * centred
        total = sums(dz)
        along = sums(product)
        along -= rest * total
        along *= inverse
        dx = None
        if needs[0]:  # dx = factor * (dz - total / count - xhat * along / count)
            share = factor * part
            slope = share * inverse
            slope *= along
            share *= total
            share -= slope * rest
            np.multiply(centred, _spread(slope, repeats), out=product)
            product += _spread(share, repeats)
            dx = np.multiply(dz, _spread(factor, repeats), out=None if activation.saves is None else dz)
            dx -= product
            dx = dx.reshape(shape)
        return dx, along if needs[1] else None, total if needs[2] else None

    if running is not None:
        running.move(mean + rest, var, len(rows) * repeats)
    return y.reshape(shape), pullback


@primitive(composite=True)
def _normalize(
    x: Array, scale: Array | None, bias: Array | None, mean: Array, var: Array, *, epsilon: float,
    activation: ActivationLike,
) -> Array:  # fmt: skip
    """``y`` by given statistics; the portable form."""
    wide = widen(x)
    inverse = 1 / namespace_of(var).sqrt(widen(var) + epsilon)
    xhat = (wide - _along_channels(widen(mean), x.ndim)) * _along_channels(inverse, x.ndim)
    return _affine(x, xhat, scale, bias, activation)


@_normalize.rule
def _(
    needs: tuple[bool, ...], x: Array, scale: Array | None, bias: Array | None, mean: Array, var: Array,
    *, epsilon: float, activation: ActivationLike,
) -> tuple[Array, Pullback]:  # fmt: skip
    if isinstance(activation, Activation) and is_plain(x, scale, bias, mean, var):
        return _given_on_numpy(needs, x, scale, bias, mean, var, epsilon, activation)
    code = code_of(activation)
    if code is not None and on_kernels(x, scale, bias, mean, var):
        return _given_on_kernels(needs, x, scale, bias, mean, var, epsilon, activation, code)
    return decompose(_normalize, needs, (x, scale, bias, mean, var), {"epsilon": epsilon, "activation": activation})


def _given_on_kernels(
    needs: tuple[bool, ...], x: Array, scale: Array | None, bias: Array | None, mean: Array, var: Array,
    epsilon: float, activation: ActivationLike, code: ActivationCode,
) -> tuple[Array, Pullback]:  # fmt: skip
    x = contiguous(x)

    def pullback(dy: Any) -> tuple[Any, ...]:
        if not on_kernels(dy):
            static = {"epsilon": epsilon, "activation": activation}
            return decompose(_normalize, needs, (x, scale, bias, mean, var), static)[1](dy)
        found = kernels.normalize_backward(dy, x, scale, bias, mean, var, epsilon=epsilon, needs=needs[:3], code=code)
        return *found, None, None  # the running statistics are constants

    return kernels.normalize(x, scale, bias, mean, var, epsilon=epsilon, code=code), pullback


def _given_on_numpy(
    needs: tuple[bool, ...], x: np.ndarray, scale: Array | None, bias: Array | None, mean: Array, var: Array,
    epsilon: float, activation: Activation,
) -> tuple[Array, Pullback]:  # fmt: skip
    shape = x.shape
    repeats = math.prod(shape[2:])
    rows = x.reshape(shape[0], shape[1] * repeats)  # not -1, which an empty batch leaves open
    sums = _channel_sums(rows, shape[1], repeats)
    inverse = 1 / np.sqrt(var + epsilon)
    factor = inverse if scale is None else inverse * scale
    centred = rows - _spread(mean, repeats)
    # The scale's cotangent reads the centred values; without it they are overwritten.
    y = np.multiply(centred, _spread(factor, repeats), out=None if needs[1] else centred)
    if bias is not None:
        y += _spread(bias, repeats)
    y, kept_z, kept_y = overwrite(activation, y)

    def pullback(dy: Any) -> tuple[Any, ...]:
        if type(dy) is not np.ndarray:
            static = {"epsilon": epsilon, "activation": activation}
            return decompose(_normalize, needs, (x, scale, bias, mean, var), static)[1](dy)
        dz = activation.backward(dy.reshape(rows.shape), kept_z, kept_y)
        return (
            (dz * _spread(factor, repeats)).reshape(shape) if needs[0] else None,
            sums(dz * centred) * inverse if needs[1] else None,
            sums(dz) if needs[2] else None,
            None,  # the running statistics are constants
            None,
        )

    return y.reshape(shape), pullback


evaluate_by_rule(_normalize_batch, "numpy", "cupy")
evaluate_by_rule(_normalize, "numpy", "cupy")


def _channel_sums(rows: np.ndarray, channels: int, repeats: int) -> Callable[[np.ndarray], np.ndarray]:
    """The sum per channel of matrices like `rows`, whose columns are `repeats` values of each channel.

    A product with ones takes a third of the time of ``sum(0)``, and ``dot`` starts sooner than ``@``.
    """
    ones = row_of_ones(len(rows), rows.dtype)
    if repeats == 1:
        return ones.dot
    return lambda matrix: ones.dot(matrix).reshape(channels, repeats).sum(1)


def _statistics(
    rows: np.ndarray, repeats: int, sums: Callable[[np.ndarray], np.ndarray], part: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, centred values, their mean, and variance; `part` is 1 / values per channel."""
    mean = sums(rows)
    mean *= part
    centred: np.ndarray = rows - _spread(mean, repeats)
    # What rounding left of the mean: as in the portable form, without another pass.
    rest = sums(centred)
    rest *= part
    var = sums(centred * centred)
    var *= part
    var -= rest * rest
    return mean, centred, rest, np.maximum(var, 0, out=var)


def _spread(v: np.ndarray, repeats: int) -> np.ndarray:
    """A value per channel as a value per column."""
    return v if repeats == 1 else np.repeat(v, repeats)
