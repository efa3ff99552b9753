"""Units against CODATA's numbers, written out here."""

from __future__ import annotations

import pytest

from nequip_core import units


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (units.LENGTH["Angstrom"], 1.0),
        (units.LENGTH["Bohr"], 0.529177210903),
        (units.LENGTH["nm"], 10.0),
        (units.ENERGY["eV"], 1.0),
        (units.ENERGY["meV"], 0.001),
        (units.ENERGY["Hartree"], 27.211386245988),
        (units.ENERGY["Rydberg"], 13.605693122994),
        (units.ENERGY["kcal/mol"], 0.0433641042413),
        (units.ENERGY["kJ/mol"], 0.0103642696562616),
        (units.STRESS["eV/Angstrom^3"], 1.0),
        (units.STRESS["GPa"], 1 / 160.2176634),
        (units.STRESS["kbar"], 1 / 1602.176634),
        (units.STRESS["Hartree/Bohr^3"], 29421.015696 / 160.2176634),
    ],
)
def test_factors(factor: float, expected: float) -> None:
    assert factor == pytest.approx(expected, rel=1e-9)


def test_signs() -> None:
    assert units.STRESS_SIGN == {"tension_positive": 1.0, "compression_positive": -1.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", 27.211386245988 / 0.529177210903),
        ("Hartree/Bohr", 27.211386245988 / 0.529177210903),
        ("eV/Angstrom", 1.0),
        ("kcal/mol/Angstrom", 0.0433641042413),
        ("kJ/mol/nm", 0.00103642696562616),
    ],
)
def test_force(name: str, expected: float) -> None:
    assert units.force(name, length="Bohr", energy="Hartree") == pytest.approx(expected, rel=1e-9)


def test_every_named_force_has_a_factor() -> None:
    assert all(units.force(name, length="nm", energy="eV") > 0 for name in units.FORCE_NAMES)
