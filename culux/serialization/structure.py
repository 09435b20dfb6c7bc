"""A tree as arrays by path and a description of everything else, in JSON's types.

A leaf is described as ``[kind]`` or ``[kind, value]``, a node as an object of its children (`Tree`, dict and
objects with `__tree_flatten__`) or ``["list", [...]]``, ``["tuple", [...]]``. Numbers are written so that
they come back exactly: an int in hexadecimal, a float as `float.hex` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from culux import tree
from culux.backends import backend_of
from culux.devices.leaves import as_array
from culux.errors import CheckpointError, DTypeError, LayerError, describe
from culux.tree import Structure, Tree, check_name

__all__ = ["decode", "encode"]

STORED_DTYPES = frozenset(
    f"bool bfloat16 float16 float32 float64 {' '.join(f'int{n} uint{n}' for n in (8, 16, 32, 64))}".split()
)


def encode(values: Any) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays of a tree by path, on the host, and the description of the rest.

    Raises:
        DTypeError: for a leaf that no checkpoint can hold, with its path.
        LayerError: for a layer, or a name that no entry of a Tree can have.
    """
    leaves, structure = tree.flatten(values, is_leaf=lambda node: node is None)
    arrays: dict[str, np.ndarray] = {}
    return arrays, _encode("", structure, iter(leaves), arrays, {})


def _encode(path: str, structure: Structure, leaves: Any, arrays: dict[str, np.ndarray], places: dict[int, str]) -> Any:
    if structure.kind is None:
        return _encode_leaf(path, next(leaves), arrays, places)
    sequence = structure.kind in (list, tuple)
    children: dict[str, Any] = {}
    for name, child in zip(structure.names, structure.children, strict=True):
        if not sequence:
            _check_entry(path, name)
        children[name] = _encode(f"{path}.{name}" if path else name, child, leaves, arrays, places)
    return [structure.kind.__name__, list(children.values())] if sequence else children


def _check_entry(path: str, name: object) -> None:
    try:
        check_name(name)
    except LayerError as error:
        raise LayerError(f"{_at(path)}{error}") from None


def _encode_leaf(path: str, leaf: Any, arrays: dict[str, np.ndarray], places: dict[int, str]) -> Any:
    if leaf is None:
        return ["none"]
    kind = type(leaf)
    if kind in (bool, str):
        return [kind.__name__, leaf]
    if kind is int:
        return ["int", hex(leaf)]
    if kind is float:
        return ["float", leaf.hex()]
    if id(leaf) in places:
        return ["tie", places[id(leaf)]]
    if isinstance(leaf, np.generic):
        arrays[path] = _stored(path, np.asarray(leaf))
        return ["scalar"]
    array = as_array(path, leaf)
    if array is None:
        raise DTypeError(f"{_at(path)}a checkpoint holds bool, int, float, str, None and arrays, got {describe(leaf)}")
    arrays[path] = _stored(path, backend_of(array).to_host(array))
    places[id(leaf)] = path
    return ["array"]


def _stored(path: str, array: np.ndarray) -> np.ndarray:
    """The array as the format has it: of a known dtype, contiguous (0-d stays 0-d), in native byte order."""
    if array.dtype.name not in STORED_DTYPES:
        raise DTypeError(f"{_at(path)}a checkpoint holds bools, integers and real floats, got {describe(array)}")
    if path == "__metadata__":
        raise DTypeError("at __metadata__: safetensors keeps this name for itself; choose another name for the entry")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def decode(description: Any, arrays: Mapping[str, np.ndarray], path: str = "") -> Any:
    """The tree of a description: nodes that are no list or tuple come back as Trees."""
    if isinstance(description, dict):
        return Tree({n: decode(d, arrays, f"{path}.{n}" if path else n) for n, d in description.items()})
    kind, *rest = description
    if kind in ("list", "tuple"):
        items = [decode(d, arrays, f"{path}.{i}" if path else str(i)) for i, d in enumerate(rest[0])]
        return items if kind == "list" else tuple(items)
    match kind, rest:
        case "array", []:
            return arrays[path]
        case "scalar", []:
            return arrays[path][()]
        case "tie", [str(other)]:
            return arrays[other]
        case "none", []:
            return None
        case (("bool" | "str"), [value]):
            return value
        case "int", [str(digits)]:
            return int(digits, 16)
        case "float", [str(digits)]:
            return float.fromhex(digits)
    raise CheckpointError(f"{_at(path)}{description!r} describes no leaf")


def _at(path: str) -> str:
    return f"at {path}: " if path else ""
