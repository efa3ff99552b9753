"""The same of the published packages, in their own environment; see sides.py."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.integrations.ase import NequIPCalculator
from nequip.train import NequIPLightningModule
from nequip.utils.global_state import set_global_state
from nequip.utils.versions import get_current_code_versions
from systems import MODELS, SYSTEMS, TYPES, compiled_file
from timing import answer, median_ms, peak_memory_mb, report, start_memory

MODIFIERS = {
    "file": [],
    "kernels": {"allegro": ["enable_TritonContracter"], "nequip": ["enable_OpenEquivariance"]},
}
"""By mode and architecture."""

SMALL = {"water": "water_192", "silicon": "silicon_64"}
"""What their trainer sees, for a system of any size."""


def model_config(model_name: str, types: list[str]) -> dict[str, Any]:
    settings = dict(MODELS[model_name])
    common = {
        "seed": 1,
        "model_dtype": "float32",
        "type_names": types,
        "r_max": settings.pop("cutoff"),
        "avg_num_neighbors": 20.0,
        "per_type_energy_scales": 1.0,
        "per_type_energy_shifts": -1.0,
    }
    if "type_embedding_dim" in settings:
        settings["type_embed_num_features"] = settings.pop("type_embedding_dim")
    if model_name.startswith("nequip"):
        return {"_target_": "nequip.model.NequIPGNNModel", **common, **settings}
    embed = {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8}
    extra = {"radial_chemical_embed": embed, "radial_chemical_embed_dim": 64}
    return {"_target_": "allegro.model.AllegroModel", **common, **settings, **extra}


def checkpoint(model_name: str, types: list[str], frames: list[Any]) -> NequIPLightningModule:
    """last.ckpt in the current folder, of random weights; the module that was saved."""
    import ase.io

    ase.io.write("frames.xyz", frames, format="extxyz")
    config = model_config(model_name, types)
    data = {
        "_target_": "nequip.data.datamodule.ASEDataModule",
        "seed": 1,
        "train_file_path": "frames.xyz",
        "val_file_path": "frames.xyz",
        "transforms": [
            {"_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper", "model_type_names": types},
            {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": config["r_max"]},
        ],
    }
    module = {
        "_target_": "nequip.train.NequIPLightningModule",
        "model": config,
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
    lit = NequIPLightningModule(
        **arguments, num_datasets={"train": 1, "val": 1, "test": 0, "predict": 0}, info_dict=info
    )
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False)
    trainer.strategy.connect(lit)
    trainer.save_checkpoint("last.ckpt")
    return lit


def compile_file(model_name: str, mode: str, device: str, file: Path) -> None:
    """last.ckpt of the current folder by their command."""
    chosen = MODIFIERS[mode]
    modifiers = chosen[model_name.partition("_")[0]] if isinstance(chosen, dict) else chosen
    command = [sys.executable, "-m", "nequip.scripts.compile", "last.ckpt", "model.nequip.pt2"]
    command += ["--mode", "aotinductor", "--device", device, "--target", "ase"]
    command += ["--modifiers", *modifiers] if modifiers else []
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ)
    shutil.copy("model.nequip.pt2", file)


def main(model_name: str, name: str, threads: int, device: str, mode: str, files: str) -> None:
    torch.set_num_threads(threads)
    set_global_state()
    types = TYPES[name]
    (atoms,) = SYSTEMS[name]()
    cutoff = MODELS[model_name]["cutoff"]
    file = compiled_file(files, "theirs", model_name, name, mode, device)
    start = time.perf_counter()
    if mode == "eager" or not file.exists():
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.chdir(folder),
            contextlib.redirect_stdout(sys.stderr),
        ):
            lit = checkpoint(model_name, types, SYSTEMS[SMALL[name.partition("_")[0]]]())
            if mode != "eager":
                compile_file(model_name, mode, device, file)
    calculator = None
    if mode != "eager":
        calculator = NequIPCalculator.from_compiled_model(
            str(file), device=device, chemical_species_to_atom_type_map=True
        )
    model = calculator.model if calculator else lit.model["sole_model"].to(device).eval()
    graph = compute_neighborlist_(from_ase(atoms), r_max=cutoff)
    graph["atom_types"] = torch.tensor([types.index(s) for s in atoms.get_chemical_symbols()])
    graph = AtomicDataDict.to_(graph, device) if hasattr(AtomicDataDict, "to_") else _to(graph, device)
    rng = np.random.default_rng(0)
    moved = atoms.copy()
    moved.calc = calculator

    def call() -> None:
        model(dict(graph))

    def step() -> None:
        moved.positions += rng.normal(scale=0.002, size=moved.positions.shape)
        moved.get_forces()

    def measure() -> dict[str, float]:
        start_memory(device)
        figures = {"call_ms": median_ms(call, device), "call_mb": peak_memory_mb(device)}
        figures["us_per_atom"] = 1e3 * figures["call_ms"] / len(atoms)
        return figures | {"step_ms": median_ms(step, device) if calculator else float("nan")}

    report(first_s=time.perf_counter() - start, atoms=len(atoms), edges=graph["edge_index"].shape[1])
    answer(measure)


def _to(graph: dict[str, Any], device: str) -> dict[str, Any]:
    return {key: value.to(device) for key, value in graph.items()}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5], sys.argv[6])
