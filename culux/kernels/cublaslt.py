"""Matrix products by cuBLASLt: plans that are made once a problem, and calls that a stream capture takes.

CuPy refuses its own cuBLAS calls while a stream is captured. These go to the library directly, with a workspace of
their own.

cuBLASLt's matrices are column-major: there, a row-major array is its own transpose. The row-major product
``c = op(a) @ op(b)`` is therefore computed as ``c.T = op(b).T @ op(a).T``, with b as the library's A and a as its B.
The library's M is the number of columns of c, so that its bias, one value for each of M rows, is a bias of columns.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import OrderedDict
from ctypes import byref, c_double, c_float, c_int, c_int32, c_uint32, c_uint64, c_void_p
from typing import Any, NamedTuple

import numpy as np

from culux.backends import Array, Backend
from culux.errors import KernelError
from culux.kernels.cublaslt_library import INVALID_VALUE, NOT_SUPPORTED, HeuristicResult, Library, load
from culux.kernels.plans import recall

__all__ = ["Candidate", "CuBLASLt", "Plan", "Problem", "cublaslt_for"]

CANDIDATES = 8  # algorithms that are kept for a problem
PLANS = 1024  # problems that are kept
ALIGNMENT = 16  # bytes: the widest load of a thread, and what NVIDIA's guide asks of addresses for full speed
_PER_THREAD_STREAM = 2  # cudaStreamPerThread: one value for many streams

# Of a dtype: cudaDataType of the matrices, cudaDataType of alpha and beta, cublasComputeType.
_TYPES = {"float32": (0, 0, 68), "float64": (1, 1, 70), "float16": (2, 0, 68), "bfloat16": (14, 0, 68)}
_FAST_TF32 = 77
_EPILOGUES = {
    "": 1, "relu": 2, "bias": 4, "bias+relu": 6, "gelu": 32, "bias+gelu": 36, "gradient_b": 256, "gradient_a": 512,
}  # fmt: skip
# Attributes of the description of a product, and of the preferences for its algorithm.
_TRANSPOSE_A, _TRANSPOSE_B, _EPILOGUE, _BIAS_POINTER = 3, 4, 7, 8
_MOST_WORKSPACE, _REDUCTIONS, _ALIGNMENTS = 1, 3, (5, 6, 7, 8)
_REDUCE_IN_COMPUTE_TYPE = 2

_SCALARS = {0: (c_float(1), c_float(0)), 1: (c_double(1), c_double(0))}  # alpha and beta


class Problem(NamedTuple):
    """What a plan is made for: ``op(a) (m, k) @ op(b) (k, n)``, all row-major without gaps.

    Attributes:
        device: the index of the CUDA device.
        dtype: of all arrays.
        m: rows of the product.
        n: columns of the product.
        k: the length that is summed over.
        transpose_a: whether a is given as (k, m).
        transpose_b: whether b is given as (n, k).
        epilogue: ``""``, ``"bias"``, ``"relu"``, ``"gelu"``, ``"bias+relu"``, ``"bias+gelu"``, or ``"gradient_a"``
            or ``"gradient_b"``: the sum of op(a) or op(b) over k as a second result.
        tf32: whether float32 may be rounded to TF32.
        alignment: bytes that all addresses are multiples of, up to `ALIGNMENT`.
    """

    device: int
    dtype: np.dtype[Any]
    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool
    epilogue: str
    tf32: bool
    alignment: int

    def __str__(self) -> str:
        a, b = "a.T" if self.transpose_a else "a", "b.T" if self.transpose_b else "b"
        kind = f"{self.dtype.name} as TF32" if self.tf32 else self.dtype.name
        return (
            f"{a} @ {b} with M={self.m}, N={self.n}, K={self.k} of {kind}, epilogue {self.epilogue or 'none'}, "
            f"addresses aligned to {self.alignment} bytes, on cuda:{self.device}"
        )


class Candidate(NamedTuple):
    """An algorithm for a problem: where its plan has it, its workspace in bytes, how many waves of blocks it takes."""

    algorithm: int
    workspace: int
    waves: float


class Plan:
    """All that a call needs but its addresses; made by `CuBLASLt.plan`.

    Attributes:
        problem: what it is for.
        candidates: the algorithms, the one first that the heuristic takes for the fastest.
        chosen: the index of the one that is run; may be set.
        has_vector: whether a call takes a bias, or memory for its gradient.
    """

    def __init__(self, library: Library, handle: int, problem: Problem, workspace: int) -> None:
        self.problem = problem
        self.chosen = 0
        self.has_vector = problem.epilogue not in ("", "relu", "gelu")
        self._lock = threading.Lock()
        self._vector = 0  # the address that the description has for it now
        self._library = library
        self._matmul = library.functions["Matmul"]
        self._handle = handle
        data, scale, compute = _TYPES[problem.dtype.name]
        self._alpha, self._beta = (ctypes.addressof(value) for value in _SCALARS[scale])
        self._description = self._create("MatmulDesc", _FAST_TF32 if problem.tf32 else compute, scale)
        self._describe(problem)
        a = (problem.m, problem.k) if problem.transpose_a else (problem.k, problem.m)
        b = (problem.k, problem.n) if problem.transpose_b else (problem.n, problem.k)
        self._a, self._b, self._c = (
            self._create("MatrixLayout", data, rows, columns, rows) for rows, columns in (a, b, (problem.n, problem.m))
        )
        self._results = self._ask(workspace)
        self.candidates = tuple(
            Candidate(ctypes.addressof(result), result.workspace, result.waves) for result in self._results
        )

    def _create(self, kind: str, *args: int) -> int:
        pointer = c_void_p()
        self._library.call(f"{kind}Create", byref(pointer), *args, problem=self.problem)
        destroy = weakref.finalize(self, self._library.functions[f"{kind}Destroy"], pointer.value)
        destroy.atexit = False  # the driver may be gone before
        return pointer.value or 0

    def _set(self, kind: str, target: int, attribute: int, value: Any) -> None:
        size = ctypes.sizeof(value)
        self._library.call(f"{kind}SetAttribute", target, attribute, byref(value), size, problem=self.problem)

    def _describe(self, problem: Problem) -> None:
        values: dict[int, Any] = {
            _TRANSPOSE_A: c_int32(problem.transpose_b),
            _TRANSPOSE_B: c_int32(problem.transpose_a),
            _EPILOGUE: c_uint32(_EPILOGUES[problem.epilogue]),
        }
        if self.has_vector:  # the heuristic reads no more of its address than how it is aligned
            values[_BIAS_POINTER] = c_void_p(problem.alignment)
        for attribute, value in values.items():
            self._set("MatmulDesc", self._description, attribute, value)

    def _ask(self, workspace: int) -> list[HeuristicResult]:
        """What the heuristic proposes; nothing where the library has no algorithm for the problem."""
        preference = self._create("MatmulPreference")
        values: dict[int, Any] = dict.fromkeys(_ALIGNMENTS, c_uint32(self.problem.alignment))
        values[_MOST_WORKSPACE] = c_uint64(workspace)
        if self.problem.dtype.itemsize == 2:  # else parts of a sum over k may be added in 16 bits
            values[_REDUCTIONS] = c_uint32(_REDUCE_IN_COMPUTE_TYPE)
        for attribute, value in values.items():
            self._set("MatmulPreference", preference, attribute, value)
        results, count = (HeuristicResult * CANDIDATES)(), c_int()
        layouts = self._b, self._a, self._c, self._c
        function = "MatmulAlgoGetHeuristic"
        status = self._library.functions[function](
            self._handle, self._description, *layouts, preference, CANDIDATES, results, byref(count)
        )
        # An epilogue that there is not for this dtype may be called an invalid value.
        if status not in (0, NOT_SUPPORTED) and not (status == INVALID_VALUE and self.problem.epilogue):
            raise self._library.error(function, status, self.problem)
        return [result for result in results[: 0 if status else count.value] if result.state == 0]

    def enqueue(self, a: int, b: int, c: int, vector: int, candidate: Candidate, workspace: int, stream: int) -> None:
        """Enqueue the product of what lies at these addresses.

        Raises:
            KernelError: where the library refuses.
        """
        with self._lock:  # the vector's address is part of the description
            if vector != self._vector:
                self._set("MatmulDesc", self._description, _BIAS_POINTER, c_void_p(vector))
                self._vector = vector
            status = self._matmul(
                self._handle, self._description, self._alpha, b, self._b, a, self._a, self._beta,
                c, self._c, c, self._c, candidate.algorithm, workspace, candidate.workspace, stream,
            )  # fmt: skip
        if status:
            raise self._library.error("Matmul", status, self.problem)


class CuBLASLt:
    """cuBLASLt for the arrays of a backend: a handle for each device, plans, and a workspace for each stream.

    Args:
        backend: the CuPy backend.
        library: the loaded library.
    """

    def __init__(self, backend: Backend, library: Library) -> None:
        self.library = library
        self._cuda = backend.xp.cuda
        self._pool = backend.xp.get_default_memory_pool()
        self._many_devices = backend.device_count() > 1
        self._lock = threading.RLock()
        self._handles: dict[int, int] = {}
        self._plans: OrderedDict[Problem, Plan | None] = OrderedDict()
        self._workspaces: dict[tuple[int, int, int], tuple[int, Any]] = {}

    def plan(self, problem: Problem) -> Plan | None:
        """The plan for a problem, made at the first call; None where the library has no algorithm for it.

        Raises:
            KernelError: where it would have to be made while the current stream is captured.
        """
        with self._lock:
            return recall(self._plans, problem, self._make, PLANS)

    def run(
        self, plan: Plan, a: Array, b: Array, out: Array, vector: Array | None = None, candidate: int | None = None
    ) -> None:
        """Enqueue a product on the current stream of the plan's device.

        Args:
            plan: from `plan`.
            a: the first factor.
            b: the second factor.
            out: where the product goes.
            vector: the bias, or where its gradient goes; None where the epilogue has neither.
            candidate: which of the plan's candidates to run; by default the chosen one.

        Raises:
            KernelError: where the library refuses.
        """
        if plan.has_vector is (vector is None):
            raise KernelError(f"expected {'a vector' if plan.has_vector else 'no vector'} for {plan.problem}")
        device = plan.problem.device
        algorithm = plan.candidates[plan.chosen if candidate is None else candidate]
        stream = self._cuda.get_current_stream(device)
        workspace = self._workspace(device, stream, plan.problem) if algorithm.workspace else 0
        address = 0 if vector is None else vector.data.ptr
        if self._many_devices:
            with self._cuda.Device(device):
                plan.enqueue(a.data.ptr, b.data.ptr, out.data.ptr, address, algorithm, workspace, stream.ptr)
        else:
            plan.enqueue(a.data.ptr, b.data.ptr, out.data.ptr, address, algorithm, workspace, stream.ptr)

    def _make(self, problem: Problem) -> Plan | None:
        self._refuse_capture(problem.device, problem)
        with self._cuda.Device(problem.device):
            plan = Plan(self.library, self._handle(problem), problem, self._workspace_bytes(problem.device))
        return plan if plan.candidates else None

    def _handle(self, problem: Problem) -> int:
        """The handle of a device; it lives as long as the process, as the driver may be gone before its end."""
        handle = self._handles.get(problem.device)
        if handle is None:
            pointer = c_void_p()
            self.library.call("Create", byref(pointer), problem=problem)
            handle = self._handles[problem.device] = pointer.value or 0
        return handle

    def _workspace_bytes(self, device: int) -> int:
        """What a workspace holds: more from Hopper on, whose kernels split products further."""
        capability = int(self._cuda.Device(device).compute_capability)
        return 32 * 2**20 if capability >= 90 else 4 * 2**20

    def _workspace(self, device: int, stream: Any, problem: Problem) -> int:
        """The address of a stream's workspace: work of one stream never meets another's in it.

        It is kept, because captured graphs go on using it, and is none of a pool that may be of one graph.
        """
        key = (device, stream.ptr, threading.get_ident() if stream.ptr == _PER_THREAD_STREAM else 0)
        found = self._workspaces.get(key)
        if found is None:
            self._refuse_capture(device, problem)
            with self._cuda.Device(device):
                memory = self._pool.malloc(self._workspace_bytes(device))
            found = self._workspaces.setdefault(key, (memory.ptr, memory))
        return found[0]

    def _refuse_capture(self, device: int, problem: Problem) -> None:
        if self._cuda.get_current_stream(device).is_capturing():
            raise KernelError(
                f"expected a product that cuBLASLt has computed on this stream before its capture, got {problem}; "
                "run the step once on the stream, then capture it"
            )


_lock = threading.Lock()
_by_backend: dict[Backend, CuBLASLt | None] = {}


def cublaslt_for(backend: Backend) -> CuBLASLt | None:
    """What computes products of a backend's arrays; None for all but CuPy's, and where the library is missing.

    Raises:
        KernelError: where CULUX_CUBLASLT names a file that does not load.
    """
    if backend not in _by_backend:
        with _lock:
            if backend not in _by_backend:
                _by_backend[backend] = _load_for(backend)
    return _by_backend[backend]


def _load_for(backend: Backend) -> CuBLASLt | None:
    if backend.name != "cupy":
        return None
    library = load(backend.xp.cuda.runtime.runtimeGetVersion() // 1000)
    return None if library is None else CuBLASLt(backend, library)
