"""Raw kernels on the stand-in: what a launch passes, refuses and marks as used."""

from __future__ import annotations

import numpy as np
import pytest

import tests.standin_cupy as standin
from culux.errors import KernelError
from tests.standin_cupy import kernels
from tests.support import requires

SCALE = """
extern "C" __global__ void scale(float* x, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= a;
}
"""
COPY = 'extern "C" __global__ void copy(const float* x, float* y) { y[threadIdx.x] = x ? x[threadIdx.x] : -1; }'
SHARED = 'extern "C" __global__ void sums(float* y) { extern __shared__ float s[]; s[0] = 2; y[0] = s[0]; }'
FILL = """
template <class T> __global__ void fill(T* x, T a) { x[threadIdx.x] = a; }
extern "C" __global__ void grid(int* x) { atomicAdd(x, int(gridDim.x + 10 * gridDim.y + 100 * blockDim.x)); }
__global__ void mangled(int* x) { x[0] = 1; }
extern "C" {
__device__ void nothing() {}
__global__ void in_block(int* x) { x[0] = 2; }
}
"""
STRUCT = """
struct Shape { int rows; float scale; };
extern "C" __global__ void put(float* x, Shape s) { x[0] = s.rows; x[1] = s.scale; }
"""
TYPES = """
extern "C" __global__ void types(double* x, long long i, double f, bool b) { x[0] = i; x[1] = f; x[2] = b; }
"""
ONE = (1,), (1,)


@pytest.fixture(autouse=True)
def reset():
    requires("compiler")
    standin.machine.reset()


@pytest.fixture
def x():
    return standin.arange(4, dtype=np.float32)


def test_a_kernel_computes(x):
    standin.RawKernel(SCALE, "scale")((2,), (2,), (x, np.float32(3), np.int32(3)))
    np.testing.assert_array_equal(x.get(), [0, 3, 6, 3])
    (launch,) = [entry for entry in standin.machine.log if entry[0] == "launch"]
    assert launch == ("launch", "scale", (2,), (2,), launch[4], 0)
    assert launch[4][0].data.ptr == x.data.ptr
    assert standin.machine.launches == 1


def test_the_log_keeps_no_memory():
    x = standin.ones(4, np.float32)
    standin.RawKernel(SCALE, "scale")((2,), (2,), (x, np.float32(3), np.int32(3)))
    del x
    assert standin.cuda.get_default_memory_pool().used_bytes() == 0


def test_views_pass_as_their_first_element_and_strides_are_refused(x):
    kernel = standin.RawKernel(SCALE, "scale")
    kernel((1,), (2,), (x[2:], np.float32(10), np.int32(2)))
    np.testing.assert_array_equal(x.get(), [0, 1, 20, 30])
    with pytest.raises(KernelError, match="C-contiguous"):
        kernel((1,), (2,), (x[::2], np.float32(10), np.int32(2)))


def test_options_are_macros_and_each_has_its_module(x):
    source = 'extern "C" __global__ void put(float* x) { x[0] = N; }'
    for n in (3, 4):
        standin.RawKernel(source, "put", (f"-DN={n}", "-std=c++17"))(*ONE, (x,))
        assert float(x[0]) == n


def test_modules_give_templates_and_c_functions_and_nothing_else(x):
    module = standin.RawModule(code=FILL, options=("-std=c++17",), name_expressions=("fill<float>", "mangled"))
    module.get_function("fill<float>")((1,), (4,), (x, np.float32(7)))
    assert x.get().tolist() == [7, 7, 7, 7]
    n = standin.zeros(1, np.int32)
    module.get_function("mangled")(*ONE, (n,))
    assert int(n[0]) == 1
    module.get_function("in_block")(*ONE, (n,))
    assert int(n[0]) == 2
    for kernel in (
        lambda: module.get_function("fill<double>"),
        lambda: standin.RawModule(code=FILL).get_function("mangled"),
        lambda: standin.RawKernel(FILL, "mangled")(*ONE, (n,)),
        lambda: standin.RawKernel(FILL, "absent")(*ONE, (n,)),
    ):
        with pytest.raises(standin.cuda.driver.CUDADriverError, match="CUDA_ERROR_NOT_FOUND: named symbol not found"):
            kernel()


def test_grid_and_block_are_at_least_one():
    n = standin.zeros(1, np.int32)
    standin.RawKernel(FILL, "grid")((0, -1), (0,), (n,))
    assert int(n[0]) == 111
    for bad in (([1], (1,)), ((1,), 1)):
        with pytest.raises(TypeError, match="expected tuple"):
            standin.RawKernel(FILL, "grid")(*bad, (n,))


def test_none_is_a_null_pointer(x):
    standin.RawKernel(COPY, "copy")((1,), (4,), (None, x))
    assert x.get().tolist() == [-1] * 4


def test_structs_and_arrays_of_one_element_pass_by_value(x):
    shape = np.array([(5, 0.5)], np.dtype([("rows", np.int32), ("scale", np.float32)]))
    for value in (shape, shape.reshape(())):
        standin.RawKernel(STRUCT, "put")(*ONE, (x, value))
        assert x.get().tolist() == [5, 0.5, 2, 3]
        x[:2] = 0
    standin.RawKernel(SCALE, "scale")((1,), (4,), (x, np.ones(1, np.float32), np.array(4, np.int32)))


@pytest.mark.parametrize("value", ["1", [1.0], np.zeros(1, [("a", np.float32)])[0], np.str_("1")])
def test_other_values_are_refused(x, value):
    with pytest.raises(TypeError, match="Unsupported type <class"):
        standin.RawKernel(SCALE, "scale")(*ONE, (x, value, np.int32(1)))


@pytest.mark.parametrize("value", [np.ones(2, np.float32), np.zeros(0)])
def test_arrays_of_the_host_are_refused(x, value):
    with pytest.raises(TypeError, match=r"a numpy\.ndarray of shape \([02],\) as a kernel parameter"):
        standin.RawKernel(SCALE, "scale")(*ONE, (x, value, np.int32(1)))


def test_python_numbers_are_64_bits_wide(x):
    there = standin.zeros(3)
    standin.RawKernel(TYPES, "types")(*ONE, (there, 2**40, 0.1, True))
    assert there.get().tolist() == [2**40, 0.1, 1]
    with pytest.raises(KernelError, match="which CuPy passes as float64"):
        standin.RawKernel(SCALE, "scale")(*ONE, (x, 2.0, np.int32(1)))


def test_dynamic_shared_memory_over_48_kib_is_asked_for_first(x):
    refused = pytest.raises(standin.cuda.driver.CUDADriverError, match="CUDA_ERROR_INVALID_VALUE: invalid argument")
    kernel = standin.RawModule(code=SHARED).get_function("sums")
    kernel(*ONE, (x,), shared_mem=48 * 1024)
    with refused:
        kernel(*ONE, (x,), shared_mem=48 * 1024 + 1)
    kernel.max_dynamic_shared_size_bytes = 100 * 1024
    assert kernel.max_dynamic_shared_size_bytes == 100 * 1024
    kernel(*ONE, (x,), shared_mem=100 * 1024)
    assert float(x[0]) == 2
    with refused:
        kernel(*ONE, (x,), shared_mem=100 * 1024 + 1)
    with refused:
        kernel.max_dynamic_shared_size_bytes = 227 * 1024 + 1
    standin.set_device_count(2)
    with standin.cuda.Device(1):  # the attribute is the device's
        assert kernel.max_dynamic_shared_size_bytes == 48 * 1024
    assert kernel.max_dynamic_shared_size_bytes == 100 * 1024


def test_a_source_that_does_not_compile_says_so_at_the_launch(x):
    kernel = standin.RawKernel('extern "C" __global__ void f(float* x) { undeclared; }', "f", ("-DNAME",))
    with pytest.raises(standin.cuda.compiler.CompileException, match=r"undeclared.* was not declared") as caught:
        kernel(*ONE, (x,))
    assert (caught.value.name, caught.value.options) == ("f", ("-DNAME",))
    with pytest.raises(standin.cuda.compiler.CompileException):
        standin.RawModule(code="nonsense").get_function("f")
    with pytest.raises(TypeError, match="expected tuple, got list"):
        standin.RawKernel(SCALE, "scale", ["-DA"])


def test_a_launch_needs_the_arrays_on_the_current_device(x):
    standin.set_device_count(2)
    with standin.cuda.Device(1), pytest.raises(ValueError, match="different from the current device"):
        standin.RawKernel(SCALE, "scale")(*ONE, (x, np.float32(1), np.int32(1)))


def test_a_launch_reads_and_writes_in_the_order_of_its_stream(x):
    kernel = standin.RawKernel(COPY, "copy")
    side = standin.cuda.Stream(non_blocking=True)
    y = standin.zeros(4, np.float32)
    with side, pytest.raises(standin.StreamRace, match="writes memory that null"):
        kernel((1,), (4,), (None, y))
    with side, pytest.raises(standin.StreamRace, match="reads memory that null"):
        kernel((1,), (4,), (x, y))
    side.wait_event(standin.cuda.get_current_stream().record())
    with side:
        kernel((1,), (4,), (x, y))
    x + 1  # pointers to const are only read
    with pytest.raises(standin.StreamRace, match="reads memory that stream"):
        y + 1
    with pytest.raises(standin.StreamRace, match="writes memory that stream"):
        x += 1


def test_modules_are_compiled_once(x, monkeypatch):
    import culux.testing.cuda as emulator

    made = []
    real = emulator.EmulatedModule
    monkeypatch.setattr(kernels, "_modules", {})
    monkeypatch.setattr(emulator, "EmulatedModule", lambda *args, **kw: made.append(args) or real(*args, **kw))
    for _ in range(2):
        standin.RawKernel(SCALE, "scale")(*ONE, (x, np.float32(1), np.int32(1)))
    assert len(made) == 1


def test_a_write_behind_an_array_is_found(x):
    source = 'extern "C" __global__ void f(float* x, int n) { x[n] = 1.0f; }'
    with pytest.raises(standin.StandinError, match="kernel f wrote past the end of an array"):
        standin.RawKernel(source, "f")(*ONE, (x, np.int32(x.size)))
    x.fill(0)
