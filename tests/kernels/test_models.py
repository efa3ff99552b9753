"""Models whose operators are ours: the same predictions, weights and one graph for all sizes.

On the CPU the operators compute in plain torch; everything around them is what a GPU has.
"""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.ops.contraction import DenseContraction
from nequip_core.ops.mlp import ReferenceMLP
from nequip_core.ops.reference import DenseConvolution, TwoForms
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.testing import checks, systems
from nequip_core.testing.checks import SMALLEST, TRACED, Case, make_case
from nequip_core.tracing import axes, sample_graph, trace
from nequip_kernels.contraction.make import KernelContraction
from nequip_kernels.convolution.make import KernelConvolution
from nequip_kernels.mlp.make import KernelMLP

CPU = torch.device("cpu")
MODELS = {
    "nequip": {"l_max": 1, "num_features": [3, 2]},
    "allegro": {"l_max": 1, "num_layers": 3, "num_tensor_features": 3},
}


@pytest.fixture(scope="module", params=MODELS)
def cases(request: pytest.FixtureRequest) -> tuple[Case, Case]:
    """A model with the reference, and the same with our operators."""
    reference = make_case(load_registry().models[request.param], MODELS[request.param])
    ours = copy.deepcopy(reference.potential)
    assert with_our_operators(ours) > 0
    return reference, Case(reference.entry, reference.config, ours)


def with_our_operators(potential: Potential) -> int:
    """Replace the reference's; gives how many."""
    count = 0
    for parent in list(potential.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, TwoForms):
                setattr(parent, name, ours_for(child.dense))
                count += 1
            elif isinstance(child, ReferenceMLP) and name != "reference":  # "chosen" of an MLP, "opening" of Allegro
                setattr(parent, name, KernelMLP(child.spec, torch.float64, CPU))
    return count


def ours_for(reference: nn.Module) -> nn.Module:
    if isinstance(reference, DenseConvolution):
        return KernelConvolution(reference.spec, torch.float64, CPU)
    assert isinstance(reference, DenseContraction)
    return KernelContraction(reference.spec, torch.float64, CPU)


def test_predictions_and_weights_are_the_same(cases: tuple[Case, Case]) -> None:
    reference, ours = cases
    structures = [*systems.systems().values()]
    for name, one, other in zip(
        ("energy", "atomic_energy", "forces", "virial"),
        reference.predict(*structures),
        ours.predict(*structures),
        strict=False,
    ):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    assert reference.potential.state_dict().keys() == ours.potential.state_dict().keys()


def test_one_graph_for_all_sizes_with_the_gradients_of_training(cases: tuple[Case, Case]) -> None:
    checks.one_graph(cases[1])


def test_between_contractions_of_allegro_no_tensor_is_touched() -> None:
    """The gradient of the scalars goes to the kernel by itself: it is not filled up with zeros and added."""
    case = make_case(load_registry().models["allegro"], MODELS["allegro"])
    with_our_operators(case.potential.requires_grad_(False))
    forces = trace(
        lambda *graph: case.potential(Graph(*graph)).forces,
        [],
        list(sample_graph(case.info, TRACED)),
        axes(Graph),
        TRACED,
        SMALLEST,
    )
    specs = [one.spec for one in case.potential.modules() if isinstance(one, KernelContraction)]
    dims = {spec.dim_out for spec in specs if spec.scalars_apart}
    assert dims == {4, 7}
    tensors = [node for node in forces.graph.nodes if is_tensor_of(node.meta.get("val"), dims, specs[0].channels)]
    assert len(tensors) >= 2 * len(dims)  # each result and its gradient
    assert {node.target for node in tensors} == {operator.getitem}  # what operators of ours gave


def is_tensor_of(value: object, dims: set[int], channels: int) -> bool:
    """Whether these are components of edges or atoms."""
    return isinstance(value, Tensor) and value.dim() == 3 and value.shape[1] in dims and value.shape[2] == channels
