"""Convolutions by cuDNN, where NVIDIA's frontend and library are installed: plans that are made once a problem.

What cuDNN does not compute is for culux's own kernels. No plan adds by atomics: two runs give the same bits.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np

from culux.backends import Array, Backend, backend_of, current_matmul_precision
from culux.backends.counting import note_launch
from culux.errors import KernelError
from culux.kernels.cudnn_library import (
    ALIGNMENT,
    TYPES,
    WEIGHT,
    Problem,
    UnusableError,
    X,
    Y,
    build_graph,
    import_frontend,
    is_wanted,
)
from culux.kernels.launcher import contiguous, empty
from culux.kernels.plans import recall

__all__ = ["CuDNN", "Geometry", "Plan", "Usable", "cudnn_for", "find"]

PLANS = 1024  # problems that are kept
INSTALL = 'pip install "culux[cudnn12]" or "culux[cudnn13]", as the CUDA version of CuPy is'

_FLOAT32 = np.dtype(np.float32)
_BYTES = np.dtype(np.uint8)
# Of an operation: the arrays that it reads, and the one that it writes.
_ARRAYS = {"correlate": (X, WEIGHT, Y), "spread": (Y, WEIGHT, X), "weigh": (X, Y, WEIGHT)}


class Geometry(TypedDict):
    """Where the taps of a kernel lie on an input: one to three numbers each, but for the groups.

    Attributes:
        size: the lengths of the input.
        kernel: the numbers of taps.
        stride: the steps between outputs.
        dilation: the steps between taps.
        before: how far the first tap of the first output lies before the input.
        out: the lengths of the output.
        groups: how many groups of channels there are.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    out: tuple[int, ...]
    groups: int


def find(operation: str, one: Array, other: Array, **geometry: Unpack[Geometry]) -> Callable[[], Array] | None:
    """What computes an operation by cuDNN; None where cuDNN is not there or does not compute it.

    - ``"correlate"``, of x and the weight:
      ``y[n, o, i] = sum over c, t of weight[o, c, t] * x[n, c, i * stride + t * dilation - before]``;
    - ``"spread"``, of dy and the weight: its transpose in x, dx;
    - ``"weigh"``, of x and dy: its transpose in the weight, dweight.

    x is (N, in, *size), the weight (out, in / groups, *kernel), y (N, out, *out), each like its gradient.
    float16 and bfloat16 accumulate in float32. float32 is computed in full precision unless
    `matmul_precision("tf32")` is open.

    Args:
        operation: ``"correlate"``, ``"spread"`` or ``"weigh"``.
        one: its first array; copied at every call where it is not row-major without gaps, or does not lie at a
            multiple of 16 bytes.
        other: its second array; the same.
        geometry: where the taps lie.

    Returns:
        A function without arguments that enqueues the operation on the current stream, and returns a new array. A
        `KernelError` comes from it where cuDNN fails.

    Raises:
        KernelError: where a plan would have to be made while the stream is being captured.
    """
    layer = cudnn_for(backend_of(one, other)).layer
    if layer is None:
        return None
    tf32 = one.dtype == _FLOAT32 and current_matmul_precision() == "tf32"
    problem = _problem(operation, one.data.device_id, one.dtype, one.shape, other.shape, tf32, **geometry)
    if problem is None or other.dtype != one.dtype:
        return None
    plan = layer.plan(problem)
    return None if plan is None else functools.partial(layer.run, plan, one, other)


@functools.lru_cache(maxsize=4096)
def _problem(
    operation: str, device: int, dtype: Any, one: tuple[int, ...], other: tuple[int, ...], tf32: bool, *,
    size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...],
    before: tuple[int, ...], out: tuple[int, ...], groups: int,
) -> Problem | None:  # fmt: skip
    """The problem in cuDNN's terms; None where it has none."""
    if operation == "correlate":
        x, weight, y = one, other, (one[0], other[0], *out)
    elif operation == "spread":
        x, weight, y = (one[0], other[1] * groups, *size), other, one
    else:
        x, weight, y = one, (other[1], one[1] // groups, *kernel), other
    # cuDNN derives the output's lengths from all else, the padding behind included: here it is what taps reach.
    behind = []
    for n, k, s, d, b, length in zip(size, kernel, stride, dilation, before, out, strict=True):
        extent = (k - 1) * d + 1
        behind.append(max(0, (length - 1) * s + extent - b - n))
        if b < 0 or (n + b + behind[-1] - extent) // s + 1 != length:
            return None
    if dtype.name not in TYPES or 0 in (*x, *weight, *y):
        return None
    return Problem(device, operation, dtype, x, weight, y, stride, dilation, before, tuple(behind), tf32)


class Plan(NamedTuple):
    """All that a call needs but its arrays; made by `CuDNN.plan`.

    Attributes:
        problem: what it is for.
        graph: the frontend's graph, with the plan.
        workspace: the bytes that a call needs beside its arrays.
    """

    problem: Problem
    graph: Any
    workspace: int


class CuDNN:
    """cuDNN for the arrays of a backend: a handle for each device, and plans.

    Neither a handle nor, in all of cuDNN's engines, a plan takes calls of two threads at once: they wait here.

    Args:
        backend: the CuPy backend.
        frontend: the module of NVIDIA's frontend.

    Attributes:
        version: cuDNN's and the frontend's.

    Raises:
        UnusableError: where cuDNN itself is not there, or does not work here.
    """

    def __init__(self, backend: Backend, frontend: Any) -> None:
        self._cuda = backend.xp.cuda
        self._frontend = frontend
        self._errors = (RuntimeError, frontend.cudnnGraphNotSupportedError)
        self._lock = threading.RLock()
        self._handles: dict[int, Any] = {}
        self._plans: OrderedDict[Problem, Plan | None] = OrderedDict()
        self._captured: dict[Problem, Plan] = {}
        self._complained = False
        try:
            self._handle(self._cuda.Device().id)
            self.version = f"{frontend.backend_version_string()} (nvidia-cudnn-frontend {frontend.__version__})"
        except RuntimeError as error:
            raise UnusableError(f"cuDNN does not work here: {_first_line(error)}") from error

    def plan(self, problem: Problem) -> Plan | None:
        """The plan for a problem, made at the first call; None where cuDNN has none, which is said once.

        Raises:
            KernelError: where it would have to be made while the current stream is captured.
        """
        with self._lock:
            return recall(self._plans, problem, self._make, PLANS)

    def run(self, plan: Plan, one: Array, other: Array) -> Array:
        """Enqueue an operation on the current stream of the arrays' device.

        Args:
            plan: from `plan`.
            one: the first array.
            other: the second array.

        Returns:
            The result, a new array.

        Raises:
            KernelError: where cuDNN fails.
        """
        problem = plan.problem
        shapes = {X: problem.x, WEIGHT: problem.weight, Y: problem.y}
        names = _ARRAYS[problem.operation]
        one, other, out = _aligned(one), _aligned(other), empty(one, shapes[names[2]])
        # Of the current pool, as every temporary: a graph's calls have theirs in the graph's.
        workspace = empty(one, (plan.workspace,), _BYTES) if plan.workspace else None
        note_launch(f"cudnn {problem.operation}", (one, other, out))
        addresses = {name: array.data.ptr for name, array in zip(names, (one, other, out), strict=True)}
        scratch = 0 if workspace is None else workspace.data.ptr
        with self._lock, self._cuda.Device(problem.device):
            handle, stream = self._handle(problem.device), self._cuda.get_current_stream()
            if stream.is_capturing():  # a CUDA graph needs the plan's kernels as long as it lives
                self._captured[problem] = plan
            try:
                self._frontend.set_stream(handle=handle, stream=stream.ptr)
                plan.graph.execute(addresses, scratch, handle=handle)
            except self._errors as error:
                raise KernelError(f"cuDNN {self.version} failed in {problem}: {_first_line(error)}") from error
        return out

    def _make(self, problem: Problem) -> Plan | None:
        _refuse_capture(self._cuda, problem.device, problem)
        with self._cuda.Device(problem.device):
            try:
                graph = build_graph(self._frontend, self._handle(problem.device), problem)
                return Plan(problem, graph, int(graph.get_workspace_size()))
            except self._errors as error:
                if not self._complained:
                    self._complained = True
                    warnings.warn(
                        f"cuDNN {self.version} has no plan for {problem}, and culux's own kernels compute it: "
                        f"{_first_line(error)} (said for the first such problem only)",
                        stacklevel=2,
                    )
                return None

    def _handle(self, device: int) -> Any:
        """The handle of a device, which is current; it lives as long as the process, like the driver."""
        if device not in self._handles:
            self._handles[device] = self._frontend.create_handle()
        return self._handles[device]


class Usable(NamedTuple):
    """cuDNN for a backend.

    Attributes:
        layer: what computes; None where there is nothing.
        reason: why there is nothing, and what to do.
    """

    layer: CuDNN | None
    reason: str


_lock = threading.Lock()
_by_backend: dict[Backend, Usable] = {}


def cudnn_for(backend: Backend) -> Usable:
    """What computes convolutions of a backend's arrays; asked once a process, a failure is a warning.

    Raises:
        KernelError: where CULUX_CUDNN is neither 0 nor 1, or the first call comes while the stream is captured.
    """
    if backend not in _by_backend:
        with _lock:
            if backend not in _by_backend:
                _by_backend[backend] = _load_for(backend)
    return _by_backend[backend]


def _load_for(backend: Backend) -> Usable:
    if backend.name != "cupy" or not backend.device_count():
        return Usable(None, "cuDNN is for CuPy's arrays on a CUDA device")
    if not is_wanted():
        return Usable(None, "cuDNN is turned off by CULUX_CUDNN=0")
    try:
        frontend = import_frontend()
        if frontend is None:
            return Usable(None, f"cuDNN is not installed; {INSTALL}")
        cuda = backend.xp.cuda
        _refuse_capture(cuda, cuda.Device().id, "the first one")
        return Usable(CuDNN(backend, frontend), "")
    except UnusableError as error:
        reason = f"{error}; {INSTALL}, or set CULUX_CUDNN=0"
        warnings.warn(f"culux's own kernels compute convolutions: {reason}", stacklevel=2)
        return Usable(None, reason)


def _refuse_capture(cuda: Any, device: int, what: object) -> None:
    if cuda.get_current_stream(device).is_capturing():
        raise KernelError(
            f"expected a convolution that cuDNN has planned before this stream's capture, got {what}; run the step "
            "once, then capture it"
        )


def _aligned(array: Array) -> Array:
    """The array in row-major order without gaps and with the alignment that cuDNN is promised; a copy if need be."""
    array = contiguous(array)
    if array.data.ptr % ALIGNMENT:
        note_launch("copy", (array,))
        with array.device:
            return array.copy()
    return array


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
