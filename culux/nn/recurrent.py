"""`rnn`, `lstm` and `gru`: a recurrent layer over all steps of a sequence, as one operation.

The inputs of all steps are projected by one product before the steps are run. The rule runs them with CUDA kernels or,
on the host, with the plain array library; its pullback collects what every step adds, so that the gradient of a weight
is one product too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from culux.autodiff import Tracer, primitive
from culux.autodiff.tracer import Pullback, plain
from culux.backends import Array, backend_of
from culux.backends.registry import namespace_of
from culux.errors import ShapeError, describe
from culux.kernels import IDENTITY
from culux.kernels import recurrent as kernels
from culux.nn.activation import Activation, ActivationLike, code_of
from culux.nn.activations import tanh
from culux.nn.dense import dense
from culux.nn.fused import decompose, evaluate_by_rule, narrow, on_kernels, require_float, widen
from culux.nn.recurrent_steps import Carry, Gru, Kind, Lstm, Rnn
from culux.numpy.broadcasting import common_namespace, masked

__all__ = ["gru", "lstm", "rnn"]


def rnn(
    x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None, bias_hh: Array | None = None, *,
    activation: ActivationLike = tanh, carry: Carry | None = None, lengths: Any = None, reverse: bool = False,
) -> tuple[Array, Carry]:  # fmt: skip
    """``h' = activation(x_t @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh)`` for every step, ``y_t = h'``.

    (Elman, "Finding structure in time", 1990.) float16 and bfloat16 are computed in float32; on CuPy arrays the
    products and h are rounded to them.

    Args:
        x: (batch, time, in_dims), float; one step at least.
        weight_ih: (out_dims, in_dims).
        weight_hh: (out_dims, out_dims).
        bias_ih: (out_dims,) or None.
        bias_hh: (out_dims,) or None.
        activation: a record of `culux.nn`, or any function of an array.
        carry: ``(h,)``, what the first step starts from, (batch, out_dims); None for zeros.
        lengths: (batch,), ints from 0 to time: how many steps each sequence has. What comes after them is not read,
            y is 0 there, and the carry is that of the last step of each; None for all steps.
        reverse: whether the steps are run from the last (that of each sequence) to the first.

    Returns:
        y (batch, time, out_dims), and the carry ``(h,)`` after the last step that was run.

    Raises:
        ShapeError: for shapes or lengths that do not fit.
        DTypeError: for an `x` that is no float array.
    """
    return _run(Rnn(activation), x, weight_ih, weight_hh, bias_ih, bias_hh, carry, lengths, reverse)


def lstm(
    x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None, bias_hh: Array | None = None, *,
    carry: Carry | None = None, lengths: Any = None, reverse: bool = False,
) -> tuple[Array, Carry]:  # fmt: skip
    """``c' = sigmoid(f) * c + sigmoid(i) * tanh(g)``, ``h' = sigmoid(o) * tanh(c')`` for every step, ``y_t = h'``.

    The gates are the four parts of ``x_t @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh`` in the order i, f, g,
    o, as in torch. (Hochreiter & Schmidhuber, "Long short-term memory", 1997.) float16 and bfloat16 are computed in
    float32; on CuPy arrays the products and h are rounded to them.

    Args:
        x: (batch, time, in_dims), float; one step at least.
        weight_ih: (4 * out_dims, in_dims).
        weight_hh: (4 * out_dims, out_dims).
        bias_ih: (4 * out_dims,) or None.
        bias_hh: (4 * out_dims,) or None.
        carry: ``(h, c)``, what the first step starts from, each (batch, out_dims); None for zeros.
        lengths: as in `rnn`.
        reverse: as in `rnn`.

    Returns:
        y (batch, time, out_dims), and the carry ``(h, c)`` after the last step that was run.

    Raises:
        ShapeError: for shapes or lengths that do not fit.
        DTypeError: for an `x` that is no float array.
    """
    return _run(Lstm(), x, weight_ih, weight_hh, bias_ih, bias_hh, carry, lengths, reverse)


def gru(
    x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None = None, bias_hh: Array | None = None, *,
    carry: Carry | None = None, lengths: Any = None, reverse: bool = False,
) -> tuple[Array, Carry]:  # fmt: skip
    """``n = tanh(n_x + sigmoid(r) * n_h)``, ``h' = (1 - sigmoid(z)) * n + sigmoid(z) * h`` for every step: y_t.

    The gates are the three parts of ``x_t @ weight_ih.T + bias_ih`` and of ``h @ weight_hh.T + bias_hh`` in the
    order r, z, n, as in torch; those of r and z are added. (Cho et al., "Learning phrase representations using RNN
    encoder-decoder", 2014, with the reset after the product.) float16 and bfloat16 are computed in float32; on CuPy
    arrays the products and h are rounded to them.

    Args:
        x: (batch, time, in_dims), float; one step at least.
        weight_ih: (3 * out_dims, in_dims).
        weight_hh: (3 * out_dims, out_dims).
        bias_ih: (3 * out_dims,) or None.
        bias_hh: (3 * out_dims,) or None.
        carry: ``(h,)``, what the first step starts from, (batch, out_dims); None for zeros.
        lengths: as in `rnn`.
        reverse: as in `rnn`.

    Returns:
        y (batch, time, out_dims), and the carry ``(h,)`` after the last step that was run.

    Raises:
        ShapeError: for shapes or lengths that do not fit.
        DTypeError: for an `x` that is no float array.
    """
    return _run(Gru(), x, weight_ih, weight_hh, bias_ih, bias_hh, carry, lengths, reverse)


def _run(
    kind: Kind, x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None, bias_hh: Array | None,
    carry: Carry | None, lengths: Any, reverse: bool,
) -> tuple[Array, Carry]:  # fmt: skip
    """The operation behind the three functions, in float32 for a half-precision `x`."""
    _check(kind, x, weight_ih, weight_hh, bias_ih, bias_hh, carry)
    mask = None if lengths is None else _mask(lengths, x)
    by_kernels = _kernel_step(kind, reverse, x, weight_ih, weight_hh, bias_ih, bias_hh, *(carry or ())) is not None
    raised = _unchanged if by_kernels else widen
    wide, factors = raised(x), raised(weight_hh)
    if mask is not None:
        wide = masked(wide, mask[:, :, None])  # what is in the padding, NaN too, reaches no product
    shift, bias = (None if b is None else raised(b) for b in (bias_ih, bias_hh))
    if not kind.splits and bias is not None:
        shift, bias = bias if shift is None else shift + bias, None
    projected = dense(wide, raised(weight_ih), shift)
    if carry is None:
        zeros = backend_of(plain(projected)).xp.zeros((x.shape[0], weight_hh.shape[1]), dtype=projected.dtype)
        start: Carry = (zeros,) * len(kind.carries)
    else:
        start = tuple(raised(a) for a in carry)
    y, *after = _recurrent(projected, factors, bias, mask, *start, kind=kind, reverse=reverse)
    if by_kernels:
        return y, tuple(after)
    return narrow(y, x), tuple(narrow(a, x) for a in after)


def _unchanged(x: Array) -> Array:
    return x


def _kernel_step(kind: Kind, reverse: bool, x: Array, *others: Array | None) -> kernels.Step | None:
    """What the CUDA kernels run, on CuPy arrays of one dtype of theirs, traced or not; None where they do not."""
    code = code_of(kind.activation) if isinstance(kind, Rnn) else IDENTITY
    first, rest = plain(x), [plain(a) for a in others]
    if code is None or not on_kernels(first, *rest) or any(a is not None and a.dtype != first.dtype for a in rest):
        return None
    return kernels.Step(kind.gates, code, reverse)


def _check(
    kind: Kind, x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array | None, bias_hh: Array | None,
    carry: Carry | None,
) -> None:  # fmt: skip
    require_float(kind.name, x)
    if x.ndim != 3 or x.shape[1] == 0:
        raise ShapeError(f"{kind.name}: expected x of shape (batch, time, in_dims), time > 0, got {tuple(x.shape)}")
    (batch, _, features), rows = x.shape, weight_hh.shape[0]
    out = rows // kind.gates
    expected = {
        "weight_ih": (weight_ih, (kind.gates * out, features)),
        "weight_hh": (weight_hh, (kind.gates * out, out)),
        "bias_ih": (bias_ih, (kind.gates * out,)),
        "bias_hh": (bias_hh, (kind.gates * out,)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and tuple(array.shape) != shape:
            raise ShapeError(
                f"{kind.name}: expected {name} of shape {shape} for x of shape {tuple(x.shape)} and out_dims {out}, "
                f"got {tuple(array.shape)}"
            )
    if carry is not None:
        check_carry(carry, kind.carries, (batch, out))


def check_carry(carry: Any, names: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Raise a `ShapeError` where a carry is no tuple of arrays of this shape, one for each name."""
    if type(carry) is tuple and [getattr(a, "shape", None) for a in carry] == [shape] * len(names):
        return
    got = f"({', '.join(map(describe, carry))})" if type(carry) is tuple else describe(carry)
    form = f"({names[0]},)" if len(names) == 1 else f"({', '.join(names)})"
    raise ShapeError(
        f"expected the carry {form}, a tuple of arrays of shape {tuple(shape)}, got {got}; without one, or after "
        'st = culux.update_state(st, "carry", None) where it is a state, the first step starts from zeros'
    )


def _mask(lengths: Any, x: Array) -> Array:
    """Which steps are there: bool (batch, time), where `x` is. Lengths on the host are checked."""
    (batch, time), array = x.shape[:2], plain(x)
    if isinstance(lengths, list | tuple):
        lengths = np.asarray(lengths)
    if getattr(lengths, "shape", None) != (batch,) or getattr(lengths.dtype, "kind", "i") not in "iu":
        raise ShapeError(f"expected lengths to be {batch} ints, one for each sequence, got {describe(lengths)}")
    if type(lengths) is not np.ndarray:
        return backend_of(lengths).xp.arange(time)[None, :] < lengths[:, None]
    if batch and not 0 <= lengths.min() <= lengths.max() <= time:
        raise ShapeError(
            f"expected lengths from 0 to {time}, got {lengths.min()} to {lengths.max()} (x has shape {tuple(x.shape)})"
        )
    backend = backend_of(array)
    return backend.from_host(np.arange(time) < lengths[:, None], backend.place_of(array).index)


@primitive
def unstack(x: Array) -> tuple[Array, ...]:
    """``x[:, t]`` for every t: one cotangent of the size of `x`, where indexing would make one for each step."""
    return tuple([x[:, t, :] for t in range(x.shape[1])])


@unstack.rule
def _(needs: tuple[bool, ...], x: Array) -> tuple[tuple[Array, ...], Pullback]:
    def pullback(parts: tuple[Array | None, ...]) -> tuple[Array]:
        some = next(part for part in parts if part is not None)
        filled = [namespace_of(some).zeros_like(some) if part is None else part for part in parts]
        return (common_namespace(*filled).stack(filled, axis=1),)

    return unstack(x), pullback


def _order(steps: int, reverse: bool) -> range:
    return range(steps)[::-1] if reverse else range(steps)


@primitive(composite=True)
def _recurrent(
    projected: Array, weight: Array, bias: Array | None, mask: Array | None, *carry: Array, kind: Kind, reverse: bool
) -> tuple[Array, ...]:
    """``(y, *carry)``; the portable form."""
    steps = unstack(projected)
    ys: list[Any] = [None] * len(steps)
    for t in _order(len(steps), reverse):
        hidden = carry[0] @ weight.T
        new = kind.step(steps[t], hidden if bias is None else hidden + bias, carry)
        ys[t] = new[0]
        if mask is not None:
            keep = mask[:, t : t + 1]
            ys[t] = masked(new[0], keep)
            new = _chosen(keep, new, carry)
        carry = new
    return (common_namespace(*ys).stack(ys, axis=1), *carry)


def _chosen(keep: Array, new: Carry, old: Carry) -> Carry:
    """The new arrays in the rows that `keep` names, the old ones in the others."""
    return tuple([common_namespace(a, b).where(keep, a, b) for a, b in zip(new, old, strict=True)])


@_recurrent.rule
def _(
    needs: tuple[bool, ...], projected: Array, weight: Array, bias: Array | None, mask: Array | None, *carry: Array,
    kind: Kind, reverse: bool,
) -> tuple[tuple[Array, ...], Pullback]:  # fmt: skip
    args, static = (projected, weight, bias, mask, *carry), {"kind": kind, "reverse": reverse}

    def through_the_portable_form() -> tuple[tuple[Array, ...], Pullback]:
        outputs, pullback = decompose(_recurrent, needs, args, static)
        return outputs, lambda cotangents: pullback(_filled(cotangents, outputs))

    step = _kernel_step(kind, reverse, *args[:3], *carry) if not any(type(a) is Tracer for a in args) else None
    if step is not None:
        outputs, pullback = _by_kernels(needs, projected, weight, bias, mask, carry, step)
    elif _is_uniform(*args[:3], *carry) and isinstance(getattr(kind, "activation", tanh), Activation):
        outputs, pullback = _by_steps(needs, projected, weight, bias, mask, carry, kind, reverse)
    else:
        return through_the_portable_form()

    def differentiable(cotangents: tuple[Array | None, ...]) -> tuple[Any, ...]:
        if any(type(part) is Tracer for part in cotangents):  # a derivative of this derivative is being taken
            return through_the_portable_form()[1](cotangents)
        return pullback(cotangents)

    return outputs, differentiable


def _filled(cotangents: tuple[Array | None, ...], outputs: tuple[Array, ...]) -> tuple[Array, ...]:
    """Cotangents with zeros for those of outputs that were not used."""
    return tuple([
        namespace_of(output).zeros_like(output) if cotangent is None else cotangent
        for cotangent, output in zip(cotangents, outputs, strict=True)
    ])  # fmt: skip


def _is_uniform(*arrays: Array | None) -> bool:
    """Whether all (None aside) are NumPy's or CuPy's arrays of one dtype, float32 or float64."""
    first = plain(arrays[0])
    if backend_of(first).name not in ("numpy", "cupy") or first.dtype not in (np.float32, np.float64):
        return False
    return all(a is None or (type(a) is type(first) and a.dtype == first.dtype) for a in arrays)


def _by_kernels(
    needs: tuple[bool, ...], projected: Array, weight: Array, bias: Array | None, mask: Array | None, carry: Carry,
    step: kernels.Step,
) -> tuple[tuple[Array, ...], Pullback]:  # fmt: skip
    """The value and the pullback of CuPy arrays."""
    outputs, saved = kernels.forward(projected, weight, bias, mask, carry, step, keep=True in needs)
    wanted, parts = (needs[0], needs[1], needs[2], True in needs[4:]), len(carry)

    def pullback(cotangents: tuple[Array | None, ...]) -> tuple[Any, ...]:
        dy, *dlast = cotangents
        dprojected, dweight, dbias, dstart = kernels.backward(dy, tuple(dlast), saved, weight, mask, step, needs=wanted)
        return dprojected, dweight, dbias, None, *(dstart or (None,) * parts)

    return outputs, pullback


def _by_steps(
    needs: tuple[bool, ...], projected: Array, weight: Array, bias: Array | None, mask: Array | None, carry: Carry,
    kind: Kind, reverse: bool,
) -> tuple[tuple[Array, ...], Pullback]:  # fmt: skip
    """The value and the pullback of plain arrays."""
    xp, order, keeps = namespace_of(projected), _order(projected.shape[1], reverse), True in needs
    y = xp.empty((*projected.shape[:2], weight.shape[1]), dtype=projected.dtype)
    saved: list[Any] = []
    # BLAS takes a third less time for a matrix in this order, which pays for the copy from a few steps on.
    factors = xp.ascontiguousarray(weight.T) if len(order) > 4 else weight.T
    for t in order:
        hidden = carry[0] @ factors
        if bias is not None:
            hidden += bias
        new, read = kind.forward(xp, projected[:, t], hidden, carry)
        if keeps:
            saved.append((carry[0], read))
        if mask is None:
            y[:, t] = new[0]
        else:
            keep = mask[:, t : t + 1]
            y[:, t] = masked(new[0], keep)
            new = _chosen(keep, new, carry)
        carry = new

    shape, dtype = projected.shape, projected.dtype  # the pullback holds no array that it does not read

    def pullback(cotangents: tuple[Array | None, ...]) -> tuple[Any, ...]:
        dy, *dlast = cotangents
        zeros = xp.zeros((shape[0], weight.shape[1]), dtype=dtype)
        dcarry = tuple([zeros if part is None else part for part in dlast])
        room = xp.empty(shape, dtype=dtype)
        return _backward(needs, xp, dy, dcarry, saved, weight, mask, kind, order, room)

    return (y, *carry), pullback


def _backward(
    needs: tuple[bool, ...], xp: Any, dy: Array | None, dcarry: Carry, saved: list[Any], weight: Array,
    mask: Array | None, kind: Kind, order: range, dprojected: Array,
) -> tuple[Any, ...]:  # fmt: skip
    """The cotangents of the operation's arguments; the first is written to `dprojected`.

    What the steps saved is in the order in which they were run; `dy` is None for 0.
    """
    dhiddens = xp.empty_like(dprojected) if kind.splits else dprojected
    for t, (_, read) in zip(order[::-1], saved[::-1], strict=True):
        dx, dhidden = dprojected[:, t], dhiddens[:, t]
        total = dcarry if dy is None else (dcarry[0] + dy[:, t], *dcarry[1:])
        dh, *others = kind.backward(xp, read, total, dx, dhidden)
        if mask is not None:  # the steps that are not there pass on what comes back to them
            keep = mask[:, t : t + 1]
            dx[...] = masked(dx, keep)
            dhidden[...] = masked(dhidden, keep)
        through = dhidden @ weight
        before = (through if dh is None else through + dh, *others)
        dcarry = before if mask is None else _chosen(keep, before, dcarry)
    rows = dhiddens.reshape(-1, weight.shape[0])
    held = xp.stack([h for h, _ in (saved if order.step > 0 else saved[::-1])], axis=1).reshape(-1, weight.shape[1])
    return (
        dprojected if needs[0] else None,
        rows.T @ held if needs[1] else None,
        rows.sum(axis=0) if needs[2] else None,
        None,
        *[d if need else None for d, need in zip(dcarry, needs[4:], strict=True)],
    )


evaluate_by_rule(_recurrent, "numpy", "cupy")
