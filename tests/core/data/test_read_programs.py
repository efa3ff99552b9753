"""Outputs of programs whose units ASE knows: small files in their formats, written here from eV and Å."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase.io.formats import filetype

from nequip_core.data.read import Keys, Units, read
from nequip_core.errors import InputError
from nequip_core.structure import Floats

# CODATA 2018; ASE's readers have older values, which differ in the seventh digit or later.
HARTREE, RYDBERG, BOHR = 27.211386245988, 13.605693122994, 0.529177210903
KBAR = 6.241509074e-4  # eV/Å^3
CLOSE = 1e-6

SYMBOLS = ("O", "H", "H")
CELL = np.array([[4.0, 0.25, 0.0], [0.0, 4.5, 0.5], [0.125, 0.0, 5.0]])
POSITIONS = [np.array([[0.5, 0.25, 0.125], [1.5, 0.25, 0.5], [0.25, 1.25, 0.375]]) + 0.125 * n for n in range(2)]
FORCES = [np.array([[0.1, -0.2, 0.3], [0.4, 0.5, -0.6], [-0.5, -0.3, 0.3]]) * (1 + n) for n in range(2)]
STRESS = np.array([[0.01, 0.002, 0.003], [0.002, -0.02, 0.004], [0.003, 0.004, 0.03]])
"""eV/Å^3, positive under tension."""
FREE, ENERGY = (-14.5, -15.25), (-14.25, -15.0)
"""eV; the forces are derivatives of the first."""


def lines(rows: Floats, before: str = "", after: str = "") -> str:
    return "".join(f"{before}{' '.join(f'{value:.12f}' for value in row)}{after}\n" for row in rows)


def varray(name: str, rows: Floats) -> str:
    return f'<varray name="{name}">\n{lines(rows, "<v>", "</v>")}</varray>\n'


def vasprun(path: Path) -> None:
    """VASP's XML: fractional coordinates, kbar, positive under compression."""

    def structure(frame: int, name: str = "finalpos") -> str:
        fractional = POSITIONS[frame] @ np.linalg.inv(CELL)
        crystal = f"<crystal>{varray('basis', CELL)}</crystal>"
        return f'<structure name="{name}">{crystal}{varray("positions", fractional)}</structure>\n'

    def energies(frame: int) -> str:
        return f'<energy><i name="e_fr_energy">{FREE[frame]}</i><i name="e_0_energy">{ENERGY[frame]}</i></energy>\n'

    steps = (
        f"<calculation><scstep>{energies(n)}</scstep>{structure(n)}{varray('forces', FORCES[n])}"
        f"{varray('stress', -STRESS / KBAR)}{energies(n)}</calculation>\n"
        for n in range(2)
    )
    atoms = "".join(f"<rc><c>{symbol}</c><c>1</c></rc>" for symbol in SYMBOLS)
    points = varray("kpointlist", np.zeros((1, 3))) + varray("weights", np.ones((1, 1)))
    path.write_text(
        f'<modeling><kpoints>{points}</kpoints><parameters/><atominfo><array name="atoms"><set>{atoms}</set></array>'
        f"</atominfo>{structure(0, 'initialpos')}{''.join(steps)}</modeling>\n"
    )


def outcar(path: Path) -> None:
    """VASP's text: xx yy zz xy yz zx in kbar, positive under compression."""
    voigt = [-STRESS[row, column] / KBAR for row, column in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0))]
    header = " POTCAR:    PAW_PBE O 08Apr2002\n POTCAR:    PAW_PBE H 15Jun2001\n"
    steps = (
        f"  in kB  {' '.join(f'{value:.8f}' for value in voigt)}\n"
        f"      direct lattice vectors                 reciprocal lattice vectors\n{lines(np.hstack([CELL, CELL]))}\n"
        " POSITION                                       TOTAL-FORCE (eV/Angst)\n ------\n"
        f"{lines(np.hstack([POSITIONS[n], FORCES[n]]))} ------\n"
        "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  ------\n"
        f"  free  energy   TOTEN  =      {FREE[n]:.8f} eV\n\n"
        f"  energy  without entropy=      {2 * ENERGY[n] - FREE[n]:.8f}  energy(sigma->0) =      {ENERGY[n]:.8f}\n"
        for n in range(2)
    )
    path.write_text(
        f"{header}{header}   ions per type =               1   2\n   Iteration      1(   1)\n{''.join(steps)}"
    )


def espresso(path: Path) -> None:
    """pw.x: Rydberg, Bohr, units of the first lattice constant; stress positive under compression."""
    constant = 8.0 * BOHR
    atoms = "".join(
        f"  {n}  {symbol}  tau( {n}) = ( {' '.join(f'{x:.12f}' for x in row / constant)} )\n"
        for n, (symbol, row) in enumerate(zip(SYMBOLS, POSITIONS[0], strict=True), 1)
    )
    start = (
        "     Program PWSCF v.7.2 starts\n     celldm(1)=   8.000000\n     number of atoms/cell      =  3\n"
        f"     crystal axes: (cart. coord. in units of alat)\n{lines(CELL / constant, '  a = ( ', ' )')}"
        f"     site n.     atom                  positions (alat units)\n{atoms}"
    )
    moved = "ATOMIC_POSITIONS (angstrom)\n" + "".join(
        f"{symbol} {' '.join(f'{x:.12f}' for x in row)}\n" for symbol, row in zip(SYMBOLS, POSITIONS[1], strict=True)
    )
    results = [
        f"!    total energy              =   {FREE[n] / RYDBERG:.12f} Ry\n"
        f"     Forces acting on atoms (cartesian axes, Ry/au):\n\n"
        f"{lines(FORCES[n] / RYDBERG * BOHR, '     atom    1 type  1   force =  ')}\n"
        f"     total   stress  (Ry/bohr**3)     (kbar)     P=  0.0\n{lines(-STRESS / RYDBERG * BOHR**3)}\n"
        for n in range(2)
    ]
    path.write_text(start + results[0] + moved + results[1])


def castep(path: Path) -> None:
    """CASTEP's trajectory: atomic units throughout; the only energy is the one of the forces."""

    def atoms(rows: Floats, mark: str) -> str:
        return "".join(
            f" {symbol} {number} {' '.join(f'{x:.12E}' for x in row)} <-- {mark}\n"
            for symbol, number, row in zip(SYMBOLS, (1, 1, 2), rows, strict=True)
        )

    frames = (
        f"  {n}.0\n  {FREE[n] / HARTREE:.12f} 0.0 0.0 <-- E\n{lines(CELL / BOHR, after=' <-- h')}"
        f"{lines(STRESS / HARTREE * BOHR**3, after=' <-- S')}{atoms(POSITIONS[n] / BOHR, 'R')}"
        f"{atoms(FORCES[n] / HARTREE * BOHR, 'F')}\n"
        for n in range(2)
    )
    path.write_text(f" BEGIN header\n END header\n\n{''.join(frames)}")


def cp2k(path: Path) -> None:
    """A restart file of CP2K, which holds no labels."""
    cell = "".join(f"{name} {row}" for name, row in zip("ABC", lines(CELL).splitlines(keepends=True), strict=True))
    coordinates = "".join(
        f"{name} {row}" for name, row in zip(SYMBOLS, lines(POSITIONS[0]).splitlines(True), strict=True)
    )
    path.write_text(f"&FORCE_EVAL\n&SUBSYS\n&CELL\n{cell}&END CELL\n&COORD\n{coordinates}&END COORD\n&END SUBSYS\n")


PROGRAMS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "vasp-xml": ("vasprun.xml", vasprun),
    "vasp-out": ("OUTCAR", outcar),
    "espresso-out": ("water.pwo", espresso),
    "castep-md": ("water.md", castep),
}
ALL = {**PROGRAMS, "cp2k-restart": ("water.restart", cp2k)}


def written(folder: Path, format: str) -> Path:
    name, write = ALL[format]
    write(folder / name)
    return folder / name


@pytest.mark.parametrize("format", PROGRAMS)
def test_labels_are_in_ev_and_angstrom(tmp_path: Path, format: str) -> None:
    path = written(tmp_path, format)
    assert filetype(str(path)) == format
    said: list[str] = []
    found = list(read(path, say=said.append))
    assert len(found) == 2
    for n, one in enumerate(found):
        assert one.symbols == SYMBOLS
        assert one.pbc.all()
        assert one.energy == pytest.approx(FREE[n], rel=CLOSE)
        np.testing.assert_allclose(one.cell, CELL, rtol=CLOSE, atol=1e-9)
        np.testing.assert_allclose(one.positions, POSITIONS[n], rtol=CLOSE)
        np.testing.assert_allclose(one.forces, FORCES[n], rtol=CLOSE)
        np.testing.assert_allclose(one.stress, STRESS, rtol=CLOSE)
    assert not said


@pytest.mark.parametrize("format", ["vasp-xml", "vasp-out"])
def test_the_energy_without_smearing_is_not_trained_on(tmp_path: Path, format: str) -> None:
    path = written(tmp_path, format)
    named = [one.energy for one in read(path, keys=Keys(energy="free_energy"))]
    assert named == [one.energy for one in read(path, format=format)] == pytest.approx(FREE)


def test_a_compressed_output_is_known_by_its_inner_name(tmp_path: Path) -> None:
    path = written(tmp_path, "vasp-xml")
    packed = path.with_name("vasprun.xml.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [one.energy for one in read(packed)] == [one.energy for one in read(path)] == pytest.approx(FREE)


def test_coordinates_without_labels(tmp_path: Path) -> None:
    (one,) = read(written(tmp_path, "cp2k-restart"))
    np.testing.assert_allclose(one.positions, POSITIONS[0], rtol=1e-9)
    np.testing.assert_allclose(one.cell, CELL, rtol=1e-9)
    assert (one.energy, one.forces, one.stress) == (None, None, None)


@pytest.mark.parametrize("units", [Units(energy="Rydberg"), Units(stress="kbar", stress_sign="compression_positive")])
@pytest.mark.parametrize("format", ALL)
def test_declared_units_are_refused(tmp_path: Path, format: str, units: Units) -> None:
    path = written(tmp_path, format)
    with pytest.raises(InputError, match=rf"{path.name}: data\.units declares .*, but ASE reads {format} "):
        list(read(path, units=units))
