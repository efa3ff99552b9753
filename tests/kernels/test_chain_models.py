"""Allegro with chains: the same predictions, and features that are nowhere in memory."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.kernels.test_models import with_our_operators
from torch import Tensor, nn

from nequip_allegro.model import Allegro, contraction_specs
from nequip_allegro.tensors import chain_specs, make_chains
from nequip_core.errors import ConfigError
from nequip_core.graph import Graph
from nequip_core.ops.contraction import UnrolledChain
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.plugins.records import Ref
from nequip_core.potential import Potential
from nequip_core.testing import systems
from nequip_core.testing.checks import SMALLEST, TRACED, Case, make_case
from nequip_core.tracing import axes, sample_graph, trace
from nequip_kernels.chain.make import KernelChain

CPU = torch.device("cpu")
CONFIGS: dict[str, dict[str, Any]] = {
    "two layers": {"l_max": 2, "num_layers": 2, "num_tensor_features": 3},
    "three layers, one weight for all degrees": {
        "l_max": 1,
        "num_layers": 3,
        "num_tensor_features": 3,
        "weight_individual_irreps": False,
        "tp_path_channel_coupling": False,
    },
    "a norm for each type": {
        "l_max": 1,
        "num_layers": 2,
        "num_tensor_features": 2,
        "parity": False,
        "avg_num_neighbors": {"H": 4.0, "C": 9.0, "O": 7.0, "Ow": 5.0},
    },
}


def with_chains(potential: Potential, kind: type[UnrolledChain] | type[KernelChain]) -> Potential:
    """A copy that makes features again."""
    made = copy.deepcopy(potential)
    model = next(one for one in made.modules() if isinstance(one, Allegro))
    specs = chain_specs([layer.dense.spec for layer in potential_contractions(potential)])
    model.chains = nn.ModuleList(
        UnrolledChain(spec) if kind is UnrolledChain else KernelChain(spec, torch.float64, CPU) for spec in specs
    )
    return made


def potential_contractions(potential: Potential) -> list[Any]:
    return list(next(one for one in potential.modules() if isinstance(one, Allegro)).contractions)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest) -> Case:
    config = dict(CONFIGS[request.param])
    made = make_case(load_registry().models["allegro"], config)
    made.potential.eval()
    return made


@pytest.mark.parametrize("kind", [UnrolledChain, KernelChain])
def test_predictions_are_the_same(case: Case, kind: Any) -> None:
    structures = [*systems.systems().values()]
    ours = Case(case.entry, case.config, with_chains(case.potential, kind))
    expected, found = case.predict(*structures), ours.predict(*structures)
    for name, one, other in zip(("energy", "atomic_energy", "forces", "virial"), expected, found, strict=False):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    assert case.potential.state_dict().keys() == ours.potential.state_dict().keys()


def test_in_training_features_are_stored(case: Case) -> None:
    """Chains have no derivative by path weights, and no second one."""
    ours = with_chains(case.potential, KernelChain).train()
    graph = case.graph(*[*systems.systems().values()][:2])
    loss = ours(graph).forces.square().sum()
    weights = [one for one in ours.parameters() if one.requires_grad]
    plain = copy.deepcopy(case.potential).train()
    expected = plain(graph).forces.square().sum()
    theirs = [one for one in plain.parameters() if one.requires_grad]
    for one, other in zip(
        torch.autograd.grad(loss, weights, allow_unused=True),
        torch.autograd.grad(expected, theirs, allow_unused=True),
        strict=True,
    ):
        if one is not None:
            torch.testing.assert_close(one, other)


def test_features_of_the_first_layer_are_nowhere() -> None:
    case = make_case(load_registry().models["allegro"], CONFIGS["two layers"])
    potential = with_chains(case.potential.eval(), KernelChain).requires_grad_(False)
    with_our_operators(potential)
    forces = trace(
        lambda *graph: potential(Graph(*graph)).forces,
        [],
        list(sample_graph(case.info, TRACED)),
        axes(Graph),
        TRACED,
        SMALLEST,
    )
    values = [node.meta.get("val") for node in forces.graph.nodes]
    edges = values[Graph._fields.index("edge_shift")].shape[0]
    shapes = [value.shape for value in values if isinstance(value, Tensor) and value.dim() == 3]
    of_edges, of_atoms = (
        {int(shape[1]) for shape in shapes if (str(shape[0]) == str(edges)) is it} for it in (True, False)
    )
    assert of_edges == {3, 1}  # factors and weights of environments; even scalars
    assert 9 in of_atoms  # environments


def test_chains_are_taken_for_forces_only_or_where_they_are_named() -> None:
    kernels = load_registry().kernels
    specs = contraction_specs(make_case(load_registry().models["allegro"], CONFIGS["two layers"]).config)  # type: ignore[arg-type]
    assert make_chains(Ops(kernels), specs) is None
    assert make_chains(Ops(kernels, derivatives=1), specs) is None  # the reference is no reason
    name = "allegro.chain/1/triton"
    here = replace(kernels[name], devices=frozenset({"cpu"}), refuses=Ref("nequip_core.ops.reference:refuses"))
    with_ours = {**kernels, name: here}
    assert make_chains(Ops(with_ours), specs) is None
    assert make_chains(Ops(with_ours, derivatives=1, request="reference"), specs) is None
    assert make_chains(Ops(with_ours, request="triton"), specs) is None
    taken = make_chains(Ops(with_ours, derivatives=1), specs)
    assert taken is not None
    assert [type(one) for one in taken] == [KernelChain, KernelChain]
    assert make_chains(Ops(with_ours, derivatives=1), specs[:1]) is None
    named = make_chains(Ops(kernels, request={"allegro.chain": "reference"}), specs)
    assert named is not None
    assert [type(one) for one in named] == [UnrolledChain, UnrolledChain]
    assert make_chains(Ops(kernels, request={"allegro.chain": "reference"}), specs[:1]) is None
    with pytest.raises(ConfigError, match=r"can not compute allegro\.chain/1: runs on \['cuda'\], not on cpu"):
        make_chains(Ops(kernels, request={"allegro.chain": "triton"}), specs)
