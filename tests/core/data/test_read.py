"""Files to structures."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from nequip_core import units
from nequip_core.data.read import Keys, Units, names_of_labels, read
from nequip_core.errors import InputError
from nequip_core.plugins.records import ReaderEntry, Ref
from nequip_core.structure import file_and_frame

CELL = np.array([[4.0, 0.3, 0.0], [0.0, 4.5, 0.2], [0.1, 0.0, 5.0]])
STRESS = np.array([[0.01, 0.002, 0.003], [0.002, -0.02, 0.004], [0.003, 0.004, 0.03]])


def frame(number: int = 0) -> Atoms:
    rng = np.random.default_rng(number)
    return Atoms("OH2", positions=rng.uniform(0, 4, (3, 3)), cell=CELL, pbc=True)


def labelled(number: int = 0) -> Atoms:
    atoms = frame(number)
    forces = np.random.default_rng(100 + number).normal(size=(3, 3))
    atoms.calc = SinglePointCalculator(atoms, energy=-10.0 - number, forces=forces, stress=STRESS)
    return atoms


@pytest.fixture
def trajectory(tmp_path: Path) -> Path:
    path = tmp_path / "frames.xyz"
    ase.io.write(path, [labelled(n) for n in range(6)], format="extxyz")
    return path


def energies(path: Path, index: str) -> list[float | None]:
    return [structure.energy for structure in read(path, index=index)]


def test_labels_and_geometry(trajectory: Path) -> None:
    structure = next(iter(read(trajectory)))
    reference = labelled()
    np.testing.assert_allclose(structure.positions, reference.positions, atol=1e-7)
    np.testing.assert_allclose(structure.cell, CELL)
    assert structure.pbc.all()
    assert structure.energy == -10.0
    assert structure.forces is not None
    assert structure.stress is not None
    np.testing.assert_allclose(structure.forces, reference.calc.results["forces"], atol=1e-7)
    np.testing.assert_allclose(structure.stress, STRESS)
    assert structure.source == f"{trajectory} frame 0"


@pytest.mark.parametrize("index", [":", "2", "-1", "1:4", "::2", "-2:", "::-1", "4:1:-2", ":-4"])
def test_index_is_pythons(trajectory: Path, index: str) -> None:
    every = [-10.0 - n for n in range(6)]
    picked = eval(f"every[{index}]", {"every": every})
    assert energies(trajectory, index) == (picked if isinstance(picked, list) else [picked])


def test_the_frame_number_is_that_of_the_file(trajectory: Path) -> None:
    assert [file_and_frame(s.source) for s in read(trajectory, index="1::2")] == [
        (str(trajectory), number) for number in (1, 3, 5)
    ]


@pytest.mark.parametrize(("suffix", "compress"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_compressed_is_the_same(trajectory: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    packed = trajectory.with_name(trajectory.name + suffix)
    packed.write_bytes(compress(trajectory.read_bytes()))
    for one, other in zip(read(trajectory), read(packed), strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
        assert one.energy == other.energy


def test_a_compressed_file_is_unpacked_once(trajectory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ASE's own reading of a compressed stream seeks back for each frame: quadratic in the number of frames."""
    packed = trajectory.with_name("frames.xyz.xz")
    packed.write_bytes(lzma.compress(trajectory.read_bytes()))

    def seek(*args: object) -> int:
        raise AssertionError("the stream was rewound")

    monkeypatch.setattr(lzma.LZMAFile, "seek", seek)
    assert len(list(read(packed))) == 6


def test_blank_lines_between_frames_lose_nothing(trajectory: Path) -> None:
    lines = trajectory.read_text().splitlines()
    trajectory.write_text("\n".join([*lines[:5], "", *lines[5:], "", ""]))
    assert len(list(read(trajectory))) == 6


def test_units_and_sign(tmp_path: Path) -> None:
    """The same frame in Hartree, Bohr and kbar of VASP's sign is the same structure."""
    hartree, bohr = 27.211386245988, 0.529177210903
    reference = labelled()
    atoms = Atoms("OH2", positions=reference.positions / bohr, cell=CELL / bohr, pbc=True)
    atoms.info["E"] = reference.calc.results["energy"] / hartree
    atoms.arrays["F"] = reference.calc.results["forces"] / (hartree / bohr)
    atoms.info["S"] = -STRESS * 1602.176634
    path = tmp_path / "atomic_units.xyz"
    ase.io.write(path, atoms, format="extxyz")
    declared = Units(length="Bohr", energy="Hartree", stress="kbar", stress_sign="compression_positive")
    (structure,) = read(path, keys=Keys(energy="E", forces="F", stress="S"), units=declared)
    assert structure.energy == pytest.approx(-10.0, rel=1e-7)
    assert structure.forces is not None
    assert structure.stress is not None
    np.testing.assert_allclose(structure.positions, reference.positions, atol=1e-7)
    np.testing.assert_allclose(structure.cell, CELL, atol=1e-7)
    np.testing.assert_allclose(structure.forces, reference.calc.results["forces"], atol=1e-6)
    np.testing.assert_allclose(structure.stress, STRESS, atol=1e-9)


def test_virial_becomes_stress(tmp_path: Path) -> None:
    atoms = frame()
    atoms.info["virial"] = -STRESS * np.linalg.det(CELL)
    path = tmp_path / "virial.xyz"
    ase.io.write(path, atoms, format="extxyz")
    (structure,) = read(path, keys=Keys(virial="virial"))
    assert structure.stress is not None
    np.testing.assert_allclose(structure.stress, STRESS, atol=1e-9)


def test_voigt_order(tmp_path: Path) -> None:
    atoms = frame()
    atoms.info["REF_stress"] = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    path = tmp_path / "voigt.xyz"
    ase.io.write(path, atoms, format="extxyz")
    (structure,) = read(path, keys=Keys(stress="REF_stress"))
    assert structure.stress is not None
    np.testing.assert_array_equal(structure.stress, [[1, 6, 5], [6, 2, 4], [5, 4, 3]])


def test_names_of_labels(tmp_path: Path) -> None:
    atoms = frame()
    atoms.info |= {"REF_energy": -3.0, "w": 2.5, "kind": "liquid"}
    atoms.arrays["which"] = np.array(["Ow", "Hw", "Hw"])
    path = tmp_path / "names.xyz"
    ase.io.write(path, atoms, format="extxyz")
    (structure,) = read(path, keys=Keys(energy="REF_energy", weight="w", type="which", config_type="kind"))
    assert (structure.energy, structure.weight, structure.config_type) == (-3.0, 2.5, "liquid")
    assert structure.type_names == ("Ow", "Hw", "Hw")


def test_missing_labels_are_none(tmp_path: Path) -> None:
    path = tmp_path / "bare.xyz"
    ase.io.write(path, frame(), format="extxyz")
    (structure,) = read(path)
    assert structure.energy is None
    assert structure.forces is None
    assert structure.stress is None


def test_other_formats_of_ase(tmp_path: Path) -> None:
    path = tmp_path / "POSCAR_like.vasp"
    ase.io.write(path, frame(), format="vasp", sort=True)
    (structure,) = read(path)
    np.testing.assert_allclose(structure.cell, CELL, atol=1e-6)


def test_a_name_with_an_at_sign_is_a_name(trajectory: Path) -> None:
    path = trajectory.with_name("run@2.traj")
    ase.io.write(path, labelled(), format="traj")
    assert len(list(read(path))) == 1


def broken(lines: list[str], change: str) -> list[str]:
    return {
        "count": [*lines[:10], "nine", *lines[11:]],
        "number": [*lines[:12], "O one 2.0 3.0 0 0 0", *lines[13:]],
        "truncated": lines[:13],
    }[change]


@pytest.mark.parametrize("change", ["count", "number", "truncated"])
def test_a_malformed_frame_is_named(trajectory: Path, change: str) -> None:
    lines = trajectory.read_text().splitlines()  # 5 lines a frame
    trajectory.write_text("\n".join(broken(lines, change)) + "\n")
    with pytest.raises(InputError, match=rf"{trajectory.name}: frame 2 "):
        list(read(trajectory))


def test_an_unknown_element_is_named(trajectory: Path) -> None:
    lines = trajectory.read_text().splitlines()  # 5 lines a frame
    lines[12] = lines[12].replace(lines[12].split()[0], "Qq")
    trajectory.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=rf"{trajectory.name}: frame 2 .*: 'Qq' is no chemical element"):
        list(read(trajectory))


def test_what_a_file_holds(trajectory: Path) -> None:
    atoms = labelled()
    atoms.arrays["REF_forces"] = np.zeros((len(atoms), 3))
    ase.io.write(trajectory, atoms, format="extxyz")
    assert names_of_labels(trajectory) == f"{trajectory} frame 0 holds energy, forces, stress, REF_forces."


def test_a_damaged_archive_is_named(trajectory: Path) -> None:
    packed = trajectory.with_name("frames.xyz.xz")
    packed.write_bytes(lzma.compress(trajectory.read_bytes())[:-30])
    with pytest.raises(InputError, match=packed.name):
        list(read(packed))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No such file: .*nowhere\.xyz"):
        list(read(tmp_path / "nowhere.xyz"))


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.xyz"
    path.write_text(content)
    with pytest.raises(InputError, match=r"empty\.xyz holds no frames"):
        list(read(path))


def test_an_index_that_selects_nothing(trajectory: Path) -> None:
    with pytest.raises(InputError, match="no frames"):
        list(read(trajectory, index="100:"))


def test_an_index_that_is_none(trajectory: Path) -> None:
    with pytest.raises(InputError, match="is no slice"):
        list(read(trajectory, index="first"))


def test_an_unknown_format(trajectory: Path) -> None:
    with pytest.raises(InputError, match="none of ASE's formats"):
        list(read(trajectory, format="extxzy"))


@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_a_label_that_is_not_a_number(trajectory: Path, label: str) -> None:
    atoms = labelled()
    atoms.calc.results[label] = np.asarray(atoms.calc.results[label], dtype=float) * np.nan
    ase.io.write(trajectory, [labelled(), atoms], format="extxyz")
    place = " of atom 0" if label == "forces" else ""
    with pytest.raises(InputError, match=rf"{trajectory.name} frame 1: {label} has nan{place}\. Expected finite"):
        list(read(trajectory))


def test_a_label_of_the_wrong_shape(tmp_path: Path) -> None:
    atoms = frame()
    atoms.arrays["forces_2d"] = np.zeros((3, 2))
    path = tmp_path / "flat.xyz"
    ase.io.write(path, atoms, format="extxyz")
    with pytest.raises(InputError, match=r"flat\.xyz frame 0: forces_2d has shape"):
        list(read(path, keys=Keys(forces="forces_2d")))


def test_negative_volume(trajectory: Path) -> None:
    atoms = labelled()
    atoms.set_cell(CELL[[1, 0, 2]])
    ase.io.write(trajectory, [labelled(), atoms], format="extxyz")
    with pytest.raises(InputError, match=rf"{trajectory.name} frame 1: the cell's volume is negative"):
        list(read(trajectory))


def test_every_unit_of_the_config_is_known() -> None:
    assert set(units.FORCE_NAMES) > {"auto", "Hartree/Bohr", "kcal/mol/Angstrom"}


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ({"length": "bohr"}, "Bohr"),
        ({"energy": "hartree"}, "Hartree"),
        ({"forces": "eV/A"}, "auto"),
        ({"stress": "Gpa"}, "GPa"),
    ],
)
def test_unknown_units(trajectory: Path, word: dict[str, str], meant: str) -> None:
    ((name, value),) = word.items()
    with pytest.raises(InputError, match=rf"data\.units\.{name}: '{value}'.*{meant}"):
        list(read(trajectory, units=Units(**word)))


def test_units_of_a_format_that_ase_converts(tmp_path: Path) -> None:
    path = tmp_path / "POSCAR"
    ase.io.write(path, frame(), format="vasp", sort=True)
    for format in ("auto", "vasp"):
        with pytest.raises(InputError, match=r"POSCAR: data\.units declares energy: Hartree, but ASE reads vasp"):
            list(read(path, format=format, units=Units(energy="Hartree")))
    assert len(list(read(path))) == 1


def test_units_of_a_format_that_holds_what_was_put_in(tmp_path: Path) -> None:
    path = tmp_path / "frames.traj"
    ase.io.write(path, labelled(), format="traj")
    (structure,) = read(path, units=Units(energy="Hartree"))
    assert structure.energy == pytest.approx(-272.114, rel=1e-5)


def test_a_free_energy_that_is_not_the_energy_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "smeared.xyz"
    frames = [labelled(n) for n in range(3)]
    for n, atoms in enumerate(frames):
        atoms.calc.results["free_energy"] = atoms.calc.results["energy"] - 0.25 * n
    ase.io.write(path, frames, format="extxyz")
    assert [s.energy for s in read(path, say=said.append)] == [-10.0, -11.0, -12.0]
    (sentence,) = said
    assert "in 2 frames the free energy differs from the energy (by up to 0.5 eV)" in sentence
    found = [s.energy for s in read(path, keys=Keys(energy="free_energy"), say=said.append)]
    assert found == [-10.0, -11.25, -12.5]
    assert len(said) == 1


def test_two_readers_of_one_suffix(trajectory: Path) -> None:
    ref = Ref("nequip_core.data.read:open_ase")
    readers = {name: ReaderEntry(name=name, suffixes=(".xyz",), open=ref) for name in ("mine", "yours")}
    with pytest.raises(InputError, match=r"mine and yours both read files \.xyz.*data\.format=mine"):
        list(read(trajectory, readers=readers))
    assert len(list(read(trajectory, readers=readers, format="yours"))) == 6
    assert len(list(read(trajectory, readers=readers, format="extxyz"))) == 6
