"""`FromTorch`: a native layer whose parameters and statistics are copies of those of a torch module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from culux.core import Layer, initial_states, test_mode, train_mode
from culux.errors import LayerError, ShapeError
from culux.interop.torch_layer import copied, nested
from culux.layers.checks import shape_of
from culux.tree import Tree

__all__ = [
    "ContainerFromTorch",
    "FromTorch",
    "NoCounterpart",
    "WithAxes",
    "check_plain",
    "check_unshared",
    "counterpart",
    "each_axis",
    "expect",
    "expect_options",
    "spatial_axes",
]


class NoCounterpart(Exception):
    """A torch module has no native layer; the text is the reason."""


def expect(condition: bool, otherwise: str) -> None:
    """Raise `NoCounterpart` where the condition does not hold; `otherwise` says what has no counterpart."""
    if not condition:
        raise NoCounterpart(f"{otherwise} has no counterpart")


def expect_options(module: Any, **options: Any) -> None:
    """Raise `NoCounterpart` where an option of the module, one that its class has, is none of these values."""
    for name, value in options.items():
        actual = getattr(module, name, value)
        expect(actual == value, f"{name}={actual!r}")


def check_plain(module: Any) -> None:
    """Raise `NoCounterpart` where calling the module does more than its class says."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name) for name in hooks):
        raise NoCounterpart("it has hooks")
    if "forward" in vars(module):
        raise NoCounterpart("its forward was replaced")


def check_unshared(children: Iterable[Any]) -> None:
    """Raise `NoCounterpart` where children share parameters: as layers each would have its own."""
    seen: set[int] = set()
    for child in children:
        tensors = {id(tensor) for tensor in (*child.parameters(), *child.buffers())}
        if tensors & seen:
            raise NoCounterpart("its children share parameters")
        seen |= tensors


def counterpart(module: Any, makers: Mapping[str, Callable[[Any], Layer]]) -> Layer:
    """The layer that computes what the module computes, by the maker of its class.

    Raises:
        NoCounterpart: where there is none; its text is the reason.
    """
    import torch

    check_plain(module)
    name = type(module).__name__
    make = makers.get(name)
    # Exactly torch's class: a subclass may compute something else.
    if make is None or type(module) is not getattr(torch.nn, name):
        raise NoCounterpart("no counterpart")
    try:
        return make(module)
    except LayerError as error:  # a value that the layer does not take
        raise NoCounterpart(str(error)) from error


def each_axis(value: Any, axes: int) -> Any:
    """A number for each of so many axes, where torch keeps one for all.

    The layer then refuses an input with other axes, such as one without a batch, which torch's modules take, too.
    """
    return tuple(value) if isinstance(value, tuple | list) else (value,) * axes


def spatial_axes(module: Any) -> int:
    """The number of spatial axes in the name of a module's class."""
    return int(type(module).__name__[-2])


class FromTorch(Layer):
    """A native layer whose initial parameters and states are copies of those of a torch module.

    What `setup` gives are copies made at that time, in the module's dtype, whatever the `rng`; the layer computes as
    the native one that it is, and never runs the module.
    """

    def torch_names(self) -> Mapping[str, str]:
        """The path of every parameter, and the module's name for it."""
        return {"weight": "weight", "bias": "bias"}

    def torch_tensors(self) -> Mapping[str, Any]:
        """The path of every parameter, and the module's tensor, or the part of one, that it is a copy of."""
        own = {path: getattr(self.module, name, None) for path, name in self.torch_names().items()}
        return {path: parameter for path, parameter in own.items() if parameter is not None}

    def initial_parameters(self, rng: Any) -> Mapping[str, Any]:
        """Copies of the module's parameters."""
        return nested({path: copied(parameter) for path, parameter in self.torch_tensors().items()})

    def initial_states(self, rng: Any) -> Mapping[str, Any]:
        """The native layer's, with copies of the module's statistics and with its mode."""
        own = dict(super().initial_states(rng))
        for name in own:
            if name == "training":
                own[name] = self.module.training
            elif hasattr(self.module, name):
                own[name] = copied(getattr(self.module, name))
        return own


class ContainerFromTorch(FromTorch):
    """A native layer whose children hold the module's own parameters; dropouts start in the module's mode."""

    def initial_states(self, rng: Any) -> Mapping[str, Any]:
        """Those of the children, in the module's mode."""
        mode = train_mode if self.module.training else test_mode
        return {name: mode(initial_states(rng, child)) for name, child in self.children().items()}


class WithAxes(FromTorch):
    """A layer for inputs with `ndim` axes; torch takes others, too, such as one sample, and reads theirs otherwise."""

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The native layer's."""
        if len(input_shape) != self.ndim:
            raise ShapeError(
                f"expected x.ndim == {self.ndim}, got {len(input_shape)} (x has shape {tuple(input_shape)}); torch's "
                f"{type(self.module).__name__} takes others as culux.interop.TorchLayer(module)"
            )
        return super().output_shape(input_shape)

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """The native layer's."""
        self.output_shape(shape_of(x))
        return super().__call__(x, ps, st)
