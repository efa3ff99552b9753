"""Writes tests/golden/packages: one small model in every schema of our packages.

    python tests/golden/make_packages.py

Files of a schema are never made again after that schema was left: only the newest one is.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from nequip_core.export.package import SCHEMA, Members, Provenance, manifest, write_package
from nequip_core.export.verify import with_check
from nequip_core.models.build import build_model
from nequip_core.models.nequip import NequIPConfig
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry

HERE = Path(__file__).parent / "packages"


def model() -> Members:
    """H and O, with a type that is finer than its element."""
    registry = load_registry()
    config = NequIPConfig(
        cutoff=3.5,
        types=["H", "Ow"],
        elements={"Ow": "O"},
        atomic_energies={"H": -13.587222780835477, "Ow": -2041.9816003861047},
        energy_scale={"H": 0.75, "Ow": 1.25},
        avg_num_neighbors=8.0,
        l_max=1,
        num_layers=2,
        num_features=[3, 2],
        radial_mlp=[4],
    )
    torch.manual_seed(0)
    weights = dict(build_model(registry.models["nequip"], config, Ops(registry.kernels)).state_dict())
    provenance = Provenance(
        model=asdict(config),
        data={"n_structures": {"train": 2, "val": 1}},
        config={},
        versions={"nequip-core": "0.0.1"},
        provider="nequip-core 0.0.1",
        citations=["10.1038/s41467-022-29939-5"],
        licence="MIT",
    )
    members = Members(
        manifest=manifest(provenance, kind="raw", weights=weights, raw={}),
        model=provenance.model,
        weights=weights,
        data=provenance.data,
        metrics={"val_loss": 0.5},
        check={"structures": []},
        check_tensors={},
    )
    return with_check(HERE, members, registry)


def as_schema_0(members: Members) -> dict[str, Any]:
    """The members of the file as schema 0 had them; see docs/reference/versions.md."""
    types = members.model["types"]
    weights = {name: tensor for name, tensor in members.weights.items() if name not in ("scale", "shift")}
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    arrays: list[dict[str, Any]] = [{} for _ in members.check["structures"]]
    for name, tensor in members.check_tensors.items():
        number, _, key = name.partition(".")
        arrays[int(number)][key] = tensor.tolist()
    return {
        "manifest.json": {
            "format": "nequip-core/package",
            "schema": 0,
            "version": members.manifest["versions"]["nequip-core"],
            "hash": digest.hexdigest(),
            "weights": members.manifest["weights"],
            "units": members.manifest["units"],
            "licence": members.manifest["licence"],
            "citation": members.manifest["citations"][0],
        },
        "model.json": members.model
        | {name: [members.model[name][t] for t in types] for name in ("atomic_energies", "energy_scale")},
        "weights.safetensors": weights,
        "training.json": {"data": members.data, "metrics": members.metrics},
        "check.json": [one | {"arrays": each} for one, each in zip(members.check["structures"], arrays, strict=True)],
    }


def main() -> None:
    """Write them."""
    HERE.mkdir(exist_ok=True)
    members = model()
    write_package(HERE / f"schema-{SCHEMA}.nequip.zip", members)
    oldest = HERE / "schema-0.nequip.zip"
    if not oldest.exists():
        with zipfile.ZipFile(oldest, "w", zipfile.ZIP_STORED) as archive:
            for name, content in as_schema_0(members).items():
                plain = name.endswith(".json")
                data = json.dumps(content, indent=1).encode() if plain else safetensors.torch.save(content)
                archive.writestr(zipfile.ZipInfo(name), data)


if __name__ == "__main__":
    main()
