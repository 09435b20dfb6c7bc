"""What becomes of torch's attention, and of the transformers made of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from culux.core import ContainerLayer, Layer
from culux.interop.from_torch import NoCounterpart, check_unshared, counterpart, expect
from culux.interop.torch_attention import arguments, attention
from culux.interop.torch_basic import BASIC
from culux.interop.torch_norms import NORMS
from culux.layers import NoOpLayer

__all__ = ["TRANSFORMERS"]


class TransformerEncoderLayer(ContainerLayer):
    """Self-attention and two dense layers: ``x = norm1(x + self_attn(x))``, ``y = norm2(x + f(x))``.

    The dense layers are ``f(x) = linear2(activation(linear1(x)))``; with `norm_first` ``x + f(norm(x))`` takes the
    place of ``norm(x + f(x))``, in both. Vaswani et al., "Attention is all you need", 2017; as torch has it.

    Args:
        self_attn, linear1, linear2, norm1, norm2, dropout, dropout1, dropout2, activation: the layers, under the names
            that torch has for them.
        norm_first: whether the norms come before the attention and the dense layers, not after the sums.

    Inputs:
        x: ``(batch, length, features)``, for an attention with ``time_axis=0`` ``(length, batch, features)``; or a
            tuple of the arguments of torch's call, in its order: ``(x, mask, key_padding_mask)``.

    Returns:
        y of the shape of x, and the states, with the dropouts' moved on.

    Parameters:
        Those of the layers.

    States:
        Those of the layers.

    Raises:
        ShapeError: when called, for inputs that do not fit.
    """

    self_attn: Layer
    linear1: Layer
    linear2: Layer
    norm1: Layer
    norm2: Layer
    dropout: Layer
    dropout1: Layer
    dropout2: Layer
    activation: Layer
    norm_first: bool

    def forward(self, m: Any, x: Any) -> Any:
        """Both parts, each added to its input."""
        x, mask, padding = arguments(x, 1, (None, None), "x, (x, mask) or (x, mask, key_padding_mask)")
        parts = [
            (m.norm1, lambda x: m.dropout1(m.self_attn((x, x, x, padding, False, mask))[0])),
            (m.norm2, lambda x: m.dropout2(_dense(m, x))),
        ]
        return _added(x, parts, self.norm_first)

    def output_shape(self, input_shape: Any) -> Any:
        """The shape of x."""
        x = _first(input_shape)
        return self.self_attn.output_shape((x, x, x))[0]


class TransformerDecoderLayer(ContainerLayer):
    """A `TransformerEncoderLayer` that also attends to a memory: ``x = norm2(x + multihead_attn(x, memory))`` between.

    The dense layers come third, ``y = norm3(x + f(x))``; with `norm_first` ``x + f(norm(x))`` takes the place of
    ``norm(x + f(x))``, in all three. Vaswani et al., "Attention is all you need", 2017; as torch has it.

    Args:
        self_attn, multihead_attn, linear1, linear2, norm1, norm2, norm3, dropout, dropout1, dropout2, dropout3,
            activation: the layers, under the names that torch has for them.
        norm_first: whether the norms come before the attentions and the dense layers, not after the sums.

    Inputs:
        x: a tuple of the arguments of torch's call, in its order: ``(x, memory)``, and behind them tgt_mask,
            memory_mask, tgt_key_padding_mask, memory_key_padding_mask. Both are ``(batch, length, features)``, for
            attentions with ``time_axis=0`` ``(length, batch, features)``.

    Returns:
        y of the shape of x, and the states, with the dropouts' moved on.

    Parameters:
        Those of the layers.

    States:
        Those of the layers.

    Raises:
        ShapeError: when called, for inputs that do not fit.
    """

    self_attn: Layer
    multihead_attn: Layer
    linear1: Layer
    linear2: Layer
    norm1: Layer
    norm2: Layer
    norm3: Layer
    dropout: Layer
    dropout1: Layer
    dropout2: Layer
    dropout3: Layer
    activation: Layer
    norm_first: bool

    def forward(self, m: Any, x: Any) -> Any:
        """The three parts, each added to its input."""
        form = "a tuple of torch's arguments, (tgt, memory) up to memory_key_padding_mask"
        x, memory, mask, memory_mask, padding, memory_padding = arguments(x, 2, (None,) * 4, form)
        across = (memory, memory, memory_padding, False, memory_mask)
        parts = [
            (m.norm1, lambda x: m.dropout1(m.self_attn((x, x, x, padding, False, mask))[0])),
            (m.norm2, lambda x: m.dropout2(m.multihead_attn((x, *across))[0])),
            (m.norm3, lambda x: m.dropout3(_dense(m, x))),
        ]
        return _added(x, parts, self.norm_first)

    def output_shape(self, input_shape: Any) -> Any:
        """The shape of the first input, for the shapes of both."""
        x, memory, *_ = input_shape
        return self.multihead_attn.output_shape((self.self_attn.output_shape((x, x, x))[0], memory, memory))[0]


class TransformerStack(ContainerLayer):
    """Encoder or decoder layers, one after the other: ``y = norm(layers_n(...layers_1(x)))``.

    Args:
        layers: the layers.
        norm: the layer at the end.

    Inputs:
        x: what a layer takes; all of them get what comes behind the first input, such as masks.

    Returns:
        What the norm returns, and the states.

    Parameters:
        layers_1, layers_2, ...: those of the layers.
        norm: those of the norm.

    States:
        As the parameters.
    """

    layers: tuple[Layer, ...]
    norm: Layer

    def forward(self, m: Any, x: Any) -> Any:
        """The layers, one after the other."""
        y, *others = x if type(x) is tuple else (x,)
        for layer in m.layers:
            y = layer((y, *others))
        return m.norm(y)

    def output_shape(self, input_shape: Any) -> Any:
        """The shape of the first input."""
        for layer in self.layers:
            layer.output_shape(input_shape)
        return self.norm.output_shape(_first(input_shape))


class Transformer(ContainerLayer):
    """An encoder, and a decoder that attends to what it finds: ``y = decoder((tgt, encoder(src)))``.

    Vaswani et al., "Attention is all you need", 2017; as torch has it.

    Args:
        encoder: a `TransformerStack` of encoder layers.
        decoder: a `TransformerStack` of decoder layers.

    Inputs:
        x: a tuple of the arguments of torch's call, in its order: ``(src, tgt)``, and behind them src_mask, tgt_mask,
            memory_mask, src_key_padding_mask, tgt_key_padding_mask, memory_key_padding_mask.

    Returns:
        y of the shape of tgt, and the states, with the dropouts' moved on.

    Parameters:
        encoder, decoder: those of the stacks.

    States:
        encoder, decoder: those of the stacks.

    Raises:
        ShapeError: when called, for inputs that do not fit.
    """

    encoder: Layer
    decoder: Layer

    def forward(self, m: Any, x: Any) -> Any:
        """The encoder on src, then the decoder on tgt."""
        form = "a tuple of torch's arguments, (src, tgt) up to memory_key_padding_mask"
        src, tgt, mask, tgt_mask, memory_mask, padding, tgt_padding, memory_padding = arguments(x, 2, (None,) * 6, form)
        memory = m.encoder((src, mask, padding))
        return m.decoder((tgt, memory, tgt_mask, memory_mask, tgt_padding, memory_padding))

    def output_shape(self, input_shape: Any) -> Any:
        """The shape of tgt, for the shapes of both."""
        src, tgt, *_ = input_shape
        memory: Any = self.encoder.output_shape(src)
        return self.decoder.output_shape((tgt, memory))


def _first(input_shape: Any) -> Any:
    """The shape of the first input, of one shape or those of a tuple."""
    return input_shape[0] if input_shape and isinstance(input_shape[0], tuple) else input_shape


def _dense(m: Any, x: Any) -> Any:
    """The dense layers of an encoder's or a decoder's layer."""
    return m.linear2(m.dropout(m.activation(m.linear1(x))))


def _added(x: Any, parts: Sequence[tuple[Any, Callable[[Any], Any]]], norm_first: bool) -> Any:
    """What the parts find, added to their inputs and normalised: each after its sum, or before the part."""
    for norm, part in parts:
        x = x + part(norm(x)) if norm_first else norm(x + part(x))
    return x


def _block(kind: Callable[..., Layer], names: Sequence[str]) -> Callable[[Any], Layer]:
    """How a module is made an encoder's or a decoder's layer, of its children of these names."""

    def make(module: Any) -> Layer:
        parts = {name: getattr(module, name) for name in names}
        return kind(**_made({**parts, "activation": _activation(module.activation)}), norm_first=module.norm_first)

    return make


def _activation(function: Any) -> Any:
    """The module of an activation that may be given as one or as a function."""
    import torch

    if isinstance(function, torch.nn.Module):
        return function
    modules = {torch.nn.functional.relu: torch.nn.ReLU(), torch.nn.functional.gelu: torch.nn.GELU()}
    expect(function in modules, f"activation={getattr(function, '__name__', function)!r}")
    return modules[function]


def _stack(module: Any) -> Layer:
    parts = {f"layers.{i}": child for i, child in enumerate(module.layers)}
    made = _made(parts if module.norm is None else {**parts, "norm": module.norm})
    norm = made.pop("norm", NoOpLayer())
    return TransformerStack(tuple(made.values()), norm)


def _transformer(module: Any) -> Layer:
    return Transformer(**_made({"encoder": module.encoder, "decoder": module.decoder}))


def _made(modules: Mapping[str, Any]) -> dict[str, Layer]:
    """The layers that modules become, by the same names; all of them, or there is no counterpart."""
    check_unshared(modules.values())
    made = {}
    for name, module in modules.items():
        try:
            made[name] = counterpart(module, _PARTS)
        except NoCounterpart as reason:
            raise NoCounterpart(f"{name}: {reason}") from reason
    return made


_SHARED = ("self_attn", "linear1", "linear2", "norm1", "norm2", "dropout", "dropout1", "dropout2")

TRANSFORMERS: Mapping[str, Callable[[Any], Layer]] = {
    "MultiheadAttention": attention,
    "TransformerEncoderLayer": _block(TransformerEncoderLayer, _SHARED),
    "TransformerDecoderLayer": _block(TransformerDecoderLayer, (*_SHARED, "multihead_attn", "norm3", "dropout3")),
    "TransformerEncoder": _stack,
    "TransformerDecoder": _stack,
    "Transformer": _transformer,
}
"""How a module of a class is made a layer."""

# A transformer asks its attentions for no weights.
_PARTS: Mapping[str, Callable[[Any], Layer]] = {
    **BASIC,
    **NORMS,
    **TRANSFORMERS,
    "MultiheadAttention": functools.partial(attention, return_weights=False),
}
