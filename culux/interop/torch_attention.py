"""What becomes of torch's attention."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from culux import numpy as cnp
from culux.autodiff.tracer import plain
from culux.backends import is_float_array
from culux.core import Layer, WrapperLayer
from culux.errors import ShapeError
from culux.interop.from_torch import ContainerFromTorch, check_plain, expect, expect_options
from culux.layers import MultiHeadAttention
from culux.layers.checks import shape_of
from culux.layers.recurrent_sequence import batch_first, swapped
from culux.tree import Tree

__all__ = ["arguments", "attention"]

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_FORM = "a tuple of torch's arguments, (q, k, v) up to average_attn_weights"


class AttentionFromTorch(ContainerFromTorch, MultiHeadAttention):
    """A `MultiHeadAttention` made of a `torch.nn.MultiheadAttention`; its in_proj is three projections here.

    Args:
        module: the torch module.
        return_weights: whether the weights are returned with y.

    Raises:
        NoCounterpart: for rows that torch adds to the keys and values, or biases of some projections only, or an
            out_proj of another class.
    """

    def __init__(self, module: Any, *, return_weights: bool) -> None:
        expect(module.bias_k is None, "add_bias_kv=True")
        expect_options(module, add_zero_attn=False)
        expect((module.in_proj_bias is None) == (module.out_proj.bias is None), "a bias of some projections only")
        check_plain(module.out_proj)
        kind = type(module.out_proj).__name__  # torch's own, or one that computes its weight
        expect(kind in ("Linear", "NonDynamicallyQuantizableLinear"), f"a {kind} as out_proj")
        super().__init__(
            module.embed_dim, num_heads=module.num_heads, key_dims=module.kdim, value_dims=module.vdim,
            use_bias=module.in_proj_bias is not None, dropout=float(module.dropout), return_weights=return_weights,
        )  # fmt: skip
        self.module = module

    def __repr__(self) -> str:
        """The module on one line, where torch takes three."""
        return f"{type(self).__name__}({type(self.module).__name__}({self.dims}, {self.num_heads}))"

    def torch_tensors(self) -> Mapping[str, Any]:
        """The path of every parameter, and the module's tensor, or the part of one, that it is a copy of."""
        module = self.module
        weights = [getattr(module, f"{name}_weight") for name in _PROJECTIONS]
        if module.in_proj_weight is not None:
            weights = module.in_proj_weight.chunk(3)
        own = {f"{name}.weight": weight for name, weight in zip(_PROJECTIONS, weights, strict=True)}
        own["out_proj.weight"] = module.out_proj.weight
        if self.use_bias:
            biases = module.in_proj_bias.chunk(3)
            own |= {f"{name}.bias": bias for name, bias in zip(_PROJECTIONS, biases, strict=True)}
            own["out_proj.bias"] = module.out_proj.bias
        return own


class AttentionAsInTorch(WrapperLayer):
    """A `MultiHeadAttention`, called as torch's is: ``y, weights = layer((q, k, v))``, the mean weights of all heads.

    Args:
        layer: the native layer; without its `return_weights` the weights are None.
        time_axis: 1, or 0 for sequences ``(length, batch, features)``, of q, k, v and y.

    Inputs:
        x: a tuple of the arguments of torch's call, in its order: ``(q, k, v)``, and behind them key_padding_mask,
            need_weights, attn_mask, average_attn_weights. The masks are torch's: True where a key is hidden, or float
            and added; a step that may attend to nothing finds zeros, where torch with weights finds NaN.

    Returns:
        ``(y, weights)``, the weights ``(batch, length, kv_length)``, or those of every head, or None; and the states
        of `layer`.

    Parameters:
        Those of `layer`.

    States:
        Those of `layer`.

    Raises:
        ShapeError: when called, for what is no such tuple, or inputs that do not fit.
    """

    layer: MultiHeadAttention
    time_axis: int

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The layer, called in its own form."""
        q, k, v, padding, need_weights, mask, average = arguments(x, 3, (None, True, None, True), _FORM)
        q, k, v = (batch_first(array, self._axis_of(shape_of(array))) for array in (q, k, v))
        mask = _shown(padding, mask, (*q.shape[:-2], self.layer.num_heads, q.shape[-2], k.shape[-2]))
        found, st = self.layer((q, k, v) if mask is None else (q, k, v, mask), ps, st)
        y, weights = found if self.layer.return_weights else (found, None)
        if not need_weights:
            weights = None
        elif weights is not None and average:
            weights = cnp.mean(weights, axis=-3)
        return (batch_first(y, self._axis_of(y.shape)), weights), st

    def output_shape(self, input_shape: Any) -> Any:
        """The shapes of what the call returns, for q, k and v of these shapes."""
        found = self.layer.output_shape(tuple(swapped(shape, self._axis_of(shape)) for shape in input_shape[:3]))
        y, weights = found if self.layer.return_weights else (found, None)
        return swapped(y, self._axis_of(y)), weights and (*weights[:-3], *weights[-2:])

    def _axis_of(self, shape: tuple[int, ...]) -> int:
        """The time axis of a batch; one sequence has no batch, and its features behind the time."""
        if len(shape) not in (2, 3):
            raise ShapeError(f"expected q, k and v to have 2 or 3 axes, got the shape {tuple(shape)}")
        return self.time_axis if len(shape) == 3 else 1


def arguments(x: Any, needed: int, defaults: tuple[Any, ...], form: str) -> tuple[Any, ...]:
    """The arguments of a call as torch has it, with the defaults of those that are not given."""
    given = x if type(x) is tuple else (x,)
    missing = needed + len(defaults) - len(given)
    if not 0 <= missing <= len(defaults):
        raise ShapeError(
            f"expected {form}, got {f'a tuple of {len(x)}' if type(x) is tuple else 'one input'}; "
            "culux.interop.TorchLayer(module) takes all that torch's takes"
        )
    return (*given, *defaults[len(defaults) - missing :])


def _shown(padding: Any, mask: Any, shape: tuple[int, ...]) -> Any:
    """Torch's masks, which hide, as the one of culux, which shows, for weights of this shape."""
    if mask is not None and mask.ndim == 3:
        if mask.shape[0] != math.prod(shape[:-2]):
            raise ShapeError(
                f"expected attn_mask of shape {shape[-2:]} or {(math.prod(shape[:-2]), *shape[-2:])}, for every head "
                f"of every sequence, got {tuple(mask.shape)}"
            )
        mask = cnp.reshape(mask, (*shape[:-2], *mask.shape[1:]))
    if padding is not None:
        padding = padding[..., None, None, :]
    given = [part for part in (padding, mask) if part is not None]
    added = [part for part in given if is_float_array(plain(part))]
    hidden = [part for part in given if not is_float_array(plain(part))]
    if not added:
        return ~functools.reduce(operator.or_, hidden) if hidden else None
    return functools.reduce(lambda total, part: cnp.where(part, -np.inf, total), hidden, sum(added[1:], added[0]))


def attention(module: Any, *, return_weights: bool = True) -> Layer:
    """The layer that a `torch.nn.MultiheadAttention` becomes."""
    layer = AttentionFromTorch(module, return_weights=return_weights)
    return AttentionAsInTorch(layer, 1 if module.batch_first else 0)
