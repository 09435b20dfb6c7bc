"""Layers that run a recurrent cell: over a sequence, step by step with a state, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import Any

import numpy as np

from culux import numpy as cnp
from culux.backends import Array
from culux.core import ContainerLayer, Layer, WrapperLayer
from culux.core.fields import is_layer, named_or_repr
from culux.errors import LayerError, ShapeError, describe
from culux.layers.checks import shape_of
from culux.layers.recurrent import Cell
from culux.nn.recurrent import unstack
from culux.tree import Tree, trusted

__all__ = ["BidirectionalRNN", "Recurrence", "StatefulRecurrentCell"]


class Recurrence(WrapperLayer):
    """A cell over a sequence: ``y_t, carry = cell((x[:, t], carry))``, the first step without a carry.

    All steps of an `RNNCell`, `LSTMCell` or `GRUCell` are one operation. Any layer is a cell that takes ``x`` or
    ``(x, carry)`` for one step and returns ``(y, carry)``; it is called once for each step.

    Args:
        cell: the cell.
        return_sequence: whether y has all steps; else it is that of the last.
        time_axis: 1, or 0 for sequences ``(time, batch, features)``, of x and y.

    Inputs:
        x: ``(batch, time, features)``, one step at least; or a list or tuple of the steps, ``(batch, features)`` each.

    Returns:
        y ``(batch, out_dims)``, or ``(batch, time, out_dims)`` with `return_sequence`, and the states of the cell.

    Parameters:
        The cell's.

    States:
        The cell's.

    Raises:
        LayerError: for a cell that is no layer or, when called, returns no ``(y, carry)``.
        ShapeError: when called, for an `x` that is no sequence or does not fit the cell.
    """

    cell: Layer
    _: KW_ONLY
    return_sequence: bool = False
    time_axis: int = 1

    def __post_init__(self) -> None:
        _check_cell("Recurrence", "cell", self.cell)
        check_time_axis("Recurrence", self.time_axis)

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(batch, out_dims)`` or ``(batch, time, out_dims)``."""
        out = _shape_over(self.cell, check_sequence(input_shape, self.time_axis))
        return swapped(out, self.time_axis) if self.return_sequence else (out[0], *out[2:])

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The cell on every step."""
        cell, x = self.cell, _sequence(x, self.time_axis)
        if _is_whole(cell):
            y, carry = cell.sequence(x, ps, st=st)
            return (batch_first(y, self.time_axis) if self.return_sequence else carry[0]), st
        ys, st = _over(cell, x, ps, st)
        return (cnp.stack(ys, axis=self.time_axis) if self.return_sequence else ys[-1]), st


class StatefulRecurrentCell(WrapperLayer):
    """A cell that keeps its carry in the states: ``y, st.carry = cell(x, st.carry)`` at each call.

    ``st = culux.update_state(st, "carry", None)`` starts the next sequence. No gradient goes from one call to an
    earlier one, since states are cut from the tape: `Recurrence` differentiates through all steps.

    Args:
        cell: the cell.

    Inputs:
        x: one step, such as ``(batch, features)``.

    Returns:
        y of the cell, ``(batch, out_dims)``, and the states with the new carry.

    Parameters:
        The cell's.

    States:
        The cell's own, and
        carry: None, and after a call what the cell hands on.

    Raises:
        LayerError: for a cell that is no layer or, when called, returns no ``(y, carry)``.
        ShapeError: when called, for an `x` that does not fit the cell or the carry.
    """

    cell: Layer

    def __post_init__(self) -> None:
        _check_cell("StatefulRecurrentCell", "cell", self.cell)

    def initial_states(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """No carry."""
        return {"carry": None}

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the cell's y."""
        return self.cell.output_shape(input_shape)[0]  # type: ignore[return-value]  # a cell's are (y's, the carry's)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """One step from the carry in `st`."""
        y, carry, new = _step(self.cell, x, st["carry"], ps, st)
        return y, trusted({**new, "carry": carry})


def concatenate(forward: Array, backward: Array) -> Array:
    """Both directions beside each other in the last axis."""
    return cnp.concatenate((forward, backward), axis=-1)


class BidirectionalRNN(ContainerLayer):
    """A cell from the first step to the last, and one from the last to the first: ``y = merge(forward, backward)``.

    Schuster and Paliwal, "Bidirectional recurrent neural networks", 1997.

    Args:
        cell: the cell of the forward direction.
        backward_cell: that of the other; None for a cell like the first, with parameters of its own.
        merge: a function of the outputs of both directions, each ``(batch, time, out_dims)``, for all steps at once;
            by default they are concatenated. None for the tuple of both.
        time_axis: 1, or 0 for sequences ``(time, batch, features)``, of x and y.

    Inputs:
        x: ``(batch, time, features)``, one step at least; or a list or tuple of the steps, ``(batch, features)`` each.

    Returns:
        y ``(batch, time, 2 * out_dims)``, or what `merge` makes of it, and the states of both cells.

    Parameters:
        forward_rnn, backward_rnn: those of the cells.

    States:
        forward_rnn, backward_rnn: those of the cells.

    Raises:
        LayerError: for a cell that is no layer or, when called, returns no ``(y, carry)``; for a `merge` that is none.
        ShapeError: when called, for an `x` that is no sequence or does not fit the cells.
    """

    cell: Layer
    backward_cell: Layer | None = None
    _: KW_ONLY
    merge: Callable[[Any, Any], Any] | None = concatenate
    time_axis: int = 1

    def __post_init__(self) -> None:
        _check_cell("BidirectionalRNN", "cell", self.cell)
        if self.backward_cell is not None:
            _check_cell("BidirectionalRNN", "backward_cell", self.backward_cell)
        check_time_axis("BidirectionalRNN", self.time_axis)
        if self.merge is not None and not callable(self.merge):
            raise LayerError(f"BidirectionalRNN: expected merge to be None or a function, got {describe(self.merge)}")

    def children(self) -> Mapping[str, Layer]:
        """The cells as ``forward_rnn`` and ``backward_rnn``."""
        return {"forward_rnn": self.cell, "backward_rnn": self.backward_cell or self.cell}

    def output_shape(self, input_shape: tuple[int, ...]) -> Any:
        """``(batch, time, both out_dims)``; with ``merge=None`` the tuple of both shapes."""
        shape = check_sequence(input_shape, self.time_axis)
        forward, backward = (swapped(_shape_over(cell, shape), self.time_axis) for cell in self.children().values())
        if self.merge is None:
            return forward, backward
        if self.merge is concatenate:
            return (*forward[:-1], forward[-1] + backward[-1])
        if isinstance(self.merge, np.ufunc):
            return np.broadcast_shapes(forward, backward)
        raise LayerError(
            f"the output shape of the function {named_or_repr(self.merge)} is not known without calling it; that of "
            "the default, of None, and of NumPy's ufuncs such as np.add is"
        )

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Both directions, merged."""
        x = _sequence(x, self.time_axis)
        outputs, states = [], {}
        for name, cell in self.children().items():
            reverse = name == "backward_rnn"
            if _is_whole(cell):
                y, _ = cell.sequence(x, ps[name], st=st[name], reverse=reverse)
                states[name] = st[name]
            else:
                ys, states[name] = _over(cell, x, ps[name], st[name], reverse=reverse)
                y = cnp.stack(ys, axis=1)
            outputs.append(batch_first(y, self.time_axis))
        y = tuple(outputs) if self.merge is None else self.merge(*outputs)
        return y, trusted({**st, **states})


def check_sequence(shape: tuple[int, ...], time_axis: int = 1) -> tuple[int, ...]:
    """The shape with the batch first; a `ShapeError` where an input of this shape is no sequence."""
    if len(shape) != 3 or shape[time_axis] == 0:
        form = "(batch, time, features)" if time_axis else "(time, batch, features)"
        raise ShapeError(f"expected x of shape {form}, time > 0, got {tuple(shape)}")
    return swapped(shape, time_axis)


def _sequence(x: Any, time_axis: int) -> Array:
    """An input with the batch first; steps of a list or tuple beside each other."""
    if not isinstance(x, list | tuple):
        check_sequence(shape_of(x), time_axis)
        return batch_first(x, time_axis)
    shapes = [tuple(shape_of(step)) for step in x]
    if len({*shapes}) != 1 or len(shapes[0]) != 2:
        raise ShapeError(
            f"expected the steps of x to be of one shape (batch, features), got {type(x).__name__} of "
            f"{', '.join(map(str, shapes)) or 'none'}"
        )
    return cnp.stack(x, axis=1)


def check_time_axis(layer: str, axis: Any) -> None:
    """Raise a `LayerError` where `axis` is neither 0 nor 1."""
    if type(axis) is not int or axis not in (0, 1):
        raise LayerError(
            f"{layer}: expected time_axis to be 1, for (batch, time, features), or 0, for (time, batch, features), "
            f"got {describe(axis)}"
        )


def swapped(shape: tuple[int, ...], time_axis: int) -> tuple[int, ...]:
    """A shape with the batch first, or back: the first two axes in the other order for ``time_axis=0``."""
    return shape if time_axis else (shape[1], shape[0], *shape[2:])


def batch_first(x: Array, time_axis: int) -> Array:
    """An array as `swapped` has its shape."""
    return x if time_axis else cnp.swapaxes(x, 0, 1)


def _check_cell(layer: str, name: str, cell: Any) -> None:
    if not is_layer(cell):
        raise LayerError(f"{layer}: expected {name} to be a cell such as LSTMCell(3, 5), got {describe(cell)}")


def _is_whole(cell: Any) -> bool:
    """Whether all steps of a cell can be one operation: it is one of ours, its call not overridden."""
    return isinstance(cell, Cell) and type(cell).__call__ is Cell.__call__


def _over(cell: Layer, x: Array, ps: Tree, st: Tree, *, reverse: bool = False) -> tuple[list[Array], Tree]:
    """The y of every step of any cell, in the order of time, and its states after the last that was run."""
    steps, carry, ys = unstack(x), None, {}
    for t in range(len(steps))[:: -1 if reverse else 1]:
        ys[t], carry, st = _step(cell, steps[t], carry, ps, st)
    return [ys[t] for t in range(len(steps))], st


def _step(cell: Layer, x: Array, carry: Any, ps: Tree, st: Tree) -> tuple[Array, Any, Tree]:
    result, st = cell(x if carry is None else (x, carry), ps, st)
    if type(result) is not tuple or len(result) != 2:
        raise LayerError(f"expected {cell!r} to return (y, carry) for one step, got {describe(result)}; is it a cell?")
    return (*result, st)


def _shape_over(cell: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The output shape of all steps of a cell, the batch first."""
    y: Any = cell.output_shape((shape[0], *shape[2:]))[0]  # a cell's are (y's, the carry's)
    return (shape[0], shape[1], *y[1:])
