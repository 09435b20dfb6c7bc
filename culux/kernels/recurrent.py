"""Recurrent layers over all steps of a sequence: one launch each way, or a launch and a product for each step.

One launch does where the weight of the carry fits into shared memory. The gradients of weights are products over all
steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from culux.backends import Array, backend_of, current_matmul_precision
from culux.kernels import tuning
from culux.kernels.gemm import gemm
from culux.kernels.launcher import (
    MOST_BLOCKS,
    MULTIPROCESSORS,
    Kernel,
    compute_dtype,
    contiguous,
    empty,
    get_kernel,
)
from culux.kernels.source import IDENTITY, ActivationCode, Program, program

__all__ = ["Saved", "Step", "backward", "forward", "programs"]

WHOLE, STEPS = "whole", "steps"
R = TypeVar("R")

THREADS = 256
ROWS = 2  # of the batch that a block has where all steps are one launch; as the source has it
MOST_UNITS = 512  # the threads of such a block; as the source has it
MOST_ROWS = 8 * MULTIPROCESSORS  # with more of them every step's product fills the chip: the default is by steps
GRU, LSTM = 3, 4


class Step(NamedTuple):
    """What a step computes, and in which order the steps are run.

    Attributes:
        gates: 1 for a plain layer, 3 for GRU, 4 for LSTM.
        code: the activation of a plain layer.
        reverse: whether the last step is run first.
    """

    gates: int
    code: ActivationCode = IDENTITY
    reverse: bool = False

    @property
    def saved(self) -> int:
        """How many numbers a unit leaves for the backward pass."""
        return 4 if self.gates > 1 else int(self.code.saves is not None)

    def order(self, steps: int) -> range:
        """The places of the steps, in the order in which they are run."""
        return range(steps)[::-1] if self.reverse else range(steps)


class _Given(NamedTuple):
    """What `forward` is given, in row-major order."""

    projected: Array
    weight: Array
    bias: Array | None
    mask: Array | None
    start: tuple[Array, ...]


class Saved(NamedTuple):
    """What `backward` reads, by the steps in the order in which they were run.

    Attributes:
        held: h before each step, (time, batch, size).
        cells: c before each step of an LSTM, of the same shape, in the dtype that is computed in.
        gates: what the steps left, (time, batch, saved * size); None for nothing.
    """

    held: Array
    cells: Array | None
    gates: Array | None


def forward(
    projected: Array,
    weight: Array,
    bias: Array | None,
    mask: Array | None,
    carry: tuple[Array, ...],
    step: Step,
    *,
    keep: bool,
) -> tuple[tuple[Array, ...], Saved]:
    """All steps: y, the carry after them, and what `backward` reads.

    Args:
        projected: (batch, time, gates * size), the inputs times their weight, with all biases but `bias`; one step at
            least. All arrays but the mask are of one dtype.
        weight: (gates * size, size).
        bias: (gates * size,), added to h times the weight, or None.
        mask: bool (batch, time), which steps are there; None for all. Of the others y is 0, and the carry stays.
        carry: ``(h,)``, or ``(h, c)`` for LSTM, each (batch, size).
        step: what is run.
        keep: whether a backward pass will come.

    Returns:
        ``(y, *carry)``, y (batch, time, size); and what the backward reads, of use only with `keep`.
    """
    given = _Given(
        contiguous(projected),
        contiguous(weight),
        None if bias is None else contiguous(bias),
        None if mask is None else contiguous(mask),
        tuple(contiguous(part) for part in carry),
    )
    (batch, time, _), size = projected.shape, weight.shape[1]

    def run(name: str) -> tuple[tuple[Array, ...], Saved]:
        return (_forward_whole if name == WHOLE else _forward_by_steps)(given, step, keep)

    flags = ("keep" * keep, "mask" * (mask is not None))
    return _run("recurrent forward", run, projected, (batch, time, size), step, size, flags)


def _forward_by_steps(given: _Given, step: Step, keep: bool) -> tuple[tuple[Array, ...], Saved]:
    """A product and a launch a step."""
    projected, weight, bias, mask, start = given
    (batch, time, width), size = projected.shape, weight.shape[1]
    slabs = time if keep else min(time, 2)
    y, last, saved = _room(given, step, keep, slabs)
    hidden = empty(projected, (batch, width))
    kernel, (grid, block) = _kernel("recurrent_forward", projected, step), _shape(batch, size)
    for k, t in enumerate(step.order(time)):
        slab = k % slabs
        gemm(start[0] if k == 0 else saved.held[slab], weight, transpose_b=True, out=hidden)
        kernel(
            grid, block, projected, hidden, bias, mask, *_both(start if k == 0 else ()), *saved, y,
            *_both(last if k == time - 1 else ()), batch, time, size, t, slab, (k + 1) % slabs,
        )  # fmt: skip
    return (y, *last), saved


def _forward_whole(given: _Given, step: Step, keep: bool) -> tuple[tuple[Array, ...], Saved]:
    """All steps in one launch."""
    projected, weight, bias, mask, start = given
    (batch, time, _), size = projected.shape, weight.shape[1]
    y, last, saved = _room(given, step, keep, time if keep else 0)
    _kernel("recurrent_sequence_forward", projected, step)(
        (-(-batch // ROWS),), (-(-size // 32) * 32,), projected, weight, bias, mask, *_both(start), *saved, y,
        *_both(last), batch, time, size, step.reverse, shared=_shared(projected, step, size, size),
    )  # fmt: skip
    return (y, *last), saved


def _room(given: _Given, step: Step, keep: bool, slabs: int) -> tuple[Array, tuple[Array, ...], Saved]:
    """New memory: for y, for the carry after the last step, and for what is saved, h and c in so many slabs."""
    x, start = given.projected, given.start
    (batch, time, _), size = x.shape, start[0].shape[1]
    held = empty(x, (slabs, batch, size)) if slabs else None
    cells = empty(x, (slabs, batch, size), compute_dtype(x)) if slabs and step.gates == LSTM else None
    gates = empty(x, (time, batch, step.saved * size)) if keep and step.saved else None
    return empty(x, (batch, time, size)), tuple(empty(part) for part in start), Saved(held, cells, gates)


def backward(
    dy: Array | None,
    dlast: tuple[Array | None, ...],
    saved: Saved,
    weight: Array,
    mask: Array | None,
    step: Step,
    *,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Array, Array | None, Array | None, tuple[Array, ...]]:
    """dprojected; dweight, dbias and those of the first carry, as far as they are wanted.

    Args:
        dy: (batch, time, size), or None for zeros.
        dlast: the cotangents of the carry after the last step, each (batch, size), or None for zeros.
        saved: from `forward`.
        weight: as `forward` had it, with `mask` and `step`.
        mask: see there.
        step: see there.
        needs: which of dprojected, dweight, dbias and the carry's are wanted.
    """
    dy, *ends = [None if part is None else contiguous(part) for part in (dy, *dlast)]
    weight, mask = contiguous(weight), None if mask is None else contiguous(mask)
    time, batch, size = saved.held.shape
    width = step.gates * size

    def run(name: str) -> tuple[Array, Array, tuple[Array, ...]]:
        way = _backward_whole if name == WHOLE else _backward_by_steps
        return way(dy, tuple(ends), saved, weight, mask, step, needs[3])

    flags = ("carry" * needs[3], "mask" * (mask is not None))
    dprojected, dhidden, dstart = _run("recurrent backward", run, saved.held, (batch, time, size), step, width, flags)
    rows, held = dhidden.reshape(-1, width), saved.held.reshape(-1, size)
    return dprojected, *_parameters(rows, held, needs[1], needs[2]), dstart


def _backward_by_steps(
    dy: Array | None, ends: tuple[Array | None, ...], saved: Saved, weight: Array, mask: Array | None, step: Step,
    carry: bool,
) -> tuple[Array, Array, tuple[Array, ...]]:  # fmt: skip
    """The cotangents of both products, and of the first carry where it is wanted: a launch and a product a step."""
    held, width = saved.held, len(weight)
    (time, batch, size), kind = held.shape, compute_dtype(held)
    dprojected, dhidden = empty(held, (batch, time, width)), empty(held, (time, batch, width))
    dh = empty(held, (batch, size), kind) if step.gates == GRU or mask is not None else None
    dc = empty(held, (batch, size), kind) if step.gates == LSTM else None
    through = None
    kernel, (grid, block) = _kernel("recurrent_backward", held, step), _shape(batch, size)
    for k, t in reversed(list(enumerate(step.order(time)))):
        kernel(
            grid, block, dy, through, *_both(ends if k == time - 1 else ()), mask, *saved, dh, dc, dprojected, dhidden,
            batch, time, size, t, k,
        )  # fmt: skip
        if k > 0 or carry:
            through = gemm(dhidden[k], weight, out=through)
    if not carry:
        return dprojected, dhidden, ()
    dstart = through if dh is None else (through + dh).astype(held.dtype, copy=False)
    return dprojected, dhidden, (dstart,) if dc is None else (dstart, dc.astype(held.dtype, copy=False))


def _backward_whole(
    dy: Array | None, ends: tuple[Array | None, ...], saved: Saved, weight: Array, mask: Array | None, step: Step,
    carry: bool,
) -> tuple[Array, Array, tuple[Array, ...]]:  # fmt: skip
    """The same in one launch."""
    held, width = saved.held, len(weight)
    time, batch, size = held.shape
    dprojected, dhidden = empty(held, (batch, time, width)), empty(held, (time, batch, width))
    dstart = tuple(empty(held, (batch, size)) for _ in ends) if carry else ()
    _kernel("recurrent_sequence_backward", held, step)(
        (-(-batch // ROWS),), (-(-size // 32) * 32,), dy, *_both(ends), weight, mask, *saved, dprojected, dhidden,
        *_both(dstart), batch, time, size, step.reverse, shared=_shared(held, step, size, width),
    )  # fmt: skip
    return dprojected, dhidden, dstart


def _run(
    operation: str, run: Callable[[str], R], x: Array, lengths: tuple[int, int, int], step: Step, columns: int,
    flags: tuple[str, ...],
) -> R:  # fmt: skip
    """The result of the way that is faster here: all steps in one launch, where shared memory has room, or by steps.

    `columns` is how many numbers of a row a step leaves there for the next one.
    """
    backend, (batch, time, size) = backend_of(x), lengths
    index = 0 if backend.device_count() == 1 else backend.place_of(x).index
    if size > MOST_UNITS or _shared(x, step, size, columns) > backend.shared_limit(index):
        return run(STEPS)
    timer = backend.timer(index)
    # Batches and sequences of all lengths come, and each of them would be timed: they are taken as powers of two.
    rounded = [1 << max(n - 1, 0).bit_length() for n in (batch, time)]
    key = (x.dtype.name, *rounded, size, step.gates, step.code.name, *flags, current_matmul_precision())
    candidates = {WHOLE: lambda: run(WHOLE), STEPS: lambda: run(STEPS)}
    default = WHOLE if batch <= MOST_ROWS else STEPS
    return run(tuning.choose(operation, key, candidates, default, device=timer.device, timer=timer))


def _shared(x: Array, step: Step, size: int, columns: int) -> int:
    """The bytes of shared memory that all steps in one launch need."""
    weight = (step.gates * size + 1) * size * x.dtype.itemsize
    return int(2 * columns * ROWS * compute_dtype(x).itemsize + weight)


def _parameters(dhidden: Array, held: Array, weight: bool, bias: bool) -> tuple[Array | None, Array | None]:
    """The gradients of the weight and of the bias: sums over all steps and rows."""
    if not (weight or bias):
        return None, None
    if not bias:
        return gemm(dhidden, held, transpose_a=True), None
    dweight, dbias = gemm(dhidden, held, transpose_a=True, bias_gradient="a")
    return dweight, dbias


def _both(parts: tuple[Array | None, ...]) -> tuple[Array | None, Array | None]:
    """Both parts of a carry, None for those that there are not."""
    h, c, *_ = (*parts, None, None)
    return h, c


def _shape(batch: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The grid and the block: threads of units by threads of rows."""
    across = min(THREADS, 1 << max(size - 1, 0).bit_length())
    down, width = THREADS // across, -(-size // across)
    return (width, min(-(-batch // down), max(1, MOST_BLOCKS // max(width, 1)))), (across, down)


def _kernel(name: str, x: Array, step: Step) -> Kernel:
    return get_kernel("recurrent", name, x.dtype, activation=step.code, constants=(("GATES", step.gates),))


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: every kind and dtype, and activations that keep x and y."""
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for gates, code in ((1, activations["tanh"]), (1, activations["gelu"]), (GRU, IDENTITY), (LSTM, IDENTITY)):
            yield program("recurrent", dtype, activation=code, constants=(("GATES", gates),))
