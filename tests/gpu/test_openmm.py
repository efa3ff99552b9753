"""OpenMM on a CUDA device against the ASE calculator there: PythonForce, and TorchForce with the plugin's wheel.

What they need is in `NEEDED`. Wheels that lie in a folder beside torch's find its libraries by LD_LIBRARY_PATH.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ase import Atoms
from filelock import FileLock
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nequip_core import blocks
from nequip_core.engines.ase import NequIPCalculator

sys.path.insert(0, str(Path(__file__).parents[1] / "openmm"))  # for what tests/openmm has

MISSING = ""
try:
    import openmm
    import openmm_support as support
    from openmm import app, unit

    import nequip_openmm
    from nequip_openmm import evaluate
    from nequip_openmm.prepare import prepare
except ModuleNotFoundError as error:
    MISSING = f"{error}. "

pytestmark = pytest.mark.gpu
NEEDED = (
    "These tests need openmm 8.6.1, openmm-cuda-13 8.6.1 and acellera-openmmtorch-cu13 1.10, with torch 2.10 to 2.12."
)
DEVICE = "cuda"
KINDS = ("nequip", "allegro")
WAYS = ("python", "torch")
PRECISIONS = {
    ("python", "single"): 1e-5,
    ("python", "mixed"): 1e-6,
    ("python", "double"): 1e-9,
    ("torch", "single"): 1e-5,
    ("torch", "mixed"): 1e-5,  # TorchForce reads positions without what mixed precision adds to them
    ("torch", "double"): 1e-9,
    ("torch, energy only", "single"): 1e-5,
}
"""Largest error of a force in units of their rms."""

ENERGY = {"single": 1e-8, "mixed": 1e-8, "double": 1e-10}
"""Relative; the energy is computed in double precision of positions as they are."""


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    if MISSING:
        pytest.fail(MISSING + NEEDED)
    names = [openmm.Platform.getPlatform(n).getName() for n in range(openmm.Platform.getNumPlatforms())]
    if "CUDA" not in names:
        pytest.fail(f"OpenMM has no platform CUDA here: {openmm.Platform.getPluginLoadFailures()}. {NEEDED}")


class Model(NamedTuple):
    """One model, as a package and compiled for the device."""

    package: Path
    compiled: Path

    def results(self, atoms: Atoms) -> tuple[float, np.ndarray]:
        """Of the calculator, eager, without our kernels."""
        atoms = atoms.copy()
        atoms.calc = NequIPCalculator.from_file(self.package, device=DEVICE, skin=0.0, kernels="reference")
        return atoms.get_potential_energy(), atoms.get_forces()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, Model]:
    """Compiled for the device, both at the same time, once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "openmm_models"
    folder.mkdir(exist_ok=True)

    def make(kind: str) -> Model:
        made = Model(folder / f"{kind}.nequip.zip", folder / f"{kind}.nequip.pt2")
        with FileLock(folder / f"{kind}.lock"):
            if not made.compiled.exists():
                support.write_model(made.package, kind)
                nequip("compile", made.package, made.compiled, "--target", "openmm", "--device", DEVICE)
        return made

    with ThreadPoolExecutor() as pool:
        return dict(zip(KINDS, pool.map(make, KINDS), strict=True))


def nequip(*words: object) -> str:
    command = [sys.executable, "-m", "nequip_core", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def force_of(way: str, model: Model, whole: Atoms, folder: Path, **options: Any) -> Any:
    topology = support.topology_of(whole)
    if way == "python":
        return nequip_openmm.python_force(model.compiled, topology, **options)
    only = way == "torch, energy only"
    path = nequip_openmm.export_torchforce(model.compiled, topology, folder / "model.pt", energy_only=only, **options)
    return nequip_openmm.torch_force(path)


def context_of(atoms: Atoms, force: Any, precision: str = "mixed", timestep: float = 1e-4) -> Any:
    platform = openmm.Platform.getPlatformByName("CUDA")
    integrator = openmm.VerletIntegrator(timestep)
    context = openmm.Context(support.system_of(atoms, force), integrator, platform, {"Precision": precision})
    context.setPositions(atoms.positions / 10)
    return context


def positions_of(context: Any) -> np.ndarray:
    """Å, as the platform has them."""
    return 10 * context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)


def check(context: Any, atoms: Atoms, model: Model, of_forces: float, of_energy: float) -> None:
    """Energy and forces against the calculator's at the platform's positions."""
    energy, forces = support.energy_forces(context)
    moved = atoms.copy()
    moved.positions = positions_of(context)
    expected, of_calculator = model.results(moved)
    assert energy == pytest.approx(expected, rel=of_energy)
    rms = np.sqrt((of_calculator**2).mean())
    np.testing.assert_allclose(forces, of_calculator, rtol=0, atol=of_forces * max(rms, 1e-6))


@pytest.mark.parametrize(("way", "precision"), PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_energy_and_forces_equal_the_calculators(
    kind: str, way: str, precision: str, models: dict[str, Model], tmp_path: Path
):
    for make in support.SYSTEMS.values():
        atoms = make()
        context = context_of(atoms, force_of(way, models[kind], atoms, tmp_path), precision)
        check(context, atoms, models[kind], PRECISIONS[way, precision], ENERGY[precision])


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_energy_is_conserved(kind: str, way: str, periodic: bool, models: dict[str, Model], tmp_path: Path):
    """With a skin so thin that neighbours are listed anew on the way.

    Random weights heat the molecules: with 0.1 fs Verlet's own error is 1.4e-3 of the kinetic energy.
    """
    atoms = support.waters()
    atoms.pbc = periodic
    context = context_of(atoms, force_of(way, models[kind], atoms, tmp_path, skin=0.02), timestep=5e-5)
    context.setVelocitiesToTemperature(100, 1)
    start = positions_of(context)
    totals = []
    for _ in range(20):
        context.getIntegrator().step(10)
        state = context.getState(energy=True)
        kinetic = state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole)
        totals.append(kinetic + state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
    assert kinetic > 1
    assert np.ptp(totals) < 1e-3 * kinetic
    assert np.linalg.norm(positions_of(context) - start, axis=1).max() > 0.04
    check(context, atoms, models[kind], 1e-5, 1e-8)


@pytest.mark.parametrize("periodic", [None, False])
@pytest.mark.parametrize("way", WAYS)
def test_a_part_of_a_system(way: str, periodic: bool | None, models: dict[str, Model], tmp_path: Path):
    """In the order of the user; without images it is put together where the box has cut it."""
    atoms = support.waters()
    order = [2, 0, 1]
    atoms.positions[1] += atoms.cell.array[0]
    force = force_of(way, models["nequip"], atoms, tmp_path, atoms=order, periodic=periodic)
    energy, forces = support.energy_forces(context_of(atoms, force, "double"))
    atoms.positions[1] -= atoms.cell.array[0]
    part = atoms[order]
    part.pbc = periodic is None
    expected, of_part = models["nequip"].results(part)
    assert energy == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(forces[order], of_part, rtol=0, atol=1e-9)
    assert not np.delete(forces, order, axis=0).any()


@pytest.mark.parametrize("way", WAYS)
def test_a_global_parameter_scales_the_energy(way: str, models: dict[str, Model], tmp_path: Path):
    atoms = support.ice()
    context = context_of(atoms, force_of(way, models["allegro"], atoms, tmp_path, lambda_name="scale"), "double")
    plain, of_plain = support.energy_forces(context)
    context.setParameter("scale", 0.25)  # exact in any precision
    energy, forces = support.energy_forces(context)
    assert energy == pytest.approx(0.25 * plain, rel=1e-12)
    np.testing.assert_allclose(forces, 0.25 * of_plain, rtol=1e-12, atol=1e-12)
    if way == "torch":
        state = context.getState(energy=True, parameterDerivatives=True)
        derivative = state.getEnergyParameterDerivatives()["scale"]
        assert derivative == pytest.approx(plain * support.KJ_MOL, rel=1e-6)  # that of a float32


class Leaving(TorchDispatchMode):
    """How many numbers each copy from the device to the host has."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        copied = [one for one in tree_leaves(result) if isinstance(one, torch.Tensor) and one.device.type == "cpu"]
        if copied and any(one.is_cuda for one in given):
            self.sizes += [one.numel() for one in copied]
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_positions_stay_on_the_device(kind: str, models: dict[str, Model]):
    """What TorchForce calls: positions, box and forces on the device, neighbours listed there."""
    atoms = support.waters()
    ready = prepare(
        models[kind].compiled,
        support.topology_of(atoms),
        atoms=None,
        periodic=None,
        lambda_name=None,
        types=None,
        device=DEVICE,
        skin=0.05,
        embed=False,
    )
    rest = (ready.types.to(DEVICE), ready.indices.to(DEVICE), ready.spec.to_json(), torch.zeros(0, dtype=torch.uint8))
    box = torch.tensor(atoms.cell.array / 10, device=DEVICE)
    copies = Leaving()
    for step in range(6):
        atoms.rattle(0.02, seed=step)
        positions = torch.tensor(atoms.positions / 10, device=DEVICE)
        with copies:
            energy, forces = torch.ops.nequip_openmm.energy_forces(positions, box, None, *rest)
        assert energy.device == forces.device == positions.device
    types, *others = copies.sizes  # once
    assert types == len(atoms)
    assert others, "the box, at least, is read back"
    assert max(others) <= 12 < forces.numel()  # three numbers and whether the box is as it was, of a recorded step
    expected, of_calculator = models[kind].results(atoms)
    assert float(energy) / support.KJ_MOL == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(forces.cpu().numpy() / (10 * support.KJ_MOL), of_calculator, rtol=0, atol=1e-9)


def test_memory_decides_about_blocks(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A strictly local model is evaluated in blocks of atoms where memory asks."""
    atoms = support.waters(64, 16.0)
    context = context_of(atoms, force_of("python", models["allegro"], atoms, tmp_path), "double")
    whole, of_whole = support.energy_forces(context)
    potential = list(evaluate._EVALUATORS.values())[-1].potential
    assert potential.taken is None
    monkeypatch.setattr(blocks, "PROBE", 200)
    monkeypatch.setattr(potential, "_whole", 200)  # what fitted once is not asked about again
    monkeypatch.setattr(blocks, "_free_memory", lambda _: 300_000)
    context.setPositions(atoms.positions / 10)  # so that it is computed again
    energy, forces = support.energy_forces(context)
    assert potential.taken is not None
    assert energy == pytest.approx(whole, rel=1e-12)
    np.testing.assert_allclose(forces, of_whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["python", "torchforce"])
def test_a_run_prints_its_speed(backend: str, models: dict[str, Model], tmp_path: Path):
    atoms = support.waters()
    with (tmp_path / "water.pdb").open("w") as file:
        app.PDBFile.writeFile(support.topology_of(atoms), atoms.positions * unit.angstrom, file)
    flags = ["--platform", "CUDA", "--backend", backend, "--ensemble", "npt", "--steps", "60", "--interval", "20"]
    flags += ["--timestep", "0.1", "--temperature", "50", "--log", tmp_path / "md.csv", "--device", DEVICE]
    printed = nequip("openmm", "run", models["nequip"].compiled, tmp_path / "water.pdb", *flags)
    assert "ns/day" in printed
    assert np.isfinite(np.genfromtxt(tmp_path / "md.csv", delimiter=",", skip_header=1)).all()
