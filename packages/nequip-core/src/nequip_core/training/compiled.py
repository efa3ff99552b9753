"""Compiled training: forward, forces, loss and their derivatives are one graph that Inductor compiles whole.

    trace (nequip_core.tracing) -> compare with eager -> torch.compile(fullgraph=True) -> compare with eager

One graph for the loss of training, whose derivative by the weights is compiled with it, and one for the predictions of
validation. Weights are inputs, so they move without another trace. Both are made before the first step, on samples
whose sizes follow from the data set: so every process, and every resumed run, gets the same code. From then on a batch
that would need other code is an error.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.fx.experimental._config
from safetensors.torch import save
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters
from torch.func import functional_call

from nequip_core import launching
from nequip_core.data.batch import Batch, Denominators, Labels
from nequip_core.data.ghost import ATOMS, EDGES, Ghost
from nequip_core.errors import CheckError
from nequip_core.files import atomic_write
from nequip_core.graph import Graph
from nequip_core.ops.segment import take_rows
from nequip_core.potential import Potential, Prediction
from nequip_core.recording import Record
from nequip_core.tracing import Sizes, TraceError, axes, next_prime, sample_graph, trace
from nequip_core.training.graphs import Results, StepGraphs
from nequip_core.training.loss import Loss

CODE = 4
"""Number of how code is made here: torch's caches do not see all of it, so another number has another folder."""

SMALLEST = Sizes(2, ATOMS, EDGES)
"""Of the batches that compiled functions serve."""

TOLERANCE: Mapping[str, float] = {"float64": 1e-9, "float32": 1e-3, "tf32": 3e-2, "bf16": 2e-1}
"""Largest deviation of a compiled step from the eager one, see `deviations`; by dtype or matmul precision.

A recorded step deviates from the launched one by at most a tenth of it: the same code, but libraries may choose others.
"""

FLOOR = 1e-2
"""A gradient that is smaller than this part of the largest parameter's is compared with that part instead."""

OPTIONS: dict[str, Any] = {
    # Indices are those of graphs, which are made with care; checks would cost time, and torch 2.11 writes some that no
    # C++ compiler takes.
    "assert_indirect_indexing": False,
    # On CUDA these two ask how large the sample is, and guard the answer or time what is faster with it.
    "triton.mix_order_reduction": False,
    "shape_padding": False,
}
"""Of Inductor."""

ON_CUDA: dict[str, Any] = {
    # Kernels are launched from C++, not Python: a step of 32 molecules of 30 atoms takes two thirds of the time then.
    "cpp_wrapper": True,
    **launching.OPTIONS,
}
"""Likewise, in addition."""

Say = Callable[[str], None]


def flatten(batch: Batch) -> list[Tensor]:
    """What a loss depends on, one tensor after the other."""
    return [*batch.graph, *batch.labels, batch.volume, *batch.denominators]


def unflatten(tensors: Sequence[Tensor]) -> Batch:
    """A batch of what `flatten` gave; cells and numbers of structures are not known."""
    graph = Graph(*tensors[: len(Graph._fields)])
    labels = Labels(*tensors[len(graph) : len(graph) + len(Labels._fields)])
    volume, *denominators = tensors[len(graph) + len(labels) :]
    nothing = volume.new_zeros(0)
    return Batch(graph, nothing, volume, labels, nothing, Denominators(*denominators))


AXES_OF_GRAPH = axes(Graph)
AXES_OF_BATCH = [*AXES_OF_GRAPH, *axes(Labels), ("structures",), *axes(Denominators)]


class Sample(NamedTuple):
    """Sizes of what is traced and compiled."""

    training: Sizes
    validation: Sizes


def sample_sizes(structures: float, atoms: float, edges: float, limit: float | None = None) -> Sizes:
    """Sizes of a usual batch, without a common factor.

    Args:
        structures: of a batch.
        atoms: of a structure, on average.
        edges: likewise.
        limit: of the edges of a batch.
    """
    if limit is not None:
        structures = min(structures, max(1.0, limit / max(edges, 1.0)))
    return Sizes(
        next_prime(structures),
        next_prime(max(ATOMS, structures * atoms)),
        next_prime(max(EDGES, structures * edges)),
    )


def other_sizes(sizes: Sizes) -> Sizes:
    """Smaller ones, to compare at."""
    return Sizes(
        next_prime(sizes.structures / 2 + 1),
        next_prime(max(ATOMS, sizes.structures + 2, sizes.atoms / 3)),
        next_prime(max(EDGES, sizes.edges / 3)),
    )


def sample_batch(potential: Potential, sizes: Sizes, ghost: Ghost, seed: int = 0) -> Batch:
    """A random batch of given sizes, and the ghost.

    Structures are periodic or not, and have some labels or others; which, changes with the seed.
    """
    graph = sample_graph(potential.model.info, sizes, seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def all_but_every(nth: int) -> Tensor:
        return (torch.arange(sizes.structures) + seed) % nth != 0

    count = torch.tensor(1.0, dtype=torch.float64)
    shift = potential.model.shift.detach().cpu()[graph.types]
    energy = torch.zeros(sizes.structures, dtype=torch.float64).index_add(0, graph.structure, shift)
    labels = Labels(
        energy=energy + normal(sizes.structures),
        has_energy=all_but_every(3),
        forces=normal(sizes.atoms, 3),
        has_forces=all_but_every(4)[graph.structure],
        stress=0.01 * normal(sizes.structures, 3, 3),
        has_stress=all_but_every(2),
        weight=1.0 + normal(sizes.structures).abs(),
    )
    return ghost(
        Batch(
            graph=graph,
            cell=torch.zeros(sizes.structures, 3, 3, dtype=torch.float64),
            volume=torch.where(labels.has_stress, 10.0 * graph.structure_ptr.diff().double(), float("nan")),
            labels=labels,
            ids=torch.arange(sizes.structures),
            denominators=Denominators(count * sizes.structures, count * 3 * sizes.atoms, count * 9 * sizes.structures),
        )
    )


@dataclass
class Report:
    """What became of a compiled function, for run.json.

    Attributes:
        graphs: that were compiled; one, or it failed.
        breaks: places where the function left its graph.
        recompiles: graphs for batches that the first did not serve.
        trace_s: seconds of torch.fx.
        inductor_s: seconds of Inductor, or of loading what it made earlier.
        deviation: from eager, see `deviations`.
    """

    graphs: int = 0
    breaks: int = 0
    recompiles: int = 0
    trace_s: float = 0.0
    inductor_s: float = 0.0
    deviation: float | None = None


class CompiledFunction:
    """A function of weights and tensors, as one compiled graph.

    Args:
        what: its name, for messages.
        function: of the weights by name and the tensors.
        weights: by name; of them every call takes the values of the moment.
        example: tensors of usual sizes.
        tensors_axes: of each, see `nequip_core.tracing.axes`.
        sizes: of the example.
        precision: of matrix products: float32, tf32 or bf16.
    """

    def __init__(
        self,
        what: str,
        function: Callable[[dict[str, Tensor], Sequence[Tensor]], Any],
        weights: Mapping[str, Tensor],
        example: Sequence[Tensor],
        tensors_axes: Sequence[tuple[str | int, ...]],
        sizes: Sizes,
        precision: str = "float32",
    ) -> None:
        self.what = what
        self.weights = tuple(weights.values())
        self.axes = tensors_axes
        self.precision = precision
        self.report = Report()
        names = tuple(weights)

        def flat(*tensors: Tensor) -> Any:
            return function(dict(zip(names, tensors, strict=False)), tensors[len(names) :])

        start = time.perf_counter()
        self.graph: fx.GraphModule = trace(flat, self.weights, example, tensors_axes, sizes, SMALLEST)
        self.report.trace_s = round(time.perf_counter() - start, 3)
        if precision == "bf16":
            _multiply_in_bf16(self.graph)
        self.device = example[0].device
        options = OPTIONS | (ON_CUDA if self.device.type == "cuda" else {})
        self._compiled: Callable[..., Any] = torch.compile(self.graph, fullgraph=True, dynamic=False, options=options)

    def interpret(self, tensors: Sequence[Tensor]) -> Any:
        """The traced graph, operator by operator."""
        return self.graph(*self.weights, *tensors)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Calls in this block may make new code, for any number of structures, atoms and edges; they are counted."""
        from torch._inductor.decomposition import decompositions

        # Sums over edges know their derivatives while autograd works; below it a gather can be fused with its users.
        decompositions.setdefault(torch.ops.nequip.gather.default, take_rows)
        before = _counts()
        start = time.perf_counter()
        # Otherwise two sizes that happen to be equal would be taken for one.
        shapes = torch.fx.experimental._config.patch(use_duck_shape=False)  # type: ignore[attr-defined]
        with (
            shapes,
            _plain_sums(),
            matmul_precision(self.precision),
            launching.launching(self.device),
            warnings.catch_warnings(),
        ):
            # Whether to is said by training.matmul_precision.
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
            yield
        self.report.inductor_s = round(self.report.inductor_s + time.perf_counter() - start, 3)
        graphs, breaks = (after - earlier for after, earlier in zip(_counts(), before, strict=True))
        self.report.recompiles += graphs - (1 if self.report.graphs == 0 else 0)
        self.report.graphs += graphs
        self.report.breaks += breaks

    def compile(self, tensors: Sequence[Tensor]) -> Any:
        """The first call, from within `compiling`."""
        for tensor, names in zip(tensors, self.axes, strict=True):
            for axis, name in enumerate(names):
                if isinstance(name, str):
                    torch._dynamo.mark_dynamic(tensor, axis)
        return self._compiled(*self.weights, *tensors)

    def __call__(self, tensors: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Any:
        """The value, by the code that was compiled; for these weights, or those of the moment.

        Raises:
            TraceError: that code does not serve these tensors.
        """
        try:
            with torch.compiler.set_stance("fail_on_recompile"), matmul_precision(self.precision):
                return self._compiled(*(self.weights if weights is None else weights), *tensors)
        except RuntimeError as error:
            if "recompile" not in str(error):
                raise
            self.report.recompiles += 1
            structures, atoms, edges = _sizes(Graph(*tensors[: len(Graph._fields)]))
            raise TraceError(
                f"A batch of {structures} structures, {atoms} atoms and {edges} edges needs other code than the "
                f"{self.what} was compiled to: {error}\nAt less than 2^31 numbers in each tensor this is our fault: "
                "please report it. To go on, make batches smaller (data.batch.max_edges), or train with "
                "training.compile=false."
            ) from error


def _counts() -> tuple[int, int]:
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """How CUDA multiplies float32 matrices in this block, of forward and backward passes.

    Args:
        precision: float32, tf32 or bf16; the last is part of the graph, and all else float32.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _plain_sums() -> Iterator[None]:
    """Float32 sums on the CPU are the same code for all batches.

    Inductor sums 4096 numbers and more in another way than fewer, and would serve only batches on one side of that.
    """
    from torch._inductor.codegen.cpp import CppKernel

    before = CppKernel.need_use_acc_helper

    def need_use_acc_helper(kernel: CppKernel, reduction_type: str, *arguments: Any) -> bool:
        return reduction_type != "sum" and bool(before(kernel, reduction_type, *arguments))  # type: ignore[no-untyped-call]

    with mock.patch.object(CppKernel, "need_use_acc_helper", need_use_acc_helper):
        yield


def _multiply_in_bf16(graph: fx.GraphModule) -> None:
    """Round the factors of each float32 matrix product to bf16; sums stay float32 inside the product."""
    products = {torch.ops.aten.mm.default, torch.ops.aten.bmm.default}
    for node in list(graph.graph.nodes):
        if node.target in products and node.meta["val"].dtype is torch.float32:
            with graph.graph.inserting_before(node):
                node.args = tuple(_cast(graph.graph, factor, torch.bfloat16) for factor in node.args)
            with graph.graph.inserting_after(node):
                back = _cast(graph.graph, node, torch.float32)
            node.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)
    graph.recompile()


def _cast(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    return graph.call_function(torch.ops.aten._to_copy.default, (node,), {"dtype": dtype})


class CompiledTraining:
    """The compiled loss and predictions of a potential in training.

    Args:
        potential: in training.
        loss: to make small.
        sample: sizes of usual batches.
        ghost: that is appended to every batch.
        precision: of matrix products: float32, tf32 or bf16.
        check_every: steps between comparisons with eager; 0: at the start only.
        dump: where a deviation is written.
        say: told what takes long, and how much compiled and eager differ.
        recorder: makes what records steps on a device, see `nequip_core.recording.Recorder`; None: all are launched.
    """

    def __init__(
        self,
        potential: Potential,
        loss: Loss,
        *,
        sample: Sample,
        ghost: Ghost,
        precision: str = "float32",
        check_every: int = 0,
        dump: Path,
        say: Say,
        recorder: Callable[[torch.device], Record] | None = None,
    ) -> None:
        self.potential, self.eager_loss = potential, loss
        self.sample, self.ghost = sample, ghost
        self.precision, self.check_every, self.dump, self.say = precision, check_every, dump, say
        dtype = potential.model.info.dtype
        self.tolerance = TOLERANCE[dtype if precision == "float32" else precision]
        self.steps = 0
        self.recorder = recorder
        self.recorded: StepGraphs | None = None
        self._loss: CompiledFunction | None = None
        self._predict: CompiledFunction | None = None

    def prepare_training(self, device: torch.device) -> None:
        """Trace, compile and compare the loss. The potential is in training mode, on the device.

        Raises:
            TraceError: the model can not be one graph.
            CheckError: compiled and eager differ.
        """
        weights = dict(self.potential.named_parameters())
        first, second = self._samples(self.sample.training, device)

        def function(weights: dict[str, Tensor], tensors: Sequence[Tensor]) -> Tensor:
            batch = unflatten(tensors)
            return self.eager_loss(functional_call(self.potential, weights, (batch.graph,)), batch)

        self.say("Tracing the training step ...")
        sizes = _sizes(first.graph)
        compiled = CompiledFunction(
            "training step", function, weights, flatten(first), AXES_OF_BATCH, sizes, self.precision
        )
        for batch in (first, second):  # before the long wait
            self._compare(compiled.interpret, batch, "traced")
        self.say("Compiling the training step with Inductor: minutes the first time, seconds from its cache ...")
        with compiled.compiling():
            torch.autograd.backward(compiled.compile(flatten(first)))
        self.potential.zero_grad(set_to_none=True)
        report, self._loss = compiled.report, compiled
        report.deviation = max(self._compare(compiled, batch, "compiled") for batch in (first, second))
        self.say(
            f"Training step: traced in {report.trace_s:.1f} s, compiled in {report.inductor_s:.1f} s into "
            f"{report.graphs} graph; gradients deviate from eager by {report.deviation:.1e} (allowed: "
            f"{self.tolerance:.0e})."
        )
        self.begin_recording(device)

    def begin_recording(self, device: torch.device) -> None:
        """From now on, where there is a recorder."""
        if self.recorder is not None:
            weights = [*self.potential.parameters()]
            recorder = partial(self.recorder, device)
            self.recorded = StepGraphs(self._launch, weights, recorder, self._check_recorded)

    def prepare_validation(self, device: torch.device) -> None:
        """The same for predictions. The potential is what a package would be."""
        weights = dict(self.potential.named_parameters())
        first, second = self._samples(self.sample.validation, device)

        def function(weights: dict[str, Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(functional_call(self.potential, weights, (Graph(*tensors),))[:4])

        self.say("Compiling the predictions of validation ...")
        with torch.no_grad():
            compiled = CompiledFunction(
                "validation step", function, weights, [*first.graph], AXES_OF_GRAPH, _sizes(first.graph), self.precision
            )
            with compiled.compiling():
                compiled.compile([*first.graph])
            self._predict = compiled
            compiled.report.deviation = max(self._compare_predictions(batch) for batch in (first, second))

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch; every ``check_every`` calls the step is compared with eager first.

        It does not ask for a gradient where it comes from a recording, which has computed it already.

        Raises:
            CheckError: compiled and eager differ.
        """
        assert self._loss is not None
        tensors = flatten(batch)
        recorded = None if self.recorded is None else self.recorded.loss(_sizes(batch.graph), tensors)
        self.steps += 1
        if self.check_every and self.steps % self.check_every == 0:
            self._compare(self._loss, batch, "compiled", recorded)
        if recorded is not None:
            return recorded
        value: Tensor = self._loss(tensors)
        return value

    def backward(self, loss: Tensor) -> None:
        """The gradients of what `loss` gave last."""
        if loss.requires_grad:
            with matmul_precision(self.precision):
                torch.autograd.backward(loss)
        else:
            assert self.recorded is not None
            self.recorded.add_gradients()

    def predict(self, graph: Graph) -> Prediction:
        """Predictions without derivatives by the weights."""
        assert self._predict is not None
        return Prediction(*self._predict([*graph]))

    def report(self) -> dict[str, Any]:
        """For run.json."""
        loss, predict = (
            None if function is None else vars(function.report) for function in (self._loss, self._predict)
        )
        return {**(loss or {}), "validation": predict, "cuda_graphs": self._counts()}

    def say_counts(self) -> None:
        """How steps have come about, if any was to be recorded."""
        counts = self._counts()
        if counts is not None:
            self.say(
                "CUDA graphs: {recorded} recorded; {replayed} batches by them, {launched} launched.".format(**counts)
            )

    def _counts(self) -> dict[str, int] | None:
        found = self.recorded
        if found is None:
            return None
        return {"recorded": found.recorded, "replayed": found.replayed, "launched": found.launched}

    def _samples(self, sizes: Sizes, device: torch.device) -> tuple[Batch, Batch]:
        first, second = (
            sample_batch(self.potential, each, self.ghost, seed).to(device)
            for seed, each in enumerate((sizes, other_sizes(sizes)))
        )
        return first, second

    def _launch(self, weights: Sequence[nn.Parameter], tensors: Sequence[Tensor]) -> Results:
        """The compiled loss, and its gradient by each weight."""
        assert self._loss is not None
        with matmul_precision(self.precision):
            return _with_gradients(self._loss(tensors, weights), weights)

    def _check_recorded(self, tensors: Sequence[Tensor], recorded: Results, launched: Results) -> None:
        ours, theirs = self._named(*recorded), self._named(*launched)
        # What is no number can not be compared; the run ends for it, and says which structures it came from.
        if all(tensor.isfinite().all() for tensor in theirs.values()):
            self._judge(ours, theirs, "recorded", tensors, "launched", 0.1 * self.tolerance)

    def _compare(
        self, function: Callable[[Sequence[Tensor]], Tensor], batch: Batch, kind: str, recorded: Tensor | None = None
    ) -> float:
        """The largest deviation of a loss and its gradients from eager; of the last recorded ones, where there are."""
        weights, tensors = [*self.potential.parameters()], flatten(batch)
        with matmul_precision("float32"):
            eager = self._named(*_with_gradients(self.eager_loss(self.potential(batch.graph), batch), weights))
        if recorded is not None:
            assert self.recorded is not None
            return self._judge(self._named(recorded, self.recorded.gradients), eager, "recorded", tensors)
        with matmul_precision(self.precision):
            ours = self._named(*_with_gradients(function(tensors), weights))
        return self._judge(ours, eager, kind, tensors)

    def _named(self, loss: Tensor, gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Results to compare: zeros where there is no gradient."""
        found = zip(self.potential.named_parameters(), gradients, strict=True)
        return {"loss": loss.detach()} | {
            name: torch.zeros_like(weight) if gradient is None else gradient
            for (name, weight), gradient in found
            if weight.requires_grad
        }

    def _compare_predictions(self, batch: Batch) -> float:
        names = Prediction._fields[:4]
        with matmul_precision("float32"):
            eager = dict(zip(names, self.potential(batch.graph)[:4], strict=True))
        compiled = dict(zip(names, self.predict(batch.graph)[:4], strict=True))
        return self._judge(compiled, eager, "compiled", [*batch.graph])

    def _judge(
        self,
        ours: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        kind: str,
        batch: Sequence[Tensor],
        than: str = "eager",
        tolerance: float | None = None,
    ) -> float:
        found = deviations(ours, expected)
        name = max(found, key=lambda name: found[name] if found[name] == found[name] else float("inf"))
        tolerance = self.tolerance if tolerance is None else tolerance
        if not found[name] <= tolerance:
            self._write_down({kind: ours, than: expected}, batch)
            instead = "training.cuda_graphs=false" if kind == "recorded" else "training.compile=false"
            raise CheckError(
                f"The {kind} step is not the {than} one: {name} deviates by {found[name]:.1e} (at most "
                f"{tolerance:.0e}). Both results and the batch are in {self.dump}. A model that stops gradients "
                "(detach) or reads values can not be traced; otherwise please report it. To go on, train with "
                f"{instead}."
            )
        return found[name]

    def _write_down(self, results: Mapping[str, Mapping[str, Tensor]], batch: Sequence[Tensor]) -> None:
        tensors = {f"batch.{n:02}": tensor for n, tensor in enumerate(batch)}
        tensors |= {f"{kind}.{name}": tensor for kind, found in results.items() for name, tensor in found.items()}
        self.dump.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.dump, "wb") as file:
            file.write(save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}))


def _with_gradients(loss: Tensor, weights: Sequence[nn.Parameter]) -> Results:
    """A loss, and its gradient by each weight that asks for one and that it depends on."""
    asked = [number for number, weight in enumerate(weights) if weight.requires_grad]
    gradients: list[Tensor | None] = [None] * len(weights)
    found = torch.autograd.grad(loss, [weights[number] for number in asked], allow_unused=True)
    for number, gradient in zip(asked, found, strict=True):
        gradients[number] = gradient
    return loss, gradients


def deviations(ours: Mapping[str, Tensor], eager: Mapping[str, Tensor]) -> dict[str, float]:
    """|ours - eager| / |eager| of each tensor, as a whole; a small one is measured by a part of the largest."""
    sizes = {name: float(tensor.double().norm()) for name, tensor in eager.items()}
    least = FLOOR * max((size for name, size in sizes.items() if name != "loss"), default=0.0)
    found = {}
    for name, tensor in eager.items():
        difference = float((ours[name].double() - tensor.double()).norm())
        scale = max(sizes[name], 0.0 if name == "loss" else least)
        found[name] = 0.0 if difference == 0.0 else difference / scale if scale else float("inf")
    return found


def _sizes(graph: Graph) -> Sizes:
    return Sizes(graph.structure_ptr.shape[0] - 1, graph.types.shape[0], graph.edge_shift.shape[0])
