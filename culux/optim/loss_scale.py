"""A factor on the loss that keeps gradients in float16 from becoming zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from culux import tree
from culux.backends.registry import namespace_of
from culux.core.record import Record
from culux.devices import to_numpy
from culux.errors import LayerError, NonFiniteError, describe
from culux.nn.fused import widen

__all__ = ["DynamicLossScale"]

# Smaller than the first is zero in float16, larger than the second infinite in float32.
_SMALLEST, _LARGEST = 2.0**-24, 2.0**127
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "scale": (f"a number from {_SMALLEST:.2g} to {_LARGEST:.2g}", lambda value: _SMALLEST <= value <= _LARGEST),
    "growth": ("a number from 1", lambda value: 1 <= value < math.inf),
    "backoff": ("a number between 0 and 1", lambda value: 0 < value < 1),
    "growth_interval": ("an int from 1", lambda value: isinstance(value, int) and value >= 1),
    "good_steps": ("an int from 0", lambda value: isinstance(value, int) and value >= 0),
}


class DynamicLossScale(Record):
    """A factor on the loss: ``g = d(scale * loss) / dps / scale``, as large as the gradients allow.

    Gradients below 6e-8 are zero in float16; those of a loss that is `scale` times as large are not. Where they
    overflow, the step is left out and the factor shrinks; after many steps without it grows. As torch's GradScaler.
    Micikevicius et al., "Mixed precision training", 2018.

    ``TrainState.create(rng, layer, rule, loss_scale=DynamicLossScale())`` does it all. In a loop of one's own:
    the gradient of ``loss_scale.scaled(loss)``, then ``grads, loss_scale = loss_scale.unscaled(grads)``, and where
    `grads` are None the states stay the old ones.

    It is a record that does not change, and a tree node with the leaves `scale` and `good_steps`.

    Args:
        scale: the factor to begin with. A loss that is itself float16 takes no more than 2**15: the first step is
            left out with more.
        growth: what it is multiplied by after `growth_interval` steps without an overflow.
        backoff: what it is multiplied by after an overflow.
        growth_interval: how many steps.
        good_steps: how many there were since it last changed.

    Raises:
        LayerError: for numbers out of their range.
    """

    scale: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    growth_interval: int = 2000
    good_steps: int = 0

    def __post_init__(self) -> None:
        for name, (expected, fits) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
                raise LayerError(f"DynamicLossScale: expected {name} to be {expected}, got {describe(value)}")
        object.__setattr__(self, "scale", float(self.scale))  # a NumPy float64 would make float32 losses float64

    def scaled(self, loss: Any) -> Any:
        """``scale * loss``, which is differentiated in the place of the loss; in float32 at least."""
        return widen(loss) * self.scale

    def unscaled(self, grads: Any) -> tuple[Any, DynamicLossScale]:
        """The gradient of the loss from that of the scaled one, and the factor for the next step.

        On a GPU this waits for the gradients, once, to read whether they are finite.

        Args:
            grads: the gradient of the scaled loss, a tree; nothing in it is written to.

        Returns:
            The gradients divided by the factor, those of 16 bits in float32; None where one of them is NaN or
            infinite, and then no step is to be taken: `culux.optim.update` takes none for None.

        Raises:
            NonFiniteError: where the gradients are not finite and the factor cannot become smaller.
        """
        found = tree.map(lambda gradient: widen(gradient) / self.scale, grads)
        if not _are_finite(tree.leaves(found)):
            return None, self._smaller()
        if self.good_steps + 1 < self.growth_interval:
            return found, replace(self, good_steps=self.good_steps + 1)
        return found, replace(self, scale=min(self.scale * self.growth, _LARGEST), good_steps=0)

    def _smaller(self) -> DynamicLossScale:
        scale = self.scale * self.backoff
        if scale < _SMALLEST:
            raise NonFiniteError(
                f"the gradients are NaN or infinite at a loss scale of {self.scale:.2g}, and a smaller one is no use; "
                "look for NaN and large numbers in the input, the parameters and the loss"
            )
        return replace(self, scale=scale, good_steps=0)

    def __tree_flatten__(self) -> tuple[Mapping[str, Any], Any]:
        children = {"scale": self.scale, "good_steps": self.good_steps}
        return children, (self.growth, self.backoff, self.growth_interval)

    @classmethod
    def __tree_unflatten__(cls, static: Any, children: Mapping[str, Any]) -> DynamicLossScale:
        new = object.__new__(cls)  # not __init__: a mapped tree may hold anything
        names = ("growth", "backoff", "growth_interval")
        for name, value in {**children, **dict(zip(names, static, strict=True))}.items():
            object.__setattr__(new, name, value)
        return new


def _are_finite(leaves: list[Any]) -> bool:
    """Whether no array has NaN or infinity; all are asked before the one answer is read from the device."""
    if not leaves:
        return True
    xp = namespace_of(leaves[0])
    return bool(to_numpy(xp.all(xp.stack([xp.all(xp.isfinite(leaf)) for leaf in leaves]))))
