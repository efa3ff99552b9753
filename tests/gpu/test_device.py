"""On a CUDA device everything is what it is on the CPU, and repeatable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write
from torch import Tensor

from nequip_core.engines.ase import NequIPCalculator
from nequip_core.graph import to
from nequip_core.ops.segment import gather, segment_sum
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.testing import systems
from nequip_core.testing.checks import Case, make_case

pytestmark = pytest.mark.gpu
NEQUIP = [sys.executable, "-m", "nequip_core"]


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(load_registry().models["nequip"], {"l_max": 2, "zbl": True})


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 2e-4)])
def test_predictions_are_those_of_the_cpu(case: Case, dtype: str, tolerance: float):
    case = case.as_dtype(dtype)
    graph = case.graph(*systems.systems().values())
    expected = case.of_graph(graph)
    potential = Potential(case.potential.model.cuda()).eval()
    received = potential(to(graph, torch.device("cuda")), atomic_virial=True)
    for name, here, there in zip(expected._fields, expected, received, strict=True):
        assert here is not None
        assert there is not None
        torch.testing.assert_close(
            there.detach().cpu(), here, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_sums_over_edges_are_those_of_the_cpu_with_both_derivatives():
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 50, (4000,), generator=generator).sort().values
    index[index == 7] = 8  # a segment without rows
    ptr = torch.searchsorted(index, torch.arange(51))
    x = torch.randn(50, 5, dtype=torch.float64, generator=generator)

    def curvature(device: str) -> list[Tensor]:
        values = x.to(device).requires_grad_()
        rows, pointers = index.to(device), ptr.to(device)
        total = (segment_sum(gather(values, rows, pointers) ** 3, rows, pointers) ** 2).sum()
        (slope,) = torch.autograd.grad(total, values, create_graph=True)
        (second,) = torch.autograd.grad((slope**2).sum(), values)
        return [total.cpu(), slope.cpu(), second.cpu()]

    for here, there in zip(curvature("cpu"), curvature("cuda"), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-12, atol=0)


def test_a_training_step_is_repeated_bit_for_bit(case: Case):
    case = case.as_dtype("float32")
    model = case.potential.model.cuda()
    parameters = [p for p in model.parameters() if p.requires_grad]
    graph = to(case.graph(*[systems.supercell(systems.crystal(), (3, 3, 3))] * 4), torch.device("cuda"))
    potential = Potential(model).train()

    def gradient() -> list[Tensor]:
        prediction = potential(graph)
        loss = (prediction.forces**2).mean() + (prediction.energy**2).mean() * 1e-6
        return list(torch.autograd.grad(loss, parameters))

    first = gradient()
    assert any(g.abs().max() > 0 for g in first)
    for _ in range(20):
        for before, now in zip(first, gradient(), strict=True):
            assert torch.equal(before, now)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on the device, on copper in ASE's embedded-atom potential."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(24):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_potential_energy()
        atoms.get_stress()
        frames.append(atoms)
    write(folder / "cu.xyz", frames, format="extxyz")
    (folder / "cu.yaml").write_text(
        "defaults: [base, {model: nequip}, _self_]\n"
        "data: {path: cu.xyz, split: {train: 16, val: 8}}\n"
        "model: {cutoff: 4.0, l_max: 1, num_layers: 2, num_features: 8}\n"
        "training: {ema_decay: 0.9, loss: {stress: {weight: 1.0}}}\n"
        "trainer: {accelerator: cuda, max_epochs: 3, enable_progress_bar: false}\n"
    )
    nequip(folder, "train", "cu.yaml", "run.dir=run")
    return folder


def nequip(folder: Path, *words: str) -> str:
    done = subprocess.run([*NEQUIP, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_training_twice_gives_the_same_numbers(run: Path):
    nequip(run, "train", "cu.yaml", "run.dir=again")
    columns = [0, 1, 3, 4, 5]  # all but the time
    first, second = (
        np.genfromtxt(run / name / "metrics.csv", delimiter=",", skip_header=1) for name in ("run", "again")
    )
    np.testing.assert_array_equal(first[:, columns], second[:, columns])


def test_a_run_of_the_device_gives_the_same_errors_on_the_cpu(run: Path):
    errors = []
    for device in ("cpu", "cuda"):
        nequip(run, "evaluate", "run", "cu.xyz", "--device", device, "--json", f"{device}.json")
        errors.append(json.loads((run / f"{device}.json").read_text()))
    assert [result["device"].split(":")[0] for result in errors] == ["cpu", "cuda"]
    for quantity in ("energy", "forces", "stress"):
        assert errors[1][quantity]["rmse"] == pytest.approx(errors[0][quantity]["rmse"], rel=1e-4)


def test_the_calculator_gives_what_it_gives_on_the_cpu(run: Path):
    atoms = read(run / "cu.xyz", index=0)
    assert isinstance(atoms, Atoms)
    atoms = atoms.repeat(2)
    results = []
    for device in ("cpu", "cuda"):
        atoms.calc = NequIPCalculator.from_file(run / "run", device=device)
        results.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    for here, there in zip(*results, strict=True):
        np.testing.assert_allclose(there, here, rtol=0, atol=1e-4)


def test_dynamics_keeps_its_energy(run: Path):
    flags = ["--ensemble", "nve", "--temperature", "300", "--timestep", "1.0", "--steps", "200", "--device", "cuda"]
    nequip(run, "md", "run", "cu.xyz", *flags, "--log", "md.csv")
    log = np.genfromtxt(run / "md.csv", delimiter=",", names=True)
    assert len(log) == 21
    assert np.ptp(log["total_energy_eV"]) < 0.1 * np.ptp(log["potential_energy_eV"])


def test_doctor_names_the_device(run: Path):
    assert torch.cuda.get_device_name(0) in nequip(run, "doctor", "--json")


def test_a_device_that_is_not_there_is_refused(run: Path):
    done = subprocess.run(
        [*NEQUIP, "evaluate", "run", "cu.xyz", "--device", "cuda:99"],
        cwd=run,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "cuda:99" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_isolated_atom_has_its_energy(case: Case):
    graph = case.graph(systems.atom("H"))
    potential = Potential(case.potential.model.cuda()).eval()
    prediction = potential(to(graph, torch.device("cuda")))
    assert prediction.energy.item() == pytest.approx(systems.ATOMIC_ENERGIES["H"], abs=1e-12)
    assert prediction.forces.abs().max() == 0
