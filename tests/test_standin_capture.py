"""Stream capture and graphs on the stand-in: what is recorded and replayed."""

from __future__ import annotations

import numpy as np
import pytest

import tests.standin_cupy as standin
from culux.errors import KernelError
from tests.support import requires

SCALE = """
struct Factor { float a; int n; };
extern "C" __global__ void scale(const float* x, float* y, Factor by, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = by.a * by.n * x[i];
}
"""
FACTOR = np.dtype([("a", np.float32), ("n", np.int32)])


@pytest.fixture(autouse=True)
def reset():
    standin.machine.reset()


@pytest.fixture
def stream():
    with standin.cuda.Stream(non_blocking=True) as stream:
        yield stream


@pytest.fixture
def x(stream):
    return standin.arange(4, dtype=np.float32)


def captured(stream, f):
    """What ``f()`` returns, and the graph of it."""
    stream.begin_capture()
    result = f()
    return result, stream.end_capture()


# Recording and replay


def test_nothing_is_done_before_the_launch_and_then_on_what_is_there(stream, x):
    y, graph = captured(stream, lambda: standin.sqrt(x * x) + 1)
    assert np.isnan(y.get()).all()
    assert (y.shape, y.dtype) == ((4,), np.float32)
    graph.upload()
    graph.launch()
    np.testing.assert_array_equal(y.get(), [1, 2, 3, 4])
    x[...] = standin.asarray(np.array([5, 6, 7, 8], np.float32))
    np.testing.assert_array_equal(y.get(), [1, 2, 3, 4])
    graph.launch(stream)
    np.testing.assert_array_equal(y.get(), [6, 7, 8, 9])


OPERATIONS = {
    "reduction": (lambda x: x.sum(keepdims=True), [6]),
    "several results": (lambda x: standin.concatenate(standin.split(x + 1, 2)[::-1]), [3, 4, 1, 2]),
    "creation": (lambda x: standin.full(4, 3, np.float32) + standin.arange(4), [3, 4, 5, 6]),
    "out": (lambda x: standin.add(x, 1, out=standin.zeros(4, np.float32)), [1, 2, 3, 4]),
    "views": (lambda x: (x.reshape(2, 2).T + 0).reshape(-1)[1:], [2, 1, 3]),
    "a copy": (lambda x: x.copy() * 2, [0, 2, 4, 6]),
    "a dtype": (lambda x: x.astype(np.int32) // 2, [0, 0, 1, 1]),
    "an index": (lambda x: x[standin.arange(3, 0, -1)], [3, 2, 1]),
    "a mask that is written": (lambda x: standin.where(x > 1, x, -1), [-1, -1, 2, 3]),
    "where": (lambda x: standin.take(x, standin.argmax(x, keepdims=True)), [3]),
    "an index of the capture's": (lambda x: standin.take(x, (standin.arange(4) % 2).astype(np.uint32)), [0, 1, 0, 1]),
    "integer products": (lambda x: (x.astype(int) @ x.astype(int)).reshape(1), [14]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_recorded(name, stream, x):
    f, expected = OPERATIONS[name]
    calls = standin.machine.library_calls
    y, graph = captured(stream, lambda: f(x))
    assert standin.machine.library_calls > calls
    assert y.get().tolist() != expected
    for _ in range(2):
        graph.launch()
        assert y.get().tolist() == expected
    assert x.get().tolist() == [0, 1, 2, 3]


def test_writes_are_recorded(stream, x):
    y = standin.zeros(4, np.float32)
    index = standin.asarray([0, 0, 2])

    def write():
        x[1:] += 1
        y[...] = x
        standin.add.at(y, index, 10.0)
        standin.copyto(y[3:], x[:1])
        y[y > 19] = -1

    _, graph = captured(stream, write)
    assert (x.get().tolist(), y.get().tolist()) == ([0, 1, 2, 3], [0, 0, 0, 0])
    graph.launch()
    assert (x.get().tolist(), y.get().tolist()) == ([0, 2, 3, 4], [-1, 2, 13, 0])
    graph.launch()
    assert x.get().tolist() == [0, 3, 4, 5]


def test_kernels_are_recorded_with_their_numbers(stream, x):
    requires("compiler")
    kernel = standin.RawKernel(SCALE, "scale")
    y, factor, n = standin.empty(4, np.float32), np.array([(1.5, 2)], FACTOR), np.array(4, np.int32)

    def launch():
        kernel((2,), (2,), (x, y, factor, n))
        with pytest.raises(KernelError, match="takes 4 arguments"):  # now, not at the launch of the graph
            kernel((2,), (2,), (x, y))

    _, graph = captured(stream, launch)
    factor["a"], n[...] = 100, 0  # too late: a launch has the values, not the arrays
    assert np.isnan(y.get()).all()
    assert standin.machine.launches == 1
    x += 1
    graph.launch()
    np.testing.assert_array_equal(y.get(), [3, 6, 9, 12])


def test_a_graph_runs_on_the_stream_that_launches_it(stream, x):
    y, graph = captured(stream, lambda: x + 1)
    other = standin.cuda.Stream(non_blocking=True)
    with pytest.raises(standin.StreamRace, match="reads memory that stream"):
        graph.launch(other)
    other.wait_event(stream.record())
    graph.launch(other)
    assert ("graph", other.name) in standin.machine.log
    with pytest.raises(standin.StreamRace):
        y + 1
    stream.wait_event(other.record())
    assert (y + 1).get().tolist() == [2, 3, 4, 5]


def test_a_graph_writes_on_the_stream_that_launches_it(stream, x):
    def write():
        x[...] = 5

    _, graph = captured(stream, write)
    other = standin.cuda.Stream(non_blocking=True)
    other.wait_event(stream.record())
    graph.launch(other)
    with pytest.raises(standin.StreamRace, match="reads memory that stream"):
        x + 1


def test_is_capturing(stream, x):
    assert not stream.is_capturing()
    stream.begin_capture(standin.cuda.runtime.streamCaptureModeRelaxed)
    assert stream.is_capturing()
    assert not standin.cuda.Stream.null.is_capturing()
    other = standin.cuda.Stream(non_blocking=True)
    with other:
        assert float(standin.ones(2).sum()) == 2  # other streams work on
    assert isinstance(stream.end_capture(), standin.cuda.Graph)
    assert not stream.is_capturing()
    with pytest.raises(NotImplementedError):
        standin.cuda.Graph()


def test_streams_that_fork_and_join_are_one_graph(stream, x):
    side = standin.cuda.Stream(non_blocking=True)

    def forked():
        side.wait_event(stream.record())
        with side:
            assert side.is_capturing()
            y = x + 1
        stream.wait_event(side.record())
        return y * 2

    z, graph = captured(stream, forked)
    assert not side.is_capturing()
    graph.launch()
    assert z.get().tolist() == [2, 4, 6, 8]


def test_a_race_within_a_graph_is_one(stream, x):
    side = standin.cuda.Stream(non_blocking=True)

    def racing():
        side.wait_event(stream.record())
        with side:
            y = x + 1
        z = y * 2  # before it waits
        stream.wait_event(side.record())
        return z

    _, graph = captured(stream, racing)
    with pytest.raises(standin.StreamRace, match="an event is missing"):
        graph.launch()


# Memory


def test_temporaries_of_a_capture_are_the_graphs_to_use(stream, x):
    def f():
        y = x + 1
        for _ in range(5):
            y = y * 2  # each takes the memory of the one before the last
        return y

    y, graph = captured(stream, f)
    for _ in range(2):
        graph.launch()
        assert y.get().tolist() == [32, 64, 96, 128]


def test_memory_that_went_to_another_array_is_not_the_graphs(stream, x):
    _, graph = captured(stream, lambda: (x + 1) * 2 + x)
    other = standin.ones(4, np.float32)
    with pytest.raises(standin.StandinError, match="the graph writes memory that was freed after the capture"):
        graph.launch()
    assert other.get().tolist() == [1, 1, 1, 1]
    del other
    graph.launch()


def test_an_input_that_was_freed_is_poison_and_then_someone_elses(stream):
    inputs = [standin.ones(4, np.float32)]
    y, graph = captured(stream, lambda: inputs[0] + 1)
    inputs.clear()
    graph.launch()
    assert np.isnan(y.get()).all()
    other = standin.ones(4, np.float32)
    with pytest.raises(standin.StandinError, match="the graph reads memory that was freed"):
        graph.launch()
    assert other.size == 4


def test_a_pool_of_its_own_keeps_the_memory_of_a_graph(stream, x):
    pool = standin.cuda.MemoryPool()
    with standin.cuda.using_allocator(pool.malloc):
        y, graph = captured(stream, lambda: (x + 1) * 2 + x)
    others = [standin.ones(4, np.float32) for _ in range(4)]
    graph.launch()
    assert y.get().tolist() == [2, 5, 8, 11]
    pool.free_all_blocks()
    with pytest.raises(standin.StandinError, match="its pool has given back"):
        graph.launch()
    assert len(others) == 4


@pytest.mark.parametrize("too_far", [0, 1])
def test_a_replay_comes_back_to_blocks_in_which_longer_arrays_were(stream, x, too_far):
    requires("compiler")
    kernel, by = standin.RawKernel(SCALE, "scale"), np.array([(1.0, 3)], FACTOR)
    pool = standin.cuda.MemoryPool()

    def f():
        short = standin.empty(2, np.float32)
        kernel((1,), (4,), (x, short, by, np.int32(2 + too_far)))
        first = short.data.ptr
        del short
        long = standin.empty(4, np.float32)
        assert long.data.ptr == first
        kernel((1,), (4,), (x, long, by, np.int32(4)))
        return long

    with standin.cuda.using_allocator(pool.malloc):
        long, graph = captured(stream, f)
    if too_far:
        with pytest.raises(standin.StandinError, match="kernel scale wrote past the end of an array"):
            graph.launch()
        return
    for _ in range(3):
        graph.launch()
        np.testing.assert_array_equal(long.get(), 3 * x.get())
