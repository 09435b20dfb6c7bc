"""A layer that computes in another dtype than that of its parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from culux import tree
from culux.backends import is_float_array
from culux.backends.dtypes import dtype_named, float_dtype
from culux.core import Layer, WrapperLayer
from culux.core.convert import convert, converted
from culux.core.fields import untraced
from culux.layers.containers import as_layer
from culux.tree import Tree

__all__ = ["with_precision"]


class with_precision(WrapperLayer):
    """A layer in another float dtype than its parameters': ``y = layer(compute(x), compute(ps), st)``, y in `output`.

    Mixed precision: the parameters stay as they are, float32 as a rule (the master weights that the optimiser
    moves). They are converted with x at every call, and their gradients come back in their own dtype; one such layer
    inside another gets those of the outer one. Norms take statistics of 16 bits in float32. "float16" wants
    `culux.optim.DynamicLossScale` in training, since gradients below 6e-8 are zero in it. Micikevicius et al., "Mixed
    precision training", 2018.

    Args:
        layer: a layer or function.
        compute: "float16", "bfloat16", "float32" or "float64", or such a dtype.
        output: such a dtype for y; None for that of the parameters (the first), or of x where there are none.

    Inputs:
        x: what `layer` takes, tuples too; its floats are converted, integers and all else stay.

    Returns:
        y of `layer`, its floats in `output`, and the states of `layer` in the dtypes that they had.

    Parameters:
        Those of `layer`.

    States:
        Those of `layer`, which gets them as they are.

    Raises:
        DTypeError: for a dtype that is no float.
        LayerError: for a `layer` that is none.
    """

    def __init__(self, layer: Any, compute: Any = "bfloat16", *, output: Any = None) -> None:
        self.layer: Layer = as_layer("with_precision", layer)
        self.compute = float_dtype(compute).name
        self.output = None if output is None else float_dtype(output).name

    def __call__(self, x: Any, ps: Any, st: Any) -> tuple[Any, Tree]:
        """Convert, run, and convert back."""
        compute, output = dtype_named(self.compute), self._output_dtype(x, ps)
        y, new = self.layer(converted(x, compute), converted(ps, compute), st)
        return converted(y, output), new if new is st else _as_before(new, st)

    def _output_dtype(self, x: Any, ps: Any) -> np.dtype[Any]:
        if self.output is None:
            for leaf in (*tree.leaves(ps), *tree.leaves(x)):
                if is_float_array(untraced(leaf)):
                    return leaf.dtype  # type: ignore[no-any-return]  # arrays are Any
        return dtype_named(self.output or self.compute)


def _as_before(new: Tree, st: Tree) -> Any:
    """New states with the floats in the dtypes that they had: running statistics are not rounded to 16 bits."""
    old = {path: untraced(leaf) for path, leaf in tree.leaves_with_path(st)}

    def convert_back(path: str, leaf: Any) -> Any:
        return convert(leaf, old[path].dtype) if is_float_array(old.get(path)) else leaf

    return tree.map_with_path(convert_back, new)
