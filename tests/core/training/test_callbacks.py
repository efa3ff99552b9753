"""Tables and the progress of a run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nequip_core.errors import InputError
from nequip_core.export.package import read_package
from nequip_core.training import callbacks
from nequip_core.training.callbacks import METRICS, ProgressLines, Table
from nequip_core.training.loss import Loss


def test_numbers_come_back_as_they_were(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv", ("n", "x", "y"), "n")
    table.begin(0)
    table.append({"n": 1, "x": 0.1 + 0.2, "y": None, "more": 5})
    assert (tmp_path / "t.csv").read_text() == "n,x,y\n1,0.30000000000000004,\n"


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("n,x\n1,5\n2,6\n3,")
    table = Table(path, ("n", "x"), "n")
    table.begin(1)
    assert path.read_text() == "n,x\n1,5\n"
    table.begin(0)
    assert path.read_text() == "n,x\n"


def test_a_row_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("n,x,y\n1,5,1\n2,6")
    Table(path, ("n", "x", "y"), "n").begin(2)
    assert path.read_text() == "n,x,y\n1,5,1\n"


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,5\n")
    with pytest.raises(InputError, match="has the columns"):
        Table(path, ("n", "x"), "n").begin(1)


def test_columns_are_the_papers(make_run: Callable[..., Any], terms: Loss) -> None:
    assert ",".join(METRICS) == (
        "epoch,step,time_s,lr,train_loss,val_loss,val_energy_mae,val_energy_rmse,val_energy_per_atom_mae,"
        "val_energy_per_atom_rmse,val_forces_mae,val_forces_rmse,val_stress_mae,val_stress_rmse"
    )
    run = make_run()
    run.fit(terms, max_epochs=1)
    assert (run.folder / "metrics.csv").read_text().splitlines()[0] == ",".join(METRICS)
    assert (run.folder / "steps.csv").read_text().splitlines()[0] == "epoch,step,time_s,lr,loss,step_s,data_wait"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_the_errors_of_each_validation(
    make_run: Callable[..., Any], terms: Loss, terminal: bool
) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    make_run().fit(terms, max_epochs=2, more=[ProgressLines(console)], enable_progress_bar=True)
    lines = [line for line in text.getvalue().splitlines() if "val_loss" in line]
    assert len(lines) == 2
    assert "epoch 2/2" in lines[1]
    assert "forces MAE" in lines[1]
    assert ("━" in text.getvalue()) is terminal


class KilledError(Exception):
    pass


def test_a_kill_between_two_checkpoints_leaves_no_trace(
    make_run: Callable[..., Any], terms: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, killed = make_run("straight"), make_run("killed")
    straight.fit(terms, max_epochs=2)
    copy = callbacks.copy_file
    copies: list[Path] = []

    def copy_and_die(source: Path, target: Path) -> None:
        copies.append(target)
        if len(copies) == 2:  # the first file of the second epoch is there, its copy is not
            raise KilledError
        copy(source, target)

    monkeypatch.setattr(callbacks, "copy_file", copy_and_die)
    with pytest.raises(KilledError):
        killed.fit(terms, max_epochs=2)
    monkeypatch.undo()
    killed.fit(terms, max_epochs=2, resume=True)
    for name in ("best.ckpt", "last.ckpt"):
        one, two = (read_package(run.folder / "checkpoints" / name).manifest for run in (straight, killed))
        assert one == two
