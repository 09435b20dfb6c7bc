"""`matmul_precision`: how float32 matrix products are computed."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from culux.backends.registry import get_backend, loaded
from culux.errors import DTypeError

__all__ = ["current_matmul_precision", "matmul_precision"]

PRECISIONS = ("float32", "tf32")


class _Precision(threading.local):
    name = "float32"


_precision = _Precision()


def current_matmul_precision() -> str:
    """The precision in force in this thread: ``"float32"`` unless a `matmul_precision` is open."""
    return _precision.name


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """A context in which float32 matrix products on a GPU take TF32 tensor cores, or do not.

    TF32 keeps float32's range and rounds the factors to 10 bits of mantissa: relative errors of about 1e-3.
    It is for this thread; where a product is CuPy's own, it holds for the process while the context is open.
    The CPU always computes in full precision.

    Args:
        name: ``"float32"`` (the default everywhere) or ``"tf32"``.

    Raises:
        DTypeError: for another name.
    """
    if name not in PRECISIONS:
        raise DTypeError(f"expected matmul_precision('float32') or matmul_precision('tf32'), got {name!r}")
    if name == "tf32" and importlib.util.find_spec("cupy") is not None:
        get_backend("cupy")
    before = _precision.name
    with ExitStack() as stack:
        for backend in loaded():
            stack.enter_context(backend.matmul_precision(name))
        _precision.name = name
        try:
            yield
        finally:
            _precision.name = before
