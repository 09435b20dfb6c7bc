"""LayerNorm and RMSNorm with their activation: one launch forward, at most two backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from culux.backends import Array
from culux.kernels.launcher import MULTIPROCESSORS, Kernel, compute_dtype, contiguous, empty, get_kernel
from culux.kernels.rows import row_launch
from culux.kernels.source import IDENTITY, ActivationCode, Program, program

__all__ = ["backward", "forward", "programs"]

_HELD_BYTES = 64  # of a row in a thread's registers in the backward; as the source has it
_MOST_IN_GROUP = {True: 384, False: 512}  # threads of a block of the backward, centred or not; as the source has it


def forward(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    *,
    size: int,
    epsilon: float,
    centred: bool,
    code: ActivationCode,
    statistics: bool,
) -> tuple[Array, Array | None, Array | None]:
    """``y = activation((x - mean) / sqrt(var + epsilon) * scale + bias)`` over rows, and what the backward reads.

    Args:
        x: any shape of rows of `size` elements; a copy in row-major order is taken where it is not so.
        scale: `size` elements of the dtype of `x` or float32, or None for 1.
        bias: the same, of the dtype of `scale`, or None for 0.
        size: the length of a row.
        epsilon: added to the variance.
        centred: LayerNorm; else RMSNorm, whose mean is 0 and whose variance is that about 0.
        code: the activation.
        statistics: whether the backward will want them.

    Returns:
        y of the shape of `x`; the mean (None for RMSNorm) and ``1 / sqrt(var + epsilon)`` of each row, in the dtype
        that is computed in, or None and None.
    """
    x, scale, bias = contiguous(x), _contiguous(scale), _contiguous(bias)
    y, rows = empty(x), x.size // max(size, 1)
    mean = empty(x, (rows,), compute_dtype(x)) if statistics and centred else None
    inverse = empty(x, (rows,), compute_dtype(x)) if statistics else None
    if not x.size:
        return y, mean, inverse
    launch = row_launch(x, rows, size)
    kept = (launch.kept,) if launch.kind == "block" else ()
    _kernel(f"rownorm_forward_{launch.kind}", x, scale, bias, centred, code)(
        (launch.blocks,), (launch.threads,), x, scale, bias, y, mean, inverse, rows, size, *kept, epsilon,
        shared=launch.shared,
    )  # fmt: skip
    return y, mean, inverse


def backward(
    dy: Array,
    x: Array,
    scale: Array | None,
    bias: Array | None,
    mean: Array | None,
    inverse: Array,
    *,
    size: int,
    code: ActivationCode,
    needs: tuple[bool, ...],
) -> tuple[Array | None, Array | None, Array | None]:
    """dx, dscale and dbias, as far as they are wanted; the first of two launches is enough where only dx is.

    Args:
        dy: of the shape and dtype of `x`.
        x: as `forward` had it, with `scale`, `bias`, `size` and `code`.
        scale: of any shape, which dscale gets.
        bias: of any shape, which dbias gets.
        mean: from `forward`; None for RMSNorm.
        inverse: from `forward`.
        size: the length of a row.
        code: the activation.
        needs: of x, scale and bias, which one's cotangent is wanted.
    """
    x, dy, scale, bias = contiguous(x), contiguous(dy), _contiguous(scale), _contiguous(bias)
    centred, rows, kind = mean is not None, x.size // max(size, 1), compute_dtype(x)
    dx = empty(x) if needs[0] else None
    dscale = empty(scale) if needs[1] and scale is not None else None
    dbias = empty(bias) if needs[2] and bias is not None else None
    group, threads, blocks = _groups(rows, size, _HELD_BYTES // kind.itemsize, _MOST_IN_GROUP[centred])
    scale_partials = None if dscale is None else empty(x, (blocks, size), kind)
    bias_partials = None if dbias is None else empty(x, (blocks, size), kind)
    arrays = (dy, x, scale, bias, mean, inverse, dx, scale_partials, bias_partials, rows, size)
    if group:
        _kernel("rownorm_backward", x, scale, bias, centred, code)((blocks,), (threads,), *arrays, group)
    else:
        _kernel("rownorm_backward_long", x, scale, bias, centred, code)((blocks,), (threads,), *arrays)
    if dscale is not None or dbias is not None:
        _kernel("rownorm_parameters", x, scale, bias, centred, code)(
            (-(-size // 32), 2), (32, 32), scale_partials, bias_partials, dscale, dbias, blocks, size
        )
    return dx, dscale, dbias


def _groups(rows: int, size: int, held: int, most: int) -> tuple[int, int, int]:
    """Threads of a row (0: it does not fit into their registers, `held` each), threads of a block, and blocks."""
    if size <= 32 * held:
        group, threads = 32, 256
    elif size <= most * held:
        group = threads = max(128, -(-size // (32 * held)) * 32)
    else:
        group, threads = 0, most
    # Blocks stay for many rows, so that there are few partial sums: 512 threads for each multiprocessor.
    turns = -(-rows // (threads // 32)) if group == 32 else rows
    return group, threads, min(turns, MULTIPROCESSORS * (512 // threads))


def _contiguous(array: Array | None) -> Array | None:
    return None if array is None else contiguous(array)


def _kernel(
    name: str, x: Array, scale: Array | None, bias: Array | None, centred: bool, code: ActivationCode
) -> Kernel:
    given = scale if scale is not None else bias
    return get_kernel(
        "rownorm", name, x.dtype, parameters=None if given is None or given.dtype == x.dtype else given.dtype,
        activation=code, constants=(("CENTRED", int(centred)),),
    )  # fmt: skip


def programs(activations: Mapping[str, ActivationCode]) -> Iterator[Program]:
    """What the compile gate looks at: both norms, every dtype, and activations that keep x, y and nothing."""
    for centred in (1, 0):
        constants = (("CENTRED", centred),)
        for code in (IDENTITY, activations["tanh"], activations["gelu"]):
            yield program("rownorm", "float32", activation=code, constants=constants)
        for dtype, parameters in (("float64", ""), ("float16", ""), ("bfloat16", ""), ("float16", "float32")):
            code = activations["gelu"]
            yield program("rownorm", dtype, parameters=parameters, activation=code, constants=constants)
