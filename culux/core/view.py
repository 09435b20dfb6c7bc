"""The bound view: a layer together with its parameters and its states.

One view serves ``forward(self, m, x)``, where it is made for one call, and `StatefulLayer`, where the
user keeps it: ``m.child(x)`` runs a child with its own `ps` and `st` and keeps the new `st`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from culux import tree
from culux.core.fields import CHILDREN, is_layer, without_traces
from culux.errors import LayerError, describe, missing_attribute
from culux.tree import Tree, as_tree, trusted

__all__ = ["StatefulLayer", "View"]


class View:
    """A layer bound to `ps` and `st`: children are called, parameters and states read, states written.

    ``m.<child>(x)`` runs a child and keeps its new state; ``m.<parameter>``, ``m.<state>`` and
    ``m.<field>`` read; ``m.<state> = value`` writes.
    """

    __slots__ = ("_layer", "_name", "_parent", "_ps", "_states")

    _parent: View | None
    _name: str | None
    _ps: Tree
    _states: Tree

    def __init__(self, layer: Any, ps: Tree, st: Tree, parent: View | None = None, name: str | None = None) -> None:
        set_slot = object.__setattr__
        set_slot(self, "_layer", layer)
        set_slot(self, "_ps", ps)
        set_slot(self, "_states", st)
        set_slot(self, "_parent", parent)
        set_slot(self, "_name", name)

    @property
    def _st(self) -> Tree:
        """The states as they are now; a child's live in its parent's."""
        parent = self._parent
        if parent is None:
            return self._states
        return parent._st if self._name is None else parent._st[self._name]

    def _keep(self, st: Tree) -> None:
        parent = self._parent
        if parent is None:
            object.__setattr__(self, "_states", st)
        elif self._name is None:
            parent._keep(st)
        else:
            parent._keep(trusted({**parent._st, self._name: st}))

    def __call__(self, x: Any) -> Any:
        """The layer on `x`; its new state is kept."""
        st = self._st
        y, new = self._layer(x, self._ps, st)
        if new is not st:
            self._keep(new)
        return y

    def _child(self, name: str, layer: Any) -> View:
        if not self._layer._nests_children:
            return View(layer, self._ps, self._states, self)
        return View(layer, self._ps[name], self._states, self, name)

    def _bound(self, name: str, value: Any) -> Any:
        """A field with its layers bound: the names of `culux.core.fields.layers_in`."""
        if is_layer(value):
            return self._child(name, value)
        if type(value) is tuple:
            return tuple(self._bound(f"{name}_{i + 1}", item) for i, item in enumerate(value))
        if type(value) is Tree:
            return {key: self._bound(f"{name}_{key}", item) for key, item in value.items()}
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols: a view is not the layer that it shows
            raise AttributeError(name)
        layer = self._layer
        children = layer.__dict__[CHILDREN]
        if name in children:
            return self._child(name, children[name])
        if name in self._ps:
            return self._ps[name]
        if name in self._st:
            return self._st[name]
        try:
            value = getattr(layer, name)
        except AttributeError:
            raise missing_attribute(f"the view of {layer!r} (children, parameters, states and fields)", name) from None
        return self._bound(name, value) if type(value) in (tuple, Tree) else value

    def __setattr__(self, name: str, value: Any) -> None:
        st = self._st
        if name not in st or name in getattr(self._layer, CHILDREN):
            raise LayerError(
                f"{name!r} is no state of {self._layer!r}, only states are written; its states are: "
                f"{', '.join(st) or 'none'}; add it to initial_states(self, rng)"
            )
        self._keep(trusted({**st, name: as_tree(value)}))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._layer!r})"


class StatefulLayer(View):
    """A layer with its `ps` and `st` in one object, for the stateful style: ``y = m(x)``.

    ``m(x)`` runs the layer and moves `m.st` on, with plain arrays only; ``m(x, ps)`` takes other
    parameters; ``m.layer``, ``m.ps``, ``m.st`` are its parts, ``m.<child>`` a child as a view. It is no
    Layer. ``gradient(lambda m: loss(m(x)), m)`` is the Tree of `m.ps`.

    Args:
        layer: the layer.
        ps: its parameters.
        st: its states.
    """

    __slots__ = ()

    def __init__(self, layer: Any, ps: Any, st: Any) -> None:
        if not is_layer(layer):
            raise LayerError(f"expected StatefulLayer(layer, ps, st), got {describe(layer)} for the layer")
        if not isinstance(ps, Mapping) or not isinstance(st, Mapping):
            raise LayerError(
                f"expected StatefulLayer(layer, ps, st), got ps {describe(ps)} and st {describe(st)}; "
                "ps, st = culux.setup(rng, layer)"
            )
        super().__init__(layer, as_tree(ps), without_traces(st))

    @property
    def layer(self) -> Any:
        """The layer."""
        return self._layer

    @property
    def ps(self) -> Tree:
        """The parameters."""
        return self._ps

    @property
    def st(self) -> Tree:
        """The states after the last call."""
        return self._st

    def _keep(self, st: Tree) -> None:
        super()._keep(without_traces(st))

    def __call__(self, x: Any, ps: Any = None) -> Any:
        """The layer on `x`, with other parameters where `ps` is given; its new state is kept."""
        y, st = self._layer(x, self._ps if ps is None else ps, self._st)
        self._keep(st)
        return y

    def __culux_trainable__(self) -> Tree:
        """What `gradient` differentiates with respect to."""
        return self.ps

    def __culux_replace__(self, ps: Tree) -> View:
        """The same layer with other parameters: traced ones move the states of this object, others have their own."""
        if any(hasattr(leaf, "__culux_value__") for leaf in tree.leaves(ps)):
            return _Borrowed(self._layer, ps, self._states, self)
        return StatefulLayer(self._layer, ps, self._st)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.layer, self.ps, self.st)


class _Borrowed(StatefulLayer):
    """A `StatefulLayer` with traced parameters whose states live in the one that it was made from.

    It is a tree node, so that one that leaves its trace as aux becomes a plain `StatefulLayer`.
    """

    __slots__ = ()

    def __init__(self, layer: Any, ps: Tree, st: Tree, owner: View) -> None:
        View.__init__(self, layer, ps, st, owner)

    def __tree_flatten__(self) -> tuple[Mapping[str, Any], Any]:
        return {"ps": self._ps, "st": self._st}, self._layer

    @classmethod
    def __tree_unflatten__(cls, static: Any, children: Mapping[str, Any]) -> StatefulLayer:
        return StatefulLayer(static, **children)
