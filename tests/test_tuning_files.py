"""The files of the autotuner, and the folders of the cache."""

from __future__ import annotations

import json
import os
import signal
import tempfile

import pytest

from culux.backends.cache import cache_folder
from culux.errors import KernelError
from culux.kernels import records
from tests.tuning_support import DEVICE, FakeTimer, NoTimer, choose, failing, fixed, forget, in_another_process
from tests.tuning_support import cache as cache

pytestmark = pytest.mark.usefixtures("cache")


def the_file(cache):
    (path,) = cache.glob("*.json")
    return path


def test_picks_survive_in_the_file():
    assert choose(fixed(plain=20.0, fused=10.0)) == "fused"
    process = in_another_process("print(choose(fixed(plain=10.0, fused=20.0), timer=NoTimer()))")
    out, errors = process.communicate()
    assert out == "fused\n", errors


def test_a_candidate_that_failed_is_not_tried_again(monkeypatch):
    assert choose(fixed(plain=20.0) | {"fused": failing(KernelError("too large"))}) == "plain"
    forget(monkeypatch)
    assert choose(fixed(plain=20.0, fused=10.0), timer=NoTimer()) == "plain"


def test_the_file_is_read_once(monkeypatch):
    choose(fixed(plain=20.0, fused=10.0), key=(1,))
    choose(fixed(plain=20.0, fused=10.0), key=(2,))
    forget(monkeypatch)
    loads, load = [], records.load
    monkeypatch.setattr(records, "load", lambda path: loads.append(path) or load(path))
    for i in (1, 2):
        assert choose(fixed(plain=20.0, fused=10.0), key=(i,), timer=NoTimer()) == "fused"
    assert len(loads) == 1


@pytest.mark.parametrize("change", ["culux", "driver", "candidates"])
def test_what_changed_is_timed_again(monkeypatch, change):
    assert choose(fixed(plain=20.0, fused=10.0)) == "fused"
    forget(monkeypatch)
    if change == "culux":
        monkeypatch.setattr("culux.__version__", "0.2.0")
    timer = FakeTimer(driver="13.0" if change == "driver" else "12.9")
    third = {"third": 5.0} if change == "candidates" else {}
    assert choose(fixed(plain=10.0, fused=20.0, **third), timer=timer) == ("third" if third else "plain")
    assert len(records.load_all()) == (1 if third else 2)


WRITER = """
import time
from culux.kernels import records
(records.folder() / "{name}").touch()
while len(list(records.folder().glob("ready-*"))) < 2:
    time.sleep(0.001)
for i in range(25):
    choose(fixed(plain=20.0, fused=10.0), key=("{name}", i))
"""


def test_two_processes_that_write_at_once_lose_nothing():
    processes = [in_another_process(WRITER.format(name=name)) for name in ("ready-a", "ready-b")]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert errors == ""
    found = {record.key for record in records.load_all()}
    assert found == {(name, i) for name in ("ready-a", "ready-b") for i in range(25)}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_writer_that_is_killed_leaves_the_old_file(cache, call):
    choose(fixed(plain=20.0, fused=10.0))
    before = the_file(cache).read_bytes()
    code = f"import signal\nos.{call} = lambda *args: os.kill(os.getpid(), signal.SIGKILL)\n"
    process = in_another_process(code + "choose(fixed(plain=20.0, fused=10.0), key=(1,))")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert the_file(cache).read_bytes() == before
    assert choose(fixed(plain=20.0, fused=10.0), key=(2,)) == "fused"  # the lock died with its holder
    assert sorted(record.key for record in records.load_all()) == [(2,), (128, 512, "float32")]
    assert len(records.clear()) == 2
    assert [path.name for path in cache.iterdir()] == [".lock"]


def damaged(content, **changes):
    content = json.loads(content)
    content["records"][0].update(changes)
    return json.dumps(content).encode()


DAMAGE = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "no JSON": lambda content: b"\xff\xfe",
    "nested": lambda content: b"[" * 200_000,
    "another program's": lambda content: b'["x"]',
    "another schema": lambda content: content.replace(b'"schema": 1', b'"schema": 2'),
    "a field missing": lambda content: content.replace(b'"when"', b'"then"'),
    "a winner without a time": lambda content: damaged(content, winner="gone"),
    "times that are text": lambda content: damaged(content, times={"plain": "20", "fused": 10.0}),
    "no number": lambda content: content.replace(b"10.0", b"NaN"),
    "another device": lambda content: damaged(content, device="Other GPU"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_is_damaged_is_set_aside_and_rebuilt(cache, monkeypatch, damage):
    choose(fixed(plain=20.0, fused=10.0))
    path = the_file(cache)
    bad = damage(path.read_bytes())
    assert bad != path.read_bytes()
    path.write_bytes(bad)
    forget(monkeypatch)
    with pytest.warns(UserWarning, match=r"Test-GPU-80-GB-\w+.json is no file of the autotuner .* timed again") as said:
        assert choose(fixed(plain=10.0, fused=20.0)) == "plain"
    assert len(said) == 1
    assert path.with_name(f"{path.name}.corrupt").read_bytes() == bad
    assert [record.winner for record in records.load_all()] == ["plain"]


def test_fields_of_later_versions_are_passed_over(cache, monkeypatch):
    choose(fixed(plain=20.0, fused=10.0))
    path = the_file(cache)
    path.write_bytes(damaged(path.read_bytes(), bandwidth=3.0))
    forget(monkeypatch)
    assert choose(fixed(plain=20.0, fused=10.0), timer=NoTimer()) == "fused"


def test_a_full_disk_is_said_once(monkeypatch, cache):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"picks for Test GPU \(80 GB\) is not kept on disk: .*No space left"):
        assert choose(fixed(plain=20.0, fused=10.0)) == "fused"
    assert choose(fixed(plain=20.0, fused=10.0), key=(1,)) == "fused"  # a second warning would be an error
    assert choose(fixed(plain=10.0, fused=20.0)) == "fused"
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_a_file_that_cannot_be_read_is_said_once(monkeypatch):
    choose(fixed(plain=20.0, fused=10.0))
    path = records.file_of(DEVICE, records.load_all()[0].versions)
    path.unlink()
    path.mkdir()
    forget(monkeypatch)
    with pytest.warns(UserWarning, match=r"is not kept on disk: .*Is a directory"):
        assert choose(fixed(plain=10.0, fused=20.0)) == "plain"
    assert choose(fixed(plain=20.0, fused=10.0), key=(1,)) == "fused"


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CULUX_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match=r"file/cache/tuning cannot be written \(.*set CULUX_CACHE_DIR"):
        assert choose(fixed(plain=20.0, fused=10.0)) == "fused"
    assert choose(fixed(plain=20.0, fused=10.0), key=(1,)) == "fused"  # a second warning would be an error
    assert cache_folder("tuning").parent == tmp_path
    assert len(records.load_all()) == 2


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"CULUX_CACHE_DIR": "{}/a", "XDG_CACHE_HOME": "{}/b"}, "a/x"),
        ({"CULUX_CACHE_DIR": "~/a"}, "home/a/x"),
        ({"CULUX_CACHE_DIR": "", "XDG_CACHE_HOME": "{}/b"}, "b/culux/x"),
        ({}, "home/.cache/culux/x"),
    ],
)
def test_where_the_cache_is(tmp_path, monkeypatch, variables, folder):
    monkeypatch.delenv("CULUX_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in {"HOME": "{}/home", **variables}.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert cache_folder("x") == tmp_path / folder
    assert (tmp_path / folder).is_dir()


def test_a_user_without_a_home_has_a_temporary_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("CULUX_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="no home folder"):
        assert cache_folder("y").parent == tmp_path
    assert not (tmp_path / "~").exists()
