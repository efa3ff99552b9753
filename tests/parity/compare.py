"""Converts what tests/parity/generate.py wrote, and compares the predictions. Runs in our environment.

    python tests/parity/compare.py OUT [OUT ...]

Prints the options of each case, the errors (the largest difference over the largest absolute value), and in how many
cases each value of each option occurs. Exit code 3 where an error exceeds 1e-10 (models in float64) or 5e-5 (float32),
or where there are 40 cases and a value occurs in fewer than 3.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers

from nequip_core.export.artifact import LoadedModel, load_model
from nequip_core.export.package import without_training, write_package
from nequip_core.export.published import convert, read_published
from nequip_core.graph import from_structure
from nequip_core.neighbors import make_matscipy
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import stress
from nequip_core.structure import Structure

TOLERANCE = {"float64": 1e-10, "float32": 5e-5}
QUANTITIES = ("total_energy", "atomic_energy", "forces", "virial", "stress")


def predict(loaded: LoadedModel, frame: dict[str, Any], elements: dict[str, str]) -> dict[str, np.ndarray]:
    """The published names of what our model gives."""
    info, periodic = loaded.info, frame["pbc"]
    cell = np.array(frame["cell"])
    structure = Structure(
        positions=np.array(frame["positions"]),
        numbers=np.array([atomic_numbers[elements[t]] for t in frame["types"]]),
        cell=cell,
        pbc=np.full(3, periodic),
        type_names=tuple(frame["types"]),
        source="parity",
    )
    graph = from_structure(structure, loaded.type_map, np.array(info.pair_cutoffs), make_matscipy(info.cutoff))
    out = loaded.potential(graph)
    found = {
        "total_energy": out.energy[0],
        "atomic_energy": out.atomic_energy,
        "forces": out.forces,
        "virial": out.virial[0],
    }
    if periodic:
        found["stress"] = stress(out.virial, torch.tensor([abs(np.linalg.det(cell))]))[0]
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


def compare(folder: Path) -> dict[str, float]:
    """The largest relative error of each quantity."""
    case = json.loads((folder / "case.json").read_text())
    source = next(path for path in (folder / "last.ckpt", folder / "model.nequip.zip") if path.exists())
    members = convert(read_published(source), load_registry())
    worst = dict.fromkeys(QUANTITIES, 0.0)
    with tempfile.TemporaryDirectory() as name:
        checkpoint, package = Path(name) / "x.ckpt", Path(name) / "x.nequip.zip"
        write_package(checkpoint, members)
        write_package(package, without_training(members))
        for kind, frames in case["predictions"].items():
            path = package if kind == "ema" else checkpoint
            loaded = load_model(path, weights=kind, registry=load_registry())
            assert loaded.weights == kind, (folder, kind, loaded.weights)
            ours = [predict(loaded, frame, case["elements"]) for frame in case["frames"]]
            for quantity in QUANTITIES:
                if quantity in frames[0]:
                    pairs = [(a[quantity], np.array(b[quantity])) for a, b in zip(ours, frames, strict=True)]
                    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
                    largest = max(float(np.abs(b).max()) for _, b in pairs)
                    worst[quantity] = max(worst[quantity], difference / (largest or 1.0))
    return worst


PRESET = ("num_layers", "l_max", "parity", "type_embed_num_features")
"""Options that a preset has already; what was drawn for them beside one has no effect."""

EMBEDDINGS = {
    "TwoBodyBesselScalarEmbed": (),
    "TwoBodySplineScalarEmbed": ("num_bessels", "bessel_trainable", "polynomial_cutoff_p"),
}
"""Options without effect beside an embedding of Allegro."""

LEAST = 3
CASES = 40


def occurrences(out: Path, cases: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """A line for each option with the number of cases that have each of its values, and the values with too few.

    Options of the other model are left out: those that have one value only, or that no case's model knows.
    """
    options: dict[str, list[Any]] = json.loads((out / "options.json").read_text())
    allegro = "embedding" in options
    unknown = ("num_features", "type_embed_num_features", "radial_mlp_depth", "radial_mlp_width") if allegro else ()
    lines, few = [], []
    for name, values in options.items():
        if name in unknown or len({json.dumps(value) for value in values}) == 1:
            continue
        counts = dict.fromkeys((json.dumps(value) for value in values), 0)
        for case in cases:
            row = case["options"]
            idle = (*(PRESET if row["preset"] else ()), *EMBEDDINGS.get(row.get("embedding"), ()))
            if name not in idle:
                counts[json.dumps(row[name])] += 1
        lines.append(f"{name:28} " + "  ".join(f"{value}: {count}" for value, count in counts.items()))
        few += [f"{name}={value}: {count} cases" for value, count in counts.items() if count < LEAST]
    return lines, few


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    outs = parser.parse_args().folders
    folders = sorted(path.parent for out in outs for path in out.glob("*/case.json"))
    torch.set_num_threads(1)
    rows, failed = [], []
    for folder in folders:
        case = json.loads((folder / "case.json").read_text())
        options = case["options"]
        errors = compare(folder)
        limit = TOLERANCE[options["dtype"]]
        bad = [name for name, error in errors.items() if not error < limit]
        failed += [f"{folder}: {', '.join(bad)}"] if bad else []
        rows.append(
            [folder.name, case["versions"]["nequip"], options["dtype"], *(f"{errors[q]:.1e}" for q in QUANTITIES)]
        )
        drawn = " ".join(f"{key}={value}" for key, value in options.items())
        print(f"{folder.name}  {case['versions']['nequip']}  {drawn}")
    print()
    for row in [["case", "nequip", "dtype", *QUANTITIES], *rows]:
        print("  ".join(f"{cell:>13}" for cell in row))
    print(f"\n{len(rows)} cases, {len(failed)} outside {TOLERANCE}")
    for out in outs:
        cases = [json.loads(path.read_text()) for path in sorted(out.glob("*/case.json"))]
        lines, few = occurrences(out, cases)
        print(f"\nCases of {out.name} that have each value:\n" + "\n".join(lines))
        if few and len(cases) >= CASES:
            failed.append(f"{out}: fewer than {LEAST} cases have {', '.join(few)}")
    for line in failed:
        print(line)
    return 3 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
