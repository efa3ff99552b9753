"""The container: what is written is read again, and what is no container is refused in words."""

from __future__ import annotations

import json
import pickle
import resource
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nequip_core.errors import ArtifactError, InputError
from nequip_core.export.package import (
    PACKAGE,
    SCHEMA,
    TRAINING,
    CheckCase,
    Members,
    Provenance,
    TrainingMembers,
    is_checkpoint,
    manifest,
    model_hash,
    pack_check,
    read_package,
    unpack_check,
    write_package,
)
from nequip_core.structure import Structure

MODEL = {"name": "nequip", "cutoff": 5.0, "types": ["H"], "atomic_energies": {"H": -13.587222780835477}}


def members(*, training: bool = False, ema: bool = False) -> Members:
    weights = {"w": torch.randn(3, 2), "scale": torch.randn(2, dtype=torch.float64), "empty": torch.zeros(0)}
    raw = {name: t + 1 for name, t in weights.items()} if ema else {}
    provenance = Provenance(model=MODEL, data={"train": 5}, config={"seed": 1}, versions={"a": "1"}, provider="a 1")
    state = TrainingMembers(
        config={"seed": 1},
        state={"epoch": 3},
        state_tensors={"x": torch.arange(3)},
        raw=raw,
        optimizer={"states": []},
        optimizer_tensors={},
    )
    return Members(
        manifest=manifest(provenance, kind="ema" if ema else "raw", weights=weights, raw=raw),
        model=MODEL,
        weights=weights,
        data={"train": 5},
        metrics={"val_loss": 0.1 + 0.2},
        check={"structures": []},
        check_tensors={},
        training=state if training else None,
    )


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change the members of a zip."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def edit(path: Path, name: str, **values: Any) -> None:
    """Change keys of a JSON member."""

    def change(contents: dict[str, bytes]) -> None:
        contents[name] = json.dumps({**json.loads(contents[name]), **values}).encode()

    rewrite(path, change)


@pytest.mark.parametrize("ema", [True, False])
def test_what_is_written_is_read(tmp_path: Path, ema: bool) -> None:
    path = tmp_path / "a.ckpt"
    written = members(training=True, ema=ema)
    write_package(path, written)
    found = read_package(path, training=True)
    assert found.manifest == written.manifest
    assert found.model == MODEL
    assert found.metrics == written.metrics
    assert found.weights.keys() == written.weights.keys()
    assert all(
        torch.equal(found.weights[k], t) and found.weights[k].dtype == t.dtype for k, t in written.weights.items()
    )
    assert found.training is not None
    assert found.training.state == {"epoch": 3}
    assert bool(found.training.raw) is ema
    assert is_checkpoint(path)


def test_members_and_their_names(tmp_path: Path) -> None:
    path = tmp_path / "a.nequip.zip"
    write_package(path, members())
    with zipfile.ZipFile(path) as archive:
        assert set(archive.namelist()) == set(PACKAGE.values())
        assert {one.compress_type for one in archive.infolist()} == {zipfile.ZIP_STORED}
        about = json.loads(archive.read("manifest.json"))
    assert about["format"] == "nequip-core/package"
    assert about["schema"] == 1
    assert about["units"]["energy"] == "eV"
    write_package(path, members(training=True))
    with zipfile.ZipFile(path) as archive:
        assert set(archive.namelist()) == {*PACKAGE.values(), *TRAINING.values()}


def test_equal_contents_make_equal_files(tmp_path: Path) -> None:
    one = members()
    write_package(tmp_path / "a", one)
    write_package(tmp_path / "b", one)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    one = members()
    shared = {"a": base, "b": base.T, "c": base[0]}
    about = one.manifest | {"model_hash": model_hash(MODEL, shared)}
    write_package(tmp_path / "a", replace(one, manifest=about, weights=shared))
    assert torch.equal(read_package(tmp_path / "a").weights["b"], base.T)


def test_the_hash_sees_every_number_name_and_shape() -> None:
    weights = {"a": torch.zeros(2), "b": torch.zeros(2)}
    other = [
        (MODEL | {"cutoff": 5.1}, weights),
        (MODEL, weights | {"a": torch.tensor([0.0, 1e-38])}),
        (MODEL, weights | {"a": torch.zeros(2, 1)}),
        (MODEL, weights | {"a": torch.zeros(2, dtype=torch.int32)}),
        (MODEL, {"a": torch.zeros(2), "c": torch.zeros(2)}),
    ]
    assert len({model_hash(*one) for one in [(MODEL, weights), *other]}) == 6
    assert model_hash(MODEL, dict(reversed(weights.items()))) == model_hash(MODEL, weights)


def test_check_structures_round_trip(tmp_path: Path) -> None:
    made = [
        Structure(
            positions=np.random.default_rng(0).normal(size=(2, 3)),
            numbers=np.array([1, 8]),
            cell=np.eye(3) * 5 * periodic,
            pbc=np.full(3, bool(periodic)),
            type_names=("Hw", "Ow") if periodic else None,
            source="a.xyz:3",
        )
        for periodic in (1, 0)
    ]
    cases = [
        CheckCase(one, torch.tensor(-1.5), torch.randn(2, 3), torch.randn(3, 3) if one.pbc.all() else None)
        for one in made
    ]
    check, tensors = pack_check(cases, {"a": torch.tensor([3.0, 4.0])})
    assert tensors["norm.a"] == 5.0
    write_package(tmp_path / "a", replace(members(), check=check, check_tensors=tensors))
    found = unpack_check(read_package(tmp_path / "a"))
    for case, (structure, energy, forces, stress) in zip(cases, found, strict=True):
        assert np.array_equal(structure.positions, case.structure.positions)
        assert np.array_equal(structure.pbc, case.structure.pbc)
        assert structure.type_names == case.structure.type_names
        assert structure.source == "a.xyz:3"
        assert energy == case.energy
        assert forces.dtype == torch.float64
        assert torch.equal(forces, case.forces.double())
        assert (stress is None) is (case.stress is None)


def test_a_newer_schema_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_package(path, members())
    edit(path, "manifest.json", schema=SCHEMA + 6, versions={"nequip-core": "9.1"})
    with pytest.raises(ArtifactError, match=r"schema 7; .* up to 1.*nequip-core 9\.1"):
        read_package(path)


@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, fraction: float) -> None:
    path = tmp_path / "a.ckpt"
    write_package(path, members(training=True))
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ArtifactError, match=r"a\.ckpt is truncated or damaged"):
        read_package(path)


def test_a_damaged_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    one = members()
    write_package(path, one)
    content = bytearray(path.read_bytes())
    place = content.find(one.weights["scale"].numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="truncated or damaged"):
        read_package(path)


def test_other_contents_than_the_hash_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_package(path, members())
    edit(path, "model.json", cutoff=6.0)
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        read_package(path)


def test_raw_weights_have_a_hash_too(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_package(path, members(training=True, ema=True))
    edit(path, "manifest.json", raw_model_hash="0")
    read_package(path)
    with pytest.raises(ArtifactError, match="raw_model_hash"):
        read_package(path, training=True)


@pytest.mark.parametrize("name", sorted({*PACKAGE.values()} - {"manifest.json"}))
def test_a_missing_member_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.ckpt"
    write_package(path, members())
    rewrite(path, lambda contents: contents.pop(name) and None)
    with pytest.raises(ArtifactError, match=f"lacks {name}"):
        read_package(path)


def test_a_member_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_package(path, members())
    rewrite(path, lambda contents: contents.update({"data.json": b"{"}))
    with pytest.raises(ArtifactError, match=r"data\.json can not be read"):
        read_package(path)


FOREIGN = [
    (["p1.nequip/.data/0.storage", "p1.nequip/model/eager_model.pkl"], "published nequip package.*nequip convert"),
    (["archive/data.pkl", "archive/data/0", "archive/version"], "torch pickle.*published.*nequip convert"),
    (["data/aotinductor/model/x.so", "archive_format"], "compiled model"),
    (["readme.txt"], r"without manifest\.json"),
]


@pytest.mark.parametrize(("names", "message"), FOREIGN)
def test_foreign_zips_are_named(tmp_path: Path, names: list[str], message: str) -> None:
    path = tmp_path / "a.nequip.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    with pytest.raises(ArtifactError, match=message):
        read_package(path)


def test_a_real_torch_checkpoint_is_named_and_not_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return pytest.fail, ("unpickled",)

    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": Trap()}, path)
    with pytest.raises(ArtifactError, match="torch pickle"):
        read_package(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ArtifactError, match="no checkpoint or package"):
        read_package(path)


def test_another_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", '["a list"]')
    with pytest.raises(ArtifactError, match="format None, expected 'nequip-core/package'"):
        read_package(path)


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no file"):
        read_package(tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").touch()
    with pytest.raises(ArtifactError, match="is empty"):
        read_package(tmp_path / "a.ckpt")


def test_a_package_has_no_training_state(tmp_path: Path) -> None:
    write_package(tmp_path / "a", members())
    with pytest.raises(ArtifactError, match="holds no training state"):
        read_package(tmp_path / "a", training=True)
    assert not is_checkpoint(tmp_path / "a")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_package(path, members())
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(InputError, match=r"Can not write .*a\.ckpt"):
            write_package(path, members())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no_such_folder"):
        write_package(tmp_path / "no_such_folder" / "a.ckpt", members())
