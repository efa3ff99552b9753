"""Compiled files: equal to eager at any size, whole or not there, and refused where they can not run."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import nequip_core.export.aoti as aoti
from nequip_core.cli.main import main
from nequip_core.errors import ArtifactError, CheckError, InputError
from nequip_core.export.artifact import LoadedModel, load_model
from nequip_core.export.compiled import KEY, check_machine, read_metadata
from nequip_core.graph import Graph
from nequip_core.moving import MovingPotential
from nequip_core.narrow import Narrowing
from nequip_core.neighbors import DEVICE
from nequip_core.plugins.manager import load_registry
from nequip_core.testing.recordings import Repeating
from nequip_core.tracing import Sizes, TraceError, sample_graph

Compiled = Callable[[str], tuple[Path, Path]]
MODELS = ("nequip", "allegro")


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_eager_at_any_size(compiled: Compiled, name: str) -> None:
    eager, fast = (load_model(path) for path in compiled(name))
    rng = np.random.default_rng(0)
    pairs = [(1, 0), (1, 1), (2, 0), (2, 1)] + [
        (int(n), int(n * rng.integers(0, 40))) for n in rng.integers(1, 400, 196)
    ]
    largest: dict[str, float] = {}
    difference: dict[str, float] = {}
    for seed, (atoms, edges) in enumerate(pairs):
        graph = sample_graph(eager.info, Sizes(int(rng.integers(1, min(atoms, 9) + 1)), atoms, edges), seed)
        ours, theirs = (model.potential(graph, atomic_virial=True)._asdict() for model in (fast, eager))
        for field, value in theirs.items():
            assert ours[field].shape == value.shape
            assert ours[field].dtype == torch.float64
            difference[field] = max(difference.get(field, 0.0), float((ours[field] - value).abs().max()))
            largest[field] = max(largest.get(field, 0.0), float(value.abs().max()))
    assert all(largest.values())
    assert {field: value for field, value in difference.items() if value > 1e-10 * largest[field]} == {}


def test_no_atoms_at_all(compiled: Compiled) -> None:
    fast = load_model(compiled("nequip")[1])
    one = sample_graph(fast.info, Sizes(1, 1, 0))
    empty = Graph(
        *(tensor[..., :0] if name == "edge_index" else tensor[:0] for name, tensor in one._asdict().items())
    )._replace(structure_ptr=torch.tensor([0, 0]), row_ptr=torch.tensor([0]), neighbor_ptr=torch.tensor([0]))
    found = fast.potential(empty)
    assert found.forces.shape == (0, 3)
    assert found.energy.tolist() == [0.0]
    assert torch.equal(found.virial, torch.zeros(1, 3, 3, dtype=torch.float64))


def test_ghosts_do_not_count(compiled: Compiled) -> None:
    eager, fast = (load_model(path) for path in compiled("nequip"))
    graph = sample_graph(eager.info, Sizes(1, 30, 400))
    graph = graph._replace(local=torch.arange(30) < 20)
    ours, theirs = (model.potential(graph) for model in (fast, eager))
    torch.testing.assert_close(ours.forces, theirs.forces, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.energy, theirs.energy, rtol=0, atol=1e-10)
    assert not torch.equal(ours.energy, fast.potential(graph._replace(local=torch.ones(30, dtype=torch.bool))).energy)


@pytest.mark.parametrize("name", MODELS)
def test_recorded_steps_have_edges_without_use(compiled: Compiled, name: str) -> None:
    """They, and their atoms, change nothing in a file's sums."""
    loaded = load_model(compiled(name)[1])
    narrowing = Narrowing(np.array(loaded.info.pair_cutoffs))
    both = SimpleNamespace(
        potential=loaded.potential,
        info=loaded.info,
        device=torch.device("cpu"),
        narrow=lambda tensors: list(narrowing(*tensors)),
    )
    record = Repeating()
    entry = load_registry().neighbor_lists[DEVICE]
    recorded, usual = (MovingPotential(both, entry, skin=0.8, record=how) for how in (record, None))  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    positions, cell = rng.uniform(0, 9, (60, 3)), np.diag([9.0, 9.5, 10.0])
    types, pbc = rng.integers(0, 2, 60), np.full(3, True)
    for _ in range(12):
        positions += rng.normal(scale=0.03, size=positions.shape)
        ours, theirs = (one(positions, types, cell, pbc, atomic_virial=True)._asdict() for one in (recorded, usual))
        for field, value in theirs.items():
            torch.testing.assert_close(ours[field], value, rtol=1e-11, atol=1e-11 * float(value.abs().max()))
    assert record.repeated > 6


def test_inputs_that_are_not_contiguous(compiled: Compiled) -> None:
    fast = load_model(compiled("nequip")[1])
    graph = sample_graph(fast.info, Sizes(2, 30, 400))
    strided = graph._replace(
        positions=graph.positions.T.contiguous().T, edge_index=graph.edge_index.T.contiguous().T, local=graph.local[::1]
    )
    assert not strided.positions.is_contiguous()
    assert torch.equal(fast.potential(strided).forces, fast.potential(graph).forces)


def test_what_the_file_says(compiled: Compiled, capsys: pytest.CaptureFixture[str]) -> None:
    package, out = compiled("allegro")
    metadata, source = read_metadata(out), load_model(package)
    assert metadata.info == source.info
    assert (metadata.model_hash, metadata.target, metadata.device) == (source.hash, "ase", "cpu")
    assert [one["shape"] for one in metadata.inputs[:3]] == [["atoms", 3], ["atoms"], [2, "edges"]]
    assert metadata.outputs[2] == {"name": "virial", "dtype": "float64", "shape": ["structures", 3, 3]}
    capsys.readouterr()  # compiling says what it does
    assert main(["info", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert main(["info", str(package), "--json"]) == 0
    of_package = json.loads(capsys.readouterr().out)
    assert report["kind"] == "compiled"
    # Other kernels may be installed; none of them serves a CPU, and each says so.
    without = report["kernels"].pop("allegro.chain/1", {"chosen": "none"})
    assert without["chosen"] == "none"
    assert report["kernels"].keys() == {"allegro.contract/1", "scalar_mlp/1"}
    assert {about["chosen"] for about in report["kernels"].values()} == {"reference"}
    same = ("hash", "types", "cutoff_A", "pair_cutoffs_A", "n_parameters", "atomic_energies_eV", "model", "licence")
    assert {name: report[name] for name in same} == {name: of_package[name] for name in same}


def test_libraries_do_not_ask_for_an_executable_stack(compiled: Compiled) -> None:
    with zipfile.ZipFile(compiled("nequip")[1]) as package:
        libraries = [package.read(name) for name in package.namelist() if name.endswith(".so")]
    assert libraries
    flags = [line for content in libraries for line in stack_flags(content)]
    assert flags
    assert all(not flag & 1 for flag in flags)


def stack_flags(content: bytes) -> list[int]:
    table, size, count = (int.from_bytes(content[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    headers = [content[place : place + 8] for place in range(table, table + size * count, size)]
    words = [(int.from_bytes(one[:4], "little"), int.from_bytes(one[4:], "little")) for one in headers]
    return [flags for kind, flags in words if kind == 0x6474E551]


FORGED = {
    "torch": ("1.2.3", "torch 1.2.3"),
    "device": ("cuda", "device cuda"),
    "isa": ("x86_64 AVX99", "the instruction set x86_64 AVX99"),
    "schema": (99, "schema 99"),
    "kernel_libraries": ({"cuequivariance-ops": "7.7"}, "the kernel library cuequivariance-ops 7.7"),
}


def forge(source: Path, out: Path, **changes: Any) -> Path:
    """A copy whose metadata say something else."""
    with zipfile.ZipFile(source) as package, zipfile.ZipFile(out, "w") as copy:
        for member in package.infolist():
            content = package.read(member)
            if member.filename.endswith("_metadata.json") and KEY in (about := json.loads(content)):
                about[KEY] = json.dumps(json.loads(about[KEY]) | changes)
                content = json.dumps(about).encode()
            copy.writestr(member.filename, content)
    return out


@pytest.mark.parametrize("field", FORGED)
def test_forged_files_are_refused_before_they_are_loaded(
    compiled: Compiled, tmp_path: Path, field: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    value, words = FORGED[field]
    forged = forge(compiled("nequip")[1], tmp_path / "forged.nequip.pt2", **{field: value})
    monkeypatch.delattr(torch._C._aoti, "AOTIModelPackageLoader")
    assert main(["evaluate", str(forged), "data.xyz"]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message


def test_a_device_of_another_capability(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = replace(read_metadata(compiled("nequip")[1]), device="cuda", isa=None, capability="8.0", cuda="13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ArtifactError, match=r"capability 8\.0, but here is 9\.0"):
        check_machine("x.nequip.pt2", metadata, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    check_machine("x.nequip.pt2", metadata, torch.device("cuda"))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(ArtifactError, match=r"CUDA 13\.0, but here is 12\.8"):
        check_machine("x.nequip.pt2", metadata, torch.device("cuda"))


@pytest.mark.parametrize("what", ["missing", "text", "truncated", "other zip", "published"])
def test_files_that_are_not_ours(
    compiled: Compiled, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.nequip.pt2"
    whole = compiled("nequip")[1].read_bytes()
    if what == "text":
        path.write_text("no zip")
    elif what == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif what in ("other zip", "published"):
        with zipfile.ZipFile(path, "w") as archive:
            text = {"nequip_aoti_inputs": "pos"} if what == "published" else {"a": "b"}
            archive.writestr("model/x.wrapper_metadata.json", json.dumps(text))
    assert main(["info", str(path)]) == 2
    message = capsys.readouterr().err
    assert str(path) in message
    expected = {
        "missing": "does not exist",
        "other zip": "not one of our compiled models",
        "published": "compiled by the published nequip",
    }
    assert expected.get(what, "truncated, damaged") in message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kernels": "reference"}, "its kernels can not be reference"),
        ({"dtype": "float32"}, "its dtype can not be float32"),
    ],
)
def test_what_can_not_be_chosen_any_more(compiled: Compiled, given: dict[str, str], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        load_model(compiled("nequip")[1], **given)


def small(compiled: Compiled) -> LoadedModel:
    return load_model(compiled("nequip")[0])


def test_a_deviation_leaves_no_file(compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = load_registry()
    _, made = compiled("nequip")
    monkeypatch.setattr(aoti, "export_program", lambda *arguments: None)
    monkeypatch.setattr(
        torch._inductor,
        "aoti_compile_and_package",
        lambda program, package_path, inductor_configs: Path(package_path).write_bytes(made.read_bytes()),
    )
    said: list[str] = []
    out = tmp_path / "a.nequip.pt2"
    report = aoti.compile_model(small(compiled), registry.targets["ase"], out, registry, say=said.append)
    assert out.exists()
    assert max(report.deviation.values()) < 1e-12
    assert "allowed: 1e-10" in said[-1]
    out.unlink()

    wrong = small(compiled)
    with torch.no_grad():
        next(weight for weight in wrong.potential.parameters() if weight.dim() == 2).mul_(1.01)  # type: ignore[union-attr]
    with pytest.raises(CheckError, match="The compiled model is not the eager one"):
        aoti.compile_model(wrong, registry.targets["ase"], out, registry, say=said.append)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_reads_a_value(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    potential = small(compiled).potential
    forward = type(potential.model).forward  # type: ignore[union-attr]

    def reads(self: Any, graph: Graph, vectors: torch.Tensor) -> torch.Tensor:
        return forward(self, graph, vectors) * vectors.sum().item()

    monkeypatch.setattr(type(potential.model), "forward", reads)  # type: ignore[union-attr]
    with pytest.raises(TraceError, match=r"test_aoti\.py.*vectors\.sum\(\)\.item\(\)"):
        aoti.export_program(potential, ("forces",))  # type: ignore[arg-type]


def test_what_can_not_be_compiled(compiled: Compiled, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package, out = compiled("nequip")
    target = str(tmp_path / "b.nequip.pt2")
    for arguments, words in (
        ([str(package), str(tmp_path / "b.pth")], "names of compiled models end in .nequip.pt2"),
        ([str(package), str(tmp_path / "no" / "b.nequip.pt2")], "there is no folder"),
        ([str(package), target, "--target", "gromacs"], "gromacs"),
        ([str(package), target, "--device", "cuda:7"], "There is no device"),
        ([str(package), target, "--kernels", "nothing"], "'nothing' is no kernel"),
        ([str(out), target], "is compiled already"),
    ):
        assert main(["compile", *arguments]) == 2
        message = capsys.readouterr().err
        assert words in message
        assert "Traceback" not in message
    registry = load_registry()
    odd = replace(registry.targets["ase"], outputs=("charges",))
    with pytest.raises(InputError, match="charges"):
        aoti.compile_model(load_model(package), odd, target, registry, say=print)
    assert list(tmp_path.iterdir()) == []


ALONE = """
import sys, time
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"lightning", "hydra", "omegaconf", "e3nn"} or name == "nequip_allegro.model":
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Blocker())
import torch
start = time.perf_counter()
from nequip_core.export.artifact import load_model
loaded = load_model(sys.argv[1])
from nequip_core.engines.ase import NequIPCalculator
from ase import Atoms
atoms = Atoms("OH2", [[0, 0, 0], [0.9, 0.1, 0], [-0.2, 0.9, 0]])
atoms.calc = NequIPCalculator(loaded)
print(atoms.get_potential_energy(), time.perf_counter() - start)
"""


def test_runs_without_what_it_was_made_with(compiled: Compiled) -> None:
    package, out = compiled("allegro")
    ended = subprocess.run([sys.executable, "-c", ALONE, str(out)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    from ase import Atoms

    from nequip_core.engines.ase import NequIPCalculator

    atoms = Atoms("OH2", [[0, 0, 0], [0.9, 0.1, 0], [-0.2, 0.9, 0]])
    atoms.calc = NequIPCalculator.from_file(package, device="cpu")
    assert float(ended.stdout.split()[0]) == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


def test_metadata_survive(compiled: Compiled) -> None:
    metadata = read_metadata(compiled("nequip")[1])
    again = json.loads(metadata.to_json())
    assert {name: again[name] for name in asdict(metadata)} == asdict(metadata)
