"""Published models with random options and weights, and what they predict. Runs in their environment.

    ITS_PYTHON tests/parity/generate.py OUT [--count 40] [--seed 0] [--model nequip | allegro]

Each folder OUT/NN gets a checkpoint (last.ckpt) or a package (model.nequip.zip) and case.json: the options, the
structures, the predictions of each kind of weights in float64; OUT/options.json the values that are drawn from.
tests/parity/compare.py converts and compares. Every value of every option is drawn equally often, in an order of its
own.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import io
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import ase
import ase.io
import lightning
import nequip
import nequip.model
import numpy as np
import torch
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.scripts.package import main as package
from nequip.train import EMALightningModule, NequIPLightningModule
from nequip.utils.global_state import set_global_state
from nequip.utils.versions import get_current_code_versions

VERSION = tuple(int(part) for part in nequip.__version__.split(".")[:2])


def allegro_version() -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version("nequip-allegro").split("."))


OPTIONS: dict[str, list[Any]] = {
    "form": ["checkpoint", "checkpoint with averages", "package"],
    "dtype": ["float64", "float64", "float32"],
    "n_types": [1, 2, 3, 4, 5],
    "names": ["symbols", "custom"],
    "periodic": [True, False],
    "preset": [None, None, None, None, None, None, "S", "M", "L", "XL"],
    "num_layers": [1, 2, 3, 4],
    "l_max": [0, 1, 2, 3],
    "parity": [True, False],
    "num_features": ["number", "list"],
    "type_embed_num_features": [None, 1, 3],
    "radial_mlp_depth": [None, 0, 1, 2],
    "radial_mlp_width": [5, 8],
    "readout_depth": [0, 1, 2],
    "readout_width": [None, 6],
    "readout_nonlinearity": ["silu", "mish", "gelu", None, "None"],
    "num_bessels": [3, 8],
    "bessel_trainable": [True, False],
    "polynomial_cutoff_p": [6, 2, 5],
    "avg_num_neighbors": ["number", "by type"],
    "scales": [None, "number", "by type"],
    "shifts": [None, "number", "by type"],
    "scales_trainable": [True, False],
    "shifts_trainable": [True, False],
    "cutoffs": ["one", "by pair", "by centre"],
    "zbl": [True, False],
    "modifiers": [None, None, "scale and shift"],
    "compile_mode": ["eager", "compile"],
}
ALLEGRO: dict[str, list[Any]] = {
    "num_layers": [1, 2, 3, 4],
    "num_scalar_features": [4, 6],
    "num_tensor_features": [2, 3],
    "tp_path_channel_coupling": [True, False],
    "weight_individual_irreps": [True, False],
    "embedding": ["TwoBodyBesselScalarEmbed", "TwoBodySplineScalarEmbed"],
    "embedding_dim": [None, 6],
    "depth": [0, 1, 2],
    "nonlinearity": ["silu", "mish", "gelu", None],
    "scalar_embed_nonlinearity": ["silu", "mish", None],
}
"""What only Allegro has; it takes the rest of OPTIONS that it knows."""

SYMBOLS = ["O", "H", "Cu", "N", "Si"]
CUTOFF = 3.6


def draw(count: int, rng: np.random.Generator, model: str) -> list[dict[str, Any]]:
    """As many rows of options."""
    columns = {"model": [model] * count}
    options = OPTIONS | (ALLEGRO | {"preset": [None]} if model == "allegro" else {})
    for name, values in options.items():
        values = [values[n % len(values)] for n in range(count)]
        columns[name] = [values[n] for n in rng.permutation(count)]
    return [{name: column[n] for name, column in columns.items()} for n in range(count)]


def structures(row: dict[str, Any], rng: np.random.Generator) -> list[ase.Atoms]:
    """Three: two with all types, none closer than 0.9 Å, and a pair of atoms."""
    made = []
    for size in (7, 5, 2):
        cell = np.diag(rng.uniform(3.6, 5, 3)) + rng.normal(scale=0.4, size=(3, 3))
        atoms = ase.Atoms(cell=cell, pbc=row["periodic"])
        while len(atoms) < size:
            trial = ase.Atoms(SYMBOLS[len(atoms) % row["n_types"]], positions=[rng.uniform(size=3) @ cell])
            both = atoms + trial
            others = list(range(len(atoms)))
            if not others or both.get_distances(-1, others, mic=row["periodic"]).min() > 0.9:
                atoms = both
        if not row["periodic"]:
            atoms.cell = None
        made.append(atoms)
    return made


def by_type(types: list[str], rng: np.random.Generator, low: float, high: float) -> dict[str, float]:
    return {t: float(rng.uniform(low, high)) for t in types}


def model_config(row: dict[str, Any], types: list[str], rng: np.random.Generator) -> dict[str, Any]:
    """The arguments of the builder."""
    if row["scales"] is None or row["shifts"] is None:
        row["modifiers"] = None  # The modifier fails there.
    if row["model"] == "allegro" and allegro_version() < (0, 8, 2):
        row["avg_num_neighbors"] = "number"
    if VERSION < (0, 17) and row["zbl"]:
        row["polynomial_cutoff_p"] = 6  # Its ZBL has the model's envelope.
    l_max = row["l_max"] if row["preset"] is None else {"S": 1, "M": 2, "L": 3, "XL": 4}[row["preset"]]
    features = [int(n) for n in rng.integers(2, 6, l_max + 1)]
    config: dict[str, Any] = {"_target_": "nequip.model.NequIPGNNModel", "seed": int(rng.integers(1000))}
    if row["model"] == "allegro":
        config |= allegro_config(row)
    elif row["preset"] is None:
        config |= {"num_layers": row["num_layers"], "l_max": l_max, "parity": row["parity"]}
        config |= {"type_embed_num_features": row["type_embed_num_features"]}
    else:
        config |= {"_target_": "nequip.model.PresetNequIPGNNModel", "preset": row["preset"]}
    if row["preset"] not in ("S",) and row["model"] == "nequip":
        config["num_features"] = features if row["num_features"] == "list" else features[0]
    if row["radial_mlp_depth"] is not None and row["model"] == "nequip":
        config |= {"radial_mlp_depth": row["radial_mlp_depth"], "radial_mlp_width": row["radial_mlp_width"]}
    spread = {"number": lambda low, high: float(rng.uniform(low, high)), "by type": lambda *r: by_type(types, rng, *r)}
    config |= {
        "model_dtype": row["dtype"],
        "compile_mode": row["compile_mode"],
        "r_max": CUTOFF,
        "type_names": types,
        "readout_mlp_hidden_layers_depth": row["readout_depth"],
        "readout_mlp_hidden_layers_width": row["readout_width"] or (32 if row["model"] == "allegro" else None),
        "readout_mlp_nonlinearity": row["readout_nonlinearity"],
        **(basis(row) if row["model"] == "nequip" else {}),
        "avg_num_neighbors": spread[row["avg_num_neighbors"]](3, 20),
        "per_type_energy_scales": spread[row["scales"]](0.5, 2) if row["scales"] else None,
        "per_type_energy_shifts": spread[row["shifts"]](-9, 2) if row["shifts"] else None,
        "per_type_energy_scales_trainable": row["scales_trainable"] and row["scales"] is not None,
        "per_type_energy_shifts_trainable": row["shifts_trainable"] and row["shifts"] is not None,
    }
    if row["cutoffs"] == "by pair":
        config["per_edge_type_cutoff"] = {t: by_type(types[::-1][: n + 1], rng, 2.4, 3.6) for n, t in enumerate(types)}
    if row["cutoffs"] == "by centre":
        config["per_edge_type_cutoff"] = by_type(types[:2], rng, 2.4, 3.6)
    if row["zbl"]:
        zbl = {"_target_": "nequip.nn.pair_potential.ZBL", "chemical_species": SYMBOLS[: len(types)], "units": "metal"}
        config["pair_potential"] = zbl
    if row["modifiers"] == "scale and shift":
        given = {"modifier": "modify_PerTypeScaleShift", "shifts": by_type(types, rng, -3, 3), "shifts_trainable": True}
        return {"_target_": "nequip.model.modify", "modifiers": [given], "model": config}
    return config


def basis(row: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the Bessel basis."""
    return {name: row[name] for name in ("num_bessels", "bessel_trainable", "polynomial_cutoff_p")}


def allegro_config(row: dict[str, Any]) -> dict[str, Any]:
    """The arguments that only Allegro's builder has."""
    names = ("num_layers", "l_max", "parity", "num_scalar_features", "num_tensor_features")
    bessel = row["embedding"] == "TwoBodyBesselScalarEmbed"
    embed = basis(row) if bessel else {"num_splines": row["num_bessels"] + 3, "spline_span": 4}
    return {
        "_target_": "allegro.model.AllegroModel",
        **{name: row[name] for name in (*names, "tp_path_channel_coupling", "weight_individual_irreps")},
        "radial_chemical_embed": {"_target_": f"allegro.nn.{row['embedding']}", **embed},
        "radial_chemical_embed_dim": row["embedding_dim"],
        "scalar_embed_mlp_hidden_layers_depth": row["depth"],
        "scalar_embed_mlp_hidden_layers_width": 5,
        "scalar_embed_mlp_nonlinearity": row["scalar_embed_nonlinearity"],
        "allegro_mlp_hidden_layers_depth": row["depth"],
        "allegro_mlp_hidden_layers_width": 6,
        "allegro_mlp_nonlinearity": row["nonlinearity"],
    }


def write(row: dict[str, Any], rng: np.random.Generator) -> None:
    """One case, into the current folder."""
    types = [s if row["names"] == "symbols" else f"type{n}" for n, s in enumerate(SYMBOLS[: row["n_types"]])]
    frames = structures(row, rng)
    ase.io.write("frames.xyz", frames, format="extxyz")
    model = model_config(row, types, rng)
    chart = dict(zip(SYMBOLS, types, strict=False))
    data = {
        "_target_": "nequip.data.datamodule.ASEDataModule",
        "seed": 1,
        "train_file_path": "frames.xyz",
        "val_file_path": "frames.xyz",
        "transforms": [
            {
                "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
                "model_type_names": types,
                "chemical_species_to_atom_type_map": chart,
            },
            {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": CUTOFF},
        ],
    }
    averages = row["form"] != "checkpoint"
    module = {
        "_target_": f"nequip.train.{'EMA' if averages else 'NequIP'}LightningModule",
        "model": model,
        "loss": {"_target_": "nequip.train.EnergyForceLoss"},
        "val_metrics": {"_target_": "nequip.train.EnergyForceMetrics"},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
    }
    info = {
        "versions": get_current_code_versions(),
        "data": data,
        "trainer": {"_target_": "lightning.Trainer"},
        "training_module": module,
    }
    arguments = {key: value for key, value in module.items() if key != "_target_"}
    cls = EMALightningModule if averages else NequIPLightningModule
    counts = {"train": 1, "val": 1, "test": 0, "predict": 0}
    lit = cls(**copy.deepcopy(arguments), num_datasets=counts, info_dict=copy.deepcopy(info))
    with torch.no_grad():
        tensors = list(lit.model.parameters()) + [t for n, t in lit.named_buffers() if n.startswith("ema.ema_weight")]
        for tensor in tensors:
            tensor.mul_(1 + 0.1 * torch.from_numpy(rng.normal(size=tuple(tensor.shape))).to(tensor.dtype))
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False)
    trainer.strategy.connect(lit)
    checkpoint = Path("last.ckpt")
    trainer.save_checkpoint(checkpoint)
    if row["form"] == "package":
        package(["build", str(checkpoint), "model.nequip.zip"])
        checkpoint.unlink()

    arguments["model"] = eager(model)
    same = cls(**copy.deepcopy(arguments), num_datasets=counts)
    same.load_state_dict(lit.state_dict())
    predictions = {"raw": predict(same.model["sole_model"], frames, chart, types)}
    if averages:
        predictions["ema"] = predict(same.evaluation_model["sole_model"], frames, chart, types)
    if row["form"] == "package":
        del predictions["raw"]
    case = {
        "versions": info["versions"],
        "options": row,
        "elements": dict(zip(types, SYMBOLS, strict=False)),
        "frames": [
            {
                "types": [chart[s] for s in atoms.get_chemical_symbols()],
                "positions": atoms.positions.tolist(),
                "cell": np.array(atoms.cell).tolist(),
                "pbc": row["periodic"],
            }
            for atoms in frames
        ],
        "predictions": predictions,
    }
    Path("case.json").write_text(json.dumps(case))


def eager(model: dict[str, Any]) -> dict[str, Any]:
    if "model" in model:
        return {**model, "model": eager(model["model"])}
    return {**model, "compile_mode": "eager"}


def predict(model: Any, frames: list[ase.Atoms], chart: dict[str, str], types: list[str]) -> list[dict[str, Any]]:
    """Of each frame, eV and Å."""
    model.eval()
    found = []
    for atoms in frames:
        data = from_ase(atoms)
        data[AtomicDataDict.ATOM_TYPE_KEY] = torch.tensor([types.index(chart[s]) for s in atoms.get_chemical_symbols()])
        out = model(compute_neighborlist_(data, r_max=CUTOFF))
        names = ("total_energy", "atomic_energy", "forces", "virial", *(["stress"] if atoms.pbc.all() else []))
        found.append({name: out[name].detach().double().squeeze().tolist() for name in names})
    return found


def main() -> None:
    """Write the cases, a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", choices=("nequip", "allegro"), default="nequip")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    set_global_state()
    torch.set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = OPTIONS | (ALLEGRO | {"preset": [None]} if options.model == "allegro" else {})
    (options.out / "options.json").write_text(json.dumps(drawn))
    for number, row in enumerate(draw(options.count, rng, options.model)):
        if row["preset"] is not None and not hasattr(nequip.model, "PresetNequIPGNNModel"):
            row["preset"] = None
        folder = options.out / f"{number:02}"
        folder.mkdir(parents=True)
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), contextlib.chdir(folder):
            write(row, np.random.default_rng((options.seed, number)))


if __name__ == "__main__":
    main()
