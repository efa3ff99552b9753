"""Packages with check structures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nequip_core.export.package import Members, Provenance, manifest, model_hash
from nequip_core.export.verify import with_check
from nequip_core.models.base import EnergyModel
from nequip_core.models.build import build_model
from nequip_core.models.nequip import NequIPConfig
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry

ALLEGRO: dict[str, Any] = {"num_tensor_features": 3, "num_scalar_features": 6, "two_body_dim": 6, "latent_mlp": [6]}


@pytest.fixture
def packaged(make_config: Callable[..., NequIPConfig]) -> Callable[..., Members]:
    """``(name="nequip", **keys)``: the members of a package of a small model, with check structures."""

    def make(name: str = "nequip", **keys: Any) -> Members:
        registry = load_registry()
        config: Any = make_config(**keys) if name == "nequip" else _allegro(keys)
        torch.manual_seed(0)
        model: EnergyModel = build_model(
            registry.models[name], config, Ops(registry.kernels, dtype=getattr(torch, config.dtype))
        )
        weights = dict(model.state_dict())
        provenance = Provenance(
            model=asdict(config), data={}, config={}, versions={"nequip-core": "0"}, provider="nequip-core 0"
        )
        members = Members(
            manifest=manifest(provenance, kind="raw", weights=weights, raw={}),
            model=provenance.model,
            weights=weights,
            data={},
            metrics={},
            check={"structures": []},
            check_tensors={},
        )
        return with_check(Path("made"), members, registry)

    return make


def _allegro(keys: dict[str, Any]) -> Any:
    defaults = {
        "cutoff": 3.5,
        "types": ["H", "O"],
        "atomic_energies": {"H": -13.6, "O": -430.0},
        "energy_scale": {"H": 1.5, "O": 0.7},
        "avg_num_neighbors": 9.0,
    }
    return load_registry().models["allegro"].config.load()(**(defaults | ALLEGRO | keys))


@pytest.fixture
def forged() -> Callable[..., Members]:
    """``(members, **weights)``: with other weights, and a hash that is right for them."""

    def make(members: Members, **weights: torch.Tensor) -> Members:
        changed = members.weights | weights
        about = members.manifest | {"model_hash": model_hash(members.model, changed)}
        return replace(members, manifest=about, weights=changed)

    return make
