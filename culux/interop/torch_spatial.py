"""What becomes of torch's convolutions, pools and resizing layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from culux.core import Layer
from culux.interop.from_torch import FromTorch, WithAxes, each_axis, expect, expect_options, spatial_axes
from culux.layers import (
    AdaptiveMaxPool,
    AdaptiveMeanPool,
    Conv,
    ConvTranspose,
    LPPool,
    MaxPool,
    MeanPool,
    PixelShuffle,
    Upsample,
)

__all__ = ["SPATIAL"]


class ConvFromTorch(FromTorch, Conv):
    """A `Conv` made of a `torch.nn.Conv1d`, `Conv2d` or `Conv3d`.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(
            module.kernel_size, module.in_channels, module.out_channels, stride=module.stride, padding=module.padding,
            dilation=module.dilation, groups=module.groups, use_bias=module.bias is not None,
            padding_mode=module.padding_mode,
        )  # fmt: skip
        self.module = module


class ConvTransposeFromTorch(FromTorch, ConvTranspose):
    """A `ConvTranspose` made of a `torch.nn.ConvTranspose1d`, `ConvTranspose2d` or `ConvTranspose3d`.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(
            module.kernel_size, module.in_channels, module.out_channels, stride=module.stride, padding=module.padding,
            output_padding=module.output_padding, dilation=module.dilation, groups=module.groups,
            use_bias=module.bias is not None,
        )  # fmt: skip
        self.module = module


class PixelShuffleFromTorch(WithAxes, PixelShuffle):
    """A `PixelShuffle` made of a `torch.nn.PixelShuffle`, for a batch of images.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module.upscale_factor)
        self.ndim = 4
        self.module = module


def _max_pool(module: Any) -> Layer:
    axes = spatial_axes(module)
    expect_options(module, return_indices=False, ceil_mode=False)
    window, stride, padding, dilation = (
        each_axis(value, axes) for value in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    return MaxPool(window, stride=stride, padding=padding, dilation=dilation)


def _mean_pool(module: Any) -> Layer:
    axes = spatial_axes(module)
    expect_options(module, ceil_mode=False, divisor_override=None)
    stride, padding = each_axis(module.stride, axes), each_axis(module.padding, axes)
    expect(module.count_include_pad or not any(padding), "count_include_pad=False")
    return MeanPool(each_axis(module.kernel_size, axes), stride=stride, padding=padding)


def _lp_pool(module: Any) -> Layer:
    axes = spatial_axes(module)
    expect_options(module, ceil_mode=False)
    stride = None if module.stride is None else each_axis(module.stride, axes)
    return LPPool(each_axis(module.kernel_size, axes), p=module.norm_type, stride=stride)


def _adaptive_max_pool(module: Any) -> Layer:
    expect_options(module, return_indices=False)
    return AdaptiveMaxPool(each_axis(module.output_size, spatial_axes(module)))


def _adaptive_mean_pool(module: Any) -> Layer:
    return AdaptiveMeanPool(each_axis(module.output_size, spatial_axes(module)))


def _upsample(module: Any) -> Layer:
    expect(not module.recompute_scale_factor, "recompute_scale_factor=True")
    corners = bool(module.align_corners)
    return Upsample(module.mode, scale=module.scale_factor, size=module.size, align_corners=corners)


def _in_each_dimension(name: str, make: Callable[[Any], Layer]) -> dict[str, Callable[[Any], Layer]]:
    return {f"{name}{axes}d": make for axes in (1, 2, 3)}


SPATIAL: Mapping[str, Callable[[Any], Layer]] = {
    **_in_each_dimension("Conv", ConvFromTorch),
    **_in_each_dimension("ConvTranspose", ConvTransposeFromTorch),
    **_in_each_dimension("MaxPool", _max_pool),
    **_in_each_dimension("AvgPool", _mean_pool),
    **_in_each_dimension("LPPool", _lp_pool),
    **_in_each_dimension("AdaptiveMaxPool", _adaptive_max_pool),
    **_in_each_dimension("AdaptiveAvgPool", _adaptive_mean_pool),
    "Upsample": _upsample,
    "UpsamplingNearest2d": _upsample,
    "UpsamplingBilinear2d": _upsample,
    "PixelShuffle": PixelShuffleFromTorch,
}
"""How a module of a class is made a layer."""
