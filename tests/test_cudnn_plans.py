"""The cuDNN layer: plans, streams, devices, captures, threads, and what is said where it is missing or fails."""

from __future__ import annotations

import re
import sys
import threading
import warnings

import numpy as np
import pytest

from culux.backends import get_backend
from culux.errors import KernelError
from culux.kernels import cudnn
from culux.kernels.cudnn import cudnn_for, find
from culux.kernels.cudnn_library import Problem
from tests.cudnn_fake import Engine, FakeLibrary, cudnnGraphNotSupportedError
from tests.cudnn_support import OPERATIONS, PADDED, arrays, by_definition, compute, fake_cudnn, run
from tests.cudnn_support import library as library
from tests.kernel_support import close
from tests.support import requires

INSTALL = r'pip install "culux\[cudnn12\]" or "culux\[cudnn13\]", as the CUDA version of CuPy is'


@pytest.fixture
def layer(library):
    return cudnn_for(get_backend("cupy")).layer


def test_a_plan_is_made_once_a_problem(library, standin_cupy):
    for _ in range(2):
        for operation in OPERATIONS:
            run(standin_cupy, operation, PADDED)
            run(standin_cupy, operation, PADDED, batch=3)
            run(standin_cupy, operation, PADDED, "float16")
            run(standin_cupy, operation, PADDED._replace(dilation=(2, 1), before=(2, 1)))
    assert len(library.graphs) == 12
    assert len(library.executions) == 24
    assert len(library.devices) == 1


def test_the_plans_that_were_used_last_are_kept(library, standin_cupy, monkeypatch):
    monkeypatch.setattr(cudnn, "PLANS", 2)
    for batch, made in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        run(standin_cupy, "correlate", PADDED, batch=batch)
        assert len(library.graphs) == made


def test_found_is_not_yet_computed(library, standin_cupy):
    x, weight, y = arrays(PADDED)
    product = find("correlate", standin_cupy.asarray(x), standin_cupy.asarray(weight), **PADDED._asdict())
    assert (len(library.graphs), len(library.executions)) == (1, 0)
    for _ in range(2):
        close(product(), by_definition("correlate", x, weight, y, PADDED), "float32", 10)
    assert (len(library.graphs), len(library.executions)) == (1, 2)


def test_a_workspace_is_of_the_current_pool(library, standin_cupy):
    pool = standin_cupy.cuda.MemoryPool()
    x, weight, _ = map(standin_cupy.asarray, arrays(PADDED))
    with standin_cupy.cuda.using_allocator(pool.malloc):
        y = compute("correlate", x, weight, PADDED)
        assert pool.used_bytes() < y.nbytes + 512  # it is given back
        assert pool.total_bytes() >= y.nbytes + 300
    library.engines = (Engine("frugal"),)
    compute("correlate", x[:1], weight, PADDED)
    assert library.executions[-1].workspace == 0


def test_work_goes_to_the_current_stream(library, standin_cupy):
    x, weight, _ = map(standin_cupy.asarray, arrays(PADDED))
    standin_cupy.cuda.Device().synchronize()
    streams = [standin_cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    for stream in (*streams, *streams):
        with stream:
            compute("correlate", x, weight, PADDED)
    assert [execution.stream for execution in library.executions] == [stream.ptr for stream in (*streams, *streams)]


def test_every_device_has_a_handle_and_is_current_in_its_calls(library, standin_cupy):
    standin_cupy.set_device_count(2)
    x, weight, y = arrays(PADDED)
    for index in (0, 1, 1):
        with standin_cupy.cuda.Device(index):
            given = standin_cupy.asarray(x), standin_cupy.asarray(weight)
        found = compute("correlate", *given, PADDED)  # whatever device is current
        assert found.data.device_id == index
        with standin_cupy.cuda.Device(index):
            close(found, by_definition("correlate", x, weight, y, PADDED), "float32", 10)
    assert [(execution.handle, execution.device) for execution in library.executions] == [(1000, 0), *[(1001, 1)] * 2]
    assert len(library.graphs) == 2


def test_copies_are_made_on_the_device_of_the_array(library, standin_cupy):
    standin_cupy.set_device_count(2)
    x, weight, y = arrays(PADDED)
    with standin_cupy.cuda.Device(1):
        shifted = standin_cupy.asarray(np.append(np.float32(0), x.ravel()))[1:].reshape(x.shape)
        given = shifted, standin_cupy.asarray(weight)
    found = compute("correlate", *given, PADDED)
    with standin_cupy.cuda.Device(1):
        close(found, by_definition("correlate", x, weight, y, PADDED), "float32", 10)


def test_a_capture_takes_planned_convolutions_only(library, standin_cupy):
    stream = standin_cupy.cuda.Stream(non_blocking=True)
    pool = standin_cupy.cuda.MemoryPool()
    with stream, standin_cupy.cuda.using_allocator(pool.malloc):
        x, weight, y = map(standin_cupy.asarray, arrays(PADDED))
        compute("correlate", x, weight, PADDED)
        stream.begin_capture()
        found = compute("correlate", x, weight, PADDED)
        with pytest.raises(
            KernelError,
            match=r"expected a convolution that cuDNN has planned before this stream's capture, got spread with x "
            r"\(2, 4, 4, 5\), weight \(8, 4, 3, 3\) and y \(2, 8, 4, 5\) of float32, stride \(1, 1\), dilation "
            r"\(1, 1\), padding \(1, 1\) before and \(1, 1\) behind, on cuda:0; run the step once, then capture it",
        ):
            compute("spread", y, weight, PADDED)
        graph = stream.end_capture()
        for value in (1, 2):
            x[...] = value
            graph.launch(stream)
            expected = by_definition("correlate", x.get(), weight.get(), y.get(), PADDED)
            close(found, expected, "float32", 10)
    assert len(library.graphs) == 1


def test_what_a_capture_has_taken_is_kept(library, standin_cupy, monkeypatch, layer):
    monkeypatch.setattr(cudnn, "PLANS", 1)
    stream = standin_cupy.cuda.Stream(non_blocking=True)
    with stream:
        x, weight, _ = map(standin_cupy.asarray, arrays(PADDED))
        kept = [compute("correlate", x, weight, PADDED)]
        stream.begin_capture()
        kept.append(compute("correlate", x, weight, PADDED))
        stream.end_capture()
        compute("correlate", x[:1], weight, PADDED)
    assert [plan.graph for plan in layer._captured.values()] == library.graphs[:1]
    assert [plan.graph for plan in layer._plans.values()] == library.graphs[1:]


def test_cudnn_is_not_loaded_while_a_stream_is_captured(library, standin_cupy):
    stream = standin_cupy.cuda.Stream(non_blocking=True)
    with stream:
        x, weight, _ = map(standin_cupy.asarray, arrays(PADDED))
        stream.begin_capture()
        with pytest.raises(KernelError, match="planned before this stream's capture, got the first one; run the step"):
            compute("correlate", x, weight, PADDED)
        stream.end_capture()
        assert compute("correlate", x, weight, PADDED) is not None


def test_threads_take_turns(standin_cupy, monkeypatch):
    x, weight, y = arrays(PADDED)
    expected = by_definition("correlate", x, weight, y, PADDED)
    wrong = []
    with fake_cudnn(standin_cupy, monkeypatch, streams=False) as library:
        given = standin_cupy.asarray(x), standin_cupy.asarray(weight)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)

        def work():
            try:
                for _ in range(10):
                    found = compute("correlate", *given, PADDED)
                    wrong.extend([found] if not np.allclose(found._host, expected, atol=1e-5) else [])
            except BaseException as error:
                wrong.append(error)

        try:
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
    assert not wrong
    assert len(library.graphs) == 1
    assert len(library.executions) == 40


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("build_operation_graph", RuntimeError("CUDNN_STATUS_NOT_SUPPORTED\nand more lines")),
        ("create_execution_plans", cudnnGraphNotSupportedError("CUDNN_STATUS_NOT_SUPPORTED\nand more lines")),
    ],
)
def test_a_problem_without_a_plan_is_not_computed_and_said_once(step, error, library, standin_cupy):
    library.fail[step] = error
    with pytest.warns(
        UserWarning,
        match=r"^cuDNN 9\.10\.2 \(nvidia-cudnn-frontend 1\.\d\d\.0\) has no plan for correlate with x .* on cuda:0, "
        r"and culux's own kernels compute it: CUDNN_STATUS_NOT_SUPPORTED \(said for the first such problem only\)$",
    ):
        assert run(standin_cupy, "correlate", PADDED)[0] is None
    with warnings.catch_warnings(action="error"):
        assert run(standin_cupy, "correlate", PADDED)[0] is None
        library.fail[step] = error
        assert run(standin_cupy, "weigh", PADDED)[0] is None
        assert run(standin_cupy, "spread", PADDED)[0] is not None


def test_no_plan_is_better_than_an_unwanted_one(library, standin_cupy):
    library.engines = library.engines[:-1]
    with pytest.warns(UserWarning, match="culux's own kernels compute it: No execution plans support the graph"):
        assert run(standin_cupy, "correlate", PADDED)[0] is None
    assert run(standin_cupy, "correlate", PADDED, "float16")[0] is not None
    library.engines = library.engines[:-1]
    assert run(standin_cupy, "weigh", PADDED, "float16")[0] is None


def test_a_failure_names_the_problem(library, standin_cupy):
    run(standin_cupy, "weigh", PADDED)
    for function in ("set_stream", "execute"):
        library.fail[function] = RuntimeError("CUDNN_STATUS_EXECUTION_FAILED\nand more lines")
        with pytest.raises(
            KernelError,
            match=r"^cuDNN 9\.10\.2 \(nvidia-cudnn-frontend 1\.\d\d\.0\) failed in weigh with x \(2, 4, 4, 5\), weight "
            r"\(8, 4, 3, 3\) and y \(2, 8, 4, 5\) of float32, .* on cuda:0: CUDNN_STATUS_EXECUTION_FAILED$",
        ):
            run(standin_cupy, "weigh", PADDED)


def test_a_problem_in_words():
    float32 = np.dtype(np.float32)
    problem = Problem(
        1, "weigh", float32, (8, 4, 9), (6, 2, 3), (8, 6, 9), (1,), (2,), (2,), (1,), True
    )  # fmt: skip
    assert str(problem) == (
        "weigh with x (8, 4, 9), weight (6, 2, 3) and y (8, 6, 9) of float32 as TF32, stride (1,), dilation (2,), "
        "padding (2,) before and (1,) behind, on cuda:1"
    )


@pytest.fixture
def without(standin_cupy, monkeypatch):
    """The stand-in CuPy, and no frontend."""
    monkeypatch.setattr(cudnn, "_by_backend", {})
    monkeypatch.setitem(sys.modules, "cudnn", None)
    monkeypatch.delenv("CULUX_CUDNN", raising=False)
    return standin_cupy


def test_not_installed_is_no_failure(without):
    assert run(without, "correlate", PADDED)[0] is None
    assert re.fullmatch(f"cuDNN is not installed; {INSTALL}", cudnn_for(get_backend("cupy")).reason)


def test_without_a_device(library, standin_cupy):
    standin_cupy.set_device_count(0)
    assert cudnn_for(get_backend("cupy")) == (None, "cuDNN is for CuPy's arrays on a CUDA device")


def test_turned_off(library, standin_cupy, monkeypatch):
    monkeypatch.setenv("CULUX_CUDNN", "0")
    assert run(standin_cupy, "correlate", PADDED)[0] is None
    assert not library.devices


def test_a_wrong_environment_variable(without, monkeypatch):
    monkeypatch.setenv("CULUX_CUDNN", "yes")
    message = r"expected the environment variable CULUX_CUDNN to be 1 \(take cuDNN .*\) or 0 \(do without\), got 'yes'"
    with pytest.raises(KernelError, match=message):
        run(without, "correlate", PADDED)


def failing_once(cupy, problem):
    """Assert that this is said in one warning, with what to install, and that nothing is computed."""
    with pytest.warns(
        UserWarning, match=rf"^culux's own kernels compute convolutions: {problem}; {INSTALL}, or set CULUX_CUDNN=0$"
    ):
        assert run(cupy, "correlate", PADDED)[0] is None
    with warnings.catch_warnings(action="error"):
        assert run(cupy, "spread", PADDED)[0] is None


def test_a_frontend_without_its_library(library, standin_cupy):
    library.fail["create_handle"] = RuntimeError("Unable to find symbol cudnnCreate\nand more lines")
    failing_once(standin_cupy, "cuDNN does not work here: Unable to find symbol cudnnCreate")


def test_a_frontend_that_is_too_old(library, standin_cupy):
    library.module.__version__ = "1.9.0"
    failing_once(standin_cupy, r"expected nvidia-cudnn-frontend 1\.23 or newer, got 1\.9\.0")
    assert not library.devices


def test_a_frontend_that_does_not_import(without, tmp_path, monkeypatch):
    (tmp_path / "cudnn.py").write_text("raise ImportError('libcudart.so is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cudnn")
    failing_once(without, r"nvidia-cudnn-frontend does not import: libcudart\.so is missing")


def test_the_stand_in_has_what_the_frontend_has(standin_cupy):
    real, module = requires("cudnn"), FakeLibrary(standin_cupy, handles_are_objects=True, streams=True).module
    kinds = [module.data_type, module.heur_mode, module.numerical_note]
    pairs = [(real, module), (real.pygraph, module.pygraph), *((getattr(real, kind.__name__), kind) for kind in kinds)]
    for there, here in pairs:
        names = {name for name in dir(here) if not name.startswith("_")} - {"library"}
        assert names <= {*dir(there)}
