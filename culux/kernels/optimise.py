"""An optimiser's update of the parameters in a flat buffer as one launch, and the norm of their gradients as one.

A launch gets up to `TENSORS` segments and `RECIPES` ways of updating them by value, in a table: kernels may have
4 KB of parameters. `chunks` says which block has which part of which segment; it does not change, and stays on the
device.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from culux.backends import Array, backend_of
from culux.kernels.launcher import MOST_BLOCKS, Kernel, empty, get_kernel
from culux.kernels.source import ActivationCode, Program, program

__all__ = [
    "RECIPES",
    "RULES",
    "TENSORS",
    "Chunks",
    "Launch",
    "chunks",
    "programs",
    "recipe_fields",
    "square_sums",
    "table",
    "update",
]

THREADS = 256
CHUNK = 2048  # elements a block updates: two loads of float32 a thread, and blocks enough for a small model
TENSORS = 352
"""The segments of a launch; loose parameters take half of them."""
RECIPES = 8
"""The ways of updating in a launch."""
CONSTANTS = (("TENSORS", TENSORS), ("RECIPES", RECIPES))
RULES = ("keep", "descent", "momentum", "nesterov", "rmsprop", "adam", "adamw", "lion")
"""What a recipe's ``rule`` counts; "keep" leaves a segment as it is."""

_NUMBERS = (
    "max_norm", "max_value", "coefficient", "rate", "beta1", "rest1", "beta2", "rest2", "epsilon", "decay",
)  # fmt: skip


class Chunks(NamedTuple):
    """The chunks of a flat buffer: a row each on the device, and the number of the first one of every segment."""

    rows: Array
    firsts: list[int]


class Launch(NamedTuple):
    """What a launch works on: the table, its segments ``first <= i < last`` of a buffer, and the dtypes."""

    table: np.ndarray
    first: int
    last: int
    chunks: Chunks
    storage: np.dtype[Any]  # of the parameters
    gradients: np.dtype[Any]  # `storage`, or what is computed in

    @property
    def rows(self) -> Array:
        """The chunks of the segments."""
        firsts = self.chunks.firsts
        return self.chunks.rows[firsts[self.first] : firsts[self.last]]

    @property
    def parameter(self) -> np.ndarray:
        """The table as bare bytes: CuPy asks for the address in a way that lists the fields, 20 us of a launch."""
        return self.table.view(np.void)

    @property
    def blocks(self) -> int:
        """How many sums of squares there are."""
        firsts = self.chunks.firsts
        return min(firsts[self.last] - firsts[self.first], MOST_BLOCKS)

    def kernel(self, name: str) -> Kernel:
        """The kernel of this name for these dtypes."""
        return get_kernel("optimise", name, self.storage, parameters=self.gradients, constants=CONSTANTS)


def chunks(like: Array, starts: Sequence[int], sizes: Sequence[int]) -> Chunks:
    """The chunks of segments that start there and have these sizes, on the device of `like`."""
    start, size = np.array(starts, np.int64), np.array(sizes, np.int64)
    counts = -(-size // CHUNK)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    segment = np.repeat(np.arange(len(size)), counts)
    offset = (np.arange(len(segment)) - firsts[segment]) * CHUNK
    rows = np.stack([start[segment] + offset, offset, segment, np.minimum(size[segment] - offset, CHUNK)], axis=1)
    backend = backend_of(like)
    device = backend.place_of(like).index
    uploaded = backend.from_host(rows, device)
    backend.synchronize(device)  # other streams will read it, and know nothing of this copy
    return Chunks(uploaded, firsts.tolist())


@functools.cache
def _dtypes(double: bool) -> tuple[np.dtype[Any], np.dtype[Any]]:
    number = np.float64 if double else np.float32
    recipe = np.dtype([("rule", np.int32), ("norm", np.int32), *((name, number) for name in _NUMBERS)], align=True)
    fields = [("address", np.uint64, TENSORS), ("recipes", recipe, RECIPES), ("recipe", np.uint8, TENSORS)]
    return recipe, np.dtype(fields, align=True)


def recipe_fields() -> tuple[str, ...]:
    """The names of a recipe's numbers, in order."""
    return ("rule", "norm", *_NUMBERS)


def table(
    recipes: Sequence[tuple[float, ...]],
    which: Sequence[int],
    gradients: Sequence[int],
    parameters: Sequence[int] | None,
    *,
    double: bool,
) -> np.ndarray:
    """The table of a launch.

    Args:
        recipes: the numbers of each, as `recipe_fields` names them; the first keeps what there is.
        which: the recipe of every segment.
        gradients: the address of every segment's gradient, any number where it is kept.
        parameters: the addresses of the parameters, of half as many segments; None where they are in flat buffers.
        double: whether the numbers are float64.
    """
    recipe, whole = _dtypes(double)
    made = np.zeros(1, whole)
    made["recipes"][0, : len(recipes)] = np.array(recipes, recipe)
    made["recipe"][0, : len(which)] = which
    made["address"][0, : len(gradients)] = gradients
    if parameters is not None:
        made["address"][0, TENSORS // 2 : TENSORS // 2 + len(parameters)] = parameters
    return made


def square_sums(launches: Sequence[Launch], norms: int, like: Array) -> Array:
    """The sums of squares of the gradients, shape (norms, blocks of all the launches): one launch a norm and table."""
    partials = empty(like, (norms, sum(launch.blocks for launch in launches)), np.dtype(np.float64))
    for norm in range(norms):
        start = 0
        for launch in launches:
            stop = start + launch.blocks
            rows = launch.rows
            launch.kernel("optimise_norm")(
                (launch.blocks,), (THREADS,), launch.parameter, rows, len(rows), launch.first, norm + 1,
                partials[norm, start:stop],
            )  # fmt: skip
            start = stop
    return partials


def update(
    launch: Launch,
    partials: Array | None,
    x: Array | None,
    moments: Sequence[Array],
    new_x: Array,
    new_moments: Sequence[Array],
) -> None:
    """One update of the segments of a launch.

    Args:
        launch: the segments.
        partials: the sums of squares, where recipes have a norm.
        x: the flat buffer of the parameters; None where the table has their addresses.
        moments: the flat buffers of the moments, two at most.
        new_x: where the new parameters go; may be `x`.
        new_moments: where the new moments go; may be `moments`.
    """
    rows = launch.rows
    m, v, *_ = (*moments, None, None)
    new_m, new_v, *_ = (*new_moments, None, None)
    launch.kernel("optimise_update")(
        (len(rows),), (THREADS,), launch.parameter, rows, launch.first, x is None, partials,
        0 if partials is None else partials.shape[1], x, m, v, new_x, new_m, new_v,
    )  # fmt: skip


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: gradients in the dtype of the parameters, and in the one computed in."""
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        yield program("optimise", dtype, parameters=dtype, constants=CONSTANTS)
    for dtype in ("float16", "bfloat16"):
        yield program("optimise", dtype, parameters="float32", constants=CONSTANTS)
