"""Softmax cross entropy with integer labels: one launch forward, two with its mean or sum, and one backward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from culux.backends import Array, backend_of
from culux.kernels.launcher import Kernel, compute_dtype, contiguous, empty, get_kernel
from culux.kernels.rows import column_launch, row_launch
from culux.kernels.source import ActivationCode, Program, program

__all__ = ["Saved", "backward", "forward", "programs"]


class Saved(NamedTuple):
    """What the backward reads: of each row the largest logit and ``log(sum(exp(x - largest)))``; the divisor of dy."""

    logits: Array
    labels: Array
    largest: Array | None
    log_sum: Array | None
    divisor: Array | None


def forward(
    logits: Array,
    labels: Array,
    *,
    smoothing: float,
    ignore_index: int | None,
    reduction: Literal["none", "mean", "sum"],
    keep: bool,
) -> tuple[Array, Saved]:
    """The losses, or their mean over what is not ignored or their sum; see `culux.nn.softmax_cross_entropy`.

    Args:
        logits: (N, C, *spatial); a copy in row-major order is taken where it is not so.
        labels: (N, *spatial), integers; int32 and int64 are read as they are, others converted. A label that is
            neither a class nor ignored gives the loss NaN.
        smoothing: of the targets.
        ignore_index: the label of what does not count.
        reduction: what becomes of the losses.
        keep: whether the backward will want what it reads.

    Returns:
        y of the dtype of `logits`, (N, *spatial) or (); and what the backward reads, less the statistics where it is
        not wanted.
    """
    logits, labels = contiguous(logits), contiguous(_labels(labels))
    kind, single = compute_dtype(logits), reduction != "none"
    largest = empty(logits, labels.shape, kind) if keep else None
    log_sum = empty(logits, labels.shape, kind) if keep else None
    name, grid, block, layout = _layout(logits, labels.size)
    losses = None if single else empty(logits, labels.shape)
    partials = empty(logits, (2, grid[0]), kind) if single else None
    _kernel(f"cross_entropy_{name}", logits, labels)(
        grid, block, logits, labels, losses, largest, log_sum, partials, *layout, smoothing, *_ignored(ignore_index)
    )
    if losses is not None:
        return losses, Saved(logits, labels, largest, log_sum, None)
    y, divisor = empty(logits, ()), empty(logits, (), kind)
    _kernel("cross_entropy_reduce", logits, labels)((1,), (1024,), partials, y, divisor, grid[0], reduction == "mean")
    return y, Saved(logits, labels, largest, log_sum, divisor)


def backward(dy: Array, saved: Saved, *, smoothing: float, ignore_index: int | None) -> Array:
    """``dlogits = (softmax(logits) - target) * dy / count``, 0 where the label is ignored; dy is of the shape of y."""
    logits, labels, largest, log_sum, divisor = saved
    dx = empty(logits)
    name, grid, block, layout = _layout(logits, labels.size)
    _kernel(f"cross_entropy_backward_{name}", logits, labels)(
        grid, block, contiguous(dy), divisor, logits, labels, largest, log_sum, dx, *layout, smoothing,
        *_ignored(ignore_index),
    )  # fmt: skip
    return dx


def _layout(logits: Array, rows: int) -> tuple[str, tuple[int], tuple[int, ...], tuple[int, int, int]]:
    """Whether classes are in rows or columns, the grid, the block, and what kernels are told of the layout."""
    classes, inner = logits.shape[1], math.prod(logits.shape[2:])
    if inner > 1:
        return "columns", *column_launch(rows, classes), (rows, classes, inner)
    launch = row_launch(logits, rows, classes)
    return "rows", (launch.blocks,), (launch.threads,), (rows, classes, launch.group)


def _labels(labels: Array) -> Array:
    return labels if labels.dtype in (np.int32, np.int64) else backend_of(labels).astype(labels, np.int64)


def _ignored(ignore_index: int | None) -> tuple[int, bool]:
    return (0, False) if ignore_index is None else (ignore_index, True)


def _kernel(name: str, logits: Array, labels: Array) -> Kernel:
    return get_kernel("cross_entropy", name, logits.dtype, constants=(("LABEL_BYTES", labels.dtype.itemsize),))


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: every dtype of the logits, and both of the labels."""
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for label_bytes in (4, 8):
            yield program("cross_entropy", dtype, constants=(("LABEL_BYTES", label_bytes),))
