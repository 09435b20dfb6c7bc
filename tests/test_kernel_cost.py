"""How many launches each call takes: exact, and no work of the array library besides."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import culux
from tests import kernel_calls
from tests.kernel_support import work

# Launches of each call; every call not named here takes one.
EXPECTED = {
    "batchnorm test mode backward": 2,
    "batchnorm of 62500 values forward": 2,
    "batchnorm of 62500 values backward": 2,
    "conv relu backward": 3,  # dz and the bias's gradient, the input's, the weight's
    "conv without bias backward": 2,
    "conv depthwise backward": 3,
    "conv transpose backward": 3,
    "conv of 2 x 50 x 50 positions backward": 4,  # the last adds the parts of the weight's and of the bias's gradient
    "dense relu of 512 x 520 x 520 forward": 2,
    "dense relu of 512 x 520 x 520 backward": 3,
    "embedding of 40 ids backward": 3,
    "embedding of 40000 ids backward": 3,
    "mean cross entropy forward": 2,
    "layernorm of 600 backward": 2,
    "layernorm of 7000 backward": 2,
    "layernorm backward": 2,
    "rmsnorm backward": 2,
    "Adam after clip_norm update": 2,
    "embedding backward": 2,  # the sort, and the sums of one chunk of ids
    # The product of the inputs, and all steps; backward also the products of both weights' gradients.
    **{f"4 steps of {name} 6 forward": 2 for name in ("rnn", "gru", "lstm")},
    **{f"4 steps of {name} 6 backward": 3 for name in ("rnn", "gru", "lstm")},
    # Where the weight is too large for shared memory: a product and a launch for each step, and none after the last.
    "4 steps of lstm 128 forward": 9,
    "4 steps of lstm 128 backward": 9,
}


def test_launches_of_every_call(standin_cupy):
    counted = kernel_calls.launches(standin_cupy)
    folder = os.environ.get("CULUX_KERNEL_REPORT")
    if folder:
        (Path(folder) / "calls.json").write_text(json.dumps({name: cost.kernels for name, cost in counted.items()}))
    launches = {name: cost.launches for name, cost in counted.items()}
    assert launches == {name: EXPECTED.get(name, 1) for name in launches}
    assert not any(cost.transfers for cost in counted.values())


def test_no_work_of_the_array_library(standin_cupy):
    for name, (function, arrays) in kernel_calls.operations(standin_cupy).items():
        y, pullback = culux.vjp(function, *arrays)
        assert work(standin_cupy, functools.partial(function, *arrays))[1] == 0, f"{name} forward"
        assert work(standin_cupy, functools.partial(pullback, standin_cupy.ones_like(y)))[1] == 0, f"{name} backward"
