"""The registry, the NumPy backend, and a third backend that comes from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import array_api_strict
import numpy as np
import pytest

from culux.backends import (
    Memory,
    Place,
    array_namespace,
    backend_of,
    get_backend,
    installed,
    is_array,
    is_float_array,
    register_backend,
)
from culux.devices import Device, cpu_device, get_device
from culux.errors import DeviceError, KernelError
from tests.strict_backend import StrictBackend

ROOT = Path(__file__).parent.parent


def test_numpy_arrays_belong_to_numpy(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=3)
    for array in (np.zeros(2), mapped):
        assert backend_of(array).name == "numpy"
        assert array_namespace(array, 1.0) is np
        assert is_array(array)
        assert is_float_array(array)
    assert not is_float_array(np.arange(3))


@pytest.mark.parametrize("value", [np.ma.masked_array([1.0]), 1, 2.0, True, "x", None, [1.0], np.float32(1)])
def test_what_is_no_array(value):
    assert not is_array(value)


def test_a_matrix_is_no_array():
    with pytest.warns(PendingDeprecationWarning):
        assert not is_array(np.matrix([[1.0]]))


def test_scalars_fit_every_backend(strict):
    x = array_api_strict.asarray([1.0])
    assert backend_of(1, x, np.float32(2), None) is strict
    assert backend_of(1.0, None).name == "numpy"


def test_a_registered_backend_is_found_by_the_type_of_its_arrays(strict):
    x = array_api_strict.asarray([1.0, 2.0])
    assert backend_of(x) is strict
    assert array_namespace(x) is array_api_strict
    assert is_float_array(x)
    assert not is_float_array(array_api_strict.asarray([1]))
    assert installed()["array_api_strict"] == ""


def test_mixing_two_backends_names_both(strict):
    message = (
        r"argument 1 is on cpu \(numpy\), argument 2 is on array_api_strict:0 \(array_api_strict\); move them together"
    )
    with pytest.raises(DeviceError, match=message):
        backend_of(np.ones(2), array_api_strict.ones(2))


def test_devices_move_to_a_third_backend_and_back(strict):
    there = Device("array_api_strict", dtype=np.dtype("float32"))
    moved = there({"w": np.array([1.0, 2.0]), "n": np.array([1, 2])})
    assert isinstance(moved["w"], strict.array_types)
    assert (moved["w"].dtype, moved["n"].dtype) == (array_api_strict.float32, array_api_strict.int64)
    assert get_device(moved) == there
    assert there(moved)["w"] is moved["w"]
    back = cpu_device()(moved)
    np.testing.assert_array_equal(back["w"], np.array([1, 2], np.float32))
    assert type(back["n"]) is np.ndarray


def test_a_backend_of_the_same_name_replaces_the_first(strict):
    other = StrictBackend()
    assert backend_of(array_api_strict.ones(1)) is strict
    register_backend(other)
    assert backend_of(array_api_strict.ones(1)) is other


def test_an_entry_point_brings_a_backend(tmp_path):
    info = tmp_path / "culux_strict-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: culux-strict\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[culux.backends]\narray_api_strict = tests.strict_backend:backend\n")
    program = (
        "import array_api_strict, numpy as np\n"
        "from culux.backends import array_namespace, backend_of, installed\n"
        "assert installed()['array_api_strict'] == '', installed()\n"
        "x = array_api_strict.ones(2)\n"
        "assert backend_of(x).name == 'array_api_strict'\n"
        "assert array_namespace(x) is array_api_strict\n"
        "try:\n    backend_of(x, np.ones(2))\nexcept RuntimeError as error:\n    print(error)\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "argument 1 is on array_api_strict:0 (array_api_strict), argument 2 is on cpu (numpy)" in done.stdout


def test_an_unknown_backend_names_those_there_are():
    with pytest.raises(DeviceError, match=r"no backend 'opencl' is registered; there are: .*numpy"):
        get_backend("opencl")


def test_importing_the_backends_imports_no_cupy():
    program = "import sys, culux.backends, culux.devices, culux.random; sys.exit('cupy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_numpy_backend():
    numpy = get_backend("numpy")
    x = np.ones(3)
    assert numpy.to_host(x) is x
    assert numpy.from_host(x, 0) is x
    assert numpy.place_of(x) == Place("cpu")
    assert numpy.astype(x, "float64") is x
    assert numpy.astype(x, "float32").dtype == np.float32
    assert isinstance(numpy.memory(0), Memory)
    with pytest.raises(DeviceError, match="expected cpu:0, got cpu:1"):
        numpy.move(x, 1)
    with pytest.raises(KernelError, match="cannot compile the CUDA kernel 'k'; move the arrays to a GPU"):
        numpy.compile("", "k")
    with pytest.raises(KernelError, match="cannot launch"):
        numpy.launch(None, (1,), (1,), ())


def test_an_upload_to_the_host_gives_new_memory_each_time():
    upload = get_backend("numpy").upload(0)
    upload.stage(4)[...] = 1
    first = upload.start()
    upload.wait()
    upload.stage(4)[...] = 2
    upload.close()
    np.testing.assert_array_equal(first, np.ones(4, np.uint8))
