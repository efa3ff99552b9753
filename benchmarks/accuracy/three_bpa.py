"""3BPA, ours against the published packages: the same settings, frames and epochs, several seeds, side by side.

    python benchmarks/accuracy/three_bpa.py DATA OUT --ours PYTHON --theirs PYTHON [--epochs 25] [--seeds 1 2 3]

DATA holds train_300K, test_300K and test_600K_half (.xyz or .xyz.xz) of Kovács et al. (10.1021/acs.jctc.1c00647).
Every run is a process of its own; all start at once unless --at-once says otherwise. The same command goes on where an
earlier one was stopped: --minutes ends it in time with a checkpoint of each run, and what is finished is not repeated.
Where OUT can not stay, `tar` it: all paths in it are relative to OUT.

OUT/results.csv gets a row for each finished run, OUT/*.log what they printed. At the end: the force error of each test
set, mean over the seeds, ours over theirs; exit code 3 where it is above 1.05, 2 where a run is not finished.

Both sides: float32; batches of 5 of the same 450 frames; loss = mean square of energy per atom + of force components;
Adam with amsgrad, learning rate of the model, cosine to zero over the epochs; weights averaged with decay 0.99; the
weights of the epoch with the smallest force error on the same 50 frames are tested.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import yaml

TYPES = ["H", "C", "N", "O"]
TEST_SETS = ("test_300K", "test_600K_half")
WITHIN = 1.05
"""Our error over theirs."""
TRAIN, VAL = 450, 50
CUTOFF, BATCH, EMA = 5.0, 5, 0.99
MODELS = {
    "nequip": {"lr": 0.01, "keys": {"l_max": 2, "num_layers": 3, "num_features": 32}},
    "allegro": {
        "lr": 0.002,
        "keys": {"l_max": 2, "num_layers": 2, "num_scalar_features": 64, "num_tensor_features": 32},
    },
}


def prepare(data: Path, out: Path, frames: int | None) -> dict[str, float]:
    """The frames in OUT; the mean energy per atom for every type (one composition)."""
    for name in ("train_300K", *TEST_SETS):
        if not (out / f"{name}.xyz").exists():
            packed, plain = data / f"{name}.xyz.xz", data / f"{name}.xyz"
            text = lzma.decompress(packed.read_bytes()).decode() if packed.exists() else plain.read_text()
            (out / f"{name}.xyz").write_text(text)
            if frames is not None and name in TEST_SETS:
                few = ase.io.read(out / f"{name}.xyz", f":{frames}", format="extxyz")
                ase.io.write(out / f"{name}.xyz", few, format="extxyz")
    whole = ase.io.read(out / "train_300K.xyz", ":", format="extxyz")
    train = whole[: TRAIN if frames is None else frames]
    if not (out / "val.xyz").exists():
        ase.io.write(out / "train.xyz", train, format="extxyz")
        ase.io.write(out / "val.xyz", whole[TRAIN : TRAIN + VAL][:frames], format="extxyz")
    mean = float(np.mean([atoms.get_potential_energy() / len(atoms) for atoms in train]))
    return dict.fromkeys(TYPES, mean)


def ours(name: str, seed: int, energies: dict[str, float], epochs: int, device: str) -> dict[str, Any]:
    """Our config."""
    model = MODELS[name]
    return {
        "defaults": ["base", {"model": name}, "_self_"],
        "seed": seed,
        "loggers": ["csv"],
        "run": {"dir": f"ours_{name}_{seed}"},
        "data": {
            "path": "train.xyz",
            "val_path": "val.xyz",
            "test_paths": [f"{test}.xyz" for test in TEST_SETS],
            "split": {"train": "rest", "val": 0, "by": "order"},
            "cache": "off",
            "batch": {"size": BATCH},
        },
        "model": {"cutoff": CUTOFF, "types": TYPES, "atomic_energies": energies, **model["keys"]},
        "training": {
            "optimizer": {"name": "adam", "lr": model["lr"], "args": {"amsgrad": True}},
            "scheduler": {"name": "cosine", "args": {"T_max": epochs}},
            "ema_decay": EMA,
            "monitor": "val_forces_rmse",
        },
        "trainer": {"accelerator": device, "max_epochs": epochs, "enable_progress_bar": False},
    }


def theirs(name: str, seed: int, energies: dict[str, float], epochs: int, device: str) -> dict[str, Any]:
    """The same in the published packages' words."""
    model, folder = MODELS[name], f"theirs_{name}_{seed}"
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
    metrics = {"_target_": "nequip.train.EnergyForceMetrics", "coeffs": {"forces_rmse": 1.0}}
    return {
        "run": ["train", "test"],
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": seed,
            "train_file_path": "train.xyz",
            "val_file_path": "val.xyz",
            "test_file_path": [f"{test}.xyz" for test in TEST_SETS],
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
            "logger": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": folder, "name": "log"},
            "callbacks": [
                {
                    "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "monitor": "val0_epoch/weighted_sum",
                    "dirpath": folder,
                    "filename": "best",
                    "enable_version_counter": False,
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


def read_ours(folder: Path) -> dict[str, tuple[float, float]] | None:
    """{test set: (force RMSE meV/Å, energy RMSE meV)} of a finished run."""
    found = {}
    for test in TEST_SETS:
        path = folder / "evaluation" / f"{test}.json"
        if not path.exists():
            return None
        result = json.loads(path.read_text())
        found[test] = (1e3 * result["forces"]["rmse"], 1e3 * result["energy"]["rmse"])
    return found


def read_theirs(folder: Path) -> dict[str, tuple[float, float]] | None:
    """The same from Lightning's tables, one for each start."""
    last: dict[str, float] = {}
    for table in sorted(folder.glob("log/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        with table.open() as file:
            for row in csv.DictReader(file):
                last.update({name: float(value) for name, value in row.items() if value})
    names = [[f"test{n}_epoch/{name}" for name in ("forces_rmse", "total_energy_rmse")] for n in range(len(TEST_SETS))]
    if not all(name in last for pair in names for name in pair):
        return None
    return {test: (1e3 * last[pair[0]], 1e3 * last[pair[1]]) for test, pair in zip(TEST_SETS, names, strict=True)}


def start_ours(python: str, name: str) -> list[str]:
    """The command that begins a run or goes on with it."""
    return [python, "-m", "nequip_core", "train", f"{name}.yaml"]


def start_theirs(python: str, name: str) -> list[str]:
    """The same."""
    last = Path(name) / "last.ckpt"
    return [
        *(python, "-m", "nequip.scripts.train", "-cp", str(Path.cwd()), "-cn", name),
        *(f"hydra.run.dir=hydra_{name}", "hydra.job.chdir=false"),
        *([f"++ckpt_path={last}"] if last.exists() else []),
    ]


@dataclass(frozen=True)
class Side:
    """One of the two: how to write a config, start a run, read its results, and end it early."""

    config: Callable[..., dict[str, Any]]
    command: Callable[[str, str], list[str]]
    read: Callable[[Path], dict[str, tuple[float, float]] | None]
    stop: signal.Signals


SIDES = {
    "ours": Side(ours, start_ours, read_ours, signal.SIGINT),
    "theirs": Side(theirs, start_theirs, read_theirs, signal.SIGKILL),  # its last epoch is in last.ckpt
}


def run_all(names: dict[str, tuple[str, str]], at_once: int, seconds: float) -> None:
    """Train what is not finished, ``at_once`` runs at a time; whatever runs after ``seconds`` is stopped.

    Args:
        names: {run: (side, interpreter)}.
        at_once: processes.
        seconds: from now.
    """
    end = time.monotonic() + seconds
    waiting = [name for name, (side, _) in names.items() if SIDES[side].read(Path(name)) is None]
    running: dict[str, subprocess.Popen[bytes]] = {}
    while (waiting or running) and time.monotonic() < end:
        while waiting and len(running) < at_once:
            name = waiting.pop(0)
            side, python = names[name]
            with Path(f"{name}.log").open("ab") as log:
                running[name] = subprocess.Popen(
                    SIDES[side].command(python, name),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
        time.sleep(1.0)
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                print(f"{name}: {'finished' if process.returncode == 0 else 'failed; see its log'}", flush=True)
    for name, process in running.items():
        process.send_signal(SIDES[names[name][0]].stop)
    for name, process in running.items():
        process.wait()
        print(f"{name}: stopped", flush=True)


def summary(rows: list[dict[str, Any]]) -> bool:
    """Print the means over the seeds; whether ours are within `WITHIN` of theirs."""
    good = True
    for model in MODELS:
        for test in TEST_SETS:
            errors = {
                side: [row["forces_rmse_meV_A"] for row in rows if (row["side"], row["model"], row["test_set"]) == key]
                for side in SIDES
                for key in [(side, model, test)]
            }
            if all(errors.values()):
                ratio = float(np.mean(errors["ours"]) / np.mean(errors["theirs"]))
                good &= ratio <= WITHIN
                shown = "; ".join(
                    f"{side} {np.mean(e):.2f} meV/Å ({', '.join(f'{x:.2f}' for x in e)})" for side, e in errors.items()
                )
                print(f"{model} {test}: {shown}; ours over theirs {ratio:.3f}")
    return good


def main() -> int:
    """Train, read, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ours", default=sys.executable)
    parser.add_argument("--theirs", required=True)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--at-once", type=int, default=99, help="runs at a time")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many; the same command goes on")
    parser.add_argument("--hardware", default="", help="for the table")
    parser.add_argument("--frames", type=int, help="of each set at most, to try the script")
    options = parser.parse_args()
    interpreters = {
        side: str(Path(shutil.which(vars(options)[side]) or vars(options)[side]).absolute()) for side in SIDES
    }
    data, out = options.data.resolve(), options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    energies = prepare(data, out, options.frames)
    os.chdir(out)
    runs = {}
    # The published side is slower: it begins first.
    for seed in options.seeds:
        for model in options.models:
            for side in reversed(SIDES):
                name = f"{side}_{model}_{seed}"
                config = SIDES[side].config(model, seed, energies, options.epochs, options.device)
                Path(f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
                runs[name] = (side, interpreters[side])
    run_all(runs, options.at_once, 60 * options.minutes)
    rows, unfinished = [], []
    for name, (side, _) in runs.items():
        results = SIDES[side].read(Path(name))
        unfinished += [] if results else [name]
        _, model, seed = name.split("_")
        for test, (forces, energy) in (results or {}).items():
            rows.append(
                {
                    "hardware": options.hardware or options.device,
                    "side": side,
                    "model": model,
                    "seed": int(seed),
                    "epochs": options.epochs,
                    "test_set": test,
                    "forces_rmse_meV_A": round(forces, 3),
                    "energy_rmse_meV": round(energy, 3),
                }
            )
    if rows:
        with Path("results.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    good = summary(rows)
    if unfinished:
        print(f"not finished: {', '.join(unfinished)}. The same command goes on with them.")
        return 2
    return 0 if good else 3


if __name__ == "__main__":
    sys.exit(main())
