"""Making and reading parameters and states: `setup`, `apply`, the modes, the counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from culux import tree
from culux.backends.dtypes import float_dtype
from culux.core.convert import converted
from culux.core.fields import is_layer
from culux.core.layer import Layer
from culux.core.summary import count
from culux.core.view import StatefulLayer
from culux.errors import EntryError, LayerError, ShapeError, describe, locate, nearest
from culux.tree import Tree, as_tree, trusted

__all__ = [
    "apply",
    "initial_parameters",
    "initial_states",
    "output_shape",
    "parameter_length",
    "setup",
    "state_length",
    "stateless_apply",
    "test_mode",
    "train_mode",
    "update_state",
]


def setup(
    rng: np.random.Generator | int, layer: Layer, *, device: Callable[[Any], Any] | None = None, dtype: Any = None
) -> tuple[Tree, Tree]:
    """The initial parameters and states of a layer.

    Arrays are made on the host, so that a seed gives the same numbers for every device.

    Args:
        rng: a `numpy.random.Generator`, which moves on, or an int that seeds one.
        layer: the layer or model.
        device: where they go, e.g. ``culux.gpu_device()``.
        dtype: the dtype of the floats; each layer's own (float32) if None.

    Raises:
        LayerError: for another rng or a `layer` that is none (a TypeError that shows the call).
        DTypeError: for a dtype that is no float.
    """
    generator = _generator(rng, layer)
    ps, st = _layer(layer)._gather(generator, "initial_parameters"), layer._gather(generator, "initial_states")
    if dtype is not None:
        wanted = float_dtype(dtype)
        ps, st = converted(ps, wanted), converted(st, wanted)
    if device is None:
        return ps, st
    if not callable(device):
        raise LayerError(f"expected device=culux.device('cuda:0') or another device, got {describe(device)}")
    return device(ps), device(st)


def initial_parameters(rng: np.random.Generator | int, layer: Layer) -> Tree:
    """The first half of `setup`: the parameters of a layer and its children."""
    return _layer(layer)._gather(_generator(rng, layer), "initial_parameters")


def initial_states(rng: np.random.Generator | int, layer: Layer) -> Tree:
    """The second half of `setup`: the states of a layer and its children."""
    return _layer(layer)._gather(_generator(rng, layer), "initial_states")


def apply(layer: Layer, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
    """``layer(x, ps, st)``."""
    return _layer(layer)(x, ps, st)


def stateless_apply(layer: Layer, x: Any, ps: Any) -> Any:
    """``y`` of a layer that has no states.

    Raises:
        LayerError: for a layer with states.
    """
    st = initial_states(0, layer)
    if tree.leaves(st):
        paths = ", ".join(path for path, _ in tree.leaves_with_path(st))
        raise LayerError(f"{layer!r} has states ({paths}); call y, st = layer(x, ps, st)")
    return layer(x, ps, st)[0]


def parameter_length(layer_or_ps: Any) -> int:
    """How many numbers the parameters of a layer, or a tree of parameters, hold."""
    return count(initial_parameters(0, layer_or_ps) if _no_tree(layer_or_ps) else layer_or_ps)


def state_length(layer_or_st: Any) -> int:
    """How many numbers the states of a layer, or a tree of states, hold; what is no array counts one."""
    return count(initial_states(0, layer_or_st) if _no_tree(layer_or_st) else layer_or_st)


def output_shape(layer: Layer, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of `y` for an `x` of `input_shape`, batch axis included; nothing is computed.

    Raises:
        ShapeError: where the layer does not take such an `x`.
        LayerError: for a custom layer that does not define `output_shape`.
    """
    if not isinstance(input_shape, tuple | list):
        raise LayerError(f"expected input_shape to be a tuple such as (batch, features), got {describe(input_shape)}")
    try:
        return _layer(layer).output_shape(tuple(input_shape))
    except Exception as error:
        if is_layer(layer):
            locate(error, layer, None, lambda *_: None)
        raise


def update_state(st: Any, key: str, value: Any) -> Any:
    """The states with every entry named `key`, at any depth, set to `value`.

    Takes a tree of states, or a `StatefulLayer` and returns another.

    Raises:
        EntryError: where there is no entry of that name.
    """
    updated, found = _update(_states(st), key, value)
    if not found:
        names = {name for path, _ in tree.leaves_with_path(_states(st)) for name in path.split(".")}
        listed = ", ".join(sorted(names)) or "none"
        raise EntryError(f"no state is named {key!r}{nearest(key, names)}; there are: {listed}")
    return _rebound(st, updated)


def train_mode(st: Any) -> Any:
    """The states with every `training` set to True: batch statistics, dropout. The default of `setup`."""
    return _rebound(st, _update(_states(st), "training", True)[0])


def test_mode(st: Any) -> Any:
    """The states with every `training` set to False: running statistics, no dropout."""
    return _rebound(st, _update(_states(st), "training", False)[0])


test_mode.__test__ = False  # type: ignore[attr-defined]  # pytest collects functions named test_*


def _update(st: Tree, key: str, value: Any) -> tuple[Tree, bool]:
    found = key in st
    entries = dict(st)
    for name, entry in st.items():
        if name == key:
            entries[name] = as_tree(value)
        else:
            entries[name], below = _update_below(entry, key, value)
            found = found or below
    return trusted(entries), found


def _update_below(entry: Any, key: str, value: Any) -> tuple[Any, bool]:
    if isinstance(entry, Tree):
        return _update(entry, key, value)
    if type(entry) not in (list, tuple):
        return entry, False
    updated = [_update_below(item, key, value) for item in entry]
    return type(entry)(item for item, _ in updated), any(found for _, found in updated)


def _no_tree(value: Any) -> bool:
    """Whether a value is to be taken for a layer: one, or a class in its place, which is refused there."""
    return is_layer(value) or isinstance(value, type)


def _states(st: Any) -> Tree:
    if isinstance(st, StatefulLayer):
        return st.st
    if not isinstance(st, Mapping):
        raise LayerError(f"expected states (a Tree or a dict), got {describe(st)}; modes live in st, not in the layer")
    return Tree(st)


def _rebound(original: Any, st: Tree) -> Any:
    return StatefulLayer(original.layer, original.ps, st) if isinstance(original, StatefulLayer) else st


def _layer(layer: Any) -> Layer:
    if isinstance(layer, type) and issubclass(layer, Layer):
        raise LayerError(f"expected a layer, got the class {layer.__name__}; make one: {layer.__name__}(...)")
    if not is_layer(layer):
        raise LayerError(f"expected a layer, got {describe(layer)}; the call is culux.setup(rng, layer)")
    return layer  # type: ignore[no-any-return]  # just checked


def _generator(rng: Any, layer: Any) -> np.random.Generator:
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool):
        if rng < 0:
            raise ShapeError(f"expected a seed from 0, got rng={rng}")
        return np.random.default_rng(int(rng))
    swapped = "; rng comes first" if is_layer(rng) else ""
    raise LayerError(
        f"expected rng to be a numpy.random.Generator or an int, got {describe(rng)}{swapped}: "
        "culux.setup(np.random.default_rng(0), layer)"
    )
