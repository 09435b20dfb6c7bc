"""The stand-in's memory pools, hooks and counters."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import tests.standin_cupy as standin


@pytest.fixture(autouse=True)
def reset():
    standin.machine.reset()


@pytest.fixture
def pool():
    return standin.cuda.get_default_memory_pool()


def calls():
    return standin.machine.library_calls


class Recorder(standin.cuda.MemoryHook):
    name = "Recorder"

    def __init__(self):
        self.calls = []

    def malloc_preprocess(self, *, device_id, size, mem_size):
        self.calls.append(("malloc", device_id, size, mem_size))

    def malloc_postprocess(self, *, device_id, size, mem_size, mem_ptr, pmem_id):
        self.calls.append(("malloced", device_id, size, mem_size, mem_ptr, pmem_id))

    def alloc_preprocess(self, *, device_id, mem_size):
        self.calls.append(("alloc", device_id, mem_size))

    def alloc_postprocess(self, *, device_id, mem_size, mem_ptr):
        self.calls.append(("alloced", device_id, mem_size, mem_ptr))

    def free_preprocess(self, *, device_id, mem_size, mem_ptr, pmem_id):
        self.calls.append(("free", device_id, mem_size, mem_ptr, pmem_id))

    def free_postprocess(self, *, device_id, mem_size, mem_ptr, pmem_id):
        self.calls.append(("freed", device_id, mem_size, mem_ptr, pmem_id))


# Counting


def test_work_is_counted_and_views_and_transfers_are_not():
    x = standin.asarray(np.ones((2, 3), np.float32))
    assert calls() == 0
    x[0], x.T, x.reshape(-1), x[:, 1:].ravel(), standin.broadcast_to(x, (4, 2, 3)), standin.split(x, 2)
    assert calls() == 1  # ravel copies what is no block
    x.get(), float(x[0, 0]), standin.asnumpy(x), standin.empty(3), standin.empty_like(x), x.set(x.get())
    assert calls() == 1
    before = calls()
    for work in (
        lambda: x + 1,
        lambda: standin.sin(x),
        lambda: standin.add(x, x, out=x),
        lambda: x.sum(),
        lambda: x.astype(np.float16),
        lambda: x.copy(),
        lambda: standin.zeros(3),
        lambda: standin.concatenate([x, x]),
        lambda: x.fill(2),
        lambda: x @ x.T,
        lambda: x[standin.asarray([0, 1])],
        lambda: standin.add.at(x, standin.asarray([0]), 1.0),
    ):
        work()
        before += 1
        assert calls() == before


# Pools


def test_pools_count_in_blocks_of_512_bytes(pool):
    x = standin.empty(129, np.float32)
    assert (pool.used_bytes(), pool.free_bytes(), pool.total_bytes(), pool.n_free_blocks()) == (1024, 0, 1024, 0)
    free, total = standin.cuda.runtime.memGetInfo()
    assert total - free == 1024
    del x
    assert (pool.used_bytes(), pool.free_bytes(), pool.total_bytes(), pool.n_free_blocks()) == (0, 1024, 1024, 1)
    pool.free_all_blocks()
    assert (pool.total_bytes(), standin.cuda.runtime.memGetInfo()[0]) == (0, total)


def test_results_come_from_the_pool_and_go_back_poisoned(pool):
    x = standin.ones(4, np.float32)
    y = x + 1
    assert pool.used_bytes() == 1024
    pointer, host = y.data.ptr, y._host
    del y
    assert np.isnan(host).all()
    z = x * 2
    assert z.data.ptr == pointer
    assert z.get().tolist() == [2] * 4


def test_blocks_belong_to_the_stream_they_were_made_on():
    side = standin.cuda.Stream(non_blocking=True)
    with side:
        x = standin.empty(4)
        pointer = x.data.ptr
        del x
    assert standin.empty(4).data.ptr != pointer
    with side:
        assert standin.empty(4).data.ptr == pointer


def test_results_keep_the_order_of_numpys():
    x = standin.ones((2, 3, 4)).transpose(2, 0, 1)
    assert (x + 1).strides == (np.ones((2, 3, 4)).transpose(2, 0, 1) + 1).strides
    assert x.copy().flags.c_contiguous
    np.testing.assert_array_equal((x + 1).get(), np.full((4, 2, 3), 2))


def test_arrays_in_memory_of_a_pool():
    memory = standin.cuda.alloc(64)
    x = standin.ndarray((2, 3), np.float32, memory)
    y = standin.ndarray((2,), np.int64, memory + 24)
    x[...], y[...] = 1, 2
    assert (y.data.ptr - x.data.ptr, y.data.offset, x[1].data.offset) == (24, 24, 12)
    assert (x.get().sum(), y.get().sum(), y.data.mem) == (6, 4, x.data.mem)
    with pytest.raises(TypeError, match="buffer is too small"):
        standin.ndarray((999,), np.float32, memory)


def test_a_thread_has_an_allocator_and_a_pool_of_its_own(pool):
    own = standin.cuda.MemoryPool()
    with standin.cuda.using_allocator(own.malloc):
        x = standin.ones(4)
        thread = threading.Thread(target=lambda: standin.ones(4))
        thread.start()
        thread.join()
    assert (own.used_bytes(), pool.used_bytes(), pool.total_bytes()) == (512, 0, 512)
    del x
    assert own.n_free_blocks() == 1


def test_a_pool_that_goes_takes_its_memory_along():
    own = standin.cuda.MemoryPool()
    with standin.cuda.using_allocator(own.malloc):
        x = standin.ones(4)
    del own
    gc.collect()
    assert standin.cuda.runtime.memGetInfo()[0] == standin.machine.device_bytes
    with pytest.raises(standin.StandinError, match="memory is used that its pool has given back"):
        x + 1


# Running out


def test_past_the_limit_of_a_pool(pool):
    pool.set_limit(size=2048)
    assert pool.get_limit() == 2048
    kept = [standin.empty(512, np.uint8) for _ in range(3)]
    with pytest.raises(
        standin.cuda.memory.OutOfMemoryError,
        match=r"^Out of memory allocating 1,024 bytes \(allocated so far: 1,536 bytes, limit set to: 2,048 bytes\)\.$",
    ):
        standin.ones(1000, np.uint8)
    standin.ones(512, np.uint8)
    standin.ones(512, np.uint8)  # the block of the one before
    assert issubclass(standin.cuda.memory.OutOfMemoryError, MemoryError)
    pool.set_limit()
    assert standin.ones(5000, np.uint8).nbytes == 5000
    assert len(kept) == 3
    standin.set_device_count(2)
    with standin.cuda.Device(1):
        assert pool.get_limit() == 0


def test_past_the_memory_of_the_device(pool):
    standin.machine.device_bytes = 2048
    kept = standin.empty(512, np.uint8)
    del kept
    kept = standin.empty(2048, np.uint8)  # the free block goes first
    with pytest.raises(
        standin.cuda.memory.OutOfMemoryError,
        match=r"^Out of memory allocating 512 bytes \(allocated so far: 2,048 bytes\)\.$",
    ):
        standin.empty(1)
    assert kept.nbytes == pool.total_bytes() == 2048


def test_the_error_is_importable(standin_cupy):
    from cupy.cuda.memory import OutOfMemoryError

    standin_cupy.get_default_memory_pool().set_limit(size=512)
    with pytest.raises(OutOfMemoryError):
        standin_cupy.zeros(1000)


# Hooks


def test_hooks_see_every_allocation_and_every_return():
    with Recorder() as hook:
        x = standin.empty(100, np.uint8)
        pointer, memory = x.data.ptr, id(x.data.mem)
        assert hook.calls == [
            ("malloc", 0, 100, 512), ("alloc", 0, 512), ("alloced", 0, 512, pointer),
            ("malloced", 0, 100, 512, pointer, memory),
        ]  # fmt: skip
        hook.calls.clear()
        del x
        assert hook.calls == [("free", 0, 512, pointer, memory), ("freed", 0, 512, pointer, memory)]
        hook.calls.clear()
        x = standin.ones(64, np.float32) + 1  # the block again, and a new one for the sum
        assert [call[0] for call in hook.calls[:2]] == ["malloc", "malloced"]
        assert hook.calls[1][4] == pointer
        assert [call[2] for call in hook.calls if call[0] == "malloced"] == [256, 256]
    hook.calls.clear()
    del x
    standin.empty(3)
    assert hook.calls == []


def test_hooks_are_the_threads_own_and_have_one_name():
    with Recorder() as hook, standin.cuda.MemoryHook():
        thread = threading.Thread(target=lambda: standin.ones(4))
        thread.start()
        thread.join()
        assert hook.calls == []
        with pytest.raises(KeyError, match="memory hook Recorder already exists"), Recorder():
            pass
    with Recorder():
        pass


def test_a_hook_hears_of_a_failure():
    standin.get_default_memory_pool().set_limit(size=512)
    with Recorder() as hook, pytest.raises(standin.cuda.memory.OutOfMemoryError):
        standin.empty(1000, np.uint8)
    assert hook.calls == [("malloc", 0, 1000, 1024), ("malloced", 0, 1000, 1024, 0, 0)]


# Time


def test_events_tell_how_much_was_done_between_them():
    stream = standin.cuda.get_current_stream()
    x = standin.ones(3)
    start, stop, untimed = standin.cuda.Event(), standin.cuda.Event(), standin.cuda.Event(disable_timing=True)
    start.record(stream)
    for _ in range(5):
        x + 1
    stop.record(stream)
    with pytest.raises(standin.cuda.runtime.CUDARuntimeError, match="cudaErrorNotReady"):
        standin.cuda.get_elapsed_time(start, stop)
    stop.synchronize()
    assert standin.cuda.get_elapsed_time(start, stop) == pytest.approx(0.05)
    with pytest.raises(standin.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidResourceHandle"):
        standin.cuda.get_elapsed_time(untimed, stop)
