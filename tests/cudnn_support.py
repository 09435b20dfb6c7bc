"""What tests of the cuDNN layer share: the stand-in in place of the frontend, and convolutions by their definition."""

from __future__ import annotations

import importlib
import itertools
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from culux.kernels.cudnn import find
from culux.nn.conv_taps import Taps
from tests.cudnn_fake import FakeLibrary
from tests.kernel_support import dtype_of
from tests.standin_cupy import runtime

CASES = {
    "plain": Taps((5, 6), (3, 2), (1, 1), (1, 1), (0, 0), (3, 5), 1),
    "padded": Taps((4, 5), (3, 3), (1, 1), (1, 1), (1, 1), (4, 5), 1),
    "uneven padding": Taps((4, 4), (4, 2), (1, 1), (1, 1), (1, 0), (4, 4), 1),
    "no padding before": Taps((4, 4), (2, 3), (1, 1), (1, 1), (0, 0), (4, 5), 1),
    "strided": Taps((6, 7), (3, 2), (2, 3), (1, 1), (0, 1), (2, 3), 1),
    "dilated": Taps((7, 6), (3, 2), (1, 2), (2, 3), (1, 1), (5, 3), 1),
    "grouped": Taps((4, 3), (2, 2), (1, 1), (1, 1), (0, 0), (3, 2), 2),
    "depthwise": Taps((4, 3), (2, 2), (1, 1), (1, 1), (1, 0), (4, 2), 4),
    "one axis": Taps((7,), (3,), (2,), (1,), (1,), (4,), 1),
    "three axes": Taps((3, 4, 2), (2, 3, 1), (1, 1, 1), (1, 1, 1), (0, 1, 0), (2, 4, 2), 2),
}
PADDED = CASES["padded"]
OPERATIONS = ("correlate", "spread", "weigh")


@contextmanager
def fake_cudnn(cupy, monkeypatch, handles_are_objects=True, streams=True):
    """A context in which `import cudnn` is the stand-in, and everything is new to culux."""
    layer = importlib.import_module("culux.kernels.cudnn")
    fake = FakeLibrary(cupy, handles_are_objects, streams)
    made = runtime.Memory.__init__

    def noted(memory, *args):
        made(memory, *args)
        fake.memories.append(memory)

    monkeypatch.setattr(runtime.Memory, "__init__", noted)
    monkeypatch.setitem(sys.modules, "cudnn", fake.module)
    monkeypatch.setenv("CULUX_CUDNN", "1")
    monkeypatch.setattr(layer, "_by_backend", {})
    yield fake


@pytest.fixture(params=[True, False], ids=["handles are objects", "handles are numbers"])
def library(request, standin_cupy, monkeypatch):
    with fake_cudnn(standin_cupy, monkeypatch, handles_are_objects=request.param) as fake:
        yield fake


def draw(shape, dtype="float32", seed=0):
    return np.random.default_rng([seed, *shape]).uniform(-1, 1, shape).astype(dtype_of(dtype))


def arrays(taps, dtype="float32", batch=2, channels=4, filters=8):
    """x, weight and y of random numbers."""
    shapes = (
        (batch, channels, *taps.size),
        (filters, channels // taps.groups, *taps.kernel),
        (batch, filters, *taps.out),
    )
    return [draw(shape, dtype, seed) for seed, shape in enumerate(shapes)]


def given_to(operation, x, weight, y):
    return {"correlate": (x, weight), "spread": (y, weight), "weigh": (x, y)}[operation]


def by_definition(operation, x, weight, y, taps):
    """The result in float64, one term of the sum after the other."""
    x, weight, y = (array.astype(np.float64) for array in (x, weight, y))
    result = np.zeros_like({"correlate": y, "spread": x, "weigh": weight}[operation])
    width, filters = weight.shape[1], len(weight) // taps.groups
    for out, tap in itertools.product(np.ndindex(*taps.out), np.ndindex(*taps.kernel)):
        axes = zip(out, tap, taps.stride, taps.dilation, taps.before, strict=True)
        place = tuple(i * s + t * d - b for i, t, s, d, b in axes)
        if not all(0 <= p < n for p, n in zip(place, taps.size, strict=True)):
            continue
        for n, o, c in np.ndindex(len(x), len(weight), width):
            i, w, j = (n, o // filters * width + c, *place), (o, c, *tap), (n, o, *out)
            if operation == "correlate":
                result[j] += weight[w] * x[i]
            elif operation == "spread":
                result[i] += weight[w] * y[j]
            else:
                result[w] += x[i] * y[j]
    return result


def compute(operation, one, other, taps):
    """The result by cuDNN, or None where it has no plan."""
    found = find(operation, one, other, **taps._asdict())
    return None if found is None else found()


def run(cupy, operation, taps, dtype="float32", **lengths):
    """What the operation gives on the stand-in, and what it should."""
    found = arrays(taps, dtype, **lengths)
    given = map(cupy.asarray, given_to(operation, *found))
    return compute(operation, *given, taps), by_definition(operation, *found, taps)
