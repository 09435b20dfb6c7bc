"""The pytest fixture that puts the stand-in in CuPy's place; tests/conftest.py imports it for all tests."""

from __future__ import annotations

import importlib
import sys

import pytest

_BACKEND = "culux.backends.cupy_backend"


def _is_cupy(name):
    return name.partition(".")[0] in ("cupy", "cupyx") or name == _BACKEND


@pytest.fixture
def standin_cupy(monkeypatch):
    """The stand-in, as `cupy` for everything that imports it; one device, all its state new."""
    registry = _registry()
    standin = importlib.import_module("tests.standin_cupy")
    standin.machine.reset()
    for name in [name for name in sys.modules if _is_cupy(name)]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in {
        "cupy": standin,
        "cupy.cuda": standin.cuda,
        "cupy.cuda.memory": standin.cuda.memory,
        "cupyx": importlib.import_module("tests.standin_cupy.cupyx"),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("CULUX_DEVICE", raising=False)
    monkeypatch.setenv("CULUX_CUBLASLT", "0")  # a real one would take host addresses for the GPU's
    monkeypatch.setenv("CULUX_CUDNN", "0")  # so would a real one of this
    monkeypatch.setenv("CULUX_AUTOTUNE", "0")  # timing means nothing here
    real = registry._backends.pop("cupy", None)
    forget_types()
    yield standin
    sys.modules.pop(_BACKEND, None)
    registry._backends.pop("cupy", None)
    if real is not None:
        registry._backends["cupy"] = real
    forget_types()


def _registry():
    # Imported late: conftest.py imports this module, and must load without culux.
    return importlib.import_module("culux.backends.registry")


def forget_types():
    """Empty the registry's caches of what belongs to which type."""
    registry = _registry()
    registry._by_type.clear()
    for kind in [kind for kind in registry._namespaces if kind.__module__.partition(".")[0] == "cupy"]:
        del registry._namespaces[kind]
