"""What becomes of torch's recurrent layers and cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from culux import nn
from culux.core import Layer, WrapperLayer
from culux.interop.from_torch import ContainerFromTorch, FromTorch, expect_options
from culux.layers import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from culux.layers.recurrent import Cell, with_carry
from culux.tree import Tree

__all__ = ["RECURRENT"]

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_NONLINEARITIES = {"tanh": nn.tanh, "relu": nn.relu}


class _CellFromTorch(FromTorch):
    """What the cells have in common: the names of their parameters, which are torch's."""

    def torch_names(self) -> Mapping[str, str]:
        """The path of every parameter, and the module's name for it."""
        return {name: name for name in _NAMES}


class RNNCellFromTorch(_CellFromTorch, RNNCell):
    """An `RNNCell` made of a `torch.nn.RNNCell`.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        activation = _NONLINEARITIES[module.nonlinearity]
        super().__init__(module.input_size, module.hidden_size, activation=activation, use_bias=module.bias)
        self.module = module


class LSTMCellFromTorch(_CellFromTorch, LSTMCell):
    """An `LSTMCell` made of a `torch.nn.LSTMCell`.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module.input_size, module.hidden_size, use_bias=module.bias)
        self.module = module


class GRUCellFromTorch(_CellFromTorch, GRUCell):
    """A `GRUCell` made of a `torch.nn.GRUCell`.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module.input_size, module.hidden_size, use_bias=module.bias)
        self.module = module


class _StackedFromTorch(ContainerFromTorch):
    """What the layers have in common: the names of their parameters."""

    def torch_names(self) -> Mapping[str, str]:
        """The path of every parameter, and the module's name for it."""
        ways = {".forward_rnn": "", ".backward_rnn": "_reverse"} if self.module.bidirectional else {"": ""}
        return {
            f"layer_{level + 1}{way}.{name}": f"{name}_l{level}{suffix}"
            for level in range(self.module.num_layers)
            for way, suffix in ways.items()
            for name in _NAMES
        }


class RNNFromTorch(_StackedFromTorch, RNN):
    """An `RNN` made of a `torch.nn.RNN`.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        options = _options(module)
        super().__init__(
            module.input_size, module.hidden_size, activation=_NONLINEARITIES[module.nonlinearity], **options
        )
        self.module = module


class LSTMFromTorch(_StackedFromTorch, LSTM):
    """An `LSTM` made of a `torch.nn.LSTM`.

    Args:
        module: the torch module.

    Raises:
        NoCounterpart: for a projection.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module.input_size, module.hidden_size, **_options(module))
        self.module = module


class GRUFromTorch(_StackedFromTorch, GRU):
    """A `GRU` made of a `torch.nn.GRU`.

    Args:
        module: the torch module.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module.input_size, module.hidden_size, **_options(module))
        self.module = module


def _options(module: Any) -> dict[str, Any]:
    """The options that the layers share."""
    expect_options(module, proj_size=0)
    return {
        "time_axis": 1 if module.batch_first else 0,
        "num_layers": module.num_layers,
        "bidirectional": module.bidirectional,
        "dropout": float(module.dropout),
        "use_bias": module.bias,
        "return_carry": True,
    }


class CalledAsInTorch(WrapperLayer):
    """A recurrent layer or cell, called as torch's is: ``y, h = layer((x, h))``, of a cell ``h = layer((x, h))``.

    Args:
        layer: the native layer, with `return_carry`, or cell; it takes and returns a carry in culux's form.

    Inputs:
        x: as of `layer`; or the tuple ``(x, h)``, of an LSTM ``(x, (h, c))``.

    Returns:
        ``(y, h)`` or ``(y, (h, c))``, of a cell ``h`` or ``(h, c)``, and the states of `layer`.

    Parameters:
        Those of `layer`.

    States:
        Those of `layer`.
    """

    layer: Layer

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The layer, called in its own form."""
        x, carry = with_carry(x)
        if carry is not None:
            carry = carry if isinstance(carry, tuple) else (carry,)
            x = (x, carry) if isinstance(self.layer, Cell) else (x, None, carry)
        found, st = self.layer(x, ps, st)
        return self._in_torch(found), st

    def output_shape(self, input_shape: Any) -> Any:
        """The shapes of what the call returns, for an `x` of this shape."""
        return self._in_torch(self.layer.output_shape(input_shape))

    def _in_torch(self, found: Any) -> Any:
        """What the layer returns, or its shapes, as torch returns them."""
        y, carry = found
        after = carry[0] if len(carry) == 1 else carry
        return after if isinstance(self.layer, Cell) else (y, after)


def _called_as_in_torch(make: Callable[[Any], Layer]) -> Callable[[Any], Layer]:
    return lambda module: CalledAsInTorch(make(module))


RECURRENT: Mapping[str, Callable[[Any], Layer]] = {
    "RNNCell": _called_as_in_torch(RNNCellFromTorch),
    "LSTMCell": _called_as_in_torch(LSTMCellFromTorch),
    "GRUCell": _called_as_in_torch(GRUCellFromTorch),
    "RNN": _called_as_in_torch(RNNFromTorch),
    "LSTM": _called_as_in_torch(LSTMFromTorch),
    "GRU": _called_as_in_torch(GRUFromTorch),
}
"""How a module of a class is made a layer."""
