"""``python -m culux``: the report, and the table of what was tuned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import culux
from culux.__main__ import main
from culux.errors import KernelError
from culux.kernels import cublaslt, cudnn, records
from tests.cudnn_support import fake_cudnn
from tests.tuning_support import DEVICE, FakeTimer, choose, failing, fixed
from tests.tuning_support import cache as cache

pytestmark = pytest.mark.usefixtures("cache")
ROOT = Path(__file__).parents[1]


def test_without_arguments_it_reports(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"culux {culux.__version__}, Python 3.")
    assert "\nbackends and devices\n" in text
    assert "\n  numpy: cpu" in text
    assert "\noptional parts\n" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tuen"], "invalid choice: 'tuen' (choose from"),
        (["tune"], "one of the arguments --show --clear is required"),
        (["tune", "--show", "--clear"], "not allowed with argument"),
        (["--show"], "unrecognized arguments: --show"),
    ],
)
def test_wrong_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["-h"], ("[tune {--show,--clear}]", "--show lists it")), (["tune", "-h"], ("CULUX_AUTOTUNE=0", "microseconds"))],
)
def test_help(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words)


def test_nothing_tuned(capsys, cache):
    assert main(["tune", "--show"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Nothing was tuned yet: there is no file in {cache}.\nRun a model on a GPU")
    assert main(["tune", "--clear"]) == 0
    assert capsys.readouterr().out == f"Nothing to delete in {cache}.\n"


def test_the_table(capsys, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *args: "2026-01-02T03:04:05Z")
    choose(fixed(plain=20.0, fused=15.0, split=16.0), operation="dense", key=(128, 512, "float32"))
    choose(fixed(plain=100.2, fused=100.0), operation="dense", key=(64, 512, "float32"))
    choose(fixed(plain=8.0) | {"fused": failing(KernelError("does not compile\nlog"))}, operation="batchnorm", key=(8,))
    choose(fixed(fused=1234.56) | {"plain": failing(MemoryError("full"))}, operation="conv", key=())
    assert main(["tune", "--show"]) == 0
    versions = f"culux {culux.__version__}, cuda 12.9, driver 12.9"
    table = """\
operation  key              device            winner  us      default  us      gain  over next  when                  versions
batchnorm  8                Test GPU (80 GB)  plain   8.0     plain    8.0     0 %   -          2026-01-02T03:04:05Z  V
conv                        Test GPU (80 GB)  fused   1234.6  plain    failed  -     -          2026-01-02T03:04:05Z  V
dense      64 512 float32   Test GPU (80 GB)  plain   100.2   plain    100.2   0 %   0 %        2026-01-02T03:04:05Z  V
dense      128 512 float32  Test GPU (80 GB)  fused   15.0    plain    20.0    25 %  6 %        2026-01-02T03:04:05Z  V
batchnorm (8): fused could not be run: KernelError: does not compile
conv (): plain could not be run: MemoryError: full
"""  # noqa: E501 (a table as it is printed)
    assert capsys.readouterr().out == table.replace("V\n", f"{versions}\n")


def test_clear_deletes_and_says_what(capsys, cache):
    choose(fixed(plain=20.0, fused=15.0))
    choose(fixed(plain=20.0, fused=15.0), timer=FakeTimer(driver="13.0"))
    records.file_of(DEVICE, {}).with_suffix(".json.corrupt").touch()
    paths = sorted(str(path) for path in cache.iterdir() if path.name != ".lock")
    assert main(["tune", "--clear"]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == [f"deleted {path}" for path in paths]
    assert records.load_all() == []


def test_what_cannot_be_deleted_is_an_error_of_the_command(capsys, cache):
    (cache / "folder.json").mkdir(parents=True)
    assert main(["tune", "--clear"]) == 1
    assert "python -m culux: [Errno" in capsys.readouterr().err


def test_as_a_command():
    choose(fixed(plain=20.0, fused=15.0))
    command = [sys.executable, "-m", "culux", "tune"]
    done = subprocess.run([*command, "--show"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1].startswith("dense      128 512 float32")
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 2


def test_the_report_names_what_computes_products(standin_cupy, monkeypatch, capsys):
    main([])
    assert "cupy: cuda:0, 80.0 GiB\n    matrix products: CuPy's own; no cuBLASLt was found\n" in capsys.readouterr().out
    monkeypatch.setenv("CULUX_CUBLASLT", "/nowhere.so")
    monkeypatch.setattr(cublaslt, "_by_backend", {})
    main([])
    assert "matrix products: CULUX_CUBLASLT is wrong: CULUX_CUBLASLT=/nowhere.so cannot be" in capsys.readouterr().out


def test_the_report_names_what_computes_convolutions(standin_cupy, monkeypatch, capsys):
    main([])
    assert "    convolutions: culux's own; cuDNN is turned off by CULUX_CUDNN=0\n" in capsys.readouterr().out
    with fake_cudnn(standin_cupy, monkeypatch) as library:
        main([])
        assert "    convolutions: cuDNN 9.10.2 (nvidia-cudnn-frontend 1.28.0)\n" in capsys.readouterr().out
        cudnn._by_backend.clear()
        library.fail["create_handle"] = RuntimeError("Unable to find symbol cudnnCreate")
        with pytest.warns(UserWarning, match="culux's own kernels compute convolutions"):
            main([])
        assert "    convolutions: culux's own; cuDNN does not work here: Unable to find" in capsys.readouterr().out
        cudnn._by_backend.clear()
        monkeypatch.setenv("CULUX_CUDNN", "yes")
        main([])
        assert "    convolutions: CULUX_CUDNN is wrong: expected the environment" in capsys.readouterr().out
