"""The kernels on a real GPU: against NumPy in float64, the same launches as on the stand-in, the same bits twice."""

from __future__ import annotations

import numpy as np
import pytest

import culux
import culux.numpy as cnp
from bench.gpu.cases import CASES
from bench.gpu.operations import LIMITS, errors_of
from tests import kernel_calls
from tests.kernel_support import DTYPES
from tests.test_kernel_cost import EXPECTED

pytestmark = pytest.mark.gpu


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.setenv("CULUX_AUTOTUNE", "0")
    return pytest.importorskip("cupy")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_operation_agrees_with_numpy_in_float64(case, dtype, cupy):
    for size in case.checked:
        errors = errors_of(case, dtype, size)
        assert max(errors) <= LIMITS[dtype], (size, errors)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_runs_give_the_same_bits(case, cupy):
    device = culux.gpu_device(force=True)
    arrays = [
        device(a if a.dtype.kind == "i" else a.astype(np.float32))
        for a in case.arrays(np.random.default_rng(0), *case.checked[-1])
    ]
    floats = [a for a in arrays if a.dtype.kind != "i"]

    def run():
        def function(*given):
            given = iter(given)
            return case.function(*[a if a.dtype.kind == "i" else next(given) for a in arrays])

        y, pullback = culux.vjp(function, *floats)
        return [y.get().tobytes(), *[g.get().tobytes() for g in pullback(y)]]

    assert run() == run()


@pytest.mark.parametrize("rule", kernel_calls.RULES.values(), ids=list(kernel_calls.RULES))
def test_updates_agree_with_numpy(rule, cupy):
    ps, _ = culux.setup(0, culux.Chain(culux.Dense(300, 70), culux.BatchNorm(70), culux.Dense(70, 3)))
    device = culux.gpu_device(force=True)
    results = []
    for place in (culux.cpu_device(), device):
        moved, grads = (
            place(ps),
            place(culux.tree.map(lambda a: np.cos(np.arange(a.size, dtype=a.dtype)).reshape(a.shape), ps)),
        )
        state = culux.optim.setup(rule, moved)
        for _ in range(3):
            state, moved = culux.optim.update(state, moved, grads)
        results.append(culux.to_numpy(moved))
    for a, b in zip(*map(culux.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_the_same_launches_as_on_the_standin(cupy):
    launches = {name: cost.launches for name, cost in kernel_calls.launches(cupy).items()}
    assert launches == {name: EXPECTED.get(name, 1) for name in launches}


def test_random_bits_are_numpys(cupy):
    state = culux.random.rng_state(3)
    expected, after = culux.random.uniform(state, 100_003)
    drawn, moved = culux.random.uniform(culux.gpu_device(force=True)(state), 100_003)
    assert drawn.get().tobytes() == expected.tobytes()
    assert moved.counter.get().tolist() == after.counter.tolist()


def test_where_and_clip_keep_bfloat16(cupy):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = culux.gpu_device(force=True)(np.linspace(-1, 1, 5).astype(ml_dtypes.bfloat16))
    for function in (lambda x: cnp.where(x > 0, x, x * 2), lambda x: cnp.clip(x, -0.5, 0.5), lambda x: x.max()):
        y, pullback = culux.vjp(function, x)
        assert (y.dtype, pullback(y)[0].dtype) == (x.dtype, x.dtype)
