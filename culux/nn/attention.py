"""`scaled_dot_product_attention`: means of values, weighted by how well queries and keys agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux import numpy as cnp
from culux.autodiff import primitive
from culux.autodiff.tracer import Pullback, plain
from culux.backends import Array, backend_of, is_array, is_float_array
from culux.errors import DTypeError, ShapeError, describe
from culux.nn.fused import decompose, evaluate_by_rule, is_plain, narrow, require_float, row_of_ones, widen
from culux.nn.softmax import bounded_max, softmax
from culux.numpy.broadcasting import fit, outline

__all__ = ["attention_weights", "check_mask", "scaled_dot_product_attention", "weighted_values"]


def scaled_dot_product_attention(
    q: Array, k: Array, v: Array, *, mask: Array | None = None, bias: Array | None = None, causal: bool = False,
    scale: float | None = None, return_weights: bool = False,
) -> Any:  # fmt: skip
    """``y = softmax(q @ k.T * scale + bias) @ v`` for every head, the softmax over what each query may attend to.

    A query that may attend to nothing gets weights and a y of zeros. With fewer heads of keys and values than of
    queries, each serves as many successive heads of queries. float16 and bfloat16 are computed in float32.
    (Vaswani et al., "Attention is all you need", 2017; Ainslie et al., "GQA", 2023.)

    Args:
        q: (..., heads, length, head_dims), float.
        k: (..., kv_heads, kv_length, head_dims), the leading axes those of `q`, heads a multiple of kv_heads.
        v: (..., kv_heads, kv_length, value_dims).
        mask: bool, True where a query may attend to a key; or float, added to the bias, with -inf for what is hidden.
            Of a shape that broadcasts to (..., heads, length, kv_length): one for padding, (batch, kv_length), is
            given as ``mask[:, None, None, :]``.
        bias: float and finite, of a shape that broadcasts to that, or None for 0.
        causal: whether query i may only attend to the keys j <= i (also where kv_length is not length), and among
            them to those that `mask` shows.
        scale: a factor on the products; None for ``1 / sqrt(head_dims)``.
        return_weights: whether the weights are returned with y.

    Returns:
        y (..., heads, length, value_dims) of the dtype of `v`; with `return_weights` ``(y, weights)``, those
        (..., heads, length, kv_length) of the dtype of `q`.

    Raises:
        ShapeError: for shapes that do not fit.
        DTypeError: for a `q`, `k`, `v` or `bias` that is no float array, or a mask that is neither bool nor float.
    """
    _check_values(q, k, v)
    weights = attention_weights(q, k, mask=mask, bias=bias, causal=causal, scale=scale)
    y = weighted_values(weights, v)
    return (y, narrow(weights, q)) if return_weights else y


def attention_weights(
    q: Array, k: Array, *, mask: Array | None = None, bias: Array | None = None, causal: bool = False,
    scale: float | None = None,
) -> Array:  # fmt: skip
    """``softmax(q @ k.T * scale + bias)``, the first half of `scaled_dot_product_attention`; float32 for halves."""
    shape = (*q.shape[:-1], k.shape[-2])
    if bias is not None:
        require_float("scaled_dot_product_attention", bias, "bias")
        check_mask(tuple(bias.shape), shape, "bias")
        bias = widen(bias)
    if mask is not None:
        mask, bias = _split(mask, bias, shape)
    scaled = widen(q) * (q.shape[-1] ** -0.5 if scale is None else float(scale))
    hidden, attends = _hidden(mask, shape[-2:] if causal else None, plain(scaled))
    weights = _attention_weights(scaled, widen(k), bias, hidden)
    return weights if attends is None else cnp.where(attends, weights, 0)


def weighted_values(weights: Array, v: Array) -> Array:
    """``weights @ v``, the second half of `scaled_dot_product_attention`, in the dtype of `v`."""
    y = _rows_of(weights, v) @ widen(v)
    return narrow(cnp.reshape(y, (*weights.shape[:-1], v.shape[-1])), v)


def _check_values(q: Array, k: Array, v: Array) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        require_float("scaled_dot_product_attention", x, name)
    shapes = [tuple(x.shape) for x in (q, k, v)]
    if all(len(shape) == len(shapes[0]) >= 2 for shape in shapes):
        (*lead, _, dims), (*others, _, key_dims), (*last, _) = shapes
        grouped = lead == others or (lead[:-1] == others[:-1] and others[-1] > 0 and lead[-1] % others[-1] == 0)
        if grouped and dims == key_dims and [*others, shapes[1][-2]] == last:
            return
    raise ShapeError(
        "scaled_dot_product_attention: expected q of shape (..., heads, length, head_dims), k of shape (..., kv_heads, "
        "kv_length, head_dims) and v of shape (..., kv_heads, kv_length, value_dims), heads a multiple of kv_heads, "
        f"got {shapes[0]}, {shapes[1]} and {shapes[2]}"
    )


def check_mask(shape: tuple[int, ...], expected: tuple[int, ...], name: str = "mask") -> None:
    """Raise a `ShapeError` where a mask or bias of this shape does not broadcast to the weights' shape `expected`."""
    lengths = zip(shape[::-1], expected[::-1], strict=False)
    if len(shape) > len(expected) or any(n not in (1, length) for n, length in lengths):
        raise ShapeError(
            f"expected {name} of a shape that broadcasts to (..., heads, length, kv_length) = {tuple(expected)}, got "
            f"{tuple(shape)}; one for each key of a sequence, (batch, kv_length), is {name}[:, None, None, :]"
        )


def _split(mask: Array, bias: Array | None, shape: tuple[int, ...]) -> tuple[Array, Array | None]:
    """A mask as one of bools, and what a float one adds to the bias."""
    value = plain(mask)
    floats = is_float_array(value)
    if not floats and not (is_array(value) and backend_of(value).xp.isdtype(value.dtype, "bool")):
        raise DTypeError(
            "scaled_dot_product_attention: expected mask to be a bool array, True where a query may attend to a key, "
            f"or a float array that is added, got {describe(mask)}; mask.astype(bool)"
        )
    check_mask(tuple(value.shape), shape)
    if not floats:
        return value, bias
    shown = value > -np.inf
    added = widen(cnp.where(shown, mask, 0))
    return shown, added if bias is None else added + widen(bias)


def _hidden(mask: Array | None, lengths: tuple[int, ...] | None, like: Array) -> tuple[Array | None, Array | None]:
    """What is added to the scores, 0 or -inf, by the mask and for a causal one of these lengths by its triangle.

    A row in which all is hidden has no softmax and is computed as if nothing were; the second array says which rows
    are not so, None for all.
    """
    if mask is None and lengths is None:
        return None, None
    xp = backend_of(like if mask is None else mask).xp
    visible, attends = mask, None
    if lengths is not None:
        rows, columns = (xp.arange(n) for n in lengths)
        triangle = columns[None, :] <= rows[:, None]
        visible = triangle if mask is None else mask & triangle
    if mask is not None:
        attends = xp.any(visible, axis=-1, keepdims=True)
        if type(attends) is np.ndarray and attends.all():
            attends = None
        else:
            visible = visible | ~attends
    zero, infinity = xp.zeros((), dtype=like.dtype), xp.full((), -np.inf, dtype=like.dtype)  # made there, not copied
    return xp.where(visible, zero, infinity), attends


def _rows_of(x: Array, k: Array) -> Array:
    """`x` with the heads that share one head of `k` as the rows of one matrix: no copies of k are multiplied."""
    if x.shape[:-2] == k.shape[:-2]:
        return x
    rows = x.shape[-3] // k.shape[-3] * x.shape[-2]
    return cnp.reshape(x, (*k.shape[:-2], rows, x.shape[-1]))


@primitive(composite=True)
def _attention_weights(q: Array, k: Array, bias: Array | None, mask: Array | None) -> Array:
    """The portable form; `mask` is added: 0 or -inf, and of no row all -inf."""
    scores = cnp.reshape(_rows_of(q, k) @ cnp.swapaxes(k, -1, -2), (*q.shape[:-1], k.shape[-2]))
    for shift in (bias, mask):
        scores = scores if shift is None else scores + shift
    return softmax(scores)


@_attention_weights.rule
def _(needs: tuple[bool, ...], q: Array, k: Array, bias: Array | None, mask: Array | None) -> tuple[Array, Pullback]:
    args = (q, k, bias, mask)
    if not is_plain(*args):
        return decompose(_attention_weights, needs, args, {})
    weights, pullback = _on_host(needs, q, k, bias, mask)

    def differentiable(dy: Any) -> tuple[Any, ...]:
        if type(dy) is not np.ndarray:  # traced: a derivative of this derivative is being taken
            return decompose(_attention_weights, needs, args, {})[1](dy)
        return pullback(dy)

    return weights, differentiable


def _on_host(
    needs: tuple[bool, ...], q: np.ndarray, k: np.ndarray, bias: np.ndarray | None, mask: np.ndarray | None
) -> tuple[np.ndarray, Pullback]:
    rows = _rows_of(q, k)
    products = rows @ k.swapaxes(-1, -2)
    shape, grouped = q.shape, products.shape
    weights = products.reshape(*shape[:-1], k.shape[-2])
    for shift in (bias, mask):
        if shift is not None:
            weights += shift
    weights -= bounded_max(weights, -1)
    np.exp(weights, out=weights)
    weights /= (weights @ row_of_ones(k.shape[-2], k.dtype))[..., None]
    like = outline(bias) if needs[2] else None

    def pullback(dweights: np.ndarray) -> tuple[Any, ...]:
        dscores = dweights - np.vecdot(dweights, weights)[..., None]
        dscores *= weights
        along = dscores.reshape(grouped)
        dq = (along @ k).reshape(shape) if needs[0] else None
        dk = along.swapaxes(-1, -2) @ rows if needs[1] else None
        return dq, dk, fit(dscores, like) if like is not None else None, None

    return weights, pullback


evaluate_by_rule(_attention_weights, "numpy")
