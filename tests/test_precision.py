"""`matmul_precision`: what is in force, for whom, and what CuPy is told."""

from __future__ import annotations

import threading

import pytest

import culux
from culux.backends import current_matmul_precision
from culux.errors import DTypeError


def test_float32_is_the_default_and_comes_back():
    assert current_matmul_precision() == "float32"
    with culux.matmul_precision("tf32"):
        assert current_matmul_precision() == "tf32"
        with culux.matmul_precision("float32"):
            assert current_matmul_precision() == "float32"
        assert current_matmul_precision() == "tf32"
    assert current_matmul_precision() == "float32"


def test_an_exception_leaves_the_precision_as_it_was():
    with pytest.raises(ZeroDivisionError), culux.matmul_precision("tf32"):
        raise ZeroDivisionError
    assert current_matmul_precision() == "float32"


def test_another_thread_has_its_own():
    seen = []
    with culux.matmul_precision("tf32"):
        thread = threading.Thread(target=lambda: seen.append(current_matmul_precision()))
        thread.start()
        thread.join()
    assert seen == ["float32"]


def test_cupy_is_told_and_told_back(standin_cupy):
    compute_type = standin_cupy._core.get_compute_type
    before = compute_type("float32")
    with culux.matmul_precision("tf32"):
        assert compute_type("float32") == 7
        with culux.matmul_precision("float32"):
            assert compute_type("float32") == 1
        assert compute_type("float32") == 7
    assert compute_type("float32") == before


def test_an_unknown_precision_is_refused():
    with (
        pytest.raises(DTypeError, match=r"expected matmul_precision\('float32'\) or .*, got 'bf16'"),
        culux.matmul_precision("bf16"),
    ):
        pass
