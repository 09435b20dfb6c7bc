"""`conv` and `conv_transpose`: convolution over one to three spatial axes, with bias and activation.

Three primitives are all of it, and each is a derivative of the two others: the correlation of an input with a
weight, its transpose, and the correlation of an input with an output, which has the shape of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from culux.autodiff import Primitive, primitive
from culux.autodiff.tracer import Pullback
from culux.backends import Array, backend_of
from culux.backends.registry import namespace_of
from culux.errors import LayerError, ShapeError, describe
from culux.kernels import ActivationCode, contiguous
from culux.nn import conv_cupy, conv_numpy
from culux.nn.activation import Activation, ActivationLike, apply_activation, overwrite
from culux.nn.activations import identity
from culux.nn.conv_taps import Lengths, Padding, Spec, Taps, resolve
from culux.nn.fused import decompose, evaluate_by_rule, is_plain, narrow, on_kernels, require_float, widen
from culux.numpy.broadcasting import fit, is_half, outline
from culux.numpy.shaping import flip, pad

__all__ = ["PADDING_MODES", "check_groups", "conv", "conv_transpose"]

PADDING_MODES = {"zeros": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}
"""The modes of padding, and NumPy's names for them."""


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = identity,
    stride: Lengths = 1,
    padding: Padding = 0,
    dilation: Lengths = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    cross_correlation: bool = True,
) -> Array:
    """``y[n, o, i] = activation(bias[o] + sum over c, t of weight[o, c, t] * x[n, c, i * stride + t * dilation - p])``.

    The channels c are those of the group of o. float16 and bfloat16 accumulate in float32.

    Args:
        x: (N, in, *spatial), float, with one to three spatial axes.
        weight: (out, in / groups, *kernel).
        bias: (out,) or None.
        activation: a record of `culux.nn`, or any function of an array.
        stride: the steps between windows.
        padding: what is added on both sides: an int, one per axis, or (before, behind) pairs; "valid" for 0; "same"
            for an output of the input's lengths, which needs stride 1, an odd element going behind, as in torch.
        dilation: the steps between taps.
        groups: in how many groups the channels are convolved apart.
        padding_mode: what the padding holds: "zeros", "circular", "reflect" or "replicate".
        cross_correlation: False turns the kernel round: the convolution of mathematics.

    Returns:
        y (N, out, *lengths), ``(size + before + behind - (kernel - 1) * dilation - 1) // stride + 1`` each.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: for shapes that do not fit.
        DTypeError: for an `x` that is no float array.
    """
    require_float("conv", x)
    spec = resolve("conv", _kernel("conv", weight), stride, padding, dilation, groups)
    _check_shapes("conv", x, weight, bias, groups, transposed=False)
    x, taps = _bordered(x, spec, padding_mode)
    turned = weight if cross_correlation else flip(weight, tuple(range(2, weight.ndim)))
    return _conv(x, turned, bias, taps=taps, transposed=False, activation=activation)


def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = identity,
    stride: Lengths = 1,
    padding: Padding = 0,
    output_padding: Lengths = 0,
    dilation: Lengths = 1,
    groups: int = 1,
    cross_correlation: bool = True,
) -> Array:
    """``y[n, o, i * stride + t * dilation - padding] += weight[c, o, t] * x[n, c, i]``, then bias and activation.

    It is the derivative of `conv` with respect to its input. float16 and bfloat16 accumulate in float32.

    Args:
        x: (N, in, *spatial), float, with one to three spatial axes.
        weight: (in, out / groups, *kernel).
        bias: (out,) or None.
        activation: a record of `culux.nn`, or any function of an array.
        stride: the steps between windows.
        padding: what is cut off on both sides: an int, one per axis, or (before, behind) pairs; "valid" for 0;
            "same" for an output of ``stride`` times the input's lengths.
        output_padding: what is added behind, smaller than the stride or the dilation.
        dilation: the steps between taps.
        groups: in how many groups the channels are convolved apart.
        cross_correlation: False turns the kernel round.

    Returns:
        y (N, out, *lengths), ``(size - 1) * stride - before - behind + (kernel - 1) * dilation + output_padding + 1``
        each.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: for shapes that do not fit.
        DTypeError: for an `x` that is no float array.
    """
    require_float("conv_transpose", x)
    kernel = _kernel("conv_transpose", weight)
    spec = resolve("conv_transpose", kernel, stride, padding, dilation, groups, output_padding)
    _check_shapes("conv_transpose", x, weight, bias, groups, transposed=True)
    taps = spec.transposed_taps("conv_transpose", tuple(x.shape))
    turned = weight if cross_correlation else flip(weight, tuple(range(2, weight.ndim)))
    return _conv(x, turned, bias, taps=taps, transposed=True, activation=activation)


def check_groups(function: str, groups: int, **channels: int) -> None:
    """Raise a `LayerError` where a number of channels, by name, cannot be put into as many groups."""
    for name, count in channels.items():
        if count % groups:
            raise LayerError(f"{function}: expected groups to divide {name} ({count}), got {groups}")


def _bordered(x: Array, spec: Spec, mode: str) -> tuple[Array, Taps]:
    """`x` with what `mode` puts around it where that is no zeros, and the taps on it."""
    if mode not in PADDING_MODES:
        raise LayerError(f"conv: expected padding_mode to be one of {', '.join(PADDING_MODES)}, got {describe(mode)}")
    taps = spec.taps("conv", tuple(x.shape), mode)
    if mode == "zeros":
        return x, taps
    x = pad(x, ((0, 0), (0, 0), *spec.borders), mode=PADDING_MODES[mode])
    return x, taps._replace(size=tuple(x.shape[2:]), before=(0,) * len(taps.before))


def _kernel(function: str, weight: Array) -> tuple[int, ...]:
    if not 3 <= len(weight.shape) <= 5 or not all(weight.shape):
        form = "(in, out / groups, *kernel)" if function == "conv_transpose" else "(out, in / groups, *kernel)"
        raise ShapeError(f"{function}: expected weight of shape {form}, 1 to 3 axes in kernel, got {weight.shape}")
    return tuple(weight.shape[2:])


def _check_shapes(function: str, x: Array, weight: Array, bias: Array | None, groups: int, *, transposed: bool) -> None:
    inner, outer = weight.shape[1] * groups, weight.shape[0]
    check_groups(function, groups, **{"the weight's first axis": outer})
    channels, filters = (outer, inner) if transposed else (inner, outer)
    if len(x.shape) != len(weight.shape):
        axes = len(weight.shape) - 2
        raise ShapeError(
            f"{function}: expected x of shape (batch, {channels}, *spatial) with {axes} spatial "
            f"{'axis' if axes == 1 else 'axes'}, got {tuple(x.shape)}"
        )
    if x.shape[1] != channels:
        raise ShapeError(
            f"{function}: expected x.shape[1] == {channels} for weight of shape {tuple(weight.shape)} and groups="
            f"{groups}, got {x.shape[1]} (x has shape {tuple(x.shape)})"
        )
    if bias is not None and tuple(bias.shape) != (filters,):
        raise ShapeError(f"{function}: expected bias of shape ({filters},), got {tuple(bias.shape)}")


@primitive(composite=True)
def _conv(
    x: Array, weight: Array, bias: Array | None, *, taps: Taps, transposed: bool, activation: ActivationLike
) -> Array:
    """The portable form."""
    narrows = is_half(x) and weight.dtype == x.dtype
    y = (_spread if transposed else _correlate)(widen(x), widen(weight), taps=taps)
    if bias is not None:
        y = y + namespace_of(bias).reshape(widen(bias), (-1,) + (1,) * len(taps.kernel))
    y = apply_activation(activation, y)
    return narrow(y, x) if narrows else y


@_conv.rule
def _(needs: tuple[bool, ...], x: Array, weight: Array, bias: Array | None, **static: Any) -> tuple[Array, Pullback]:
    activation = static["activation"]
    if isinstance(activation, Activation):
        if is_plain(x, weight, bias):
            return _by_numpy(needs, x, weight, bias, **static)
        code = activation.cuda()
        if code is not None and on_kernels(x, weight, bias) and weight.dtype == x.dtype:
            return _by_kernels(needs, x, weight, bias, code, **static)
    return decompose(_conv, needs, (x, weight, bias), static)


evaluate_by_rule(_conv, "numpy", "cupy")


def _by_numpy(
    needs: tuple[bool, ...],
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    *,
    taps: Taps,
    transposed: bool,
    activation: Activation,
) -> tuple[np.ndarray, Pullback]:
    if transposed:
        z = conv_numpy.spread(x, weight, taps)
        if bias is not None:
            z += bias.reshape(-1, *[1] * len(taps.kernel))
    else:
        z = conv_numpy.correlate(x, weight, taps, bias)
    y, kept_z, kept_y = overwrite(activation, z)

    def pullback(dy: Array) -> tuple[Any, ...]:
        if type(dy) is not np.ndarray:  # traced: a derivative of this derivative is being taken
            static = {"taps": taps, "transposed": transposed, "activation": activation}
            return decompose(_conv, needs, (x, weight, bias), static)[1](dy)
        dz = activation.backward(dy, kept_z, kept_y)
        dx = dweight = None
        if needs[0]:
            dx = (conv_numpy.correlate if transposed else conv_numpy.spread)(dz, weight, taps)
        if needs[1]:
            dweight = conv_numpy.weight_gradient(dz if transposed else x, x if transposed else dz, taps)
        return dx, dweight, _channel_sum(dz) if needs[2] else None

    return y, pullback


def _by_kernels(
    needs: tuple[bool, ...],
    x: Array,
    weight: Array,
    bias: Array | None,
    code: ActivationCode,
    *,
    taps: Taps,
    transposed: bool,
    activation: Activation,
) -> tuple[Array, Pullback]:
    source, factors, shift = contiguous(x), contiguous(weight), None if bias is None else contiguous(bias)
    y, saved = conv_cupy.forward(source, factors, shift, code, taps, transposed=transposed, keep=True in needs)
    # Copies of strided arrays are kept only where the pullback reads them.
    kept_x, kept_weight = source if needs[1] else None, factors if needs[0] else None

    def pullback(dy: Array) -> tuple[Any, ...]:
        if not on_kernels(dy):  # traced: a derivative of this derivative is being taken
            static = {"taps": taps, "transposed": transposed, "activation": activation}
            return decompose(_conv, needs, (x, weight, bias), static)[1](dy)
        return conv_cupy.backward(dy, saved, kept_x, kept_weight, code, taps, transposed=transposed, needs=needs)

    return y, pullback


def _channel_sum(dz: np.ndarray) -> np.ndarray:
    """The sum over all axes but the channels'; products with ones are faster than ``sum``."""
    rows = dz.reshape(*dz.shape[:2], math.prod(dz.shape[2:]))
    total: np.ndarray = (rows @ np.ones(rows.shape[2], rows.dtype)).sum(0)
    return total


@primitive
def _correlate(x: Array, weight: Array, *, taps: Taps) -> Array:
    """``sum over c, t of weight[o, c, t] * x[n, c, i * stride + t * dilation - before]``, one product per tap."""
    xp = backend_of(x, weight).xp
    padded, factors, shape = _padded(x, taps), _split(weight, taps), (x.shape[0], taps.groups)
    y: Any = 0
    for number, place in enumerate(taps.places()):
        piece = xp.reshape(padded[(..., *place)], (*shape, factors.shape[2], math.prod(taps.out)))
        y = y + factors[..., number] @ piece
    return xp.reshape(y, (x.shape[0], weight.shape[0], *taps.out))


@_correlate.implementation("numpy")
def _(x: np.ndarray, weight: np.ndarray, *, taps: Taps) -> Array:
    return conv_numpy.correlate(x, weight, taps)


@_correlate.rule
def _(needs: tuple[bool, ...], x: Array, weight: Array, *, taps: Taps) -> tuple[Array, Pullback]:
    kept_x, kept_weight, (like_x, like_weight) = _kept(needs, x, weight)

    def pullback(dy: Array) -> tuple[Any, ...]:
        dx = fit(_spread(dy, kept_weight, taps=taps), like_x) if needs[0] else None
        return dx, fit(_weigh(kept_x, dy, taps=taps), like_weight) if needs[1] else None

    return _correlate(x, weight, taps=taps), pullback


@primitive
def _spread(dy: Array, weight: Array, *, taps: Taps) -> Array:
    """The transpose of `_correlate` in x, one product per tap; written for libraries that write in place."""
    xp = backend_of(dy, weight).xp
    factors = _split(weight, taps)
    channels = taps.groups * factors.shape[2]
    grouped = xp.reshape(dy, (dy.shape[0], taps.groups, factors.shape[1], math.prod(taps.out)))
    room = xp.zeros((dy.shape[0], channels, *taps.reach), dtype=np.result_type(dy.dtype, weight.dtype))
    for number, place in enumerate(taps.places()):
        part = xp.swapaxes(factors[..., number], 1, 2) @ grouped
        room[(..., *place)] += xp.reshape(part, (dy.shape[0], channels, *taps.out))
    own, reached = taps.overlap()
    dx = xp.zeros((dy.shape[0], channels, *taps.size), dtype=room.dtype)
    dx[(..., *own)] = room[(..., *reached)]
    return dx


@_spread.implementation("numpy")
def _(dy: np.ndarray, weight: np.ndarray, *, taps: Taps) -> Array:
    return conv_numpy.spread(dy, weight, taps)


@_spread.rule
def _(needs: tuple[bool, ...], dy: Array, weight: Array, *, taps: Taps) -> tuple[Array, Pullback]:
    kept_dy, kept_weight, (like_dy, like_weight) = _kept(needs, dy, weight)

    def pullback(d: Array) -> tuple[Any, ...]:
        back = fit(_correlate(d, kept_weight, taps=taps), like_dy) if needs[0] else None
        return back, fit(_weigh(d, kept_dy, taps=taps), like_weight) if needs[1] else None

    return _spread(dy, weight, taps=taps), pullback


@primitive
def _weigh(x: Array, dy: Array, *, taps: Taps) -> Array:
    """The transpose of `_correlate` in the weight: the sum over n, i of ``dy * x`` for every tap."""
    xp, groups, places = backend_of(x, dy).xp, taps.groups, math.prod(taps.out)
    padded, batch, width, filters = _padded(x, taps), x.shape[0], x.shape[1] // groups, dy.shape[1] // groups

    def grouped(array: Array, channels: int) -> Array:
        apart = xp.transpose(xp.reshape(array, (batch, groups, channels, places)), (1, 2, 0, 3))
        return xp.reshape(apart, (groups, channels, batch * places))

    rows = grouped(dy, filters)
    parts = [rows @ xp.swapaxes(grouped(padded[(..., *place)], width), 1, 2) for place in taps.places()]
    return xp.reshape(xp.stack(parts, axis=-1), (groups * filters, width, *taps.kernel))


@_weigh.implementation("numpy")
def _(x: np.ndarray, dy: np.ndarray, *, taps: Taps) -> Array:
    return conv_numpy.weight_gradient(x, dy, taps)


@_weigh.rule
def _(needs: tuple[bool, ...], x: Array, dy: Array, *, taps: Taps) -> tuple[Array, Pullback]:
    kept_x, kept_dy, (like_x, like_dy) = _kept(needs, x, dy)

    def pullback(d: Array) -> tuple[Any, ...]:
        dx = fit(_spread(kept_dy, d, taps=taps), like_x) if needs[0] else None
        return dx, fit(_correlate(kept_x, d, taps=taps), like_dy) if needs[1] else None

    return _weigh(x, dy, taps=taps), pullback


def _use_kernels(operation: Primitive, product: Callable[[Array, Array, Taps], Array]) -> None:
    """Let CuPy arrays of one dtype take `product`, and others the portable form."""

    @operation.implementation("cupy")
    def _(one: Array, other: Array, *, taps: Taps) -> Array:
        if on_kernels(one, other) and one.dtype == other.dtype:
            return product(one, other, taps)
        return operation.operation.portable(one, other, taps=taps)


_use_kernels(_correlate, conv_cupy.correlate)
_use_kernels(_spread, conv_cupy.spread)
_use_kernels(_weigh, conv_cupy.weigh)


def _kept(needs: tuple[bool, ...], one: Array, other: Array) -> tuple[Any, Any, tuple[Any, Any]]:
    """What the pullback of a product reads of each factor, where the other's cotangent is wanted, and both outlines."""
    return one if needs[1] else None, other if needs[0] else None, (outline(one), outline(other))


def _split(weight: Array, taps: Taps) -> Array:
    """A weight as (groups, out / groups, in / groups, taps)."""
    shape = (taps.groups, weight.shape[0] // taps.groups, weight.shape[1], math.prod(taps.kernel))
    return namespace_of(weight).reshape(weight, shape)


def _padded(x: Array, taps: Taps) -> Array:
    """What the taps reach: `x` cut, and with zeros around it."""
    own, reached = taps.overlap()
    widths = [(0, 0), (0, 0)] + [(s.start, n - s.stop) for s, n in zip(reached, taps.reach, strict=True)]
    return backend_of(x).xp.pad(x[(..., *own)], widths)
