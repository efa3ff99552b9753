"""Allegro with environments from hidden layers: the same predictions, and weights that are nowhere in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.kernels.test_models import with_our_operators

from nequip_allegro.model import Allegro
from nequip_core.graph import Graph
from nequip_core.models.build import build_model
from nequip_core.ops.contraction import UnrolledChain
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.plugins.records import Ref
from nequip_core.potential import Potential
from nequip_core.testing import systems
from nequip_core.testing.checks import SMALLEST, TRACED, Case, make_case
from nequip_core.tracing import axes, sample_graph, trace
from nequip_kernels.chain.make import KernelChain

CONFIGS: dict[str, dict[str, Any]] = {
    "two layers": {"l_max": 2, "num_layers": 2, "num_tensor_features": 3, "latent_mlp": [4], "two_body_mlp": [5]},
    "three layers, one weight for all degrees": {
        "l_max": 1,
        "num_layers": 3,
        "num_tensor_features": 3,
        "weight_individual_irreps": False,
        "tp_path_channel_coupling": False,
        "latent_mlp": [6, 2],
        "two_body_mlp": [2],
    },
    "a norm for each type": {
        "l_max": 1,
        "num_layers": 2,
        "num_tensor_features": 2,
        "parity": False,
        "latent_mlp": [3],
        "two_body_mlp": [3],
        "avg_num_neighbors": {"H": 4.0, "C": 9.0, "O": 7.0, "Ow": 5.0},
    },
}


def with_chains(case: Case, kernel: str) -> Potential:
    """The model of a case as it is built for a compiled file, where chains are taken on the CPU."""
    kernels = dict(load_registry().kernels)
    entry = kernels[f"allegro.chain/1/{kernel}"]
    here = replace(entry, devices=frozenset({"cpu"}), refuses=Ref("nequip_core.ops.reference:refuses"), derivatives=1)
    kernels[f"allegro.chain/1/{kernel}"] = here
    ops = Ops(kernels, dtype=torch.float64, derivatives=1, request={"allegro.chain": kernel})
    model = build_model(case.entry, case.config, ops)
    model.load_state_dict(case.potential.model.state_dict())  # no weights of their own
    return Potential(model).eval().requires_grad_(False)


def allegro_of(potential: Potential) -> Allegro:
    return next(one for one in potential.modules() if isinstance(one, Allegro))


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest) -> Case:
    made = make_case(load_registry().models["allegro"], dict(CONFIGS[request.param]))
    made.potential.eval()
    return made


@pytest.mark.parametrize(("kernel", "kind"), [("reference", UnrolledChain), ("triton", KernelChain)])
def test_predictions_are_the_same(case: Case, kernel: str, kind: type) -> None:
    potential = with_chains(case, kernel)
    model = allegro_of(potential)
    assert model.hidden is not None
    assert model.chains is not None
    assert [type(chain) for chain in model.chains] == [kind, kind]
    structures = [*systems.systems().values()]
    expected, found = (one.predict(*structures) for one in (case, Case(case.entry, case.config, potential)))
    for name, one, other in zip(("energy", "atomic_energy", "forces", "virial"), expected, found, strict=False):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_changed_weights_are_seen(case: Case) -> None:
    potential = with_chains(case, "reference")
    graph = case.graph(*systems.systems().values())
    before = potential(graph).energy
    with torch.no_grad():
        for weight in allegro_of(potential).latents[0].weights:  # type: ignore[union-attr]
            weight.mul_(1.01)
    assert not torch.equal(potential(graph).energy, before)


def traced_forces(config: dict[str, Any]) -> Any:
    """The graph of a model with our operators."""
    case = make_case(load_registry().models["allegro"], dict(config))
    potential = with_chains(case, "triton")
    with_our_operators(potential)
    return trace(
        lambda *graph: potential(Graph(*graph)).forces,
        [],
        list(sample_graph(case.info, TRACED)),
        axes(Graph),
        TRACED,
        SMALLEST,
    )


def test_weights_of_environments_are_nowhere() -> None:
    forces = traced_forces(CONFIGS["two layers"])
    summed = {
        name: [
            tuple(node.args[0].meta["val"].shape[1:]) for node in forces.graph.nodes if str(node.target).endswith(name)
        ]
        for name in ("environment.default", "environment_backward.default")
    }
    assert summed["environment.default"] == [(1, 5), (1, 4)]  # hidden layers, not [degrees, channels]
    assert sorted(summed["environment_backward.default"]) == [(1, 4), (1, 5)]


@pytest.mark.parametrize("layers", [2, 3])
def test_gradients_of_edges_are_added_in_kernels(layers: int) -> None:
    """Of the scalars that several networks read, and of the factors that several chains read."""
    scalars, factors = 7, (3, 3)
    forces = traced_forces(CONFIGS["two layers"] | {"num_layers": layers, "num_scalar_features": scalars})
    sums = [tuple(node.meta["val"].shape[1:]) for node in forces.graph.nodes if "aten.add" in str(node.target)]
    assert (scalars,) not in sums
    assert factors not in sums
    calls = [node.target._opname for node in forces.graph.nodes if "nequip_kernels" in str(node.target)]
    assert calls.count("mlp_backward_and_add") == layers
    assert calls.count("mlp_backward") == 2  # of the first network and the last, which nobody else reads


@pytest.mark.parametrize("keys", [{"latent_mlp": [9]}, {"two_body_mlp": []}, {"latent_mlp": []}])
def test_wide_hidden_layers_are_not_taken(keys: dict[str, Any]) -> None:
    case = make_case(load_registry().models["allegro"], CONFIGS["two layers"] | keys)
    model = allegro_of(with_chains(case, "triton"))
    assert model.hidden is None
    assert model.chains is not None


def test_in_training_weights_are_stored(case: Case) -> None:
    ours = with_chains(case, "triton").requires_grad_(True).train()
    graph = case.graph(*[*systems.systems().values()][:2])
    plain = case.potential.requires_grad_(True).train()
    try:
        expected, found = (one(graph).forces.square().sum() for one in (plain, ours))
        torch.testing.assert_close(found, expected)
        found.backward()
    finally:
        case.potential.requires_grad_(False).eval()
