"""Units and signs, stated once. Inside everything is eV and Å; only readers and engines convert, at the border.

* energy eV, length Å, forces -dE/dx eV/Å
* stress dE/dstrain / V, eV/Å³, tension positive (ASE's sign; VASP prints the opposite)
* virial -dE/dstrain = -stress V, eV (LAMMPS' sign)

Factors are CODATA 2018; ASE's own default, ase.units, is CODATA 2014 and differs in the eighth digit.
"""

from __future__ import annotations

from ase.units import create_units

_ase = create_units("2018")

LENGTH: dict[str, float] = {"Angstrom": 1.0, "Bohr": _ase.Bohr, "nm": _ase.nm}
"""Å in one of each."""

ENERGY: dict[str, float] = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": _ase.Hartree,
    "Rydberg": _ase.Rydberg,
    "kcal/mol": _ase.kcal / _ase.mol,
    "kJ/mol": _ase.kJ / _ase.mol,
}
"""eV in one of each."""

STRESS: dict[str, float] = {
    "eV/Angstrom^3": 1.0,
    "GPa": _ase.GPa,
    "kbar": 0.1 * _ase.GPa,
    "Hartree/Bohr^3": _ase.Hartree / _ase.Bohr**3,
}
"""eV/Å³ in one of each."""

STRESS_SIGN = {"tension_positive": 1.0, "compression_positive": -1.0}


def force(name: str, *, length: str, energy: str) -> float:
    """eV/Å in one unit of force: ``auto`` is energy/length, otherwise ENERGY/LENGTH, such as Hartree/Bohr.

    Raises:
        KeyError: the name is none of these; `FORCE_NAMES` lists all.
    """
    if name == "auto":
        return ENERGY[energy] / LENGTH[length]
    energy, _, length = name.rpartition("/")
    return ENERGY[energy] / LENGTH[length]


FORCE_NAMES = ("auto", *(f"{energy}/{length}" for energy in ENERGY for length in LENGTH))
