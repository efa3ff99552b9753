"""Dynamics and relaxation, on ASE's own EMT and Morse calculators: exact forces without a model."""

from __future__ import annotations

import csv
from pathlib import Path

import ase.io
import ase.units
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential
from ase.constraints import FixAtoms

from nequip_core.engines.dynamics import (
    COLUMNS,
    INTEGRATORS,
    DynamicsSettings,
    draw_velocities,
    relax,
    run_dynamics,
)
from nequip_core.errors import CheckError, InputError


def copper(repeat: int = 2) -> Atoms:
    atoms = bulk("Cu", cubic=True) * (repeat, repeat, repeat)
    atoms.calc = EMT()
    return atoms


class Explodes(Calculator):
    """Energy and forces that become ``value`` after a number of calls."""

    implemented_properties = ("energy", "forces")

    def __init__(self, calls: int, energy: float, force: float) -> None:
        super().__init__()
        self.calls, self.energy, self.force = calls, energy, force

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls -= 1
        bad = self.calls < 0
        forces = np.zeros((len(atoms), 3))
        forces[:, 0] = self.force if bad else 0.0
        self.results = {"energy": self.energy if bad else 0.0, "forces": forces}


def read_log(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_velocities_are_maxwell_boltzmann_without_net_momentum():
    atoms = Atoms("HO" * 2000, positions=np.zeros((4000, 3)))
    draw_velocities(atoms, 500.0, np.random.default_rng(1))
    momenta = atoms.get_momenta()
    assert np.abs(momenta.sum(0)).max() < 1e-9
    for element in ("H", "O"):
        of_element = atoms.symbols == element
        kinetic = (momenta[of_element] ** 2 / (2 * atoms.get_masses()[of_element, None])).mean()
        assert kinetic == pytest.approx(0.5 * ase.units.kB * 500.0, rel=0.05)


def test_velocities_depend_on_the_seed_only():
    settings = {seed: DynamicsSettings(steps=0, seed=seed) for seed in (1, 2)}
    momenta = []
    for seed in (1, 1, 2):
        atoms = copper()
        run_dynamics(atoms, settings[seed])
        momenta.append(atoms.get_momenta())
    np.testing.assert_array_equal(momenta[0], momenta[1])
    assert np.abs(momenta[0] - momenta[2]).max() > 0.1


def test_nve_log_and_trajectory(tmp_path):
    atoms = copper()
    log, trajectory = tmp_path / "log.csv", tmp_path / "out.extxyz"
    settings = DynamicsSettings(temperature=600.0, timestep=2.0, steps=105, interval=10)
    result = run_dynamics(atoms, settings, log=log, trajectory=trajectory)

    rows = read_log(log)
    assert list(rows[0]) == list(COLUMNS)
    assert [int(row["step"]) for row in rows] == list(range(0, 101, 10))
    assert float(rows[-1]["time_fs"]) == 200.0
    for row in rows:
        parts = float(row["potential_energy_eV"]) + float(row["kinetic_energy_eV"])
        assert float(row["total_energy_eV"]) == pytest.approx(parts, abs=1e-8)
    first_kinetic = 1.5 * (len(atoms) - 1) * ase.units.kB * float(rows[0]["temperature_K"])
    assert float(rows[0]["kinetic_energy_eV"]) == pytest.approx(first_kinetic, rel=1e-6)
    total = np.array([float(row["total_energy_eV"]) for row in rows])
    time_ps = np.array([float(row["time_fs"]) for row in rows]) / 1000
    assert np.ptp(total) / len(atoms) < 1e-3
    slope = np.polyfit(time_ps, total * 1000 / len(atoms), 1)[0]
    assert result.drift(len(atoms)) == pytest.approx(slope, rel=1e-3, abs=1e-6)

    frames = ase.io.read(trajectory, ":")
    assert [frame.info["step"] for frame in frames] == list(range(0, 101, 10))
    last = frames[-1]
    assert last.get_potential_energy() == pytest.approx(float(rows[-1]["potential_energy_eV"]))
    assert last.get_kinetic_energy() == pytest.approx(float(rows[-1]["kinetic_energy_eV"]), abs=1e-5)
    check = last.copy()
    check.calc = EMT()
    np.testing.assert_allclose(last.get_forces(), check.get_forces(), atol=1e-6)
    np.testing.assert_allclose(last.get_stress(), check.get_stress(), atol=1e-6)
    ideal_gas = check.get_stress(voigt=False, include_ideal_gas=True)
    assert float(rows[-1]["pressure_GPa"]) == pytest.approx(-np.trace(ideal_gas) / 3 / ase.units.GPa, rel=1e-4)


@pytest.mark.parametrize(("ensemble", "thermostat"), [key for key in INTEGRATORS if key[1]])
@pytest.mark.no_cover
def test_thermostats_reach_the_temperature(ensemble, thermostat):
    atoms = copper()
    draw = DynamicsSettings(
        ensemble=ensemble, thermostat=thermostat, temperature=400.0, friction=0.1, timestep=4.0, steps=250, interval=5
    )
    result = run_dynamics(atoms, draw)
    second_half = [row["temperature_K"] for row in result.rows[20:]]
    # 32 atoms fluctuate by 60 K; without a thermostat equipartition leaves 200 K
    assert np.mean(second_half) == pytest.approx(400.0, abs=60.0)


@pytest.mark.parametrize("thermostat", ["langevin", "nose-hoover"])
@pytest.mark.no_cover
def test_barostat_moves_the_volume_towards_the_pressure(thermostat):
    volumes = {}
    for pressure in (-5.0, 15.0):
        atoms = copper()
        settings = DynamicsSettings(
            ensemble="npt", thermostat=thermostat, pressure=pressure, friction=0.1, timestep=4.0, steps=120
        )
        result = run_dynamics(atoms, settings)
        volumes[pressure] = np.mean([row["volume_A3"] for row in result.rows[4:]])
        cell = atoms.cell.array
        np.testing.assert_allclose(cell, cell[0, 0] * np.eye(3), atol=1e-9)
    equilibrium = copper().get_volume()
    assert volumes[15.0] < 0.97 * equilibrium < equilibrium < volumes[-5.0]


def test_open_system_has_no_volume(tmp_path):
    atoms = molecule("N2")
    atoms.calc = MorsePotential(r0=1.1, epsilon=9.0, rho0=3.0)
    log = tmp_path / "log.csv"
    run_dynamics(atoms, DynamicsSettings(steps=2, interval=1, timestep=0.1), log=log)
    assert {row["volume_A3"] + row["pressure_GPa"] for row in read_log(log)} == {""}


def test_labels_of_the_first_frame_are_not_repeated(tmp_path):
    atoms = copper(1)
    atoms.info["REF_energy"] = 1.0
    atoms.arrays["REF_forces"] = np.zeros((4, 3))
    run_dynamics(atoms, DynamicsSettings(steps=1, interval=1), trajectory=tmp_path / "out.extxyz")
    frame = ase.io.read(tmp_path / "out.extxyz", -1)
    assert "REF_energy" not in frame.info
    assert "REF_forces" not in frame.arrays


def test_stop_leaves_whole_files(tmp_path):
    atoms = copper(1)
    log, trajectory = tmp_path / "log.csv", tmp_path / "out.extxyz"
    asked = iter([False] * 25)
    result = run_dynamics(
        atoms, DynamicsSettings(steps=1000, interval=10), log=log, trajectory=trajectory, stop=lambda: next(asked, True)
    )
    assert result.interrupted
    assert result.steps == 25
    assert [int(row["step"]) for row in read_log(log)] == [0, 10, 20]
    assert len(ase.io.read(trajectory, ":")) == 3


@pytest.mark.parametrize(
    ("energy", "force", "sentence"), [(np.nan, 0.0, "not finite"), (0.0, np.nan, "not finite"), (0.0, 1e4, "fly apart")]
)
def test_explosion_stops_with_a_sentence(tmp_path, energy, force, sentence):
    atoms = molecule("CO")
    atoms.calc = Explodes(5, energy, force)
    log = tmp_path / "log.csv"
    with pytest.raises(CheckError, match=sentence):
        run_dynamics(atoms, DynamicsSettings(steps=100, interval=1), log=log)
    rows = read_log(log)
    assert len(rows) >= 5
    assert all(np.isfinite(float(row["total_energy_eV"])) for row in rows)


def test_nothing_is_written_when_the_first_energy_is_bad(tmp_path):
    atoms = molecule("CO")
    atoms.calc = Explodes(0, np.nan, 0.0)
    with pytest.raises(CheckError):
        run_dynamics(atoms, DynamicsSettings(), log=tmp_path / "a", trajectory=tmp_path / "b")
    with pytest.raises(CheckError):
        relax(atoms, trajectory=tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_npt_needs_a_cell_and_no_constraints():
    atoms = molecule("CO")
    atoms.calc = Explodes(100, 0.0, 0.0)
    npt = DynamicsSettings(ensemble="npt", thermostat="nose-hoover")
    with pytest.raises(InputError, match="periodic in all three"):
        run_dynamics(atoms, npt)
    crystal = copper()
    crystal.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match="FixAtoms"):
        run_dynamics(crystal, npt)


def test_fixed_atoms_stay():
    atoms = copper()
    atoms.set_constraint(FixAtoms([0, 3]))
    before = atoms.get_positions()
    run_dynamics(atoms, DynamicsSettings(ensemble="nvt", thermostat="langevin", steps=10))
    moved = np.abs(atoms.get_positions() - before).max(1) > 0
    assert np.flatnonzero(~moved).tolist() == [0, 3]


@pytest.mark.parametrize(
    "wrong",
    [
        {"timestep": 0.0},
        {"steps": -1},
        {"interval": 0},
        {"temperature": -3.0},
        {"friction": -1.0},
        {"ensemble": "nvt"},
        {"ensemble": "nvt", "thermostat": "langevin", "temperature": 0.0},
        {"thermostat": "langevin"},
        {"timestep": float("nan")},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(InputError):
        DynamicsSettings(**wrong)


@pytest.mark.parametrize("optimizer", ["bfgs", "lbfgs", "fire"])
def test_relax(tmp_path, optimizer):
    atoms = copper()
    atoms.rattle(0.1, seed=3)
    out = tmp_path / "out.extxyz"
    result = relax(atoms, fmax=0.02, optimizer=optimizer, trajectory=out)
    assert result.converged
    assert result.last.fmax <= 0.02
    frames = ase.io.read(out, ":")
    assert len(frames) == result.last.step + 1
    assert np.linalg.norm(frames[-1].get_forces(), axis=1).max() == pytest.approx(result.last.fmax, abs=1e-4)
    assert frames[-1].get_potential_energy() < frames[0].get_potential_energy()


def test_relax_with_cell():
    atoms = copper(1)
    atoms.set_cell(atoms.cell * 1.05, scale_atoms=True)
    assert relax(atoms, fmax=1e-3, cell=True).converged
    assert np.abs(atoms.get_stress()).max() < 1e-4


def test_relax_reports_what_did_not_converge():
    atoms = copper()
    atoms.rattle(0.1, seed=3)
    result = relax(atoms, fmax=1e-6, steps=2)
    assert not result.converged
    assert result.last.step == 2
    stopped = relax(atoms, fmax=1e-6, stop=lambda: True)
    assert stopped.interrupted


def test_relax_bad_input():
    with pytest.raises(InputError, match="optimizer"):
        relax(copper(), optimizer="newton")
    with pytest.raises(InputError, match="fmax"):
        relax(copper(), fmax=0.0)
    atoms = molecule("CO")
    with pytest.raises(InputError, match="periodic"):
        relax(atoms, cell=True)
