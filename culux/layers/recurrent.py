"""Recurrent cells: one step of a recurrent layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import Any, ClassVar

import numpy as np

from culux import nn
from culux import numpy as cnp
from culux.backends import Array
from culux.backends.registry import namespace_of
from culux.core import Layer
from culux.errors import LayerError, ShapeError
from culux.init import zeros
from culux.layers.checks import (
    check_activation,
    check_axis,
    check_flag,
    check_initialiser,
    check_length,
    check_parameter,
    made,
    shape_of,
)
from culux.nn.activation import ActivationLike
from culux.nn.activations import tanh
from culux.nn.recurrent import check_carry
from culux.nn.recurrent_steps import Carry
from culux.tree import Tree

__all__ = ["Cell", "GRUCell", "LSTMCell", "RNNCell"]

Init = Callable[..., Any] | tuple[Callable[..., Any] | None, ...] | None
"""An initialiser, one for each gate, or None."""

_NOTHING = Tree()


class Cell(Layer):
    """What the cells share: their fields, parameters and call. `sequence` runs all steps of a sequence at once."""

    in_dims: int
    out_dims: int
    _: KW_ONLY
    use_bias: bool = True
    init_weight: Init = None
    init_recurrent_weight: Init = None
    init_bias: Init = None
    train_state: bool = False
    init_state: Callable[..., Any] | None = None

    _gates: ClassVar[int] = 1
    carries: ClassVar[tuple[str, ...]] = ("h",)

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_length(name, "in_dims", self.in_dims)
        check_length(name, "out_dims", self.out_dims)
        for field in ("init_weight", "init_recurrent_weight", "init_bias"):
            for init in self._of_gates(getattr(self, field), field):
                check_initialiser(name, field, init)
        check_initialiser(name, "init_state", self.init_state)
        for flag in ("use_bias", "train_state"):
            check_flag(name, flag, getattr(self, flag))

    def _of_gates(self, init: Init, field: str) -> tuple[Callable[..., Any] | None, ...]:
        """The initialiser of each gate."""
        if not isinstance(init, tuple | list):
            return (init,) * self._gates
        if len(init) != self._gates:
            raise LayerError(
                f"{type(self).__name__}: expected {field} to be one initialiser or a tuple of {self._gates}, one for "
                f"each gate, got {len(init)}"
            )
        return tuple(init)

    def initial_parameters(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Weights and biases, drawn gate by gate."""

        def drawn(field: str, init: Init, *shape: int) -> Any:
            return np.concatenate(
                [made(rng, field, one, (self.out_dims, *shape), self.out_dims) for one in self._of_gates(init, field)]
            )

        recurrent = self.init_weight if self.init_recurrent_weight is None else self.init_recurrent_weight
        ps = {
            "weight_ih": drawn("init_weight", self.init_weight, self.in_dims),
            "weight_hh": drawn("init_recurrent_weight", recurrent, self.out_dims),
        }
        if self.use_bias:
            ps["bias_ih"] = drawn("init_bias", self.init_bias)
            ps["bias_hh"] = drawn("init_bias", self.init_bias)
        return ps | self._drawn(rng, trained=True)

    def initial_states(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """What the first step starts from, where it has an initialiser and is not trained."""
        return self._drawn(rng, trained=False)

    def _begin(self) -> tuple[tuple[str, bool, str], ...]:
        """For every part of the carry: the name of the first, whether it is trained, the field of its initialiser."""
        return (("hidden_state", self.train_state, "init_state"),)

    def _drawn(self, rng: np.random.Generator, *, trained: bool) -> dict[str, Any]:
        """The parts of the first carry that are parameters, or those that are states."""
        shape, drawn = (self.out_dims,), {}
        for name, train, field in self._begin():
            init = getattr(self, field)
            if train is trained and (train or init is not None):
                drawn[name] = made(rng, field, init or zeros, shape)
        return drawn

    def output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """``((..., out_dims), the shapes of the carry)``; `input_shape` may be the one of x and those of a carry."""
        shape = input_shape[0] if input_shape and isinstance(input_shape[0], tuple) else input_shape
        check_axis(shape, -1, self.in_dims)
        out = (*shape[:-1], self.out_dims)
        return out, (out,) * len(self.carries)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """One step."""
        x, carry = with_carry(x)
        shape = shape_of(x)
        out, shapes = self.output_shape(shape)
        if carry is not None:
            check_carry(carry, self.carries, out)
            carry = tuple(_reshaped(a, (-1, self.out_dims)) for a in carry)
        steps = _reshaped(x, (math.prod(shape[:-1]), 1, self.in_dims))
        _, after = self.sequence(steps, ps, carry, st=st)
        after = tuple(_reshaped(a, part) for a, part in zip(after, shapes, strict=True))
        return (after[0], after), st

    def sequence(
        self, x: Array, ps: Tree, carry: Carry | None = None, *,
        st: Tree = _NOTHING, lengths: Any = None, reverse: bool = False,
    ) -> tuple[Array, Carry]:  # fmt: skip
        """All steps of an `x` (batch, time, in_dims) as one operation: y of every step, and the last carry."""
        check_axis(x.shape, -1, self.in_dims)
        rows = self._gates * self.out_dims
        names = {"weight_ih": (rows, self.in_dims), "weight_hh": (rows, self.out_dims)}
        biases = {"bias_ih": (rows,), "bias_hh": (rows,)} if self.use_bias else {}
        parameters = [check_parameter(ps, name, shape) for name, shape in {**names, **biases}.items()]
        start = self._start(x.shape[0], ps, st) if carry is None else carry
        return self._operation(x, *parameters, carry=start, lengths=lengths, reverse=reverse)

    def _start(self, batch: int, ps: Tree, st: Tree) -> Carry | None:
        """The carry of the first step, for a whole batch, from the parameters and states; None for zeros."""
        shape = (self.out_dims,)
        parts = [
            check_parameter(ps if train else st, name, shape, "ps" if train else "st")
            if train or getattr(self, field) is not None
            else None
            for name, train, field in self._begin()
        ]
        given = next((part for part in parts if part is not None), None)
        if given is None:
            return None
        zeros = namespace_of(given).zeros_like(given)
        return tuple([cnp.broadcast_to(zeros if part is None else part, (batch, *shape)) for part in parts])

    def _operation(self, x: Array, *parameters: Array, **options: Any) -> tuple[Array, Carry]:
        raise NotImplementedError(f"{type(self).__name__} defines _operation(self, x, *parameters, **options)")


class RNNCell(Cell):
    """One step of a plain recurrent layer: ``h' = activation(x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh)``.

    The output is the new h. Elman, "Finding structure in time", 1990; parameters and initial values as torch has them.

    Args:
        in_dims: the number of input features.
        out_dims: the number of output features.
        activation: a function of one array.
        use_bias: whether there are biases.
        init_weight: an initialiser; None draws from U(-b, b) with ``b = 1 / sqrt(out_dims)``.
        init_recurrent_weight: the same for `weight_hh`; None for `init_weight`.
        init_bias: the same for the biases.
        train_state: whether the h that the first step starts from is a parameter.
        init_state: an initialiser of that h; None for zeros. An h that is not trained is drawn once, as a state.

    Inputs:
        x: ``(..., in_dims)``, or the tuple ``(x, carry)`` with the carry ``(h,)`` of the step before,
            h ``(..., out_dims)``. Without a carry h is 0 or the parameter.

    Returns:
        ``(y, carry)``, y ``(..., out_dims)`` and the carry ``(h',)``, and the states as they were.

    Parameters:
        weight_ih: ``(out_dims, in_dims)``, float32.
        weight_hh: ``(out_dims, out_dims)``, float32.
        bias_ih: ``(out_dims,)``, float32, with `use_bias`.
        bias_hh: ``(out_dims,)``, float32, with `use_bias`.
        hidden_state: ``(out_dims,)``, float32, with `train_state`.

    States:
        hidden_state: ``(out_dims,)``, float32, where it has an initialiser and is not trained.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` of another length, a carry or parameters of another model.
    """

    activation: ActivationLike = tanh

    def __post_init__(self) -> None:
        super().__post_init__()
        form = f"RNNCell({self.in_dims}, {self.out_dims}, use_bias={{}})"
        check_activation("RNNCell", self.activation, flag=f"the biases are switched by {form}")

    def _operation(self, x: Array, *parameters: Array, **options: Any) -> tuple[Array, Carry]:
        return nn.rnn(x, *parameters, activation=self.activation, **options)


class LSTMCell(Cell):
    """One step of an LSTM: ``c' = sigmoid(f) * c + sigmoid(i) * tanh(g)``, ``h' = sigmoid(o) * tanh(c')``.

    The gates i, f, g, o are the four parts of ``x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh``; the output is
    the new h. Hochreiter and Schmidhuber, "Long short-term memory", 1997; the order of the gates, the parameters and
    initial values as torch has them.

    Args:
        in_dims: the number of input features.
        out_dims: the number of output features.
        use_bias: whether there are biases.
        init_weight: an initialiser for each gate's (out_dims, in_dims), or a tuple of four, None among them; None draws
            from U(-b, b) with ``b = 1 / sqrt(out_dims)``.
        init_recurrent_weight: the same for `weight_hh`; None for `init_weight`.
        init_bias: the same for each gate's part of the biases.
        train_state: whether the h that the first step starts from is a parameter.
        init_state: an initialiser of that h; None for zeros. An h that is not trained is drawn once, as a state.
        train_memory: whether its c is one.
        init_memory: an initialiser of that c; as `init_state`.

    Inputs:
        x: ``(..., in_dims)``, or the tuple ``(x, carry)`` with the carry ``(h, c)`` of the step before, each
            ``(..., out_dims)``. Without a carry both are 0 or the parameters.

    Returns:
        ``(y, carry)``, y ``(..., out_dims)`` and the carry ``(h', c')``, and the states as they were.

    Parameters:
        weight_ih: ``(4 * out_dims, in_dims)``, float32.
        weight_hh: ``(4 * out_dims, out_dims)``, float32.
        bias_ih: ``(4 * out_dims,)``, float32, with `use_bias`.
        bias_hh: ``(4 * out_dims,)``, float32, with `use_bias`.
        hidden_state: ``(out_dims,)``, float32, with `train_state`.
        memory: ``(out_dims,)``, float32, with `train_memory`.

    States:
        hidden_state: ``(out_dims,)``, float32, where it has an initialiser and is not trained.
        memory: ``(out_dims,)``, float32, where it has an initialiser and is not trained.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` of another length, a carry or parameters of another model.
    """

    _: KW_ONLY  # the base's does not reach here
    train_memory: bool = False
    init_memory: Callable[..., Any] | None = None

    _gates: ClassVar[int] = 4
    carries: ClassVar[tuple[str, ...]] = ("h", "c")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("LSTMCell", "train_memory", self.train_memory)
        check_initialiser("LSTMCell", "init_memory", self.init_memory)

    def _begin(self) -> tuple[tuple[str, bool, str], ...]:
        return (*super()._begin(), ("memory", self.train_memory, "init_memory"))

    def _operation(self, x: Array, *parameters: Array, **options: Any) -> tuple[Array, Carry]:
        return nn.lstm(x, *parameters, **options)


class GRUCell(Cell):
    """One step of a GRU: ``n = tanh(n_x + sigmoid(r) * n_h)``, ``h' = (1 - sigmoid(z)) * n + sigmoid(z) * h``.

    The gates r, z, n are the three parts of ``x @ weight_ih.T + bias_ih`` and of ``h @ weight_hh.T + bias_hh``, added
    for r and z; the output is the new h. Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014;
    the reset after the product, the order of the gates, the parameters and initial values as torch has them.

    Args:
        in_dims: the number of input features.
        out_dims: the number of output features.
        use_bias: whether there are biases.
        init_weight: an initialiser for each gate's (out_dims, in_dims), or a tuple of three, None among them; None
            draws from U(-b, b) with ``b = 1 / sqrt(out_dims)``.
        init_recurrent_weight: the same for `weight_hh`; None for `init_weight`.
        init_bias: the same for each gate's part of the biases.
        train_state: whether the h that the first step starts from is a parameter.
        init_state: an initialiser of that h; None for zeros. An h that is not trained is drawn once, as a state.

    Inputs:
        x: ``(..., in_dims)``, or the tuple ``(x, carry)`` with the carry ``(h,)`` of the step before,
            h ``(..., out_dims)``. Without a carry h is 0 or the parameter.

    Returns:
        ``(y, carry)``, y ``(..., out_dims)`` and the carry ``(h',)``, and the states as they were.

    Parameters:
        weight_ih: ``(3 * out_dims, in_dims)``, float32.
        weight_hh: ``(3 * out_dims, out_dims)``, float32.
        bias_ih: ``(3 * out_dims,)``, float32, with `use_bias`.
        bias_hh: ``(3 * out_dims,)``, float32, with `use_bias`.
        hidden_state: ``(out_dims,)``, float32, with `train_state`.

    States:
        hidden_state: ``(out_dims,)``, float32, where it has an initialiser and is not trained.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x` of another length, a carry or parameters of another model.
    """

    _gates: ClassVar[int] = 3

    def _operation(self, x: Array, *parameters: Array, **options: Any) -> tuple[Array, Carry]:
        return nn.gru(x, *parameters, **options)


def with_carry(x: Any) -> tuple[Any, Any]:
    """The input of a cell, ``x`` or the tuple ``(x, carry)``, as the pair of both."""
    if type(x) is not tuple:
        return x, None
    if len(x) != 2:
        raise ShapeError(f"expected x, or the tuple (x, carry), got a tuple of {len(x)}")
    return x


def _reshaped(a: Array, shape: tuple[int, ...]) -> Array:
    return namespace_of(a).reshape(a, shape)
