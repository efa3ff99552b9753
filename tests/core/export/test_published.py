"""Published files that were made by the published packages give their energies, forces and stress; nothing runs."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nequip_core.errors import ArtifactError, InputError
from nequip_core.export.artifact import load_model
from nequip_core.export.package import Members, without_training, write_package
from nequip_core.export.published import Published, StandIn, Unpickler, convert, read_published
from nequip_core.models.published import Options
from nequip_core.plugins.manager import load_registry

TESTS = Path(__file__).parents[2]
GOLDEN = TESTS / "golden" / "published"
PARITY = GOLDEN / "nequip-0.19-parity" / "last.ckpt"
AVERAGES = GOLDEN / "nequip-0.18-averages-float32" / "last.ckpt"
PACKAGE = GOLDEN / "nequip-0.19-package" / "model.nequip.zip"
CUSTOM = GOLDEN / "nequip-0.19-zbl-custom-types" / "last.ckpt"


@pytest.fixture(scope="module")
def comparison() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_compare", TESTS / "parity" / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", sorted(GOLDEN.iterdir()), ids=lambda folder: folder.name)
def test_predictions_are_the_published_ones(folder: Path, comparison: ModuleType) -> None:
    dtype = json.loads((folder / "case.json").read_text())["options"]["dtype"]
    errors = comparison.compare(folder)
    assert max(errors.values()) < comparison.TOLERANCE[dtype], errors
    assert errors["forces"] > 0  # other sums: something was compared


def converted(source: Path, **options: Any) -> Members:
    return convert(read_published(source), load_registry(), **options)


def with_options(source: Path, **options: Any) -> Published:
    published = read_published(source)
    return replace(published, options={**published.options, **options})


def test_irreps_without_effect_are_dropped() -> None:
    members = converted(PARITY)
    model = load_registry().models["nequip"]
    assert members.model["parity"] is True
    assert members.model["num_layers"] == 3
    theirs = read_published(PARITY).weights["layer1_convnet.conv.linear_2.weight"].numel()
    ours = sum(t.numel() for name, t in members.weights.items() if name.startswith("architecture.layers.1.linear_out"))
    assert model.name == "nequip"
    assert 0 < ours < theirs


def test_averaged_and_raw_weights(tmp_path: Path) -> None:
    members = converted(AVERAGES)
    assert members.manifest["weights"] == "ema"
    assert members.training is not None
    assert any(not torch.equal(members.weights[name], members.training.raw[name]) for name in members.weights)
    write_package(tmp_path / "x.ckpt", members)
    write_package(tmp_path / "x.nequip.zip", without_training(members))
    raw = load_model(tmp_path / "x.ckpt", weights="raw")
    assert raw.weights == "raw"
    assert raw.kind == "checkpoint"
    package = load_model(tmp_path / "x.nequip.zip")
    assert package.kind == "package"
    assert package.hash == load_model(tmp_path / "x.ckpt").hash != raw.hash
    with pytest.raises(ArtifactError, match="averaged weights"):
        load_model(tmp_path / "x.nequip.zip", weights="raw")


def test_a_package_of_averages_has_no_raw_weights() -> None:
    members = converted(PACKAGE)
    assert members.manifest["weights"] == "ema"
    assert members.training is None


def test_where_the_model_comes_from_is_written_down() -> None:
    members = converted(PACKAGE, licence="CC-BY-4.0")
    assert members.manifest["licence"] == "CC-BY-4.0"
    source = members.manifest["converted_from"]
    assert source["file"] == "model.nequip.zip"
    assert source["versions"]["nequip"] == "0.19.1"
    assert len(source["sha256"]) == 64
    assert converted(PACKAGE).manifest["licence"] is None


def test_the_licence_of_the_source_is_kept(tmp_path: Path) -> None:
    licensed = tmp_path / "x.nequip.zip"
    shutil.copy(PACKAGE, licensed)
    with zipfile.ZipFile(licensed, "a") as archive:
        archive.writestr("model/model/LICENSE", "MIT\n")
    assert converted(licensed).manifest["licence"] == "MIT"


def test_neighbours_by_type_go_by_the_sender() -> None:
    config = converted(CUSTOM).model
    assert isinstance(config["avg_num_neighbors"], dict)
    assert config["avg_num_neighbors_of"] == "sender"
    assert converted(AVERAGES).model["avg_num_neighbors_of"] == "receiver"


def test_elements_of_types() -> None:
    assert converted(CUSTOM).model["elements"]["type0"] == "O"
    published = read_published(PACKAGE)
    # Neither the transforms of the training data nor ZBL say which elements the types are.
    unknown = replace(published, config={}, options={**published.options, "pair_potential": None})
    with pytest.raises(InputError, match=r"types type0 are.*--elements type0=O"):
        convert(unknown, load_registry())
    given = {f"type{n}": "Fe" for n in range(5)}
    assert convert(unknown, load_registry(), elements=given).model["elements"]["type0"] == "Fe"


class Evil:
    """Runs a command when it is unpickled, if anything does."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def replaced(source: Path, target: Path, member: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of a zip file with one member changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(zipfile.ZipInfo(name), change(content) if name.endswith(member) else content)
    return target


def planted(mark: Path) -> Callable[[bytes], bytes]:
    """Puts the call before the pickle's own content; the object is dropped at once."""
    call = pickle.dumps(Evil(mark), protocol=2)
    return lambda content: content[:2] + call[2:-1] + b"0" + content[2:]


@pytest.mark.parametrize(("source", "member"), [(PACKAGE, "/eager_model.pkl"), (AVERAGES, "/data.pkl")])
def test_no_code_of_the_source_runs(source: Path, member: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    evil = replaced(source, tmp_path / source.name, member, planted(mark))
    with zipfile.ZipFile(evil) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(member)]
        assert b"system" in archive.read(name)
    members = converted(evil)
    assert members.manifest["weights"] == converted(source).manifest["weights"]
    assert members.manifest["model_hash"] == converted(source).manifest["model_hash"]
    assert not mark.exists()
    # The plant works: Python's own unpickler runs it.
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()


def test_the_unpickler_gives_tensors_containers_and_stand_ins() -> None:
    found = Unpickler(io.BytesIO(pickle.dumps({"a": [1, 2.5, "x"], "b": {3}, "c": Path("x"), "d": range})), dict).load()
    assert found["a"] == [1, 2.5, "x"]
    assert found["b"] == {3}
    assert isinstance(found["c"], StandIn)
    assert issubclass(found["d"], StandIn)


def test_a_tensor_beyond_its_storage_is_refused() -> None:
    # Sizes in a pickle are numbers that anybody can write.
    rebuild = Unpickler.KNOWN["torch._utils", "_rebuild_tensor_v2"]
    assert rebuild(torch.arange(6.0), 1, (2, 2), (2, 1)).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(RuntimeError, match="out of bounds"):
        rebuild(torch.zeros(2), 0, (1000,), (1,))


def test_truncated(tmp_path: Path) -> None:
    for source in (PACKAGE, AVERAGES):
        cut = tmp_path / source.name
        cut.write_bytes(source.read_bytes()[:-4000])
        with pytest.raises(ArtifactError, match="truncated or damaged"):
            read_published(cut)


def test_damaged_pickle(tmp_path: Path) -> None:
    bad = replaced(PACKAGE, tmp_path / "x.nequip.zip", "/eager_model.pkl", lambda content: content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="not as the published nequip writes it"):
        read_published(bad)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no file"):
        read_published(tmp_path / "absent.ckpt")
    text = tmp_path / "x.ckpt"
    text.write_text("hello")
    with pytest.raises(ArtifactError, match="no zip file"):
        read_published(text)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("weights/model.bin", b"1")
    with pytest.raises(ArtifactError, match="neither a checkpoint nor a package"):
        read_published(tmp_path / "other.zip")
    # Another framework's torch file.
    torch.save({"model": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ArtifactError, match="no Lightning checkpoint"):
        read_published(tmp_path / "other.pt")
    torch.save({"state_dict": {"a": torch.zeros(3)}, "hyper_parameters": {"hidden": 3}}, tmp_path / "lightning.ckpt")
    with pytest.raises(ArtifactError, match="not of the published nequip"):
        read_published(tmp_path / "lightning.ckpt")


def test_our_own_file_needs_no_conversion(tmp_path: Path) -> None:
    write_package(tmp_path / "x.nequip.zip", converted(PACKAGE))
    with pytest.raises(ArtifactError, match="nothing to convert"):
        read_published(tmp_path / "x.nequip.zip")


def test_old_versions_are_refused(tmp_path: Path) -> None:
    old = replaced(
        PACKAGE,
        tmp_path / "x.nequip.zip",
        "package_metadata.txt",
        lambda text: text.replace(b"nequip: 0.19.1", b"nequip: 0.15.0"),
    )
    with pytest.raises(ArtifactError, match=r"written by nequip 0.15.0.*0.16"):
        read_published(old)


def test_a_missing_plugin_is_named() -> None:
    registry = load_registry()
    alone = replace(
        registry,
        models={"nequip": registry.models["nequip"]},
        plugins=tuple(plugin for plugin in registry.plugins if plugin.distribution == "nequip-core"),
    )
    published = with_options(PARITY, _target_="allegro.model.AllegroModel")
    with pytest.raises(ArtifactError, match="pip install --find-links dist nequip-allegro"):
        convert(published, alone)
    with pytest.raises(ArtifactError, match=r"my\.Model, which no installed plugin can convert.*NequIPGNNModel"):
        convert(with_options(PARITY, _target_="my.Model"), alone)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("convnet_sc", False),
        ("convnet_resnet", True),
        ("convnet_nonlinearity_type", "norm"),
        ("readout_mlp_nonlinearity", "tanh"),
        ("categorical_graph_field_embed", [{"field": "head"}]),
        ("an_option_of_tomorrow", 3),
        ("preset", "XXL"),
        ("pair_potential", {"_target_": "nequip.nn.pair_potential.SimpleLennardJones", "lj_sigma": 1.0}),
        ("pair_potential", {"_target_": "x.ZBL", "units": "real", "chemical_species": ["O"]}),
        (
            "pair_potential",
            {"_target_": "x.ZBL", "units": "metal", "chemical_species": ["O"], "polynomial_cutoff_p": 3},
        ),
    ],
)
def test_options_without_counterpart_are_named(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=option):
        convert(with_options(PARITY, **{option: value}), load_registry())


def test_options_that_do_not_fit_the_weights() -> None:
    with pytest.raises((ArtifactError, InputError), match="options"):
        convert(with_options(PARITY, num_features=7), load_registry())
    with pytest.raises((ArtifactError, InputError), match="options"):
        convert(with_options(PARITY, num_layers=5), load_registry())


def test_options_name_themselves() -> None:
    options = Options({"a": 1, "b": 2, "seed": 3})
    assert options.take("a") == 1
    assert options.take("c", 5) == 5
    with pytest.raises(InputError, match=r"model\.b: 2"):
        options.finish()
