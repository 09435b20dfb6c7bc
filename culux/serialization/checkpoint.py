"""`save` and `load`: a tree in one safetensors file, with its structure and a checksum in the header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from culux.backends import Array, backend_of, is_array, is_float_array
from culux.devices.leaves import float_dtype
from culux.errors import CheckpointError, CuluxError, DTypeError, describe
from culux.serialization.files import write_whole
from culux.serialization.structure import decode, encode
from culux.tree import Tree, leaves_with_path, structure, unflatten

__all__ = ["load", "read_metadata", "save"]

_VERSION = 1
_OWN = "culux."  # the header's entries that are not the user's: culux.version, culux.structure, culux.sha256
_Path = str | os.PathLike[str]


def save(path: _Path, tree: Any, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a tree to a safetensors file: all of it, or nothing and the old file stays.

    Arrays of every backend are brought to the host and stored by their path (``"layer_1.weight"``), so that
    other programs can read the file. An array that is in the tree twice is stored once. A dict, a named
    tuple and an object that is a tree node (`TrainState`, an optimiser's state) are stored by their children.

    Args:
        path: the file; its folder exists.
        tree: arrays, NumPy scalars, bool, int, float, str and None.
        metadata: strings for the file's header, for `read_metadata` and other programs.

    Raises:
        DTypeError: for a leaf that no checkpoint can hold (complex numbers, objects), with its path.
        LayerError: for a layer, or a name that no entry of a Tree can have.
        CheckpointError: where the file cannot be written.
    """
    import safetensors.numpy

    arrays, description = encode(tree)
    header = {**_checked(metadata or {}), "culux.version": str(_VERSION), "culux.structure": json.dumps(description)}
    header["culux.sha256"] = _digest(header, arrays)
    write_whole(path, safetensors.numpy.save(arrays, metadata=header))


def load(path: _Path, like: Any = None) -> Any:
    """The tree of a file that `save` wrote, or of any safetensors file of arrays with dotted names.

    Without `like`, arrays are NumPy arrays and nodes are Trees, lists and tuples. With it, the result has the
    type of `like`, and its devices, float dtypes and tied leaves. No code from the file is run.

    Args:
        path: the file.
        like: a tree with the same entries, kinds of leaves and shapes, e.g. new ``(ps, st)`` of the model.

    Raises:
        FileNotFoundError: where there is no such file.
        CheckpointError: for a file that is truncated, corrupt, of a newer format or no safetensors file; and
            where it does not fit `like`, with every missing, unexpected and misshaped entry.
    """
    header, arrays = _read(path)
    foreign = not any(name.startswith(_OWN) for name in header)
    if not foreign:
        _verify(path, header, arrays)
    try:
        values = _nested(arrays) if foreign else decode(json.loads(header["culux.structure"]), arrays)
    except (CuluxError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no tree: {error}") from error
    return values if like is None else shaped_like(path, values, like)


def read_metadata(path: _Path) -> dict[str, str]:
    """The `metadata` that `save` was given; the file's arrays are not read.

    Raises:
        FileNotFoundError: where there is no such file.
        CheckpointError: for a file that is no safetensors file.
    """
    return {name: text for name, text in _read(path, names=())[0].items() if not name.startswith(_OWN)}


def _checked(metadata: Mapping[str, str]) -> Mapping[str, str]:
    for name, text in metadata.items():
        if not isinstance(name, str) or not isinstance(text, str) or name.startswith(_OWN):
            raise DTypeError(
                f"expected metadata to map strings to strings, no name beginning with {_OWN!r}, got {name!r}: {text!r};"
                " put what is no string into the tree"
            )
    return metadata


def _digest(header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of all that the file says: the header without the sum itself, and the arrays."""
    sha = hashlib.sha256()
    parts: list[Any] = [sorted((name, text) for name, text in header.items() if name != "culux.sha256")]
    parts += [(name, arrays[name].dtype.name, arrays[name].shape) for name in sorted(arrays)]
    sha.update(json.dumps(parts).encode())
    for name in sorted(arrays):
        sha.update(arrays[name].reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _read(path: _Path, names: tuple[str, ...] | None = None) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The header's strings and the arrays (all, or those named), copied out of the file."""
    import safetensors

    with open(path, "rb") as file:  # the usual errors for a file that is not there or cannot be read
        magic = file.read(4)
    try:
        with safetensors.safe_open(os.fspath(path), "np") as opened:
            header = opened.metadata() or {}
            arrays = {name: _array(opened, name) for name in (opened.keys() if names is None else names)}
    except DTypeError as error:
        raise CheckpointError(f"{path} holds bfloat16 arrays, which need the package ml_dtypes: {error}") from error
    except Exception as error:  # SafetensorError has no other base
        pickled = magic.startswith((b"PK\x03\x04", b"\x80"))
        hint = "; it looks like a pickle of torch.save or the like, which culux does not read" if pickled else ""
        raise CheckpointError(
            f"{path} is truncated, corrupt or no safetensors file ({type(error).__name__}: {error}){hint}"
        ) from error
    return header, arrays


def _array(opened: Any, name: str) -> np.ndarray:
    if opened.get_slice(name).get_dtype() == "BF16":
        float_dtype("bfloat16")  # imports the package from which NumPy knows the name
    return opened.get_tensor(name)  # type: ignore[no-any-return]  # safetensors has no types


def _verify(path: _Path, header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    version = header.get("culux.version", "")
    if version.isdecimal() and int(version) > _VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this culux reads versions up to {_VERSION}; update culux"
        )
    if "culux.structure" not in header or header.get("culux.sha256") != _digest(header, arrays):
        raise CheckpointError(f"{path} is corrupt: its checksum does not fit its content; take an older checkpoint")


def _nested(arrays: Mapping[str, np.ndarray]) -> Tree:
    """The Tree of arrays with dotted names."""
    root: dict[str, Any] = {}
    for path, array in arrays.items():
        *parents, name = path.split(".")
        node: Any = root
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or name in node:
            raise CheckpointError(f"{path!r} is both an array and a group of arrays")
        node[name] = array
    return Tree(root)


def _is_none(node: Any) -> bool:
    return node is None


def shaped_like(path: _Path, values: Any, like: Any) -> Any:
    """`values`, loaded from `path`, in the type of `like`: see `load`."""
    found = dict(leaves_with_path(values, is_leaf=_is_none))
    placed: dict[int, tuple[str, Any, Array]] = {}
    taken: set[int] = set()
    fitted: list[Any] = []
    problems: list[str] = []
    for name, template in leaves_with_path(like, is_leaf=_is_none):
        if name not in found:
            problems.append(f"{name}: missing in the file (expected {_kind(template)})")
            continue
        value = found.pop(name)
        problem = _misfit(template, value)
        if problem is None and is_array(template):
            first, original, array = placed.get(id(template), (name, value, None))
            if original.tobytes() != value.tobytes():
                problem = f"expected one array here and at {first}, the file has two"
            elif array is None:
                array = _place(value.copy() if id(value) in taken else value, template)
                placed[id(template)] = (name, value, array)
                taken.add(id(value))
            value = array
        if problem is not None:
            problems.append(f"{name}: {problem}")
        fitted.append(value)
    problems += [f"{name}: not expected (the file has {_kind(value)})" for name, value in found.items()]
    if problems:
        title = f"{path} does not fit the tree that it is loaded into, they differ at:"
        raise CheckpointError("\n  ".join([title, *problems]))
    return unflatten(structure(like, is_leaf=_is_none), fitted)


def _misfit(template: Any, value: Any) -> str | None:
    """Why `value` cannot take the place of `template`; None where it can."""
    if is_array(template) and isinstance(value, np.ndarray):
        floats = is_float_array(template) and is_float_array(value)
        if tuple(template.shape) == value.shape and (floats or _dtype_name(template) == value.dtype.name):
            return None
    elif type(value) is type(template):
        return None
    return f"expected {_kind(template)}, got {_kind(value)}"


def _kind(leaf: Any) -> str:
    return "None" if leaf is None else describe(leaf)


def _dtype_name(array: Array) -> str:
    """The dtype's name; NumPy's dtypes have one that leaves the byte order out, others print as ``lib.name``."""
    return getattr(array.dtype, "name", None) or str(array.dtype).rpartition(".")[2]


def _place(host: np.ndarray, template: Array) -> Array:
    """The array on the device of the template, with its dtype."""
    backend, dtype = backend_of(template), _dtype_name(template)
    converted = host if host.dtype.name == dtype else host.astype(float_dtype(dtype))
    return backend.from_host(converted, backend.place_of(template).index)
