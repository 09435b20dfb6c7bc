"""What becomes of torch's normalisations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from culux.core import Layer
from culux.interop.from_torch import FromTorch, WithAxes, expect, spatial_axes
from culux.layers import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm

__all__ = ["NORMS"]


class _NormFromTorch(FromTorch):
    """What the normalisations have in common: the names of their parameters."""

    def torch_names(self) -> Mapping[str, str]:
        """The path of every parameter, and the module's name for it."""
        return {"scale": "weight", "bias": "bias"}


class BatchNormFromTorch(_NormFromTorch, BatchNorm):
    """A `BatchNorm` made of a `torch.nn.BatchNorm1d`, `BatchNorm2d` or `BatchNorm3d`.

    Args:
        module: the torch module.

    Raises:
        NoCounterpart: for ``momentum=None``, or a scale without a bias.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module.num_features, **_channel_options(module))
        self.module = module


class InstanceNormFromTorch(WithAxes, _NormFromTorch, InstanceNorm):
    """An `InstanceNorm` made of a `torch.nn.InstanceNorm1d`, `InstanceNorm2d` or `InstanceNorm3d`.

    Args:
        module: the torch module.

    Raises:
        NoCounterpart: for ``momentum=None``, or a scale without a bias.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module.num_features, **_channel_options(module))
        self.ndim = 2 + spatial_axes(module)
        self.module = module


class GroupNormFromTorch(_NormFromTorch, GroupNorm):
    """A `GroupNorm` made of a `torch.nn.GroupNorm`.

    Args:
        module: the torch module.

    Raises:
        NoCounterpart: for a scale without a bias.
    """

    def __init__(self, module: Any) -> None:
        affine = _is_affine(module)
        super().__init__(module.num_channels, module.num_groups, affine=affine, epsilon=module.eps)
        self.module = module


class LayerNormFromTorch(_NormFromTorch, LayerNorm):
    """A `LayerNorm` made of a `torch.nn.LayerNorm`.

    Args:
        module: the torch module.

    Raises:
        NoCounterpart: for a scale without a bias.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(tuple(module.normalized_shape), affine=_is_affine(module), epsilon=module.eps)
        self.module = module


class RMSNormFromTorch(_NormFromTorch, RMSNorm):
    """An `RMSNorm` made of a `torch.nn.RMSNorm`.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(tuple(module.normalized_shape), affine=module.elementwise_affine, epsilon=module.eps)
        self.module = module


def _is_affine(module: Any) -> bool:
    expect((module.weight is None) == (module.bias is None), "a scale without a bias")
    return module.weight is not None


def _channel_options(module: Any) -> dict[str, Any]:
    """The options that `BatchNorm` and `InstanceNorm` share."""
    expect(module.momentum is not None, "momentum=None (the average of all batches)")
    expect(module.track_running_stats == (module.running_mean is not None), "track_running_stats set later")
    return {
        "affine": _is_affine(module),
        "track_stats": module.track_running_stats,
        "epsilon": module.eps,
        "momentum": module.momentum,
    }


NORMS: Mapping[str, Callable[[Any], Layer]] = {
    "BatchNorm1d": BatchNormFromTorch,
    "BatchNorm2d": BatchNormFromTorch,
    "BatchNorm3d": BatchNormFromTorch,
    "InstanceNorm1d": InstanceNormFromTorch,
    "InstanceNorm2d": InstanceNormFromTorch,
    "InstanceNorm3d": InstanceNormFromTorch,
    "GroupNorm": GroupNormFromTorch,
    "LayerNorm": LayerNormFromTorch,
    "RMSNorm": RMSNormFromTorch,
}
"""How a module of a class is made a layer."""
