"""Compiled files on a CUDA device: eager's numbers at any size, repeatable, and beyond 2^31 elements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from torch.profiler import ProfilerActivity, profile

from nequip_core.blocks import Blocks
from nequip_core.cli.main import main
from nequip_core.engines.ase import NequIPCalculator
from nequip_core.errors import ArtifactError
from nequip_core.export.aoti import compile_model
from nequip_core.export.artifact import load_model
from nequip_core.export.compiled import CompiledPotential, read_metadata
from nequip_core.graph import to
from nequip_core.plugins.manager import load_registry
from nequip_core.testing.checks import make_case
from nequip_core.tracing import Sizes, sample_graph

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
GOLDEN = Path(__file__).parents[1] / "golden" / "published"
SOURCES = {"nequip": "nequip-0.16-checkpoint", "allegro": "allegro-0.8-checkpoint"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Path]]:
    """``(name, dtype)``: a package and its file for this device."""
    folder = tmp_path_factory.mktemp("compiled")

    def make(name: str, dtype: str) -> tuple[Path, Path]:
        package, out = folder / f"{name}.nequip.zip", folder / f"{name}-{dtype}.nequip.pt2"
        if not out.exists():
            assert main(["convert", str(GOLDEN / SOURCES[name] / "last.ckpt"), str(package)]) == 0
            assert main(["compile", str(package), str(out), "--device", "cuda", "--dtype", dtype]) == 0
        return package, out

    return make


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", SOURCES)
def test_equal_to_eager_at_any_size_and_repeatable(
    compiled: Callable[[str, str], tuple[Path, Path]], name: str, dtype: str
) -> None:
    package, out = compiled(name, dtype)
    eager = load_model(package, device="cuda", dtype=dtype, kernels="reference")
    fast = load_model(out, device="cuda")
    for seed, sizes in enumerate([Sizes(1, 1, 0), Sizes(1, 1, 1), Sizes(3, 5, 0), Sizes(5, 400, 9000)]):
        graph = to(sample_graph(eager.info, sizes, seed), CUDA)
        ours, theirs = (model.potential(graph, atomic_virial=True)._asdict() for model in (fast, eager))
        tolerance = 1e-10 if dtype == "float64" else 5e-5
        for field, value in theirs.items():
            largest = max(1.0, float(value.abs().max()))
            torch.testing.assert_close(ours[field], value, rtol=0, atol=tolerance * largest, msg=field)
        again = fast.potential(graph, atomic_virial=True)
        assert all(torch.equal(again._asdict()[field], ours[field]) for field in theirs)


def test_other_devices_are_told_apart(compiled: Callable[[str, str], tuple[Path, Path]]) -> None:
    _, out = compiled("nequip", "float64")
    assert read_metadata(out).device == "cuda"
    with pytest.raises(ArtifactError, match="compiled for device cuda, but here is cpu"):
        load_model(out, device="cpu")


def test_ase(compiled: Callable[[str, str], tuple[Path, Path]]) -> None:
    package, out = compiled("allegro", "float64")
    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    atoms.symbols = ["O" if symbol == "O" else "H" for symbol in atoms.symbols]
    atoms.rattle(0.1, seed=0)
    found = []
    for model in (package, out):
        atoms.calc = NequIPCalculator.from_file(model, device="cuda")
        found.append((atoms.get_potential_energy(), torch.from_numpy(atoms.get_forces()), atoms.get_stress()))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-9)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-9)
    assert found[0][2] == pytest.approx(found[1][2], abs=1e-10)


@pytest.mark.parametrize("name", SOURCES)
def test_recorded_steps(compiled: Callable[[str, str], tuple[Path, Path]], name: str) -> None:
    """Steps of one system, most of them repetitions of one recording: eager's numbers, and few launches."""
    package, out = compiled(name, "float64")
    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True) * (2, 2, 2)
    atoms.symbols = ["O" if symbol == "O" else "H" for symbol in atoms.symbols]
    rng = np.random.default_rng(0)
    eager, fast = (NequIPCalculator.from_file(model, device="cuda", skin=0.6) for model in (package, out))
    for step in range(60):
        atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
        if step == 40:
            atoms.set_cell(atoms.cell * 0.97, scale_atoms=True)
        found = []
        for calculator in (eager, fast):
            calculator.calculate(atoms)
            found.append(calculator.results)
        for key, value in found[0].items():
            np.testing.assert_allclose(found[1][key], value, rtol=1e-10, atol=1e-9, err_msg=key)
    steps = fast._moving._steps
    assert steps is not None
    assert 4 < fast._moving.graph.builds < 30
    atoms.positions += 1e-4
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as seen:
        fast.calculate(atoms)
        torch.cuda.synchronize()
    launches = sum(event.count for event in seen.key_averages() if "Launch" in event.key)
    assert 1 <= launches <= 20, launches
    assert "cudaGraphLaunch" in {event.key for event in seen.key_averages()}


@pytest.mark.two_devices
def test_recorded_steps_on_a_device_that_is_not_the_current_one(
    compiled: Callable[[str, str], tuple[Path, Path]],
) -> None:
    _, out = compiled("allegro", "float64")
    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True) * (2, 2, 2)
    atoms.symbols = ["O" if symbol == "O" else "H" for symbol in atoms.symbols]
    rng = np.random.default_rng(0)
    one, other = (NequIPCalculator.from_file(out, device=device, skin=0.6) for device in ("cuda:0", "cuda:1"))
    for _ in range(40):
        atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
        for calculator in (one, other):
            calculator.calculate(atoms)
        np.testing.assert_allclose(other.results["forces"], one.results["forces"], rtol=1e-10, atol=1e-9)
    assert other._moving._steps is not None
    assert torch.cuda.current_device() == 0


@pytest.mark.two_devices
def test_a_file_is_loaded_on_the_current_device(compiled: Callable[[str, str], tuple[Path, Path]]) -> None:
    _, out = compiled("allegro", "float64")
    energies = []
    for index in (1, 0):
        with torch.cuda.device(index):
            loaded = load_model(out, device="cuda")
            graph = to(sample_graph(loaded.info, Sizes(1, 30, 200)), torch.device("cuda", index))
            energies.append(loaded.potential(graph).energy)
            assert energies[-1].device.index == torch.cuda.current_device() == index
    torch.testing.assert_close(energies[0].cpu(), energies[1].cpu(), rtol=1e-12, atol=0)


@pytest.mark.xdist_group("memory")
def test_more_than_2_to_the_31_elements(tmp_path: Path) -> None:
    """[edges, 9, 64] of Allegro's features, once beyond what 32 bits count, against blocks far below it."""
    registry = load_registry()
    keys = {"num_layers": 2, "l_max": 2, "num_scalar_features": 8, "num_tensor_features": 64, "dtype": "float32"}
    source = make_case(registry.models["allegro"], keys).write(tmp_path / "a.nequip.zip")
    out = tmp_path / "a.nequip.pt2"
    loaded = load_model(source, device="cuda")
    compile_model(loaded, registry.targets["batch"], out, registry, say=print)
    fast = load_model(out, device="cuda")
    assert isinstance(fast.potential, CompiledPotential)
    atoms, edges = 47_001, 3_760_010
    assert edges * 9 * 64 > 2**31
    graph = to(sample_graph(fast.info, Sizes(1, atoms, edges)), CUDA)
    whole = fast.potential(graph)
    parts = Blocks(fast.potential, fast.info, block_edges=400_000)(graph)
    largest = float(parts.forces.abs().max())
    torch.testing.assert_close(whole.forces, parts.forces, rtol=0, atol=5e-5 * largest)
    torch.testing.assert_close(whole.virial, parts.virial, rtol=1e-4, atol=1e-4 * largest)
    torch.testing.assert_close(whole.atomic_energy, parts.atomic_energy, rtol=5e-5, atol=1e-4)
    del whole, parts, graph
    torch.cuda.empty_cache()  # others run beside
