"""Ethanol in a box of TIP3P water, as a PDB file: python examples/openmm/make_system.py OUT.pdb"""

from __future__ import annotations

import sys
from pathlib import Path

from ase.build import molecule
from openmm import Vec3, app, unit

NAMES = ("C1", "C2", "O", "HO", "H21", "H22", "H11", "H12", "H13")
"""Of the atoms of ASE's molecule, in its order, as in ethanol.xml."""

BONDS = ("C1-C2", "C2-O", "O-HO", "C1-H11", "C1-H12", "C1-H13", "C2-H21", "C2-H22")


def main(out: Path) -> None:
    ethanol = molecule("CH3CH2OH")
    topology = app.Topology()
    residue = topology.addResidue("ETH", topology.addChain())
    atoms = {
        name: topology.addAtom(name, app.Element.getBySymbol(symbol), residue)
        for name, symbol in zip(NAMES, ethanol.get_chemical_symbols(), strict=True)
    }
    for bond in BONDS:
        topology.addBond(*(atoms[name] for name in bond.split("-")))
    modeller = app.Modeller(topology, ethanol.positions / 10 * unit.nanometer)
    field = app.ForceField(str(Path(__file__).with_name("ethanol.xml")), "tip3p.xml")
    modeller.addSolvent(field, boxSize=Vec3(2.4, 2.4, 2.4) * unit.nanometer)
    with out.open("w") as file:
        app.PDBFile.writeFile(modeller.topology, modeller.positions, file)
    print(f"{out}: {modeller.topology.getNumAtoms()} atoms")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
