"""Models and systems of the tests in OpenMM, and a host that stands in for TorchForce. On sys.path by conftest.py."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from ase import Atoms
from openmm import app, unit

from nequip_core.export.package import Members, Provenance, manifest, write_package
from nequip_core.models.build import build_model
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry

KJ_MOL = 96.48533212331
"""In an eV; forces in kJ/mol/nm are ten times those in eV/Å times this."""

PLATFORMS = ("Reference", "CPU")

REAL = os.environ.get("NEQUIP_TORCHFORCE") == "1"
"""Whether files go into the real TorchForce: nox -s torchforce_tests."""


KEYS: dict[str, dict[str, Any]] = {
    "nequip": {"l_max": 1, "num_layers": 2, "num_features": [6, 4], "radial_mlp": [8]},
    "allegro": {"pair_cutoffs": {"H": {"H": 2.8}}},
}
"""Of small models."""


def write_model(path: Path, kind: str = "nequip", **keys: Any) -> Path:
    """A package of a small model of H, C, O with random weights."""
    registry = load_registry()
    entry = registry.models[kind]
    common = {
        "cutoff": 3.5,
        "types": ["H", "C", "O"],
        "dtype": "float64",
        "atomic_energies": {"H": -13.6, "C": -1030.0, "O": -430.0},
        "energy_scale": {"H": 1.5, "C": 1.1, "O": 0.7},
        "avg_num_neighbors": 9.0,
    }
    config = entry.config.load()(**(dict(entry.tiny) | common | KEYS[kind] | keys))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(entry, config, Ops(registry.kernels, dtype=torch.float64))
    block, weights = asdict(config), dict(model.state_dict())
    about = Provenance(model=block, data={"sha256": "0" * 64}, config={}, versions={}, provider="nequip-core")
    members = Members(
        manifest=manifest(about, kind="raw", weights=weights, raw={}),
        model=block,
        weights=weights,
        data=about.data,
        metrics={},
        check={"structures": []},
        check_tensors={},
    )
    write_package(path, members)
    return path


def ice() -> Atoms:
    """Two waters in a skewed cell, smaller than twice the cut-off."""
    rng = np.random.default_rng(0)
    atoms = Atoms(
        "OHHOHH",
        positions=[[0, 0, 0], [0.9, 0.3, 0], [-0.3, 0.9, 0], [2.2, 2, 2], [3.1, 2.2, 2], [2, 2.9, 2.3]],
        cell=[[4.4, 0, 0], [0.7, 4.3, 0], [0.2, -0.6, 4.1]],
        pbc=True,
    )
    atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
    return atoms


def waters(number: int = 8, box: float = 8.0) -> Atoms:
    """Waters on a grid in a cubic box; the first cut by its boundary."""
    rng = np.random.default_rng(1)
    side = round(number ** (1 / 3))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3) * (box / side)
    one = np.array([[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]])
    positions = (grid[:, None] + one).reshape(-1, 3) + rng.normal(scale=0.02, size=(3 * len(grid), 3))
    return Atoms("OHH" * len(grid), positions=positions, cell=box * np.eye(3), pbc=True)


SYSTEMS = {
    "triclinic": ice,
    "cubic": waters,
    "not periodic": lambda: Atoms("OHH", [[0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0]]),
    "no edges": lambda: Atoms("OH", [[0, 0, 0], [0, 0, 9]]),
    "one atom": lambda: Atoms("C", [[0.1, 0.2, 0.3]]),
    "one atom and its images": lambda: Atoms("O", [[0.1, 0.2, 0.3]], cell=[2.1, 2.2, 2.3], pbc=True),
}


def topology_of(atoms: Atoms, *, bonds: bool = True) -> app.Topology:
    """Each O with the two H that follow is a water; the box is the cell."""
    topology = app.Topology()
    chain = topology.addChain()
    residue = None
    oxygen = None
    for symbol in atoms.get_chemical_symbols():
        if symbol == "O" or residue is None:
            residue = topology.addResidue("HOH", chain)
        atom = topology.addAtom(f"{symbol}{len(list(residue.atoms())) or ''}", app.Element.getBySymbol(symbol), residue)
        if symbol == "O":
            oxygen = atom
        elif bonds and oxygen is not None:
            topology.addBond(oxygen, atom)
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(atoms.cell.array / 10 * unit.nanometer)
    return topology


def system_of(atoms: Atoms, *forces: Any) -> openmm.System:
    """Particles, box and forces."""
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / 10))
    for force in forces:
        system.addForce(force)
    return system


def context_of(system: openmm.System, atoms: Atoms, platform: str = "Reference", timestep: float = 2e-4) -> Any:
    """At the atoms' positions."""
    integrator = openmm.VerletIntegrator(timestep)
    properties = {"Threads": "1", "DeterministicForces": "true"} if platform == "CPU" else {}
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), properties)
    context.setPositions(atoms.positions / 10)
    return context


def energy_forces(context: Any, **options: Any) -> tuple[float, np.ndarray]:
    """eV and eV/Å."""
    state = context.getState(energy=True, forces=True, **options)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
    return energy / KJ_MOL, forces / (10 * KJ_MOL)


def load(path: Path) -> Any:
    """The module of a file, as the plugin loads it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.[a-z]+` is deprecated", category=DeprecationWarning)
        return torch.jit.freeze(torch.jit.load(str(path)).eval())


class Host:
    """TorchForce's contract in a PythonForce: load, freeze, call with positions, box and parameters as the plugin does.

    Args:
        path: of the file.
        periodic, outputs_forces: the flags of the TorchForce.
        parameters: names of its global parameters.
        dtype: of the positions: float64 on Reference and CPU, float32 on CUDA in single precision.
    """

    def __init__(
        self,
        path: Path,
        *,
        periodic: bool = True,
        outputs_forces: bool = True,
        parameters: tuple[str, ...] = (),
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.path = path
        self.module = load(path)
        self.periodic = periodic
        self.outputs_forces = outputs_forces
        self.parameters = parameters
        self.dtype = dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return _host, (self.path, self.periodic, self.outputs_forces, self.parameters, self.dtype)

    def __call__(self, state: Any) -> tuple[float, np.ndarray]:
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        x = torch.tensor(positions, dtype=self.dtype, requires_grad=True)
        arguments = [x]
        if self.periodic:
            box = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer)
            arguments.append(torch.tensor(box, dtype=self.dtype))
        arguments += [torch.tensor(state.getParameters()[name], dtype=self.dtype) for name in self.parameters]
        if self.outputs_forces:
            energy, forces = self.module(*arguments)
        else:
            energy = self.module(*arguments)
            energy.backward()
            forces = -x.grad
        # What the plugin relies on without looking.
        assert energy.numel() == 1
        assert forces.shape == x.shape
        assert forces.is_contiguous()
        assert forces.device == x.device
        assert forces.dtype == x.dtype
        return float(energy.detach()), forces.detach().double().numpy()


def _host(path: Path, periodic: bool, outputs_forces: bool, parameters: tuple[str, ...], dtype: torch.dtype) -> Host:
    return Host(path, periodic=periodic, outputs_forces=outputs_forces, parameters=parameters, dtype=dtype)


def hosted(path: Path, **options: Any) -> openmm.Force:
    """A force that runs a file for TorchForce: in the host, or in TorchForce itself."""
    if REAL:
        return _real(path, **options)
    host = Host(path, **options)
    force = openmm.PythonForce(host, dict.fromkeys(host.parameters, 1.0))
    force.setUsesPeriodicBoundaryConditions(host.periodic)
    return force


def _real(
    path: Path, *, periodic: bool = True, outputs_forces: bool = True, parameters: tuple[str, ...] = ()
) -> openmm.Force:
    from openmmtorch import TorchForce

    force = TorchForce(str(path))
    force.setOutputsForces(outputs_forces)
    force.setUsesPeriodicBoundaryConditions(periodic)
    for name in parameters:
        force.addGlobalParameter(name, 1.0)
    return force
