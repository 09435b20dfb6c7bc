"""Torch modules that have a counterpart in culux, and the layers made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from culux import nn
from culux.core import Layer
from culux.errors import LayerError
from culux.interop.torch_layer import copied
from culux.layers import BatchNorm, Dense, Dropout, FlattenLayer, LayerNorm, NoOpLayer, WrappedFunction
from culux.nn.activation import Activation

__all__ = [
    "BatchNormFromTorch",
    "DenseFromTorch",
    "DropoutFromTorch",
    "FromTorch",
    "LayerNormFromTorch",
    "NoCounterpart",
    "native",
]


class NoCounterpart(Exception):
    """A torch module has no native layer; the text is the reason."""


_Names = tuple[tuple[str, str], ...]  # pairs of a parameter's name in culux and in torch


class FromTorch(Layer):
    """A native layer whose initial parameters and states are copies of those of a torch module.

    What `setup` gives are copies made at that time, in the module's dtype, whatever the `rng`; the layer computes as
    the native one that it is, and never runs the module.
    """

    torch_names = _Names()

    def initial_parameters(self, rng: Any) -> Mapping[str, Any]:
        """Copies of the module's parameters."""
        own = {name: getattr(self.module, torch_name) for name, torch_name in self.torch_names}
        return {name: copied(parameter) for name, parameter in own.items() if parameter is not None}

    def initial_states(self, rng: Any) -> Mapping[str, Any]:
        """The native layer's, with copies of the module's statistics and with its mode."""
        own = dict(super().initial_states(rng))
        for name in own:
            if name == "training":
                own[name] = self.module.training
            elif hasattr(self.module, name):
                own[name] = copied(getattr(self.module, name))
        return own


class DenseFromTorch(FromTorch, Dense):
    """A `Dense` made of a `torch.nn.Linear`.

    Args:
        module: the torch module.
    """

    torch_names = (("weight", "weight"), ("bias", "bias"))

    def __init__(self, module: Any) -> None:
        super().__init__(module.in_features, module.out_features, use_bias=module.bias is not None)
        self.module = module


class BatchNormFromTorch(FromTorch, BatchNorm):
    """A `BatchNorm` made of a `torch.nn.BatchNorm1d`, `BatchNorm2d` or `BatchNorm3d`.

    Args:
        module: the torch module.

    Raises:
        NoCounterpart: for ``momentum=None``, which has no counterpart.
    """

    torch_names = (("scale", "weight"), ("bias", "bias"))

    def __init__(self, module: Any) -> None:
        _expect(module.momentum is not None, "momentum=None (the average of all batches)")
        _expect(module.track_running_stats == (module.running_mean is not None), "track_running_stats set later")
        super().__init__(
            module.num_features,
            affine=module.affine,
            track_stats=module.track_running_stats,
            epsilon=module.eps,
            momentum=module.momentum,
        )
        self.module = module


class LayerNormFromTorch(FromTorch, LayerNorm):
    """A `LayerNorm` made of a `torch.nn.LayerNorm`.

    Args:
        module: the torch module.

    Raises:
        NoCounterpart: for a scale without a bias, which has no counterpart.
    """

    torch_names = (("scale", "weight"), ("bias", "bias"))

    def __init__(self, module: Any) -> None:
        _expect((module.weight is None) == (module.bias is None), "a scale without a bias")
        super().__init__(tuple(module.normalized_shape), affine=module.elementwise_affine, epsilon=module.eps)
        self.module = module


class DropoutFromTorch(FromTorch, Dropout):
    """A `Dropout` made of a `torch.nn.Dropout`; its masks come from its own random state, not from torch's.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module.p)
        self.module = module


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise NoCounterpart(f"{otherwise} has no counterpart")


def _flatten(module: Any) -> Layer:
    _expect((module.start_dim, module.end_dim) == (1, -1), "a range of axes")
    return FlattenLayer()


def _activation(record: Activation, **options: Any) -> Callable[[Any], Layer]:
    """How a module is made an activation that only has these values of the module's options."""

    def make(module: Any) -> Layer:
        for name, value in options.items():
            _expect(getattr(module, name) == value, f"{name}={getattr(module, name)!r}")
        return WrappedFunction(record)

    return make


def _gelu(module: Any) -> Layer:
    return WrappedFunction(nn.gelu if module.approximate == "tanh" else nn.gelu_erf)


# By the class's name in torch.nn, so that this table needs no torch.
_MAKERS: Mapping[str, Callable[[Any], Layer]] = {
    "Linear": DenseFromTorch,
    "BatchNorm1d": BatchNormFromTorch,
    "BatchNorm2d": BatchNormFromTorch,
    "BatchNorm3d": BatchNormFromTorch,
    "LayerNorm": LayerNormFromTorch,
    "Dropout": DropoutFromTorch,
    "Flatten": _flatten,
    "Identity": lambda module: NoOpLayer(),
    "ReLU": _activation(nn.relu),
    "ReLU6": _activation(nn.relu6),
    "LeakyReLU": lambda module: WrappedFunction(nn.leakyrelu.replace(slope=module.negative_slope)),
    "ELU": lambda module: WrappedFunction(nn.elu.replace(alpha=module.alpha)),
    "SELU": _activation(nn.selu),
    "CELU": lambda module: WrappedFunction(nn.celu.replace(alpha=module.alpha)),
    "GELU": _gelu,
    "SiLU": _activation(nn.swish),
    "Hardswish": _activation(nn.hardswish),
    "Mish": _activation(nn.mish),
    "Sigmoid": _activation(nn.sigmoid),
    "Hardsigmoid": _activation(nn.hardsigmoid),
    "LogSigmoid": _activation(nn.logsigmoid),
    "Tanh": _activation(nn.tanh),
    "Hardtanh": _activation(nn.hardtanh, min_val=-1.0, max_val=1.0),
    "Tanhshrink": _activation(nn.tanhshrink),
    "Softplus": _activation(nn.softplus, beta=1.0, threshold=20.0),
    "Softsign": _activation(nn.softsign),
    "Softshrink": lambda module: WrappedFunction(nn.softshrink.replace(threshold=module.lambd)),
}


def native(module: Any) -> Layer:
    """The native layer that computes what a torch module without children computes.

    Raises:
        NoCounterpart: where there is none; its text is the reason.
    """
    import torch

    name = type(module).__name__
    make = _MAKERS.get(name)
    # Exactly torch's class: a subclass may compute something else.
    if make is None or type(module) is not getattr(torch.nn, name):
        raise NoCounterpart("no counterpart")
    try:
        return make(module)
    except LayerError as error:  # a value that the layer does not take
        raise NoCounterpart(str(error)) from error
