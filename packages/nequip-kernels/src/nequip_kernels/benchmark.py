"""``nequip benchmark kernels``: the time of each kernel over its floor, and other block sizes with ``--tune``.

The floor follows from bytes and operations (`nequip_kernels.floors`) at the bandwidth of a copy and the rate of a
float32 matrix product, both measured in the same run; that of a network of scalars at the rate of TF32 products.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nequip_core.cli.options import command_parser
from nequip_core.errors import InputError
from nequip_core.files import atomic_write
from nequip_core.graph import Graph, to
from nequip_core.o3 import SCALAR, Irrep, Irreps, couplings
from nequip_core.ops.contracts import (
    ALLEGRO_CHAIN,
    ALLEGRO_CONTRACT,
    NEQUIP_CONVOLUTION,
    NEQUIP_TABULATED_CONVOLUTION,
    SCALAR_MLP,
    ChainSpec,
    ContractionSpec,
    ConvolutionSpec,
    RadialConvolutionSpec,
    ScalarMLPSpec,
    TabulatedConvolutionSpec,
)
from nequip_core.testing.kernels import contraction_shapes, convolution_shapes, mlp_shapes, random_graph
from nequip_kernels import blocks, floors
from nequip_kernels.blocks import Block, Row
from nequip_kernels.chain import kernels as chain
from nequip_kernels.chain.make import TERMS, terms_of
from nequip_kernels.contraction import kernels as contraction
from nequip_kernels.convolution import kernels as convolution
from nequip_kernels.floors import Floor
from nequip_kernels.launch import compiling_only
from nequip_kernels.mlp import kernels as mlp
from nequip_kernels.mlp.operators import mlp_pack
from nequip_kernels.tabulated import kernels as tabulated

SCHEMA = 1
INTERVALS = 1024
"""Of tables of weights, as models have them (`nequip_core.nn.tabulated`, which kernels do not know)."""
REPEATS, FEW, WARM_UP = 20, 5, 3
CANDIDATES = tuple(
    Block(*sizes, stages)
    for sizes in (
        *((64, 1, 1), (64, 1, 2), (64, 2, 1), (64, 2, 2), (64, 2, 4), (64, 4, 2), (64, 4, 4), (64, 8, 4), (64, 8, 8)),
        *(
            (32, 2, 1),
            (32, 2, 2),
            (32, 4, 2),
            (32, 4, 4),
            (32, 8, 4),
            (128, 1, 2),
            (128, 1, 4),
            (128, 2, 4),
            (128, 4, 4),
        ),
    )
    for stages in (1, 3)
)
"""What ``--tune`` tries; block sizes of more channels than there are, are left out."""
MOST_TERMS = 400
"""Of a thread for a tile. A block that gives it more, and more than one edge and channel, is left out: it spills, and
compiling it takes minutes."""
OF_NETWORKS = tuple(
    Block(*sizes)
    for sizes in (
        *((64, 64, 4, 1), (64, 64, 4, 2), (64, 128, 8, 1), (64, 128, 8, 2), (64, 128, 4, 2), (32, 64, 4, 1)),
        *((32, 64, 4, 3), (32, 128, 8, 3)),
    )
)
"""The same for networks of scalars, whose pieces of a width take the place of channels."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = command_parser("benchmark kernels", "Time of each kernel over its floor, on the GPU of this machine.")
    result.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file")
    result.add_argument("--only", default="", metavar="WORD", help="cases whose name holds this word")
    result.add_argument("--atoms", type=int, default=5184, help="of the graph")
    result.add_argument("--edges-per-atom", type=int, default=86, help="on average")
    result.add_argument("--channels", type=int, default=64, help="of the features")
    result.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of the kernels")
    result.add_argument("--tune", action="store_true", help="try other block sizes and keep the best for this GPU")
    result.add_argument("--table", type=Path, help="file that --tune adds to; default: in the folder of caches")
    return result


def run(argv: Sequence[str]) -> int:
    """Measure and print. Exit code 0: what is fast enough is the reader's to say.

    Raises:
        InputError: there is no GPU.
    """
    options = parser().parse_args(argv)
    if not torch.cuda.is_available():
        raise InputError("nequip benchmark kernels needs a CUDA device that torch can use; here is none.")
    device = torch.device("cuda")
    dtype = getattr(torch, options.dtype)
    machine = measure_machine(device)
    print(
        f"{machine.name}: a copy moves {machine.bandwidth / 1e9:.0f} GB/s, float32 products {machine.rate / 1e12:.1f} "
        f"TFLOP/s, TF32 products {machine.tensor_rate / 1e12:.0f} TFLOP/s."
    )
    graph = to(random_graph(options.atoms, row_lengths(options.edges_per_atom)), device)
    found: list[Figure] = []
    chosen = [case for case in cases(options.channels) if options.only in case.name]
    if options.tune:
        compile_ahead(chosen, options.channels, options.atoms, options.edges_per_atom, dtype)
    print(HEAD)
    for case in chosen:
        for figure in measure(case, graph, dtype, machine, tune=options.tune):
            print(figure.line(), flush=True)
            found.append(figure)
    if options.tune:
        path = options.table or blocks.tuned_file()
        keep(found, path)
        print(f"Block sizes are in {path}.")
    if options.json:
        report = {
            "schema": SCHEMA,
            "device": machine._asdict(),
            "torch": torch.__version__,
            "atoms": options.atoms,
            "edges": graph.edge_shift.shape[0],
            "channels": options.channels,
            "dtype": options.dtype,
            "kernels": [figure.as_json() for figure in found],
        }
        with atomic_write(options.json) as file:
            json.dump(report, file, indent=2)
    return 0


class Machine(NamedTuple):
    """What was measured of a GPU.

    Attributes:
        name: of the GPU.
        architecture: sm_90, ...
        bandwidth: bytes / s that a copy reads and writes.
        rate: operations / s of a product of float32 matrices without TF32.
        tensor_rate: the same with TF32.
    """

    name: str
    architecture: str
    bandwidth: float
    rate: float
    tensor_rate: float


def measure_machine(device: torch.device) -> Machine:
    """A copy of 1 GiB and a product of matrices of 8192."""
    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source))
    del source, target
    matrix = torch.randn(8192, 8192, device=device)
    precision = torch.get_float32_matmul_precision()
    rates = []
    for allowed in ("highest", "high"):
        torch.set_float32_matmul_precision(allowed)
        rates.append(2 * 8192**3 / seconds(lambda: matrix @ matrix))
    torch.set_float32_matmul_precision(precision)
    return Machine(
        torch.cuda.get_device_name(device), blocks.architecture_of(device), 2 * 2**30 / copy, rates[0], rates[1]
    )


def seconds(function: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median time of a call on the device."""
    for _ in range(WARM_UP):
        function()
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / 1000)
    return float(statistics.median(times))


def row_lengths(mean: int) -> tuple[int, ...]:
    """Numbers of edges about a mean, as in a liquid: 31 of them, so that neighbouring atoms differ."""
    return tuple(max(0, mean + round(mean * 0.15 * ((7 * n) % 31 - 15) / 15)) for n in range(31))


class Call(NamedTuple):
    """One kernel of a case, with its inputs.

    Attributes:
        kernel: its name in the table of blocks.
        terms: of its couplings.
        floor: of the call.
        make: a function without arguments that runs it with a block.
        default: the block of the table.
    """

    kernel: str
    terms: int
    floor: Floor
    make: Callable[[Block], Callable[[], Any]]
    default: Block


class Case(NamedTuple):
    """A layer of a model.

    Attributes:
        name: for the table.
        op: its contract.
        spec: of the contract.
        channels: of its features.
        calls: of its kernels; makes the inputs on the device.
        candidates: blocks that are tried besides the table's.
    """

    name: str
    op: str
    spec: (
        ContractionSpec | ChainSpec | ConvolutionSpec | RadialConvolutionSpec | TabulatedConvolutionSpec | ScalarMLPSpec
    )
    channels: int
    calls: Callable[[Graph, torch.dtype], Iterator[Call]]
    candidates: tuple[Block, ...] = CANDIDATES


def harmonics(l_max: int) -> tuple[Irrep, ...]:
    """Of the parity (-1)^l."""
    return tuple(Irrep(degree, (-1) ** degree) for degree in range(l_max + 1))


def both(l_max: int) -> tuple[Irrep, ...]:
    """Both parities; odd scalars are reached from neither harmonics nor each other in two layers."""
    return tuple(Irrep(degree, p) for degree in range(l_max + 1) for p in (1, -1))


def cases(channels: int) -> Iterator[Case]:
    """The layers that usual models have."""
    for l_max in (1, 2, 3):
        plain = harmonics(l_max)
        reached = tuple(
            out
            for out in both(l_max)
            if any(couplings(one, degree, (-1) ** degree, [out]) for one in plain for degree in range(l_max + 1))
        )
        layers = {
            "first": ContractionSpec(plain, plain, l_max, channels, True, True, scalars_apart=True),
            "middle": ContractionSpec(plain, plain, l_max, channels, True, False, scalars_apart=True),
            "last": ContractionSpec(plain, (SCALAR,), l_max, channels, True, False),
            "parity first": ContractionSpec(plain, reached, l_max, channels, True, True, scalars_apart=True),
            "parity": ContractionSpec(reached, plain, l_max, channels, True, False, scalars_apart=True),
        }
        for name, spec in layers.items():
            yield Case(f"allegro l{l_max} {name}", ALLEGRO_CONTRACT, spec, channels, _contraction_calls(spec))
        scalars = ContractionSpec(plain, (SCALAR,), l_max, channels, True, True)
        chains = {
            "first": ChainSpec((scalars,), passes=True),
            "last": ChainSpec((layers["first"], layers["last"])),
            "parity": ChainSpec((layers["parity first"], layers["parity"])),
        }
        for name, chained in chains.items():
            if terms_of(chained) > TERMS:
                continue
            yield Case(f"chain l{l_max} {name}", ALLEGRO_CHAIN, chained, channels, _chain_calls(chained))
        hidden = Irreps((irrep, channels) for irrep in plain)
        for name, convolved in {
            "first": ConvolutionSpec(Irreps([(SCALAR, channels)]), l_max, True, plain),
            "middle": ConvolutionSpec(hidden, l_max, True, plain),
        }.items():
            yield Case(
                f"nequip l{l_max} {name}", NEQUIP_CONVOLUTION, convolved, channels, _convolution_calls(convolved)
            )
            by_table = TabulatedConvolutionSpec(convolved, INTERVALS)
            yield Case(
                f"tabulated l{l_max} {name}",
                NEQUIP_TABULATED_CONVOLUTION,
                by_table,
                channels,
                _tabulated_calls(by_table),
            )
    for name, network in networks(channels).items():
        yield Case(f"mlp {name}", SCALAR_MLP, network, max(network.widths), _mlp_calls(network), OF_NETWORKS)


def networks(channels: int) -> dict[str, ScalarMLPSpec]:
    """Of Allegro with two layers of l_max 2 and twice as many scalars as channels, and NequIP's radial network."""
    scalars, weights = 2 * channels, 3 * channels
    return {
        "first": ScalarMLPSpec((64,), (64,), (weights, scalars, weights), "silu"),
        "latent": ScalarMLPSpec((scalars, channels), (64,), (scalars, weights), "silu", passes=1),
        "latent wide": ScalarMLPSpec((scalars, channels), (128,), (scalars, weights), "silu", passes=1),
        "latent last": ScalarMLPSpec((scalars, scalars, channels), (64,), (scalars,), "silu", passes=2),
        "read-out": ScalarMLPSpec((scalars,) * 3, (32,), (1,), "silu"),
        "linear": ScalarMLPSpec((scalars,), (), (weights,), "silu"),
        "radial": ScalarMLPSpec((8,), (128,), (11 * channels,), "silu"),
    }


def _contraction_calls(spec: ContractionSpec) -> Callable[[Graph, torch.dtype], Iterator[Call]]:
    def calls(graph: Graph, dtype: torch.dtype) -> Iterator[Call]:
        text = contraction.describe(spec, blocks.architecture_of(graph.types.device), dtype)
        made = contraction.kernels_of(text, spec.l_max + 1)
        terms = len(made.table.terms)
        inputs = _normal(contraction_shapes(spec, graph), graph, dtype)
        T, w, Y, W = inputs
        edges = graph.edge_shift.shape[0]
        g = torch.randn(edges, spec.dim_out, spec.channels, dtype=dtype, device=T.device)
        s = torch.randn(edges, spec.channels, dtype=dtype, device=T.device) if spec.scalars_apart else None
        v = torch.randn_like(made.of_atoms(T, graph.row_ptr))
        x, c, y = (torch.randn_like(one) for one in (T, w, Y))
        ptr = graph.row_ptr
        arguments: dict[str, tuple[Tensor | None, ...]] = {
            "forward": (T, w, Y, W, ptr),
            "backward": (T, w, Y, W, v, g, s, ptr),
            "double_backward": (T, w, Y, W, v, g, s, v, x, c, y, ptr),
            "by_weights": (T, Y, v, g, s, ptr),
            "double_by_weights": (T, Y, v, g, s, x, y, v, ptr),
        }
        floor = floors.of_contraction(spec, graph.types.shape[0], edges, T.element_size())
        for name, given in arguments.items():

            def make(block: Block, name: str = name, given: tuple[Tensor | None, ...] = given) -> Callable[[], Any]:
                kernels = contraction.Kernels(spec, made.blocks | {name: block}, spec.l_max + 1)
                return lambda: getattr(kernels, name)(*given)

            yield Call(contraction.in_table(name, spec), terms, floor[name], make, made.blocks[name])

    return calls


def _chain_calls(spec: ChainSpec) -> Callable[[Graph, torch.dtype], Iterator[Call]]:
    def calls(graph: Graph, dtype: torch.dtype) -> Iterator[Call]:
        text = chain.describe(spec, blocks.architecture_of(graph.types.device), dtype)
        first, last = spec.layers[0], spec.layers[-1]
        made = chain.kernels_of(text, first.l_max + 1)
        terms = sum(len(table.terms) for table in made.tables)
        edges, atoms, ptr = graph.edge_shift.shape[0], graph.types.shape[0], graph.row_ptr
        shapes = {
            "factors": (edges, first.l_max + 1, first.channels),
            "harmonics": (edges, (first.l_max + 1) ** 2),
            **{f"environment {n}": (atoms, (first.l_max + 1) ** 2, last.channels) for n in range(len(spec.layers))},
            **{f"paths {n}": (len(one.paths), one.channels) for n, one in enumerate(spec.layers)},
        }
        factors, harmonics_, *rest = _normal(shapes, graph, dtype)
        around, paths = rest[: len(spec.layers)], rest[len(spec.layers) :]
        grads = [torch.randn_like(one) for one in (*made.results(factors), *([factors] if spec.passes else []))]
        arguments: dict[str, tuple[Any, ...]] = {
            "chain_forward": (factors, harmonics_, around, paths, ptr),
            "chain_backward": (factors, harmonics_, around, paths, grads, ptr),
            "environment_forward": (factors, harmonics_, ptr),
            "environment_backward": (factors, harmonics_, around[0], ptr),
        }
        methods = {name: name.removesuffix("_forward") for name in chain.NAMES}
        floor = floors.of_chain(spec, atoms, edges, factors.element_size())
        for name, given in arguments.items():

            def make(block: Block, name: str = name, given: tuple[Any, ...] = given) -> Callable[[], Any]:
                kernels = chain.Kernels(spec, made.blocks | {name: block}, spec.layers[0].l_max + 1)
                return lambda: getattr(kernels, methods[name])(*given)

            yield Call(name, terms, floor[name], make, made.blocks[name])

    return calls


def _convolution_calls(spec: ConvolutionSpec) -> Callable[[Graph, torch.dtype], Iterator[Call]]:
    def calls(graph: Graph, dtype: torch.dtype) -> Iterator[Call]:
        text = convolution.describe(spec, blocks.architecture_of(graph.types.device), dtype)
        made = convolution.kernels_of(text)
        terms = max(group.terms for group in made.table.groups)
        h, Y, R = _normal(convolution_shapes(spec, graph), graph, dtype)
        atoms = graph.types.shape[0]
        g = torch.randn(atoms, made.table.dim_out, dtype=dtype, device=h.device)
        # A copy begins where Triton assumes it when it compiles ahead: at a multiple of 16 bytes.
        about = (graph.edge_index[1].clone(), graph.row_ptr, graph.by_neighbor, graph.neighbor_ptr)
        a, y, r = (torch.randn_like(one) for one in (h, Y, R))
        arguments: dict[str, tuple[Tensor, ...]] = {
            "forward": (h, Y, R, *about[:2]),
            "backward": (h, Y, R, g, *about),
            "double_backward": (h, Y, R, g, a, y, r, *about),
        }
        floor = floors.of_convolution(spec, atoms, graph.edge_shift.shape[0], h.element_size())
        for name, given in arguments.items():

            def make(block: Block, name: str = name, given: tuple[Tensor, ...] = given) -> Callable[[], Any]:
                changed = {f"{name}_{n}": block for n in range(len(made.table.groups))}
                kernels = convolution.Kernels(spec, made.blocks | changed)
                return lambda: getattr(kernels, name)(*given)

            yield Call(name, terms, floor[name], make, made.blocks[f"{name}_0"])

    return calls


def _tabulated_calls(spec: TabulatedConvolutionSpec) -> Callable[[Graph, torch.dtype], Iterator[Call]]:
    def calls(graph: Graph, dtype: torch.dtype) -> Iterator[Call]:
        text = tabulated.describe(spec, blocks.architecture_of(graph.types.device), dtype)
        made = tabulated.kernels_of(text)
        terms = max(group.terms for group in made.table.groups)
        shapes = convolution_shapes(spec.convolution, graph)
        weights = shapes.popitem()[1][1]
        h, Y = _normal(shapes, graph, dtype)
        rows, edges = (spec.intervals + 1, 4, weights), Y.shape[0]
        table, fraction = _normal({"table": rows, "fraction": (edges,)}, graph, dtype)
        place = torch.randint(0, spec.intervals, (edges,), dtype=torch.int32, device=h.device)
        g = torch.randn(h.shape[0], made.table.dim_out, dtype=dtype, device=h.device)
        about = (graph.edge_index[1].clone(), graph.row_ptr, graph.by_neighbor, graph.neighbor_ptr)
        arguments: dict[str, tuple[Tensor, ...]] = {
            "forward": (h, Y, place, fraction, table, *about[:2]),
            "backward": (h, Y, place, fraction, table, g, *about),
        }
        floor = floors.of_tabulated(spec, h.shape[0], edges, h.element_size())
        for name, given in arguments.items():

            def make(block: Block, name: str = name, given: tuple[Tensor, ...] = given) -> Callable[[], Any]:
                changed = {f"{name}_{n}": block for n in range(len(made.table.groups))}
                kernels = tabulated.Kernels(made.table, made.blocks | changed)
                return lambda: getattr(kernels, name)(*given)

            yield Call(name, terms, floor[name], make, made.blocks[f"{name}_0"])

    return calls


def _mlp_calls(spec: ScalarMLPSpec) -> Callable[[Graph, torch.dtype], Iterator[Call]]:
    def calls(graph: Graph, dtype: torch.dtype) -> Iterator[Call]:
        text = mlp.describe(spec, blocks.architecture_of(graph.types.device), dtype)
        made = mlp.kernels_of(text)
        rows = graph.edge_shift.shape[0]
        tensors = _normal(mlp_shapes(spec, rows), graph, dtype)
        inputs, weights = tensors[: len(spec.inputs)], tensors[len(spec.inputs) :]
        grads = [torch.randn(rows, width, dtype=dtype, device=graph.types.device) for width in spec.outputs]
        packed = mlp_pack(weights, text)
        passed = [torch.randn_like(one) for one in inputs[: spec.passes]]
        arguments: dict[str, tuple[Any, ...]] = {
            "forward": (inputs, packed),
            "backward": (inputs, packed, grads, passed),
        }
        floor = floors.of_mlp(spec, rows, packed.element_size())
        for name, given in arguments.items():

            def make(block: Block, name: str = name, given: tuple[Any, ...] = given) -> Callable[[], Any]:
                kernels = mlp.Kernels(spec, dtype, made.blocks | {name: block})
                return lambda: getattr(kernels, name)(*given)

            yield Call(name, mlp.in_registers(spec), floor[name], make, made.blocks[name])

    return calls


def _normal(shapes: Mapping[str, tuple[int, ...]], graph: Graph, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, device=graph.types.device) for shape in shapes.values()]


HEAD = (
    f"{'case':22} {'kernel':18} {'block':>10} {'ms':>8} {'floor ms':>9} {'of floor':>9} {'GB/s':>6} {'TFLOP/s':>8}\n"
    + "-" * 97
)


class Figure(NamedTuple):
    """The time of one kernel.

    Attributes:
        case: its layer.
        op: contract.
        kernel: name.
        dtype: of its numbers.
        terms: of its couplings.
        architecture: of the GPU.
        block: that was best, or the table's.
        seconds: of a call.
        floor: of a call.
        share: of its floor that it reaches.
    """

    case: str
    op: str
    kernel: str
    dtype: str
    terms: int
    architecture: str
    block: Block
    seconds: float
    floor: Floor
    share: float

    def line(self) -> str:
        """For the table."""
        block = "x".join(map(str, self.block))
        return (
            f"{self.case:22} {self.kernel:18} {block:>10} {1e3 * self.seconds:8.3f} "
            f"{1e3 * self.seconds * self.share:9.3f} {self.share:9.0%} {self.floor.bytes / self.seconds / 1e9:6.0f} "
            f"{self.floor.operations / self.seconds / 1e12:8.2f}"
        )

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        return {**self._asdict(), "block": list(self.block), "floor": self.floor._asdict()}


class Task(NamedTuple):
    """One kernel with one block, to be compiled.

    Attributes:
        case: name of the case.
        kernel: name in the table of blocks.
        block: to try.
        channels: of the cases, see `cases`.
        atoms: of the graph, since Triton makes other code for other sizes.
        edges_per_atom: likewise.
        dtype: of the kernel.
    """

    case: str
    kernel: str
    block: Block
    channels: int
    atoms: int
    edges_per_atom: int
    dtype: torch.dtype


def compile_ahead(chosen: Iterable[Case], channels: int, atoms: int, edges_per_atom: int, dtype: torch.dtype) -> None:
    """Compile all that tuning tries, on all cores: one after the other it takes ten times as long as to measure it."""
    tasks = [
        Task(case.name, call.kernel, block, channels, atoms, edges_per_atom, dtype)
        for case in chosen
        for call in _calls(case.name, channels, atoms, edges_per_atom, dtype).values()
        for block in _tried(case, call)
    ]
    # Its own interpreters: one that has used a GPU can not be forked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(len(tasks), os.cpu_count() or 1)), context) as pool:
        for _ in pool.map(compile_one, tasks):
            pass


def compile_one(task: Task) -> None:
    """Into Triton's cache."""
    name, kernel, block, *about = task
    with compiling_only():
        _calls(name, *about)[kernel].make(block)()


@cache
def _calls(name: str, channels: int, atoms: int, edges_per_atom: int, dtype: torch.dtype) -> dict[str, Call]:
    """Of a case, by kernel, with tensors that have no memory."""
    case = next(case for case in cases(channels) if case.name == name)
    graph = to(random_graph(atoms, row_lengths(edges_per_atom)), "meta")
    return {call.kernel: call for call in case.calls(graph, dtype)}


def _tried(case: Case, call: Call) -> list[Block]:
    """What tuning tries, the table's first."""
    fits = blocks.next_power_of_two(case.channels)

    def possible(block: Block) -> bool:
        of_thread = block.channels * block.edges / (32 * block.warps)
        return block.channels <= fits and (case.op == SCALAR_MLP or of_thread <= max(1, MOST_TERMS / call.terms))

    return [call.default, *(one for one in case.candidates if one != call.default and possible(one))]


def measure(case: Case, graph: Graph, dtype: torch.dtype, machine: Machine, *, tune: bool) -> Iterator[Figure]:
    """Figures of all kernels of a case; with the best of all blocks if it is to be tuned."""
    for call in case.calls(graph, dtype):
        times = {}
        for block in _tried(case, call) if tune else [call.default]:
            try:
                times[block] = seconds(call.make(block), FEW if tune else REPEATS)
            except Exception as error:
                # A block that a GPU has no room for is no candidate; the table's own must run.
                if block == call.default or "out of resource" not in str(error):
                    raise
                print(f"{case.name}, {call.kernel}: {block} does not fit: {error}", file=sys.stderr)
        best = min(times, key=lambda block: times[block])
        took = seconds(call.make(best)) if tune else times[best]
        floor = call.floor.seconds(machine.bandwidth, machine.rate, machine.tensor_rate)
        yield Figure(
            case=case.name,
            op=case.op,
            kernel=call.kernel,
            dtype=str(dtype).removeprefix("torch."),
            terms=call.terms,
            architecture=machine.architecture,
            block=best,
            seconds=took,
            floor=call.floor,
            share=floor / took,
        )


def keep(figures: Sequence[Figure], path: Path) -> None:
    """Add the blocks of figures to a table; lines for the same kernel and number of terms are replaced."""
    table = {row[:5]: row for row in (blocks.read(path) if path.is_file() else [])}
    for one in figures:
        row = Row(one.architecture, one.op, one.kernel, one.dtype, one.terms, one.block)
        known = table.get(row[:5])
        if known is None or known.block != row.block:
            table[row[:5]] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(blocks.as_text(sorted(table.values())))
    blocks.rows.cache_clear()
