"""Checkpoints: what comes back, what is refused, and that nothing breaks a file that is there."""

from __future__ import annotations

import errno
import math
import os
import signal
import stat
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import culux
from culux.errors import CheckpointError, DTypeError, LayerError
from culux.serialization import checkpoint, files, load, read_metadata, save
from culux.tree import Tree
from tests.standin_cupy.fixture import standin_cupy  # noqa: F401 (a fixture)
from tests.support import requires

ROOT = Path(__file__).parents[1]
Pair = namedtuple("Pair", "left right")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def again(path, tree, like=None):
    save(path, tree)
    return load(path, like)


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()
    else:
        assert a == b or (a != a and b != b)


ARRAYS = {
    "float32": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "strided": np.arange(20, dtype=np.int16)[::-3],
    "fortran": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "zero_d": np.array(3.5),
    "empty": np.zeros((0, 4), np.float16),
    "big_endian": np.arange(5, dtype=">i4"),
    "bools": np.array([True, False, True]),
    "uint64": np.array([2**64 - 1], np.uint64),
    "special": np.array([np.nan, np.inf, -np.inf, -0.0]),
    "broadcast": np.broadcast_to(np.float32(1), (3, 2)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back(path, name):
    array = ARRAYS[name]
    back = again(path, {"x": array})["x"]
    expected = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    assert_same(back, expected)
    assert back.flags.c_contiguous
    assert back.flags.writeable


def test_bfloat16_and_memmaps_come_back(path, tmp_path):
    ml_dtypes = requires("ml_dtypes")
    array = np.array([1, 2.5, np.nan], ml_dtypes.bfloat16)
    assert_same(again(path, {"x": array})["x"], array)
    np.save(tmp_path / "a.npy", np.arange(3))
    assert_same(again(path, {"x": np.load(tmp_path / "a.npy", mmap_mode="r")})["x"], np.arange(3))


@pytest.mark.parametrize(
    ("before", "printed"),
    [("", "bfloat16"), ("sys.modules['ml_dtypes'] = None", "holds bfloat16 arrays, which need the package ml_dtypes")],
)
def test_bfloat16_in_a_process_that_has_not_imported_it(path, before, printed):
    ml_dtypes = requires("ml_dtypes")
    save(path, {"x": np.zeros(2, ml_dtypes.bfloat16)})
    lines = ["import sys", before, "from culux.serialization import load", "print(load(sys.argv[1]).x.dtype)"]
    command = [sys.executable, "-c", "\n".join(lines), str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert printed in run.stdout + run.stderr


SCALARS = [True, False, 0, -1, 2**5000, "text é", "", "\ud800", None, 0.1, -0.0, math.inf, -math.inf, math.nan, 5e-324]
SCALARS += [np.float32(1.5), np.int8(-3), np.bool_(True), np.float64(0.1)]


@pytest.mark.parametrize("value", SCALARS, ids=lambda value: repr(value)[:20])
def test_scalars_come_back_exactly(path, value):
    back = again(path, {"x": value})["x"]
    assert_same(back, value)
    if isinstance(value, float):
        assert math.copysign(1, back) == math.copysign(1, value)


def test_nodes_come_back(path):
    tree = {
        "layer_1": {"weight": np.ones(2), "empty": {}},
        "list": [1, (2.0, [None])],
        "unit": (),
        "pair": Pair(1, "x"),
    }
    back = again(path, tree)
    assert type(back) is Tree
    assert list(back) == list(tree)
    assert back.list == [1, (2.0, [None])]
    assert type(back.layer_1.empty) is Tree
    assert back.unit == ()
    assert back.pair == Tree(left=1, right="x")
    assert load(path, tree)["pair"] == Pair(1, "x")


def test_a_single_array_and_a_tuple_at_the_top(path):
    assert_same(again(path, np.arange(3)), np.arange(3))
    ps, st = again(path, (Tree(w=np.ones(2)), Tree(training=True)))
    assert st == Tree(training=True)
    assert type(ps) is Tree


def test_functors_and_other_nodes_are_restored_through_like(path):
    @culux.functor
    class Model:
        A: object
        name: str

    save(path, Model(np.ones(2), "one"))
    assert type(load(path)) is Tree
    back = load(path, Model(np.zeros(2), "two"))
    assert type(back) is Model
    np.testing.assert_array_equal(back.A, np.ones(2))


def test_other_programs_read_the_file(path):
    save(path, {"layer_1": {"weight": np.eye(2)}}, metadata={"note": "good"})
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["layer_1.weight"], np.eye(2))
    assert read_metadata(path) == {"note": "good"}


def test_a_plain_safetensors_file_is_a_tree(path):
    safetensors.numpy.save_file({"a.w": np.ones(2), "a.b": np.zeros(1), "c": np.arange(3)}, path, {"format": "np"})
    back = load(path)
    assert set(back) == {"a", "c"}
    assert_same(back.a.w, np.ones(2))
    like = {"a": {"w": np.zeros(2, np.float32), "b": np.zeros(1)}, "c": np.zeros(3, np.int64)}
    assert load(path, like)["a"]["w"].dtype == np.float32


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a"), ("a", "a.b.c"), ("a..b",), ("items",)])
def test_a_plain_file_whose_names_are_no_paths(path, names):
    safetensors.numpy.save_file({name: np.ones(1) for name in names}, path)
    with pytest.raises(CheckpointError, match=r"model.safetensors holds no tree"):
        load(path)


def test_arrays_that_are_one_stay_one(path):
    w = np.arange(3.0)
    back = again(path, {"a": w, "b": {"c": w}, "d": w.copy()})
    assert back.a is back.b.c
    assert back.d is not back.a
    assert path.stat().st_size < 1000


def test_like_decides_what_is_tied(path):
    tied, w = np.zeros(3), np.arange(3.0)
    save(path, {"a": w, "b": w.copy()})
    back = load(path, {"a": tied, "b": tied})
    assert back["a"] is back["b"]
    save(path, {"a": w, "b": w})
    back = load(path, {"a": np.zeros(3), "b": np.zeros(3)})
    assert not np.shares_memory(back["a"], back["b"])
    save(path, {"a": w, "b": w + 1})
    with pytest.raises(CheckpointError, match="b: expected one array here and at a, the file has two"):
        load(path, {"a": tied, "b": tied})


def test_like_decides_devices_and_float_dtypes(path, standin_cupy):  # noqa: F811 (the fixture)
    save(path, {"w": np.arange(3.0), "n": np.arange(3), "training": True})
    there = {"w": standin_cupy.zeros(3, "float32"), "n": standin_cupy.zeros(3, "int64"), "training": False}
    back = load(path, there)
    assert isinstance(back["w"], standin_cupy.ndarray)
    assert back["w"].dtype == np.float32
    assert back["training"] is True
    np.testing.assert_array_equal(back["w"].get(), np.arange(3))
    save(path, back)
    assert_same(load(path).w, np.arange(3, dtype=np.float32))


def test_like_of_a_third_backend(path):
    xp = requires("array_api_strict")
    from culux.backends import registry
    from tests.strict_backend import StrictBackend

    culux.backends.register_backend(StrictBackend())
    try:
        save(path, {"w": xp.asarray([1.0, 2.0])})
        back = load(path, {"w": xp.zeros(2, dtype=xp.float32)})["w"]
        assert back.dtype == xp.float32
        assert float(back[1]) == 2.0
    finally:
        del registry._backends["array_api_strict"]
        registry._by_type.clear()


def test_everything_that_does_not_fit_is_listed_at_once(path):
    save(path, {"w": np.ones((2, 3)), "n": np.ones(2), "old": 1, "k": 3, "s": None})
    with pytest.raises(CheckpointError) as caught:
        load(path, {"w": np.ones((3, 2)), "n": np.ones(2, int), "new": np.ones(1), "k": 0.5, "s": np.ones(1)})
    assert str(caught.value).splitlines() == [
        f"{path} does not fit the tree that it is loaded into, they differ at:",
        "  w: expected float64 array of shape (3, 2), got float64 array of shape (2, 3)",
        "  n: expected int64 array of shape (2,), got float64 array of shape (2,)",
        "  new: missing in the file (expected float64 array of shape (1,))",
        "  k: expected float 0.5, got int 3",
        "  s: expected float64 array of shape (1,), got None",
        "  old: not expected (the file has int 1)",
    ]


@pytest.mark.parametrize(
    ("tree", "error", "text"),
    [
        ({"a": {"z": np.ones(1, complex)}}, DTypeError, r"at a\.z: a checkpoint holds bools, integers and real floats"),
        ({"a": [np.array(["x"], object)]}, DTypeError, r"at a\.0: expected an array of numbers"),
        ({"f": 1j}, DTypeError, "at f: a checkpoint holds bool, int, float, str, None and arrays, got complex"),
        ({"f": print}, DTypeError, "at f: expected an array, a number"),
        ({"a": culux.Layer()}, LayerError, "at a: expected arrays, got the layer Layer; a layer holds no arrays"),
        ({"__metadata__": np.ones(1)}, DTypeError, "at __metadata__: safetensors keeps this name for itself"),
        ({"a": {"b.c": np.ones(1)}}, LayerError, r"at a: 'b.c' cannot name an entry"),
        ({"a": {1: np.ones(1)}}, LayerError, "at a: names are strings, got int 1"),
    ],
)
def test_refused_leaves(path, tree, error, text):
    with pytest.raises(error, match=text):
        save(path, tree)
    assert not path.exists()


def test_refused_metadata(path):
    with pytest.raises(DTypeError, match=r"expected metadata to map strings to strings.*got 'n': 3"):
        save(path, {}, metadata={"n": 3})
    with pytest.raises(DTypeError, match=r"no name beginning with 'culux\.'"):
        save(path, {}, metadata={"culux.sha256": "0"})


def test_every_flipped_byte_is_found(path):
    save(path, {"w": np.arange(3, dtype=np.float32), "t": True, "n": [7, "x"]}, metadata={"note": "a"})
    good = path.read_bytes()
    survivors = []
    for i in range(len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        try:
            load(path)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017 (the loop counts the files that load)
        else:
            survivors.append(i)
    assert survivors == []


def test_every_truncation_is_found(path):
    save(path, {"w": np.arange(3, dtype=np.float32)})
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match=r"model.safetensors is truncated, corrupt or no safetensors file"):
            load(path)


def test_a_flipped_data_byte_is_named(path):
    save(path, {"w": np.arange(3, dtype=np.float32)})
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="is corrupt: its checksum does not fit its content"):
        load(path)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x04\x95"])
def test_a_pickle_is_not_read(path, start):
    path.write_bytes(start + bytes(100))
    with pytest.raises(CheckpointError, match=r"looks like a pickle of torch\.save"):
        load(path)


def test_a_newer_format_says_so(path):
    save(path, {"w": np.ones(1)})
    with safetensors.safe_open(path, "np") as file:
        header = {**file.metadata(), "culux.version": "2"}
    safetensors.numpy.save_file({"w": np.ones(1)}, path, header)
    with pytest.raises(CheckpointError, match="format version 2, this culux reads versions up to 1; update culux"):
        load(path)


@pytest.mark.parametrize("structure", ["[", "[1]", '["array"]', '["tie", "no"]', '{"a.b": ["none"]}', "[" * 9000])
def test_a_structure_that_is_none(path, structure):
    header = {"culux.version": "1", "culux.structure": structure}
    header["culux.sha256"] = checkpoint._digest(header, {})
    safetensors.numpy.save_file({}, path, header)
    with pytest.raises(CheckpointError, match=r"model.safetensors holds no tree"):
        load(path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "no.safetensors")
    with pytest.raises(CheckpointError, match="could not be written: No such file or directory"):
        save(tmp_path / "no" / "x.safetensors", {})


def test_the_mode_is_the_umasks_and_links_stay(tmp_path):
    target, link = tmp_path / "target.safetensors", tmp_path / "link.safetensors"
    link.symlink_to(target)
    old = os.umask(0o027)
    try:
        save(link, {"x": 1})
    finally:
        os.umask(old)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert link.is_symlink()


def test_a_loaded_array_outlives_its_file(path):
    back = again(path, {"x": np.arange(1000.0)})
    path.write_bytes(b"")
    np.testing.assert_array_equal(back.x, np.arange(1000.0))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_litter(path, monkeypatch, call):
    save(path, {"x": 1})

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(CheckpointError, match="No space left on device; the file that was there is unchanged"):
        save(path, {"x": 2})
    monkeypatch.undo()
    assert load(path).x == 1
    assert list(path.parent.iterdir()) == [path]


def test_the_file_and_its_name_are_on_the_disk_in_the_right_order(path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        files.os, "fsync", lambda f: calls.append(os.path.realpath(f"/proc/self/fd/{f}")) or fsync(f), raising=True
    )
    monkeypatch.setattr(files.os, "replace", lambda a, b: calls.append("replace") or replace(a, b))
    save(path, {"x": 1})
    assert calls[0].endswith(".tmp")
    assert calls[1:] == ["replace", str(path.parent)]


WRITER = """
import sys, itertools, numpy as np
from culux.serialization import save
for i in itertools.count(1):
    save(sys.argv[1], {"x": np.full(200_000, i), "i": i})
    print(i, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_file(path):
    save(path, {"x": np.full(200_000, 0), "i": 0})
    rng = np.random.default_rng(0)
    for _ in range(5):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
            written = int(writer.stdout.readline())
            time.sleep(rng.uniform(0, 0.05))
            writer.send_signal(signal.SIGKILL)
            written = max([written, *map(int, writer.stdout.read().split())])
        back = load(path)
        assert back.i in (written, written + 1)
        assert (back.x == back.i).all()
