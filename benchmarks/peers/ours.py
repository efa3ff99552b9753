"""Eager training step and evaluation of nequip-core; prints one line of JSON."""

from __future__ import annotations

import sys

import numpy as np
import torch
from systems import SETTINGS, SYSTEMS, TYPES, labels
from timing import median_ms, report

from nequip_core.graph import collate, from_structure
from nequip_core.models.build import build_model
from nequip_core.models.nequip import NequIPConfig
from nequip_core.neighbors import make_vesin
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.structure import Structure, TypeMap


def main(name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    registry = load_registry()
    config = NequIPConfig(
        types=TYPES,
        atomic_energies=dict.fromkeys(TYPES, -1.0),
        energy_scale=1.0,
        avg_num_neighbors=20.0,
        radial_mlp=[128],
        **SETTINGS,
    )
    model = build_model(registry.models["nequip"], config, Ops(registry.kernels))
    frames = SYSTEMS[name]()
    info = model.info
    type_map = TypeMap(info.types, info.elements)
    cutoffs, neighbors = np.array(info.pair_cutoffs), make_vesin(info.cutoff)
    graph = collate([from_structure(Structure.from_ase(a), type_map, cutoffs, neighbors) for a in frames])
    energy, forces = (torch.from_numpy(x) for x in labels(frames))
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

    report(
        train_ms=median_ms(train),
        evaluate_ms=median_ms(evaluate),
        edges=graph.edge_shift.shape[0],
        parameters=sum(p.numel() for p in model.parameters()),
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
