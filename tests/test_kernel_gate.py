"""NVIDIA's compiler over every kernel of the library and every architecture."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import pytest

from culux.kernels.source import program
from culux.testing.cuda import nvrtc
from culux.testing.cuda.library import activation_codes, families, programs
from tests.support import requires


def compiled(family, select=lambda label: True, architectures=nvrtc.ARCHITECTURES):
    """The report of the gate over the programs of a family whose labels are selected; passed."""
    requires("nvrtc")
    found = {label: program for label, program in programs(family).items() if select(label)}
    report = nvrtc.gate({label: program.text for label, program in found.items()}, architectures)
    report.check()
    assert {name for _, compiled in report.compiled for name in compiled.kernels} == {
        name for program in found.values() for name in program.kernels
    }
    return report


@pytest.mark.parametrize("family", families())
def test_every_kernel_compiles_for_the_oldest_and_the_newest_without_spills(family):
    compiled(family, lambda label: "float32" in label.split()[1], ("75", "90", "120"))


@pytest.mark.parametrize("family", families())
def test_every_program_compiles_without_spills(family):
    compiled(family, lambda label: "float32" not in label.split()[1], ("90",))


@pytest.mark.slow
@pytest.mark.parametrize("family", families())
def test_every_program_compiles_for_every_architecture_without_spills(family):
    report = compiled(family)
    assert len(programs(family)) >= 4
    write_rows(family, report)


def test_every_activation_compiles():
    requires("nvrtc")
    sources = {
        name: program("activation", "float32", activation=code).text for name, code in activation_codes().items()
    }
    assert len(sources) > 20
    nvrtc.gate(sources, ("90",)).check()


def write_rows(family, report):
    """Leave what the compiler told for the table of `make kernels`."""
    folder = os.environ.get("CULUX_KERNEL_REPORT")
    if folder:
        rows = [
            {"family": family, "source": row.source, "kernel": row.kernel, "architectures": list(row.architectures),
             "registers": list(row.registers), "spills": row.spills, "shared": row.shared}
            for row in report.rows()
        ]  # fmt: skip
        (Path(folder) / f"gate-{family}.json").write_text(json.dumps(rows))


def test_every_dtype_is_compiled():
    for family in families():
        labels = programs(family)
        for dtype in ("float32", "float64", "float16", "bfloat16"):
            assert any(dtype in label.split() for label in labels), (family, dtype)


def test_every_source_has_its_module_and_its_test():
    for family in families():
        assert importlib.import_module(f"culux.kernels.{family}").__doc__
        assert (Path(__file__).parent / f"test_kernel_{family}.py").is_file(), family
