"""Parameters that stand at several places of a model and are stored once: `Shared`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from culux import tree
from culux.core import Layer, WrapperLayer
from culux.core.fields import is_layer
from culux.errors import EntryError, LayerError, ShapeError, describe
from culux.layers.frozen import joined, without
from culux.tree import Tree

__all__ = ["Shared"]


class Shared(WrapperLayer):
    """A layer that uses parameters at several places: ``ps[path] = ps[source]`` for every ``path: source``.

    ``Shared(model, {"head.weight": "embedding.weight"})`` ties the weights of a language model; a path may also
    lead to a whole layer, ``{"layer_3": "layer_1"}``. What is shared is stored once, at its source, so that its
    gradient is the sum over its places and that updates, moves and checkpoints see one array.

    Args:
        layer: the layer.
        ties: for the path of every parameter, or layer, that takes another's place in `ps`, the path of that one; a
            dict, or pairs.

    Inputs:
        What `layer` takes.

    Returns:
        What `layer` returns.

    Parameters:
        Those of `layer`, without those that take another's place; a layer of which none is left has an empty entry.

    States:
        Those of `layer`.

    Raises:
        LayerError: for arguments that are none of these, and for a source that takes another's place itself.
        EntryError: by `culux.setup`, for a path without a parameter.
        ShapeError: by `culux.setup`, for parameters of another shape or dtype than their source.
    """

    def __init__(self, layer: Layer, ties: Mapping[str, str] | Iterable[tuple[str, str]]) -> None:
        if not is_layer(layer):
            raise LayerError(f"Shared: expected layer to be a layer, got {describe(layer)}")
        pairs = tuple(ties.items() if isinstance(ties, Mapping) else ties if isinstance(ties, list | tuple) else ())
        if not pairs or not all(isinstance(pair, list | tuple) and _are_paths(*pair) for pair in pairs):
            raise LayerError(
                "Shared: expected ties to be a dict of paths in ps, such as "
                f'{{"head.weight": "embedding.weight"}}, got {describe(ties)}'
            )
        self.layer = layer
        self.ties: tuple[tuple[str, str], ...] = tuple((path, source) for path, source in pairs)
        for i, (path, source) in enumerate(self.ties):
            others = [other for j, pair in enumerate(self.ties) for other in (pair if i != j else (source,))]
            clash = next((other for other in others if _overlap(path, other)), None)
            if clash is not None:
                raise LayerError(
                    f"Shared: {path!r} takes the place of {source!r} and is not stored, so {clash!r} cannot be tied as "
                    "well; name for every path the one place where it is stored"
                )

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The layer with its parameters at all of their places."""
        for path, source in self.ties:
            ps = joined(ps, _nested(path, _at(ps, source)))
        return self.layer(x, ps, st)

    def _gather(self, rng: Any, method: str) -> Tree:
        """The states, or the parameters that are stored."""
        below = self.layer._gather(rng, method)
        if method == "initial_parameters":
            for path, source in self.ties:
                _check_same(path, _at(below, path), source, _at(below, source))
            for path, _ in self.ties:
                below = without(below, _nested(path, _at(below, path)))
        return below


def _are_paths(*values: Any) -> bool:
    return len(values) == 2 and all(isinstance(value, str) and value for value in values)


def _overlap(one: str, other: str) -> bool:
    """Whether two paths are the same, or one leads through the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _at(entries: Any, path: str) -> Any:
    """What stands at a path."""
    for name in path.split("."):
        if not isinstance(entries, Tree):
            raise EntryError(f"Shared: {path!r} leads into a parameter, which has no entries")
        entries = entries[name]
    return entries


def _nested(path: str, value: Any) -> Tree:
    """A Tree with `value` at `path` and nothing else."""
    for name in reversed(path.split(".")):
        value = Tree({name: value})
    return value  # type: ignore[no-any-return]  # a path has a name at least


def _check_same(path: str, value: Any, source: str, stored: Any) -> None:
    """Raise a `ShapeError` where the parameters at two paths have not the same names, shapes and dtypes."""
    here, there = ({name: describe(leaf) for name, leaf in tree.leaves_with_path(entry)} for entry in (value, stored))
    if here != there or not here:
        raise ShapeError(
            f"Shared: expected parameters of the same names, shapes and dtypes at {path!r} and {source!r}, got "
            f"{_listed(here)} and {_listed(there)}"
        )


def _listed(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}".strip() for name, text in found.items()) or "none"
