"""`transform`: a torch module as a culux layer; `report` says which part became what."""

from __future__ import annotations

import contextlib
import keyword
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from culux import tree
from culux.backends import is_array, is_float_array
from culux.core import ContainerLayer, Layer, WrapperLayer, setup, test_mode
from culux.devices import to_numpy
from culux.errors import CuluxError, LayerError, ShapeError
from culux.interop.from_torch import FromTorch, NoCounterpart, check_plain, check_unshared
from culux.interop.torch_arrays import to_torch
from culux.interop.torch_layer import TorchLayer, borrowed, check_module, module_lock, named_tensors
from culux.interop.torch_native import native
from culux.layers import Chain
from culux.tree import check_name

__all__ = ["MissingTorchError", "copy_to_torch", "report", "transform"]


class MissingTorchError(CuluxError, ImportError):
    """Torch is not installed, and what was called needs it."""


def transform(torch_module: Any, *, example: Any = None) -> Layer:
    """A torch module as a layer: ``ps, st = culux.setup(0, culux.transform(module))``.

    A `torch.nn.Sequential` becomes a `Chain`, with the names of its children where all of them can be attributes, else
    with ``layer_1``, ``layer_2``, ...; modules with a counterpart become native layers; every other module becomes a
    `TorchLayer`, as a whole, since what its `forward` does with its children cannot be known. So does what has
    hooks, and a Sequential whose children share parameters. `report` lists it. Recurrent modules, attention and
    transformers are called as torch's are, ``y, (h, c) = lstm((x, (h, c)))``, ``y, weights = attention((q, k, v))``,
    with masks behind as in torch's call; other native layers take a batch, not one sample. `setup` gives copies of the
    module's parameters and statistics, in their dtypes and on the host; neither side ever changes the other.

    Args:
        torch_module: a `torch.nn.Module`. Parameters that it does not train (``requires_grad=False``) are
            parameters here, too; `culux.optim.freeze` holds them.
        example: an input, or a tuple of inputs, on which layer and module have to agree in test mode.

    Returns:
        The layer.

    Raises:
        MissingTorchError: where torch is not installed (an ImportError).
        LayerError: for what is no torch module, for one without a `forward`, a scripted one, a lazy one that never
            ran, and where layer and module differ on the example.
    """
    layer = _translated(torch_module)[0]
    if example is not None:
        _check_example(torch_module, layer, example)
    return layer


def report(torch_module: Any) -> str:
    """A table of what `transform` makes of a module: each part, its layer, and what computes it and why.

    Args:
        torch_module: a `torch.nn.Module`.

    Raises:
        MissingTorchError: where torch is not installed (an ImportError).
        LayerError: as `transform`.
    """
    rows = _translated(torch_module)[1]
    cells = [("torch", "module", "culux", "layer", "computed by")]
    cells += [(row.torch_path, _brief(row.module), row.path, _kind(row.layer), row.by) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    frozen = [name for name, parameter in torch_module.named_parameters() if not parameter.requires_grad]
    if frozen:
        lines.append(
            f"not trained in torch, and trained here unless culux.optim.freeze holds them: {', '.join(frozen)}"
        )
    return "\n".join(lines)


def copy_to_torch(layer: Layer, ps: Any, st: Any) -> None:
    """Write parameters and states back into the torch module that `layer` was made of, in place.

    Args:
        layer: what `transform` returned, or a layer that contains such ones; others are passed over.
        ps: its parameters.
        st: its states.

    Raises:
        ShapeError: for parameters or states of another model.
    """
    import torch

    if isinstance(layer, FromTorch):
        own = {**layer.torch_tensors(), **dict(layer.module.named_buffers())}
        arrays = {path: leaf for path, leaf in (*tree.leaves_with_path(ps), *st.items()) if path in own}
    elif isinstance(layer, TorchLayer):
        own, arrays = named_tensors(layer.module), layer.named_arrays(ps, st)
    else:
        for name, child in layer.children().items():
            nested = layer._nests_children
            copy_to_torch(child, ps[name] if nested else ps, st[name] if nested else st)
        return
    with module_lock, torch.no_grad():
        for name, array in arrays.items():
            if own[name].shape != array.shape:
                raise ShapeError(f"{name}: expected shape {tuple(own[name].shape)}, got {tuple(array.shape)}")
            own[name].copy_(to_torch(array))


@dataclass(frozen=True)
class _Row:
    """A part of a torch module, what it became, and what computes it."""

    torch_path: str
    module: Any
    path: str
    layer: Layer
    by: str


def _translated(torch_module: Any) -> tuple[Layer, list[_Row]]:
    try:
        import torch  # noqa: F401 (the modules beside this one import it where they need it)
    except ModuleNotFoundError as error:
        raise MissingTorchError(
            'culux.transform needs torch, which is not installed: pip install "culux[torch]"'
        ) from error
    check_module(torch_module)
    rows: list[_Row] = []
    return _translate(torch_module, "", "", rows), rows


def _translate(module: Any, torch_path: str, path: str, rows: list[_Row]) -> Layer:
    place = len(rows)
    layer: Layer
    try:
        layer = _chain(module, torch_path, path, rows) if _is_sequential(module) else native(module)
        by = "culux"
    except NoCounterpart as reason:
        layer, by = TorchLayer(module, unpack=not path), f"torch: {reason}"
    rows.insert(place, _Row(torch_path, module, path, layer, by))
    return layer


def _is_sequential(module: Any) -> bool:
    import torch

    return type(module) is torch.nn.Sequential


def _chain(module: Any, torch_path: str, path: str, rows: list[_Row]) -> Layer:
    check_plain(module)
    children: dict[str, Any] = module._modules  # named_children() leaves out a module that comes twice
    check_unshared(children.values())
    layers = {
        own: _translate(child, _join(torch_path, name), _join(path, own), rows)
        for (name, child), own in zip(children.items(), _names(list(children)), strict=True)
    }
    return Chain(**layers)


def _names(torch_names: list[str]) -> list[str]:
    """The children's names in a Chain: torch's where all of them can be attributes."""
    try:
        for name in torch_names:
            check_name(name)
    except LayerError:
        usable = False
    else:
        usable = all(name.isidentifier() and not keyword.iskeyword(name) for name in torch_names)
    return torch_names if usable else [f"layer_{i + 1}" for i in range(len(torch_names))]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _brief(module: Any) -> str:
    return type(module).__name__ if module._modules else repr(module)


def _kind(layer: Layer) -> str:
    """The layer as a user would write it; a container or a TorchLayer by its name."""
    if isinstance(layer, WrapperLayer):
        layer = layer.layer
    if isinstance(layer, FromTorch):
        return next(base.__name__ for base in type(layer).__mro__ if base.__module__.startswith("culux.layers."))
    return type(layer).__name__ if isinstance(layer, ContainerLayer | TorchLayer) else repr(layer)


def _check_example(module: Any, layer: Layer, example: Any) -> None:
    """Raise a `LayerError` where layer and module differ on `example` by more than rounding."""
    import torch

    example = to_numpy(example)
    ps, st = setup(0, layer)
    y = layer(example, ps, test_mode(st))[0]
    inputs = tree.map(to_torch, example if type(example) is tuple else (example,))
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with borrowed(module, False), torch.no_grad(), _as_written(torch.backends.mha):
        # A module may write into its inputs: it gets copies.
        copies = tree.map(lambda x: x.to(device).clone() if isinstance(x, torch.Tensor) else x, inputs)
        expected = to_numpy(module(*copies))
    pairs = zip(tree.leaves(y), tree.leaves(expected), strict=True)
    for difference in [_difference(got, wanted) for got, wanted in pairs if is_array(wanted)]:
        if difference:
            raise LayerError(
                f"the layer differs from the torch module on the example: {difference}; please report it, with "
                "culux.interop.report(module)"
            )


@contextlib.contextmanager
def _as_written(attention: Any) -> Iterator[None]:
    """A context in which torch computes transformers as their modules say.

    Its shorter way, without gradients, takes one form of gelu for the other and leaves zeros where a mask hides.
    """
    before = attention.get_fastpath_enabled()
    attention.set_fastpath_enabled(False)
    try:
        yield
    finally:
        attention.set_fastpath_enabled(before)


def _difference(got: Any, expected: Any) -> str:
    """How two arrays differ by more than rounding, or ``""``."""
    import torch

    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"expected {expected.dtype} {expected.shape}, got {got.dtype} {got.shape}"
    if not is_float_array(got):
        return "" if np.array_equal(got, expected) else "the results are not equal"
    # The root of the machine precision leaves room for the rounding of deep models, and for no other algorithm.
    tolerance = torch.finfo(getattr(torch, got.dtype.name)).eps ** 0.5 * max(
        1.0, float(np.abs(expected).max(initial=0))
    )
    largest = float(np.abs(got - expected).max(initial=0))
    return "" if largest <= tolerance else f"by up to {largest:.3g}, more than {tolerance:.3g}"
