"""The stand-in behaves as CuPy does where culux leans on it; the same tests run on CuPy where there is a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tests.standin_cupy as standin
from tests.standin_cupy import functions
from tests.support import requires


class Foreign:
    """An array type that CuPy does not know, as a traced array is one; it says which way a call came."""

    shape = (2,)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        return f"ufunc {ufunc.__name__}"

    def __array_function__(self, function, types, args, kwargs):
        return f"function {function.__name__}"

    def __cupy_override_elementwise_kernel__(self, kernel, *args, **kwargs):
        return f"kernel {kernel.name} of {len(args)}"

    def __getattr__(self, name):
        if name.startswith("__") or name not in functions.METHODS:
            raise AttributeError(name)
        return lambda *args, **kwargs: f"{name} {args} {kwargs}"


class Refusing(Foreign):
    __array_ufunc__ = None

    def __radd__(self, other):
        return "reflected"


class Prioritised:
    __array_priority__ = 1000

    def __radd__(self, other):
        return "reflected"


@pytest.fixture(autouse=True)
def reset():
    standin.machine.reset()


@pytest.fixture(params=["standin", pytest.param("cupy", marks=pytest.mark.gpu)])
def cupy(request):
    return standin if request.param == "standin" else requires("cupy")


@pytest.fixture
def x(cupy):
    return cupy.asarray(np.array([1.0, 2.0], np.float32))


DISPATCH = {
    "x + t": "ufunc add",
    "x / t": "ufunc divide",
    "x @ t": "ufunc matmul",
    "x < t": "ufunc less",
    "n + t": "ufunc add",
    "np.sin(t)": "ufunc sin",
    "np.add(x, t)": "ufunc add",
    "np.sum(t)": "function sum",
    "np.concatenate([x, t])": "function concatenate",
    "cupy.sin(t)": "kernel cupy_sin of 1",
    "cupy.add(x, t)": "kernel cupy_add of 2",
    "cupy.divide(x, t)": "kernel cupy_true_divide of 2",
    "cupy.abs(t)": "kernel cupy_absolute of 1",
    "cupy.maximum(t, 0)": "kernel cupy_maximum of 2",
    "cupy.sum(t)": "sum (None, None, None, False) {}",
    "cupy.sum(t, axis=0, keepdims=True)": "sum (0, None, None, True) {}",
    "cupy.max(t, 1)": "max () {'axis': 1, 'out': None, 'keepdims': False}",
    "cupy.amax(t)": "max () {'axis': None, 'out': None, 'keepdims': False}",
    "cupy.reshape(t, (2,))": "reshape ((2,),) {'order': 'C', 'copy': None}",
    "cupy.permute_dims(t, (0,))": "transpose ((0,),) {}",
    "cupy.clip(t, 0, 1)": "clip (0, 1) {'out': None}",
    "x + Refusing()": "reflected",
    "x + Prioritised()": "reflected",
}
NAMES = {"np": np, "Refusing": Refusing, "Prioritised": Prioritised}


@pytest.mark.parametrize("expression", DISPATCH)
def test_another_array_type_takes_part(expression, cupy, x):
    assert eval(expression, NAMES | {"cupy": cupy, "x": x, "t": Foreign(), "n": np.ones(2)}) == DISPATCH[expression]


@pytest.mark.parametrize(
    "expression", ["matmul(x, t)", "concatenate([x, t])", "stack([t])", "einsum('i->', t)", "asarray(t)", "cumsum(t)"]
)
def test_what_another_array_type_cannot_take_over(expression, cupy, x):
    with pytest.raises((TypeError, ValueError)):
        eval(expression, vars(cupy) | {"x": x, "t": Foreign()})


@pytest.mark.parametrize(
    "expression",
    [
        "np.asarray(x)", "x + n", "n + x", "x * n", "n @ x", "x < n", "cupy.sin(n)", "cupy.add(x, n)",
        "cupy.matmul(x, n)", "cupy.concatenate([x, n])", "cupy.where(x > 1, n, x)", "np.dot(x, n)",
    ],
)  # fmt: skip
def test_host_and_device_arrays_do_not_mix(expression, cupy, x):
    with pytest.raises(TypeError):
        eval(expression, NAMES | {"cupy": cupy, "x": x, "n": np.ones(2)})


def test_the_refusal_names_the_type(x):
    with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy\.ndarray'>"):
        x + np.ones(2)
    with pytest.raises(TypeError, match="Unsupported type"):
        x[0] = np.ones(2)


def test_results_are_arrays_also_of_no_dimension(cupy, x):
    for result in (x.sum(), cupy.mean(x), x[0], cupy.add.reduce(x), np.sum(x), x @ x, cupy.array_equal(x, x)):
        assert type(result) is cupy.ndarray
        assert result.shape == ()
    assert float(x.sum()) == 3.0
    assert bool(cupy.array_equal(x, x)) is True


def test_scalars_promote_as_numpy_2_does(cupy, x):
    assert (x * 2.0).dtype == (np.float32(3) * x).dtype == (x + 1).dtype == np.float32
    assert (x * np.float64(2)).dtype == np.float64
    assert (x + cupy.asarray(1.0)).dtype == np.float64


def test_views_share_memory_and_writes_are_seen(cupy, x):
    y = cupy.stack([x, x])
    y[0][...] = 5
    y.T[1] += 1
    y.reshape(-1)[2] = cupy.asarray(9.0)
    np.testing.assert_array_equal(y.get(), [[5, 6], [9, 3]])
    assert y[0].data.ptr == y.data.ptr
    assert y.copy().data.ptr != y.data.ptr


def test_scatter_add(cupy, x):
    index = cupy.asarray([0, 0, 1])
    for add in (lambda: cupy.add.at(x, index, 1.0), lambda: x.scatter_add(index, cupy.ones(3))):
        before = x.get()
        add()
        np.testing.assert_array_equal(x.get(), before + np.array([2, 1]))
    with pytest.raises(NotImplementedError):
        cupy.multiply.at(x, index, 1.0)


def test_new_memory_is_poisoned_and_so_is_memory_that_comes_back():
    x = standin.empty((2, 3), np.float32)
    assert bool(standin.isnan(x).all())
    x[...] = 1
    pointer = x.data.ptr
    del x
    again = standin.empty((3, 2), np.float32)
    assert again.data.ptr == pointer
    assert bool(standin.isnan(again).all())


def test_arrays_of_two_devices_do_not_mix():
    x = standin.ones(2)
    standin.set_device_count(2)
    with standin.cuda.Device(1):
        there = standin.ones(2)
        with pytest.raises(ValueError, match="different from the current device"):
            x + there
    assert there.device == standin.cuda.Device(1)
    assert there.T.device.id == 1
    with pytest.raises(ValueError, match="Peer access is unavailable"):
        there + 1
    with pytest.raises(standin.cuda.runtime.CUDARuntimeError, match="invalid device ordinal"):
        standin.cuda.Device(2).use()


def test_a_read_without_the_event_of_the_write_is_a_race():
    side = standin.cuda.Stream(non_blocking=True)
    with side:
        x = standin.ones(3)
    with pytest.raises(standin.StreamRace, match="reads memory that stream"):
        x + 1
    event = side.record()
    standin.cuda.get_current_stream().wait_event(event)
    y = x + 1
    with side, pytest.raises(standin.StreamRace, match="writes memory that null"):
        x += 1
    np.testing.assert_array_equal(y.get(), [2, 2, 2])
    with side:
        x += 1  # the host has waited for the reader


@pytest.mark.parametrize("name", ["copyto", "put_along_axis"])
def test_functions_that_write_an_array_are_writes(name):
    x, index = standin.ones(3), standin.zeros(3, int)
    args = (x, 2.0) if name == "copyto" else (x, index, 2.0, 0)
    side = standin.cuda.Stream(non_blocking=True)
    side.wait_event(standin.cuda.get_current_stream().record())
    with side:
        getattr(standin, name)(*args)
    with pytest.raises(standin.StreamRace, match="reads memory that stream"):
        x + 1


def test_a_copy_happens_when_it_is_waited_for():
    side = standin.cuda.Stream(non_blocking=True)
    source = np.ones(2, np.uint8)
    x = standin.empty(2, np.uint8)
    side.wait_event(standin.cuda.get_current_stream().record())
    x.set(source, stream=side)
    source[...] = 2  # too early: the copy takes what is there when it happens
    side.synchronize()
    np.testing.assert_array_equal(x.get(), [2, 2])


def test_the_fixture_leaves_no_trace():
    program = (
        "import sys, pytest\n"
        "test = 'tests/test_cupy_backend.py::test_the_registry_finds_it'\n"
        "code = pytest.main(['-q', '-p', 'no:cacheprovider', test])\n"
        "from culux.backends import registry\n"
        "assert code == 0 and 'cupy' not in registry._backends, registry._backends\n"
        "assert getattr(sys.modules.get('cupy'), '__name__', 'cupy') == 'cupy'\n"
        "assert 'culux.backends.cupy_backend' not in sys.modules\n"
        "assert not [kind for kind in registry._by_type if kind.__module__ == 'cupy']\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent.parent, check=True, capture_output=True)


def test_every_name_is_one_of_cupys():
    real = requires("cupy")
    missing = [name for name in functions.namespace() if not hasattr(real, name)]
    assert missing == []
    names = {name: getattr(real, name).name for name in (*functions.UFUNCS, *functions.ALIASES)}
    assert names == {name: getattr(standin, name).name for name in names}
    methods = [name for name in vars(standin.ndarray) if not name.startswith("_")]
    assert [name for name in methods if not hasattr(real.ndarray, name)] == []


@pytest.mark.parametrize("name", functions.METHODS)
def test_methods_of_other_types_are_called_as_cupy_calls_them(name):
    real = requires("cupy")  # no GPU: nothing is computed
    by_place, _ = functions.METHODS[name]
    needed = [1 for default in by_place.values() if default is None][: 2 if name in ("clip", "swapaxes") else 1]
    args = needed if name in ("clip", "dot", "repeat", "reshape", "swapaxes", "take") else []
    assert getattr(standin, name)(Foreign(), *args) == getattr(real, name)(Foreign(), *args)


def test_host_arrays_are_refused_where_cupy_computes_on_the_host():
    with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy\.ndarray'>"):
        standin.sum(np.ones(2))
