"""Our kernels are what runs, by their names: in a compiled file, in ASE, the C++ example, LAMMPS and training.

The same files, in float64, serve all that need one. A profiler tells the names where there is Python, and a library
that is loaded ahead of the driver where there is none (tests/programs/launched.c).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from ase.build import molecule
from tests.gpu.lammps_on_device import DEVICE, MODELS, OnDevice, Run
from tests.lammps.lammps_support import assert_close, fluid, setup, write_data
from tests.programs.example import build, energy_and_forces
from tests.programs.launched import Launched, watch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from nequip_core.cli.main import main
from nequip_core.data.ghost import Ghost
from nequip_core.engines.ase import NequIPCalculator
from nequip_core.export.artifact import load_model
from nequip_core.graph import to
from nequip_core.models.build import build_model
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.recording import Recorder
from nequip_core.testing.checks import make_case
from nequip_core.tracing import Sizes, sample_graph
from nequip_core.training.compiled import CompiledTraining, Sample, sample_batch
from nequip_core.training.loss import Loss, Term, mse

pytestmark = pytest.mark.gpu
CUDA = torch.device(DEVICE)

OF_FILES = {
    "nequip": ("convolve_forward", "convolve_backward", "mlp_forward", "mlp_backward"),
    "allegro": (
        *("environment_forward", "environment_backward", "chain_forward", "chain_backward"),
        *("contract_forward", "contract_backward", "mlp_forward", "mlp_backward"),
    ),
}
OF_TRAINING = {
    "nequip": ("convolve_forward", "convolve_backward", "convolve_double_backward"),
    "allegro": ("contract_forward", "contract_backward", "contract_double_backward", "contract_double_by_weights"),
}
"""What names begin with, as there is a kernel for each group of irreps and Inductor may number them."""


def lacking(families: Iterable[str], names: Iterable[str]) -> list[str]:
    return [family for family in families if not any(name.startswith(family) for name in names)]


def assert_named(families: Iterable[str], names: Iterable[str]) -> None:
    assert not lacking(families, names), f"{lacking(families, names)} are not among {sorted(names)}"


class Seen(NamedTuple):
    """Names of what ran on the device, and of what the host did."""

    kernels: set[str]
    calls: set[str]


def profiled(work: Callable[[], object]) -> Seen:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as seen:
        work()
        torch.cuda.synchronize()
    names: dict[bool, set[str]] = {True: set(), False: set()}
    for event in seen.events():
        names[event.device_type == DeviceType.CUDA].add(event.name)
    return Seen(names[True], names[False])


def of_file(path: Path) -> set[str]:
    """The kernels of one evaluation, after a first one."""
    model = load_model(path, device=DEVICE)
    graph = to(sample_graph(model.info, Sizes(1, 50, 900)), CUDA)
    model.potential(graph)
    return profiled(lambda: model.potential(graph)).kernels


@pytest.mark.parametrize("name", MODELS)
def test_a_file(lammps_models: dict[str, OnDevice], tmp_path: Path, name: str) -> None:
    """And none of them is in a file of the reference."""
    model, reference = lammps_models[name], tmp_path / "reference.nequip.pt2"
    assert_named(OF_FILES[name], of_file(model.compiled))
    command = ["compile", str(model.package), str(reference), "--device", DEVICE, "--kernels", "reference"]
    assert main(command) == 0
    kernels = of_file(reference)
    assert kernels
    assert lacking(OF_FILES[name], kernels) == [*OF_FILES[name]], kernels


@pytest.mark.parametrize("name", MODELS)
def test_ase(lammps_models: dict[str, OnDevice], name: str) -> None:
    """In steps that are launched, and in those that repeat a recording."""
    atoms = fluid(60, 9.0)
    calculator = NequIPCalculator.from_file(lammps_models[name].compiled, device=DEVICE)

    def step() -> None:
        atoms.positions += 1e-4
        calculator.calculate(atoms)

    first = profiled(step)
    for _ in range(2):
        step()
    last = profiled(step)
    assert "cudaGraphLaunch" not in first.calls
    assert "cudaGraphLaunch" in last.calls
    for seen in (first, last):
        assert_named(OF_FILES[name], seen.kernels)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("example"))


@pytest.fixture
def launched(tmp_path: Path) -> Launched:
    return watch(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_the_cpp_example(lammps_models: dict[str, OnDevice], example: Path, launched: Launched, name: str) -> None:
    model, atoms = lammps_models[name], molecule("H2O")
    atoms.calc = model.calculator()
    file, info = model.compiled, atoms.calc.loaded.info
    energy, forces = energy_and_forces(example, file, info, atoms, DEVICE, **launched.environment)
    assert_close(energy, atoms.get_potential_energy(), 1e-10)
    assert_close(forces, atoms.get_forces(), 1e-10)
    assert_named(OF_FILES[name], launched.names)


@pytest.mark.parametrize("name", MODELS)
def test_lammps(
    lammps_models: dict[str, OnDevice], run_lammps: Run, launched: Launched, tmp_path: Path, name: str
) -> None:
    text = setup(write_data(tmp_path / "data", fluid(60, 9.0)), lammps_models[name].compiled)
    ended = run_lammps(text + "fix 1 all nve\nrun 3\n", **launched.environment)
    assert ended.code == 0, ended.text
    assert f", on {DEVICE}" in ended.text
    assert_named(OF_FILES[name], launched.names)


@pytest.mark.parametrize("name", MODELS)
def test_training(name: str, tmp_path: Path) -> None:
    """A step that repeats a recording, of the kernels that `auto` takes."""
    case = make_case(load_registry().models[name]).as_dtype("float32")
    model = build_model(case.entry, case.config, Ops(load_registry().kernels, dtype=torch.float32, device=CUDA))
    model.load_state_dict(case.potential.model.state_dict())
    potential = Potential(model).to(CUDA).train()
    sizes = Sizes(4, 110, 1400)
    training = CompiledTraining(
        potential,
        Loss((Term("energy_per_atom", 1.0, mse(0.0)), Term("forces", 1.0, mse(0.0)))),
        sample=Sample(sizes, sizes),
        ghost=Ghost(1.2),
        dump=tmp_path / "deviation.safetensors",
        say=print,
        recorder=Recorder,
    )
    training.prepare_training(CUDA)
    batch = sample_batch(potential, sizes, training.ghost).to(CUDA)

    def step() -> None:
        potential.zero_grad()
        training.backward(training.loss(batch))

    for _ in range(2):
        step()
    seen = profiled(step)
    assert "cudaGraphLaunch" in seen.calls
    assert_named(OF_TRAINING[name], seen.kernels)
