"""nequip package: what a run leaves becomes a package; each action does what its help says."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from ase.calculators.emt import EMT

from nequip_core.cli import running
from nequip_core.cli.main import main
from nequip_core.export.package import TRAINING, model_hash

CONFIG = {
    "defaults": ["base", {"model": "nequip"}, "_self_"],
    "data": {"path": "train.xyz", "split": {"train": 4, "val": 2}, "cache": "off"},
    "model": {"cutoff": 4.0, "num_layers": 2, "l_max": 1, "num_features": 4, "radial_mlp": [4]},
    "training": {"ema_decay": 0.9},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    "loggers": [],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with averaged weights."""
    folder = tmp_path_factory.mktemp("finished")
    rng, frames = np.random.default_rng(0), []
    for n in range(6):
        atoms = ase.build.bulk("Cu", cubic=True) if n % 2 else ase.build.molecule("N2")
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    ase.io.write(folder / "train.xyz", frames, format="extxyz")
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(running, "write_report", lambda path: path / "report.html")
        assert main(["train", "run.yaml"]) == 0
    return folder / "runs" / "run"


@pytest.fixture
def package(nequip, finished, tmp_path) -> Path:
    path = tmp_path / "a.nequip.zip"
    assert nequip("package", "build", finished, path).code == 0
    return path


def rewrite(path: Path, **members: bytes) -> Path:
    """Replace members of a zip: their names with __ in the place of the dot."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents |= {name.replace("__", "."): content for name, content in members.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def scaled(path: Path, name: str, *, rehash: bool) -> Path:
    """One weight matrix times 1.01, as somebody who knows the format would do it."""
    with zipfile.ZipFile(path) as archive:
        weights = safetensors.torch.load(archive.read("weights.safetensors"))
        about, model = json.loads(archive.read("manifest.json")), json.loads(archive.read("model.json"))
    weights[name] = 1.01 * weights[name]
    if rehash:
        about["model_hash"] = model_hash(model, weights)
    return rewrite(
        path, weights__safetensors=safetensors.torch.save(weights), manifest__json=json.dumps(about).encode()
    )


# ---------------------------------------------------------------------------------------------------------- build


def test_build_drops_the_training_state(nequip, finished, tmp_path):
    out = tmp_path / "a.nequip.zip"
    code, printed, said = nequip("package", "build", finished, out, "--licence", "MIT", "--citation", "10.1000/1")
    assert code == 0, said
    assert printed.strip() == str(out)
    assert "best.ckpt (ema weights)" in said
    with zipfile.ZipFile(out) as archive:
        assert not set(archive.namelist()) & set(TRAINING.values())
        about = json.loads(archive.read("manifest.json"))
    assert about["licence"] == "MIT"
    assert about["citations"][-1] == "10.1000/1"
    assert out.stat().st_size < (finished / "checkpoints" / "best.ckpt").stat().st_size
    facts = [json.loads(nequip("info", path, "--json").out) for path in (finished, out)]
    same = ("hash", "types", "cutoff_A", "atomic_energies_eV", "training_data", "metrics", "weights", "model")
    assert {key: facts[0][key] for key in same} == {key: facts[1][key] for key in same}
    assert facts[1]["kind"] == "package"
    data = finished.parents[1] / "train.xyz"
    errors = []
    for model in (finished, out):
        assert nequip("evaluate", model, data, "--json", tmp_path / "errors.json").code == 0
        errors.append(json.loads((tmp_path / "errors.json").read_text())["forces"])
    assert errors[0] == errors[1]


def test_build_of_raw_weights(nequip, finished, tmp_path):
    out = tmp_path / "raw.nequip.zip"
    checkpoint = finished / "checkpoints" / "last.ckpt"
    code, _, said = nequip("package", "build", checkpoint, out, "--weights", "raw")
    assert code == 0, said
    assert "left out: the metrics" in said
    assert nequip("package", "verify", out).code == 0
    raw = json.loads(nequip("info", checkpoint, "--weights", "raw", "--json").out)
    found = json.loads(nequip("info", out, "--json").out)
    assert (found["hash"], found["weights"], found["metrics"]) == (raw["hash"], "raw", {})


def test_build_makes_check_structures_where_there_are_none(nequip, tmp_path, write_model):
    old = write_model(tmp_path / "old.nequip.zip")
    code, _, said = nequip("package", "verify", old)
    assert code == 3
    assert "holds no check structures" in said
    assert nequip("package", "build", old, tmp_path / "new.nequip.zip").code == 0
    assert nequip("package", "verify", tmp_path / "new.nequip.zip").code == 0


def test_build_refuses_weights_that_do_not_give_their_predictions(nequip, finished, tmp_path):
    bad = scaled(Path(shutil.copy(finished / "checkpoints" / "best.ckpt", tmp_path)), "scale", rehash=True)
    code, _, said = nequip("package", "build", bad, tmp_path / "a.nequip.zip")
    assert code == 3
    assert "do not give the predictions" in said
    assert not (tmp_path / "a.nequip.zip").exists()


# ------------------------------------------------------------------------------------------------------ info, list


def test_info_is_that_of_nequip_info(nequip, package):
    assert nequip("package", "info", package, "--json").out == nequip("info", package, "--json").out
    assert nequip("package", "info", package).out == nequip("info", package).out


def test_list_of_a_file(nequip, package):
    members = json.loads(nequip("package", "list", package, "--json").out)["members"]
    with zipfile.ZipFile(package) as archive:
        assert members == {one.filename: one.file_size for one in archive.infolist()}
    code, out, _ = nequip("package", "list", package)
    assert code == 0
    assert f"{sum(members.values()):,d}  bytes" in out
    for name in members:
        assert name in out


def test_list_of_a_folder(nequip, package, tmp_path):
    shutil.copy(package, tmp_path / "b.nequip.zip")
    found = json.loads(nequip("package", "list", tmp_path, "--json").out)["packages"]
    assert [one["file"] for one in found] == ["a.nequip.zip", "b.nequip.zip"]
    assert found[0]["types"] == ["N", "Cu"]
    (tmp_path / "c.nequip.zip").write_bytes(b"")
    code, out, said = nequip("package", "list", tmp_path)
    assert code == 2
    assert "c.nequip.zip is empty" in said
    assert "b.nequip.zip  nequip, 4.0 Å, float32, N, Cu; licence not stated" in out
    (tmp_path / "none").mkdir()
    assert "holds no packages" in nequip("package", "list", tmp_path / "none").err


# ----------------------------------------------------------------------------------------------------------- diff


def test_diff(nequip, finished, package, tmp_path):
    code, out, _ = nequip("package", "diff", package, package)
    assert (code, out) == (0, "the same model\n")
    code, out, _ = nequip("package", "diff", finished, package)
    assert (code, out) == (0, "the same model\n")
    other = tmp_path / "other.nequip.zip"
    change = ["--atomic-energies", "Cu=-1.5", "--licence", "MIT"]
    assert nequip("package", "modify", package, other, *change).code == 0
    code, out, _ = nequip("package", "diff", package, other)
    assert code == 3
    for line in ("different models", "model      atomic_energies.Cu: ", "-> -1.5", 'licence: null -> "MIT"', "shift: "):
        assert line in out
    code, out, _ = nequip("package", "diff", package, other, "--json")
    assert code == 3
    found = json.loads(out)
    assert list(found["weights"]) == ["shift"]
    assert found["weights"]["shift"]["values"][1][1] == -1.5
    assert not found["same_model"]


# --------------------------------------------------------------------------------------------------------- modify


def test_modify(nequip, package, tmp_path):
    out = tmp_path / "b.nequip.zip"
    before = json.loads(nequip("info", package, "--json").out)
    code, printed, said = nequip(
        "package", "modify", package, out, "--licence", "CC0", "--rename", "Cu=Cu_bulk", "--energy-scale", "N=2.5"
    )
    assert code == 0, said
    assert printed.strip() == str(out)
    assert 'types: ["N", "Cu"] -> ["N", "Cu_bulk"]' in said
    after = json.loads(nequip("info", out, "--json").out)
    assert after["types"] == ["N", "Cu_bulk"]
    assert after["elements"] == ["N", "Cu"]
    assert after["energy_scale_eV"]["N"] == 2.5
    with zipfile.ZipFile(out) as archive:
        (change,) = json.loads(archive.read("manifest.json"))["modified"]
    assert change["from"] == before["hash"] != after["hash"]
    assert change["changes"]["licence"] == [None, "CC0"]
    assert set(change["changes"]) == {"licence", "types", "energy_scale"}
    assert nequip("package", "verify", out).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to change"),
        (["--atomic-energies", "Xx=1"], "has no type Xx. Its types are N, Cu"),
        (["--atomic-energies", "N=much"], "no list of NAME=NUMBER"),
        (["--rename", "N=Cu"], "would be Cu, Cu. Expected each once"),
        (["--rename", "N=O"], "O (element N) would have the name of another element"),
        (["--dtype", "float16"], "invalid choice"),
    ],
)
def test_modifications_that_make_no_model(nequip, package, tmp_path, options, message):
    code, out, said = nequip("package", "modify", package, tmp_path / "b.nequip.zip", *options)
    assert (code, out) == (2, "")
    assert message in said
    assert not (tmp_path / "b.nequip.zip").exists()


def test_modify_takes_packages_that_are_what_they_say(nequip, finished, package, tmp_path):
    out = tmp_path / "b.nequip.zip"
    for source in (finished, finished / "checkpoints" / "best.ckpt"):
        assert "package build" in nequip("package", "modify", source, out, "--licence", "MIT").err
    assert nequip("package", "modify", scaled(package, "scale", rehash=True), out, "--licence", "MIT").code == 3
    assert not out.exists()


# --------------------------------------------------------------------------------------------------------- verify


def test_verify(nequip, package, finished):
    code, out, said = nequip("package", "verify", package)
    assert code == 0, said
    assert out.count("ok ") == 5  # energy and forces of two structures, stress of one
    report = json.loads(nequip("package", "verify", package, "--json").out)
    assert report["passed"]
    assert all(one["difference"] <= one["allowed"] for one in report["deviations"])
    assert nequip("package", "verify", finished).code == 0
    assert nequip("package", "verify", finished / "checkpoints" / "last.ckpt").code == 0


def test_an_edited_weight_fails(nequip, package, tmp_path):
    name = "architecture.layers.1.linear_in.weights.0e"
    plain, forged = (Path(shutil.copy(package, tmp_path / f"{n}.nequip.zip")) for n in range(2))
    code, _, said = nequip("package", "verify", scaled(plain, name, rehash=False))
    assert code == 3
    assert "was changed after it was written" in said
    assert nequip("info", plain).code == 2
    code, out, said = nequip("package", "verify", scaled(forged, name, rehash=True))
    assert code == 3
    assert "forces of train.xyz" in said
    assert f"NOT   norm of {name}" in out
    assert "Traceback" not in said
    assert json.loads(nequip("package", "verify", forged, "--json").out)["passed"] is False


# ------------------------------------------------------------------------------------------------------ bad input


ACTIONS = [
    ["build", "{}", "OUT.nequip.zip"],
    ["info", "{}"],
    ["list", "{}"],
    ["diff", "{}", "{}"],
    ["modify", "{}", "OUT.nequip.zip", "--licence", "MIT"],
    ["verify", "{}"],
]


def test_bad_models(nequip, tmp_path, bad_model, monkeypatch):
    path, words = bad_model
    monkeypatch.chdir(tmp_path)
    for action in ACTIONS if path.is_file() or not path.exists() else ACTIONS[:2]:
        code, out, said = nequip("package", *(part.format(path) for part in action))
        assert (code, out) == (2, ""), action
        assert words in said
        assert "Traceback" not in said
    assert not Path("OUT.nequip.zip").exists()


def test_schema_99(nequip, package):
    with zipfile.ZipFile(package) as archive:
        about = json.loads(archive.read("manifest.json"))
    rewrite(package, manifest__json=json.dumps(about | {"schema": 99}).encode())
    code, _, said = nequip("package", "verify", package)
    assert code == 2
    assert "schema 99" in said
    assert "up to 1" in said


@pytest.mark.parametrize("action", [["build"], ["modify", "--licence", "MIT"]])
def test_names_of_the_output(nequip, package, tmp_path, action):
    name, *options = action
    assert "Expected OUT.nequip.zip" in nequip("package", name, package, tmp_path / "b.ckpt", *options).err
    assert "source itself" in nequip("package", name, package, package, *options).err
    assert nequip("package", name, package, tmp_path / "no" / "b.nequip.zip", *options).code == 2


def test_a_full_disk(nequip, finished, package, tmp_path):
    before, limits = package.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        code, _, said = nequip("package", "build", finished, package)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert "Can not write" in said
    assert package.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [package.name]


def test_a_model_whose_plugin_is_not_installed(nequip, package):
    with zipfile.ZipFile(package) as archive:
        about, model = json.loads(archive.read("manifest.json")), json.loads(archive.read("model.json"))
        weights = safetensors.torch.load(archive.read("weights.safetensors"))
    model["name"] = "unheard_of"
    about |= {"model_from": "nequip-unheard 3.0", "model_hash": model_hash(model, weights)}
    rewrite(package, model__json=json.dumps(model).encode(), manifest__json=json.dumps(about).encode())
    for action in ("info", "verify"):
        code, _, said = nequip("package", action, package)
        assert code == 2
        assert "'unheard_of' model, which no installed plugin offers" in said
        assert "pip install --find-links dist nequip-unheard==3.0" in said


def test_no_code_that_a_file_names_is_run(nequip, finished, tmp_path, monkeypatch):
    """A module that a run could have named, planted where Python finds it; and no pickle is read at all."""
    mark = tmp_path / "ran"
    (tmp_path / "planted.py").write_text(f"open({str(mark)!r}, 'w')\nclass Adam: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint = Path(shutil.copy(finished / "checkpoints" / "best.ckpt", tmp_path / "evil.ckpt"))
    with zipfile.ZipFile(checkpoint) as archive:
        config, state = json.loads(archive.read("config.json")), json.loads(archive.read("state.json"))
        about = json.loads(archive.read("manifest.json"))
    config["training"]["optimizer"]["name"] = config["model"]["name"] = "planted.Adam"
    state["callbacks"] = {"planted:Adam": {"$tensor": "planted"}}
    about |= {"model_from": "planted 1", "units": {"length": "planted:Adam"}, "converted_from": "planted:Adam"}
    contents = {"config__json": config, "state__json": state, "manifest__json": about}
    rewrite(checkpoint, **{name: json.dumps(content).encode() for name, content in contents.items()})

    def trap(*arguments: Any, **options: Any) -> Any:
        pytest.fail("a pickle was read")

    monkeypatch.setattr(torch, "load", trap)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", trap)
    out = tmp_path / "a.nequip.zip"
    for argv in (
        ["build", checkpoint, out],
        ["verify", checkpoint],
        ["info", out],
        ["list", out],
        ["diff", checkpoint, out],
    ):
        assert nequip("package", *argv).code in (0, 3)
    assert nequip("package", "verify", out).code == 0
    assert not mark.exists()
    assert "planted" not in sys.modules


@pytest.mark.parametrize("action", ["build", "info", "list", "diff", "modify", "verify"])
def test_help(nequip, action):
    code, out, _ = nequip("package", action, "--help")
    assert code == 0
    assert "usage: nequip package" in out


def test_no_action(nequip):
    assert nequip("package").code == 2
    code, _, said = nequip("package", "sell")
    assert code == 2
    assert "sell" in said
