"""`summary`: a model's layers in a table, with what each returns, holds and computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from culux import tree
from culux.autodiff.flops import FlopTrace
from culux.autodiff.tracer import plain
from culux.autodiff.watched import TracingWatcher
from culux.backends import is_array
from culux.core import Layer, setup, test_mode
from culux.core.fields import CHILDREN, is_layer
from culux.core.summary import count
from culux.core.watch import watching
from culux.errors import LayerError, describe

__all__ = ["Row", "Summary", "summary"]


@dataclass(frozen=True)
class Row:
    """One call of a layer.

    Attributes:
        path: the names that lead to the layer, joined by dots; empty for the model.
        depth: in how many layers' calls it stands.
        layer: the layer.
        output_shape: the shape of what it returned; a tuple of shapes where that is a tuple.
        parameters: how many numbers its parameters hold, those of the layers inside included.
        output_bytes: of its output; of a layer with layers inside, of the outputs of the innermost ones.
        flops: the floating point operations of the call; None where it could not be counted.
    """

    path: str
    depth: int
    layer: Layer
    output_shape: Any
    parameters: int
    output_bytes: int
    flops: int | None


@dataclass(frozen=True)
class Summary:
    """What `summary` found; ``print`` shows the table.

    Attributes:
        rows: one per call of a layer, in the order in which the calls began; the first is the model's.
        parameters: how many numbers the parameters hold.
        parameter_bytes: of the parameters.
        states: how many numbers the states hold.
        state_bytes: of the states.
    """

    rows: tuple[Row, ...]
    parameters: int
    parameter_bytes: int
    states: int
    state_bytes: int

    def __str__(self) -> str:
        head = ("layer", "output shape", "parameters", "output memory", "FLOPs")
        cells = [head, *map(_cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(_aligned(i, cell, widths[i]) for i, cell in enumerate(row)).rstrip() for row in cells]
        rule = "-" * max(map(len, lines))
        totals = f"parameters: {self.parameters:,} ({_scaled(self.parameter_bytes, 'B')}), "
        totals += f"states: {self.states:,} ({_scaled(self.state_bytes, 'B')})"
        return "\n".join([lines[0], rule, *lines[1:], rule, totals])


def summary(layer: Layer, x: Any, ps: Any = None, st: Any = None) -> Summary:
    """The layers of a model in a table: output shape, parameters, memory of the output, operations.

    The model runs once, in test mode. A product of matrices counts two operations per multiplication and addition, a
    copy or a comparison none, any other operation one per element; what NumPy computes on its own is not counted.

    Args:
        layer: the model.
        x: an input; or its shape, or a tuple of shapes for a tuple of inputs, for float32 zeros.
        ps: the parameters; new ones if None.
        st: the states; new ones if None.

    Returns:
        A `Summary`.

    Raises:
        LayerError: for a `layer` that is none, and whatever the model raises for such an `x`.
    """
    if not is_layer(layer):
        raise LayerError(f"expected summary(layer, x), got {describe(layer)} for the layer")
    if ps is None or st is None:
        made = setup(0, layer)
        ps, st = (given if given is not None else new for given, new in zip((ps, st), made, strict=True))
    recorder = _Recorder()
    with watching(recorder):
        layer(_input(x), ps, test_mode(st))
    rows = tuple(recorder.rows[number] for number in sorted(recorder.rows))
    return Summary(rows, *_size(ps), *_size(st))


@dataclass
class _Call:
    """A layer's call that has not ended."""

    number: int
    parameters: int
    flops: int
    bytes_inside: int = 0


class _Recorder(TracingWatcher):
    """Notes every call of a layer, in a trace that counts."""

    _trace: FlopTrace | None

    def __init__(self) -> None:
        super().__init__()
        self.failed(None)

    def open(self) -> FlopTrace:
        """A trace that counts."""
        self._trace = FlopTrace()
        return self._trace

    def failed(self, error: Exception | None) -> None:
        """Begin, or begin again without operations."""
        self.rows: dict[int, Row] = {}
        self._running: list[_Call] = []
        self._begun = 0
        self._trace = None

    def before(self, x: Any, ps: Any, st: Any) -> None:
        """A call begins."""
        self._running.append(_Call(self._begun, count(ps), self._trace.flops if self._trace else 0))
        self._begun += 1

    def after(self, result: Any) -> None:
        """A call ends."""
        call, y = self._running.pop(), tree.map(plain, result[0])
        output_bytes = call.bytes_inside if self._begun > call.number + 1 else _size(y)[1]
        if self._running:
            self._running[-1].bytes_inside += output_bytes
        flops = self._trace.flops - call.flops if self._trace else None
        depth, layer, shape = len(self._running), self.layers[-1][0], tree.map(_shape, y)
        self.rows[call.number] = Row(self.path, depth, layer, shape, call.parameters, output_bytes, flops)


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))


def _input(x: Any) -> Any:
    """Zeros where `x` is a shape or a tuple of shapes."""
    if type(x) is not tuple or not x:
        return x
    if all(isinstance(length, int) for length in x):
        return np.zeros(x, np.float32)
    return tuple(_input(part) for part in x)


def _size(entries: Any) -> tuple[int, int]:
    """How many numbers and bytes the arrays in a tree hold."""
    return count(entries), sum(int(leaf.nbytes) for leaf in tree.leaves(entries) if is_array(leaf))


def _cells(row: Row) -> tuple[str, ...]:
    inside = row.layer.__dict__[CHILDREN] and row.layer._nests_children
    name, text = row.path.rpartition(".")[2], type(row.layer).__name__ if inside else repr(row.layer)
    return (
        f"{'  ' * row.depth}{name}{' = ' if name else ''}{text}",
        str(row.output_shape),
        f"{row.parameters:,}",
        _scaled(row.output_bytes, "B"),
        "?" if row.flops is None else _scaled(row.flops, ""),
    )


def _scaled(value: int, unit: str) -> str:
    """A number with three digits and a prefix: 1.23 kB, 45 M."""
    number, prefixes = float(value), iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while number >= 999.5 and prefix != "T":
        number, prefix = number / 1000, next(prefixes)
    return f"{number:.3g} {prefix}{unit}".rstrip()


def _aligned(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)
