"""nequip md."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest

from nequip_core.cli.md import THERMOSTATS, parser
from nequip_core.engines.dynamics import INTEGRATORS


def read_log(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_nve(nequip, run_folder, water, tmp_path):
    log, trajectory = tmp_path / "log.csv", tmp_path / "out.extxyz"
    code, out, err = nequip(
        "md", run_folder, water, "--index", 2, "--ensemble", "nve", "--temperature", 300, "--timestep", 0.2,
        "--steps", 20, "--interval", 5, "--log", log, "--trajectory", trajectory, "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    assert "checkpoint best, raw weights" in err
    assert "water.extxyz frame 2" in err
    assert "energy drift" in out
    rows = read_log(log)
    assert [int(row["step"]) for row in rows] == [0, 5, 10, 15, 20]
    total = np.array([float(row["total_energy_eV"]) for row in rows])
    assert np.ptp(total) < 0.05
    assert float(rows[0]["pressure_GPa"]) != 0.0
    frames = ase.io.read(trajectory, ":")
    assert len(frames) == 5
    assert np.abs(frames[0].get_momenta().sum(0)).max() < 1e-6


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ensemble", "nvt"],
        ["--ensemble", "nvt", "--thermostat", "nose-hoover"],
        ["--ensemble", "npt", "--pressure", "1"],
        ["--ensemble", "npt", "--thermostat", "langevin"],
    ],
)
def test_ensembles(nequip, run_folder, water, arguments):
    code, out, _ = nequip("md", run_folder, water, "--index", "-1", "--steps", 3, "--timestep", 0.1, *arguments)
    assert code == 0
    assert "drift" not in out


def test_same_seed_same_run(nequip, run_folder, water, tmp_path):
    logs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{name}.csv"
        arguments = ["--ensemble", "nvt", "--timestep", 0.2, "--steps", 5, "--seed", seed, "--log", path]
        assert nequip("md", run_folder, water, *arguments).code == 0
        logs.append(path.read_text())
    assert logs[0] == logs[1] != logs[2]


def test_every_integrator_can_be_chosen():
    (thermostat,) = [action for action in parser()._actions if action.dest == "thermostat"]
    chosen = {(ensemble, default) for ensemble, default in THERMOSTATS.items()}
    chosen |= {(ensemble, name) for ensemble in ("nvt", "npt") for name in thermostat.choices}
    assert chosen == set(INTEGRATORS)


def test_bad_model(nequip, bad_model, water, tmp_path):
    path, words = bad_model
    code, _, err = nequip("md", path, water, "--log", tmp_path / "log.csv")
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "log.csv").exists()


def test_bad_structure(nequip, run_folder, bad_structure, tmp_path):
    path, words = bad_structure
    code, _, err = nequip("md", run_folder, path, "--log", tmp_path / "l.csv", "--trajectory", tmp_path / "t.extxyz")
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "l.csv").exists()
    assert not (tmp_path / "t.extxyz").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--index", "5"], "frame 5"),
        (["--timestep", "0"], "timestep"),
        (["--ensemble", "npt"], "periodic"),
        (["--thermostat", "langevin"], "no nve dynamics"),
        (["--ensemble", "nph"], "nph"),
        (["--log", "no/such/folder/log.csv"], "no/such/folder"),
    ],
)
def test_bad_options(nequip, run_folder, water, arguments, words):
    code, _, err = nequip("md", run_folder, water, *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_ctrl_c_leaves_whole_files(run_folder, water, tmp_path):
    log, trajectory = tmp_path / "log.csv", tmp_path / "out.extxyz"
    command = "import sys; from nequip_core.cli.main import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["--steps", "1000000", "--timestep", "0.01", "--interval", "1", "--temperature", "10"]
    process = subprocess.Popen(
        [sys.executable, "-c", command, "md", run_folder, water, *arguments, "--log", log, "--trajectory", trajectory],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") > 3):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted after step" in err
    assert "Traceback" not in err
    rows = read_log(log)
    assert all(len(row) == 8 and None not in row.values() for row in rows)
    assert [int(row["step"]) for row in rows] == list(range(len(rows)))
    assert len(ase.io.read(trajectory, ":")) == len(rows)
