"""The examples run, print their result and leave their picture; the goals that they reach are slow tests."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.support import requires

EXAMPLES = Path(__file__).parents[1] / "examples"
NUMBER = r"(-?\d+\.\d+)"
RESULTS = {
    "digits": f"test accuracy: {NUMBER}",
    "digits_cnn": f"test accuracy: {NUMBER}",
    "digits_rows": f"test accuracy: {NUMBER}",
    "diabetes": f"network: RMSE {NUMBER}, R2 {NUMBER}; ridge regression: RMSE {NUMBER}, R2 {NUMBER}",
    "transformer": f"bits per character: {NUMBER}; counts of pairs {NUMBER}, of characters {NUMBER}",
}


@pytest.fixture(autouse=True)
def _libraries():
    requires("matplotlib")
    requires("sklearn")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """A function that runs an example on the CPU, as from a terminal; the numbers in its last line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CULUX_DEVICE", "cpu")

    def run(name: str, *arguments: str) -> list[float]:
        script = str(EXAMPLES / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(script, run_name="__main__")
        last = capsys.readouterr().out.splitlines()[-1]
        found = re.fullmatch(RESULTS[name], last)
        assert found, last
        return [float(number) for number in found.groups()]

    return run


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(RESULTS)


@pytest.mark.parametrize("name", ["digits", "digits_cnn", "digits_rows", "diabetes"])
def test_one_epoch(name, run, tmp_path):
    numbers = run(name, "--epochs", "1", "--out", "here")
    assert is_picture(tmp_path / "here" / f"{name}.png")
    if name != "diabetes":
        assert 0.2 < numbers[0] <= 1  # guessing is 0.1


def test_the_folder_has_a_name_of_its_own(run, tmp_path):
    run("diabetes", "--epochs", "1")
    assert is_picture(tmp_path / "diabetes-run" / "diabetes.png")
    assert (tmp_path / "diabetes-run" / "best.safetensors").exists()


def test_a_transformer_on_another_text(run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The assignment statement binds names to values.\n" * 500, encoding="utf-8")
    bits, pairs, characters = run("transformer", "--epochs", "2", "--text", str(text), "--out", "here")
    assert is_picture(tmp_path / "here" / "transformer.png")
    assert bits < characters
    assert 0 < pairs < characters < 5


def test_python_without_its_manual(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    read_text = runpy.run_path(str(EXAMPLES / "transformer.py"))["read_text"]
    assert "class ArgumentParser" in read_text(None)
    assert "there is no pydoc_data.topics here" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "1", "2"])
@pytest.mark.parametrize(("name", "goal"), [("digits", 0.97), ("digits_cnn", 0.985), ("digits_rows", 0.93)])
def test_accuracy(name, goal, seed, run):
    assert run(name, "--seed", seed)[0] >= goal


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_regression(seed, run):
    error, _, ridge_error, _ = run("diabetes", "--seed", seed)
    assert error < 1.05 * ridge_error


@pytest.mark.slow
def test_bits_per_character(run):
    bits, pairs, characters = run("transformer")
    assert 1.8 < bits < 2.3 < pairs < characters  # far less would mean that it sees what comes
