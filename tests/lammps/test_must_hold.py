"""What users of LAMMPS expect of any pair style."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from lammps_support import (
    PER_ATOM,
    TYPES,
    Lammps,
    Model,
    Results,
    assert_close,
    assert_equal,
    droplet,
    expected,
    fluid,
    setup,
    write_data,
)


@pytest.fixture(params=["allegro", "nequip"])
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


def as_atoms(found: Results, lammps: Lammps, types: tuple[str, ...] = TYPES) -> Atoms:
    """The configuration that LAMMPS is in."""
    low, high, xy, yz, xz, _, _ = lammps.it.extract_box()
    size = np.subtract(high, low)
    cell = [[size[0], 0, 0], [xy, size[1], 0], [xz, yz, size[2]]]
    return Atoms([types[kind - 1] for kind in found.types], found.positions - low, cell=cell, pbc=True)


def assert_as_ase(lammps: Lammps, model: Model, types: tuple[str, ...] = TYPES, tolerance: float = 1e-10) -> Results:
    """What LAMMPS has now is what ASE finds for its configuration."""
    found = lammps.results()
    assert_equal(found, expected(model, as_atoms(found, lammps, types)), tolerance)
    return found


# Types


def test_several_types_of_one_element(model: Model, tmp_path: Path) -> None:
    atoms = fluid(14, 6.0)
    kinds = [1 + (symbol == "H") * (1 + k % 2) for k, symbol in enumerate(atoms.get_chemical_symbols())]
    labelled = atoms.copy()
    labelled.info["types"] = kinds
    data = write_data(tmp_path / "data", labelled, ("O", "H1", "H2"))
    with Lammps() as lammps:
        lammps.run(setup(data, model.compiled, "O H H") + PER_ATOM + "run 0")
        assert set(lammps.results().types) == {1, 2, 3}
        assert_equal(lammps.results(), expected(model, atoms))


def test_null_leaves_atoms_to_another_style(model: Model, tmp_path: Path) -> None:
    atoms = fluid(14, 6.0)
    labelled = atoms.copy()
    labelled.info["types"] = kinds = [
        3 if k % 5 == 0 else TYPES.index(symbol) + 1 for k, symbol in enumerate(atoms.get_chemical_symbols())
    ]
    data = write_data(tmp_path / "data", labelled, ("O", "H", "Ar"))
    lines = setup(data, model.compiled, style="hybrid nequip lj/cut 2.5", names="O H NULL").replace(
        f"pair_coeff * * {model.compiled}", f"pair_coeff * * nequip {model.compiled}"
    )
    with Lammps() as lammps:
        lammps.run(lines + "pair_coeff * 3 lj/cut 0.01 1.5\n" + PER_ATOM + "run 0")
        both = lammps.results()
        lammps.run("pair_style lj/cut 2.5\npair_coeff * * 0.0 1.0\npair_coeff * 3 0.01 1.5\nrun 0")
        other = lammps.results()
    mine = np.array(kinds) != 3
    wanted = expected(model, atoms[mine])
    assert_close(both.energy - other.energy, wanted.energy, 1e-9)
    assert_close((both.forces - other.forces)[mine], wanted.forces, 1e-9)
    assert_close((both.forces - other.forces)[~mine] + 1, np.ones(((~mine).sum(), 3)), 1e-9)
    assert_close(both.virial - other.virial, wanted.virial, 1e-9)
    assert_close((both.energies - other.energies)[mine], wanted.energies, 1e-9)


def test_hybrid_overlay_adds(model: Model, tmp_path: Path) -> None:
    atoms = fluid(14, 6.0)
    data = write_data(tmp_path / "data", atoms)
    lines = setup(data, model.compiled, style="hybrid/overlay nequip zbl 1.5 2.0").replace(
        f"pair_coeff * * {model.compiled}", f"pair_coeff * * nequip {model.compiled}"
    )
    zbl = ["1 1 {} 8 8", "1 2 {} 8 1", "2 2 {} 1 1"]
    with Lammps() as lammps:
        lammps.run(lines + "".join(f"pair_coeff {row.format('zbl')}\n" for row in zbl) + PER_ATOM + "run 0")
        both = lammps.results()
        lammps.run("pair_style zbl 1.5 2.0\n" + "".join(f"pair_coeff {row.format('')}\n" for row in zbl) + "run 0")
        other = lammps.results()
    wanted = expected(model, atoms)
    for name in ("energy", "forces", "virial", "energies", "virials"):
        assert_close(getattr(both, name) - getattr(other, name), getattr(wanted, name), 1e-9)


def test_two_models_at_once(allegro: Model, nequip: Model, tmp_path: Path) -> None:
    atoms = fluid(14, 6.0)
    data = write_data(tmp_path / "data", atoms)
    lines = setup(data, allegro.compiled, style="hybrid/overlay nequip allegro").replace(
        f"pair_coeff * * {allegro.compiled}", f"pair_coeff * * allegro {allegro.compiled}"
    )
    with Lammps() as lammps:
        lammps.run(lines + f"pair_coeff * * nequip {nequip.compiled} O H\nrun 0")
        received = lammps.results()
    wanted = [expected(one, atoms) for one in (allegro, nequip)]
    assert_close(received.energy, sum(one.energy for one in wanted), 1e-10)
    assert_close(received.forces, sum(one.forces for one in wanted), 1e-10)


# Atoms that come, go and change


def test_gaps_in_ids(model: Model, tmp_path: Path) -> None:
    atoms = fluid(14, 6.0)
    ids = [3 * k + 11 for k in range(len(atoms))]
    data = write_data(tmp_path / "data", atoms, ids=ids)
    with Lammps() as lammps:
        lammps.run(setup(data, model.compiled) + PER_ATOM + "run 0")
        received = lammps.results()
    assert received.ids.tolist() == ids
    assert_equal(received, expected(model, atoms))


def test_no_ids_at_all(model: Model, tmp_path: Path) -> None:
    lines = f"""
units metal
atom_modify id no
region box block 0 6 0 6 0 6
create_box 2 box
create_atoms 1 single 1 1 1
create_atoms 2 single 1.9 1.2 5.6
create_atoms 2 single 3.4 3.1 3.0
mass * 1.0
pair_style nequip
pair_coeff * * {model.compiled} O H
run 0
"""
    atoms = Atoms("OHH", [[1, 1, 1], [1.9, 1.2, 5.6], [3.4, 3.1, 3.0]], cell=[6] * 3, pbc=True)
    with Lammps() as lammps:
        lammps.run(lines)
        assert_close(lammps.thermo("pe"), expected(model, atoms).energy, 1e-10)


def test_deposit_and_evaporate(model: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", fluid(14, 7.0))
    with Lammps() as lammps:
        lammps.run(
            setup(data, model.compiled)
            + """
region box block 0 7 0 7 0 7
fix in all deposit 6 2 2 777 region box near 1.4 attempt 100
fix out all evaporate 3 1 box 999
fix move all nve
timestep 0.0002
run 20
"""
        )
        found = assert_as_ase(lammps, model)
        assert len(found.ids) != 14 or found.ids[-1] > 14


def test_grand_canonical_monte_carlo(model: Model, tmp_path: Path) -> None:
    """Deletions are tried by excluding an atom from all others: it must be gone, its own energy too."""
    data = write_data(tmp_path / "data", fluid(10, 7.0))
    with Lammps() as lammps:
        lammps.run(
            setup(data, model.compiled)
            + """
fix mc all gcmc 1 8 4 2 29494 3000.0 -1.0 0.3 full_energy overlap_cutoff 0.7
thermo_style custom step pe atoms f_mc[3] f_mc[4] f_mc[5] f_mc[6]
run 12
"""
        )
        accepted = lammps.it.extract_fix("mc", 0, 1, 3) + lammps.it.extract_fix("mc", 0, 1, 5)
        assert accepted > 0
        lammps.run("thermo_style one\nunfix mc\nrun 0")
        assert_as_ase(lammps, model)


def test_an_atom_excluded_from_all_is_not_there(model: Model, tmp_path: Path) -> None:
    atoms = fluid(14, 6.0)
    data = write_data(tmp_path / "data", atoms)
    with Lammps() as lammps:
        lammps.run(setup(data, model.compiled) + "group gone id 3\nneigh_modify exclude group gone all\nrun 0")
        received = lammps.thermo("pe")
    del atoms[2]
    assert_close(received, expected(model, atoms).energy, 1e-10)


def test_swap_of_types(model: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", fluid(14, 6.0))
    with Lammps() as lammps:
        lammps.run(
            setup(data, model.compiled)
            + "fix mc all atom/swap 1 6 29494 30000.0 ke no types 1 2\nfix move all nve\ntimestep 0.0002\nrun 6"
        )
        assert lammps.it.extract_fix("mc", 0, 1, 1) > 0
        assert_as_ase(lammps, model)


# Commands


def test_minimize(model: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", fluid(14, 6.0))
    with Lammps() as lammps:
        lammps.run(setup(data, model.compiled) + "run 0")
        before = lammps.thermo("pe")
        lammps.run("min_modify dmax 0.05\nminimize 0 1e-3 30 60")
        assert lammps.thermo("pe") < before - 0.01
        assert_as_ase(lammps, model)


def test_box_relax(model: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", fluid(14, 6.0))
    with Lammps() as lammps:
        lammps.run(
            setup(data, model.compiled) + "fix box all box/relax aniso 0.0 vmax 0.002\nminimize 0 1e-3 15 40\nunfix box"
        )
        assert abs(lammps.thermo("lx") - 6.0) > 1e-3
        lammps.run("run 0")
        assert_as_ase(lammps, model)


def test_rerun(model: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", fluid(14, 6.0))
    energies: dict[str, list[float]] = {"run": [], "rerun": []}
    with Lammps() as lammps:
        lammps.run(
            setup(data, model.compiled) + f"velocity all create 600 5\nfix 1 all nve\ntimestep 0.0005\n"
            f"dump 1 all custom 5 {tmp_path}/dump id type x y z\ndump_modify 1 format float %.17g\n"
            f"variable e equal pe\nfix keep all print 5 '$(pe:%.15g)' file {tmp_path}/run screen no\nrun 15\n"
            f"undump 1\nunfix 1\nunfix keep\n"
            f"fix keep all print 5 '$(pe:%.15g)' file {tmp_path}/rerun screen no\nrerun {tmp_path}/dump dump x y z\n"
        )
    for name, numbers in energies.items():
        numbers.extend(float(line) for line in (tmp_path / name).read_text().splitlines() if not line.startswith("#"))
    assert len(energies["run"]) == 4
    assert_close(energies["rerun"], energies["run"], 1e-10)


def test_restart(model: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", fluid(14, 6.0))
    dynamics = "fix 1 all nve\ntimestep 0.0005\n"
    with Lammps() as lammps:
        lammps.run(
            setup(data, model.compiled) + f"velocity all create 600 5\n{dynamics}run 10\n"
            f"write_restart {tmp_path}/restart\nrun 10"
        )
        wanted = lammps.results()
    with Lammps() as lammps:
        lammps.run(
            f"read_restart {tmp_path}/restart\npair_style nequip\npair_coeff * * {model.compiled} O H\n"
            f"thermo_modify norm no\nneigh_modify every 1 delay 0 check yes\n{dynamics}run 10"
        )
        assert_equal(lammps.results(), wanted, 1e-9)


def test_clear_and_start_again(allegro: Model, nequip: Model, tmp_path: Path) -> None:
    atoms = fluid(14, 6.0)
    data = write_data(tmp_path / "data", atoms)
    with Lammps() as lammps:
        for model in (allegro, nequip, allegro):
            lammps.run(setup(data, model.compiled) + "run 0")
            assert_close(lammps.thermo("pe"), expected(model, atoms).energy, 1e-10)
            lammps.run("clear")


def test_another_style_and_back(model: Model, tmp_path: Path) -> None:
    atoms = fluid(14, 6.0)
    data = write_data(tmp_path / "data", atoms)
    with Lammps() as lammps:
        lammps.run(setup(data, model.compiled) + "run 0\npair_style lj/cut 2.5\npair_coeff * * 0.01 1.0\nrun 0")
        assert lammps.it.extract_global("nghost") is None or lammps.thermo("pe") != 0
        lammps.run(f"pair_style allegro\npair_coeff * * {model.compiled} O H\nrun 0")
        assert_as_ase(lammps, model)


def test_several_objects_in_one_process(allegro: Model, nequip: Model, tmp_path: Path) -> None:
    atoms = fluid(14, 6.0)
    data = write_data(tmp_path / "data", atoms)
    with Lammps() as one, Lammps() as two:
        one.run(setup(data, allegro.compiled) + "run 0")
        two.run(setup(data, nequip.compiled) + "run 0")
        one.run("displace_atoms all move 0.1 0.2 0.3\nrun 0")
        assert_as_ase(one, allegro)
        assert_as_ase(two, nequip)


# Neighbours


def test_bonds_do_not_hide_pairs(model: Model, tmp_path: Path) -> None:
    """special_bonds 0 0 0, the default, takes bonded pairs out of LAMMPS' own lists."""
    atoms = fluid(14, 6.0)
    data = write_data(tmp_path / "data", atoms, style="full")
    with Lammps() as lammps:
        lammps.run(
            setup(data, model.compiled, atom_style="full", before="bond_style zero", after="bond_coeff *")
            + PER_ATOM
            + "run 0"
        )
        assert_equal(lammps.results(), expected(model, atoms))


@pytest.mark.parametrize("which", ["type 1 2", "group left right", "molecule/intra all", "molecule/inter all"])
def test_exclusions_are_honoured(model: Model, which: str, tmp_path: Path) -> None:
    """As LAMMPS' own list honours them."""
    atoms = fluid(14, 6.0)
    data = write_data(tmp_path / "data", atoms, style="full")
    found = []
    for options in ("neighbor core", "neighbor lmplist"):
        with Lammps() as lammps:
            lammps.run(
                setup(data, model.compiled, options=options, atom_style="full", before="bond_style zero")
                + "bond_coeff *\nspecial_bonds lj/coul 1 1 1\ngroup left id <= 5\ngroup right id > 8\n"
                + PER_ATOM
                + f"neigh_modify exclude {which}\nrun 0"
            )
            found.append(lammps.results())
    assert_equal(*found)
    assert abs(found[0].energy - expected(model, atoms).energy) > 1e-4


def test_a_skin_that_changes(model: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", fluid(14, 6.0))
    with Lammps() as lammps:
        lammps.run(setup(data, model.compiled) + "run 0\nneighbor 0.2 bin\nrun 0")
        assert_as_ase(lammps, model)
        lammps.run("neighbor 2.0 bin\nrun 0\nneighbor 0.0 bin\nrun 0")
        assert_as_ase(lammps, model)


def test_a_cutoff_for_ghosts_that_is_large_enough(model: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", fluid(14, 6.0))
    with Lammps() as lammps:
        lammps.run(setup(data, model.compiled, before="comm_modify cutoff 14.0") + "run 0")
        assert_as_ase(lammps, model)


# Outputs of the model


def test_computes(model: Model, tmp_path: Path) -> None:
    atoms = fluid(14, 6.0)
    data = write_data(tmp_path / "data", atoms)
    with Lammps() as lammps:
        lammps.run(
            setup(data, model.compiled)
            + """
compute virial all nequip virial 9
compute sum all allegro atomic_energy 1
compute each all nequip/atom atomic_energy 1 0
compute forces all allegro/atom forces 3 1
thermo_style custom step pe press c_virial[1] c_sum[1]
run 0
"""
        )
        found = lammps.results()
        virial = lammps.it.numpy.extract_compute("virial", 0, 1)[:9].copy()
        total = lammps.it.numpy.extract_compute("sum", 0, 1)[0]
        order = np.argsort(lammps.it.numpy.extract_atom("id")[:14])
        each = lammps.it.numpy.extract_compute("each", 1, 1)[:14][order]
        forces = lammps.it.numpy.extract_compute("forces", 1, 2)[:14][order]
    wanted = expected(model, atoms)
    assert_close(virial[[0, 4, 8, 1, 2, 5]], wanted.virial, 1e-10)
    assert_close(total, wanted.energy, 1e-10)
    assert_close(each, wanted.energies, 1e-10)
    assert_close(forces, wanted.forces, 1e-10)
    assert_close(found.forces, wanted.forces, 1e-10)


def test_inputs_of_the_published_pair_style(allegro: Model, nequip: Model, tmp_path: Path) -> None:
    """As its users write them: newton off for nequip, on for allegro, per-atom energies and the virial as a vector."""
    atoms = droplet(10)
    data = write_data(tmp_path / "data", atoms)
    for style, newton, model in (("nequip", "off", nequip), ("allegro", "on", allegro)):
        with Lammps() as lammps:
            lammps.run(
                f"""
units metal
atom_style atomic
newton {newton}
thermo 1
read_data {data}
pair_style {style}
pair_coeff * * {model.compiled} O H
neighbor 1.0 bin
neigh_modify delay 0 every 1 check no
fix 1 all nve
timestep 0.001
compute atomicenergies all pe/atom
compute totalatomicenergy all reduce sum c_atomicenergies
compute stress all pressure NULL virial
thermo_style custom step time temp pe c_totalatomicenergy etotal press spcpu cpuremain c_stress[*]
run 0
"""
            )
            assert_close(lammps.it.extract_compute("totalatomicenergy", 0, 0), lammps.thermo("pe"), 1e-12)
            assert_as_ase(lammps, model)
