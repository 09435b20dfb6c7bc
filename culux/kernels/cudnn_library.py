"""cuDNN through NVIDIA's ``nvidia-cudnn-frontend``: whether it is there, and the graphs of convolutions.

The frontend is imported as ``cudnn``. It imports without the library itself: only a handle shows that there is one.
Names, and the order of the calls that plan a graph, are those of the frontend from 1.23 on.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any, NamedTuple

import numpy as np

from culux.errors import KernelError

__all__ = ["Problem", "UnusableError", "build_graph", "import_frontend", "is_wanted"]

X, WEIGHT, Y = 1, 2, 3  # the arrays of a graph, by what the frontend calls a uid
ALIGNMENT = 16  # bytes: the frontend promises it of every address, and has no way to promise less
WORKSPACE = 2**30  # bytes: a plan that needs more is passed over

_OLDEST = (1, 23)
# Of a dtype: what the arrays hold and what sums are made in.
TYPES = {
    "float32": ("FLOAT", "FLOAT"), "float64": ("DOUBLE", "DOUBLE"),
    "float16": ("HALF", "FLOAT"), "bfloat16": ("BFLOAT16", "FLOAT"),
}  # fmt: skip
# Plans that round the input, add by atomics, or keep parts of a sum in 16 bits.
_UNWANTED = ("DOWN_CONVERT_INPUTS", "NONDETERMINISTIC", "REDUCED_PRECISION_REDUCTION")


class UnusableError(Exception):
    """Why what is installed of cuDNN cannot be used."""


class Problem(NamedTuple):
    """What a plan is made for: an operation on arrays that are row-major without gaps.

    Attributes:
        device: the index of the CUDA device.
        operation: ``"correlate"``, ``"spread"`` or ``"weigh"``.
        dtype: of all arrays.
        x: (N, in, *size).
        weight: (out, in / groups, *kernel).
        y: (N, out, *lengths).
        stride: the steps between outputs.
        dilation: the steps between taps.
        before: the padding before each axis.
        behind: the padding behind each axis.
        tf32: whether float32 may be rounded to TF32.
    """

    device: int
    operation: str
    dtype: np.dtype[Any]
    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    behind: tuple[int, ...]
    tf32: bool

    def __str__(self) -> str:
        kind = f"{self.dtype.name} as TF32" if self.tf32 else self.dtype.name
        return (
            f"{self.operation} with x {self.x}, weight {self.weight} and y {self.y} of {kind}, stride {self.stride}, "
            f"dilation {self.dilation}, padding {self.before} before and {self.behind} behind, on cuda:{self.device}"
        )


def is_wanted() -> bool:
    """Whether cuDNN is to be taken: what the environment variable ``CULUX_CUDNN`` says, 1 by default.

    Raises:
        KernelError: where it is neither 0 nor 1.
    """
    value = os.environ.get("CULUX_CUDNN") or "1"
    if value not in ("0", "1"):
        raise KernelError(
            "expected the environment variable CULUX_CUDNN to be 1 (take cuDNN where it is installed, the default) or "
            f"0 (do without), got {value!r}"
        )
    return value == "1"


def import_frontend() -> Any:
    """The frontend's module; None where it is not installed.

    Raises:
        UnusableError: where it does not import, or is too old.
    """
    if importlib.util.find_spec("cudnn") is None:
        return None
    try:
        frontend = importlib.import_module("cudnn")
    except Exception as error:  # its binary part, or one of NVIDIA's libraries, fails in many ways
        raise UnusableError(f"nvidia-cudnn-frontend does not import: {error}") from error
    version = str(getattr(frontend, "__version__", "0"))
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        raise UnusableError(f"expected nvidia-cudnn-frontend 1.23 or newer, got {version}")
    return frontend


def build_graph(cudnn: Any, handle: Any, problem: Problem) -> Any:
    """A graph of one convolution with its plan, to be executed with the addresses of `X`, `WEIGHT` and `Y`.

    Args:
        cudnn: the frontend.
        handle: cuDNN's handle of the problem's device, which is current.
        problem: what is computed.

    Raises:
        RuntimeError: or the frontend's ``cudnnGraphNotSupportedError``, where cuDNN has no plan.
    """
    dtype, compute = (getattr(cudnn.data_type, name) for name in TYPES[problem.dtype.name])
    graph = cudnn.pygraph(
        name=problem.operation,
        io_data_type=dtype,
        intermediate_data_type=compute,
        compute_data_type=compute,
        handle=handle,
    )
    result, uid, shape = _convolution(graph, dtype, problem)
    dims, strides = _layout(shape)
    result.set_output(True).set_data_type(dtype).set_uid(uid).set_dim(dims).set_stride(strides)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    # Marks plans that are there: before they are, it is accepted and forgotten.
    graph.deselect_numeric_notes([getattr(cudnn.numerical_note, name) for name in _notes(problem)])
    graph.deselect_workspace_greater_than(WORKSPACE)
    graph.check_support()
    graph.build_plans()
    return graph


def _convolution(graph: Any, dtype: Any, problem: Problem) -> tuple[Any, int, tuple[int, ...]]:
    """The operation, added to a graph: its result, and the result's name and shape."""

    def tensor(uid: int, shape: tuple[int, ...]) -> Any:
        dims, strides = _layout(shape)
        return graph.tensor(dim=dims, stride=strides, data_type=dtype, uid=uid, name=f"tensor {uid}")

    single = len(problem.stride) == 1  # computed as two axes, of which the first has length 1
    places = {
        "pre_padding": [0] * single + [*problem.before],
        "post_padding": [0] * single + [*problem.behind],
        "stride": [1] * single + [*problem.stride],
        "dilation": [1] * single + [*problem.dilation],
    }
    if problem.operation == "correlate":
        image, weight = tensor(X, problem.x), tensor(WEIGHT, problem.weight)
        return graph.conv_fprop(image=image, weight=weight, **places), Y, problem.y
    loss = tensor(Y, problem.y)
    if problem.operation == "spread":
        return graph.conv_dgrad(loss=loss, filter=tensor(WEIGHT, problem.weight), **places), X, problem.x
    return graph.conv_wgrad(image=tensor(X, problem.x), loss=loss, **places), WEIGHT, problem.weight


def _layout(shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """A shape with at least two spatial axes, and its row-major strides in elements."""
    dims = [*shape[:2], *[1] * (len(shape) == 3), *shape[2:]]
    strides = [1]
    for length in dims[:0:-1]:
        strides.insert(0, strides[0] * length)
    return dims, strides


def _notes(problem: Problem) -> tuple[str, ...]:
    """The numerical notes of plans that are not taken; tensor cores compute float32 as TF32."""
    exact = problem.dtype == np.float32 and not problem.tf32
    return (*_UNWANTED, "TENSOR_CORE") if exact else _UNWANTED
