"""Counted, not timed: `culux.testing.cost`."""

from __future__ import annotations

import numpy as np
import pytest

import culux
from culux import nn
from culux.testing import cost


@pytest.fixture
def x(standin_cupy):
    return standin_cupy.asarray(np.linspace(-1, 1, 1000, dtype=np.float32))


def test_launches_and_bytes(x):
    counted = cost(lambda: nn.relu(nn.tanh(x)))
    assert counted.kernels == (("activation_forward", 2),)
    assert counted.launches == 2
    assert counted.bytes == 4 * x.nbytes


def test_allocations_and_transfers(x):
    counted = cost(lambda a: culux.to_numpy(nn.relu(a)), x)
    assert (counted.allocations, counted.allocated_bytes) == (1, x.nbytes)
    assert counted.transfers == (("to host", 1, x.nbytes),)
    device = culux.gpu_device()
    assert cost(device, np.ones(3)).transfers == (("to device", 1, 24),)


def test_a_copy_of_a_strided_array_is_a_launch(x):
    assert cost(nn.relu, x[::2]).kernels == (("activation_forward", 1), ("copy", 1))


def test_the_same_on_every_run(x):
    def f():
        return culux.gradient(lambda a: nn.gelu(a * a).sum(), x)

    f()
    assert cost(f) == cost(f)


def test_saved_bytes_are_those_that_pullbacks_hold(x):
    wide = np.ones((10, 100), np.float32)
    assert cost(lambda: culux.gradient(lambda a: nn.tanh(a).sum(), wide)).saved_bytes == 4000  # y
    assert cost(lambda: culux.gradient(lambda a: (a + 1).sum(), wide)).saved_bytes == 0
    assert cost(lambda: culux.gradient(lambda a: (a * a).sum(), wide)).saved_bytes == 4000  # a, twice
    assert cost(lambda: culux.gradient(lambda a: (a[:5] * a[5:]).sum(), wide)).saved_bytes == 4000  # views of a
    assert cost(lambda: culux.gradient(lambda a: nn.gelu(a).sum(), x)).saved_bytes == x.nbytes


def test_nothing_is_counted_outside(x):
    counted = cost(lambda: None)
    nn.relu(x)
    assert (counted.launches, counted.bytes, counted.allocations, counted.saved_bytes) == (0, 0, 0, 0)


def test_it_prints(x):
    text = str(cost(lambda: culux.to_numpy(nn.relu(x))))
    assert "launches                  1  (1 x activation_forward)" in text
    assert "to host" in text
    assert "4,000  in 1 copies" in text
