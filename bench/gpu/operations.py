"""Operations measured: compared with NumPy in float64, timed, and set beside the ceilings and torch."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import culux
from bench.gpu.cases import Case
from bench.gpu.device import Ceilings
from bench.gpu.timing import Time, by_events, time_call

# ||out - reference|| / ||reference||; float64 for what is computed in double.
LIMITS = {"float32": 1e-5, "tf32": 2e-3, "float16": 5e-3, "bfloat16": 4e-2, "float64": 1e-12}


@dataclass(frozen=True)
class Measured:
    """One operation, dtype and direction.

    Attributes:
        what: operation, dtype and direction.
        error: the largest relative error of any result at any size, and whether it is within its limit.
        time: of culux.
        share: of the copy bandwidth or of the product rate that the ceilings name; None where neither bounds it.
        torch: microseconds of torch eager on the same numbers; None without it.
        problem: what went wrong, else ``""``.
    """

    what: str
    error: float | None = None
    correct: bool = False
    time: Time | None = None
    share: float | None = None
    torch: float | None = None
    problem: str = ""


def measure(cases: Sequence[Case], ceilings: Ceilings, *, seconds: float, precision: str) -> Iterator[Measured]:
    """Two rows, forward and backward, for each case and dtype; what fails is a row that says why.

    Args:
        cases: the operations.
        ceilings: of this device.
        seconds: for each timed block.
        precision: ``"float32"`` or ``"tf32"`` for the products of float32 arrays, torch's too.
    """
    for case in cases:
        for dtype in ("float32",) if precision == "tf32" else case.dtypes:
            try:
                yield from _measure(case, dtype, ceilings, seconds, precision)
            except Exception:  # one operation's failure must not lose the others
                yield Measured(f"{case.name} {dtype}", problem=traceback.format_exc(limit=-3))


def _measure(case: Case, dtype: str, ceilings: Ceilings, seconds: float, precision: str) -> Iterator[Measured]:
    limit = LIMITS[precision if dtype == "float32" else dtype]
    errors = [errors_of(case, dtype, size) for size in case.checked]
    arrays = _on_device(case, dtype, case.full)
    floats = [a for a in arrays if a.dtype.kind != "i"]
    x = floats[0]
    y, pullback = culux.vjp(_of_floats(case, arrays), *floats)
    dy = y * 0 + 1
    forward = time_call(lambda: case.function(*arrays), seconds=seconds)
    backward = time_call(lambda: pullback(dy), seconds=seconds)
    peers = _torch_times(case, arrays, seconds, precision) if case.torch is not None else (None, None)
    for i, (name, time) in enumerate((("forward", forward), ("backward", backward))):
        worst = max(error[i] for error in errors)
        share = None
        if case.passes is not None:
            share = case.passes[i] * x.nbytes / (1e-6 * time.best) / ceilings.copy
        elif case.operations is not None:
            rate = ceilings.products.get(precision if dtype == "float32" else dtype)
            share = None if rate is None else case.operations(*case.full)[i] / (1e-6 * time.best) / rate
        yield Measured(f"{case.name} {dtype} {name}", worst, bool(worst <= limit), time, share, peers[i])


def errors_of(case: Case, dtype: str, size: Sequence[int]) -> tuple[float, float]:
    """Relative errors of the value and of the worst gradient at one size, against NumPy in float64.

    The reference gets the same numbers, rounded to the dtype.
    """
    arrays = _on_device(case, dtype, size)
    wide = [a.get().astype(np.float64) if a.dtype.kind != "i" else a.get() for a in arrays]
    results = []
    for inputs in (arrays, wide):
        floats = [a for a in inputs if a.dtype.kind != "i"]
        y, pullback = culux.vjp(_of_floats(case, inputs), *floats)
        seed = np.random.default_rng(1).standard_normal(y.shape)
        dy = seed if inputs is wide else culux.gpu_device()(seed.astype(_dtype(dtype)))
        results.append([culux.to_numpy(a).astype(np.float64) for a in (y, *pullback(dy))])
    errors = [relative_error(got, expected) for got, expected in zip(*results, strict=True)]
    return errors[0], max(errors[1:])


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """``||got - expected|| / ||expected||``; infinite for NaN or another shape."""
    if got.shape != expected.shape:
        return float("inf")
    norm = float(np.linalg.norm(expected.ravel()))
    error = float(np.linalg.norm((got - expected).ravel())) / (norm or 1.0)
    return error if error == error else float("inf")


def _of_floats(case: Case, arrays: Sequence[Any]) -> Any:
    """The case's function of its float arrays, the integer ones held fixed."""

    def function(*floats: Any) -> Any:
        given = iter(floats)
        return case.function(*[next(given) if a.dtype.kind != "i" else a for a in arrays])

    return function


def _on_device(case: Case, dtype: str, size: Sequence[int]) -> list[Any]:
    host = case.arrays(np.random.default_rng(0), *size)
    device = culux.gpu_device(force=True)
    return [device(a if a.dtype.kind == "i" else a.astype(_dtype(dtype))) for a in host]


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _torch_times(case: Case, arrays: Sequence[Any], seconds: float, precision: str) -> tuple[float | None, ...]:
    """Microseconds of torch eager, forward and backward, on the same device and stream."""
    if importlib.util.find_spec("torch") is None:
        return None, None
    import cupy
    import torch

    if not torch.cuda.is_available():
        return None, None
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"  # torch's default is True
    pointer = cupy.cuda.get_current_stream().ptr
    # ExternalStream takes 0, the default stream, for "none given" and makes a new one, which our events do not time.
    stream = torch.cuda.ExternalStream(pointer) if pointer else torch.cuda.default_stream()
    with torch.cuda.stream(stream):
        tensors = [torch.from_dlpack(a) for a in arrays]
        leaves = [t.requires_grad_() for t in tensors if t.is_floating_point()]
        y = case.torch(torch, *tensors)
        dy = torch.ones_like(y)

        def backward() -> None:
            torch.autograd.grad(y, leaves, dy, retain_graph=True, allow_unused=True)

        with torch.no_grad():
            forward = by_events(lambda: case.torch(torch, *tensors), seconds, 5)
        return forward, by_events(backward, seconds, 5)
