"""The launcher: what it refuses, what it converts, and the text of the programs."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import kernels, nn
from culux.errors import DeviceError, KernelError
from culux.kernels import source
from culux.kernels.launcher import Kernel, get_kernel

SHIFT = """
extern "C" __global__ void shift(const S* __restrict__ x, S* __restrict__ y,
                                 const int* ids, T by, int n, Index total, bool up) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && total > 0) y[i] = S(T(x[i]) + (up ? by : -by) + (ids ? T(ids[i]) : T(0)));
}
"""


@pytest.fixture
def shift(monkeypatch):
    """A kernel of a family of its own."""
    real = source._read

    def read(name):
        return SHIFT if name == "shift.cu" else real(name)

    monkeypatch.setattr(source, "_read", read)
    return Kernel(source.program.__wrapped__("shift", "float32"), "shift")


def arguments(cupy, **changes):
    values = {
        "x": cupy.arange(5, dtype="float32"), "y": cupy.empty(5, "float32"), "ids": None, "by": 2, "n": 5, "total": 5,
        "up": True,
    }  # fmt: skip
    return list({**values, **changes}.values())


def test_numbers_become_what_the_kernel_declares(shift, standin_cupy):
    args = arguments(standin_cupy, up=np.bool_(False))
    shift((1,), (32,), *args)
    assert args[1].get().tolist() == [-2, -1, 0, 1, 2]
    ((_, _, _, _, launched, _),) = [entry for entry in standin_cupy.machine.log if entry[0] == "launch"]
    assert [type(value) for value in launched[3:]] == [np.float32, np.int32, np.int64, np.bool_]


def test_an_empty_grid_launches_nothing(shift, standin_cupy):
    shift((0,), (32,), *arguments(standin_cupy))
    assert not [entry for entry in standin_cupy.machine.log if entry[0] == "launch"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x": lambda cp: cp.arange(10, dtype="float32")[::2]},
            r"argument x: expected a C-contiguous array of float32 or None, got .*on cuda:0 with strides \(8,\)",
        ),
        ({"x": lambda cp: cp.arange(5, dtype="float64")}, r"argument x: expected .* float32 or None, got .*float64"),
        ({"ids": lambda cp: cp.arange(5, dtype="int64")}, r"argument ids: expected .* int32 or None, got .*int64"),
        ({"y": lambda cp: 3.0}, r"argument y: expected .* float32 or None, got 3\.0"),
        ({"n": lambda cp: 2.5}, r"argument n: expected a number that fits int32, got 2\.5"),
        ({"n": lambda cp: 2**31}, r"argument n: expected a number that fits int32, got 2147483648"),
        ({"by": lambda cp: "2x"}, r"argument by: expected a number that fits float32, got '2x'"),
    ],
)
def test_what_does_not_fit_is_refused(shift, standin_cupy, changes, message):
    args = arguments(standin_cupy, **{name: make(standin_cupy) for name, make in changes.items()})
    with pytest.raises(KernelError, match=rf"kernel shift \(culux/kernels/shift\.cu\), {message}"):
        shift((1,), (32,), *args)
    assert not [entry for entry in standin_cupy.machine.log if entry[0] == "launch"]


def test_the_number_of_arguments_is_checked(shift, standin_cupy):
    with pytest.raises(KernelError, match=r"kernel shift .*: expected 7 arguments, got 6"):
        shift((1,), (32,), *arguments(standin_cupy)[:-1])


def test_arrays_of_two_places_are_refused(shift, standin_cupy):
    with pytest.raises(DeviceError, match=r"cuda:0 \(cupy\).*is on cpu \(numpy\)"):
        shift((1,), (32,), *arguments(standin_cupy, y=np.empty(5, "float32")))


def test_numpy_arrays_are_told_that_numpy_runs_no_kernels(shift):
    with pytest.raises(KernelError, match="numpy backend cannot compile the CUDA kernel 'shift'"):
        shift((1,), (32,), *arguments(np))


def test_a_source_that_does_not_compile_names_file_line_and_architecture(monkeypatch, standin_cupy):
    broken = SHIFT.replace("total > 0", "missing > 0")
    real = source._read
    monkeypatch.setattr(source, "_read", lambda name: broken if name == "broken.cu" else real(name))
    kernel = Kernel(source.program.__wrapped__("broken", "float32"), "shift")
    with pytest.raises(KernelError, match=r"(?s)kernel shift does not compile for sm_90:.*broken\.cu:5.*missing"):
        kernel((1,), (32,), *arguments(standin_cupy))


def test_a_dtype_without_kernels_is_refused():
    with pytest.raises(KernelError, match=r"activation: there are kernels for float32, .*bfloat16, not for int32"):
        get_kernel("activation", "activation_forward", np.dtype("int32"))
    assert not kernels.supports(np.dtype("int32"))


def test_a_parameter_of_a_form_that_is_not_known_is_refused():
    with pytest.raises(KernelError, match=r"kernel f: the parameter 'float x\[3\]' is of a form"):
        source._kernels('extern "C" __global__ void f(float x[3]) {}', {})


def test_programs_say_where_their_code_stands():
    text = source.program("activation", "float16", activation=nn.relu.cuda()).text
    assert "#include <cuda_fp16.h>" in text
    assert '#line 1 "culux/kernels/activation.cu"' in text
    assert source.program("activation", "float32", activation=nn.tanh.cuda()).label == "activation float32 tanh"


def test_memory_that_runs_out_names_operation_and_bytes(standin_cupy):
    x = standin_cupy.ones((64, 64), "float32")
    pool = standin_cupy.get_default_memory_pool()
    pool.set_limit(size=pool.total_bytes())
    message = (
        r"exp: out of memory on cuda:0: Out of memory allocating 16,384 bytes \(allocated so far: 16,384 bytes.*\)"
        r".* There are 16,384 bytes in use, 16,384 bytes held, [\d,]+ bytes in all; take smaller batches"
    )
    with pytest.raises(culux.errors.DeviceMemoryError, match=message) as caught:
        culux.numpy.exp(x)
    assert isinstance(caught.value, MemoryError)
    pool.set_limit(size=0)
    _, pullback = culux.vjp(culux.numpy.exp, x)
    pool.set_limit(size=pool.total_bytes())
    with pytest.raises(culux.errors.DeviceMemoryError, match=r"the backward pass of culux\.numpy\.elementwise: out of"):
        pullback(x)


def test_a_launch_that_the_gpu_refuses_says_what_was_asked(shift, standin_cupy):
    message = r"kernel shift: the launch with grid \(1,\), block \(32,\) and 999999 bytes .* was refused: CUDA_ERROR"
    with pytest.raises(KernelError, match=message):
        shift((1,), (32,), *arguments(standin_cupy), shared=999_999)


def test_more_shared_memory_is_asked_for_where_it_is_needed(shift, standin_cupy):
    args = arguments(standin_cupy)
    shift((1,), (32,), *args, shared=100_000)
    shift((1,), (32,), *args, shared=60_000)
    assert args[1].get().tolist() == [2, 3, 4, 5, 6]
