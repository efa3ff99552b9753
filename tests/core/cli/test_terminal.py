"""What is printed is in the log too, without the terminal's colours and line breaks."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.control import Control

from nequip_core.cli import terminal
from nequip_core.cli.terminal import RunConsole, results_table


def test_log_holds_what_came_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = RunConsole(bar=False)
    long = "a sentence with [brackets] " * 10
    console.say(long)
    console.log_to(tmp_path / "log.txt")
    console.say("labels look wrong", "warning")
    console.print(Control.bell())
    console.close()
    console.say("after")
    expected = f"{long}\nwarning: labels look wrong\n"
    assert (tmp_path / "log.txt").read_text() == expected
    assert capsys.readouterr().out == f"{expected}after\n"


def test_results_leave_out_what_has_no_label(capsys: pytest.CaptureFixture[str]) -> None:
    errors = {"mae": 0.001234, "rmse": 0.002, "max": 0.1, "n": 3}
    result = {"n_structures": 3, "energy_per_atom": None, "forces": errors, "stress": None}
    results_table(RunConsole(bar=False), {"val": result})
    said = capsys.readouterr().out
    assert "1.23" in said
    assert "forces MAE" in said
    assert "energy" not in said


def test_long_work_has_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "REFRESH", 0.0)
    console = RunConsole()
    console.file = io.StringIO()
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "is_interactive", True)
    monkeypatch.setenv("TERM", "xterm")
    for done in range(1, 4):
        console.progress("neighbour lists", done, 3)
    for done in range(1, 3):
        console.progress("reading", done)
    console.say("Done.")
    shown = console.file.getvalue()
    for words in ("neighbour lists", "2/3", "3/3", "reading", "2/?", "Done."):
        assert words in shown
    assert [row[0][0].plain for row in console._early] == ["Done."]


def test_long_work_says_where_it_is_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = RunConsole(bar=False)
    console.file = io.StringIO()
    console.progress("reading", 1)
    console.progress("reading", 2)
    assert console.file.getvalue() == ""
    monkeypatch.setattr(terminal, "LINES", 0.0)
    console.progress("reading", 3)
    console.progress("neighbour lists", 1, 2)
    assert console.file.getvalue() == "reading: 3\nneighbour lists: 1 of 2\n"
