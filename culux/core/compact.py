"""`compact`: a layer from a function."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import reduce
from pickle import PicklingError
from typing import Any

from culux import tree
from culux.core.fields import layers_in, named_or_repr
from culux.core.layer import ContainerLayer, Layer
from culux.core.view import View
from culux.errors import LayerError, describe
from culux.tree import Tree

__all__ = ["compact"]


def compact(
    *,
    states: Mapping[str, Callable[[Any], Any]] | None = None,
    output_shape: Callable[[tuple[int, ...]], Any] | None = None,
    **entries: Any,
) -> Callable[[Callable[[View, Any], Any]], Layer]:
    """Make a layer of a function ``f(m, x) -> y``, on the bound view `m` that `forward` has.

        @culux.compact(d=Dense(3, 5), w=lambda rng: rng.standard_normal(5, dtype=np.float32), n=4)
        def model(m, x):                  # model is a layer: ps, st = culux.setup(rng, model)
            for _ in range(m.n):
                x = m.d(x) * m.w
            return x

    What an entry is, its kind says: a layer, or a tuple, list or dict of layers, is a child; a function of one
    argument named `rng` makes a parameter; anything else is a constant, which `m` has under its name.

    Args:
        states: for each state its function of `rng`; ``m.<state> = value`` writes it.
        output_shape: the shape of `y` for the shape of `x`, which `culux.output_shape` gives.
        **entries: layers, functions of `rng`, and constants by name.

    Returns:
        A decorator that takes the function and returns the layer.

    Raises:
        LayerError: for an array among the entries, a state without a function of `rng`, or what is no function of
            ``(m, x)``.
    """
    made = Tree(states or {})
    for name, function in made.items():
        if not _makes_array(function):
            raise LayerError(f"compact: expected states[{name!r}] to be a function of rng, got {describe(function)}")
    return lambda function: CompactLayer(function, Tree(entries), made, output_shape)


class CompactLayer(ContainerLayer):
    """The layer of a function `f(m, x)` and what `compact` was given with it."""

    def __init__(self, function: Any, entries: Tree, states: Tree, shape: Any) -> None:
        if not callable(function) or not _takes_two(function):
            raise LayerError(f"compact: expected a function f(m, x), got {describe(function)}; it is a decorator: "
                             "@culux.compact(d=Dense(3, 5)) above def f(m, x): return m.d(x)")  # fmt: skip
        for name, value in entries.items():
            if any(hasattr(leaf, "shape") for leaf in tree.leaves(value)):
                raise LayerError(
                    f"compact: {name} is an array, and a layer holds none; write {name}=lambda rng: ... for a "
                    f"parameter, or states={{'{name}': lambda rng: ...}} for what is not trained"
                )
        for name in (*entries, *states):
            if hasattr(ContainerLayer, name) or (name in entries and name in states):
                raise LayerError(f"compact: the name {name!r} is taken; choose another name")
        self.function, self.entries, self.states, self.shape = function, entries, states, shape

    def children(self) -> Mapping[str, Layer]:
        """The layers among the entries, under their names."""
        return {child: layer for name, value in self.entries.items() for child, layer in layers_in(name, value)}

    def initial_parameters(self, rng: Any) -> Mapping[str, Any]:
        """What the functions of `rng` make."""
        return {name: value(rng) for name, value in self.entries.items() if _makes_array(value)}

    def initial_states(self, rng: Any) -> Mapping[str, Any]:
        """What the states' functions of `rng` make."""
        return {name: value(rng) for name, value in self.states.items()}

    def output_shape(self, input_shape: tuple[int, ...]) -> Any:
        """What the function given for it says."""
        if self.shape is None:
            raise LayerError(
                "the function does not say its output shape; give it: "
                "@culux.compact(..., output_shape=lambda shape: (shape[0], 5))"
            )
        return self.shape(input_shape)

    def forward(self, m: View, x: Any) -> Any:
        """The function."""
        return self.function(m, x)

    def __getattr__(self, name: str) -> Any:
        entries = self.__dict__.get("entries", {})
        return entries[name] if name in entries else super().__getattr__(name)

    def __repr__(self) -> str:
        arguments = [f"{name}={named_or_repr(value)}" for name, value in self.entries.items()]
        if self.states:
            arguments.append(f"states={named_or_repr(self.states)}")
        return f"compact({', '.join(arguments)})({self.function.__name__})"

    def __reduce__(self) -> tuple[Any, ...]:
        """By its name in its module: the function itself has none, as the layer took it."""
        place = self.function.__module__, self.function.__qualname__
        try:
            found = _find(*place)
        except (ImportError, AttributeError):
            found = None
        if found is not self:
            raise PicklingError(f"{self!r} is not {'.'.join(place)}; a compact layer pickles by its name in a module")
        return _find, place

    def __copy__(self) -> CompactLayer:
        return self

    def __deepcopy__(self, memo: Any) -> CompactLayer:
        return self  # nothing in it can change


def _find(module: str, qualname: str) -> Any:
    return reduce(getattr, qualname.split("."), importlib.import_module(module))


def _makes_array(value: Any) -> bool:
    """Whether an entry is a function of one argument named rng."""
    try:
        return callable(value) and list(inspect.signature(value).parameters) == ["rng"]
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False


def _takes_two(function: Any) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True
