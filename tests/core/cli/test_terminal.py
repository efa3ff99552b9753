"""What is printed is in the log too, without the terminal's colours and line breaks."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.control import Control

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
