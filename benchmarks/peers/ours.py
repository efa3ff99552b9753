"""Eager training step and evaluation of nequip-core; prints one line of JSON."""

from __future__ import annotations

import sys

import numpy as np
import torch
from systems import MODELS, SYSTEMS, TYPES, labels
from timing import median_ms, peak_memory_mb, report, start_memory

from nequip_core.graph import collate, from_structure, to
from nequip_core.models.build import build_model
from nequip_core.neighbors import make_vesin
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.structure import Structure, TypeMap


def main(model_name: str, name: str, threads: int, device: str) -> None:
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
    model = build_model(entry, config, Ops(registry.kernels, device=device)).to(device)
    frames = SYSTEMS[name]()
    info = model.info
    type_map = TypeMap(info.types, info.elements)
    cutoffs, neighbors = np.array(info.pair_cutoffs), make_vesin(info.cutoff)
    graph = collate([from_structure(Structure.from_ase(a), type_map, cutoffs, neighbors) for a in frames])
    graph = to(graph, device)
    energy, forces = (torch.from_numpy(x).to(device) for x in labels(frames))
    potential = Potential(model)
    optimizer = torch.optim.Adam(potential.parameters(), lr=1e-6)

    def train() -> None:
        potential.train()
        p = potential(graph)
        loss = (p.energy - energy).square().mean() + (p.forces - forces).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def evaluate() -> None:
        potential.eval()(graph)

    start_memory(device)
    evaluate_ms = median_ms(evaluate, device)
    evaluate_mb = peak_memory_mb(device)
    train_ms = median_ms(train, device)
    report(
        train_ms=train_ms,
        evaluate_ms=evaluate_ms,
        train_mb=peak_memory_mb(device),
        evaluate_mb=evaluate_mb,
        edges=graph.edge_shift.shape[0],
        parameters=sum(p.numel() for p in model.parameters()),
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
