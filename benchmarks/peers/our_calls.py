"""Calls of nequip-core for energies and forces: eager, or a compiled file with or without kernels; see sides.py."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from systems import MODELS, SYSTEMS, TYPES, compiled_file
from timing import answer, median_ms, peak_memory_mb, report, start_memory

from nequip_core.blocks import Blocks
from nequip_core.engines.ase import NequIPCalculator
from nequip_core.export.aoti import compile_model
from nequip_core.export.artifact import LoadedModel, load_model
from nequip_core.export.package import Members, Provenance, manifest, write_package
from nequip_core.graph import Graph
from nequip_core.models.build import build_model
from nequip_core.neighbors import DEVICE
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.skin import SkinGraph
from nequip_core.structure import Structure

KERNELS: dict[str, dict[str, Any]] = {
    "eager": {"kernels": "reference"},
    "file": {"kernels": "reference"},
    "kernels": {"kernels": "auto", "derivatives": 1},
    "stored": {"kernels": "auto"},  # features of all layers, weights of edges
}
"""By mode: how the model is loaded."""

MANY = 100_000
"""Atoms that may not fit into memory at once: their calls are divided, as in the engines."""


def package(model_name: str, types: list[str], path: Path) -> None:
    """A model with random weights."""
    registry = load_registry()
    entry = registry.models[model_name.partition("_")[0]]
    torch.manual_seed(1)
    config = entry.config.load()(
        types=types,
        atomic_energies=dict.fromkeys(types, -1.0),
        energy_scale=1.0,
        avg_num_neighbors=20.0,
        **MODELS[model_name],
    )
    model = build_model(entry, config, Ops(registry.kernels, request="reference"))
    block, weights = asdict(config), dict(model.state_dict())
    about = Provenance(model=block, data={}, config={}, versions={}, provider="benchmark")
    members = Members(
        manifest=manifest(about, kind="raw", weights=weights, raw={}),
        model=block,
        weights=weights,
        data={},
        metrics={},
        check={"structures": []},
        check_tensors={},
    )
    write_package(path, members)


def graph_of(atoms: Atoms, loaded: LoadedModel) -> Graph:
    """Listed on the device, which takes a million atoms too."""
    make = SkinGraph(load_registry().neighbor_lists[DEVICE], np.array(loaded.info.pair_cutoffs), 0.0, loaded.device)
    types = loaded.type_map.indices(Structure.from_ase(atoms))
    return make(atoms.positions, types, atoms.cell.array, atoms.pbc)


def main(model_name: str, name: str, threads: int, device: str, mode: str, files: str) -> None:
    torch.set_num_threads(threads)
    registry = load_registry()
    types = TYPES[name]
    file = compiled_file(files, "ours", model_name, name, mode, device)
    start = time.perf_counter()
    if mode == "eager" or not file.exists():
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "model.nequip.zip"
            package(model_name, types, source)
            loaded = load_model(source, device=device, **KERNELS[mode])
        if mode != "eager":
            compile_model(loaded, registry.targets["ase"], file, registry, say=lambda text: None)
    if mode != "eager":
        loaded = load_model(file, device=device)
    first_s = time.perf_counter() - start

    (atoms,) = SYSTEMS[name]()
    info = loaded.info
    graph = graph_of(atoms, loaded)
    divided = Blocks(loaded.potential, info) if len(atoms) > MANY else loaded.potential
    calculator = NequIPCalculator(loaded)
    rng = np.random.default_rng(0)
    moved = atoms.copy()
    moved.calc = calculator

    def call() -> None:
        divided(graph)

    def step() -> None:
        """As in molecular dynamics: atoms move a little, and energy and forces come back to the host."""
        moved.positions += rng.normal(scale=0.002, size=moved.positions.shape)
        moved.get_forces()

    def measure() -> dict[str, float]:
        start_memory(device)
        figures = {"call_ms": median_ms(call, device), "call_mb": peak_memory_mb(device)}
        figures["us_per_atom"] = 1e3 * figures["call_ms"] / len(atoms)
        return figures | {"step_ms": median_ms(step, device)}

    report(
        first_s=first_s,
        atoms=len(atoms),
        edges=graph.edge_shift.shape[0],
        kernels={op: about["chosen"] for op, about in loaded.kernels.items()},
    )
    answer(measure)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5], sys.argv[6])
