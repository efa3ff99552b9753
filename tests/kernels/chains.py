"""Chains of contractions against the reference: value and first derivatives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nequip_allegro.model import AllegroConfig, contraction_specs
from nequip_core.graph import to
from nequip_core.o3 import SCALAR
from nequip_core.ops.contraction import make_chain as make_reference
from nequip_core.ops.contracts import ChainSpec
from nequip_core.testing.kernels import random_graph
from nequip_kernels.chain.make import make_chain

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def chains(
    l_max: int, *, parity: bool = True, layers: int = 3, channels: int = 3, coupled: bool = True
) -> list[ChainSpec]:
    """The scalars of a first layer, and the first two layers of a model."""
    config = AllegroConfig(
        l_max=l_max,
        parity=parity,
        num_layers=layers,
        num_tensor_features=channels,
        tp_path_channel_coupling=coupled,
    )
    first, second, *_ = contraction_specs(config)
    scalars = dataclasses.replace(first, irreps_out=(SCALAR,), scalars_apart=False)
    return [ChainSpec((scalars,), passes=True), ChainSpec((first, second))]


def deviations(
    spec: ChainSpec,
    dtype: torch.dtype,
    device: torch.device,
    *,
    atoms: int = 6,
    lengths: tuple[int, ...] = (7, 0, 3, 11, 1, 5),
    degrees: int | None = None,
) -> dict[str, float]:
    """Of each result and each first derivative, as parts of its largest number."""
    graph = to(random_graph(atoms, lengths), device)
    first, edges = spec.layers[0], graph.edge_shift.shape[0]
    components, channels = (first.l_max + 1) ** 2, first.channels
    shapes = {
        "factors": (edges, first.l_max + 1, channels),
        "harmonics": (edges, components),
        **{f"environment {n}": (atoms, components, channels) for n in range(len(spec.layers) - 1)},
        "env_weights": (edges, degrees or first.l_max + 1, channels),
    }
    generator = torch.Generator().manual_seed(1)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = {name: normal(shape) for name, shape in shapes.items()}
    weights = [normal((len(layer.paths), channels if layer.coupled else 1)) for layer in spec.layers]
    directions: list[Tensor] = []

    def results(function: Callable[..., Any], kind: torch.dtype) -> dict[str, Tensor]:
        leaves = {name: x.to(device, kind).requires_grad_() for name, x in inputs.items()}
        factors, harmonics, *environments, env_weights = leaves.values()
        paths = [one.to(device, kind) for one in weights]
        found = function(factors, harmonics, environments, env_weights, paths, graph)
        if not directions:
            directions.extend(normal(tuple(one.shape)) for one in found)
        total = sum((one * direction.to(one)).sum() for one, direction in zip(found, directions, strict=True))
        first_derivatives = torch.autograd.grad(total, [*leaves.values()])
        named = {f"result {n}": one.detach() for n, one in enumerate(found)}
        return named | {f"by {name}": one for name, one in zip(leaves, first_derivatives, strict=True)}

    ours = results(make_chain(spec, dtype, device), dtype)
    theirs = results(make_reference(spec, torch.float64, device), torch.float64)
    assert ours.keys() == theirs.keys()

    def deviation(one: Tensor, other: Tensor) -> float:
        assert one.shape == other.shape
        return float((one.double() - other).abs().max() / other.abs().max()) if one.numel() else 0.0

    return {name: deviation(ours[name], theirs[name]) for name in ours}


def check(spec: ChainSpec, dtype: torch.dtype, device: torch.device, **graph: Any) -> None:
    """Raise where a number deviates by more than `TOLERANCE`."""
    found = deviations(spec, dtype, device, **graph)
    assert max(found.values()) <= TOLERANCE[dtype], found
