"""`TorchLayer`: a torch module as a layer, computed and differentiated by torch."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY
from typing import Any

from culux import tree
from culux.autodiff import Tracer, primitive, stop_gradient
from culux.autodiff.tracer import Pullback
from culux.backends import Array, backend_of
from culux.core import Layer
from culux.errors import DifferentiationError, LayerError, ShapeError, describe
from culux.interop.torch_arrays import stream_of, to_array, to_torch
from culux.tree import Structure, Tree

__all__ = ["TorchLayer", "borrowed", "check_module", "copied", "module_lock", "named_tensors", "nested"]

module_lock = threading.RLock()
"""A call puts the culux parameters into the module and takes them out again; nobody else may look meanwhile."""


class TorchLayer(Layer):
    """A torch module as a layer: ``y = module(x)``, computed and differentiated by torch.

    `culux.transform` makes it of every module that has no counterpart in culux. Calls leave the module as it is;
    a module that draws random numbers takes them from torch's own generator. Torch differentiates it once: there
    are no second derivatives. Modules compare by identity, and so does the layer: a pickled copy is not equal to it.

    Args:
        module: a `torch.nn.Module` whose parameters have one floating dtype.
        unpack: whether a tuple has one entry per argument; False for the children of a `torch.nn.Sequential`, which
            hand a tuple on as one argument.

    Inputs:
        x: what the module takes: an array, or a tuple with one entry per argument of the module, without `unpack`
            whatever its one argument is. Integer arrays have no gradient.

    Returns:
        y: what the module returns, with arrays for the tensors, and the new states.

    Parameters:
        parameters: all parameters of the module flattened into one vector, in the order of
            ``module.parameters()``; copies of those that the module holds when `setup` is called. No entry for a
            module without parameters.

    States:
        buffers: the Tree of the module's buffers; its paths are the module's names for them.
        training: whether the module runs in train mode; initially the mode that the module is in. While the two
            are equal, every submodule keeps its own mode; else ``module.train(training)`` sets them.

    Raises:
        LayerError: for what is no module, a scripted module, parameters of several or of no floating dtypes, or
            parameters without shapes (lazy modules that never ran); when called, for a module that writes to its
            parameters.
        ShapeError: when called, for parameters of another model.
        DifferentiationError: for a second derivative.
    """

    module: Any
    _: KW_ONLY
    unpack: bool = True

    def __post_init__(self) -> None:
        check_module(self.module)
        dtypes = {parameter.dtype for parameter in self.module.parameters()}
        if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
            names = ", ".join(sorted(str(dtype) for dtype in dtypes))
            raise LayerError(
                f"TorchLayer: expected parameters of one floating dtype for the flat vector, got {names}; "
                "convert the module with module.float()"
            )

    def initial_parameters(self, rng: Any) -> Mapping[str, Any]:
        """A copy of the module's parameters, flattened."""
        import torch

        with module_lock:
            flat = [parameter.detach().reshape(-1).cpu() for parameter in self.module.parameters()]
            return {"parameters": to_array(torch.cat(flat))} if flat else {}

    def initial_states(self, rng: Any) -> Mapping[str, Any]:
        """Copies of the module's buffers, and its mode."""
        with module_lock:
            buffers = {name: copied(buffer) for name, buffer in self.module.named_buffers()}
            return {"buffers": nested(buffers), "training": self.module.training}

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the module gives for one floating input; torch runs it without data."""
        import torch

        dtype = next((parameter.dtype for parameter in self.module.parameters()), torch.get_default_dtype())
        with torch.no_grad(), borrowed(self.module, False):
            shapes = {name: tensor.to("meta") for name, tensor in named_tensors(self.module).items()}
            x = torch.empty(input_shape, dtype=dtype, device="meta")
            try:
                return tuple(torch.func.functional_call(self.module, shapes, (x,)).shape)
            except Exception as error:  # whatever the module raises
                raise LayerError(f"the output shape of this module is not known without calling it: {error}") from error

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """``module(x)``, or ``module(*x)`` of a tuple."""
        inputs, structure = tree.flatten(x if self.unpack and type(x) is tuple else (x,))
        call = _Call(self.module, structure, bool(st.training), stop_gradient(st.buffers))
        outputs = torch_call(ps.get("parameters"), *inputs, call=call)
        y, buffers = call.result(outputs)
        return y, st.replace(buffers=buffers) if buffers else st

    def named_arrays(self, ps: Any, st: Any) -> dict[str, Array]:
        """Parameters and buffers by the names that they have in the module's `state_dict`."""
        parameters = split_parameters(self.module, ps.get("parameters"))
        return {**parameters, **dict(tree.leaves_with_path(st.buffers))}


def check_module(module: Any) -> None:
    """Raise a `LayerError` where `module` cannot become a layer."""
    import torch

    if not isinstance(module, torch.nn.Module):
        hint = f"; did you mean {module.__name__}(...)?" if isinstance(module, type) else ""
        raise LayerError(f"expected a torch.nn.Module, got {describe(module)}{hint}")
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule | torch.nn.DataParallel):
            raise LayerError(
                f"{type(part).__name__} does not take its parameters from outside; transform the module that it was "
                "made of"
            )
    if type(module).forward is torch.nn.Module.forward and "forward" not in vars(module):
        raise LayerError(
            f"{type(module).__name__} has no forward, so it says nothing about what it computes; transform its "
            "modules one by one: culux.Chain(*[culux.transform(child) for child in module.children()])"
        )
    lazy = [name for name, value in named_tensors(module).items() if torch.nn.parameter.is_lazy(value)]
    if lazy:
        raise LayerError(
            f"{', '.join(lazy)}: a lazy module has no shapes before its first call; run the module on an example first"
        )


def named_tensors(module: Any) -> dict[str, Any]:
    """The parameters and buffers of a module by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def copied(tensor: Any) -> Array:
    """A copy of a tensor as a NumPy array."""
    with module_lock:
        return to_array(tensor.detach().cpu().clone())


def split_parameters(module: Any, flat: Any) -> dict[str, Any]:
    """The parameters of a module by name, as views of the flat vector; an array or a tensor."""
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    sizes = [math.prod(shape) for shape in shapes.values()]
    if not shapes and flat is None:
        return {}
    if getattr(flat, "shape", None) != (sum(sizes),):
        got = "none" if flat is None else f"shape {tuple(flat.shape)}"
        raise ShapeError(
            f"expected ps.parameters of shape ({sum(sizes)},), got {got}; ps is of another model: "
            "ps, st = culux.setup(rng, model)"
        )
    stops = itertools.accumulate(sizes)
    pieces = (flat[stop - size : stop] for size, stop in zip(sizes, stops, strict=True))
    return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}


def nested(named: Mapping[str, Any]) -> Tree:
    """The Tree whose paths are these names with dots."""
    entries: dict[str, Any] = {}
    for path, value in named.items():
        *parents, name = path.split(".")
        below = entries
        for parent in parents:
            below = below.setdefault(parent, {})
        below[name] = value
    return Tree(entries)


@contextlib.contextmanager
def borrowed(module: Any, training: bool) -> Iterator[None]:
    """A context that has the module in train or test mode to itself; afterwards modes and tensors are as before."""
    with module_lock:
        parts = list(module.modules())
        held = [(part.training, dict(part._parameters), dict(part._buffers)) for part in parts]
        try:
            if module.training != training:
                module.train(training)
            yield
        finally:
            # The tensors, too: functional_call of torch 2.13 leaves its own in a submodule that is used twice.
            for part, (mode, parameters, buffers) in zip(parts, held, strict=True):
                part.training = mode
                part._parameters.update(parameters)
                part._buffers.update(buffers)


class _Call:
    """One call of a module: what of it is no array, and afterwards the form of its result."""

    def __init__(self, module: Any, arguments: Structure, training: bool, buffers: Tree) -> None:
        self._module = module
        self._arguments = arguments
        self._training = training
        self._buffers = buffers

    def run(self, parameters: Any, inputs: list[Any]) -> list[Any]:
        """The tensors in the module's result, then its new buffers."""
        import torch

        # A module may write into its inputs: it gets copies.
        copies = [value.clone() if isinstance(value, torch.Tensor) else value for value in inputs]
        arguments = tree.unflatten(self._arguments, copies)
        found, buffers = self.inside(parameters, lambda: self._module(*arguments))
        if parameters is not None and parameters._version:
            raise LayerError(
                "the module wrote to its parameters in place, which a layer cannot: ps.parameters is spoilt"
            )
        # What torch.max and others return is a tuple in all but its type.
        found = tree.map(lambda leaf: tuple(leaf) if type(leaf).__module__ == "torch.return_types" else leaf, found)
        self._leaves, self._structure = tree.flatten(found)
        self._buffer_names = list(buffers)
        return [leaf for leaf in self._leaves if isinstance(leaf, torch.Tensor)] + list(buffers.values())

    def inside(self, parameters: Any, function: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """What `function` returns while the module holds `parameters` and the buffers, and the buffers after it."""
        import torch

        around = torch.nn.Module()
        around.module, around.forward = self._module, function
        buffers = {name: to_torch(buffer).clone() for name, buffer in tree.leaves_with_path(self._buffers)}
        with borrowed(self._module, self._training):
            own = {**split_parameters(self._module, parameters), **buffers}
            tensors = {f"module.{name}": tensor for name, tensor in own.items()}
            result = torch.func.functional_call(around, tensors, strict=True)
        # functional_call puts buffers that the module replaced into the dict; those that it wrote to are there.
        return result, {name: tensors[f"module.{name}"] for name in buffers}

    def result(self, outputs: tuple[Array, ...]) -> tuple[Any, Tree]:
        """The module's result and its new buffers, of what `torch_call` returned."""
        import torch

        arrays = iter(outputs)
        leaves = [next(arrays) if isinstance(leaf, torch.Tensor) else leaf for leaf in self._leaves]
        return tree.unflatten(self._structure, leaves), nested(dict(zip(self._buffer_names, arrays, strict=True)))


@primitive
def torch_call(parameters: Array | None, *inputs: Any, call: _Call) -> tuple[Array, ...]:
    """The arrays in a module's result, then its new buffers."""
    import torch

    with stream_of((parameters, *inputs)), torch.no_grad():
        return tuple(to_array(y) for y in call.run(to_torch(parameters), [to_torch(x) for x in inputs]))


@torch_call.rule
def _(
    needs: tuple[bool, ...], parameters: Array | None, *inputs: Any, call: _Call
) -> tuple[tuple[Array, ...], Pullback | None]:
    import torch

    args = (parameters, *inputs)
    _refuse_traced(args)
    with stream_of(args), torch.enable_grad():
        leaves = [to_torch(value) for value in args]
        wanted = [need and leaf.is_floating_point() for need, leaf in zip(needs, leaves, strict=True)]
        for want, leaf in zip(wanted, leaves, strict=True):
            if want:
                leaf.requires_grad_()
        outputs = call.run(leaves[0], leaves[1:])
        arrays = tuple(to_array(y) for y in outputs)

    def pullback(cotangents: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
        _refuse_traced(cotangents)
        pairs = [(y, dy) for y, dy in zip(outputs, cotangents, strict=True) if dy is not None and y.requires_grad]
        if not pairs:
            return tuple(backend_of(a).xp.zeros_like(a) if want else None for want, a in zip(wanted, args, strict=True))

        def differentiate() -> Any:
            # materialize_grads: zeros for what the result does not depend on.
            return torch.autograd.grad(
                [y for y, _ in pairs],
                [leaf for want, leaf in zip(wanted, leaves, strict=True) if want],
                [to_torch(dy) for _, dy in pairs],
                retain_graph=True,
                materialize_grads=True,
            )

        with stream_of(arrays):
            # Inside, since checkpointed parts of the module run again.
            found = iter(call.inside(leaves[0], differentiate)[0])
            return tuple(to_array(next(found)) if want else None for want in wanted)

    return arrays, pullback if any(y.requires_grad for y in outputs) else None


def _refuse_traced(values: tuple[Any, ...]) -> None:
    if any(type(value) is Tracer for value in values):
        raise DifferentiationError(
            "a TorchLayer has no second derivatives: torch differentiates it once; higher ones need native layers, "
            "and culux.interop.report(module) says which modules have one"
        )
