"""The same of the published nequip package, in its own environment; prints one line of JSON."""

from __future__ import annotations

import sys

import torch
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from systems import SETTINGS, SYSTEMS, TYPES, labels
from timing import median_ms, report


def main(name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    set_global_state()
    settings = dict(SETTINGS)
    model = NequIPGNNModel(
        seed=1,
        model_dtype="float32",
        type_names=TYPES,
        r_max=settings.pop("cutoff"),
        avg_num_neighbors=20.0,
        per_type_energy_scales=1.0,
        per_type_energy_shifts=-1.0,
        **settings,
    )
    frames = SYSTEMS[name]()
    graphs = []
    for atoms in frames:
        graph = compute_neighborlist_(from_ase(atoms), r_max=SETTINGS["cutoff"])
        graph["atom_types"] = torch.tensor([TYPES.index(s) for s in atoms.get_chemical_symbols()])
        graphs.append(graph)
    batch = AtomicDataDict.batched_from_list(graphs) if len(graphs) > 1 else graphs[0]
    energy, forces = (torch.from_numpy(x) for x in labels(frames))
    energy = energy.unsqueeze(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)

    def train() -> None:
        model.train()
        out = model(dict(batch))
        loss = (out["total_energy"] - energy).square().mean() + (out["forces"] - forces).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def evaluate() -> None:
        model.eval()
        model(dict(batch))

    report(
        train_ms=median_ms(train),
        evaluate_ms=median_ms(evaluate),
        edges=batch["edge_index"].shape[1],
        parameters=sum(p.numel() for p in model.parameters()),
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
