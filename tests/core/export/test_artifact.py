"""Loading: which file, which weights, which plugin; and what is said when it can not be done."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nequip_core.errors import ArtifactError, ConfigError, InputError
from nequip_core.export.artifact import load_model
from nequip_core.export.package import (
    Members,
    Provenance,
    TrainingMembers,
    manifest,
    model_hash,
    read_package,
    write_package,
)
from nequip_core.models.base import EnergyModel
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential

Write = Callable[..., Path]
SMALL: dict[str, Any] = {"num_layers": 2, "l_max": 1, "num_features": 4, "num_bessels": 4, "radial_mlp": [4]}


@pytest.fixture
def checkpoint(make_model: Callable[..., EnergyModel], make_config: Callable[..., Any]) -> Write:
    """``(path, ema=True)``: a checkpoint whose averages are those of seed 0 and whose raw weights are of seed 1."""

    def write(path: Path, *, ema: bool = True) -> Path:
        block = dataclasses.asdict(make_config(**SMALL))
        average, trained = (dict(make_model(seed=seed, **SMALL).state_dict()) for seed in (0, 1))
        weights, raw = (average, trained) if ema else (trained, {})
        about = Provenance(model=block, data={}, config={}, versions={}, provider="nequip-core 0.1.0")
        state = TrainingMembers(config={}, state={}, state_tensors={}, raw=raw, optimizer={}, optimizer_tensors={})
        members = Members(
            manifest=manifest(about, kind="ema" if ema else "raw", weights=weights, raw=raw),
            model=block,
            weights=weights,
            data={"n": 3},
            metrics={"val_loss": 1.0},
            check={"structures": []},
            check_tensors={},
            training=state,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_package(path, members)
        return path

    return write


def change_model(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the model block of a package, and its hash with it."""
    members = read_package(path)
    change(members.model)
    members.manifest["model_hash"] = model_hash(members.model, members.weights)
    write_package(path, members)


def test_predictions_are_the_models(
    write_model: Write, tmp_path: Path, make_model: Any, random_structure: Any, rng: Any, to_graph: Any
) -> None:
    path = write_model(tmp_path / "a.nequip.zip", **SMALL)
    model = make_model(**SMALL)
    graph = to_graph(random_structure(rng), model)
    before = torch.get_rng_state()
    loaded = load_model(path)
    assert torch.equal(torch.get_rng_state(), before)
    expected = Potential(model).eval()(graph)
    # Not bit for bit: without gradients of the weights torch takes other kernels.
    assert torch.allclose(loaded.potential(graph).forces, expected.forces, rtol=1e-11, atol=1e-14)
    assert torch.allclose(loaded.potential(graph).energy, expected.energy, rtol=1e-14)
    assert not loaded.potential.training
    assert not any(p.requires_grad for p in loaded.potential.parameters())
    assert loaded.kind == "package"
    assert loaded.checkpoint is None
    assert loaded.weights == "raw"
    assert loaded.hash == model_hash(read_package(path).model, dict(model.state_dict()))
    assert loaded.info == model.info
    assert loaded.type_map.names == ("H", "O")
    assert loaded.config["cutoff"] == 3.5
    assert loaded.kernels["nequip.convolution/1"]["chosen"]


@pytest.mark.parametrize("ema", [True, False])
def test_weights_and_checkpoint_of_a_run(checkpoint: Write, tmp_path: Path, make_model: Any, ema: bool) -> None:
    checkpoint(tmp_path / "checkpoints" / "best.ckpt", ema=ema)
    checkpoint(tmp_path / "checkpoints" / "last.ckpt", ema=True)
    states = {"ema": make_model(seed=0, **SMALL).state_dict(), "raw": make_model(seed=1, **SMALL).state_dict()}
    for asked, taken in (("ema", "ema" if ema else "raw"), ("raw", "raw")):
        loaded = load_model(tmp_path, weights=asked)  # type: ignore[arg-type]
        assert loaded.weights == loaded.manifest["weights"] == taken
        found = loaded.potential.model.state_dict()
        assert all(torch.equal(found[name], t) for name, t in states[taken].items())
        assert loaded.path == tmp_path / "checkpoints" / "best.ckpt"
        assert loaded.checkpoint == "best"
        assert loaded.kind == "checkpoint"
        assert loaded.hash == model_hash(read_package(loaded.path).model, dict(found))
    assert load_model(tmp_path, checkpoint="last").path.name == "last.ckpt"


def test_raw_weights_of_a_package_of_averages(checkpoint: Write, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.nequip.zip")
    write_package(path, dataclasses.replace(read_package(path), training=None))
    assert load_model(path).weights == "ema"
    with pytest.raises(ArtifactError, match=r"averaged weights \(EMA\)"):
        load_model(path, weights="raw")


def test_a_missing_checkpoint_says_which_there_are(checkpoint: Write, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no run's folder"):
        load_model(tmp_path)
    checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(ArtifactError, match="There are: last; choose one with --checkpoint"):
        load_model(tmp_path)


def test_a_kernel_that_can_not_serve_the_weights(write_model: Write, tmp_path: Path) -> None:
    """Tables of radial networks: the architecture looks at the weights of the file."""
    path = write_model(tmp_path / "a.nequip.zip", **SMALL)
    named = {"nequip.tabulated_convolution": "reference"}
    assert load_model(path, kernels=named).kernels["nequip.tabulated_convolution/1"]["chosen"] == "reference"
    members = read_package(path)
    first = next(name for name in members.weights if name.endswith(".radial.weights.0"))
    members.weights[first].mul_(100)
    members.manifest["model_hash"] = model_hash(members.model, members.weights)
    write_package(path, members)
    with pytest.raises(ConfigError, match=r"'reference' can not compute .* too steep for a table .* Choose another"):
        load_model(path, kernels=named)


def test_an_unknown_model_names_the_distribution(write_model: Write, tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.nequip.zip", **SMALL)
    members = read_package(path)
    members.manifest["model_from"] = "nequip-orbits 1.2.0"
    write_package(path, members)
    change_model(path, lambda model: model.update(name="orbits"))
    with pytest.raises(ArtifactError, match=r"'orbits' model.*nequip-orbits 1\.2\.0.*Known here: .*nequip"):
        load_model(path)


def test_unknown_keys_name_the_distribution(write_model: Write, tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.nequip.zip", **SMALL)
    change_model(path, lambda model: model.update(warp_drive=True))
    with pytest.raises(ArtifactError, match="has warp_drive, unknown to the installed plugin"):
        load_model(path)


def test_weights_that_do_not_fit_are_named(write_model: Write, tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.nequip.zip", **SMALL)
    change_model(path, lambda model: model.update(num_features=5))
    with pytest.raises(ArtifactError, match="do not fit its model block"):
        load_model(path)


def test_a_block_that_makes_no_model_names_the_file(write_model: Write, tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.nequip.zip", **SMALL)
    change_model(path, lambda model: model.update(cutoff=-1.0))
    with pytest.raises(ArtifactError, match=r"a\.nequip\.zip: model\.cutoff must be"):
        load_model(path)


def test_an_unknown_kernel_is_refused(write_model: Write, tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.nequip.zip", **SMALL)
    assert load_model(path, kernels="reference").kernels["nequip.convolution/1"]["chosen"] == "reference"
    with pytest.raises(ArtifactError, match="magic"):
        load_model(path, kernels="magic")


@pytest.mark.parametrize("device", ["cuda:99", "coffee"])
def test_a_device_that_is_not_there(write_model: Write, tmp_path: Path, device: str) -> None:
    path = write_model(tmp_path / "a.nequip.zip", **SMALL)
    with pytest.raises(InputError, match=device):
        load_model(path, device=device)


def test_auto_is_a_device_that_is_there(write_model: Write, tmp_path: Path) -> None:
    loaded = load_model(write_model(tmp_path / "a.nequip.zip", **SMALL), device="auto", registry=load_registry())
    assert loaded.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_loading_imports_neither_lightning_nor_hydra_nor_what_a_config_names(checkpoint: Write, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "booby_trap.py").write_text("raise SystemExit('imported')\n")
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    names = {"training": {"optimizer": {"name": "booby_trap.A"}, "callbacks": [{"name": "os.system"}]}}
    contents["config.json"] = json.dumps(names).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    script = (
        "import sys, os\n"
        "os.system = None\n"
        "from nequip_core.export.artifact import load_model\n"
        f"load_model({str(path)!r}, weights='raw')\n"
        "print([m for m in ('lightning', 'hydra', 'omegaconf', 'booby_trap') if m in sys.modules])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert (ran.stdout, ran.returncode) == ("[]\n", 0), ran.stderr
