"""Trees: nested containers of leaves, and the functions that walk them.

A node is a `Tree`, a dict, a list, a tuple (named tuples too), None (a node without leaves) or an
object whose class defines `__tree_flatten__` and `__tree_unflatten__`. Everything else is a leaf.
The functions have the meanings and the argument order of `jax.tree`; entries keep their insertion
order, and a path is the names joined by dots: ``"layer_1.weight"``.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Hashable, ItemsView, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, runtime_checkable

from culux.errors import EntryError, LayerError, ShapeError, describe, nearest

__all__ = [
    "Structure",
    "Tree",
    "TreeNode",
    "flatten",
    "leaves",
    "leaves_with_path",
    "map",
    "map_with_path",
    "reduce",
    "select",
    "structure",
    "unflatten",
]

IsLeaf = Callable[[Any], bool] | None


class Tree(dict[str, Any]):
    """An immutable dict with attribute access; nested mappings become Trees.

    ``Tree(weight=w, bias=b)`` or ``Tree({"weight": w, "bias": b})``; entries are read as
    ``tree.weight`` or ``tree["weight"]`` and keep their insertion order.

    Raises:
        LayerError: for a name that is no string, contains a dot or is a method of dict.
    """

    __slots__ = ()

    def __init__(self, mapping: Mapping[str, Any] = {}, /, **entries: Any) -> None:
        dict.__init__(self)
        for name, value in {**mapping, **entries}.items():
            check_name(name)
            dict.__setitem__(self, name, as_tree(value))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols ask for these often; no entry is named so
            raise AttributeError(name)
        return self[name]

    def __missing__(self, name: object) -> NoReturn:
        raise _no_entry(self, name)

    def replace(self, mapping: Mapping[str, Any] = {}, /, **entries: Any) -> Tree:
        """A Tree with some entries replaced; paths reach into nested Trees.

        ``tree.replace(weight=w)`` or ``tree.replace({"layer_1.weight": w})``.

        Raises:
            EntryError: for an entry that is not there (a KeyError that lists the entries).
        """
        new = dict(self)
        for path, value in {**mapping, **entries}.items():
            name, _, rest = path.partition(".")
            if name not in new:
                raise _no_entry(self, name)
            if rest and not isinstance(new[name], Tree):
                raise EntryError(f"{name!r} is a leaf, {path!r} leads into it")
            new[name] = new[name].replace({rest: value}) if rest else as_tree(value)
        return trusted(new)

    def __or__(self, other: Mapping[str, Any]) -> Tree:  # type: ignore[override]  # a Tree, where dict gives a dict
        return Tree({**self, **other})

    def __ror__(self, other: Mapping[str, Any]) -> Tree:  # type: ignore[override]  # a Tree, where dict gives a dict
        return Tree({**other, **self})

    def copy(self) -> Tree:
        """The Tree itself: it cannot change."""
        return self

    def __hash__(self) -> int:  # type: ignore[override]  # a dict has none: it can change
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Tree, (dict(self),)

    def __repr__(self) -> str:
        return f"Tree({', '.join(f'{name}={_brief(value)}' for name, value in self.items())})"

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def _immutable(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("a Tree cannot change; make another with tree.replace(name=value) or tree | {...}")

    __setitem__ = __delitem__ = __setattr__ = __delattr__ = __ior__ = _immutable
    clear = pop = popitem = setdefault = update = _immutable


_RESERVED = frozenset(name for name in dir(dict) if not name.startswith("__")) | {"replace"}


def check_name(name: object) -> None:
    """Raise a `LayerError` where `name` cannot name an entry of a Tree or a layer of a model."""
    if not isinstance(name, str):
        raise LayerError(f"names are strings, got {describe(name)}")
    if name in _RESERVED:
        raise LayerError(f"{name!r} is a method of dict and cannot name an entry or a layer; choose another name")
    if "." in name or not name:
        raise LayerError(f"{name!r} cannot name an entry or a layer: names are not empty and have no dots")


def as_tree(value: Any) -> Any:
    """`value` with mappings turned into Trees, also inside lists and tuples; other values as they are."""
    if type(value) is Tree:
        return value
    if isinstance(value, Mapping):
        return Tree(value)
    if type(value) in (list, tuple):
        return type(value)(as_tree(item) for item in value)
    return value


def trusted(entries: dict[str, Any]) -> Tree:
    """A Tree of entries whose names and nested values are known to be right: no checks, one copy."""
    tree = Tree.__new__(Tree)
    dict.update(tree, entries)
    return tree


def _nested(value: Any) -> Any:
    return Tree(value) if type(value) is dict else value


def _no_entry(tree: Tree, name: object) -> EntryError:
    entries = ", ".join(tree) or "none"
    return EntryError(f"expected an entry {name!r}{nearest(name, tree)}, the entries are: {entries}")


def _brief(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype}[{', '.join(str(n) for n in shape)}]"
    return repr(value)


@runtime_checkable
class TreeNode(Protocol):
    """A class whose objects are nodes: named children, and the rest as a hashable value."""

    def __tree_flatten__(self) -> tuple[Mapping[str, Any], Hashable]:
        """The children by name, and what is not a child."""
        ...

    @classmethod
    def __tree_unflatten__(cls, static: Any, children: Mapping[str, Any]) -> Any:
        """The object made of children and of what `__tree_flatten__` returned with them."""
        ...


@dataclass(frozen=True, slots=True)
class Structure:
    """A tree without its leaves; compares and hashes."""

    kind: type | None  # None marks a leaf
    names: tuple[str, ...] = ()
    children: tuple[Structure, ...] = ()
    static: Hashable = None

    @property
    def num_leaves(self) -> int:
        """How many leaves a tree of this structure has."""
        return 1 if self.kind is None else sum(child.num_leaves for child in self.children)


_LEAF = Structure(None)
_Node = tuple[tuple[str, ...], list[Any], Hashable]


_Flatten = Callable[[Any], _Node]
# How each type seen so far is flattened: looked up for every entry of every tree, so worked out once per type.
_flatteners: dict[type, _Flatten | None] = {type(None): lambda value: ((), [], None)}


def _node(value: Any) -> _Node | None:
    """Names, children and static part of a node; None for a leaf."""
    kind = type(value)
    try:
        flattener = _flatteners[kind]
    except KeyError:
        flattener = _flatteners[kind] = _flattener(kind)
    return None if flattener is None else flattener(value)


def _flattener(kind: type) -> _Flatten | None:
    if issubclass(kind, dict):
        return lambda value: (tuple(value), list(value.values()), None)
    if kind is tuple or kind is list:
        return lambda value: (tuple([str(i) for i in range(len(value))]), list(value), None)
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return lambda value: (value._fields, list(value), None)
    return _flatten_object if hasattr(kind, "__tree_flatten__") else None


def _flatten_object(value: TreeNode) -> _Node:
    children, static = value.__tree_flatten__()
    return tuple(children), list(children.values()), static


def _rebuild(kind: type, names: tuple[str, ...], children: list[Any], static: Hashable) -> Any:
    if kind is type(None):
        return None
    if kind is Tree:
        return trusted({name: _nested(child) for name, child in zip(names, children, strict=True)})
    if issubclass(kind, dict):
        return kind(zip(names, children, strict=True))
    if kind is tuple or kind is list:
        return kind(children)
    if hasattr(kind, "__tree_unflatten__"):
        return kind.__tree_unflatten__(static, dict(zip(names, children, strict=True)))
    return kind(*children)


def flatten(tree: Any, is_leaf: IsLeaf = None) -> tuple[list[Any], Structure]:
    """The leaves in order, and the structure that `unflatten` needs to put them back."""
    found: list[Any] = []
    return found, _flatten(tree, is_leaf, found)


def _flatten(tree: Any, is_leaf: IsLeaf, found: list[Any]) -> Structure:
    node = None if is_leaf is not None and is_leaf(tree) else _node(tree)
    if node is None:
        found.append(tree)
        return _LEAF
    names, children, static = node
    return Structure(type(tree), names, tuple(_flatten(child, is_leaf, found) for child in children), static)


def unflatten(structure: Structure, leaves: Any) -> Any:
    """The tree of this structure with these leaves; the inverse of `flatten`."""
    values = list(leaves)
    if len(values) != structure.num_leaves:
        raise ShapeError(f"expected {structure.num_leaves} leaves for this structure, got {len(values)}")
    return _unflatten(structure, iter(values))


def _unflatten(structure: Structure, leaves: Iterator[Any]) -> Any:
    if structure.kind is None:
        return next(leaves)
    children = [_unflatten(child, leaves) for child in structure.children]
    return _rebuild(structure.kind, structure.names, children, structure.static)


def structure(tree: Any, is_leaf: IsLeaf = None) -> Structure:
    """The structure of a tree: its nodes and names without the leaves."""
    return _flatten(tree, is_leaf, [])


def leaves(tree: Any, is_leaf: IsLeaf = None) -> list[Any]:
    """The leaves in order."""
    return flatten(tree, is_leaf)[0]


def leaves_with_path(tree: Any, is_leaf: IsLeaf = None) -> list[tuple[str, Any]]:
    """Pairs of path and leaf in order; a path is the names joined by dots."""
    found: list[tuple[str, Any]] = []
    map_with_path(lambda path, leaf: found.append((path, leaf)), tree, is_leaf=is_leaf)
    return found


def map(f: Callable[..., Any], tree: Any, *rest: Any, is_leaf: IsLeaf = None) -> Any:
    """The tree of ``f(leaf, *leaves of the rest at the same place)``.

    Each tree of `rest` has the structure of `tree` down to its leaves; below a leaf of `tree` it may
    be anything, and `f` is given that.

    Raises:
        ShapeError: where a tree of the rest has another structure, with the path.
    """
    if not rest and is_leaf is None:
        return _map_one(f, tree)
    return map_with_path(lambda _, *values: f(*values), tree, *rest, is_leaf=is_leaf)


def _map_one(f: Callable[[Any], Any], tree: Any) -> Any:
    if type(tree) is Tree:
        entries = {name: _map_one(f, child) for name, child in tree.items()}
        return Tree(entries) if dict in [type(value) for value in entries.values()] else trusted(entries)
    node = _node(tree)
    if node is None:
        return f(tree)
    names, children, static = node
    return _rebuild(type(tree), names, [_map_one(f, child) for child in children], static)


def map_with_path(f: Callable[..., Any], tree: Any, *rest: Any, is_leaf: IsLeaf = None) -> Any:
    """Like `map`, with the path of the leaf as the first argument of `f`."""
    return _map_path(f, "", tree, rest, is_leaf)


def _map_path(f: Callable[..., Any], path: str, tree: Any, rest: tuple[Any, ...], is_leaf: IsLeaf) -> Any:
    node = None if is_leaf is not None and is_leaf(tree) else _node(tree)
    if node is None:
        return f(path, tree, *rest)
    names, children, static = node
    columns = [_matching(path, tree, names, other) for other in rest]
    mapped = [
        _map_path(f, f"{path}.{name}" if path else name, child, tuple(column[i] for column in columns), is_leaf)
        for i, (name, child) in enumerate(zip(names, children, strict=True))
    ]
    return _rebuild(type(tree), names, mapped, static)


def _matching(path: str, tree: Any, names: tuple[str, ...], other: Any) -> list[Any]:
    """The children of `other` in the order of `names`; an error where it is another kind of node."""
    place = f"at {path}" if path else "at the top"
    node = _node(other)
    if node is None or (tree is None) != (other is None) or isinstance(tree, dict) != isinstance(other, dict):
        raise ShapeError(f"{place}: expected {_kind(tree, names)}, got {describe(other)}")
    found = dict(zip(node[0], node[1], strict=True))
    missing = [name for name in names if name not in found]
    extra = [name for name in found if name not in names]
    if missing or extra:
        raise ShapeError(
            f"{place}: the trees have different entries"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; not expected: {', '.join(extra)}" if extra else "")
        )
    return [found[name] for name in names]


def _kind(tree: Any, names: tuple[str, ...]) -> str:
    return "None" if tree is None else f"a {type(tree).__name__} with the entries {', '.join(names) or 'none'}"


_NO_INITIAL = object()


def reduce(f: Callable[[Any, Any], Any], tree: Any, initializer: Any = _NO_INITIAL, is_leaf: IsLeaf = None) -> Any:
    """``f(...f(f(initializer, leaf_1), leaf_2)..., leaf_n)``; without an initializer it starts at leaf_1."""
    values = leaves(tree, is_leaf)
    return functools.reduce(f, values) if initializer is _NO_INITIAL else functools.reduce(f, values, initializer)


def matches(path: str, pattern: str) -> bool:
    """Whether a leaf's path fits a pattern.

    ``*`` stands for any characters, dots too: ``"*.bias"`` is every bias at any depth, the top one
    included, ``"layer_1.*"`` all of layer_1; ``"layer_1"`` names the same subtree.
    """
    return (
        fnmatch.fnmatchcase(path, pattern)
        or fnmatch.fnmatchcase("." + path, pattern)
        or fnmatch.fnmatchcase(path, pattern + ".*")
    )


def select(tree: Tree, pattern: str) -> Tree:
    """The Tree of only those leaves whose path fits `pattern` (see `matches`), nested as before.

    Raises:
        EntryError: where no leaf fits, with the paths that there are.
    """
    kept = _select(as_tree(tree), pattern, "")
    if not kept:
        paths = [path for path, _ in leaves_with_path(tree)]
        raise EntryError(f"no path fits {pattern!r}{nearest(pattern, paths)}; the paths are: {', '.join(paths)}")
    return trusted(kept)


def _select(tree: Mapping[str, Any], pattern: str, prefix: str) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    entries: ItemsView[str, Any] = tree.items()
    for name, value in entries:
        path = prefix + name
        if isinstance(value, Tree):
            below = _select(value, pattern, path + ".")
            if below:
                kept[name] = trusted(below)
        elif any(matches(leaf_path, pattern) for leaf_path, _ in leaves_with_path({path: value})):
            kept[name] = value
    return kept
