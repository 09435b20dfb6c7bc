from __future__ import annotations

import pytest

from tools import cuda_extra

REPORTS = {
    "| NVIDIA-SMI 550.54   Driver Version: 550.54   CUDA Version: 12.4  |": 12,
    "| NVIDIA-SMI 580.65   Driver Version: 580.65   CUDA Version: 13.0  |": 13,
    "CUDA UMD Version : 13.1": 13,
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.": None,
}


@pytest.mark.parametrize("report", REPORTS)
def test_major_version_in_the_report_of_nvidia_smi(report):
    assert cuda_extra.parse_major(report) == REPORTS[report]


@pytest.mark.parametrize(
    ("major", "installed", "extra"),
    [
        (None, set(), ""),
        (11, set(), ""),
        (12, set(), "cuda12"),
        (13, {"numpy"}, "cuda13"),
        (14, set(), "cuda13"),
        (13, {"cupy-cuda12x"}, "cuda12"),  # the driver was updated: the installed CuPy goes on working
        (12, {"cupy"}, ""),  # built from source: not ours to replace
    ],
)
def test_extra_for_a_driver(major, installed, extra):
    assert cuda_extra.choose(major, installed) == extra


def test_nvidia_smi_is_asked_where_libcuda_cannot_be_loaded(tmp_path, monkeypatch):
    def refuse(name):
        raise OSError(name)

    monkeypatch.setattr(cuda_extra.ctypes, "CDLL", refuse)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda_extra.driver_cuda_major() is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'CUDA Version: 13.0'\n")
    program.chmod(0o755)
    assert cuda_extra.driver_cuda_major() == 13
