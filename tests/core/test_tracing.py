"""One graph for all sizes, equal to eager in its derivatives by the weights; what can not be one is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from nequip_core.graph import Graph, edge_vectors
from nequip_core.models.base import EnergyModel, ModelInfo
from nequip_core.ops.segment import gather, segment_sum
from nequip_core.potential import Potential
from nequip_core.tracing import Sizes, TraceError, axes, next_prime, sample_graph, trace

INFO = ModelInfo(
    cutoff=3.0,
    types=("H", "O"),
    elements=("H", "O"),
    pair_cutoffs=((3.0, 2.0), (2.5, 3.0)),
    message_passing_layers=2,
    dtype="float64",
)
SMALLEST = Sizes(2, 16, 32)
SIZES = Sizes(5, 37, 211)


class EveryKind(nn.Module):
    """Messages with the functions whose results torch saves for their derivatives, and vectors (l = 1)."""

    def __init__(self, planted: Callable[[Graph, Tensor], Tensor] = lambda graph, x: x) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a, self.b, self.c = (
            nn.Parameter(0.3 * torch.randn(*shape, generator=generator, dtype=torch.float64))
            for shape in ((2, 4), (4, 4), (4, 1))
        )
        self.unused = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.planted = planted

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        centre, neighbor = graph.edge_index.unbind(0)
        r = vectors.norm(dim=1, keepdim=True)
        h = self.a[graph.types]
        weights = torch.exp(-r) * torch.sigmoid(gather(h, neighbor, graph.neighbor_ptr, graph.by_neighbor) @ self.b)
        carried = weights.unsqueeze(1) * (vectors / r).unsqueeze(2)
        summed = segment_sum(carried, centre, graph.row_ptr)
        x = torch.tanh(h) * torch.sqrt(1 + summed.square().sum(1)) / (1 + summed.norm(dim=1))
        return (torch.softmax(self.planted(graph, x), dim=1) @ self.c).squeeze(1)


def potential(architecture: nn.Module) -> Potential:
    one = torch.ones(2, dtype=torch.float64)
    return Potential(EnergyModel(architecture, INFO, scale=one, shift=one)).train()


def step_of(made: Potential) -> Callable[..., Tensor]:
    """A loss of energies, forces and virials from weights and the graph's tensors."""
    names = [name for name, _ in made.named_parameters()]

    def step(*tensors: Tensor) -> Tensor:
        weights = dict(zip(names, tensors, strict=False))
        graph = Graph(*tensors[len(names) :])
        prediction = torch.func.functional_call(made, weights, (graph,))
        return sum((part.square().mean() for part in prediction[:4]), torch.zeros((), dtype=torch.float64))

    return step


def traced(made: Potential, sizes: Sizes = SIZES) -> torch.fx.GraphModule:
    example = sample_graph(INFO, sizes)
    return trace(step_of(made), list(made.parameters()), list(example), axes(Graph), sizes, SMALLEST)


def gradients(function: Callable[..., Tensor], made: Potential, graph: Sequence[Tensor]) -> list[Tensor]:
    weights = [p for p in made.parameters() if p.requires_grad]
    loss = function(*made.parameters(), *graph)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return [loss.detach(), *(torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True))]


def test_axes_of_a_graph() -> None:
    found = dict(zip(Graph._fields, axes(Graph), strict=True))
    assert found["positions"] == ("atoms", 3)
    assert found["edge_index"] == (2, "edges")
    assert found["structure_ptr"] == ("structures_and_one",)
    assert found["row_ptr"] == ("atoms_and_one",)


@pytest.mark.parametrize("sizes", [SIZES, Sizes(3, 23, 101), Sizes(1, 1, 1), Sizes(2, 7, 0)])
def test_sample_graphs(sizes: Sizes) -> None:
    graph = sample_graph(INFO, sizes)
    for name, shape in zip(Graph._fields, axes(Graph), strict=True):
        lengths = sizes._asdict() | {"structures_and_one": sizes.structures + 1, "atoms_and_one": sizes.atoms + 1}
        assert getattr(graph, name).shape == tuple(lengths.get(str(axis), axis) for axis in shape), name
    centre, neighbor = graph.edge_index
    order = centre * sizes.atoms + neighbor
    assert (order.diff() >= 0).all()
    assert (graph.structure[centre] == graph.structure[neighbor]).all()
    assert (graph.structure_ptr.diff() > 0).all()
    for pointers, rows in ((graph.row_ptr, centre), (graph.neighbor_ptr, neighbor[graph.by_neighbor])):
        assert torch.equal(rows, torch.repeat_interleave(torch.arange(sizes.atoms), pointers.diff()))
    r = edge_vectors(graph).norm(dim=1)
    assert ((r > 0.3) & (r < 2.0)).all()  # inside the smallest cut-off


def test_one_graph_for_all_sizes_has_the_gradients_of_eager() -> None:
    made = potential(EveryKind())
    graph = traced(made)
    assert "detach" not in {node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"}
    for sizes in (SIZES, Sizes(2, 16, 32), Sizes(7, 50, 400)):
        example = sample_graph(INFO, sizes, seed=3)
        eager, ours = (gradients(function, made, example) for function in (step_of(made), graph))
        assert all(g.abs().max() > 1e-6 for g in eager[1:4])
        for one, other in zip(ours, eager, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def read_value(graph: Graph, x: Tensor) -> Tensor:
    return x * x.sum().item()  # planted


def branch_on_value(graph: Graph, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else 2 * x  # planted


def branch_on_size(graph: Graph, x: Tensor) -> Tensor:
    return x if x.shape[0] > 30 else 2 * x  # planted


def fixed_size(graph: Graph, x: Tensor) -> Tensor:
    return x + torch.ones(37, 1, dtype=torch.float64)  # planted


@pytest.mark.parametrize("planted", [read_value, branch_on_value, branch_on_size, fixed_size])
def test_what_depends_on_values_or_sizes_is_refused_with_its_line(planted: Callable[[Graph, Tensor], Tensor]) -> None:
    with pytest.raises(TraceError) as error:
        traced(potential(EveryKind(planted)))
    line = planted.__code__.co_firstlineno + 1
    assert f"test_tracing.py:{line}" in str(error.value)
    assert "training.compile=false" in str(error.value)


def test_a_condition_on_sizes_is_told_in_words() -> None:
    with pytest.raises(TraceError, match=r"atoms > 30"):
        traced(potential(EveryKind(branch_on_size)))


@pytest.mark.parametrize(("number", "prime"), [(0, 2), (2, 2), (3.5, 5), (24, 29), (97, 97), (1000, 1009)])
def test_next_prime(number: float, prime: int) -> None:
    assert next_prime(number) == prime
