from __future__ import annotations

import re
from pathlib import Path

import pytest

from culux.errors import KernelError
from culux.testing.cuda import nvrtc_library, ptxas
from culux.testing.cuda.nvrtc import ARCHITECTURES, Compiled, GateReport, Row, Source, available, compile_kernel, gate
from tests.support import requires

REVERSE = r"""extern "C" __global__ void reverse(const float* x, float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];
}
"""

# A template is compiled for the types that name expressions ask for.
SCALE = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
template <class T> __global__ void scale(T* x, float factor) { x[threadIdx.x] = T(float(x[threadIdx.x]) * factor); }
"""

SYNTAX_ERROR = "__global__ void broken() {\n  int x = ;\n}\n"

# 64 values are alive across the barrier: more than the 32 registers that two blocks of 1024 threads leave.
CROWDED = r"""
extern "C" __global__ void LIMIT crowded(float* y, const float* x) {
  float r[64];
#pragma unroll
  for (int i = 0; i < 64; i++) r[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; i++) y[i * 1024 + threadIdx.x] = r[63 - i];
}
"""

LARGE_TILE = r"""extern "C" __global__ void large(float* y) {
  __shared__ float tile[13000];
  tile[threadIdx.x] = y[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[int(y[0])];
}
"""

# From NVRTC 12.9: the function `square` is not inlined, and it is there that registers are spilled.
LOG = """\
ptxas info    : Overriding maximum register limit 256 for 'sum' with  24 of maxrregcount option
ptxas info    : 128 bytes gmem, 256 bytes cmem[3], 8 bytes cmem[4]
ptxas info    : Compiling entry function 'sum' for 'sm_75'
ptxas info    : Function properties for sum
ptxas         .     40 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 7544 bytes cumulative stack size, 256 bytes smem, 360 bytes cmem[0], 8 bytes cmem[2]
ptxas info    : Compile time = 366.171 ms
ptxas info    : Function properties for _Z6squarePf
ptxas         .     0 bytes stack frame, 9168 bytes spill stores, 21384 bytes spill loads
ptxas info    : Compiling entry function '_Z4halfPf' for 'sm_75'
ptxas info    : Function properties for _Z4halfPf
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
ptxas info    : Compile time = 0.780 ms
"""  # noqa: E501 (lines as ptxas prints them)
CUBIN = b"\x7fELF\0.nv.constant0.sum\0.nv.constant0._Z4halfPf\0.text.sum\0"


@pytest.fixture
def nvrtc():
    return requires("nvrtc")


@pytest.fixture
def fresh_load():
    """NVRTC is looked for anew, in the test and after it."""
    nvrtc_library.load.cache_clear()
    yield
    nvrtc_library.load.cache_clear()


def test_log_of_the_assembler():
    usages = ptxas.parse(LOG, CUBIN, {"half<float>": "_Z4halfPf"})
    assert usages == {
        "sum": ptxas.KernelUsage("sum", "sum", 24, 8 + 9168, 12 + 21384, 7544, 256, 368),
        "half<float>": ptxas.KernelUsage("half<float>", "_Z4halfPf", 8, 0, 0, 0, 0, 0),
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "Compiling entry function 'sum'",
            "Assembling 'sum'",
            r"names the kernels \['_Z4halfPf'\] and the cubin holds",
        ),
        ("Used 24 registers", "24 registers in use", "does not tell what kernel sum takes"),
        ("bytes spill loads", "bytes reloaded", "does not tell what kernel sum takes"),
        ("256 bytes smem", "256 bytes dsmem", "'256 bytes dsmem' of kernel sum is new"),
    ],
)
def test_log_of_an_unknown_form_is_an_error(old, new, message):
    assert old in LOG
    with pytest.raises(KernelError, match=rf"(?s)of a form that culux does not know: .*{message}"):
        ptxas.parse(LOG.replace(old, new), CUBIN, {})


def test_clean_kernel_passes_for_every_architecture(nvrtc):
    report = gate({"reverse.cu": REVERSE})
    report.check()
    assert report.failures == ()
    assert [compiled.architecture for _, compiled in report.compiled] == list(ARCHITECTURES)
    assert len({compiled.cubin for _, compiled in report.compiled}) == len(ARCHITECTURES)
    for _, compiled in report.compiled:
        usage = compiled.kernels["reverse"]
        assert compiled.cubin.startswith(b"\x7fELF")
        assert 4 <= usage.registers <= 32
        assert (usage.spill_stores, usage.spill_loads, usage.stack, usage.shared) == (0, 0, 0, 256)
        assert (usage.constant >= 16) == (int(compiled.architecture) < 90)


def test_parallel_compilation_gives_the_same_code(nvrtc):
    for _, compiled in gate({"reverse.cu": REVERSE, "large.cu": REVERSE.replace("64", "640")}).compiled[:7]:
        assert compile_kernel(REVERSE, "reverse.cu", architecture=compiled.architecture).cubin == compiled.cubin


def test_templates_and_half_precision_headers(nvrtc):
    names = ("scale<float>", "scale<__half>", "scale<__nv_bfloat16>")
    report = gate({"scale": Source(SCALE, name_expressions=names)})
    report.check()
    assert {row.kernel for row in report.rows()} == set(names)
    assert all(row.architectures == ARCHITECTURES for row in report.rows())
    usage = compile_kernel(SCALE, architecture="90", name_expressions=names).kernels["scale<float>"]
    assert usage.symbol == "_Z5scaleIfEvPT_f"


@pytest.mark.parametrize("options", [(), ("--std=c++20",)])
def test_options_are_those_of_cupy(nvrtc, options):
    source = """
    #if !__CUDA_FTZ
    #error denormals are kept
    #endif
    #if __cplusplus != STANDARD
    #error another standard
    #endif
    float half_of(float x) { return x / 2; }
    extern "C" __global__ void halve(float* x) { *x = half_of(*x); }
    """
    standard = "-DSTANDARD=202002L" if options else "-DSTANDARD=201703L"
    assert "halve" in compile_kernel(source, architecture="80", options=(*options, standard)).kernels


def test_architecture_with_a_suffix(nvrtc):
    source = 'extern "C" __global__ void fence() { asm volatile("wgmma.fence.sync.aligned;"); }'
    assert "fence" in compile_kernel(source, architecture="90a").kernels
    with pytest.raises(KernelError, match=r"(?s)sm_90:.*wgmma.fence.*not supported"):
        compile_kernel(source, architecture="90")


def test_syntax_error_names_file_line_and_architecture(nvrtc, tmp_path):
    with pytest.raises(
        KernelError, match=r"(?s)broken\.cu does not compile for sm_86:\nbroken\.cu\(2\): error: .*x = ;"
    ):
        compile_kernel(SYNTAX_ERROR, "broken.cu", architecture="86")
    path = tmp_path / "broken.cu"
    path.write_text(SYNTAX_ERROR)
    report = gate({"broken": path, "reverse": REVERSE}, ["75", "90"])
    assert [(f.source, f.architecture) for f in report.failures] == [("broken", "75"), ("broken", "90")]
    assert all(f.message.startswith(f"{path}(2): error: expected an expression") for f in report.failures)
    assert [row.kernel for row in report.rows()] == ["reverse"]


def test_file_beside_the_source_is_included(nvrtc, tmp_path):
    (tmp_path / "width.cuh").write_text("#define WIDTH 48\n")
    path = tmp_path / "tile.cu"
    path.write_text('#include "width.cuh"\n' + REVERSE.replace("[64]", "[WIDTH]"))
    assert compile_kernel(path, architecture="80").kernels["reverse"].shared == 48 * 4


def test_unknown_name_expression_is_an_error(nvrtc):
    with pytest.raises(KernelError, match=r'(?s)sm_80:.*identifier "shrink" is undefined'):
        compile_kernel(SCALE, architecture="80", name_expressions=("shrink<float>",))


@pytest.mark.parametrize(
    "source",
    [
        Source(CROWDED, ("-DLIMIT=__launch_bounds__(1024,2)",)),
        Source(CROWDED, ("-DLIMIT=", "--maxrregcount=32")),
        Source(
            CROWDED.replace('extern "C" __global__', "__device__ __noinline__")
            + 'extern "C" __global__ void caller(float* y) { crowded(y, y + 65536); }',
            ("-DLIMIT=", "--maxrregcount=32"),
        ),
    ],
    ids=["launch bounds", "register limit", "function not inlined"],
)
def test_spills_are_refused(nvrtc, source):
    report = gate({"crowded": source}, ["80", "90"])
    kernel = report.rows()[0].kernel
    assert [f.architecture for f in report.failures] == ["80", "90"]
    message = (
        rf"kernel {kernel} spills registers: [1-9]\d* bytes stored and [1-9]\d* loaded per thread, with 32 registers"
    )
    assert all(re.fullmatch(message, failure.message) for failure in report.failures)
    assert report.rows()[0].spills > 0
    gate({"crowded": source}, ["80", "90"], allow_spills=True).check()


def test_without_the_limit_nothing_spills(nvrtc):
    gate({"crowded": Source(CROWDED, ("-DLIMIT=",))}).check()


def test_limits(nvrtc):
    with pytest.raises(
        KernelError, match=r"\(sm_80, sm_90\): kernel reverse takes 256 bytes of static shared memory, more"
    ):
        gate({"reverse": REVERSE}, ["80", "90"], max_shared=255).check()
    gate({"reverse": REVERSE}, ["80", "90"], max_shared=256).check()
    with pytest.raises(KernelError, match=r"kernel reverse takes \d+ registers, more than max_registers=3"):
        gate({"reverse": REVERSE}, ["80"], max_registers=3).check()


def test_more_shared_memory_than_there_is(nvrtc):
    report = gate({"large": LARGE_TILE}, ["75", "90", "120"])
    assert [f.architecture for f in report.failures] == ["75", "90", "120"]
    assert all("'large' uses too much shared data (0xcb20 bytes, 0xc000 max)" in f.message for f in report.failures)


def test_source_without_a_kernel_is_refused(nvrtc):
    with pytest.raises(KernelError, match=r"scale \(sm_80\): it holds no kernel; a template .* name_expressions"):
        gate({"scale": SCALE}, ["80"]).check()


def test_nothing_to_compile_is_an_error():
    with pytest.raises(KernelError, match="nothing to compile: 0 sources for 7 architectures"):
        gate({})
    with pytest.raises(KernelError, match="nothing to compile: 1 sources for 0 architectures"):
        gate({"reverse": REVERSE}, [])


def test_architecture_that_this_nvrtc_does_not_know(nvrtc):
    report = gate({"reverse": REVERSE, "scale": Source(SCALE, (), ("scale<float>",))}, ["80", "77"])
    assert [compiled.architecture for _, compiled in report.compiled] == ["80", "80"]
    with pytest.raises(
        KernelError, match=r"refuses:\n  \(sm_77\): NVRTC [\d.]+ does not know sm_77, only .*80.*: install"
    ):
        report.check()
    with pytest.raises(KernelError, match="does not know sm_77"):
        compile_kernel(REVERSE, architecture="77")
    with pytest.raises(KernelError, match="expected an architecture such as '75' or '90a', got 'sm_80'"):
        gate({"reverse": REVERSE}, ["sm_80"])


def test_all_failures_come_at_once(nvrtc):
    sources = {
        "reverse": REVERSE,
        "broken": SYNTAX_ERROR,
        "crowded": Source(CROWDED, ("-DLIMIT=", "--maxrregcount=32")),
    }
    report = gate(sources, ["80", "86", "77"])
    with pytest.raises(KernelError) as caught:
        report.check()
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert lines[0] == "the compile gate refuses:"
    assert lines[1].startswith("  (sm_77): NVRTC")
    assert lines[2] == "  broken (sm_80, sm_86): broken(2): error: expected an expression"
    assert lines[3].startswith("  crowded (sm_80, sm_86): kernel crowded spills registers:")


def test_table(nvrtc):
    report = gate({"reverse.cu": REVERSE, "broken": SYNTAX_ERROR}, ["75", "80"])
    low, high = report.rows()[0].registers
    head, row, empty, *failures = str(report).splitlines()
    assert re.split(r"  +", head) == ["source", "kernel", "architectures", "registers", "spilled bytes", "shared bytes"]
    registers = str(low) if low == high else f"{low}-{high}"
    assert re.split(r"  +", row) == ["reverse.cu", "reverse", "75 80", registers, "0", "256"]
    assert [head.index(" registers"), head.index(" shared")] == [row.index(f" {registers}  "), row.index(" 256")]
    assert empty == ""
    assert failures == ["failures:", "  broken (sm_75, sm_80): broken(2): error: expected an expression"]
    assert str(gate({"reverse.cu": REVERSE}, ["80"])).endswith("\n\nfailures: none")


def test_row_of_a_kernel_that_differs_between_architectures():
    usages = [("75", 40, 0, 0), ("80", 32, 8, 16), ("90", 36, 4, 4)]
    report = GateReport(
        tuple(
            ("k.cu", Compiled(arch, b"", "", {"k": ptxas.KernelUsage("k", "k", registers, stores, loads, 0, 0, 0)}))
            for arch, registers, stores, loads in usages
        ),
        (),
    )
    assert report.rows() == [Row("k.cu", "k", ("75", "80", "90"), (32, 40), 24, 0)]
    assert re.split(r"  +", str(report).splitlines()[1]) == ["k.cu", "k", "75 80 90", "32-40", "24", "0"]


def test_available(nvrtc):
    assert available() == ""


def test_missing_nvrtc_says_how_to_install_it(fresh_load, monkeypatch):
    monkeypatch.setattr(nvrtc_library, "_places", lambda: iter([("libnvrtc-of-nowhere.so.12", [])]))
    message = r"pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 \(tried: libnvrtc-of-nowhere"
    assert re.search(message, available())
    with pytest.raises(KernelError, match=message):
        gate({"reverse": REVERSE})


def test_missing_headers_say_how_to_install_them(nvrtc, monkeypatch):
    own_header = '#include "nowhere.cuh"\n'
    assert len(gate({"own": own_header}, ["80"]).failures) == 1  # CUDA's headers are there and would not help
    monkeypatch.setattr(nvrtc_library.load(), "includes", [])
    report = gate({"scale": SCALE}, ["80"])
    assert 'could not open source file "cuda_fp16.h"' in report.failures[0].message
    assert report.failures[1].message.endswith("headers are not installed beside NVRTC: " + nvrtc_library.INSTALL)
    assert len(gate({"broken": SYNTAX_ERROR}, ["80"]).failures) == 1


def test_nvrtc_of_a_toolkit(nvrtc, fresh_load, monkeypatch, tmp_path):
    (tmp_path / "include").mkdir()
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / Path(nvrtc).name).symlink_to(nvrtc)
    monkeypatch.setattr(nvrtc_library.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    assert nvrtc_library.load().includes == [tmp_path / "include"]


def test_one_folder_of_wheels_holds_all_of_cuda_13(monkeypatch, tmp_path):
    for file in ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12", "cuda_nvrtc/lib/libnvrtc.alt.so.12"):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(nvrtc_library.importlib.util, "find_spec", lambda name: spec)
    assert list(nvrtc_library._places())[:2] == [
        (str(tmp_path / "cu13/lib/libnvrtc.so.13"), [tmp_path / "cu13/include"]),
        (
            str(tmp_path / "cuda_nvrtc/lib/libnvrtc.so.12"),
            [tmp_path / "cuda_runtime/include", tmp_path / "cuda_cccl/include"],
        ),
    ]
