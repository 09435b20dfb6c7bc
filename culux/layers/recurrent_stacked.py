"""Recurrent layers of several levels and directions, for sequences of several lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any, ClassVar

from culux import numpy as cnp
from culux.backends import Array
from culux.core import ContainerLayer, Layer
from culux.core.fields import CHILDREN
from culux.errors import ShapeError
from culux.layers.checks import check_activation, check_axis, check_flag, check_length, check_probability, shape_of
from culux.layers.dropout import Dropout
from culux.layers.recurrent import Cell, GRUCell, Init, LSTMCell, RNNCell
from culux.layers.recurrent_sequence import BidirectionalRNN, batch_first, check_sequence, check_time_axis, swapped
from culux.nn.activation import ActivationLike
from culux.nn.activations import tanh
from culux.nn.recurrent import check_carry
from culux.nn.recurrent_steps import Carry
from culux.tree import Tree, trusted

__all__ = ["GRU", "LSTM", "RNN"]


class _Stacked(ContainerLayer):
    """What the layers share: levels of cells, one after the other, with dropout between them."""

    in_dims: int
    out_dims: int
    _: KW_ONLY
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    return_carry: bool = False
    time_axis: int = 1
    use_bias: bool = True
    init_weight: Init = None
    init_recurrent_weight: Init = None
    init_bias: Init = None

    _cell: ClassVar[type[Cell]]

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_length(name, "in_dims", self.in_dims)
        check_length(name, "out_dims", self.out_dims)
        check_length(name, "num_layers", self.num_layers)
        check_probability(name, "dropout", self.dropout)
        check_time_axis(name, self.time_axis)
        for flag in ("bidirectional", "return_carry", "use_bias"):
            check_flag(name, flag, getattr(self, flag))

    def _arguments(self) -> dict[str, Any]:
        """The keywords that every cell gets."""
        return {name: getattr(self, name) for name in ("use_bias", "init_weight", "init_recurrent_weight", "init_bias")}

    def children(self) -> Mapping[str, Layer]:
        """The levels ``layer_1``, ``layer_2``, ..., and where there is dropout ``dropout_1``, ... between them."""
        found: dict[str, Layer] = {}
        for level in range(1, self.num_layers + 1):
            cell = self._cell(self.in_dims if level == 1 else self._features, self.out_dims, **self._arguments())
            found[f"layer_{level}"] = BidirectionalRNN(cell) if self.bidirectional else cell
            if self.dropout > 0 and level < self.num_layers:
                found[f"dropout_{level}"] = Dropout(self.dropout)
        return found

    @property
    def _features(self) -> int:
        return self.out_dims * (2 if self.bidirectional else 1)

    def output_shape(self, input_shape: tuple[Any, ...]) -> Any:
        """``(batch, time, features)``, with `return_carry` beside the carry's, for an x or a tuple of inputs."""
        shape = input_shape[0] if input_shape and isinstance(input_shape[0], tuple) else input_shape
        batch, time, _ = check_sequence(shape, self.time_axis)
        check_axis(shape, -1, self.in_dims)
        y = swapped((batch, time, self._features), self.time_axis)
        return (y, self._carry_shapes(batch)) if self.return_carry else y

    def _carry_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        rows = self.num_layers * (2 if self.bidirectional else 1)
        return ((rows, batch, self.out_dims),) * len(self._cell.carries)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """All levels."""
        x, lengths, carry = _inputs(x)
        self.output_shape(shape_of(x))
        x = batch_first(x, self.time_axis)
        if carry is not None:
            check_carry(carry, self._cell.carries, self._carry_shapes(x.shape[0])[0])
        states: dict[str, Tree] = {}
        last: list[Carry] = []
        for name, layer in self.__dict__[CHILDREN].items():
            if isinstance(layer, Dropout):
                x, states[name] = layer(x, ps[name], st[name])
                continue
            outputs = []
            for cell, entries, reverse in _directions(layer, ps[name]):
                start = None if carry is None else tuple(part[len(last)] for part in carry)
                y, after = cell.sequence(x, entries, start, lengths=lengths, reverse=reverse)
                outputs.append(y)
                last.append(after)
            x = outputs[0] if len(outputs) == 1 else cnp.concatenate(outputs, axis=-1)
        x, new = batch_first(x, self.time_axis), trusted({**st, **states}) if states else st
        if not self.return_carry:
            return x, new
        return (x, tuple(cnp.stack(parts) for parts in zip(*last, strict=True))), new


class RNN(_Stacked):
    """A plain recurrent layer: ``h' = activation(x_t @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh)``.

    The output of a step is its h. Elman, "Finding structure in time", 1990; as torch has it.

    Args:
        in_dims: the number of input features.
        out_dims: the number of output features of a direction.
        activation: a function of one array.
        num_layers: how many levels there are; each runs over what the one before returns.
        bidirectional: whether every level also runs from the last step to the first, with parameters of its own,
            both outputs side by side.
        dropout: the probability of dropping an element between two levels, in training.
        return_carry: whether what the last steps hand on is returned with y.
        time_axis: 1, or 0 for sequences ``(time, batch, features)``, of x and y.
        use_bias, init_weight, init_recurrent_weight, init_bias: as in `RNNCell`.

    Inputs:
        x: ``(batch, time, in_dims)``, one step at least. Or a tuple: ``(x, lengths)`` with a batch of ints, how many
            steps each sequence has: what comes after them is not read, y is 0 there, the last steps are each
            sequence's own. Or ``(x, lengths, carry)`` with what the first steps start from and lengths or None; the
            carry is ``(h,)``, ``(levels * directions, batch, out_dims)``, in torch's order.

    Returns:
        y ``(batch, time, out_dims)``, ``(batch, time, 2 * out_dims)`` where bidirectional, with `return_carry`
        ``(y, carry)``; and the states, with dropout's moved on.

    Parameters:
        layer_1, layer_2, ...: those of an `RNNCell`; of two where bidirectional, ``forward_rnn`` and ``backward_rnn``.

    States:
        dropout_1, ...: those of `Dropout`, where there is dropout between levels.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x`, lengths or a carry that do not fit, or parameters of another model.
    """

    activation: ActivationLike = tanh
    _cell: ClassVar[type[Cell]] = RNNCell

    def __post_init__(self) -> None:
        super().__post_init__()
        form = f"RNN({self.in_dims}, {self.out_dims}, use_bias={{}})"
        check_activation("RNN", self.activation, flag=f"the biases are switched by {form}")

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "activation": self.activation}


class LSTM(_Stacked):
    """A long short-term memory: ``c' = sigmoid(f) * c + sigmoid(i) * tanh(g)``, ``h' = sigmoid(o) * tanh(c')``.

    The gates are those of `LSTMCell`, the output of a step is its h. Hochreiter and Schmidhuber, "Long short-term
    memory", 1997; as torch has it.

    Args:
        in_dims: the number of input features.
        out_dims: the number of output features of a direction.
        num_layers: how many levels there are; each runs over what the one before returns.
        bidirectional: whether every level also runs from the last step to the first, with parameters of its own,
            both outputs side by side.
        dropout: the probability of dropping an element between two levels, in training.
        return_carry: whether what the last steps hand on is returned with y.
        time_axis: 1, or 0 for sequences ``(time, batch, features)``, of x and y.
        use_bias, init_weight, init_recurrent_weight, init_bias: as in `LSTMCell`.

    Inputs:
        x: ``(batch, time, in_dims)``, one step at least. Or a tuple: ``(x, lengths)`` with a batch of ints, how many
            steps each sequence has: what comes after them is not read, y is 0 there, the last steps are each
            sequence's own. Or ``(x, lengths, carry)`` with what the first steps start from and lengths or None; the
            carry is ``(h, c)``, ``(levels * directions, batch, out_dims)`` each, in torch's order.

    Returns:
        y ``(batch, time, out_dims)``, ``(batch, time, 2 * out_dims)`` where bidirectional, with `return_carry`
        ``(y, carry)``; and the states, with dropout's moved on.

    Parameters:
        layer_1, layer_2, ...: those of an `LSTMCell`; of two where bidirectional, ``forward_rnn`` and ``backward_rnn``.

    States:
        dropout_1, ...: those of `Dropout`, where there is dropout between levels.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x`, lengths or a carry that do not fit, or parameters of another model.
    """

    _cell: ClassVar[type[Cell]] = LSTMCell


class GRU(_Stacked):
    """Gated recurrent units: ``n = tanh(n_x + sigmoid(r) * n_h)``, ``h' = (1 - sigmoid(z)) * n + sigmoid(z) * h``.

    The gates are those of `GRUCell`, the output of a step is its h. Cho et al., "Learning phrase representations using
    RNN encoder-decoder", 2014; as torch has it.

    Args:
        in_dims: the number of input features.
        out_dims: the number of output features of a direction.
        num_layers: how many levels there are; each runs over what the one before returns.
        bidirectional: whether every level also runs from the last step to the first, with parameters of its own,
            both outputs side by side.
        dropout: the probability of dropping an element between two levels, in training.
        return_carry: whether what the last steps hand on is returned with y.
        time_axis: 1, or 0 for sequences ``(time, batch, features)``, of x and y.
        use_bias, init_weight, init_recurrent_weight, init_bias: as in `GRUCell`.

    Inputs:
        x: ``(batch, time, in_dims)``, one step at least. Or a tuple: ``(x, lengths)`` with a batch of ints, how many
            steps each sequence has: what comes after them is not read, y is 0 there, the last steps are each
            sequence's own. Or ``(x, lengths, carry)`` with what the first steps start from and lengths or None; the
            carry is ``(h,)``, ``(levels * directions, batch, out_dims)``, in torch's order.

    Returns:
        y ``(batch, time, out_dims)``, ``(batch, time, 2 * out_dims)`` where bidirectional, with `return_carry`
        ``(y, carry)``; and the states, with dropout's moved on.

    Parameters:
        layer_1, layer_2, ...: those of a `GRUCell`; of two where bidirectional, ``forward_rnn`` and ``backward_rnn``.

    States:
        dropout_1, ...: those of `Dropout`, where there is dropout between levels.

    Raises:
        LayerError: for arguments that are none of these.
        ShapeError: when called, for an `x`, lengths or a carry that do not fit, or parameters of another model.
    """

    _cell: ClassVar[type[Cell]] = GRUCell


def _directions(level: Any, ps: Tree) -> list[tuple[Cell, Tree, bool]]:
    """The cells of a level with their parameters, and whether they run from the last step to the first."""
    if isinstance(level, BidirectionalRNN):
        return [(level.forward_rnn, ps["forward_rnn"], False), (level.backward_rnn, ps["backward_rnn"], True)]
    return [(level, ps, False)]


def _inputs(x: Any) -> tuple[Array, Any, Any]:
    """The input as x, lengths and carry, the last two None where they are not given."""
    if type(x) is not tuple:
        return x, None, None
    if len(x) not in (2, 3):
        raise ShapeError(f"expected x, the tuple (x, lengths) or (x, lengths, carry), got a tuple of {len(x)}")
    if type(x[1]) is tuple and any(hasattr(part, "shape") for part in x[1]):
        raise ShapeError(
            "expected lengths, ints or None, as the second of the inputs, got a tuple of arrays; the carry is the "
            "third: (x, None, carry)"
        )
    return x if len(x) == 3 else (*x, None)
