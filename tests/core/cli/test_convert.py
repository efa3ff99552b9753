"""nequip convert: every command takes what it makes; published training configs train."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from nequip_core.engines.ase import NequIPCalculator

GOLDEN = Path(__file__).parents[2] / "golden" / "published"
CHECKPOINT = GOLDEN / "nequip-0.16-checkpoint"
AVERAGES = GOLDEN / "nequip-0.18-averages-float32" / "last.ckpt"
PACKAGE = GOLDEN / "nequip-0.19-package" / "model.nequip.zip"


@pytest.fixture
def frame() -> tuple[Atoms, dict[str, Any]]:
    """The first golden structure of `CHECKPOINT`, and its published predictions."""
    case = json.loads((CHECKPOINT / "case.json").read_text())
    first = case["frames"][0]
    atoms = Atoms(
        [case["elements"][t] for t in first["types"]],
        positions=first["positions"],
        cell=first["cell"],
        pbc=first["pbc"],
    )
    return atoms, case["predictions"]["raw"][0]


@pytest.mark.parametrize("name", ["x.ckpt", "x.nequip.zip"])
def test_every_command_takes_it(nequip, tmp_path, frame, name):
    atoms, published = frame
    out = tmp_path / name
    code, printed, said = nequip("convert", CHECKPOINT / "last.ckpt", out)
    assert code == 0, said
    assert printed.strip() == str(out)
    assert "nequip 0.16.2" in said

    report = json.loads(nequip("info", out, "--json").out)
    assert report["types"] == ["O", "H"]
    assert report["weights"] == "raw"
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=published["total_energy"],
        forces=np.array(published["forces"]),
        stress=np.array(published["stress"]).flat[[0, 4, 8, 5, 2, 1]],
    )
    ase.io.write(tmp_path / "frame.xyz", atoms)
    errors = tmp_path / "errors.json"
    assert nequip("evaluate", out, tmp_path / "frame.xyz", "--json", errors).code == 0
    found = json.loads(errors.read_text())
    assert found["energy"]["max"] < 1e-5  # the file holds 8 digits
    assert found["forces"]["max"] < 1e-6
    assert found["stress"]["max"] < 1e-6

    atoms.calc = NequIPCalculator.from_file(out, device="cpu")
    assert atoms.get_potential_energy() == pytest.approx(published["total_energy"], rel=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), published["forces"], rtol=0, atol=1e-10)

    steps = ["--steps", "2", "--timestep", "0.1", "--temperature", "10", "--device", "cpu"]
    assert nequip("md", out, tmp_path / "frame.xyz", *steps, "--trajectory", tmp_path / "md.xyz").code == 0


def test_raw_weights_and_licence(nequip, tmp_path):
    out = tmp_path / "x.ckpt"
    code, _, said = nequip("convert", AVERAGES, out, "--licence", "MIT")
    assert code == 0, said
    hashes = [json.loads(nequip("info", out, "--json", "--weights", kind).out)["hash"] for kind in ("ema", "raw")]
    assert hashes[0] != hashes[1]
    assert json.loads(nequip("info", out, "--json").out)["licence"] == "MIT"
    said = nequip("convert", AVERAGES, tmp_path / "x.nequip.zip").err
    assert "left out: the raw weights" in said
    assert "states none" in said


def test_a_package_of_averages_as_checkpoint(nequip, tmp_path):
    assert nequip("convert", PACKAGE, tmp_path / "x.ckpt").code == 0
    code, _, said = nequip("info", tmp_path / "x.ckpt", "--weights", "raw")
    assert code == 2
    assert "averaged weights" in said


def test_bad_input(nequip, tmp_path):
    def refused(*argv: Any) -> str:
        code, out, said = nequip("convert", *argv)
        assert (code, out) == (2, "")
        assert "Traceback" not in said
        return said

    assert "is no file" in refused(tmp_path / "absent.ckpt", tmp_path / "x.ckpt")
    cut = tmp_path / "cut.nequip.zip"
    cut.write_bytes(PACKAGE.read_bytes()[:9000])
    assert "truncated or damaged" in refused(cut, tmp_path / "x.ckpt")
    with zipfile.ZipFile(tmp_path / "other.nequip.zip", "w") as archive:
        archive.writestr("model/weights.bin", b"0")
    assert "neither a checkpoint nor a package" in refused(tmp_path / "other.nequip.zip", tmp_path / "x.ckpt")
    assert "can not become" in refused(PACKAGE, tmp_path / "x.pt2")
    assert "can not become" in refused(PACKAGE, tmp_path / "x.yaml")
    shutil.copy(AVERAGES, tmp_path / "same.ckpt")
    assert "source itself" in refused(tmp_path / "same.ckpt", tmp_path / "same.ckpt")
    assert not list(tmp_path.glob("x.*"))


def published_config(data: Path) -> dict[str, Any]:
    """As the published documentation writes them, in our words."""
    return {
        "run": ["train", "test"],
        "cutoff": 3.0,
        "names": ["H", "O"],
        "watched": "val0_epoch/weighted_sum",
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": 4,
            "split_dataset": {"file_path": str(data), "train": 4, "val": 1, "test": 1},
            "transforms": [
                {
                    "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
                    "model_type_names": "${names}",
                    "chemical_species_to_atom_type_map": "${list_to_identity_dict:${names}}",
                },
                {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": "${cutoff}"},
            ],
            "train_dataloader": {"_target_": "torch.utils.data.DataLoader", "batch_size": 2, "shuffle": True},
            "val_dataloader": {"_target_": "torch.utils.data.DataLoader", "batch_size": 3},
            "test_dataloader": "${data.val_dataloader}",
            "stats_manager": {"_target_": "nequip.data.CommonDataStatisticsManager", "type_names": "${names}"},
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "accelerator": "cpu",
            "max_epochs": 1,
            "gradient_clip_val": 10.0,
            "profiler": "simple",
            "logger": {
                "_target_": "lightning.pytorch.loggers.wandb.WandbLogger",
                "save_dir": "${hydra:runtime.output_dir}",
            },
            "callbacks": [
                {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "${watched}", "patience": 7},
                {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "monitor": "${watched}"},
                {"_target_": "nequip.train.callbacks.SoftAdapt", "beta": 1.1},
            ],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "ema_decay": 0.9,
            "loss": {"_target_": "nequip.train.EnergyForceLoss", "coeffs": {"total_energy": 1.0, "forces": 3.0}},
            "val_metrics": {"_target_": "nequip.train.EnergyForceMetrics", "coeffs": {"forces_mae": 1.0}},
            "test_metrics": "${training_module.val_metrics}",
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.002, "amsgrad": True},
            "lr_scheduler": {
                "scheduler": {
                    "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
                    "patience": 5,
                    "min_lr": "1e-6",
                },
                "monitor": "${watched}",
                "interval": "epoch",
                "frequency": 1,
            },
            "model": {
                "_target_": "nequip.model.NequIPGNNModel",
                "compile_mode": "compile",
                "seed": 11,
                "model_dtype": "float32",
                "type_names": "${names}",
                "r_max": "${cutoff}",
                "num_layers": 2,
                "l_max": 1,
                "num_features": 4,
                "radial_mlp_depth": 2,
                "radial_mlp_width": "${int_mul:4,2}",
                "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
                "per_type_energy_scales": "${training_data_stats:per_type_forces_rms}",
                "per_type_energy_shifts": "${training_data_stats:per_atom_energy_mean}",
            },
        },
    }


@pytest.fixture
def training_set(tmp_path, rng, random_structure) -> Path:
    frames = []
    for _ in range(6):
        atoms = random_structure(rng).to_ase()
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(len(atoms), 3)))
        frames.append(atoms)
    ase.io.write(tmp_path / "train.xyz", frames)
    return tmp_path / "train.xyz"


def test_a_training_config(nequip, tmp_path, training_set):
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(published_config(training_set)))
    out = tmp_path / "ours.yaml"
    code, _, said = nequip("convert", tmp_path / "theirs.yaml", out)
    assert code == 0, said
    left = [line for line in said.splitlines() if line.startswith("no counterpart: ")]
    for word in ("WandbLogger", "SoftAdapt", "profiler", "per_type_forces_rms", "val_metrics"):
        assert sum(word in line for line in left) == 1, word
    assert len(left) == 5

    ours = yaml.safe_load(out.read_text())
    assert ours["defaults"] == ["base", {"model": "nequip"}, "_self_"]
    assert ours["seed"] == 11
    assert ours["data"]["split"] == {"train": 4, "val": 1, "test": 1, "seed": 4}
    assert ours["data"]["batch"] == {"size": 2, "eval_size": 3}
    assert ours["model"]["cutoff"] == 3.0
    assert ours["model"]["radial_mlp"] == [8, 8]
    assert ours["model"]["avg_num_neighbors"] == "auto"
    assert ours["model"]["atomic_energies"] == "mean"
    assert ours["training"]["loss"]["forces"]["weight"] == 0.75
    assert ours["training"]["optimizer"] == {"name": "adam", "lr": 0.002, "args": {"amsgrad": True}}
    assert ours["training"]["scheduler"]["args"] == {"patience": 5, "min_lr": 1e-6}
    assert ours["training"]["ema_decay"] == 0.9
    assert ours["training"]["gradient_clip"] == 10.0
    assert ours["training"]["early_stopping_patience"] == 7

    code, _, said = nequip("train", out, f"run.dir={tmp_path / 'run'}", "trainer.enable_progress_bar=false")
    assert code == 0, said
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_a_training_config_of_allegro_in_kcal(nequip, tmp_path, training_set):
    """As in its tutorial: a data set that is downloaded, and a ZBL whose units say that energies are in kcal/mol."""
    config = published_config(training_set)
    config["data"] |= {"_target_": "nequip.data.datamodule.sGDML_CCSD_DataModule", "dataset": "aspirin"}
    config["data"] |= {"train_val_split": [4, 2], "split_dataset": None}
    config["trainer"] |= {"devices": 2, "callbacks": config["trainer"]["callbacks"][:1]}
    config["trainer"]["callbacks"][0]["min_delta"] = 1e-3
    zbl = {"_target_": "nequip.nn.pair_potential.ZBL", "units": "real", "chemical_species": "${names}"}
    config["training_module"]["model"] = {
        "_target_": "allegro.model.AllegroModel",
        "seed": 1,
        "model_dtype": "float32",
        "type_names": "${names}",
        "r_max": "${cutoff}",
        "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4},
        "radial_chemical_embed_dim": 8,
        "l_max": 1,
        "num_scalar_features": 8,
        "num_tensor_features": 4,
        "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
        "per_type_energy_shifts": {"H": -100.0, "O": -200.0},
        "per_type_energy_scales": "${training_data_stats:forces_rms}",
        "pair_potential": zbl,
    }
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "ours.yaml"
    code, _, said = nequip("convert", tmp_path / "theirs.yaml", out)
    assert code == 0, said
    for words in ("data.dataset: 'aspirin'", "EarlyStopping.min_delta: 0.001"):
        assert f"no counterpart: {'' if words.startswith('data') else 'trainer.'}{words}" in said
    assert "devices" not in said
    ours = yaml.safe_load(out.read_text())
    assert ours["defaults"][1] == {"model": "allegro"}
    assert ours["data"]["path"] == "???"
    assert ours["data"]["split"] == {"train": 4, "val": 2, "seed": 4}
    assert ours["data"]["units"] == {"energy": "kcal/mol"}
    assert ours["model"]["zbl"] is True
    assert ours["model"]["atomic_energies"]["O"] == pytest.approx(-200 * 0.0433641)  # eV in one kcal/mol
    assert ours["model"]["energy_scale"] == "forces_rms"
    assert ours["trainer"]["devices"] == 2
    here = [f"data.path={training_set}", "trainer.devices=1", "trainer.enable_progress_bar=false"]
    code, _, said = nequip("train", out, f"run.dir={tmp_path / 'run'}", *here)
    assert code == 0, said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"_target_": "allegro.model.NoSuchModel"}}, "pip install --find-links dist nequip-allegro"),
        ({"model": {"_target_": "nequip.model.NequIPGNNModel", "r_max": 3, "type_names": ["H"]}}, "model_dtype"),
        ({"ema_decay": "${no_such_resolver:1}"}, "no_such_resolver"),
        ({"ema_decay": "${training_data_stats:magnetisation}"}, "magnetisation"),
    ],
)
def test_configs_that_can_not_be_converted(nequip, tmp_path, change, message):
    config = published_config(tmp_path / "x.xyz")
    config["training_module"] |= change
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(config))
    code, _, said = nequip("convert", tmp_path / "theirs.yaml", tmp_path / "ours.yaml")
    assert code == 2
    assert message in said
    assert not (tmp_path / "ours.yaml").exists()


def test_a_file_that_is_no_training_config(nequip, tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1\n")
    assert "is no training config" in nequip("convert", tmp_path / "x.yaml", tmp_path / "y.yaml").err
    assert "There is no file" in nequip("convert", tmp_path / "absent.yaml", tmp_path / "y.yaml").err
