"""The emulator's way from CUDA source to a module: translation, parameters, the compiler, the cache."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from culux.errors import KernelError
from culux.testing.cuda import EmulatedModule
from culux.testing.cuda.arguments import parse_parameters
from culux.testing.cuda.build import compiler
from culux.testing.cuda.source import translate
from tests.support import requires

KERNELS = Path(__file__).parent / "kernels"
pytestmark = pytest.mark.usefixtures("kernel_cache")


def test_source_that_does_not_compile():
    requires("compiler")
    with pytest.raises(KernelError, match=r"kernel.cu does not compile for the emulator[\s\S]*kernel.cu:2:\d+: error"):
        EmulatedModule('extern "C" __global__ void broken(float* x) {\n  x[0] = no_such_name;\n}')


def test_no_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(KernelError, match=r"needs a C\+\+ compiler.*apt-get install g\+\+"):
        compiler()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    requires("compiler")
    (tmp_path / "file").write_text("")
    script = (
        "import numpy as np; from culux.testing.cuda import EmulatedModule\n"
        "y = np.zeros(3, np.int32)\n"
        "EmulatedModule('__global__ void f(int* y) { y[threadIdx.x] = 7; }').kernel()((1,), (3,), (y,))\n"
        "print(y.tolist())"
    )
    environment = {**os.environ, "CULUX_CACHE_DIR": str(tmp_path / "file" / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=KERNELS.parents[1]
    )
    assert done.stdout == "[7, 7, 7]\n"
    assert len(re.findall("cannot be written", done.stderr)) == 1


def test_translation_keeps_lines_and_skips_comments():
    source = (
        '// __shared__ int no;\nextern "C" { __global__ void\n  f() {\n'
        "  __shared__ __align__(16) Pair<int, 4> a[3][N], b;\n  extern __shared__ __align__(16) float\n d[];\n} }\n"
        "template <class T> __global__ void __launch_bounds__(128, 2) g(T x) {}\n"
        "__global__ void __launch_bounds__(64) h() {}\n"
    )
    translation = translate(source, "k.cu", ["g<int>"])
    assert translation.kernels == ("f", "h", "g<int>")
    assert translation.shared == ("a (k.cu:4)", "b (k.cu:4)", "d (k.cu:5)")
    body = translation.text.split('#line 1 "k.cu"\n')[1].split("\n")
    assert body[0] == "// __shared__ int no;"
    assert body[3].startswith("  alignas(16) static Pair<int, 4> a[3][N], b; CULUX_POISON(a); CULUX_POISON(b);")
    assert body[4] == "  float* d = static_cast<float*>(culux_emu::dynamic_shared());"
    assert body[6] == "} }"


def test_parameters_that_are_not_understood():
    with pytest.raises(KernelError, match="describes a parameter as 'x'"):
        parse_parameters("x;")
