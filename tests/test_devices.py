"""Devices: which one is chosen, what moves, and what is refused with which words."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import culux
from culux.autodiff import gradient
from culux.backends import Memory
from culux.devices import Device, cpu_device, device, get_device, gpu_device, synchronize, to_numpy
from culux.devices import device as device_function
from culux.errors import DeviceError, DifferentiationError, DTypeError, LayerError
from culux.tree import Tree, leaves, leaves_with_path

device_module = sys.modules["culux.devices.device"]
Pair = namedtuple("Pair", "first second")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv("CULUX_DEVICE", raising=False)
    monkeypatch.setattr(device_module, "_warned", False)


@pytest.fixture
def no_gpu(standin_cupy):
    standin_cupy.set_device_count(0)
    return standin_cupy


@pytest.fixture
def two_gpus(standin_cupy):
    standin_cupy.set_device_count(2)
    return standin_cupy


# Which device


def test_no_gpu_is_the_cpu_and_one_warning(no_gpu):
    with pytest.warns(UserWarning, match="no GPU can be used, computing on the CPU: CuPy is installed and finds no"):
        assert gpu_device() == cpu_device()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gpu_device(1) == cpu_device()
        assert device() == cpu_device()


def test_no_cupy_says_what_to_install(standin_cupy, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"CuPy cannot be imported.*pip install 'culux\[cuda12\]'"):
        gpu_device(force=True)
    with pytest.warns(UserWarning, match=r"pip install 'culux\[cuda12\]'"):
        gpu_device()


def test_force_needs_a_gpu(no_gpu):
    with pytest.raises(
        DeviceError, match="no GPU can be used: CuPy is installed and finds no CUDA device; see whether"
    ):
        gpu_device(force=True)


def test_indices(two_gpus):
    assert gpu_device() == gpu_device(0) == device("cuda") == device("cuda:0") == Device("cuda", 0)
    assert gpu_device(1) == gpu_device(np.int64(1)) == device("cuda:1") != gpu_device(0)
    with pytest.raises(DeviceError, match="expected a GPU index from 0, got 2; there are 2 GPUs"):
        gpu_device(2)
    with pytest.raises(DeviceError, match="got -1; there are 2 GPUs"):
        gpu_device(-1)
    with pytest.raises(DTypeError, match="expected device_id to be an integer from 0, got str 'cuda:1'"):
        gpu_device("cuda:1")
    with pytest.raises(DTypeError, match="got bool True"):
        gpu_device(True)


def test_a_negative_index_is_wrong_without_a_gpu_too(no_gpu):
    with pytest.raises(DeviceError, match="got -1; there are 0 GPUs"):
        gpu_device(-1)


def test_names(two_gpus):
    assert device("cpu") == cpu_device()
    with pytest.raises(DeviceError, match="expected an index below 2 for 'cuda', got 'cuda:2'; there are 2 cudas"):
        device("cuda:2")
    for name in ("gpu", "cuda:", "cuda:x", "cuda:-1", "numpy", ""):
        with pytest.raises(DeviceError, match=f"expected a device name to be 'cpu', 'cuda' or .*got '{name}'"):
            device(name)
    with pytest.raises(DeviceError, match="expected an index below 1 for 'cpu'"):
        device("cpu:1")


def test_a_name_without_its_gpu_is_an_error(no_gpu):
    with pytest.raises(DeviceError, match="'cuda' was asked for and no GPU can be used: CuPy is installed"):
        device("cuda")


def test_the_environment_decides_where_no_index_is_given(two_gpus, monkeypatch):
    monkeypatch.setenv("CULUX_DEVICE", "cuda:1")
    assert gpu_device() == device() == Device("cuda", 1)
    assert gpu_device(0) == Device("cuda", 0)
    assert device("cpu").kind == "cpu"
    monkeypatch.setenv("CULUX_DEVICE", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gpu_device(dtype="float16") == device() == cpu_device()
        assert gpu_device(dtype="float16").dtype == np.float16
    with pytest.raises(DeviceError, match=r"gpu_device\(force=True\) needs a GPU, and CULUX_DEVICE=cpu asks"):
        gpu_device(force=True)
    monkeypatch.setenv("CULUX_DEVICE", "tpu")
    with pytest.raises(DeviceError, match=r"expected the environment variable CULUX_DEVICE to be .*, got 'tpu'"):
        gpu_device()


def test_the_environment_asks_for_a_gpu_that_is_not_there(no_gpu, monkeypatch):
    monkeypatch.setenv("CULUX_DEVICE", "cuda")
    for choose in (gpu_device, device):
        with pytest.raises(DeviceError, match="'cuda' was asked for and no GPU can be used"):
            choose()


def test_devices_are_values(two_gpus):
    assert cpu_device(dtype="float16") == cpu_device()
    assert hash(cpu_device(dtype="float16")) == hash(cpu_device())
    assert pickle.loads(pickle.dumps(gpu_device(1, dtype="float16"))).dtype == np.float16
    with pytest.raises(AttributeError):
        cpu_device().index = 1
    for dev in (cpu_device(), cpu_device("float64"), gpu_device(1), gpu_device(0, "float16")):
        again = eval(repr(dev), {"cpu_device": cpu_device, "gpu_device": gpu_device, "device": device_function})
        assert (again, again.dtype) == (dev, dev.dtype)
    assert repr(gpu_device(1, dtype="float16")) == "gpu_device(1, dtype='float16')"
    dev = gpu_device(1)
    assert (dev.name, dev.kind, dev.index, dev.xp) == ("cuda:1", "cuda", 1, two_gpus)
    assert (cpu_device().name, cpu_device().xp) == ("cpu", np)
    assert isinstance(cpu_device().memory(), Memory)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "longdouble", "no such", object()])
def test_only_real_floats_are_converted_to(dtype):
    with pytest.raises(DTypeError, match="expected one of float16, float32, float64, bfloat16, got"):
        cpu_device(dtype)


# What moves


def mixed_tree():
    return {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "list": [np.array([1, 2]), (np.array(True), 3, 2.5, "text", None, False)],
        "pair": Pair(np.float32(2), np.zeros((0, 2))),
        "tree": Tree(w=np.array([1 + 2j])),
        "strided": np.arange(12.0)[::-2],
    }


def test_every_array_moves_and_comes_back(two_gpus):
    tree = mixed_tree()
    there = gpu_device(1)(tree)
    arrays = [leaf for leaf in leaves(there) if isinstance(leaf, two_gpus.ndarray)]
    assert len(arrays) == 6
    assert {array.device.id for array in arrays} == {1}
    assert there["list"][1][1:] == (3, 2.5, "text", None, False)
    assert type(there["pair"]) is Pair
    assert there["pair"].first is tree["pair"].first
    assert type(there["tree"]) is Tree
    for back in (cpu_device()(there), to_numpy(there)):
        for (path, mine), (_, theirs) in zip(leaves_with_path(tree), leaves_with_path(back), strict=True):
            assert type(mine) is type(theirs), path
            np.testing.assert_array_equal(mine, theirs)
    assert get_device(there) == gpu_device(1)
    elsewhere = gpu_device(0)(there)
    assert get_device(elsewhere) == gpu_device(0)
    np.testing.assert_array_equal(elsewhere["strided"].get(), tree["strided"])


def test_what_is_there_stays_the_same_object(two_gpus):
    for dev in (cpu_device(), gpu_device(1)):
        tree = dev(mixed_tree())
        again = dev(tree)
        for mine, theirs in zip(leaves(tree), leaves(again), strict=True):
            assert mine is theirs


def test_an_array_that_is_there_twice_moves_once(standin_cupy):
    x = np.ones(3)
    there = gpu_device()({"a": x, "b": (x,)})
    assert there["a"] is there["b"][0]


def test_memmaps_move(standin_cupy, tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=3)
    assert isinstance(gpu_device()(mapped), standin_cupy.ndarray)
    assert cpu_device()(mapped) is mapped


def test_dtypes_stay_unless_one_is_given_and_only_floats_convert(standin_cupy):
    tree = {"f": np.ones(2), "h": np.ones(2, np.float16), "i": np.arange(2), "b": np.array(True), "c": np.ones(1, "c8")}
    names = {name: array.dtype.name for name, array in tree.items()}
    expected = names | {"f": "float32", "h": "float32"}
    for make in (cpu_device, gpu_device):
        assert {name: array.dtype.name for name, array in make()(tree).items()} == names
        there = make()(tree)
        assert {name: array.dtype.name for name, array in make(dtype="float32")(there).items()} == expected
        assert {name: array.dtype.name for name, array in make(dtype=np.float32)(tree).items()} == expected
    assert cpu_device("bfloat16")(np.ones(2)).dtype == ml_dtypes.bfloat16
    assert cpu_device("float64")(np.ones(2, ml_dtypes.bfloat16)).dtype == np.float64
    assert gpu_device(dtype="bfloat16")(np.ones(2)).dtype == ml_dtypes.bfloat16


def test_torch_tensors_are_taken_in(standin_cupy):
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3).T.requires_grad_()
    taken = cpu_device()({"x": tensor})["x"]
    assert type(taken) is np.ndarray
    assert taken.flags.writeable
    np.testing.assert_array_equal(taken, tensor.detach().numpy())
    assert isinstance(gpu_device()(tensor), standin_cupy.ndarray)
    half = cpu_device()(torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    assert half.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(half.astype(np.float32), [1.5, -2.0])
    np.testing.assert_array_equal(to_numpy([torch.tensor([True])])[0], [True])
    with pytest.raises(DTypeError, match=r"at a\.0: expected an array of numbers"):
        cpu_device()({"a": [torch.eye(2).to_sparse()]})


def test_read_only_memory_is_copied():
    class Foreign:
        def __init__(self, array):
            self.array, self.dtype, self.shape = array, array.dtype, array.shape

        def __dlpack__(self, **kwargs):
            return self.array.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    source = np.arange(3.0)
    source.flags.writeable = False
    taken = cpu_device()(Foreign(source))
    assert taken.flags.writeable
    taken[0] = 5
    assert source[0] == 0
    np.testing.assert_array_equal(cpu_device()(Foreign(np.arange(4.0)[::-1])), [3, 2, 1, 0])


def a_function():
    pass


@pytest.mark.parametrize(
    "leaf",
    [
        np.ma.masked_array([1.0]),
        np.zeros((1, 1)).view(np.matrix),
        np.array([object()]),
        np.array(["text"]),
        np.zeros(1, [("a", float)]),
        {1, 2},
        a_function,
        np.random.default_rng(0),
        np.dtype("float32"),
        range(3),
    ],
    ids=lambda leaf: type(leaf).__name__,
)
def test_anything_else_is_a_type_error_with_its_path(leaf):
    for move in (cpu_device(), to_numpy):
        with pytest.raises(DTypeError, match=r"at a\.1: expected an array"):
            move({"a": [np.ones(1), leaf]})


def test_a_layer_does_not_move():
    @dataclass
    class Dense:
        def initial_parameters(self, rng): ...

    for refuse in (cpu_device(), to_numpy, get_device):
        with pytest.raises(LayerError, match=r"expected arrays, got the layer Dense; .*ps, st = device\(ps\)"):
            refuse(Dense())
    assert issubclass(LayerError, TypeError)


def test_a_stateful_layer_moves_by_its_parts(standin_cupy):
    layer = culux.layers.Dense(2, 3)
    m = culux.StatefulLayer(layer, *culux.setup(0, layer))
    form = r"m = culux\.StatefulLayer\(m\.layer, device\(m\.ps\), device\(m\.st\)\)"
    for refuse in (gpu_device(), to_numpy, get_device):
        with pytest.raises(LayerError, match=rf"at model: expected arrays, got StatefulLayer\(Dense.*; .*{form}"):
            refuse({"model": m})
    moved = culux.StatefulLayer(m.layer, gpu_device()(m.ps), gpu_device()(m.st))
    assert get_device((moved.ps, moved.st)) == gpu_device()


def test_a_traced_array_does_not_move():
    def moves(x):
        assert get_device({"x": x}) == cpu_device()
        synchronize(x)
        return cpu_device()({"deep": x})["deep"].sum()

    with pytest.raises(DifferentiationError, match="at deep: a traced array stays where it is; move the arrays before"):
        gradient(moves, np.ones(3))


# Questions about trees


def test_get_device(two_gpus):
    assert get_device({"a": 1, "b": "x", "c": None}) == cpu_device()
    assert get_device({"a": np.ones(1), "b": 2.0}) == cpu_device()
    here, there = np.ones(1), gpu_device(1)(np.ones(1))
    message = r"layer_1\.w is on cpu \(numpy\), layer_2\.w is on cuda:1 \(cupy\)"
    with pytest.raises(DeviceError, match=message):
        get_device({"layer_1": {"w": here}, "layer_2": {"w": there}})
    with pytest.raises(DeviceError, match=r"a is on cuda:0 \(cupy\), b is on cuda:1"):
        get_device({"a": gpu_device(0)(here), "b": there})


def test_synchronize(two_gpus):
    def waited(*args):
        two_gpus.machine.log.clear()
        synchronize(*args)
        return list(two_gpus.machine.log)

    there = gpu_device(1)({"x": np.ones(1), "y": [np.ones(1)]})
    assert waited(there) == waited(gpu_device(1)) == [("synchronize", "device 1")]
    assert waited() == [("synchronize", "device 0"), ("synchronize", "device 1")]
    assert waited(np.ones(1)) == waited(3.0) == []


@pytest.mark.parametrize("call", ["gpu_device", "device"])
def test_one_warning_a_process_in_a_bare_one(call):
    program = (
        "import sys, warnings\nsys.modules['cupy'] = None\nfrom culux import devices\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        f"    warnings.simplefilter('always')\n    devices.{call}(); devices.gpu_device(); devices.device()\n"
        "print(len(caught), caught[0].category.__name__, caught[0].filename)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1", "UserWarning", "<string>"], done.stderr
