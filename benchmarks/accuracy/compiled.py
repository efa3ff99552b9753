"""How far compiled files are from eager models on real structures.

python benchmarks/accuracy/compiled.py FILE... [--count 50] [--device cpu] [--out FILE.csv]

One NequIP and one Allegro of all elements in the files, with random weights and forces of the order of 1 eV/Å, each in
float64 and float32. For every file: the largest difference of energies, per atom and relative to the largest part
of them that the network makes, and of forces, relative to the largest force.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from nequip_core.data.read import read
from nequip_core.engines.evaluate import Predictor, predictor
from nequip_core.export.aoti import TOLERANCE, compile_model
from nequip_core.export.artifact import load_model
from nequip_core.plugins.manager import Registry, load_registry
from nequip_core.structure import Structure
from nequip_core.testing import systems
from nequip_core.testing.checks import make_case

E0 = -10.0
"""Of every element, eV."""

MODELS = {
    "nequip": {"num_layers": 2, "l_max": 2, "num_features": 16, "radial_mlp": [32]},
    "allegro": {"num_layers": 2, "l_max": 2, "num_scalar_features": 32, "num_tensor_features": 16},
}


def pair(name: str, types: list[str], dtype: str, device: str, registry: Registry, folder: Path) -> list[Predictor]:
    """The compiled and the eager model."""
    known = [*types, *(name for name in systems.TYPES if name not in types)]  # by whose structures forces are scaled
    keys = {"types": known, "pair_cutoffs": {}, "cutoff": 5.0, "avg_num_neighbors": 30.0}
    energies = {"atomic_energies": dict.fromkeys(known, E0), "energy_scale": 1.0, "dtype": dtype}
    source = make_case(registry.models[name], keys | energies | MODELS[name]).write(folder / f"{name}.nequip.zip")
    out = folder / f"{name}-{dtype}.nequip.pt2"
    eager = load_model(source, device=device, kernels="reference")
    compile_model(load_model(source, device=device), registry.targets["batch"], out, registry, say=print)
    return [predictor(one, registry, batch_atoms=2000) for one in (load_model(out, device=device), eager)]


def deviation(models: list[Predictor], frames: list[Structure]) -> tuple[float, float]:
    """Of energies per atom and of forces, relative."""
    ours, theirs = (list(model.stream(frames)) for model in models)
    energy, force, energies, forces = 0.0, 0.0, 0.0, 0.0
    for (structure, one), (_, other) in zip(ours, theirs, strict=True):
        network = other.energy - E0 * len(structure)
        energy = max(energy, abs(one.energy - other.energy) / len(structure))
        energies = max(energies, abs(network) / len(structure))
        force = max(force, float(np.abs(one.forces - other.forces).max()))
        forces = max(forces, float(np.abs(other.forces).max()))
    return energy / energies, force / forces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    registry = load_registry()
    frames = {
        str(path): list(itertools.islice(read(path, readers=registry.readers), options.count)) for path in options.files
    }
    numbers = sorted({int(n) for each in frames.values() for one in each for n in one.numbers})
    types = [Atoms(numbers=[number]).get_chemical_symbols()[0] for number in numbers]
    rows = []
    for name, dtype in itertools.product(MODELS, TOLERANCE):
        with tempfile.TemporaryDirectory() as folder:
            models = pair(name, types, dtype, options.device, registry, Path(folder))
            for path, each in frames.items():
                energy, force = deviation(models, each)
                known = {"date": datetime.now(UTC).date().isoformat(), "device": options.device, "model": name}
                row = known | {"dtype": dtype, "file": "/".join(Path(path).parts[-2:]), "frames": len(each)}
                rows.append(row | {"energy": f"{energy:.1e}", "forces": f"{force:.1e}", "allowed": TOLERANCE[dtype]})
                print(rows[-1], flush=True)
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
