"""Batch normalisation with its activation: one launch each way where a channel fits on the chip, else two.

Statistics and sums are of float32, of float64 data of float64. The parameters and running statistics of one call are
of one dtype, that of the data or float32, and each may be None.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from culux.backends import Array, backend_of
from culux.kernels.launcher import MULTIPROCESSORS, Kernel, contiguous, empty, get_kernel
from culux.kernels.source import ActivationCode, Program, program

__all__ = ["Plan", "backward", "chunked", "forward", "normalize", "normalize_backward", "programs", "whole"]

BLOCKS = MULTIPROCESSORS * 32  # of chunks: many times what runs at once, so that the last ones cost little
THREADS = 256  # of a block that works on chunks
TILE = 64  # bytes of x that each of them holds while it takes statistics


class Plan(NamedTuple):
    """How x is cut into blocks; ``batchnorm.cu`` has the meaning of rows, channels, run, width and size.

    Attributes:
        grid: the number of blocks.
        threads: of a block.
        scratch: bytes of shared memory for each number that a block sums.
        kept: bytes of shared memory for each array that stays on the chip.
    """

    rows: int
    channels: int
    run: int
    width: int
    size: int
    grid: tuple[int]
    threads: int
    scratch: int
    kept: int


@functools.lru_cache(maxsize=1024)
def whole(shape: tuple[int, ...], unit: int, itemsize: int, arrays: int, limit: int) -> Plan | None:
    """Blocks that have all values of their channels and keep those of `arrays` arrays.

    Of (N, C) a block has 32 channels, or less as long as a row of them has the 32 bytes that memory gives at once:
    where that lets every multiprocessor have a block, or makes the values fit.

    Args:
        shape: of x: (N, C, *spatial).
        unit: values that are read at once.
        itemsize: bytes of a value.
        arrays: how many arrays a block keeps, and how many numbers it sums at a time.
        limit: bytes of shared memory that a block may have.

    Returns:
        The plan; None where a channel does not fit.
    """
    rows, channels, run = _extents(shape, unit)
    units, compute, width = rows * run, max(itemsize, 4), _width(channels, run)
    while True:
        threads = min(max(_power_of_two(units * width // 4), 128), 4096 // compute)
        scratch = threads // 32 * width * compute
        kept = -(-units * width // threads) * threads * unit * itemsize
        plan = Plan(rows, channels, run, width, units, (-(-channels // width),), threads, scratch, kept)
        narrow = width == 1 or width * unit * itemsize <= 32
        fits = arrays * (scratch + kept) <= limit
        if fits and (narrow or plan.grid[0] >= MULTIPROCESSORS):
            return plan
        if narrow:
            return None
        width //= 2


@functools.lru_cache(maxsize=1024)
def chunked(shape: tuple[int, ...], unit: int, itemsize: int) -> Plan:
    """Blocks that have a chunk of their channels: a tile at least, and no more chunks than `BLOCKS` needs.

    Args:
        shape: of x: (N, C, *spatial).
        unit: values that are read at once.
        itemsize: bytes of a value.
    """
    rows, channels, run = _extents(shape, unit)
    units, width = rows * run, _width(channels, run)
    groups, step = -(-channels // width), THREADS // width
    tile = step * (TILE // (unit * itemsize))
    chunks = min(-(-units // tile), max(1, BLOCKS // groups))
    size = -(-units // (chunks * step)) * step if chunks else step
    scratch = THREADS // 32 * width * max(itemsize, 4)
    return Plan(rows, channels, run, width, size, (-(-units // size) * groups,), THREADS, scratch, THREADS * TILE)


def _extents(shape: tuple[int, ...], unit: int) -> tuple[int, int, int]:
    """Rows, channels, and units of a channel in a row; nothing is no rows."""
    spatial = math.prod(shape[2:])
    return (shape[0] if spatial else 0), shape[1], max(1, spatial // unit)


def _width(channels: int, run: int) -> int:
    """The most channels for a block."""
    return 1 if run > 1 else min(_power_of_two(channels), 32)


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()


class _Family:
    """The kernels for one x with its parameters."""

    def __init__(self, code: ActivationCode, arrays: Sequence[Array], parameters: Sequence[Array | None]) -> None:
        x = self.x = arrays[0]
        self.code = code
        self.parameters = next((p.dtype for p in parameters if p is not None), x.dtype)
        self.compute = "float64" if x.dtype == "float64" else "float32"
        lanes = 16 // x.dtype.itemsize
        # Results come from the memory pool, and are aligned.
        packed = math.prod(x.shape[2:]) % lanes == 0 and all(a.data.ptr % 16 == 0 for a in arrays)
        self.unit = lanes if packed else 1

    def kernel(self, name: str) -> Kernel:
        return get_kernel(
            "batchnorm", name, self.x.dtype, parameters=self.parameters, activation=self.code,
            constants=(("UNIT", self.unit),),
        )  # fmt: skip

    def whole(self, arrays: int) -> Plan | None:
        backend = backend_of(self.x)
        limit = backend.shared_limit(backend.place_of(self.x).index)
        return whole(self.x.shape, self.unit, self.x.dtype.itemsize, arrays, limit)

    def chunked(self) -> Plan:
        return chunked(self.x.shape, self.unit, self.x.dtype.itemsize)

    def per_channel(self, *sizes: int) -> Array:
        return empty(self.x, (*sizes, self.x.shape[1]), self.compute)

    def like_parameters(self, wanted: bool) -> Array | None:
        return empty(self.x, self.x.shape[1:2], self.parameters) if wanted else None


def forward(
    x: Array, scale: Array | None, bias: Array | None, running_mean: Array | None, running_var: Array | None,
    *, momentum: float, epsilon: float, code: ActivationCode,
) -> tuple[Array, Array, Array | None, Array | None]:  # fmt: skip
    """``y = activation((x - mean) / sqrt(var + epsilon) * scale + bias)`` by the statistics of the batch.

    Args:
        x: (N, C, *spatial), more than one value per channel; copied where it is not in row-major order.
        scale: (C,) or None.
        bias: (C,) or None.
        running_mean: (C,) or None.
        running_var: (C,) or None, as `running_mean`.
        momentum: the weight of the batch in the running statistics.
        epsilon: added to the variance.
        code: the activation.

    Returns:
        y; what `backward` reads of the statistics, (3, C); and the running ones after the batch, new arrays or None.
    """
    x, scale, bias, running_mean, running_var = _contiguous(x, scale, bias, running_mean, running_var)
    family = _Family(code, (x,), (scale, bias, running_mean, running_var))
    y, saved = empty(x), family.per_channel(3)
    moved_mean = family.like_parameters(running_mean is not None)
    moved_var = family.like_parameters(running_mean is not None)
    given, results = (scale, bias, running_mean, running_var), (y, saved, moved_mean, moved_var)
    plan = family.whole(1)
    if plan is not None:
        family.kernel("batchnorm_forward")(
            plan.grid, (plan.threads,), x, *given, *results, *plan[:4], epsilon, momentum,
            shared=plan.scratch + plan.kept,
        )  # fmt: skip
        return y, saved, moved_mean, moved_var
    plan = family.chunked()
    partials = family.per_channel(2, -(-plan.rows * plan.run // plan.size))
    family.kernel("batchnorm_statistics")(
        plan.grid, (plan.threads,), x, partials, *plan[:5], TILE // (family.unit * x.dtype.itemsize),
        shared=plan.scratch + plan.kept,
    )  # fmt: skip
    family.kernel("batchnorm_apply")(
        plan.grid, (plan.threads,), x, *given, partials, *results, *plan[:5], epsilon, momentum, shared=plan.scratch
    )
    return y, saved, moved_mean, moved_var


def backward(
    dy: Array, x: Array, saved: Array, scale: Array | None, bias: Array | None,
    *, needs: Sequence[bool], code: ActivationCode,
) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
    """The cotangents of x, scale and bias after `forward`; None for those that `needs` does not ask for.

    Args:
        dy: the cotangent of y.
        x: as given to `forward`.
        saved: from `forward`.
        scale: as given to `forward`.
        bias: as given to `forward`.
        needs: whether those of x, scale and bias are wanted.
        code: the activation.
    """
    dy, x, scale, bias = _contiguous(dy, x, scale, bias)
    family = _Family(code, (x, dy), (scale, bias))
    results = empty(x) if needs[0] else None, family.like_parameters(needs[1]), family.like_parameters(needs[2])
    plan = family.whole(2)
    if plan is not None:
        family.kernel("batchnorm_backward")(
            plan.grid, (plan.threads,), dy, x, saved, scale, bias, *results, *plan[:4],
            shared=2 * (plan.scratch + plan.kept),
        )  # fmt: skip
        return results
    plan = family.chunked()
    partials = _sums(family, plan, dy, saved, scale, bias, None, None, None, epsilon=0.0)
    _finish(family, plan, dy, saved, scale, bias, partials, results)
    return results


def normalize(
    x: Array, scale: Array | None, bias: Array | None, mean: Array, var: Array,
    *, epsilon: float, code: ActivationCode,
) -> Array:  # fmt: skip
    """``y = activation((x - mean) / sqrt(var + epsilon) * scale + bias)`` by given statistics, in one launch.

    Args:
        x: (N, C, *spatial); copied where it is not in row-major order.
        scale: (C,) or None.
        bias: (C,) or None.
        mean: (C,).
        var: (C,).
        epsilon: added to the variance.
        code: the activation.
    """
    x, scale, bias, mean, var = _contiguous(x, scale, bias, mean, var)
    family = _Family(code, (x,), (mean,))
    plan, y = family.chunked(), empty(x)
    family.kernel("batchnorm_apply")(
        plan.grid, (plan.threads,), x, scale, bias, mean, var, None, y, None, None, None, *plan[:5], epsilon, 0.0
    )
    return y


def normalize_backward(
    dy: Array, x: Array, scale: Array | None, bias: Array | None, mean: Array, var: Array,
    *, epsilon: float, needs: Sequence[bool], code: ActivationCode,
) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
    """The cotangents of x, scale and bias after `normalize`, None for those that `needs` does not ask for.

    One launch for that of x; a second one adds up those of scale and bias.

    Args:
        dy: the cotangent of y.
        x: as given to `normalize`.
        scale: as given to `normalize`.
        bias: as given to `normalize`.
        mean: as given to `normalize`.
        var: as given to `normalize`.
        epsilon: as given to `normalize`.
        needs: whether those of x, scale and bias are wanted.
        code: the activation.
    """
    dy, x, scale, bias, mean, var = _contiguous(dy, x, scale, bias, mean, var)
    family = _Family(code, (x, dy), (mean,))
    plan, dx = family.chunked(), empty(x) if needs[0] else None
    dscale, dbias = family.like_parameters(needs[1]), family.like_parameters(needs[2])
    summed = needs[1] or needs[2]
    partials = _sums(family, plan, dy, None, scale, bias, mean, var, dx, epsilon=epsilon, summed=summed)
    if summed:
        _finish(family, plan, dy, None, scale, bias, partials, (None, dscale, dbias))
    return dx, dscale, dbias


def _sums(
    family: _Family, plan: Plan, dy: Array, saved: Array | None, scale: Array | None, bias: Array | None,
    mean: Array | None, var: Array | None, dx: Array | None, *, epsilon: float, summed: bool = True,
) -> Array | None:  # fmt: skip
    """The sums of chunks for `_finish`; by given statistics dx as well."""
    partials = family.per_channel(2, -(-plan.rows * plan.run // plan.size)) if summed else None
    family.kernel("batchnorm_sums")(
        plan.grid, (plan.threads,), dy, family.x, saved, scale, bias, mean, var, dx, partials, *plan[:5], epsilon,
        shared=2 * plan.scratch,
    )  # fmt: skip
    return partials


def _finish(
    family: _Family, plan: Plan, dy: Array, saved: Array | None, scale: Array | None, bias: Array | None,
    partials: Array | None, results: tuple[Array | None, Array | None, Array | None],
) -> None:  # fmt: skip
    """The results from the sums of chunks; without dx, one block for each group of channels does."""
    grid = (-(-plan.channels // plan.width),) if results[0] is None else plan.grid
    family.kernel("batchnorm_backward_apply")(
        grid, (plan.threads,), dy, family.x, saved, scale, bias, partials, *results, *plan[:5],
        shared=2 * plan.scratch,
    )  # fmt: skip


def _contiguous(*arrays: Array | None) -> list[Array]:
    return [a if a is None else contiguous(a) for a in arrays]


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: every dtype, by single values and by 16 bytes, and both kinds of activation."""
    for dtype, lanes in {"float32": 4, "float64": 2, "float16": 8, "bfloat16": 8}.items():
        for name, unit, parameters in (("gelu", 1, "float32"), ("tanh", lanes, "")):
            constants = (("UNIT", unit),)
            yield program("batchnorm", dtype, parameters=parameters, activation=activations[name], constants=constants)
