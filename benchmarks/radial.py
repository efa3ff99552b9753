"""NequIP's convolution without stored weights (triton_fused) beside the kernels that store them: one call does it all.

python benchmarks/radial.py [--out FILE.csv] [--tune] [--l-max 2] [--widths 64 128] [--atoms N] [--channels N]

For each width of the radial network's last hidden layer: deviations of value and first derivatives from the reference
in float64, on a smaller graph; the time of the operator and its derivative, and the memory that they take at most
besides their inputs; the same of weights that are stored (by a product of torch in float32, and by the kernel of
scalar_mlp/1) and taken by nequip.convolution/1. Floors are those of `nequip_kernels.floors.of_radial` at the measured
rates: a share is of TF32 products / 3. With --tune also each irrep's kernels, in all blocks that are tried.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nequip_core.graph import Graph, to
from nequip_core.ops import reference
from nequip_core.ops.contracts import RadialConvolutionSpec, ScalarMLPSpec
from nequip_core.testing.kernels import derivatives, radial_convolution_shapes, random_graph
from nequip_kernels import benchmark, floors
from nequip_kernels.benchmark import Case, Machine, row_lengths, seconds
from nequip_kernels.blocks import Block
from nequip_kernels.convolution.make import make_convolution
from nequip_kernels.launch import compiling_only
from nequip_kernels.mlp.make import make_mlp
from nequip_kernels.radial import fused_benchmark
from nequip_kernels.radial.fused_make import make_fused

CUDA = torch.device("cuda")
FIELDS = (
    *("date", "device", "case", "way", "kernel", "dtype", "atoms", "edges", "channels", "block", "ms", "floor_ms"),
    *("share_of_floor", "tf32_tflop_per_s", "peak_mb", "deviation"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--l-max", type=int, nargs="+", default=[2])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--atoms", type=int, default=5184)
    parser.add_argument("--edges-per-atom", type=int, default=54)
    parser.add_argument("--channels", type=int, default=64)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/radial.py needs a CUDA device that torch can use; here is none.")
    torch.set_float32_matmul_precision("highest")
    machine = benchmark.measure_machine(CUDA)
    lengths = row_lengths(options.edges_per_atom)
    graph = to(random_graph(options.atoms, lengths), CUDA)
    edges = graph.edge_shift.shape[0]
    print(
        f"{machine.name}: copy {machine.bandwidth / 1e9:.0f} GB/s, TF32 {machine.tensor_rate / 1e12:.0f} TFLOP/s; "
        f"{options.atoms} atoms, {edges} edges, {options.channels} channels"
    )
    named = {f"radial l{l_max} width {width}" for l_max in options.l_max for width in options.widths}
    chosen = [case for case in fused_benchmark.cases(options.channels, tuple(options.widths)) if case.name in named]
    common = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": machine.name,
        "dtype": "float32",
        "atoms": options.atoms,
        "edges": edges,
        "channels": options.channels,
        "tf32_tflop_per_s": round(machine.tensor_rate / 1e12, 1),
    }
    rows: list[dict[str, Any]] = []
    for case in chosen:
        for row in [*deviations(case, lengths), *ways(case, graph, machine)]:
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(common | row)
    if options.tune:
        rows += [common | row for row in tuned(chosen, options, graph, machine)]
    if options.out is not None:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)


def inputs_of(spec: RadialConvolutionSpec, graph: Graph) -> list[Tensor]:
    """Normal numbers, and a matrix as a model has, float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = radial_convolution_shapes(spec, graph).values()
    *others, matrix = (torch.randn(shape, generator=generator).to(CUDA) for shape in shapes)
    return [*others, matrix * (2 / spec.width) ** 0.5]


def deviations(case: Case, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Largest ones from float64, as parts of the largest number: of the kernel, and of float32 with stored weights."""
    spec = case.spec
    assert isinstance(spec, RadialConvolutionSpec)
    graph = to(random_graph(300, lengths), CUDA)
    *inputs, matrix = inputs_of(spec, graph)
    found = {}
    for way, made, dtype in (
        ("exact", reference.make_radial_convolution(spec, torch.float64, CUDA), torch.float64),
        ("fused", make_fused(spec, torch.float32, CUDA), torch.float32),
        ("stored", reference.make_radial_convolution(spec, torch.float32, CUDA), torch.float32),
    ):
        found[way] = derivatives(
            lambda h, Y, hidden, graph, made=made, dtype=dtype: made(h, Y, hidden, matrix.to(dtype), graph),
            dict(zip(("h", "harmonics", "hidden"), (x.to(dtype) for x in inputs), strict=True)),
            graph,
            1,
            0,
        )
    return [
        {
            "case": case.name,
            "way": way,
            "kernel": name,
            "deviation": f"{float((found[way][name].double() - exact).abs().max() / exact.abs().max()):.2e}",
        }
        for way in ("fused", "stored")
        for name, exact in found["exact"].items()
    ]


def ways(case: Case, graph: Graph, machine: Machine) -> list[dict[str, Any]]:
    """Time and memory of value and first derivatives, whoever computes them."""
    spec = case.spec
    assert isinstance(spec, RadialConvolutionSpec)
    *inputs, matrix = inputs_of(spec, graph)
    fused = make_fused(spec, torch.float32, CUDA)
    convolution = make_convolution(spec.convolution, torch.float32, CUDA)
    mlp = make_mlp(ScalarMLPSpec((spec.width,), (), (matrix.shape[1],), "none"), torch.float32, CUDA)
    unscaled = matrix * spec.width**0.5  # the kernel of networks scales its weights
    computing: dict[str, Callable[..., Tensor]] = {
        "fused": lambda h, Y, hidden: fused(h, Y, hidden, matrix, graph),
        "stored": lambda h, Y, hidden: convolution(h, Y, hidden @ matrix, graph),
        "stored by kernels": lambda h, Y, hidden: convolution(h, Y, mlp([hidden], [unscaled])[0], graph),
    }
    floor = floors.of_radial(spec, graph.types.shape[0], graph.edge_shift.shape[0], 4)
    rows = []
    for way, compute in computing.items():
        leaves = [x.clone().requires_grad_() for x in inputs]

        def value(compute: Callable[..., Tensor] = compute, leaves: list[Tensor] = leaves) -> Tensor:
            with torch.no_grad():
                return compute(*leaves)

        grad = torch.randn_like(value())
        result = compute(*leaves)

        def derivative(
            result: Tensor = result, leaves: list[Tensor] = leaves, grad: Tensor = grad
        ) -> tuple[Tensor, ...]:
            return torch.autograd.grad(result, leaves, grad, retain_graph=True)

        for kernel, call in (("forward", value), ("backward", derivative)):
            took, bound = seconds(call), floor[kernel].seconds(machine.bandwidth, machine.rate, machine.tensor_rate)
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            call()
            torch.cuda.synchronize()
            rows.append(
                {
                    "case": case.name,
                    "way": way,
                    "kernel": kernel,
                    "ms": round(1e3 * took, 4),
                    "floor_ms": round(1e3 * bound, 4),
                    "share_of_floor": round(bound / took, 3),
                    "peak_mb": round((torch.cuda.max_memory_allocated() - before) / 2**20, 1),
                }
            )
    return rows


def tuned(chosen: list[Case], options: argparse.Namespace, graph: Graph, machine: Machine) -> list[dict[str, Any]]:
    """Each irrep's kernels in all blocks, compiled on all cores first."""
    tasks = [
        (case.name, call.kernel, block, options.channels, tuple(options.widths))
        for case in chosen
        for call in case.calls(graph, torch.float32)
        for block in dict.fromkeys([call.default, *case.candidates])
    ]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        refused = set(filter(None, pool.map(compile_one, tasks)))
    rows = []
    for case in chosen:
        for call in case.calls(graph, torch.float32):
            bound = call.floor.seconds(machine.bandwidth, machine.rate, machine.tensor_rate)
            for block in dict.fromkeys([call.default, *case.candidates]):
                if (case.name, call.kernel, block) in refused:
                    continue
                try:
                    took = seconds(call.make(block), 5)
                except Exception as error:
                    # A block that a GPU has no room for is no candidate; the default must run.
                    if block == call.default or "out of resource" not in str(error):
                        raise
                    continue
                row = {
                    "case": case.name,
                    "way": "fused, default" if block == call.default else "fused",
                    "kernel": call.kernel,
                    "block": "x".join(map(str, block)),
                    "ms": round(1e3 * took, 4),
                    "floor_ms": round(1e3 * bound, 4),
                    "share_of_floor": round(bound / took, 3),
                }
                print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                rows.append(row)
    return rows


def compile_one(task: tuple[str, str, Block, int, tuple[int, ...]]) -> tuple[str, str, Block] | None:
    """Into Triton's cache; gives what its compiler refuses."""
    name, kernel, block, channels, widths = task
    case = next(case for case in fused_benchmark.cases(channels, widths) if case.name == name)
    graph = to(random_graph(2, (3,)), "meta")
    call = next(call for call in case.calls(graph, torch.float32) if call.kernel == kernel)
    try:
        with compiling_only():
            call.make(block)()
    except Exception as error:
        print(f"{name}, {kernel}: {block}: {error}", file=sys.stderr)
        return name, kernel, block
    return None


if __name__ == "__main__":
    main()
