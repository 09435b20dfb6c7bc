"""Attention of several heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import Any

import numpy as np

from culux import init
from culux import numpy as cnp
from culux.backends import Array
from culux.core import ContainerLayer, Layer
from culux.core.fields import CHILDREN
from culux.errors import LayerError, ShapeError
from culux.layers.basic import Dense, NoOpLayer
from culux.layers.checks import check_flag, check_initialiser, check_length, check_probability, made, shape_of
from culux.layers.dropout import Dropout
from culux.nn.attention import attention_weights, check_mask, weighted_values
from culux.nn.fused import narrow
from culux.tree import Tree, trusted

__all__ = ["MultiHeadAttention"]

_FORMS = "the inputs are x, (q, kv), (q, k, v) or (q, k, v, mask)"


class MultiHeadAttention(ContainerLayer):
    """Attention of several heads: ``y = out_proj(concatenate(softmax(q_h @ k_h.T / sqrt(head_dims)) @ v_h))``.

    The heads h are the parts of ``q_proj(q)``, ``k_proj(k)`` and ``v_proj(v)``. The softmax is over the steps of k that
    a step of q may attend to; one that may attend to nothing finds zeros. Vaswani et al., "Attention is all you need",
    2017; with fewer heads of keys and values than of queries Ainslie et al., "GQA", 2023.

    Args:
        dims: the number of features of q.
        num_heads: the number of heads.
        num_kv_heads: the number of heads of keys and values, each of which serves as many successive heads of queries;
            None for `num_heads`.
        head_dims: the number of features of a head's queries and keys; None for ``dims / num_heads``.
        value_head_dims: the number of features of a head's values; None for `head_dims`.
        key_dims: the number of features of k; None for `dims`.
        value_dims: the number of features of v; None for `dims`.
        out_dims: the number of features of y; None for `dims`.
        use_bias: whether the projections have biases.
        dropout: the probability of dropping a weight, in training.
        causal: whether step i of q may only attend to the steps j <= i of k.
        return_weights: whether the weights are returned with y.
        init_weight: an initialiser of the projections' weights; None for torch's: `glorot_uniform` for q_proj, k_proj
            and v_proj, as parts of one matrix where q, k and v have equally many features, and U(-b, b) with
            ``b = 1 / sqrt(in)`` for out_proj.
        init_bias: an initialiser of the projections' biases; None for zeros.

    Inputs:
        x: ``(batch, length, dims)``, attending to itself. Or a tuple: ``(q, kv)``, ``(q, k, v)`` or
            ``(q, k, v, mask)``, with q ``(batch, length, dims)``, k ``(batch, kv_length, key_dims)``, v
            ``(batch, kv_length, value_dims)`` and a mask that broadcasts to ``(batch, num_heads, length, kv_length)``:
            bool, True where q may attend to k, or float, added before the softmax. Any leading axes do for the batch.

    Returns:
        y ``(batch, length, out_dims)``, with `return_weights` ``(y, weights)``, those
        ``(batch, num_heads, length, kv_length)`` and after dropout; and the states, with dropout's moved on.

    Parameters:
        q_proj, k_proj, v_proj, out_proj: those of `Dense`.
        attention_dropout: none.

    States:
        attention_dropout: those of `Dropout`, where there is dropout.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for inputs or a mask that do not fit, or parameters of another model.
        DTypeError: when called, for an input that is no float array, or a mask that is neither bool nor float.
    """

    dims: int
    _: KW_ONLY
    num_heads: int = 1
    num_kv_heads: int | None = None
    head_dims: int | None = None
    value_head_dims: int | None = None
    key_dims: int | None = None
    value_dims: int | None = None
    out_dims: int | None = None
    use_bias: bool = True
    dropout: float = 0.0
    causal: bool = False
    return_weights: bool = False
    init_weight: Callable[..., Any] | None = None
    init_bias: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_length(name, "dims", self.dims)
        check_length(name, "num_heads", self.num_heads)
        for field in ("num_kv_heads", "head_dims", "value_head_dims", "key_dims", "value_dims", "out_dims"):
            if getattr(self, field) is not None:
                check_length(name, field, getattr(self, field))
        if self.head_dims is None and self.dims % self.num_heads:
            raise LayerError(
                f"{name}: expected dims to be a multiple of num_heads, got {self.dims} and {self.num_heads}; "
                "head_dims= gives the heads another length"
            )
        if self.num_heads % self._kv_heads:
            raise LayerError(
                f"{name}: expected num_heads to be a multiple of num_kv_heads, got {self.num_heads} and "
                f"{self.num_kv_heads}"
            )
        check_probability(name, "dropout", self.dropout)
        for field in ("use_bias", "causal", "return_weights"):
            check_flag(name, field, getattr(self, field))
        check_initialiser(name, "init_weight", self.init_weight)
        check_initialiser(name, "init_bias", self.init_bias)

    @property
    def _kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    def children(self) -> Mapping[str, Layer]:
        """The projections, and the dropout of the weights."""
        head = self.head_dims or self.dims // self.num_heads
        value_head = self.value_head_dims or head
        key_dims, value_dims = self.key_dims or self.dims, self.value_dims or self.dims
        bias = self.use_bias
        return {
            "q_proj": Dense(self.dims, self.num_heads * head, use_bias=bias),
            "k_proj": Dense(key_dims, self._kv_heads * head, use_bias=bias),
            "v_proj": Dense(value_dims, self._kv_heads * value_head, use_bias=bias),
            "attention_dropout": Dropout(self.dropout) if self.dropout else NoOpLayer(),
            "out_proj": Dense(self.num_heads * value_head, self.out_dims or self.dims, use_bias=bias),
        }

    def initial_parameters(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Those of the projections, in the place of `Dense`'s own."""
        return {name: self._drawn(rng, name, layer) for name, layer in self.children().items() if type(layer) is Dense}

    def _drawn(self, rng: np.random.Generator, name: str, layer: Dense) -> dict[str, Any]:
        """The parameters of a projection."""
        default: Callable[..., Any] | None = None
        if name != "out_proj":
            # torch draws the three as one matrix, whose rows are three times as many, where it can.
            together = self.dims == (self.key_dims or self.dims) == (self.value_dims or self.dims)
            default = init.glorot_uniform.replace(gain=2**-0.5 if together else 1.0)
        shape = (layer.out_dims, layer.in_dims)
        ps = {"weight": made(rng, "init_weight", self.init_weight or default, shape, layer.in_dims)}
        if self.use_bias:
            ps["bias"] = made(rng, "init_bias", self.init_bias or init.zeros, shape[:1])
        return ps

    def output_shape(self, input_shape: tuple[Any, ...]) -> Any:
        """``(batch, length, out_dims)``, with `return_weights` beside the weights', for an x or a tuple of inputs."""
        tupled = any(isinstance(entry, tuple) for entry in input_shape)
        q, k, v, mask = _inputs(input_shape, tupled)
        y, weights = self._shapes(q, k, v)
        if mask is not None:
            check_mask(tuple(mask), weights)
        return (y, weights) if self.return_weights else y

    def _shapes(
        self, q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of y and the weights for inputs of these shapes."""
        lengths = self.dims, self.key_dims or self.dims, self.value_dims or self.dims
        for name, shape, features in zip("qkv", (q, k, v), lengths, strict=True):
            if len(shape) < 2 or shape[-1] != features:
                raise ShapeError(f"expected {name} of shape (batch, length, {features}), got {tuple(shape)}; {_FORMS}")
        if q[:-2] != k[:-2] or k[:-1] != v[:-1]:
            raise ShapeError(
                "expected q, k and v of one batch, and k and v of one length, got the shapes "
                f"{tuple(q)}, {tuple(k)} and {tuple(v)}; {_FORMS}"
            )
        return (*q[:-1], self.out_dims or self.dims), (*q[:-2], self.num_heads, q[-2], k[-2])

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Project, attend, and project what all heads found."""
        q, k, v, mask = _inputs(x, type(x) is tuple)
        self._shapes(shape_of(q), shape_of(k), shape_of(v))
        layers = self.__dict__[CHILDREN]

        def project(name: str, x: Array) -> Array:
            return layers[name](x, ps[name], st[name])[0]

        q = _heads(project("q_proj", q), self.num_heads)
        k = _heads(project("k_proj", k), self._kv_heads)
        v = _heads(project("v_proj", v), self._kv_heads)
        weights = attention_weights(q, k, mask=mask, causal=self.causal)
        name = "attention_dropout"
        weights, after = layers[name](weights, ps[name], st[name])
        found = cnp.swapaxes(weighted_values(weights, v), -2, -3)
        y = project("out_proj", cnp.reshape(found, (*found.shape[:-2], found.shape[-2] * found.shape[-1])))
        st = st if after is st[name] else trusted({**st, name: after})
        return ((y, narrow(weights, q)) if self.return_weights else y), st


def _inputs(x: Any, tupled: bool) -> tuple[Any, Any, Any, Any]:
    """The inputs, or their shapes, as q, k, v and a mask or None."""
    if not tupled:
        return x, x, x, None
    if not 2 <= len(x) <= 4:
        raise ShapeError(f"expected x or a tuple of 2 to 4 inputs, got a tuple of {len(x)}; {_FORMS}")
    if len(x) == 2:
        x = (*x, x[1])
    q, k, v, *mask = x
    return q, k, v, mask[0] if mask else None


def _heads(x: Array, heads: int) -> Array:
    """``(..., length, heads * dims)`` as ``(..., heads, length, dims)``."""
    return cnp.swapaxes(cnp.reshape(x, (*x.shape[:-1], heads, x.shape[-1] // heads)), -2, -3)
