"""DeviceIterator on the stand-in: batches whole and in order, copies that overlap, memory that is reused."""

from __future__ import annotations

import numpy as np
import pytest

from culux.devices import DeviceIterator, cpu_device, gpu_device
from culux.errors import DTypeError, LayerError


@pytest.fixture
def cupy(standin_cupy):
    standin_cupy.set_device_count(2)
    return standin_cupy


def batches(n=5, size=4, last=3):
    sizes = [size] * (n - 1) + [last]
    return [
        {"x": np.full((rows, 3), k, np.float32), "y": (np.arange(rows) + k, np.float64(k), "name", None)}
        for k, rows in enumerate(sizes)
    ]


def check(batch, expected):
    np.testing.assert_array_equal(batch["x"].get(), expected["x"])
    np.testing.assert_array_equal(batch["y"][0].get(), expected["y"][0])
    assert (batch["x"].dtype, batch["y"][0].dtype) == (expected["x"].dtype, expected["y"][0].dtype)
    assert batch["y"][1:] == expected["y"][1:]


@pytest.mark.parametrize("index", [0, 1])
def test_batches_come_whole_and_in_order(cupy, index):
    data = batches()
    iterator = DeviceIterator(gpu_device(index), data)
    assert len(iterator) == 5
    for _ in range(2):  # re-iterable, as a list is
        found = 0
        for batch, expected in zip(iterator, data, strict=True):
            with cupy.cuda.Device(index):
                assert batch["x"].device.id == index
                check(batch, expected)
                found += 1
        assert found == 5


def test_batches_that_are_kept_are_not_overwritten(cupy):
    # Nothing reads a batch before all copies are enqueued: staging too early, or memory reused, would show.
    kept = list(DeviceIterator(gpu_device(), batches()))
    for batch, expected in zip(kept, batches(), strict=True):
        check(batch, expected)


def test_memory_is_reused_and_never_while_it_is_read(cupy):
    total = 0.0
    held = []
    for batch in DeviceIterator(gpu_device(), batches(20, last=4)):
        total += (batch["x"] * 2).sum()  # reads on the consumer's stream; a write without its event is a StreamRace
        held.append(cupy.get_default_memory_pool().total_bytes())
        del batch
    assert float(total) == sum(2 * 12 * k for k in range(20))
    assert max(held[4:]) <= held[3]


def test_the_next_copy_starts_before_the_present_batch_is_computed_with(cupy):
    log = cupy.machine.log
    iterator = iter(DeviceIterator(gpu_device(), batches(3)))
    next(iterator)
    copies = [entry for entry in log if entry[0] == "copy"]
    assert len(copies) == 2
    assert len({stream for _, stream, _ in copies}) == 2
    assert len(cupy.machine.pending) == 2  # the host waited for neither
    log.clear()
    next(iterator)
    order = [entry[0] for entry in log]
    # staging waits for the first copy; the third waits for the consumer's stream; the consumer for the second
    assert order == ["synchronize", "record", "wait", "copy", "record", "wait"]
    record, side_wait, copy = log[1], log[2], log[3]
    assert record[2] == "null 0"
    assert side_wait[2] == record[1]
    assert copy[1] == side_wait[1] != "null 0"
    assert log[5][1] == "null 0"


def test_the_consumer_may_compute_on_a_stream_of_its_own(cupy):
    with cupy.cuda.Stream(non_blocking=True):
        sums = [float((batch["x"] + 0).sum()) for batch in DeviceIterator(gpu_device(), batches())]
    assert sums == [0, 12, 24, 36, 36]


def test_floats_are_converted_on_the_way(cupy):
    (half,) = DeviceIterator(gpu_device(dtype="float16"), [{"x": np.ones(3), "n": np.arange(3), "s": np.ones(4)[::2]}])
    assert [array.dtype.name for array in half.values()] == ["float16", "int64", "float16"]
    (swapped,) = DeviceIterator(gpu_device(), [np.arange(3, dtype=">f4")])
    assert swapped.dtype.isnative
    np.testing.assert_array_equal(swapped.get(), [0, 1, 2])


def test_batches_may_be_there_already_or_hold_no_array(cupy):
    there = cupy.ones(2)
    found = list(DeviceIterator(gpu_device(), [{"x": there, "y": np.zeros((0, 3))}, 3, ()]))
    assert found[0]["x"] is there
    assert found[0]["y"].shape == (0, 3)
    assert found[1:] == [3, ()]


def test_an_exception_comes_unchanged_after_the_batches_before_it(cupy):
    failure = ValueError("broken file")

    def source():
        yield from batches(3)
        raise failure

    for device in (gpu_device(), cpu_device()):
        seen = 0
        with pytest.raises(ValueError, match="broken file") as caught:  # noqa: PT012 (the loop is what raises)
            for _ in DeviceIterator(device, source()):
                seen += 1
        assert caught.value is failure
        assert seen == 3


def test_a_device_iterator_of_something_else():
    form = r"culux\.devices\.DeviceIterator\(culux\.device\('cpu'\), batches\)"
    for first in ("cpu", [np.ones(1)]):
        with pytest.raises(LayerError, match=rf"expected a Device first, got (str 'cpu'|list .*); {form}"):
            DeviceIterator(first, cpu_device() if first != "cpu" else [])
    with pytest.raises(LayerError, match=rf"expected an iterable of batches, got NoneType None; {form}"):
        DeviceIterator(cpu_device(), None)


def test_a_batch_that_cannot_move_names_the_path(cupy):
    with pytest.raises(DTypeError, match=r"at 1\.names: expected an array of numbers"):
        list(DeviceIterator(gpu_device(), [(np.ones(1), {"names": np.array(["a"])})]))


def test_stopping_early_leaves_nothing_under_way(cupy):
    iterator = iter(DeviceIterator(gpu_device(), batches()))
    next(iterator)
    assert cupy.machine.pending
    iterator.close()
    assert not cupy.machine.pending


def test_on_the_host_a_batch_is_what_the_device_makes_of_it():
    data = batches(2)
    found = list(DeviceIterator(cpu_device(), data))
    assert found[0]["x"] is data[0]["x"]
    assert next(iter(DeviceIterator(cpu_device("float64"), data)))["x"].dtype == np.float64
    assert repr(DeviceIterator(cpu_device(), [1])) == "DeviceIterator(cpu_device(), [1])"
    with pytest.raises(TypeError):
        len(DeviceIterator(cpu_device(), iter(data)))


@pytest.mark.gpu
def test_batches_on_a_gpu():
    import cupy

    device = gpu_device(force=True)
    data = [{"x": np.full((512, 512), k, np.float32), "n": np.arange(k)} for k in range(50)]
    total = cupy.zeros((512, 512), np.float32)
    for k, batch in enumerate(DeviceIterator(device, data)):
        for _ in range(20):  # enough work that the next copies overtake it, were they not ordered
            total += cupy.sqrt(batch["x"] * batch["x"]) / 20
        assert batch["n"].shape == (k,)
    np.testing.assert_allclose(cupy.asnumpy(total), sum(range(50)), rtol=1e-4)
    kept = list(DeviceIterator(device, data))
    for batch, expected in zip(kept, data, strict=True):
        np.testing.assert_array_equal(batch["x"].get(), expected["x"])
