"""Layers whose parameters, or some of them, are not trained: `Frozen`, `freeze`, `unfreeze`."""

from __future__ import annotations

import functools
from typing import Any

from culux import tree
from culux.core import Layer, WrapperLayer
from culux.core.fields import is_layer
from culux.errors import LayerError, describe
from culux.tree import Tree, as_tree, trusted

__all__ = ["Frozen", "freeze", "unfreeze"]


class Frozen(WrapperLayer):
    """A layer of which parameters are states: ``y = layer(x)``, and no gradient is computed for what is frozen.

    ``Frozen(model, "encoder.*")`` freezes a sublayer of a model. `freeze` does the same with `ps` and `st` that are
    there already. To keep parameters fixed for a while without another layer there is `culux.optim.freeze`.

    Args:
        layer: the layer.
        which: the paths of the parameters that are frozen, as patterns of `culux.tree.select`: "weight", "layer_1.*";
            one, or a tuple. All of them by default.

    Inputs:
        What `layer` takes.

    Returns:
        What `layer` returns.

    Parameters:
        Those of `layer` that are not frozen, at their places.

    States:
        frozen: the frozen parameters, at their places.
        states: those of `layer`.

    Raises:
        LayerError: for arguments that are none of these.
        EntryError: by `culux.setup`, for a pattern without a parameter.
    """

    layer: Layer
    which: str | tuple[str, ...] = "*"

    def __post_init__(self) -> None:
        if not is_layer(self.layer):
            raise LayerError(f"Frozen: expected layer to be a layer, got {describe(self.layer)}")
        if not self._patterns() or not all(isinstance(pattern, str) for pattern in self._patterns()):
            raise LayerError(
                'Frozen: expected which to be a pattern of paths such as "layer_1.*", or a tuple of them, '
                f"got {describe(self.which)}"
            )

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The layer with all of its parameters."""
        y, states = self.layer(x, joined(ps, st["frozen"]), st["states"])
        return y, st if states is st["states"] else trusted({"frozen": st["frozen"], "states": states})

    def _gather(self, rng: Any, method: str) -> Tree:
        """The trained parameters; or the frozen ones, drawn anew, and the states."""
        trained, frozen = self._split(self.layer._gather(rng, "initial_parameters"))
        if method == "initial_parameters":
            return trained
        return trusted({"frozen": frozen, "states": self.layer._gather(rng, method)})

    def _split(self, ps: Tree) -> tuple[Tree, Tree]:
        """The parameters that are trained and those that are frozen."""
        parts = (tree.select(ps, pattern) for pattern in self._patterns())
        frozen = functools.reduce(joined, parts)
        return without(ps, frozen), frozen

    def _patterns(self) -> tuple[Any, ...]:
        return self.which if isinstance(self.which, tuple) else (self.which,)


def freeze(layer: Layer, ps: Any, st: Any, which: str | tuple[str, ...] = "*") -> tuple[Frozen, Tree, Tree]:
    """A layer with parameters frozen as they are, and with `ps` and `st` that fit it.

    Args:
        layer: the layer or model.
        ps: its parameters.
        st: its states.
        which: the paths of the parameters that are frozen, as patterns of `culux.tree.select`; all by default.

    Returns:
        ``(Frozen(layer, which), ps, st)`` with the frozen parameters moved from `ps` to `st`.

    Raises:
        EntryError: for a pattern without a parameter.
    """
    frozen = Frozen(layer, which)
    trained, kept = frozen._split(as_tree(ps))
    return frozen, trained, Tree(frozen=kept, states=st)


def unfreeze(layer: Frozen, ps: Any, st: Any) -> tuple[Layer, Tree, Tree]:
    """The way back from `freeze`: what was frozen is trained again.

    Raises:
        LayerError: for a `layer` that is no `Frozen`.
    """
    if not isinstance(layer, Frozen):
        raise LayerError(f"expected unfreeze(layer, ps, st) with a Frozen layer, got {describe(layer)}")
    st = as_tree(st)
    return layer.layer, joined(as_tree(ps), st["frozen"]), st["states"]


def joined(entries: Tree, part: Tree) -> Tree:
    """The entries of both, at their places."""
    new = dict(entries)
    for name, value in part.items():
        below = entries.get(name)
        new[name] = joined(below, value) if isinstance(below, Tree) and isinstance(value, Tree) else value
    return trusted(new)


def without(entries: Tree, part: Tree) -> Tree:
    """The entries less the leaves of `part`; a Tree that has none left stays, empty."""
    kept: dict[str, Any] = {}
    for name, value in entries.items():
        if name not in part:
            kept[name] = value
        elif isinstance(value, Tree):
            kept[name] = without(value, part[name])
    return trusted(kept)
