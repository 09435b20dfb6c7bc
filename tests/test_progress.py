"""What `fit` shows: its history as a table, lines in a log file, a bar in a terminal."""

from __future__ import annotations

import io
import sys

import pytest

import culux
from culux.errors import EntryError
from culux.training import History, fit
from tests.small_model import objective, train_state, training_batches


def test_a_history_prints_as_a_table():
    rows = [(1, 5, 0.123456, 1.234), (2, 10, 1e-7, 0)]
    history = History(tuple(culux.Tree(epoch=e, step=n, loss=loss, seconds=s) for e, n, loss, s in rows))
    assert str(history).splitlines() == [
        "epoch   step      loss   seconds",
        "    1      5    0.1235      1.23",
        "    2     10     1e-07      0.00",
    ]
    assert history["loss"] == [0.123456, 1e-7]
    with pytest.raises(EntryError, match=r"no column 'los'.*did you mean 'loss'"):
        history["los"]


def test_a_log_file_gets_whole_lines(capsys):
    _, history = fit(objective, training_batches(), train_state(), epochs=2, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == str(history).splitlines()
    fit(objective, training_batches(), train_state(), epochs=2, progress=False)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch):
    pytest.importorskip("tqdm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    _, history = fit(objective, training_batches(), train_state(), epochs=2, log_every=1)
    written = terminal.getvalue()
    assert "epoch 1/2" in written
    assert "epoch 2/2" in written
    assert screen(written) == str(history).splitlines()


def screen(text):
    """What a terminal shows of a text with carriage returns."""
    shown = []
    for line in text.replace("\x1b[A", "").split("\n"):
        cells = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        shown.append("".join(cells).rstrip())
    return [line for line in shown if line]


def test_a_terminal_without_tqdm_gets_lines(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    _, history = fit(objective, training_batches(), train_state(), epochs=2)
    assert terminal.getvalue().splitlines() == str(history).splitlines()


def test_a_long_epoch_without_a_bar_says_where_it_is(monkeypatch, capsys):
    monkeypatch.setattr("culux.training.progress._SILENCE", -1.0)
    fit(objective, training_batches(), train_state(), epochs=1, log_every=2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("epoch 1/1, step 2/5, loss ")
