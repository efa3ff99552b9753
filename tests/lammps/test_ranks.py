"""Any number of processes gives the same: forces, trajectories, per-atom results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lammps_support import (
    DUMP,
    METAL_PRESSURE,
    Model,
    assert_close,
    droplet,
    expected,
    fluid,
    mpirun,
    read_dump,
    setup,
    thermo_rows,
    write_data,
)

STEPS = 6
ENERGIES = """
thermo_style custom step pe pxx pyy pzz pxy pxz pyz vol c_sum c_s[1] c_s[4]
thermo_modify norm no format float %.15g
thermo {steps}
"""
REDUCED = """
compute energies all pe/atom
compute sum all reduce sum c_energies
compute virials all stress/atom NULL virial
compute s all reduce sum c_virials[1] c_virials[2] c_virials[3] c_virials[4]
"""
DYNAMICS = """
velocity all create 600 12 loop geom
fix 1 all nve
timestep 0.0005
run {steps}
"""


@pytest.fixture(params=["allegro", "nequip"])
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


def grids(ranks: int, seed: int) -> str:
    """A processor grid drawn at random."""
    rng = np.random.default_rng(seed)
    found = [(a, b, ranks // (a * b)) for a in range(1, ranks + 1) for b in range(1, ranks + 1) if ranks % (a * b) == 0]
    return " ".join(str(number) for number in found[rng.integers(len(found))])


def dynamics(data: Path, model: Model, name: str, *, steps: int = STEPS, **changes: str) -> str:
    """An input that moves, prints what is summed over processes, and writes positions and forces."""
    return (
        setup(data, model.compiled, **changes)
        + REDUCED
        + ENERGIES.format(steps=steps)
        + DYNAMICS.format(steps=steps)
        + DUMP.format(name=name)
    )


@pytest.mark.parametrize(("ranks", "newton", "system"), [(2, "off", "small"), (4, "on", "small"), (3, "on", "vacuum")])
def test_the_same_on_any_number_of_ranks(model: Model, ranks: int, newton: str, system: str, tmp_path: Path) -> None:
    """A box of 6 Å, less than the ghosts' distance; one of 40 Å with vacuum, where some processes have no atoms."""
    atoms = fluid(16, 6.0) if system == "small" else droplet(8)
    data = write_data(tmp_path / "data", atoms)
    outputs = []
    for number in (1, ranks):
        text = dynamics(data, model, f"dump{number}", newton=newton, before=f"processors {grids(number, ranks)}")
        ended = mpirun(tmp_path, number, text)
        assert ended.code == 0, ended.text
        outputs.append((thermo_rows(ended.text)[-2:, 1:], *read_dump(tmp_path / f"dump{number}")))
    for one, several in zip(*outputs, strict=True):
        assert_close(several, one, 1e-10)
    rows = outputs[1][0]
    assert_close(rows[:, 8], rows[:, 0], 1e-12)  # sum of the atoms' energies
    wanted = expected(model, atoms)
    assert_close(rows[0, 0], wanted.energy, 1e-10)
    assert_close(-rows[0, 9:11] / METAL_PRESSURE, wanted.virial[[0, 3]], 1e-9)  # of the atoms' virials


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 3])
def test_message_passing_of_higher_degrees(models: Callable[..., Model], layers: int, tmp_path: Path) -> None:
    """NequIP of l_max 2 in a box smaller than twice the ghosts' distance, so that most nodes have several images."""
    model, atoms = models("nequip", num_layers=layers, l_max=2), fluid(12, 6.0, seed=5)
    wanted = expected(model, atoms)
    data = write_data(tmp_path / "data", atoms)
    for ranks in (1, 2, 3):
        text = dynamics(data, model, "dump", steps=0, before=f"processors {grids(ranks, layers)}")
        ended = mpirun(tmp_path, ranks, text)
        assert ended.code == 0, ended.text
        assert_close(read_dump(tmp_path / "dump")[1], wanted.forces, 1e-10)
        row = thermo_rows(ended.text)[-1]
        assert_close(row[1], wanted.energy, 1e-10)
        assert_close(-row[10:12] / METAL_PRESSURE, wanted.virial[[0, 3]], 1e-9)


@pytest.mark.parametrize("change", ["balance", "tiled", "lmplist", "exclude"])
def test_what_moves_atoms_between_processes(model: Model, change: str, tmp_path: Path) -> None:
    # LAMMPS' tiled communication wants boxes larger than the ghosts' distance.
    data = write_data(tmp_path / "data", fluid(60, 12.0) if change == "tiled" else fluid(24, 7.0))
    changes = {
        "balance": {"after": "fix balance all balance 2 1.0 shift xyz 5 1.0"},
        "tiled": {"before": "comm_style tiled", "after": "fix balance all balance 2 1.0 rcb"},
        "lmplist": {"options": "neighbor lmplist"},
        "exclude": {"after": "neigh_modify exclude type 1 1"},
    }[change]
    dumps = []
    for number in (1, 3):
        text = dynamics(data, model, f"dump{number}", **changes)
        if change == "tiled" and number == 1:
            text = text.replace("fix balance all balance 2 1.0 rcb", "")
        ended = mpirun(tmp_path, number, text)
        assert ended.code == 0, ended.text
        dumps.append(read_dump(tmp_path / f"dump{number}"))
    for one, several in zip(*dumps, strict=True):
        assert_close(several, one, 1e-10)


def test_neb_with_partitions(allegro: Model, tmp_path: Path) -> None:
    atoms = droplet(6)
    data = write_data(tmp_path / "data", atoms)
    end = atoms.positions[0] + [0.4, 0.3, 0.0]
    (tmp_path / "final").write_text(f"1\n1 {end[0]} {end[1]} {end[2]}\n")
    text = setup(data, allegro.compiled, before="atom_modify map array sort 0 0.0") + (
        "fix 1 all neb 1.0\ntimestep 0.002\nmin_style quickmin\nneb 0.0 0.01 6 6 3 final final\n"
    )
    ended = mpirun(tmp_path, 3, text, "-partition", "3x1", "-screen", "none")
    assert ended.code == 0, ended.text
    rows = thermo_rows((tmp_path / "log.lammps").read_text())
    energies = rows[0, [-5, -3, -1]]  # of the replicas, which lie on a line at first
    wanted = []
    for part in (0.0, 0.5, 1.0):
        moved = atoms.copy()
        moved.positions[0] += part * (end - atoms.positions[0])
        wanted.append(expected(allegro, moved).energy)
    assert_close(energies, wanted, 1e-6)
    assert len(rows) > 2


def test_two_atoms_on_eight_processes(model: Model, tmp_path: Path) -> None:
    """Most have none, at every step."""
    data = write_data(tmp_path / "data", fluid(2, 8.0))
    ended = mpirun(tmp_path, 8, dynamics(data, model, "dump", steps=3), "-screen", "none")
    assert ended.code == 0, ended.text
    positions, forces = read_dump(tmp_path / "dump")
    assert len(positions) == len(forces) == 2


def test_the_work_of_message_passing_is_told(nequip: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", fluid(16, 6.0))
    ended = mpirun(tmp_path, 4, setup(data, nequip.compiled) + "run 0\n")
    assert "64 atoms are computed for 16 owned, ratio 4.00" in ended.text
    assert "WARNING: pair_style nequip: 4.0 times as many atoms are computed" in ended.text
    ended = mpirun(tmp_path, 1, setup(data, nequip.compiled) + "run 0\n")
    assert "16 atoms are computed for 16 owned, ratio 1.00" in ended.text
    assert "WARNING: pair_style" not in ended.text


@pytest.mark.slow
def test_a_thousand_steps_of_two_atoms_on_eight_processes(nequip: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", fluid(2, 8.0))
    ended = mpirun(tmp_path, 8, dynamics(data, nequip, "dump", steps=1000), "-screen", "none", seconds=1800)
    assert ended.code == 0, ended.text


@pytest.mark.slow
def test_a_hundred_steps_on_one_and_four_processes(model: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", fluid(30, 7.5))
    dumps = []
    for number in (1, 4):
        ended = mpirun(tmp_path, number, dynamics(data, model, f"dump{number}", steps=100), seconds=1800)
        assert ended.code == 0, ended.text
        dumps.append(read_dump(tmp_path / f"dump{number}"))
    for one, several in zip(*dumps, strict=True):
        assert_close(several, one, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", range(2, 9))
def test_every_number_of_ranks(model: Model, ranks: int, tmp_path: Path) -> None:
    for system in ("small", "vacuum"):
        atoms = fluid(16, 6.0) if system == "small" else droplet(8)
        data = write_data(tmp_path / "data", atoms)
        text = dynamics(data, model, "dump", steps=0, before=f"processors {grids(ranks, 10 * ranks)}")
        ended = mpirun(tmp_path, ranks, text, seconds=900)
        assert ended.code == 0, ended.text
        assert_close(read_dump(tmp_path / "dump")[1], expected(model, atoms).forces, 1e-10)
