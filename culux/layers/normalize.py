"""Normalisation over the batch and over features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import Any, ClassVar

import numpy as np

from culux import nn
from culux.core import Layer
from culux.errors import LayerError, describe
from culux.layers.checks import (
    as_shape,
    check_activation,
    check_axis,
    check_length,
    check_parameter,
    check_probability,
    check_trailing,
    in_training,
    shape_of,
)
from culux.nn.activation import ActivationLike, apply_activation
from culux.nn.activations import identity
from culux.nn.fused import narrow, widen
from culux.tree import Tree, trusted

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]


class _ChannelNorm(Layer):
    """What `BatchNorm` and `InstanceNorm` have in common: all but the function and the defaults."""

    channels: int
    activation: ActivationLike = identity
    _: KW_ONLY
    affine: bool = True
    track_stats: bool = True
    epsilon: float = 1e-5
    momentum: float = 0.1

    _normalize: ClassVar[Callable[..., Any]]

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_length(name, "channels", self.channels)
        _check_arguments(f"{name}({self.channels}", self)
        check_probability(name, "momentum", self.momentum)

    def initial_parameters(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Scale and bias."""
        return _affine(self.affine, (self.channels,))

    def initial_states(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """The running statistics, and the mode."""
        if not self.track_stats:
            return {"training": True}
        mean, var = np.zeros(self.channels, np.float32), np.ones(self.channels, np.float32)
        return {"running_mean": mean, "running_var": var, "training": True}

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's."""
        check_axis(input_shape, 1, self.channels)
        return input_shape

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Normalise, and move the running statistics in training."""
        check_axis(shape_of(x), 1, self.channels)
        shape = (self.channels,)
        training = in_training(st) or not self.track_stats
        scale = check_parameter(ps, "scale", shape) if self.affine else None
        bias = check_parameter(ps, "bias", shape) if self.affine else None
        mean = check_parameter(st, "running_mean", shape, "st") if self.track_stats else None
        var = check_parameter(st, "running_var", shape, "st") if self.track_stats else None
        y, mean, var = self._normalize(
            x, scale, bias, mean, var, training=training, momentum=self.momentum, epsilon=self.epsilon,
            activation=self.activation,
        )  # fmt: skip
        if not training or not self.track_stats:
            return y, st
        return y, trusted({**st, "running_mean": mean, "running_var": var})


class BatchNorm(_ChannelNorm):
    """Normalisation over the batch: ``y = activation(scale * (x - mean) / sqrt(var + epsilon) + bias)``.

    In training, mean and biased variance of each channel are those of the batch, and the running ones move:
    ``running = (1 - momentum) * running + momentum * batch``, the variance unbiased. In test mode the running
    ones are used. Ioffe and Szegedy, "Batch normalization", 2015; defaults and statistics as torch has them.

    Args:
        channels: the length of axis 1.
        activation: a function of one array.
        affine: whether there are scale and bias.
        track_stats: whether there are running statistics; without, those of the batch are used in test mode too.
        epsilon: what is added to the variance.
        momentum: the share of the batch in the running statistics.

    Inputs:
        x: ``(batch, channels)`` or ``(batch, channels, *spatial)``.

    Returns:
        y of the shape of x, and the states; in test mode `st` as it was.

    Parameters:
        scale: ``(channels,)``, float32, ones, with `affine`.
        bias: ``(channels,)``, float32, zeros, with `affine`.

    States:
        running_mean: ``(channels,)``, float32, zeros, with `track_stats`.
        running_var: ``(channels,)``, float32, ones, with `track_stats`.
        training: True; set by `culux.train_mode` and `culux.test_mode`.

    Raises:
        LayerError: for arguments that are none of these; when called, for a `training` that is no bool.
        ShapeError: when called, for an `x` with other channels or, in training, one value per channel.
    """

    _normalize: ClassVar[Callable[..., Any]] = staticmethod(nn.batchnorm)


class LayerNorm(Layer):
    """Normalisation of each sample: ``y = activation(scale * (x - mean) / sqrt(var + epsilon) + bias)``.

    Mean and biased variance are taken over the trailing axes that `shape` names, in training and in test mode
    alike. Ba, Kiros and Hinton, "Layer normalization", 2016.

    Args:
        shape: the lengths of the trailing axes; an int for one axis.
        activation: a function of one array.
        affine: whether there are scale and bias.
        epsilon: what is added to the variance.
        over: "trailing" for the statistics of the axes that `shape` names, or "all" for those of all of x, the batch
            too, which is Lux's default.

    Inputs:
        x: ``(..., *shape)``.

    Returns:
        y of the shape of x, and the states as they were.

    Parameters:
        scale: `shape`, float32, ones, with `affine`.
        bias: `shape`, float32, zeros, with `affine`.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` with other trailing axes.
    """

    shape: int | tuple[int, ...]
    activation: ActivationLike = identity
    _: KW_ONLY
    affine: bool = True
    epsilon: float = 1e-5
    over: str = "trailing"

    def __post_init__(self) -> None:
        as_shape("LayerNorm", self.shape)
        if self.over not in ("trailing", "all"):
            raise LayerError(f'LayerNorm: expected over to be "trailing" or "all", got {describe(self.over)}')
        _check_arguments(f"LayerNorm({self.shape}", self)

    def initial_parameters(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Scale and bias."""
        return _affine(self.affine, as_shape("LayerNorm", self.shape))

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's."""
        check_trailing(input_shape, as_shape("LayerNorm", self.shape))
        return input_shape

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Normalise over the trailing axes."""
        shape = (self.shape,) if isinstance(self.shape, int) else self.shape
        check_trailing(shape_of(x), shape)
        scale = check_parameter(ps, "scale", shape) if self.affine else None
        bias = check_parameter(ps, "bias", shape) if self.affine else None
        if self.over == "trailing":
            y = nn.layernorm(x, scale, bias, ndim=len(shape), epsilon=self.epsilon, activation=self.activation)
            return y, st
        y = nn.layernorm(widen(x), None, None, ndim=x.ndim, epsilon=self.epsilon)
        if scale is not None and bias is not None:
            y = y * widen(scale) + widen(bias)
        return narrow(apply_activation(self.activation, y), x), st


class RMSNorm(Layer):
    """Division of each sample by its root mean square: ``y = scale * x / sqrt(mean(x**2) + epsilon)``.

    The mean is taken over the trailing axes that `shape` names, in training and in test mode alike. Zhang and
    Sennrich, "Root mean square layer normalization", 2019; the default of epsilon as torch has it.

    Args:
        shape: the lengths of the trailing axes; an int for one axis.
        affine: whether there is a scale.
        epsilon: what is added to the mean square; None for the machine epsilon of what is computed in, 2**-52 for
            float64 and 2**-23 for the others.

    Inputs:
        x: ``(..., *shape)``.

    Returns:
        y of the shape of x, and the states as they were.

    Parameters:
        scale: `shape`, float32, ones, with `affine`.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` with other trailing axes.
    """

    shape: int | tuple[int, ...]
    _: KW_ONLY
    affine: bool = True
    epsilon: float | None = None

    def __post_init__(self) -> None:
        as_shape("RMSNorm", self.shape)
        if self.epsilon is not None:
            _check_epsilon("RMSNorm", self.epsilon)

    def initial_parameters(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """The scale."""
        return {"scale": np.ones(as_shape("RMSNorm", self.shape), np.float32)} if self.affine else {}

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's."""
        check_trailing(input_shape, as_shape("RMSNorm", self.shape))
        return input_shape

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Normalise over the trailing axes."""
        shape = (self.shape,) if isinstance(self.shape, int) else self.shape
        check_trailing(shape_of(x), shape)
        scale = check_parameter(ps, "scale", shape) if self.affine else None
        return nn.rmsnorm(x, scale, ndim=len(shape), epsilon=self.epsilon), st


class GroupNorm(Layer):
    """Normalisation of groups of channels: ``y = activation(scale * (x - mean) / sqrt(var + epsilon) + bias)``.

    Mean and biased variance are those of each sample and group of ``channels // groups`` neighbouring channels, in
    training and in test mode alike. Wu and He, "Group normalization", 2018.

    Args:
        channels: the length of axis 1.
        groups: how many groups there are; it divides `channels`.
        activation: a function of one array.
        affine: whether there are scale and bias.
        epsilon: what is added to the variance.

    Inputs:
        x: ``(batch, channels, *spatial)``.

    Returns:
        y of the shape of x, and the states as they were.

    Parameters:
        scale: ``(channels,)``, float32, ones, with `affine`.
        bias: ``(channels,)``, float32, zeros, with `affine`.

    States:
        None.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` with other channels.
    """

    channels: int
    groups: int
    activation: ActivationLike = identity
    _: KW_ONLY
    affine: bool = True
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        check_length("GroupNorm", "channels", self.channels)
        check_length("GroupNorm", "groups", self.groups)
        if self.channels % self.groups:
            swapped = "" if self.groups % self.channels else f"; GroupNorm({self.groups}, {self.channels})"
            raise LayerError(
                f"GroupNorm: expected groups to divide channels, got {self.groups} groups of {self.channels} channels; "
                f"the channels come first{swapped}"
            )
        _check_arguments(f"GroupNorm({self.channels}, {self.groups}", self)

    def initial_parameters(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Scale and bias."""
        return _affine(self.affine, (self.channels,))

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The input's."""
        check_axis(input_shape, 1, self.channels)
        return input_shape

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Normalise each group of channels."""
        check_axis(shape_of(x), 1, self.channels)
        scale = check_parameter(ps, "scale", (self.channels,)) if self.affine else None
        bias = check_parameter(ps, "bias", (self.channels,)) if self.affine else None
        y = nn.groupnorm(x, scale, bias, groups=self.groups, epsilon=self.epsilon, activation=self.activation)
        return y, st


class InstanceNorm(_ChannelNorm, kw_only=True):
    """Normalisation of each channel of a sample: ``y = activation(scale * (x - mean) / sqrt(var + epsilon) + bias)``.

    Mean and biased variance are taken over the spatial axes. With `track_stats`, running ones move in training
    by the batch's means of them, ``running = (1 - momentum) * running + momentum * mean``, the variance unbiased,
    and are used in test mode. Ulyanov, Vedaldi and Lempitsky, "Instance normalization", 2016; defaults as torch's.

    Args:
        channels: the length of axis 1.
        activation: a function of one array.
        affine: whether there are scale and bias.
        track_stats: whether there are running statistics.
        epsilon: what is added to the variance.
        momentum: the share of the batch in the running statistics.

    Inputs:
        x: ``(batch, channels, *spatial)``, one spatial axis at least.

    Returns:
        y of the shape of x, and the states; as they were without `track_stats` and in test mode.

    Parameters:
        scale: ``(channels,)``, float32, ones, with `affine`.
        bias: ``(channels,)``, float32, zeros, with `affine`.

    States:
        running_mean: ``(channels,)``, float32, zeros, with `track_stats`.
        running_var: ``(channels,)``, float32, ones, with `track_stats`.
        training: True; set by `culux.train_mode` and `culux.test_mode`.

    Raises:
        LayerError: for arguments that are none of these; when called, for a `training` that is no bool.
        ShapeError: when called, for an `x` with other channels, or with one spatial element.
    """

    affine: bool = False
    track_stats: bool = False

    _normalize: ClassVar[Callable[..., Any]] = staticmethod(nn.instancenorm)


def _affine(affine: bool, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {"scale": np.ones(shape, np.float32), "bias": np.zeros(shape, np.float32)} if affine else {}


def _check_arguments(call: str, layer: _ChannelNorm | GroupNorm | LayerNorm) -> None:
    """Check activation and epsilon; `call` is how the layer's call begins, for the message."""
    name = type(layer).__name__
    flag = f"scale and bias are switched by {call}, affine={{}})"
    check_activation(name, layer.activation, flag=flag, number=f"epsilon is a keyword: {call}, epsilon={{}})")
    _check_epsilon(name, layer.epsilon)


def _check_epsilon(name: str, epsilon: float) -> None:
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or epsilon < 0:
        raise LayerError(f"{name}: expected epsilon to be a number >= 0, got {describe(epsilon)}")
