"""Compiled steps: the guards on the way there, and one code for all batches that gives eager's losses and gradients.

Inductor compiles one small function here, and whole models among the slow tests; cli/test_train_compiled.py trains one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nequip_core.data.ghost import ATOMS, EDGES, ROW, Ghost, round_up
from nequip_core.errors import CheckError
from nequip_core.graph import Graph, edge_vectors
from nequip_core.models.base import EnergyModel
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.testing.checks import make_case
from nequip_core.tracing import Sizes, TraceError
from nequip_core.training import compiled
from nequip_core.training.compiled import CompiledTraining, Sample, deviations, flatten, sample_batch, unflatten
from nequip_core.training.loss import Loss

GHOST = Ghost(1.7)
SAMPLE = Sample(Sizes(5, 67, 509), Sizes(7, 67, 263))
CPU = torch.device("cpu")
TOY = Path(__file__).parents[2] / "plugins" / "nequip-toy" / "src"


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What torch has compiled in this process."""
    yield
    torch._dynamo.reset()


def training_of(model: EnergyModel, terms: Loss, folder: Path, **keys: Any) -> CompiledTraining:
    said: list[str] = keys.pop("said", [])
    options = {"sample": SAMPLE, "ghost": GHOST, "dump": folder / "deviation.safetensors", "say": said.append}
    return CompiledTraining(Potential(model).train(), terms, **(options | keys))


# The ghost


@pytest.mark.parametrize("sizes", [Sizes(1, 1, 0), Sizes(3, 40, 300), Sizes(2, 80, 90)])
def test_the_ghost_fills_up_small_batches(make_model: Callable[..., EnergyModel], sizes: Sizes) -> None:
    batch = sample_batch(Potential(make_model(num_layers=1)), sizes, lambda one: one)
    filled = GHOST(batch)
    atoms, edges = len(filled.graph.types), len(filled.graph.edge_shift)
    assert atoms == max(ATOMS, sizes.atoms + 1)
    assert edges == max(EDGES, sizes.edges + 1)
    assert filled.graph.structure_ptr.tolist() == [*batch.graph.structure_ptr.tolist(), atoms]
    assert filled.graph.row_ptr[-1] == edges
    assert torch.equal(filled.graph.by_neighbor.sort().values, torch.arange(edges))
    assert not filled.graph.local[sizes.atoms :].any()
    assert torch.equal(filled.ids, batch.ids)
    torch.testing.assert_close(
        edge_vectors(filled.graph)[sizes.edges :].norm(dim=1), torch.full((edges - sizes.edges,), 1.7).double()
    )


@pytest.mark.parametrize("keys", [{}, {"zbl": True, "pair_cutoffs": {"H": {"O": 2.0}}}])
def test_the_ghost_changes_nothing(make_model: Callable[..., EnergyModel], terms: Loss, keys: dict[str, Any]) -> None:
    potential = Potential(make_model(num_layers=2, **keys)).train()
    weights = [p for p in potential.parameters() if p.requires_grad]
    bare = sample_batch(potential, Sizes(3, 17, 60), lambda one: one)
    expected, found = (terms(potential(batch.graph), batch) for batch in (bare, GHOST(bare)))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0.0)
    for one, other in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [Sizes(1, 1, 0), Sizes(3, 80, 90), Sizes(2, 100, 4096), Sizes(2, 513, 4000)])
def test_the_ghost_rounds_sizes_up(make_model: Callable[..., EnergyModel], terms: Loss, sizes: Sizes) -> None:
    potential = Potential(make_model(num_layers=1, l_max=1, num_features=4)).train()
    weights = [p for p in potential.parameters() if p.requires_grad]
    bare = sample_batch(potential, sizes, lambda one: one)
    filled = GHOST(bare, rounded=True)
    atoms, edges = len(filled.graph.types), len(filled.graph.edge_shift)
    assert (atoms, edges) == (round_up(atoms), round_up(edges))
    assert edges == round_up(max(EDGES, sizes.edges + 1))
    assert int(filled.graph.row_ptr.diff()[sizes.atoms :].max()) <= ROW
    expected, found = (terms(potential(batch.graph), batch) for batch in (bare, filled))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
    for one, other in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12 * float(other.abs().max()))


def test_rounded_sizes() -> None:
    assert [round_up(number) for number in (1, 15, 33, 64, 65, 257, 1000, 28_000)] == [
        *(1, 15, 34, 64, 68, 272, 1024, 28_672)
    ]
    numbers = range(64, 4096)
    more = np.array([round_up(number) / number - 1 for number in numbers])
    assert more.min() == 0
    assert more.max() <= 1 / 16
    assert more.mean() < 0.03
    assert len({round_up(number) for number in numbers}) == 6 * 16 + 1
    assert all(round_up(round_up(number)) == round_up(number) for number in numbers)


def test_batches_and_lists_of_tensors(make_model: Callable[..., EnergyModel], terms: Loss) -> None:
    potential = Potential(make_model(num_layers=1)).train()
    batch = sample_batch(potential, SAMPLE.training, GHOST)
    again = unflatten(flatten(batch))
    for one, other in zip(
        (*again.graph, *again.labels, *again.denominators), flatten(batch)[:-4] + flatten(batch)[-3:], strict=True
    ):
        assert one is other
    assert terms(potential(again.graph), again) == terms(potential(batch.graph), batch)


# What is found before anything is compiled


class WithStop(nn.Module):
    """An architecture whose energies pass through a function first."""

    def __init__(self, inner: nn.Module, planted: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.planted = inner, planted

    def forward(self, graph: Graph, vectors: Tensor) -> Tensor:
        return self.planted(self.inner(graph, vectors))


def test_a_planted_item_is_told_with_its_line(
    make_model: Callable[..., EnergyModel], terms: Loss, tmp_path: Path
) -> None:
    model = make_model(num_layers=1)
    model.architecture = WithStop(model.architecture, lambda energy: energy * energy.sum().item())  # planted
    with pytest.raises(TraceError, match=r"test_compiled.py:\d+, in <lambda>: .*item\(\)\)  # planted"):
        training_of(model, terms, tmp_path).prepare_training(CPU)


def test_a_stopped_gradient_is_found_and_written_down(
    make_model: Callable[..., EnergyModel], terms: Loss, tmp_path: Path
) -> None:
    model = make_model(num_layers=1)
    model.architecture = WithStop(model.architecture, lambda energy: energy * torch.tanh(energy).detach())
    with pytest.raises(CheckError, match=r"The traced step is not the eager one: .* deviates by \d") as error:
        training_of(model, terms, tmp_path).prepare_training(CPU)
    assert str(tmp_path / "deviation.safetensors") in str(error.value)
    written = load_file(tmp_path / "deviation.safetensors")
    names = [name for name, _ in Potential(model).named_parameters() if f"eager.{name}" in written]
    assert names
    assert any(not torch.allclose(written[f"eager.{name}"], written[f"traced.{name}"]) for name in names)


def test_deviations_are_relative_and_small_gradients_are_measured_by_large_ones() -> None:
    eager = {"loss": torch.tensor(2.0), "a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1e-6]), "c": torch.zeros(2)}
    ours = {"loss": torch.tensor(2.2), "a": torch.tensor([3.0, 4.5]), "b": torch.tensor([2e-6]), "c": torch.zeros(2)}
    found = deviations(ours, eager)
    assert found["loss"] == pytest.approx(0.1)
    assert found["a"] == pytest.approx(0.1)
    assert found["b"] == pytest.approx(1e-6 / (compiled.FLOOR * 5))
    assert found["c"] == 0.0
    assert deviations({"loss": torch.tensor(float("nan"))}, {"loss": torch.tensor(1.0)})["loss"] != 0.0


def test_bf16_rounds_every_matrix_product(make_model: Callable[..., EnergyModel], terms: Loss, tmp_path: Path) -> None:
    potential = Potential(make_model(num_layers=1, l_max=1, num_features=4, dtype="float32")).train()
    batch = sample_batch(potential, SAMPLE.training, GHOST)
    weights = dict(potential.named_parameters())

    def function(weights: dict[str, Tensor], tensors: Any) -> Tensor:
        made = unflatten(tensors)
        return terms(torch.func.functional_call(potential, weights, (made.graph,)), made)

    exact, rounded = (
        compiled.CompiledFunction(
            "step", function, weights, flatten(batch), compiled.AXES_OF_BATCH, Sizes(6, 68, 510), precision
        )
        for precision in ("float32", "bf16")
    )
    loss = exact.interpret(flatten(batch))
    deviation = abs(float(rounded.interpret(flatten(batch)).detach() / loss.detach()) - 1)
    assert 1e-5 < deviation < 0.1
    products = [node for node in rounded.graph.graph.nodes if node.target is torch.ops.aten.mm.default]
    assert products
    for node in products:
        if node.meta["val"].dtype is torch.float32:
            assert all(factor.kwargs.get("dtype") is torch.bfloat16 for factor in node.args)


class Stub:
    """In the place of compiled functions: eager, and counts."""

    def __init__(self, potential: Potential, terms: Loss) -> None:
        self.predict, self.terms = potential, terms
        self.backward_passes = 0

    def prepare_training(self, device: torch.device) -> None:
        pass

    prepare_validation = prepare_training

    def loss(self, batch: Any) -> Tensor:
        return self.terms(self.predict(batch.graph), batch)

    def backward(self, loss: Tensor) -> None:
        self.backward_passes += 1
        torch.autograd.backward(loss)

    def say_counts(self) -> None:
        pass


def test_precision_of_products_in_backward_passes(
    make_model: Callable[..., EnergyModel], make_run: Callable[..., Any], terms: Loss, tmp_path: Path
) -> None:
    training = training_of(make_model(num_layers=1), terms, tmp_path, precision="tf32")
    weight = next(p for p in training.potential.parameters() if p.requires_grad)
    seen: list[str] = []
    weight.register_hook(lambda gradient: seen.append(torch.get_float32_matmul_precision()))
    training.backward(weight.square().sum())
    assert (seen, torch.get_float32_matmul_precision()) == (["high"], "highest")

    trainer, module, data = make_run().parts(terms, max_epochs=1)
    data.max_edges = 1
    module.compiled = stub = Stub(module.potential, terms)
    trainer.fit(module, datamodule=data)
    pieces = [len(step) for step in data.train_dataloader()]
    assert stub.backward_passes == sum(pieces) > len(pieces)  # also of micro-batches


# With Inductor


def random_sizes(rng: np.random.Generator) -> Sizes:
    """1 to 16 structures, 1 to 500 atoms, edges from none to many."""
    structures = int(rng.integers(1, 17))
    atoms = int(rng.integers(structures, 501))
    return Sizes(structures, atoms, int(rng.integers(0, 20 * atoms)) * int(rng.integers(0, 4) > 0))


def test_other_tensors_are_served_and_others_refused(make_model: Callable[..., EnergyModel]) -> None:
    potential = Potential(make_model(num_layers=1))
    first, second = (sample_batch(potential, sizes, GHOST) for sizes in (SAMPLE.training, Sizes(3, 90, 700)))
    weights = {"w": torch.ones(3, dtype=torch.float64, requires_grad=True)}

    def function(weights: dict[str, Tensor], tensors: Sequence[Tensor]) -> Tensor:
        return (tensors[0] * weights["w"]).square().sum()

    step = compiled.CompiledFunction(
        "training step", function, weights, flatten(first), compiled.AXES_OF_BATCH, Sizes(6, 68, 510)
    )
    with step.compiling():
        torch.autograd.backward(step.compile(flatten(first)))
    for factor in (1.0, 1.1):  # weights move without another trace
        with torch.no_grad():
            weights["w"].mul_(factor)
        for batch in (first, second):
            torch.testing.assert_close(step(flatten(batch)), function(weights, flatten(batch)), rtol=1e-12, atol=0.0)
    assert (step.report.graphs, step.report.breaks, step.report.recompiles) == (1, 0, 0)
    other = flatten(first)
    other[0] = other[0].float()  # planted: positions in float32 need other code
    with pytest.raises(
        TraceError, match=r"A batch of \d+ structures, \d+ atoms and \d+ edges needs other code than the training step"
    ):
        step(other)
    assert step.report.recompiles == 1


@pytest.mark.slow
def test_one_code_for_all_batches_repeatable(
    make_model: Callable[..., EnergyModel], terms: Loss, tmp_path: Path
) -> None:
    torch.set_num_threads(2)  # where sums in arbitrary order would show
    said: list[str] = []
    model = make_model(num_layers=2, l_max=1, num_features=4, radial_mlp=[8], dtype="float32")
    training = training_of(model, terms, tmp_path, said=said, check_every=1)
    training.prepare_training(CPU)
    rng = np.random.default_rng(0)
    batches = [sample_batch(training.potential, random_sizes(rng), GHOST, seed) for seed in range(30)]
    for batch in batches:
        training.loss(batch)  # compares with eager first
    report = training._loss.report
    assert (report.graphs, report.breaks, report.recompiles) == (1, 0, 0)
    assert report.trace_s > 0
    assert report.inductor_s > 0
    assert [line.split(":")[0] for line in said] == [
        "Tracing the training step ...",
        "Compiling the training step with Inductor",
        "Training step",
    ]
    weights = [p for p in training.potential.parameters() if p.requires_grad]
    first = torch.autograd.grad(training._loss(flatten(batches[0])), weights)
    for _ in range(20):
        again = torch.autograd.grad(training._loss(flatten(batches[0])), weights)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))

    with torch.no_grad():  # weights move without another trace
        for weight in weights:
            weight.mul_(1.1)
    training.loss(batches[1])

    other = flatten(batches[2])
    other[0] = other[0].float()  # planted: positions in float32 need other code
    with pytest.raises(
        TraceError, match=r"A batch of \d+ structures, \d+ atoms and \d+ edges needs other code than the training step"
    ):
        training._loss(other)
    assert report.recompiles == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("nequip", {"num_layers": 2, "l_max": 1, "num_features": 4, "radial_mlp": [8]}),
        ("allegro", {"num_layers": 2, "l_max": 1, "num_scalar_features": 8, "num_tensor_features": 4}),
        ("toy", {}),
    ],
)
def test_a_thousand_batches(
    name: str, keys: dict[str, Any], terms: Loss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    monkeypatch.syspath_prepend(TOY)  # not installed: its plugin says what it offers
    toy = import_module("nequip_toy.plugin")
    models = load_registry().models | {entry.name: entry for entry in toy.nequip_models()}
    case = make_case(models[name], keys).as_dtype("float32")
    training = training_of(case.potential.model, terms, tmp_path, check_every=50)
    training.prepare_training(CPU)
    weights = [p for p in training.potential.parameters() if p.requires_grad]
    rng = np.random.default_rng(1)
    labels = set()
    for seed in range(1000):
        batch = sample_batch(training.potential, random_sizes(rng), GHOST, seed)
        labels.add(tuple(bool(has.any()) for has in batch.labels[1:6:2]))
        gradients = torch.autograd.grad(training.loss(batch), weights, allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    assert len(labels) > 3
    report = training.report()
    assert (report["graphs"], report["breaks"], report["recompiles"]) == (1, 0, 0)
