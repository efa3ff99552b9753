"""nequip.radial_convolution/1 in parts of the edges: what it computes, how much memory it takes, how it is compiled."""

from __future__ import annotations

import copy
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nequip_core.cli.main import main
from nequip_core.data.datamodule import DataModule
from nequip_core.data.ghost import Ghost
from nequip_core.models.base import EnergyModel
from nequip_core.models.build import build_model
from nequip_core.o3 import SCALAR, Irrep, Irreps
from nequip_core.ops import direct
from nequip_core.ops.contracts import (
    NEQUIP_CONVOLUTION,
    NEQUIP_RADIAL_CONVOLUTION,
    ConvolutionSpec,
    RadialConvolutionSpec,
)
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.testing import checks, systems
from nequip_core.testing.checks import Case, make_case
from nequip_core.testing.kernels import check_kernel, radial_convolution_shapes, random_graph
from nequip_core.tracing import Sizes
from nequip_core.training import compiled
from nequip_core.training.compiled import CompiledTraining, Sample, sample_batch
from nequip_core.training.loss import Loss, Term, mse
from nequip_kernels.convolution import make as convolution
from nequip_kernels.radial import operators, parts
from nequip_kernels.radial.make import make_radial_convolution, refuses

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = RadialConvolutionSpec(
    ConvolutionSpec(
        Irreps([(SCALAR, 2), (Irrep(0, -1), 3), (Irrep(1, -1), 4)]), 1, True, (SCALAR, Irrep(1, 1), Irrep(1, -1))
    ),
    width=5,
)
LOSS = Loss((Term("energy_per_atom", 1.0, mse(0.0)), Term("forces", 1.0, mse(0.0))))


def limit(monkeypatch: pytest.MonkeyPatch, edges: int, num_weights: int = SMALL.convolution.num_weights) -> int:
    """Weights of so many edges may be there at a time; gives their bytes in float64."""
    bytes_ = edges * num_weights * 8
    monkeypatch.setattr(parts, "LARGEST_WEIGHTS", bytes_)
    return bytes_


@pytest.mark.parametrize("edges", [1, 3, 7, 30, 1000])
def test_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch, edges: int) -> None:
    """Of 41 edges: one to all in a part, atoms with edges in several of them."""
    limit(monkeypatch, edges)
    assert len(check_kernel("parts", SMALL, torch.float64, CPU, atoms=9)) == 10


@pytest.mark.parametrize("atoms", [6, 150])
def test_parts_begin_at_multiples(monkeypatch: pytest.MonkeyPatch, atoms: int) -> None:
    limit(monkeypatch, 200)
    graph = random_graph(atoms, (5, 0, 9), seed=1)
    about = graph.edge_index[1], graph.row_ptr, graph.by_neighbor, graph.neighbor_ptr
    edges = graph.edge_shift.shape[0]
    whole = parts.Edges(torch.randn(edges, 4), torch.randn(edges, 5).double(), *about)
    matrix = torch.randn(5, SMALL.convolution.num_weights).double()
    found = [(place.start, place.stop, one) for place, one in whole.parts(matrix, alive=2)]
    starts = [*range(0, edges, 64)] if edges > 64 else [0]
    assert [first for first, _, _ in found] == starts
    assert [stop for _, stop, _ in found] == [*starts[1:], edges]
    for first, stop, one in found:
        assert torch.equal(one.neighbor, about[0][first:stop])
        order = torch.argsort(one.neighbor, stable=True)
        assert torch.equal(one.by_neighbor, order)
        assert torch.equal(one.neighbor_ptr.diff(), torch.bincount(one.neighbor, minlength=atoms))
        assert torch.equal(one.row_ptr.diff(), torch.bincount(graph.edge_index[0][first:stop], minlength=atoms))


@pytest.mark.parametrize(("atoms", "lengths"), [(0, (1,)), (2, (0,))], ids=["no atoms", "no edges"])
def test_nothing(atoms: int, lengths: tuple[int, ...]) -> None:
    check_kernel("parts", SMALL, torch.float64, CPU, atoms=atoms, lengths=lengths)


def test_derivatives_are_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 4)
    graph = random_graph(3, (2, 0, 3))
    torch.manual_seed(0)
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in radial_convolution_shapes(SMALL, graph).values()
    ]
    kernel = make_radial_convolution(SMALL, torch.float64, CPU)
    assert torch.autograd.gradcheck(lambda *x: kernel(*x, graph), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *x: kernel(*x, graph), inputs, fast_mode=True)


def test_operators_keep_torchs_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 3)
    graph = random_graph(4, (2, 0, 3))
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in radial_convolution_shapes(SMALL, graph).values()
    ]
    kernel = make_radial_convolution(SMALL, torch.float64, CPU)
    about = (graph.edge_index[1], graph.row_ptr, graph.by_neighbor, graph.neighbor_ptr)
    grad = torch.randn(4, SMALL.convolution.irreps_out.dim, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(operators.radial_convolve.operator, (*inputs, *about, kernel.text))
    for asked in (True, False):
        torch.library.opcheck(operators.radial_convolve_backward.operator, (*inputs, grad, *about, asked, kernel.text))
    still = [x.detach() for x in (*inputs, grad)]  # there is no further derivative
    for last in (torch.randn_like(inputs[3]), None):
        moving = [*(torch.randn_like(x) for x in inputs[:3]), last]
        torch.library.opcheck(
            operators.radial_convolve_double_backward.operator, (*still, *moving, *about, kernel.text)
        )


def test_a_tensor_of_another_shape_is_refused() -> None:
    graph = random_graph(3, (2,))
    inputs = [torch.randn(shape) for shape in radial_convolution_shapes(SMALL, graph).values()]
    kernel = make_radial_convolution(SMALL, torch.float32, CPU)
    kernel(*inputs, graph)
    for n in range(4):
        wrong = [x[:, :-1] if m == n else x for m, x in enumerate(inputs)]
        with pytest.raises(ValueError, match="expected rows of"):
            kernel(*wrong, graph)
    with pytest.raises(ValueError, match=r"torch\.float64"):
        kernel(inputs[0], inputs[1].double(), *inputs[2:], graph)


def test_the_operator_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = load_registry().kernels
    for device, chosen in (("cpu", "parts"), ("cuda", "triton")):
        ops = Ops(kernels, device=device)
        ops.make(NEQUIP_RADIAL_CONVOLUTION, SMALL)
        assert ops.report[NEQUIP_RADIAL_CONVOLUTION]["chosen"] == chosen
    monkeypatch.setattr(convolution, "TERMS", 3)
    assert refuses(SMALL, torch.float64, CPU) is None
    assert "and a generated kernel at most 3" in str(refuses(SMALL, torch.float32, CUDA))


# Models


KEYS = {"l_max": 1, "num_features": [11, 4], "radial_mlp": [6], "num_layers": 2}


@pytest.fixture(scope="module")
def stored() -> Case:
    """A model that stores its weights."""
    return make_case(load_registry().models["nequip"], KEYS)


@pytest.fixture
def recomputing(stored: Case, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    """The same which does not, with the same weights."""
    limit(monkeypatch, 40, 22)
    model = model_of(stored, edges=math.inf)
    model.load_state_dict(stored.potential.model.state_dict())
    yield Case(stored.entry, stored.config, Potential(model).eval())
    torch._dynamo.reset()


def model_of(case: Case, **options: Any) -> EnergyModel:
    ops = Ops(load_registry().kernels, dtype=torch.float64, **options)
    model = build_model(case.entry, case.config, ops)
    chosen = {NEQUIP_RADIAL_CONVOLUTION: "parts"} if options["edges"] else {NEQUIP_CONVOLUTION: "reference"}
    assert chosen.items() <= {op: about["chosen"] for op, about in ops.report.items()}.items()
    return model


def test_predictions_and_weights_are_the_same(stored: Case, recomputing: Case) -> None:
    structures = [*systems.systems().values()]
    for name, one, other in zip(
        ("energy", "atomic_energy", "forces", "virial"),
        stored.predict(*structures),
        recomputing.predict(*structures),
        strict=False,
    ):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    assert stored.potential.state_dict().keys() == recomputing.potential.state_dict().keys()


def test_only_layers_of_many_weights_make_them_again(stored: Case) -> None:
    widths = [layer.radial.spec.widths[-1] for layer in model_of(stored, edges=0).architecture.layers]
    assert widths[0] > widths[1]
    layers = model_of(stored, edges=512e6 / 8 / widths[0] + 1).architecture.layers
    assert [layer.stores_weights for layer in layers] == [False, True]
    assert all(layer.stores_weights for layer in model_of(stored, edges=0).architecture.layers)


def test_one_graph_for_all_sizes_with_the_gradients_of_training(recomputing: Case) -> None:
    checks.one_graph(recomputing)


class Weights(TorchDispatchMode):
    """Counts the bytes of tensors that are as wide as the weights, for each edge, and alive at a time."""

    def __init__(self, num_weights: int, width: int) -> None:
        super().__init__()
        self.num_weights, self.width = num_weights, width
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and self._are_weights(tensor):
                storage = StorageWeakRef(tensor.untyped_storage())
                self.alive[storage.cdata] = storage, tensor.untyped_storage().nbytes()
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.most = max(self.most, sum(nbytes for _, nbytes in self.alive.values()))
        return result

    def _are_weights(self, tensor: Tensor) -> bool:
        """And not the matrix, nor its gradient."""
        return tensor.dim() == 2 and tensor.shape[1] == self.num_weights and tensor.shape[0] != self.width


def test_few_weights_are_there_at_a_time(stored: Case, recomputing: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a step of training, forces included: never more than the limit, where otherwise there is three times all."""
    monkeypatch.setattr(direct, "is_observed", lambda: False)  # so that operators are taken apart
    num_weights, width, edges = 22, 6, 400
    gradients, most = [], []
    allowed = limit(monkeypatch, 70, num_weights)
    for case in (stored, recomputing):
        layer = case.potential.model.architecture.layers[0]
        assert layer.radial.spec.widths[-2:] == (width, num_weights)
        potential = copy.deepcopy(case.potential).train()
        batch = sample_batch(potential, Sizes(2, 20, edges), lambda one: one)
        with Weights(num_weights, width) as weights:
            LOSS(potential(batch.graph), batch).backward()
        gradients.append({name: weight.grad for name, weight in potential.named_parameters()})
        most.append(weights.most)
    for name, expected in gradients[0].items():
        if expected is not None:
            scale = float(expected.abs().max())
            torch.testing.assert_close(gradients[1][name], expected, rtol=0, atol=1e-11 * max(scale, 1.0))
    of_all = edges * num_weights * 8
    assert 0.9 * allowed < most[1] <= allowed < of_all
    assert most[0] == 3 * of_all


def test_compiled_training_is_one_graph(recomputing: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By all of torch's compiler but Inductor, which is asked in a slow test."""
    compile_ = torch.compile
    monkeypatch.setattr(
        compiled.torch,
        "compile",
        lambda graph, **_: compile_(graph, fullgraph=True, dynamic=False, backend="aot_eager"),
    )
    assert_compiled(recomputing, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("cpp", [False, True], ids=["Python", "C++"])
def test_inductor(recomputing: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpp: bool) -> None:
    """On CUDA its code is C++, which calls our operators by their names with texts between quotes."""
    monkeypatch.setitem(compiled.OPTIONS, "cpp_wrapper", cpp)
    assert_compiled(recomputing, tmp_path)


def assert_compiled(case: Case, folder: Path) -> None:
    said: list[str] = []
    training = CompiledTraining(
        case.potential.train(),
        LOSS,
        sample=Sample(Sizes(5, 67, 509), Sizes(5, 67, 263)),
        ghost=Ghost(1.2),
        check_every=1,
        dump=folder / "deviation.safetensors",
        say=said.append,
    )
    training.prepare_training(CPU)
    for sizes in (Sizes(3, 40, 300), Sizes(9, 200, 1500), Sizes(2, 30, 0)):
        training.loss(sample_batch(case.potential, sizes, training.ghost, 3))  # compares with eager
    report = training.report()
    assert (report["graphs"], report["breaks"], report["recompiles"]) == (1, 0, 0)


# The config

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "molecules.xyz.xz"
CONFIG = """\
defaults: [base, {{model: {model}}}, _self_]
loggers: [csv]
data: {{path: {data}, index: "0:20", split: {{train: 12, val: 4}}}}
model: {{cutoff: 3.0, num_layers: 2, l_max: 1, dtype: float64}}
trainer: {{log_every_n_steps: 1, enable_progress_bar: false, accelerator: cpu, max_epochs: 2}}
"""


def train(folder: Path, *overrides: str, model: str = "nequip") -> int:
    folder.mkdir(exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(data=DEMO, model=model))
    return main(["train", str(config), f"run.dir={folder / 'run'}", *overrides])


def test_a_run_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LARGEST_WEIGHTS", 100_000)
    losses, chosen = [], []
    for wanted in ("true", "auto"):
        assert train(tmp_path / wanted, f"training.recompute_weights={wanted}") == 0
        run = tmp_path / wanted / "run"
        chosen.append(json.loads((run / "run.json").read_text())["kernels"])
        with (run / "metrics.csv").open() as lines:
            losses.append([float(row["val_loss"]) for row in csv.DictReader(lines)])
    assert chosen[0][NEQUIP_RADIAL_CONVOLUTION]["chosen"] == "parts"
    assert NEQUIP_CONVOLUTION not in chosen[0]
    assert NEQUIP_RADIAL_CONVOLUTION not in chosen[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize(
    ("wanted", "edges", "chosen"), [("auto", 1e8, True), ("auto", 1e5, False), ("false", 1e8, False)]
)
def test_auto_goes_by_the_usual_batch(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    edges: float,
    chosen: bool,
) -> None:
    monkeypatch.setattr(DataModule, "usual_edges", lambda self: edges)
    assert train(tmp_path, f"training.recompute_weights={wanted}", "--dry-run") == 0
    assert (f"{NEQUIP_RADIAL_CONVOLUTION}: parts" in capsys.readouterr().out) is chosen


@pytest.mark.parametrize(
    ("model", "overrides", "said"),
    [
        ("nequip", ["kernels=reference"], "training.recompute_weights is true, but no kernel serves"),
        ("allegro", [], "training.recompute_weights is true, but allegro has no weights of edges"),
    ],
)
def test_where_it_can_not_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, overrides: list[str], said: str
) -> None:
    assert train(tmp_path, "training.recompute_weights=true", *overrides, model=model) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
