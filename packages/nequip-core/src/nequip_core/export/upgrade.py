"""Files of older schemas, member by member, in the form of today's.

Every schema stays readable: `UPGRADES` holds a function from each to the next. What the schemas are is written down in
docs/reference/versions.md; tests/golden/packages keeps a file of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Contents = dict[str, Any]
"""Members by name: JSON as Python's objects, safetensors as dictionaries of tensors."""


class EditedError(ValueError):
    """The contents are not those that an older file's hash was made of."""


def upgraded(contents: Contents, schema: int, to: int) -> Contents:
    """The members of a file of ``schema`` as one of schema ``to`` has them, but for the hashes in its manifest.

    Raises:
        EditedError: the file was changed after it was written.
        KeyError, TypeError, ValueError: it is not as that schema says.
    """
    for number in range(schema, to):
        contents = UPGRADES[number](contents)
    return contents


def from_0(contents: Contents) -> Contents:
    """Schema 0 had the energy scale and the atomic energies beside the weights, as lists in the order of the types."""
    about, model, weights = contents["manifest.json"], contents["model.json"], contents["weights.safetensors"]
    if about["hash"] != _weights_hash(weights):
        raise EditedError(f"hash in its manifest is {about['hash']}, its weights give {_weights_hash(weights)}")
    types = model["types"]
    energies, scale = model["atomic_energies"], model["energy_scale"]
    check: Contents = {}
    for n, case in enumerate(contents["check.json"]):
        check |= {f"{n}.{name}": torch.tensor(value, dtype=DTYPES[name]) for name, value in case["arrays"].items()}
    return {
        "manifest.json": {
            "format": about["format"],
            "schema": 1,
            "versions": {"nequip-core": about["version"]},
            "model_hash": None,
            "raw_model_hash": None,
            "model_from": f"nequip-core {about['version']}",
            "units": about["units"],
            "weights": about["weights"],
            "licence": about.get("licence"),
            "citations": [about["citation"]] if about.get("citation") else [],
        },
        "model.json": {
            **model,
            "atomic_energies": dict(zip(types, energies, strict=True)),
            "energy_scale": dict(zip(types, scale, strict=True)),
        },
        "weights.safetensors": {
            **weights,
            "scale": torch.tensor(scale, dtype=torch.float64),
            "shift": torch.tensor(energies, dtype=torch.float64),
        },
        "data.json": contents["training.json"]["data"],
        "metrics.json": contents["training.json"]["metrics"],
        "check.json": {
            "structures": [
                {"source": case["source"], "type_names": case["type_names"]} for case in contents["check.json"]
            ],
            "units": about["units"],
        },
        "check.safetensors": check,
    }


DTYPES = {
    "positions": torch.float64,
    "numbers": torch.int64,
    "cell": torch.float64,
    "pbc": torch.bool,
    "energy": torch.float64,
    "forces": torch.float64,
    "stress": torch.float64,
}
"""Of the arrays of a check structure."""

UPGRADES: dict[int, Callable[[Contents], Contents]] = {0: from_0}


def _weights_hash(weights: dict[str, Tensor]) -> str:
    """SHA-256 of the names and numbers: what schema 0 had for `nequip_core.export.package.model_hash`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
