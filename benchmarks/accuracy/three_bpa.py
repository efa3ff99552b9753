"""3BPA, ours against the published packages: the same settings, frames and epochs, several seeds, side by side.

    python benchmarks/accuracy/three_bpa.py DATA OUT --ours PYTHON --theirs PYTHON [--epochs 25] [--seeds 1 2 3]

DATA holds train_300K.xyz, test_300K.xyz and test_600K.xyz of Kovács et al. (10.1021/acs.jctc.1c00647),
unpacked. All runs start at once; each is a process of its own. OUT/results.csv gets a row for each, OUT/*.log what
they printed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import yaml

TYPES = ["H", "C", "N", "O"]
TEST_SETS = ("test_300K", "test_600K")
TRAIN, VAL = 450, 50
CUTOFF, BATCH, EMA = 5.0, 5, 0.99
MODELS = {
    "nequip": {"lr": 0.01, "keys": {"l_max": 2, "num_layers": 3, "num_features": 32}},
    "allegro": {
        "lr": 0.002,
        "keys": {"l_max": 2, "num_layers": 2, "num_scalar_features": 64, "num_tensor_features": 32},
    },
}


def prepare(data: Path, out: Path) -> dict[str, float]:
    """train.xyz and val.xyz in OUT; the mean energy per atom for every type (one composition)."""
    frames = ase.io.read(data / "train_300K.xyz", ":", format="extxyz")
    ase.io.write(out / "train.xyz", frames[:TRAIN], format="extxyz")
    ase.io.write(out / "val.xyz", frames[TRAIN : TRAIN + VAL], format="extxyz")
    mean = float(np.mean([atoms.get_potential_energy() / len(atoms) for atoms in frames[:TRAIN]]))
    return dict.fromkeys(TYPES, mean)


def ours(name: str, seed: int, data: Path, out: Path, energies: dict[str, float], epochs: int, device: str) -> dict:
    """Our config."""
    model = MODELS[name]
    return {
        "defaults": ["base", {"model": name}, "_self_"],
        "seed": seed,
        "loggers": ["csv"],
        "run": {"dir": str(out / f"ours_{name}_{seed}")},
        "data": {
            "path": str(out / "train.xyz"),
            "val_path": str(out / "val.xyz"),
            "test_paths": [str(data / f"{test}.xyz") for test in TEST_SETS],
            "split": {"train": TRAIN, "by": "order"},
            "batch": {"size": BATCH},
        },
        "model": {"cutoff": CUTOFF, "types": TYPES, "atomic_energies": energies, **model["keys"]},
        "training": {
            "optimizer": {"name": "adam", "lr": model["lr"], "args": {"amsgrad": True}},
            "scheduler": {"name": "cosine", "args": {"T_max": epochs}},
            "ema_decay": EMA,
        },
        "trainer": {"accelerator": device, "max_epochs": epochs, "enable_progress_bar": False},
    }


def theirs(name: str, seed: int, data: Path, out: Path, energies: dict[str, float], epochs: int, device: str) -> dict:
    """The same in the published packages' words."""
    model, folder = MODELS[name], out / f"theirs_{name}_{seed}"
    shared = {
        "seed": seed,
        "model_dtype": "float32",
        "type_names": TYPES,
        "r_max": CUTOFF,
        "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
        "per_type_energy_scales": "${training_data_stats:forces_rms}",
        "per_type_energy_shifts": energies,
        **model["keys"],
    }
    if name == "nequip":
        built = {"_target_": "nequip.model.NequIPGNNModel", **shared}
    else:
        embed = {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8}
        built = {
            "_target_": "allegro.model.AllegroModel",
            "radial_chemical_embed": embed,
            "radial_chemical_embed_dim": 64,
            **shared,
        }
    loader = {"_target_": "torch.utils.data.DataLoader", "num_workers": 0}
    metrics = {
        "_target_": "nequip.train.EnergyForceMetrics",
        "coeffs": {"per_atom_energy_rmse": 1.0, "forces_rmse": 1.0},
    }
    return {
        "run": ["train", "test"],
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": seed,
            "train_file_path": str(out / "train.xyz"),
            "val_file_path": str(out / "val.xyz"),
            "test_file_path": [str(data / f"{test}.xyz") for test in TEST_SETS],
            "transforms": [
                {
                    "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
                    "model_type_names": TYPES,
                },
                {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": CUTOFF},
            ],
            "train_dataloader": {**loader, "batch_size": BATCH, "shuffle": True},
            "val_dataloader": {**loader, "batch_size": 64},
            "test_dataloader": {**loader, "batch_size": 64},
            "stats_manager": {
                "_target_": "nequip.data.CommonDataStatisticsManager",
                "type_names": TYPES,
                "dataloader_kwargs": {"batch_size": 64},
            },
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "accelerator": "gpu" if device == "cuda" else "cpu",
            "devices": 1,
            "max_epochs": epochs,
            "check_val_every_n_epoch": 1,
            "log_every_n_steps": 50,
            "enable_progress_bar": False,
            "logger": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(folder), "name": "log"},
            "callbacks": [
                {
                    "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "monitor": "val0_epoch/weighted_sum",
                    "dirpath": str(folder),
                    "filename": "best",
                    "save_last": True,
                }
            ],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "ema_decay": EMA,
            "loss": {
                "_target_": "nequip.train.EnergyForceLoss",
                "per_atom_energy": True,
                "coeffs": {"total_energy": 1.0, "forces": 1.0},
            },
            "val_metrics": metrics,
            "test_metrics": metrics,
            "optimizer": {"_target_": "torch.optim.Adam", "lr": model["lr"], "amsgrad": True},
            "lr_scheduler": {
                "scheduler": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": epochs},
                "monitor": "val0_epoch/weighted_sum",
                "interval": "epoch",
                "frequency": 1,
            },
            "model": built,
        },
    }


def read_ours(folder: Path) -> dict[str, tuple[float, float]]:
    """{test set: (force RMSE meV/Å, energy RMSE meV)}."""
    found = {}
    for test in TEST_SETS:
        result = json.loads((folder / "evaluation" / f"{test}.json").read_text())
        found[test] = (1e3 * result["forces"]["rmse"], 1e3 * result["energy"]["rmse"])
    return found


def read_theirs(folder: Path) -> dict[str, tuple[float, float]]:
    """The same from Lightning's table."""
    last = {}
    for table in sorted(folder.glob("log/version_*/metrics.csv")):
        with table.open() as file:
            for row in csv.DictReader(file):
                last.update({name: float(value) for name, value in row.items() if value})
    return {
        test: (1e3 * last[f"test{n}_epoch/forces_rmse"], 1e3 * last[f"test{n}_epoch/total_energy_rmse"])
        for n, test in enumerate(TEST_SETS)
    }


def start(side: str, name: str, seed: int, out: Path, config: dict, python: str) -> subprocess.Popen[bytes]:
    """One training run in a process of its own."""
    path = out / f"{side}_{name}_{seed}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    scripts = Path(python).parent
    command = (
        [str(scripts / "nequip"), "train", str(path)]
        if side == "ours"
        else [
            str(scripts / "nequip-train"),
            "-cp",
            str(out),
            "-cn",
            path.stem,
            f"hydra.run.dir={out}/hydra_{path.stem}",
        ]
    )
    log = (out / f"{path.stem}.log").open("wb")
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ours", default=sys.executable)
    parser.add_argument("--theirs", required=True)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    data, out = options.data.resolve(), options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    energies = prepare(data, out)
    sides = {"ours": (ours, read_ours, options.ours), "theirs": (theirs, read_theirs, options.theirs)}
    runs = {
        (side, name, seed): start(
            side, name, seed, out, make(name, seed, data, out, energies, options.epochs, options.device), python
        )
        for side, (make, _, python) in sides.items()
        for name in options.models
        for seed in options.seeds
    }
    columns = ("side", "model", "seed", "epochs", "test_set", "forces_rmse_meV_A", "energy_rmse_meV")
    with (out / "results.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for (side, name, seed), process in runs.items():
            if process.wait() != 0:
                print(f"{side} {name} {seed} failed; see its log", flush=True)
                continue
            for test, (forces, energy) in sides[side][1](out / f"{side}_{name}_{seed}").items():
                row = (side, name, seed, options.epochs, test, round(forces, 3), round(energy, 3))
                table.writerow(row)
                file.flush()
                print(*row, flush=True)


if __name__ == "__main__":
    main()
