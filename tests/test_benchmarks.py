"""The benchmarks of training run to their ends, in their tiny sizes; figures of such machines say nothing."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def rows(script: str, out: Path, *words: object) -> list[dict[str, str]]:
    """Of the table that a benchmark writes."""
    command = [sys.executable, FOLDER / script, *words, "--out", out]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(out.parent / "inductor")}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_compiled_and_eager_steps(tmp_path: Path) -> None:
    found = rows("training.py", tmp_path / "out.csv", "--tiny", "--rounds", 2)
    mine = [row for row in found if row["other"] == "ours, eager, no kernels"]
    assert [row["model"] for row in mine] == ["allegro_tiny", "nequip_tiny"]
    for row in mine:
        assert row["figure"] == "train_ms"
        assert float(row["min"]) <= float(row["other_over_ours_median"]) <= float(row["max"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["--eager", "--model=nequip"])
def test_weak_scaling(tmp_path: Path, mode: str) -> None:
    few = ("--structures", 4, "--atoms", 8, "--frames", 64, "--steps", 20, "--every", 5, "--workers", 1)
    found = rows("scaling.py", tmp_path / "out.csv", "--tiny", "--processes", 1, 2, "--rounds", 1, *few, mode)
    assert [row["processes"] for row in found] == ["1", "2"]
    assert float(found[0]["efficiency_median"]) == 1.0
    assert all(float(row["step_ms_median"]) > 0 for row in found)


@pytest.mark.slow
def test_losses_of_compiled_training(tmp_path: Path) -> None:
    data = FOLDER.parent / "examples" / "demo" / "molecules.xyz.xz"
    (double, single) = rows("compiled_losses.py", tmp_path / "out.csv", data, "--model", "nequip", "--steps", 200)
    assert (double["dtype"], single["dtype"]) == ("float64", "float32")
    assert float(double["largest_deviation"]) < 1e-9
    assert float(single["last_deviation"]) < 1e-3
    assert float(double["last_loss"]) < 0.8 * float(double["first_loss"])
    assert (double["graphs"], double["recompiles"]) == ("1", "0")


def test_single_steps(tmp_path: Path) -> None:
    make = "import sys; from our_calls import package; package('nequip_tiny', ['H', 'O'], sys.argv[1])"
    model = tmp_path / "model.nequip.zip"
    environment = os.environ | {"PYTHONPATH": str(FOLDER / "peers")}
    subprocess.run([sys.executable, "-c", make, model], check=True, env=environment)
    found = rows("steps.py", tmp_path / "out.csv", model, "--sides", 2, "--steps", 30)
    assert [row["cell"] for row in found] == ["stays", "tried", "changes"]
    for row in found:
        assert 0 < float(row["median_ms"]) <= float(row["largest_ms"])
        assert row["recorded"] == "False"
    stays, tried, changes = (int(row["lists"]) for row in found)
    assert 0 < stays <= tried < changes == 30


def test_the_figure_of_the_readme(tmp_path: Path) -> None:
    """It is drawn from the tables that are there."""
    out = tmp_path / "speed.svg"
    subprocess.run([sys.executable, FOLDER / "plot.py", "--out", out], check=True)
    for words in ("energies and forces", "Allegro, ours", "l 3, all parities", "published, compiled"):
        assert words in out.read_text()
