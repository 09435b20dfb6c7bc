"""What a stream of the stand-in refuses while it captures, and what ends a capture."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import tests.standin_cupy as standin
from tests.support import requires

UNSUPPORTED = "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
LOST = "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture"
CUDARuntimeError = standin.cuda.runtime.CUDARuntimeError


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


FLOATS = ["x @ x", "xp.dot(x, x)", "x.dot(x)", "xp.tensordot(x, x, 1)", "xp.einsum('i,i->', x, x)", "xp.inner(x, x)"]


@pytest.mark.parametrize("expression", FLOATS)
def test_cublas_cannot_be_captured(expression, stream, x):
    stream.begin_capture()
    with pytest.raises(NotImplementedError, match="calling cuBLAS API during stream capture is currently unsupported"):
        eval(expression, {"x": x, "xp": standin})
    assert standin.einsum("i->", x).shape == ()  # a sum is no product
    stream.end_capture()  # the capture goes on


TO_HOST = [
    "x.get()", "float(x[0])", "bool(x.sum())", "int(x[0])", "x.item(0)", "x.tolist()", "repr(x)", "xp.asnumpy(x)",
]  # fmt: skip
TO_DEVICE = [
    "xp.asarray([1.0])", "xp.asarray(1.0)", "xp.array(np.ones(2))", "x.set(np.ones(4, 'f'))", "x[np.array([0])]",
    "x.set(np.ones(4, 'f'), stream=stream)", "x[[0, 1]]", "x.__setitem__([0], 1)",
]  # fmt: skip
WAITING = ["x[x > 1]", "xp.nonzero(x)", "xp.where(x > 1)", "xp.unique(x)", "xp.argwhere(x)"]
SYNCHRONOUS = (
    dict.fromkeys(TO_HOST, "D2H transfers")
    | dict.fromkeys(TO_DEVICE, "H2D transfers")
    | dict.fromkeys(WAITING, "synchronous API calls")
)


@pytest.mark.parametrize("expression", SYNCHRONOUS)
def test_what_waits_for_the_device_cannot_be_captured(expression, stream, x):
    stream.begin_capture()
    message = f"^the current stream is capturing, so {SYNCHRONOUS[expression]} are disallowed$"
    with pytest.raises(RuntimeError, match=message):
        eval(expression, {"x": x, "xp": standin, "np": np, "stream": stream})
    stream.end_capture()  # the capture goes on


@pytest.mark.gpu
@pytest.mark.parametrize("expression", [*FLOATS, *TO_HOST, *TO_DEVICE, *WAITING[:3]])
def test_cupy_refuses_the_same(expression):
    cupy = requires("cupy")
    x = cupy.arange(4, dtype=np.float32)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            with pytest.raises((RuntimeError, NotImplementedError), match=r"is capturing|cuBLAS"):
                eval(expression, {"x": x, "xp": cupy, "np": np, "stream": stream})
        finally:
            with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):
                stream.end_capture()


def test_what_nobody_has_looked_up_is_said_to_be_so(stream, x):
    stream.begin_capture()
    with pytest.raises(standin.StandinError, match="does not know whether CuPy can capture sort"):
        standin.sort(x)


@pytest.mark.parametrize("expression", ["np.asarray(x)", "x + n", "xp.add(x, n)", "n @ x", "x.__setitem__(0, n)"])
def test_host_and_device_arrays_do_not_mix_in_a_capture_either(expression, stream, x):
    stream.begin_capture()
    with pytest.raises(TypeError):
        eval(expression, {"x": x, "xp": standin, "np": np, "n": np.ones(4)})
    stream.end_capture()


def test_waits_end_the_capture(stream, x):
    for wait in (stream.synchronize, standin.cuda.Device().synchronize, standin.cuda.runtime.deviceSynchronize):
        stream.begin_capture()
        with pytest.raises(CUDARuntimeError, match=UNSUPPORTED):
            wait()
        with pytest.raises(CUDARuntimeError, match=LOST):
            x + 1
        with pytest.raises(CUDARuntimeError, match=LOST):
            stream.end_capture()
        assert (x + 1).get().tolist() == [1, 2, 3, 4]


def test_asking_whether_it_is_done_ends_the_capture_without_a_word(stream):
    stream.begin_capture()
    assert not stream.done
    with pytest.raises(CUDARuntimeError, match=LOST):
        stream.end_capture()


def test_events_of_a_capture_are_for_streams_alone(stream):
    stream.begin_capture()
    event = stream.record()
    assert not event.done
    with pytest.raises(CUDARuntimeError, match="cudaErrorCapturedEvent"):
        event.synchronize()
    with pytest.raises(CUDARuntimeError, match=LOST):
        stream.end_capture()
    with pytest.raises(CUDARuntimeError, match="cudaErrorCapturedEvent"):
        standin.cuda.Stream(non_blocking=True).wait_event(event)


def test_a_capture_waits_for_no_event_from_outside(stream):
    stream.wait_event(standin.cuda.Event())
    event = standin.cuda.Stream(non_blocking=True).record()
    stream.begin_capture()
    stream.wait_event(standin.cuda.Event())  # never recorded: nothing to wait for
    with pytest.raises(CUDARuntimeError, match="cudaErrorStreamCaptureIsolation"):
        stream.wait_event(event)
    with pytest.raises(CUDARuntimeError, match=LOST):
        stream.end_capture()


def test_a_capture_ends_where_it_began_and_with_all_streams_joined(stream, x):
    side = standin.cuda.Stream(non_blocking=True)
    stream.begin_capture()
    side.wait_event(stream.record())
    with pytest.raises(CUDARuntimeError, match="cudaErrorStreamCaptureUnmatched"):
        side.end_capture()
    with pytest.raises(CUDARuntimeError, match=LOST):
        stream.end_capture()
    stream.begin_capture()
    side.wait_event(stream.record())
    with side:
        x + 1
    with pytest.raises(CUDARuntimeError, match="cudaErrorStreamCaptureUnjoined"):
        stream.end_capture()
    assert not any(each.is_capturing() for each in (stream, side))
    with pytest.raises(CUDARuntimeError, match="cudaErrorIllegalState"):
        stream.end_capture()


def test_what_cannot_begin(stream, x):
    with pytest.raises(RuntimeError, match=r"cannot capture on the default \(legacy\) stream"):
        standin.cuda.Stream.null.begin_capture()
    with pytest.raises(NotImplementedError, match="relaxed"):
        stream.begin_capture(0)
    stream.begin_capture()
    with pytest.raises(CUDARuntimeError, match="cudaErrorIllegalState"):
        stream.begin_capture()
    with pytest.raises(CUDARuntimeError, match=LOST):
        stream.end_capture()
    stream.begin_capture()
    graph = stream.end_capture()
    stream.begin_capture()
    with pytest.raises(standin.StandinError, match="no graph within a graph"):
        graph.launch()


def test_a_capture_on_a_blocking_stream_takes_the_null_stream_away():
    blocking, null = standin.cuda.Stream(), standin.cuda.get_current_stream()
    with blocking:
        blocking.begin_capture()
    for use in (null.is_capturing, lambda: standin.ones(3)):
        with pytest.raises(CUDARuntimeError, match="cudaErrorStreamCaptureImplicit"):
            use()
    with pytest.raises(CUDARuntimeError, match=LOST):
        blocking.end_capture()


def test_copies_from_another_device_are_not_captured(stream, x):
    standin.set_device_count(2)
    with standin.cuda.Device(1), standin.cuda.Stream(non_blocking=True) as there:
        stream.synchronize()
        assert x.copy().get().tolist() == [0, 1, 2, 3]
        there.begin_capture()
        with pytest.raises(standin.StandinError, match="copy between devices"):
            x.copy()
