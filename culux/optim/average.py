"""The moving average of parameters over the steps of a training."""

from __future__ import annotations

from typing import Any

from culux import tree
from culux.backends import is_float_array
from culux.errors import LayerError

__all__ = ["moving_average"]


def moving_average(average: Any, ps: Any, *, decay: float = 0.999) -> Any:
    """``decay * average + (1 - decay) * ps`` for every float array, the exponential moving average of parameters.

    It starts with the parameters themselves: ``average = ps`` before the first step, and after every one
    ``average = optim.moving_average(average, ps)``. It is used in their place: ``model(x, average, st)``. For BatchNorm
    the states belong to the parameters, not to the average. Polyak and Juditsky, "Acceleration of stochastic
    approximation by averaging", 1992.

    Args:
        average: the last average, a tree; nothing in it is written to.
        ps: the parameters after a step, a tree of the same structure; its other leaves are taken as they are.
        decay: what remains of the last average.

    Returns:
        The next average, with the dtypes of the last; averages in float32 of parameters in float16 stay so.

    Raises:
        LayerError: for a decay out of range.
        ShapeError: for trees of another structure.
    """
    if not 0 <= decay <= 1:
        raise LayerError(f"moving_average: expected 0 <= decay <= 1, got {decay}")

    def move(old: Any, new: Any) -> Any:
        if not is_float_array(old):
            return new
        # In this order an average that is the parameters stays so to the bit.
        return old + (1 - decay) * (new.astype(old.dtype) - old)

    return tree.map(move, average, ps)
