"""Dense layers: one launch each way for small products, a library's products and one launch of ours for large ones.

Of several ways to compute the same, `culux.kernels.tuning` picks by timing; what is small is only the default.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np

from culux.backends import Array, backend_of, current_matmul_precision
from culux.kernels import activation, epilogue, tuning
from culux.kernels.gemm import gemm
from culux.kernels.launcher import MULTIPROCESSORS, Kernel, contiguous, empty, get_kernel
from culux.kernels.source import IDENTITY, ActivationCode, Program, program

__all__ = ["backward", "forward", "programs"]

THREADS = (256,)
TILES = {"fused 16": 16, "fused 32": 32, "fused 64": 64}  # ours, one launch each way: the sizes of tiles
# Multiply-adds of a product. Below, one launch ends before a library's product and a second launch have: 512**3 in
# float32 is about 5 us of an H100's arithmetic, a launch 2 to 3 us. Tensor cores (16-bit types, TF32, float64)
# leave less time to gain. Far above, ours is not worth timing either.
SMALL, SMALL_FOR_TENSOR_CORES = 2**27, 2**25
WORTH_TIMING = 8
LONGEST_SUM = 2048  # a block sums over the whole inner dimension, a library splits it where there are few tiles
HALF_THE_CHIP = 64  # blocks
# The part of a multiprocessor's arithmetic that a tile can use: shared memory holds 32 and 64 up, the L2 cache 16. By
# reasoning, not measured; it decides only what is tried, and what is taken without timing.
RATES = {16: 0.38, 32: 0.7, 64: 0.85}

_FLOAT32 = np.dtype(np.float32)
LIBRARY, FUSED_LIBRARY = "library + epilogue", "library fused epilogue"

LibraryActivation = Literal["relu", "gelu"]
Gradients: TypeAlias = tuple[Array | None, Array | None, Array | None]
R = TypeVar("R")


class _Plan(NamedTuple):
    """The ways to compute a product: the key that their times depend on, their names, and the default."""

    key: tuple[int | str, ...]
    names: tuple[str, ...]
    default: str


class _Launch(NamedTuple):
    """What a launch takes beside the arrays."""

    kernel: Kernel
    grid: tuple[int]
    numbers: tuple[np.int32, ...]


class _Product(NamedTuple):
    """A product ``(m, k) @ (k, n)``."""

    m: int
    n: int
    k: int

    def tiles(self, size: int) -> int:
        """The blocks that it takes in tiles of size by size."""
        return -(-self.m // size) * -(-self.n // size)

    def cost(self, size: int) -> float:
        """The time of a block, in multiply-adds of a multiprocessor; the inner dimension goes in steps of 8 KB."""
        return size * size * max(self.k, 2048 // size) / RATES[size]


def forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    code: ActivationCode,
    *,
    keep: bool,
    library: LibraryActivation | None = None,
) -> tuple[Array, Array | None]:
    """``y = activation(x @ weight.T + bias)``, and what `backward` reads of it.

    Args:
        x: (rows, inner), row-major without gaps, as are all arrays here, and all of one dtype.
        weight: (outer, inner).
        bias: (outer,) or None.
        code: the activation.
        keep: whether a backward pass will come.
        library: what `culux.kernels.gemm` calls the activation, where it has it.

    Returns:
        y (rows, outer); and y, ``x @ weight.T + bias`` or None, as the code says.
    """
    (rows, inner), outer = x.shape, weight.shape[0]
    keeps_z = keep and code.saves == "x"
    fuses = library is not None and not keeps_z
    fusible = fuses or bias is not None
    plan = _forward_plan(rows, outer, inner, x.dtype, fusible, keeps_z, code.name, _tensor_cores(x))

    def run(name: str) -> tuple[Array, Array | None]:
        if name == LIBRARY:
            z = gemm(x, weight, transpose_b=True)
            y = z if bias is None and code.saves is None else epilogue.forward(z, bias, code, keep=keeps_z)
        elif name == FUSED_LIBRARY:
            z = gemm(x, weight, transpose_b=True, bias=bias, activation=library if fuses else None)
            y = z if fuses or code.saves is None else epilogue.forward(z, None, code, keep=keeps_z)
        else:
            y, z = empty(x, (rows, outer)), empty(x, (rows, outer)) if keeps_z else None
            kernel, grid, numbers = _forward_launch(name, rows, inner, outer, x.dtype, code)
            kernel(grid, THREADS, x, weight, bias, z, y, *numbers)
        return y, z if keeps_z else y if keep and code.saves == "y" else None

    return _run("dense forward", plan, run, x)


def backward(
    dy: Array, saved: Array | None, x: Array | None, weight: Array | None, code: ActivationCode,
    *, needs: tuple[bool, ...],
) -> Gradients:  # fmt: skip
    """The gradients of `forward`: with ``dz = dy * derivative(saved)``: ``dz @ weight, dz.T @ x, dz.sum(0)``.

    Args:
        dy: (rows, outer).
        saved: as `forward` gave it.
        x: (rows, inner); may be None where dweight is not wanted.
        weight: (outer, inner); may be None where dx is not wanted.
        code: the activation.
        needs: which of dx, dweight and dbias are wanted.

    Returns:
        dx (rows, inner), dweight (outer, inner) and dbias (outer,); None for what is not wanted.
    """
    dy = contiguous(dy)
    other = weight if x is None else x
    inner = 0 if other is None else other.shape[1]
    plan = _backward_plan(*dy.shape, inner, dy.dtype, needs, code.name, _tensor_cores(dy))

    def run(name: str) -> Gradients:
        if name in (LIBRARY, FUSED_LIBRARY):
            return _backward_by_library(dy, saved, x, weight, code, needs, fused=name == FUSED_LIBRARY)
        return _backward_fused(dy, saved, x, weight, code, needs, inner, name)

    return _run("dense backward", plan, run, dy)


def _backward_fused(
    dy: Array, saved: Array | None, x: Array | None, weight: Array | None, code: ActivationCode,
    needs: tuple[bool, ...], inner: int, name: str,
) -> Gradients:  # fmt: skip
    rows, outer = dy.shape
    dx = empty(dy, (rows, inner)) if needs[0] else None
    dweight = empty(dy, (outer, inner)) if needs[1] else None
    dbias = empty(dy, (outer,)) if needs[2] else None
    kernel, grid, numbers = _backward_launch(name, rows, inner, outer, dy.dtype, code, needs)
    kernel(grid, THREADS, dy, saved, x, weight, dx, dweight, dbias, *numbers)
    return dx, dweight, dbias


def _backward_by_library(
    dy: Array, saved: Array | None, x: Array | None, weight: Array | None, code: ActivationCode,
    needs: tuple[bool, ...], *, fused: bool,
) -> Gradients:  # fmt: skip
    dweight = dbias = None
    if needs[2] and not fused:
        dz, dbias = epilogue.backward(dy, saved, code)
    else:
        dz = dy if saved is None else activation.backward(dy, saved, code)
    if needs[1] and fused:
        dweight, dbias = gemm(dz, x, transpose_a=True, bias_gradient="a")
    elif needs[1]:
        dweight = gemm(dz, x, transpose_a=True)
    return gemm(dz, weight) if needs[0] else None, dweight, dbias


@functools.lru_cache(maxsize=4096)
def _forward_launch(name: str, rows: int, inner: int, outer: int, dtype: Any, code: ActivationCode) -> _Launch:
    size = TILES[name]
    kernel = get_kernel("dense", "dense_forward", dtype, activation=code, constants=(("TILE", size),))
    return _Launch(kernel, (_Product(rows, outer, inner).tiles(size),), _int32(rows, inner, outer))


@functools.lru_cache(maxsize=4096)
def _backward_launch(
    name: str, rows: int, inner: int, outer: int, dtype: Any, code: ActivationCode, needs: tuple[bool, ...]
) -> _Launch:
    size = TILES[name]
    kernel = get_kernel("dense", "dense_backward", dtype, activation=code, constants=(("TILE", size),))
    count = _Product(rows, inner, outer).tiles(size) if needs[0] else 0
    others = _Product(outer, inner, rows).tiles(size) if needs[1] else 0
    if needs[2] and not others:
        others = -(-outer // size)
    begin = others if rows > outer else 0  # the blocks with the longer sums first: they would end last
    return _Launch(kernel, (count + others,), _int32(rows, inner, outer, begin, count))


def _int32(*numbers: int) -> tuple[np.int32, ...]:
    return tuple(np.int32(number) for number in numbers)


def _tensor_cores(x: Array) -> bool:
    return x.dtype != _FLOAT32 or current_matmul_precision() == "tf32"


@functools.lru_cache(maxsize=4096)
def _forward_plan(
    rows: int, outer: int, inner: int, dtype: Any, fusible: bool, keeps_z: bool, name: str, tensor_cores: bool
) -> _Plan:
    rows = _rounded(rows)
    key = (dtype.name, rows, outer, inner, name, keeps_z, tensor_cores, fusible)
    libraries = (LIBRARY, FUSED_LIBRARY) if fusible else (LIBRARY,)
    return _plan(key, [_Product(rows, outer, inner)], dtype, tensor_cores, libraries)


@functools.lru_cache(maxsize=4096)
def _backward_plan(
    rows: int, outer: int, inner: int, dtype: Any, needs: tuple[bool, ...], name: str, tensor_cores: bool
) -> _Plan:
    rows = _rounded(rows)
    products = [_Product(rows, inner, outer)] if needs[0] else []
    products += [_Product(outer, inner, rows)] if needs[1] else []
    key = (dtype.name, rows, outer, inner, name, tensor_cores, *needs)
    if not products:  # the sums of columns alone are one launch of the epilogue
        return _Plan(key, (LIBRARY,), LIBRARY)
    libraries: tuple[str, ...] = (LIBRARY,)
    if needs[1] and needs[2]:
        # Whole columns are a block's in our epilogue; where they are few and long, the library has more blocks.
        few = rows > LONGEST_SUM and epilogue.strips(outer, dtype) < HALF_THE_CHIP
        libraries = (FUSED_LIBRARY, LIBRARY) if few else (LIBRARY, FUSED_LIBRARY)
    return _plan(key, products, dtype, tensor_cores, libraries)


def _plan(
    key: tuple[int | str, ...], products: Sequence[_Product], dtype: Any, tensor_cores: bool, libraries: tuple[str, ...]
) -> _Plan:
    """The plan for these products in one launch, or by a library; the first of `libraries` is the default there."""
    small = SMALL_FOR_TENSOR_CORES if tensor_cores else SMALL
    work = math.prod(max(1, length) for length in products[0]) / small
    longest = max(product.k for product in products) / LONGEST_SUM
    if work > WORTH_TIMING or longest > WORTH_TIMING:
        return _Plan(key, libraries, libraries[0])
    if 0 in products[0]:
        return _Plan(key, ("fused 16",), "fused 16")
    times = {name: _time(products, size) for name, size in TILES.items() if size < 64 or dtype.itemsize < 8}
    default = min(times, key=times.__getitem__)
    fused = [name for name, time in times.items() if time <= 2 * times[default]]
    return _Plan(key, (*fused, *libraries), default if max(work, longest) <= 1 else libraries[0])


def _time(products: Sequence[_Product], size: int) -> float:
    """What products in one launch take: as long as the longest block, and as all blocks on all multiprocessors."""
    total = sum(product.tiles(size) * product.cost(size) for product in products)
    return max(total / MULTIPROCESSORS, *(product.cost(size) for product in products))


def _rounded(rows: int) -> int:
    """A batch size up to a power of two: batches of all sizes come, and each of them would be timed."""
    return 1 << (rows - 1).bit_length() if rows else 0


def _run(operation: str, plan: _Plan, run: Callable[[str], R], x: Array) -> R:
    """The result of the way that is fastest here."""
    if len(plan.names) == 1:
        return run(plan.default)
    backend = backend_of(x)
    timer = backend.timer(0 if backend.device_count() == 1 else backend.place_of(x).index)
    candidates = {name: functools.partial(run, name) for name in plan.names}
    return run(tuning.choose(operation, plan.key, candidates, plan.default, device=timer.device, timer=timer))


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: every dtype and tile, and activations that keep nothing, x and y."""
    tiles = {"float32": (16, 32, 64), "float64": (16, 32), "float16": (16, 32), "bfloat16": (32, 64)}
    for dtype, sizes in tiles.items():
        for size in sizes:
            yield program("dense", dtype, activation=activations["gelu"], constants=(("TILE", size),))
    for code in (IDENTITY, activations["tanh"]):
        yield program("dense", "float32", activation=code, constants=(("TILE", 32),))
