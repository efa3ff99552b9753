"""Changed models: what was asked for is changed, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nequip_core.errors import InputError
from nequip_core.export.artifact import model_of
from nequip_core.export.edit import Changes, modified, without_folders
from nequip_core.export.package import Members, model_hash, read_package, unpack_check, write_package
from nequip_core.export.verify import check_cases, predict, verify
from nequip_core.plugins.manager import load_registry

HERE = Path("a.nequip.zip")
Make = Callable[..., Members]


def changed(members: Members, **changes: Any) -> Members:
    found = modified(HERE, members, Changes(**changes), load_registry())
    assert found.manifest["model_hash"] == model_hash(found.model, found.weights)
    assert all(one.passed for one in verify(HERE, found, load_registry()))
    return found


def test_atomic_energies(packaged: Make) -> None:
    before = packaged()
    after = changed(before, atomic_energies={"O": -431.0})
    assert after.model["atomic_energies"] == {"H": -13.6, "O": -431.0}
    for old, new in zip(unpack_check(before), unpack_check(after), strict=True):
        oxygens = int((old.structure.numbers == 8).sum())
        assert new.energy - old.energy == pytest.approx(-oxygens, abs=1e-9)
        assert torch.equal(old.forces, new.forces)


def test_energy_scale_of_one_type_when_there_was_one_number(packaged: Make) -> None:
    after = changed(packaged(energy_scale=2.0), energy_scale={"H": 1.0})
    assert after.model["energy_scale"] == {"H": 1.0, "O": 2.0}
    assert after.weights["scale"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", ["nequip", "allegro"])
def test_renamed_types_are_the_same_model(packaged: Make, name: str) -> None:
    keys: dict[str, Any] = {
        "pair_cutoffs": {"O": {"H": 2.5}},
        "avg_num_neighbors": {"H": 5.0, "O": 6.0},
        "zbl": True,
        "dtype": "float64",
    }
    before = packaged(name, **keys)
    after = changed(before, rename={"O": "Ow", "H": "Hw"})
    assert after.model["types"] == ["Hw", "Ow"]
    assert after.model["elements"] == {"Hw": "H", "Ow": "O"}
    assert after.model["pair_cutoffs"] == {"Ow": {"Hw": 2.5}}
    assert after.model["avg_num_neighbors"] == {"Hw": 5.0, "Ow": 6.0}
    for old, new in zip(unpack_check(before), unpack_check(after), strict=True):
        assert torch.equal(old.forces, new.forces)
    back = changed(after, rename={"Ow": "O", "Hw": "H"})
    assert back.model == before.model
    assert back.manifest["model_hash"] == before.manifest["model_hash"]
    assert [one["from"] for one in back.manifest["modified"]] == [m.manifest["model_hash"] for m in (before, after)]


def test_swapped_names_are_refused(packaged: Make) -> None:
    with pytest.raises(InputError, match="another element"):
        changed(packaged(), rename={"O": "H", "H": "O"})


def test_dtype(packaged: Make, tmp_path: Path) -> None:
    before = packaged(dtype="float64")
    after = changed(before, dtype="float32")
    assert after.weights["shift"].dtype == torch.float64
    assert {t.dtype for name, t in after.weights.items() if name.startswith("architecture")} == {torch.float32}
    for old, new in zip(unpack_check(before), unpack_check(after), strict=True):
        difference = (old.forces - new.forces).abs().max()
        assert 0 < difference < 1e-5 * old.forces.abs().max()
    write_package(tmp_path / "a.nequip.zip", after)
    assert read_package(tmp_path / "a.nequip.zip").model["dtype"] == "float32"


def test_licence_and_citations_leave_the_model_alone(packaged: Make) -> None:
    before = packaged()
    after = changed(before, licence="MIT", citations=("10.1/2", "10.1/2"))
    assert after.manifest["model_hash"] == before.manifest["model_hash"]
    assert after.manifest["citations"] == ["10.1/2"]
    (log,) = after.manifest["modified"]
    assert log["changes"] == {"licence": [None, "MIT"], "citations": [[], ["10.1/2"]]}
    assert log["versions"].keys() == {"nequip-core"}
    with pytest.raises(InputError, match="nothing to change"):
        changed(after, licence="MIT")


def test_folders_of_data_files_are_left_out(packaged: Make) -> None:
    members = packaged()
    hashes = {"data.path": {"/data/me/a/x.xyz": "1", "/data/me/b/x.xyz": "2", "y.xyz": "3"}, "isolated": None}
    check = members.check | {
        "structures": [one | {"source": "/data/me/a/x.xyz frame 3"} for one in members.check["structures"]]
    }
    found = without_folders(replace(members, data={"sha256": hashes, "n": 1}, check=check))
    assert found.data == {
        "sha256": {"data.path": {"a/x.xyz": "1", "b/x.xyz": "2", "y.xyz": "3"}, "isolated": None},
        "n": 1,
    }
    assert {one["source"] for one in found.check["structures"]} == {"x.xyz frame 3"}
    assert without_folders(members) == members


def test_check_structures_stay(packaged: Make) -> None:
    before = packaged()
    structures = [case.structure for case in check_cases(HERE, before)]
    model, _, _ = model_of(HERE, before, load_registry())
    named = [replace(one, source=f"val.xyz:{n}") for n, one in enumerate(structures)]
    from nequip_core.export.package import pack_check

    check, tensors = pack_check(predict(model, named, HERE), before.weights)
    after = changed(replace(before, check=check, check_tensors=tensors), atomic_energies={"H": 0.0})
    assert [case.structure.source for case in check_cases(HERE, after)] == ["val.xyz:0", "val.xyz:1"]
