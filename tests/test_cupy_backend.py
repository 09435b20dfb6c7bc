"""The CuPy backend on the stand-in: places, transfers, streams, kernels, uploads and the order of their copies."""

from __future__ import annotations

import numpy as np
import pytest

import culux
import culux.numpy as cnp
from culux.backends import Memory, Place, array_namespace, backend_of, get_backend, installed, is_array, is_float_array
from culux.errors import DeviceError, DTypeError, KernelError
from tests.support import requires


@pytest.fixture
def cupy(standin_cupy):
    standin_cupy.set_device_count(2)
    return standin_cupy


@pytest.fixture
def backend(cupy):
    return get_backend("cupy")


# The backend


def test_the_registry_finds_it(cupy, backend):
    x = cupy.ones(2)
    assert backend_of(x) is backend
    assert array_namespace(x, 2.0) is cupy
    assert is_array(x)
    assert is_float_array(x)
    assert not is_float_array(cupy.arange(3))
    assert installed()["cupy"] == ""
    with pytest.raises(DeviceError, match=r"argument 1 is on cuda:0 \(cupy\), argument 2 is on cpu \(numpy\)"):
        backend_of(x, np.ones(2))
    with pytest.raises(DeviceError, match=r"argument 1 is on cuda:0 \(cupy\), argument 3 is on cuda:1|cuda:1 \(cupy\)"):
        backend_of(x, 1.0, backend.move(x, 1))


@pytest.mark.parametrize("broken", [False, True])
def test_a_cupy_without_a_gpu_has_no_devices(standin_cupy, monkeypatch, broken):
    standin_cupy.set_device_count(0)
    if broken:
        monkeypatch.setattr(standin_cupy.cuda, "is_available", lambda: True)  # then getDeviceCount raises
    assert get_backend("cupy").device_count() == 0
    assert installed()["cupy"] == "no device can be used"


def test_transfers(cupy, backend):
    host = np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1]
    there = backend.from_host(host, 1)
    assert backend.place_of(there) == Place("cuda", 1)
    assert cupy.cuda.runtime.getDevice() == 0
    np.testing.assert_array_equal(backend.to_host(there), host)
    assert backend.move(there, 1) is there
    moved = backend.move(there, 0)
    assert backend.place_of(moved) == Place("cuda", 0)
    np.testing.assert_array_equal(backend.to_host(moved), host)
    assert backend.astype(there, "float32") is there
    half = backend.astype(there, np.float16)
    assert (half.dtype, backend.place_of(half).index) == (np.float16, 1)
    for index in (2, -1):
        with pytest.raises(DeviceError, match=f"expected the index of a CUDA device, got {index}; CuPy can use 2 here"):
            backend.from_host(host, index)
    with pytest.raises(DTypeError, match="CuPy has no arrays of dtype <U1; keep them on the host"):
        backend.from_host(np.array(["a"]), 0)


def test_a_move_between_devices_waits_for_the_stream_of_the_source(cupy, backend):
    there = backend.from_host(np.ones(2), 0)
    cupy.machine.log.clear()
    backend.move(there, 1)
    assert ("synchronize", "null 0") in cupy.machine.log


def test_memory(cupy, backend):
    before = backend.memory(1)
    assert isinstance(before, Memory)
    kept = backend.from_host(np.zeros(1000, np.uint8), 1)
    assert backend.memory(1).used - before.used == 1024  # the pool rounds 1000 up to a multiple of 512
    assert kept.nbytes == 1000
    assert backend.memory(1).total == 80 * 2**30
    assert backend.memory(0).used == 0
    backend.synchronize(1)
    assert cupy.machine.log[-1] == ("synchronize", "device 1")


def test_a_side_stream_is_ordered_after_and_before_the_outer_one(cupy, backend):
    x = cupy.ones(3)
    with backend.stream(0) as side:
        assert cupy.cuda.get_current_stream() is side
        assert side.is_non_blocking
        y = x + 1
    np.testing.assert_array_equal((y * 2).get(), [4, 4, 4])
    x += 1
    with pytest.raises(cupy.StreamRace), cupy.cuda.Stream(non_blocking=True):
        x + 1


SCALE = """
extern "C" __global__ void scale(float* x, float a, int n) {
    extern __shared__ float s[];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= a * N;
}
"""
FILL = "template <class T> __global__ void fill(T* x, T a) { x[threadIdx.x] = a; }"


def test_kernels_are_made_without_a_gpu_and_compiled_at_the_launch(cupy, backend):
    requires("compiler")
    kernel = backend.compile(SCALE, "scale", ("-DN=2",))
    x = backend.from_host(np.ones(5, np.float32), 1)
    backend.launch(kernel, (2,), (2,), [x, np.float32(3), np.int32(3)], shared=16)
    np.testing.assert_array_equal(backend.to_host(x), [6, 6, 6, 1, 1])
    (launch,) = [entry[1:] for entry in cupy.machine.log if entry[0] == "launch"]
    assert (launch[0], *launch[1:3], launch[4]) == ("scale", (2,), (2,), 16)
    backend.launch(backend.compile(FILL, "fill<float>"), (1,), (3,), [x, np.float32(7)])
    np.testing.assert_array_equal(backend.to_host(x), [7, 7, 7, 1, 1])
    cupy.machine.log.clear()
    backend.launch(kernel, (0, 1), (32,), [x])
    assert cupy.machine.log == []


def test_kernels_that_do_not_compile_say_so_when_launched(cupy, backend):
    requires("compiler")
    kernel = backend.compile("#error of ours", "bad")
    with pytest.raises(KernelError, match=r"kernel bad does not compile for sm_90:\n(.|\n)*#error of ours"):
        backend.launch(kernel, (1,), (1,), [])


def test_kernels_with_more_shared_memory_than_usual_ask_for_it_on_every_device(cupy, backend):
    requires("compiler")
    kernel = backend.compile(SCALE, "scale", ("-DN=1",))
    for index in (0, 1, 0):
        x = backend.from_host(np.ones(1, np.float32), index)
        for kib in (60, 100, 20):
            backend.launch(kernel, (1,), (1,), [x, np.float32(1), np.int32(1)], shared=kib * 1024)
    limit = backend.shared_limit(0)
    assert (limit, backend.shared_limit(0)) == (227 * 1024, limit)
    message = (
        rf"kernel scale: the launch with grid \(1,\), block \(2, 3\) and {limit + 1} bytes of dynamic shared memory was"
        " refused: CUDA_ERROR_INVALID_VALUE"
    )
    with pytest.raises(KernelError, match=message):
        backend.launch(kernel, (1,), (2, 3), [x, np.float32(1), np.int32(1)], shared=limit + 1)


def test_kernels_of_one_source_are_compiled_together(cupy, backend):
    requires("compiler")
    source = SCALE + 'extern "C" __global__ void zero(float* x) { x[0] = 0; }' + FILL
    x = backend.from_host(np.ones(2, np.float32), 0)
    backend.launch(backend.compile(source, "zero", ("-DN=1",)), (1,), (1,), [x])
    backend.launch(backend.compile(source, "scale", ("-DN=1",)), (1,), (2,), [x, np.float32(4), np.int32(2)])
    assert x.get().tolist() == [0, 4]
    assert len(backend._modules) == 1
    backend.compile(source, "fill<float>", ("-DN=1",))
    backend.compile(source, "zero", ("-DN=2",))
    assert len(backend._modules) == 3


@pytest.mark.parametrize("devices", [1, 2])
def test_a_launch_is_on_the_device_and_stream_of_its_arrays(standin_cupy, devices):
    requires("compiler")
    standin_cupy.set_device_count(devices)
    backend = get_backend("cupy")
    x = backend.from_host(np.ones(2, np.float32), devices - 1)
    fill = backend.compile(FILL, "fill<float>")
    with backend.stream(devices - 1):
        backend.launch(fill, (1,), (2,), [x, np.float32(5)])
    backend.launch(backend.compile('extern "C" __global__ void nothing() {}', "nothing"), (1,), (1,), [])
    assert backend.to_host(x).tolist() == [5, 5]
    assert standin_cupy.machine.launches == 2


# Arrays for kernels


@pytest.mark.parametrize("devices", [1, 2])
def test_new_arrays_are_where_the_given_one_is(standin_cupy, devices):
    standin_cupy.set_device_count(devices)
    backend = get_backend("cupy")
    x = backend.from_host(np.ones((2, 3), np.float32), devices - 1)
    y = backend.empty(x, (4,), np.float16)
    assert (y.shape, y.dtype.name, backend.place_of(y).index) == ((4,), "float16", devices - 1)
    assert np.isnan(y.get()).all()
    assert standin_cupy.machine.library_calls == 0
    assert backend.contiguous(x) is x
    turned = backend.contiguous(x.T)
    assert turned.flags.c_contiguous
    assert backend.place_of(turned).index == devices - 1
    np.testing.assert_array_equal(turned.get(), x.get().T)
    assert standin_cupy.machine.library_calls == 1


def test_allocations_are_noted_while_one_listens(cupy, backend):
    x = backend.from_host(np.ones(100, np.float32), 0)
    sizes = []
    with backend.allocations(sizes.append):
        y = x + 1
        del y
        x * 2  # the block again
        cupy.empty(3, np.uint8)
    x + 1
    assert sizes == [400, 400, 3]


def test_float32_products_are_computed_as_asked(cupy, backend):
    from culux.backends.cupy_backend import CupyBackend

    core = cupy._core
    assert core.get_compute_type("float32") == 1
    with backend.matmul_precision("tf32"):
        assert core.get_compute_type("float32") == 7
        with backend.matmul_precision("float32"):
            assert core.get_compute_type("float32") == 1
        assert core.get_compute_type("float32") == 7
    with pytest.raises(ZeroDivisionError), backend.matmul_precision("tf32"):
        raise ZeroDivisionError
    assert core.get_compute_type("float32") == 1
    cupy.set_device_count(0)
    with CupyBackend().matmul_precision("tf32"):
        assert core.get_compute_type("float32") == 1


# Timing


def test_work_is_timed_by_events_of_its_stream(cupy, backend):
    timer = backend.timer(1)
    assert backend.timer(1) is timer
    assert (timer.device, timer.versions) == ("Stand-in", {"cuda": "12.9", "driver": "12.9"})
    x = backend.from_host(np.ones(3), 1)
    done = []
    assert timer.elapsed(lambda: done.append(x + 1), 5) == pytest.approx(10)  # the stand-in's 0.01 ms each
    assert len(done) == 5
    with cupy.cuda.Device(1), cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        assert timer.elapsed(lambda: done.append(x + 1), 5) is None
        stream.end_capture()
    assert len(done) == 5
    with pytest.raises(DeviceError, match="expected the index of a CUDA device, got 2; CuPy can use 2 here"):
        backend.timer(2)


# Uploads


def test_an_upload_is_seen_after_wait_and_not_before(cupy, backend):
    upload = backend.upload(0)
    upload.stage(4)[...] = 7
    there = upload.start()
    with pytest.raises(cupy.StreamRace, match="an event is missing"):
        there + 1
    upload.wait()
    np.testing.assert_array_equal((there + 1).get(), [8, 8, 8, 8])


def test_staging_waits_until_the_copy_before_has_left(cupy, backend):
    upload = backend.upload(0)
    upload.stage(4)[...] = 1
    first = upload.start()
    upload.wait()
    upload.stage(2)[...] = 2
    second = upload.start()
    upload.wait()
    np.testing.assert_array_equal(first.get(), [1, 1, 1, 1])
    np.testing.assert_array_equal(second.get(), [2, 2])
    upload.stage(8)[...] = 3
    np.testing.assert_array_equal(second.get(), [2, 2])
    upload.close()


# The same on a GPU


@pytest.mark.gpu
def test_the_backend_on_a_gpu():
    backend = get_backend("cupy")
    host = np.arange(1000, dtype=np.float32)
    x = backend.from_host(host, 0)
    source = 'extern "C" __global__ void scale(float* x, float a, int n)' + (
        "{ int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) x[i] *= a; }"
    )
    template = source.replace('extern "C" ', "template <class T> ").replace("float", "T")
    with backend.stream(0):
        backend.launch(backend.compile(source, "scale"), (8,), (128,), [x, np.float32(2), np.int32(1000)])
    backend.launch(backend.compile(template, "scale<float>"), (8,), (128,), [x, np.float32(2), np.int32(1000)])
    np.testing.assert_array_equal(backend.to_host(x), 4 * host)
    with pytest.raises(KernelError, match="does not compile"):
        backend.launch(backend.compile("nonsense", "f"), (1,), (1,), [])
    memory = backend.memory(0)
    assert 0 < memory.used <= memory.held < memory.total
    with pytest.raises(DTypeError, match="CuPy has no arrays of dtype <U1"):
        backend.from_host(np.array(["a"]), 0)


def test_where_and_clip_keep_bfloat16(standin_cupy, monkeypatch):
    half = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)

    def widened(function):  # CuPy's have no bfloat16, and give float32
        def call(*args, **kwargs):
            y = function(*args, **kwargs)
            return y.astype(np.float32) if y.dtype == half else y

        return call

    for name in ("where", "clip"):
        monkeypatch.setattr(standin_cupy, name, widened(getattr(standin_cupy, name)))
    x = standin_cupy.asarray(np.linspace(-1, 1, 5).astype(half))
    for function in (lambda x: cnp.where(x > 0, x, x * 2), lambda x: cnp.clip(x, -0.5, 0.5), lambda x: x.max()):
        y, pullback = culux.vjp(function, x)
        assert (function(x).dtype, y.dtype, pullback(y)[0].dtype) == (half, half, half)
