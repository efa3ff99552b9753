"""Files of every schema are read, and are the model that they were."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nequip_core.errors import ArtifactError
from nequip_core.export.artifact import load_model
from nequip_core.export.package import SCHEMA, ChangedError, read_package
from nequip_core.export.upgrade import UPGRADES
from nequip_core.export.verify import verify
from nequip_core.plugins.manager import load_registry

GOLDEN = Path(__file__).parents[2] / "golden" / "packages"
FILES = sorted(GOLDEN.glob("*.nequip.zip"))


def test_there_is_a_file_of_each_schema() -> None:
    assert [path.name for path in FILES] == [f"schema-{n}.nequip.zip" for n in range(SCHEMA + 1)]
    assert sorted(UPGRADES) == list(range(SCHEMA))
    for number, path in enumerate(FILES):
        with zipfile.ZipFile(path) as archive:
            assert json.loads(archive.read("manifest.json"))["schema"] == number


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_the_same_model_with_the_same_predictions(path: Path) -> None:
    members, newest = read_package(path), read_package(FILES[-1])
    assert members.model == newest.model
    assert members.weights.keys() == newest.weights.keys()
    assert all(torch.equal(tensor, newest.weights[name]) for name, tensor in members.weights.items())
    assert members.manifest == newest.manifest
    assert (members.data, members.metrics, members.check) == (newest.data, newest.metrics, newest.check)
    found = verify(path, members, load_registry())
    assert len(found) >= 5
    assert all(one.passed for one in found)
    loaded = load_model(path)
    assert loaded.hash == newest.manifest["model_hash"]
    assert loaded.info.types == ("H", "Ow")


def rewritten(target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A changed copy of the file of schema 0."""
    with zipfile.ZipFile(FILES[0]) as old:
        contents: dict[str, Any] = {name: old.read(name) for name in old.namelist()}
    plain = {name: json.loads(content) for name, content in contents.items() if name.endswith(".json")}
    change(plain)
    with zipfile.ZipFile(target, "w") as new:
        for name, content in contents.items():
            if not name.endswith(".json"):
                new.writestr(name, content)
        for name, content in plain.items():
            new.writestr(name, json.dumps(content))
    return target


def test_edited_weights_of_schema_0(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "a.zip", lambda members: members["manifest.json"].update(hash="0"))
    with pytest.raises(ChangedError, match="changed after it was written"):
        read_package(path)


def test_edited_energies_of_schema_0_fail_the_check(tmp_path: Path) -> None:
    """Its hash was of the weights alone."""
    path = rewritten(tmp_path / "a.zip", lambda members: members["model.json"].update(atomic_energies=[-13.6, -2042.0]))
    assert not all(one.passed for one in verify(path, read_package(path), load_registry()))


@pytest.mark.parametrize(
    "change",
    [
        lambda members: members.pop("training.json"),
        lambda members: members["manifest.json"].pop("version"),
        lambda members: members["model.json"].update(atomic_energies=[1.0]),
        lambda members: members["model.json"].update(types=None),
        lambda members: members.update({"check.json": {"arrays": 3}}),
        lambda members: members.update({"model.json": []}),
    ],
)
def test_damaged_files_of_schema_0(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ArtifactError, match="is of schema 0, but not as that schema says"):
        read_package(rewritten(tmp_path / "a.zip", change))


@pytest.mark.parametrize("schema", [-1, 99, None, "1", True])
def test_schemas_that_are_none_of_ours(tmp_path: Path, schema: Any) -> None:
    path = rewritten(tmp_path / "a.zip", lambda members: members["manifest.json"].update(schema=schema))
    with pytest.raises(ArtifactError, match=rf"of schema {schema}; this nequip-core reads schemas up to {SCHEMA}"):
        read_package(path)
