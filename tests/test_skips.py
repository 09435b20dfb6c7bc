from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import missing_tool, requires, skip_class

ROOT = Path(__file__).parents[1]

SUITE = """
import pytest
from tests.support import requires

def test_passes(): pass
def test_by_helper(): requires("no_such_library")
def test_by_pytest(): pytest.importorskip("no_such_library")
def test_otherwise(): pytest.skip("not on Sundays")
@pytest.mark.xfail(reason="no_such_library is not installed")
def test_xfail(): raise ValueError
"""
MODULE = "import pytest\npytest.importorskip('no_such_library')\ndef test_never(): pass\n"
GPU = "import pytest\n@pytest.mark.gpu\ndef test_gpu(): pass\n"


@pytest.fixture
def run_suite(tmp_path):
    """A function that runs a test file under this folder's conftest; (exit code, output)."""

    def run(source: str, require: str, *options: str) -> tuple[int, str]:
        (tmp_path / "test_suite.py").write_text(source)
        (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
        env = os.environ | {"CULUX_REQUIRE": require, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        env.pop("PYTEST_ADDOPTS", None)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", *options]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def test_skips_are_counted_by_reason(run_suite):
    code, output = run_suite(SUITE, require="")
    assert code == 0
    assert "1 passed, 3 skipped, 1 xfailed" in output
    assert "skipped: 3 (no_such_library is not installed: 2, not on Sundays: 1)\n" in output


def test_no_skip_is_said_too(run_suite):
    code, output = run_suite("def test_passes(): pass", require="no_such_library")
    assert code == 0
    assert "skipped: 0\n" in output


def test_skip_for_want_of_a_required_tool_fails(run_suite):
    code, output = run_suite(SUITE, require="torch,no_such_library")
    assert code == 1
    assert "2 failed, 1 passed, 1 skipped, 1 xfailed" in output
    assert "CULUX_REQUIRE lists 'no_such_library': no_such_library is not installed" in output
    assert "skipped: 1 (not on Sundays: 1)\n" in output


def test_skip_of_a_whole_module_fails_too(run_suite):
    code, output = run_suite(MODULE, require="")
    assert "skipped: 1 (no_such_library is not installed: 1)\n" in output
    code, output = run_suite(MODULE, require="no_such_library")
    assert code == 2
    assert "CULUX_REQUIRE lists 'no_such_library'" in output


def test_gpu_tests_skip_without_a_gpu(run_suite):
    no_gpu = "import tests.conftest\ntests.conftest.has_gpu = lambda: False\n"
    code, output = run_suite(no_gpu + GPU, require="")
    assert code == 0
    assert "skipped: 1 (no CUDA GPU: 1)\n" in output
    code, output = run_suite(no_gpu + GPU, require="gpu")
    assert code == 1
    assert "CULUX_REQUIRE lists 'gpu'" in output


def test_skips_are_judged_in_the_workers_of_xdist_too(run_suite):
    requires("xdist")
    code, output = run_suite(SUITE, "no_such_library", "-p", "xdist", "-n", "1")
    assert code == 1
    assert "2 failed, 1 passed, 1 skipped, 1 xfailed" in output


def test_requires_hands_out_the_module():
    assert requires("os.path") is os.path


def test_requires_does_not_hide_a_broken_installation(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        requires("broken_library")


@pytest.mark.parametrize(
    ("reason", "counted", "tool"),
    [
        ("Skipped: torch is not installed", "torch is not installed", "torch"),
        ("could not import 'torch.fx': No module named 'torch'", "torch is not installed", "torch"),
        ("no CUDA GPU", "no CUDA GPU", "gpu"),
        ("not on Sundays", "not on Sundays", None),
    ],
)
def test_reasons(reason, counted, tool):
    assert skip_class(reason) == counted
    assert missing_tool(reason) == tool
