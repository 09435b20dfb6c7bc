"""`gemm`: the matrix product of culux's GPU code, with what can be done in the same launch."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from culux.backends import Array, Backend, backend_of, current_matmul_precision
from culux.backends.counting import note_launch
from culux.errors import DTypeError, KernelError, ShapeError, describe
from culux.kernels.cublaslt import ALIGNMENT, CuBLASLt, Plan, Problem, cublaslt_for
from culux.kernels.source import supports

__all__ = ["gemm"]

_GRADIENTS = (None, "a", "b")
_EPILOGUES = {
    (False, None): "", (False, "relu"): "relu", (False, "gelu"): "gelu",
    (True, None): "bias", (True, "relu"): "bias+relu", (True, "gelu"): "bias+gelu",
}  # fmt: skip
_FLOAT32 = np.dtype(np.float32)
_supports = functools.cache(supports)


class _Product(NamedTuple):
    """What is asked for, checked."""

    backend: Backend
    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool
    activation: str | None
    gradient: str | None
    epilogue: str


def gemm(
    a: Array,
    b: Array,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Array | None = None,
    activation: Literal["relu", "gelu"] | None = None,
    bias_gradient: Literal["a", "b"] | None = None,
    out: Array | None = None,
) -> Any:
    """``activation(op(a) @ op(b) + bias)``, where op(x) is x.T if it is asked for, else x.

    A Dense layer is ``gemm(x, weight, transpose_b=True, bias=bias, activation="relu")``, and its backward pass
    ``gemm(dz, weight)`` and ``gemm(dz, x, transpose_a=True, bias_gradient="a")``. CuPy arrays go to cuBLASLt where
    it is installed, with all of this in one call where it can; else, and for other backends, this is the backend's
    matmul and array functions. float16 and bfloat16 accumulate in float32. float32 is computed in full precision
    unless `matmul_precision("tf32")` is open.

    Args:
        a: (m, k), or (k, m) if it is to be transposed; float32, float64, float16 or bfloat16. All arrays are of one
            dtype, on one device, and row-major without gaps.
        b: (k, n), or (n, k) if it is to be transposed.
        transpose_a: whether a is transposed.
        transpose_b: whether b is transposed.
        bias: (n,), added to every row.
        activation: ``"relu"``, ``"gelu"`` (the tanh form), or None.
        bias_gradient: ``"a"`` or ``"b"``: sum op(a) or op(b) over the axis of length k too; goes with neither a bias
            nor an activation.
        out: (m, n), takes the product; may not overlap the other arrays.

    Returns:
        (m, n); with `bias_gradient` a tuple of it and of the sum, (m,) for ``"a"`` and (n,) for ``"b"``.

    Raises:
        ShapeError: for shapes that do not fit.
        DTypeError: for another dtype, or several.
        DeviceError: for arrays on several devices.
        KernelError: for arrays with gaps, options that exclude each other, an `out` that overlaps, what cuBLASLt
            refuses, and a product that is new to it while the stream is being captured.
    """
    product = _check(a, b, transpose_a, transpose_b, bias, activation, bias_gradient, out)
    if product.backend.device_count() > 1:  # array functions compute on the current device
        with a.device:
            return _allocated(product, a, b, bias, out)
    return _allocated(product, a, b, bias, out)


def _allocated(product: _Product, a: Array, b: Array, bias: Array | None, out: Array | None) -> Any:
    """The product, and its gradient where one is asked for, in new memory where there is none."""
    empty = product.backend.empty
    c = empty(a, (product.m, product.n), a.dtype) if out is None else out
    vector = bias
    if product.gradient is not None:
        vector = empty(a, (product.m if product.gradient == "a" else product.n,), a.dtype)
    _compute(product, a, b, c, vector)
    return c if product.gradient is None else (c, vector)


def _compute(product: _Product, a: Array, b: Array, c: Array, vector: Array | None) -> None:
    """Write the product to `c`, and its gradient, where one is asked for, to `vector`, which else is the bias."""
    if not (product.m and product.n and product.k):
        _finish(product, a, b, c, vector, product.backend.xp.zeros(c.shape, c.dtype))
        return
    library = cublaslt_for(product.backend)
    if library is None or not _multiply_by_library(library, product, a, b, c, vector):
        note_launch("gemm", (a, b, c))
        left, right = _factors(product, a, b)
        _finish(product, a, b, c, vector, left @ right)


def _multiply_by_library(
    library: CuBLASLt, product: _Product, a: Array, b: Array, c: Array, vector: Array | None
) -> bool:
    """Write the product and what is asked with it; False where the library has no algorithm for the product."""
    epilogue = product.epilogue
    plan = _plan(library, product, epilogue, a, b, c, vector)
    if plan is None and epilogue:
        epilogue = ""
        plan = _plan(library, product, epilogue, a, b, c, None)
    if plan is None:
        return False
    if plan.has_vector:
        note_launch(f"gemm+{epilogue}", (a, b, c, vector))
        library.run(plan, a, b, c, vector)
    else:
        note_launch(f"gemm+{epilogue}" if epilogue else "gemm", (a, b, c))
        library.run(plan, a, b, c)
    if epilogue != product.epilogue:
        _finish(product, a, b, c, vector, c)
    return True


def _plan(
    library: CuBLASLt, product: _Product, epilogue: str, a: Array, b: Array, c: Array, vector: Array | None
) -> Plan | None:
    if product.gradient is not None and epilogue and product.k == 1:
        return None  # the gradient epilogues take K=1 from cuBLASLt 12.3.4 on
    addresses = ALIGNMENT | a.data.ptr | b.data.ptr | c.data.ptr
    if vector is not None:
        addresses |= vector.data.ptr
    tf32 = current_matmul_precision() == "tf32" and a.dtype == _FLOAT32
    return library.plan(
        Problem(
            a.data.device_id, a.dtype, product.m, product.n, product.k, product.transpose_a, product.transpose_b,
            epilogue, tf32, addresses & -addresses,
        )
    )  # fmt: skip


def _widen(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def _factors(product: _Product, a: Array, b: Array) -> tuple[Array, Array]:
    """op(a) and op(b) in the dtype that sums are made in."""
    left, right = _widen(a), _widen(b)
    return left.T if product.transpose_a else left, right.T if product.transpose_b else right


def _finish(product: _Product, a: Array, b: Array, c: Array, vector: Array | None, z: Array) -> None:
    """Write what is asked for with the product `z` by array functions, and the result to `c`."""
    if product.gradient is not None and vector is not None:
        left, right = _factors(product, a, b)
        vector[...] = left.sum(axis=1) if product.gradient == "a" else right.sum(axis=0)
    elif product.epilogue:
        xp, z = product.backend.xp, _widen(z)
        if vector is not None:
            z = z + _widen(vector)
        if product.activation == "relu":
            z = xp.maximum(z, 0)
        elif product.activation == "gelu":
            z = 0.5 * z * (1 + xp.tanh(math.sqrt(2 / math.pi) * z * (1 + 0.044715 * z * z)))
    if z is not c:
        c[...] = z


def _check(
    a: Array, b: Array, transpose_a: bool, transpose_b: bool, bias: Array | None, activation: str | None,
    gradient: str | None, out: Array | None,
) -> _Product:  # fmt: skip
    """What is asked for, or the error that says what is wrong with it."""
    if (False, activation) not in _EPILOGUES or gradient not in _GRADIENTS:
        raise KernelError(
            "gemm: expected activation 'relu', 'gelu' or None and bias_gradient 'a', 'b' or None, "
            f"got {activation!r} and {gradient!r}"
        )
    if gradient is not None and (bias is not None or activation is not None):
        raise KernelError("gemm: expected bias_gradient, or bias and activation, got both: the launch has one of them")
    try:
        (m, k), (inner, n) = a.shape[:: -1 if transpose_a else 1], b.shape[:: -1 if transpose_b else 1]
    except (AttributeError, TypeError, ValueError) as error:
        raise ShapeError(f"gemm: expected two arrays of two axes, got {describe(a)} and {describe(b)}") from error
    backend = backend_of(a, b, bias, out)
    dtype = a.dtype
    if k != inner:
        _explain_shapes(a, b, transpose_a, transpose_b)
    if not _supports(dtype):
        raise DTypeError(f"gemm: expected a of float32, float64, float16 or bfloat16, got {describe(a)}")
    _check_array("a", a, dtype, a.shape)
    _check_array("b", b, dtype, b.shape)
    if bias is not None:
        _check_array("bias", bias, dtype, (n,))
    if out is not None:
        _check_array("out", out, dtype, (m, n))
        if backend.kind == "cuda":
            _check_overlap(out, a=a, b=b, bias=bias)
    epilogue = f"gradient_{gradient}" if gradient else _EPILOGUES[bias is not None, activation]
    return _Product(backend, m, n, k, bool(transpose_a), bool(transpose_b), activation, gradient, epilogue)


def _check_array(name: str, array: Array, dtype: Any, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ShapeError(f"gemm: expected {name} of shape {shape}, got {describe(array)}")
    if array.dtype != dtype:
        raise DTypeError(f"gemm: expected {name} of a's dtype {dtype}, got {describe(array)}")
    if not array.flags.c_contiguous:
        raise KernelError(
            f"gemm: expected {name} in row-major order without gaps, got {describe(array)} with strides "
            f"{array.strides}; give what is transposed as it lies in memory, with transpose_a or transpose_b, and of "
            "other arrays culux.kernels.contiguous(array)"
        )


def _check_overlap(out: Array, **others: Array | None) -> None:
    start = out.data.ptr
    for name, array in others.items():
        if array is not None and start < array.data.ptr + array.nbytes and array.data.ptr < start + out.nbytes:
            raise KernelError(f"gemm: expected an out of its own memory, got one that overlaps {name}")


def _explain_shapes(a: Array, b: Array, transpose_a: bool, transpose_b: bool) -> NoReturn:
    left, right = ("a.T" if transpose_a else "a"), ("b.T" if transpose_b else "b")
    raise ShapeError(
        f"gemm: expected {left} @ {right} with one length to sum over, got {a.shape[not transpose_a]} and "
        f"{b.shape[bool(transpose_b)]} (a has shape {a.shape}, b has shape {b.shape})"
    )
