"""Training step and evaluation of nequip-core; see sides.py.

Modes: eager, compiled (whose small steps are CUDA graphs, as in `nequip train`) or compiled-launched (none are); with
-reference without kernels, with -layers with a kernel for each layer of networks.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from systems import MODELS, SYSTEMS, TYPES, labels
from timing import answer, median_ms, peak_memory_mb, report, start_memory

from nequip_core.data.batch import Batch
from nequip_core.data.dataset import Dataset
from nequip_core.data.ghost import Ghost
from nequip_core.models.build import build_model
from nequip_core.neighbors import make_vesin
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.recording import Recorder
from nequip_core.structure import Structure, TypeMap
from nequip_core.training.compiled import CompiledTraining, Sample, sample_sizes
from nequip_core.training.graphs import LARGEST
from nequip_core.training.loss import Loss, Term, mse
from nequip_core.training.optimizers import adam

REQUESTS: dict[str, str | dict[str, str]] = {
    "reference": "reference",
    "layers": {"scalar_mlp": "triton_layers"},
}
"""Kernels, by what follows in a mode."""


def main(model_name: str, name: str, threads: int, device: str, mode: str) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    registry = load_registry()
    types = TYPES[name]
    entry = registry.models[model_name.partition("_")[0]]
    config = entry.config.load()(
        types=types,
        atomic_energies=dict.fromkeys(types, -1.0),
        energy_scale=1.0,
        avg_num_neighbors=20.0,
        **MODELS[model_name],
    )
    request = REQUESTS.get(mode.partition("-")[2], "auto")
    ops = Ops(registry.kernels, request=request, device=device)
    model = build_model(entry, config, ops).to(device)
    frames = SYSTEMS[name]()
    info = model.info
    type_map = TypeMap(info.types, info.elements)
    cutoffs, neighbors = np.array(info.pair_cutoffs), make_vesin(info.cutoff)
    energies, forces = labels(frames)
    ends = np.cumsum([len(one) for one in frames])
    structures = [
        dataclasses.replace(Structure.from_ase(one), energy=float(energy), forces=each)
        for one, energy, each in zip(frames, energies, np.split(forces, ends[:-1]), strict=True)
    ]
    dataset = Dataset(structures, type_map, cutoffs, neighbors)
    batch: Batch = dataset.batch(range(len(dataset)))
    potential = Potential(model).train()
    loss = Loss((Term("energy", 1.0, mse(0.0)), Term("forces", 1.0, mse(0.0))))
    optimizer = adam(potential.parameters(), lr=1e-6)

    def loss_of(batch: Batch) -> torch.Tensor:
        return loss(potential(batch.graph), batch)

    backward: Callable[[torch.Tensor], None] = torch.autograd.backward
    compiling = mode.startswith("compiled")
    few = int(dataset.edges.sum()) <= LARGEST
    recording = compiling and device == "cuda" and few and "launched" not in mode
    start = time.perf_counter()
    if compiling:
        ghost = Ghost(0.5 * info.cutoff)
        sizes = sample_sizes(len(dataset), float(dataset.atoms.mean()), float(dataset.edges.mean()))
        dump = Path(tempfile.gettempdir()) / "deviation.safetensors"
        compiled = CompiledTraining(
            potential,
            loss,
            sample=Sample(sizes, sizes),
            ghost=ghost,
            dump=dump,
            say=lambda text: None,
            recorder=Recorder if recording else None,
        )
        compiled.prepare_training(torch.device(device))
        batch, loss_of, backward = ghost(batch, rounded=recording), compiled.loss, compiled.backward
    first_s = time.perf_counter() - start
    batch = batch.to(device)

    def train() -> None:
        potential.train()
        value = loss_of(batch)
        optimizer.zero_grad()
        backward(value)
        optimizer.step()

    def evaluate() -> None:
        potential.eval()(batch.graph)

    def measure() -> dict[str, float]:
        figures: dict[str, float] = {}
        if not compiling:
            start_memory(device)
            figures |= {"evaluate_ms": median_ms(evaluate, device), "evaluate_mb": peak_memory_mb(device)}
        if recording:  # before memory is watched; the second step of a size is recorded
            train()
            train()
            torch.cuda.empty_cache()
        start_memory(device)
        figures["train_ms"] = median_ms(train, device)
        # The memory of a recording does not count as allocated.
        figures["train_mb"] = torch.cuda.max_memory_reserved() / 1e6 if recording else peak_memory_mb(device)
        return figures

    report(
        first_s=first_s,
        edges=batch.graph.edge_shift.shape[0],
        parameters=sum(p.numel() for p in model.parameters()),
        compiled=compiled.report() if compiling else None,
        recording=recording,
        kernels={op: about["chosen"] for op, about in ops.report.items()},
    )
    answer(measure)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
