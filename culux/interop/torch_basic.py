"""What becomes of torch's linear layers, embeddings, dropouts, activations and changes of shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from culux import nn
from culux.core import Layer
from culux.interop.from_torch import FromTorch, WithAxes, expect, expect_options, spatial_axes
from culux.layers import (
    AlphaDropout,
    Bilinear,
    Dense,
    Dropout,
    Embedding,
    FlattenLayer,
    NoOpLayer,
    ReshapeLayer,
    WrappedFunction,
)
from culux.nn.activation import Activation

__all__ = ["BASIC"]


class DenseFromTorch(FromTorch, Dense):
    """A `Dense` made of a `torch.nn.Linear`.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module.in_features, module.out_features, use_bias=module.bias is not None)
        self.module = module


class BilinearFromTorch(FromTorch, Bilinear):
    """A `Bilinear` made of a `torch.nn.Bilinear`.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        pair = (module.in1_features, module.in2_features)
        super().__init__(pair, module.out_features, use_bias=module.bias is not None)
        self.module = module


class EmbeddingFromTorch(FromTorch, Embedding):
    """An `Embedding` made of a `torch.nn.Embedding`; its gradient is an array, for ``sparse=True``, too.

    Args:
        module: the torch module.

    Raises:
        NoCounterpart: for options that change the weight or its gradient.
    """

    def __init__(self, module: Any) -> None:
        expect_options(module, padding_idx=None, max_norm=None, scale_grad_by_freq=False)
        super().__init__(module.num_embeddings, module.embedding_dim)
        self.module = module


class DropoutFromTorch(FromTorch, Dropout):
    """A `Dropout` made of a `torch.nn.Dropout`; its masks come from its own random state, not from torch's.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module.p)
        self.module = module


class ChannelDropoutFromTorch(WithAxes, Dropout):
    """A `Dropout` of whole channels made of a `torch.nn.Dropout1d`, `Dropout2d` or `Dropout3d`.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module.p, axes=(0, 1))
        self.ndim = 2 + spatial_axes(module)
        self.module = module


class AlphaDropoutFromTorch(FromTorch, AlphaDropout):
    """An `AlphaDropout` made of a `torch.nn.AlphaDropout`; its masks come from its own random state, not from torch's.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module.p)
        self.module = module


class ReshapeFromTorch(WithAxes, ReshapeLayer):
    """A `ReshapeLayer` made of a `torch.nn.Unflatten` of axis 1, for an x that has no axes behind it.

    Args:
        module: the torch module.

    Raises:
        NoCounterpart: for another axis.
    """

    def __init__(self, module: Any) -> None:
        expect_options(module, dim=1)
        super().__init__(tuple(module.unflattened_size))
        self.ndim = 2
        self.module = module


def _flatten(module: Any) -> Layer:
    expect((module.start_dim, module.end_dim) == (1, -1), "a range of axes")
    return FlattenLayer()


def _activation(record: Activation, **options: Any) -> Callable[[Any], Layer]:
    """How a module is made an activation that only has these values of the module's options."""

    def make(module: Any) -> Layer:
        expect_options(module, **options)
        return WrappedFunction(record)

    return make


def _gelu(module: Any) -> Layer:
    return WrappedFunction(nn.gelu if module.approximate == "tanh" else nn.gelu_erf)


BASIC: Mapping[str, Callable[[Any], Layer]] = {
    "Linear": DenseFromTorch,
    "Bilinear": BilinearFromTorch,
    "Embedding": EmbeddingFromTorch,
    "Dropout": DropoutFromTorch,
    "Dropout1d": ChannelDropoutFromTorch,
    "Dropout2d": ChannelDropoutFromTorch,
    "Dropout3d": ChannelDropoutFromTorch,
    "AlphaDropout": AlphaDropoutFromTorch,
    "Flatten": _flatten,
    "Unflatten": ReshapeFromTorch,
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
"""How a module of a class is made a layer."""
