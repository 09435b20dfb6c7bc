"""The stand-in for libcublasLt (cublaslt_fake.c): compiled, loaded, and used by culux in place of a real one."""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import importlib
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from ctypes import CFUNCTYPE, c_char, c_int, c_int32, c_uint32, c_uint64
from pathlib import Path

from tests.standin_cupy.array import memories
from tests.support import requires

BGRADA, BGRADB = 256, 512
NOT_INITIALIZED, INVALID_VALUE, EXECUTION_FAILED, NOT_SUPPORTED = 1, 7, 13, 15
COMPUTE_32F, COMPUTE_64F, COMPUTE_TF32 = 68, 70, 77
Question = CFUNCTYPE(c_int)


class Settings(ctypes.Structure):
    _fields_ = (
        ("candidates", c_int),
        ("unfit", c_int),
        ("workspace", c_uint64),
        ("refused", c_uint32),
        ("status", c_int),
        ("function", c_char * 40),
        ("device", Question),
        ("capturing", Question),
    )


class Preference(ctypes.Structure):
    _fields_ = (("kind", c_int), ("reductions", c_uint32), ("workspace", c_uint64), ("alignment", c_uint32 * 4))


class Product(ctypes.Structure):
    _fields_ = (
        *((name, c_uint64) for name in ("m", "n", "k", "workspace", "bias", "handle", "stream", "scratch")),
        *((name, c_int32) for name in ("transa", "transb", "type", "compute", "scale", "device")),
        ("epilogue", c_uint32),
        ("candidate", c_uint32),
    )


@functools.cache
def built():
    """The path of the compiled stand-in; it goes with the process."""
    compiler = requires("compiler")
    folder = Path(tempfile.mkdtemp(prefix="culux-cublaslt-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source, target = Path(__file__).with_name("cublaslt_fake.c"), folder / "libcublasLt.so"
    flags = ["-x", "c", "-std=gnu11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler, *flags, str(source), "-o", str(target), "-lm"], check=True)
    return str(target)


class FakeLibrary:
    """What tests set and ask of the stand-in."""

    def __init__(self, cupy):
        self.path = built()
        self.library = ctypes.CDLL(self.path)
        self.library.reset()
        self.settings = Settings.in_dll(self.library, "settings")
        self.asked = Preference.in_dll(self.library, "asked")
        self.settings.device = Question(cupy.cuda.runtime.getDevice)
        self.settings.capturing = Question(lambda: int(cupy.cuda.get_current_stream().is_capturing()))

    @property
    def products(self):
        count = c_int.in_dll(self.library, "product_count").value
        return (Product * 4096).in_dll(self.library, "products")[:count]

    @property
    def live(self):
        """Descriptions, layouts and preferences that are not destroyed."""
        gc.collect()
        return c_int.in_dll(self.library, "live").value

    @property
    def complaint(self):
        return (c_char * 200).in_dll(self.library, "complaint").value.decode()

    def calls(self, function):
        return self.library.calls_of(function.encode())

    def fail(self, function, status):
        self.settings.status, self.settings.function = status, function.encode()


@contextmanager
def fake_library(cupy, monkeypatch, streams=True):
    """A context in which culux finds the stand-in, and everything is new to it.

    With `streams`, products are work of CuPy's stand-in like any other: what the streams do to memory is checked,
    and a capture records them. It is for one host thread.
    """
    module = importlib.import_module("culux.kernels.cublaslt")
    fake = FakeLibrary(cupy)
    monkeypatch.setenv("CULUX_CUBLASLT", fake.path)
    if streams:
        monkeypatch.setattr(module.CuBLASLt, "run", on_streams(cupy, module.CuBLASLt.run))
    module._by_backend.clear()
    yield fake
    module._by_backend.clear()


def on_streams(cupy, run):
    """`run`, but what is enqueued is submitted to the stand-in's stream."""

    def submitting(self, plan, a, b, out, vector=None, candidate=None):
        enqueue = plan.enqueue

        def submit(*args):
            read, written = [a, b], [out]
            if vector is not None:
                (written if "gradient" in plan.problem.epilogue else read).append(vector)
            scratch = [place.mem.memory for address, place in self._workspaces.values() if address == args[5]]
            stream = cupy.cuda.get_current_stream(plan.problem.device)
            stream.submit(functools.partial(enqueue, *args), memories(read), memories(written) + scratch)

        plan.enqueue = submit
        try:
            run(self, plan, a, b, out, vector, candidate)
        finally:
            del plan.enqueue

    return submitting
