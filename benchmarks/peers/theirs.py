"""The same of the published nequip package, in its own environment; see sides.py."""

from __future__ import annotations

import sys
import time

import torch
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from systems import MODELS, SYSTEMS, TYPES, labels
from timing import answer, median_ms, peak_memory_mb, report, start_memory


def main(model_name: str, name: str, threads: int, device: str, mode: str) -> None:
    torch.set_num_threads(threads)
    set_global_state()
    types = TYPES[name]
    settings = dict(MODELS[model_name])
    cutoff = settings.pop("cutoff")
    common = {
        "seed": 1,
        "model_dtype": "float32",
        "type_names": types,
        "r_max": cutoff,
        "avg_num_neighbors": 20.0,
        "per_type_energy_scales": 1.0,
        "per_type_energy_shifts": -1.0,
        "compile_mode": "compile" if mode == "compiled" else "eager",
    }
    if model_name.startswith("nequip"):
        model = NequIPGNNModel(**common, **settings).to(device)
    else:
        from allegro.model import AllegroModel

        embed = {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8}
        model = AllegroModel(**common, **settings, radial_chemical_embed=embed, radial_chemical_embed_dim=64).to(device)
    frames = SYSTEMS[name]()
    graphs = []
    for atoms in frames:
        graph = compute_neighborlist_(from_ase(atoms), r_max=cutoff)
        graph["atom_types"] = torch.tensor([types.index(s) for s in atoms.get_chemical_symbols()])
        graphs.append(graph)
    batch = AtomicDataDict.batched_from_list(graphs) if len(graphs) > 1 else graphs[0]
    energy, forces = (torch.from_numpy(x).to(device) for x in labels(frames))
    energy = energy.unsqueeze(1)
    batch = {key: value.to(device) for key, value in batch.items()}
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

    def measure() -> dict[str, float]:
        figures: dict[str, float] = {}
        if mode == "eager":
            start_memory(device)
            figures |= {"evaluate_ms": median_ms(evaluate, device), "evaluate_mb": peak_memory_mb(device)}
        start_memory(device)
        return figures | {"train_ms": median_ms(train, device), "train_mb": peak_memory_mb(device)}

    start = time.perf_counter()
    train()
    report(
        first_s=time.perf_counter() - start,
        edges=batch["edge_index"].shape[1],
        parameters=sum(p.numel() for p in model.parameters()),
    )
    answer(measure)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
