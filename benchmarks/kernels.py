"""Each GPU kernel: right at a real size, its share of its floor, and the published Triton kernel on the same inputs.

python benchmarks/kernels.py [--out FILE.csv] [--their-path FOLDER] [--openequivariance FOLDER] [--tune]
    [--compile-only] [--only WORD ...] [--atoms N] [--channels N]

One call does it all. nequip-allegro's kernel is measured where ``import allegro`` works, or from --their-path; it gives
out = contract(features, environment), so its scatter and the weighted harmonics before it are part of its time, as they
are of ours. It has no derivative by weights and no second derivative: the first is compared with both together.

NequIP's convolution is compared with OpenEquivariance's, in its repeatable form, where it can be imported, or from the
folder of its source: `pip download --no-deps openequivariance`, unpacked; it needs ninja, pybind11 and nvcc.

Networks of scalars are compared with torch's float32 products (cuBLAS), as they are and compiled, on the same inputs:
times, and the errors of both against float64.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nequip_core.graph import Graph, to
from nequip_core.o3 import Irreps
from nequip_core.ops.contracts import (
    ChainSpec,
    ContractionSpec,
    ConvolutionSpec,
    ScalarMLPSpec,
    TabulatedConvolutionSpec,
)
from nequip_core.testing.kernels import (
    Spec,
    check_kernel,
    contraction_shapes,
    convolution_shapes,
    mlp_shapes,
    random_graph,
)
from nequip_kernels import benchmark, blocks
from nequip_kernels.benchmark import Case, Figure, Machine, harmonics, row_lengths, seconds
from nequip_kernels.contraction.make import make_contraction
from nequip_kernels.convolution.make import make_convolution
from nequip_kernels.mlp import accuracy, reference
from nequip_kernels.mlp.kernels import describe
from nequip_kernels.mlp.operators import mlp, mlp_backward, mlp_pack

CUDA = torch.device("cuda")
FIELDS = (
    *("date", "device", "case", "kernel", "dtype", "terms", "atoms", "edges", "channels", "block", "ms", "floor_ms"),
    *("share_of_floor", "gb_per_s", "copy_gb_per_s", "tflop_per_s", "matmul_tflop_per_s", "deviation"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--their-path", default="", help="folder of the published packages, if they are not installed")
    parser.add_argument("--openequivariance", default="", help="folder of its source, if it is not installed")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name holds one of these words")
    parser.add_argument("--compile-only", action="store_true", help="fill Triton's cache with what --tune tries")
    parser.add_argument("--atoms", type=int, default=5184)
    parser.add_argument("--edges-per-atom", type=int, default=86)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/kernels.py needs a CUDA device that torch can use; here is none.")
    dtype = getattr(torch, options.dtype)
    if options.compile_only:
        benchmark.compile_ahead(wanted(options), options.channels, options.atoms, options.edges_per_atom, dtype)
        return
    machine = benchmark.measure_machine(CUDA)
    graph = to(random_graph(options.atoms, row_lengths(options.edges_per_atom)), CUDA)
    edges = graph.edge_shift.shape[0]
    print(f"{machine.name}: copy {machine.bandwidth / 1e9:.0f} GB/s, products {machine.rate / 1e12:.1f} TFLOP/s")
    print(f"{options.atoms} atoms, {edges} edges, {options.channels} channels\n{benchmark.HEAD}")
    common = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": machine.name,
        "atoms": options.atoms,
        "edges": edges,
        "channels": options.channels,
        "copy_gb_per_s": round(machine.bandwidth / 1e9),
        "matmul_tflop_per_s": round(machine.rate / 1e12, 1),
    }
    rows: list[dict[str, Any]] = []
    try:
        measure_all(rows, graph, dtype, machine, options, common)
    finally:  # what was measured is kept, whatever comes after
        if options.out:
            with options.out.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(rows)


def measure_all(
    rows: list[dict[str, Any]],
    graph: Graph,
    dtype: torch.dtype,
    machine: Machine,
    options: argparse.Namespace,
    common: dict[str, Any],
) -> None:
    """Add a row for each figure."""
    chosen = wanted(options)
    if options.tune:
        benchmark.compile_ahead(chosen, options.channels, options.atoms, options.edges_per_atom, dtype)
    for case in chosen:
        # These have tests of their own, tests/gpu/test_chain.py and test_tabulated.py.
        known = {} if isinstance(case.spec, ChainSpec | TabulatedConvolutionSpec) else deviations(case.spec, dtype)
        for figure in benchmark.measure(case, graph, dtype, machine, tune=options.tune):
            print(figure.line(), flush=True)
            rows.append(common | of_figure(figure) | known)
            if options.tune:
                benchmark.keep([figure], blocks.tuned_file())
        torch.cuda.empty_cache()
        if isinstance(case.spec, ScalarMLPSpec):
            rows += [common | row for row in against_torch(case.name, case.spec, graph.edge_shift.shape[0], dtype)]
    for l_max in (1, 2, 3):
        if is_wanted(f"allegro l{l_max} middle", options):
            rows += [common | row for row in against_published(l_max, graph, options.channels, dtype, options)]
        if is_wanted(f"nequip l{l_max} middle", options):
            rows += [common | row for row in against_openequivariance(l_max, graph, options.channels, dtype, options)]
    if options.tune:
        print(f"Block sizes are in {blocks.tuned_file()}.")


def is_wanted(name: str, options: argparse.Namespace) -> bool:
    """Whether a case is among those that are asked for."""
    return any(word in name for word in options.only)


def wanted(options: argparse.Namespace) -> list[Case]:
    """The cases that are asked for."""
    return [case for case in benchmark.cases(options.channels) if is_wanted(case.name, options)]


def deviations(spec: Spec, dtype: torch.dtype) -> dict[str, Any]:
    """The largest from the reference."""
    found = check_kernel("triton", spec, dtype, CUDA, atoms=64, lengths=row_lengths(86))
    return {"deviation": f"{max(found.values()):.1e}"}


def of_figure(figure: Figure) -> dict[str, Any]:
    return {
        "case": figure.case,
        "kernel": figure.kernel,
        "dtype": figure.dtype,
        "terms": figure.terms,
        "block": "x".join(map(str, figure.block)),
        "ms": round(1e3 * figure.seconds, 4),
        "floor_ms": round(1e3 * figure.seconds * figure.share, 4),
        "share_of_floor": round(figure.share, 3),
        "gb_per_s": round(figure.floor.bytes / figure.seconds / 1e9),
        "tflop_per_s": round(figure.floor.operations / figure.seconds / 1e12, 2),
    }


def against_torch(case: str, spec: ScalarMLPSpec, edges: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Value, and derivative by inputs, ours and torch's in turns; errors of both."""
    tensors = [torch.randn(shape, device=CUDA, dtype=dtype) for shape in mlp_shapes(spec, edges).values()]
    inputs, weights = tensors[: len(spec.inputs)], tensors[len(spec.inputs) :]
    grads = [torch.randn(edges, width, device=CUDA, dtype=dtype) for width in spec.outputs]
    text = describe(spec, blocks.architecture_of(CUDA), dtype)

    packed = mlp_pack(weights, text)

    def value() -> list[Tensor]:
        return reference.forward(spec, inputs, weights)

    def derivative() -> list[Tensor]:
        return reference.backward(spec, inputs, weights, grads)

    calls: dict[str, Callable[[], Any]] = {
        "packing of weights": lambda: mlp_pack(weights, text),
        "ours value": lambda: mlp(inputs, weights, packed, text),
        "torch value": value,
        "compiled value": torch.compile(value, dynamic=False),
        "ours derivative": lambda: mlp_backward(inputs, weights, packed, grads, text),
        "torch derivative": derivative,
        "compiled derivative": torch.compile(derivative, dynamic=False),
    }
    rows = in_turns(case, calls, dtype)
    if dtype == torch.float32:
        for name, found in accuracy.compare(spec, CUDA).items():
            ours, theirs = (f"rms {one.rms:.2e}, largest {one.largest:.2e}" for one in found)
            print(f"{case}, errors of the {name}: ours {ours}; float32 products {theirs}; good: {found.good()}")
    torch.compiler.reset()
    torch.cuda.empty_cache()
    return rows


def against_published(
    l_max: int, graph: Graph, channels: int, dtype: torch.dtype, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """From features, weights and harmonics to the result, and to derivatives by all three, ours and theirs in turns."""
    if options.their_path:
        sys.path.append(options.their_path)
    try:
        from allegro.nn._strided._flashallegro import TritonContracter  # type: ignore[import-not-found]
        from e3nn import o3
        from nequip.nn import scatter  # type: ignore[import-not-found]
    except ImportError as error:
        print(f"The published kernel is not here ({error}): give --their-path to measure it.")
        return []
    plain = harmonics(l_max)
    spec = ContractionSpec(plain, plain, l_max, channels, True, False)
    irreps = o3.Irreps("+".join(f"1x{irrep}" for irrep in plain))
    theirs = TritonContracter(irreps_in1=irreps, irreps_in2=irreps, irreps_out=irreps, mul=channels)
    theirs = theirs.to(CUDA, dtype).eval()
    ours = make_contraction(spec, dtype, CUDA)
    centre, atoms = graph.edge_index[0], graph.types.shape[0]
    degree = torch.tensor([irrep.l for irrep in plain for _ in range(irrep.dim)], device=CUDA)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, device=CUDA, dtype=dtype, requires_grad=True)

    T, w, Y, W = map(normal, contraction_shapes(spec, graph).values())
    T_theirs, w_theirs = (x.detach().mT.contiguous().requires_grad_() for x in (T, w))

    def our_value() -> Tensor:
        out: Tensor = ours(T, w, Y, W.detach(), graph)[0]
        return out

    def their_value() -> Tensor:
        weighted = w_theirs[:, :, degree] * Y.unsqueeze(1)
        environment = scatter(weighted, centre, dim=0, dim_size=atoms)
        out: Tensor = theirs(T_theirs, environment, centre)
        return out

    def with_gradients(value: Callable[[], Tensor], features: Tensor, weights: Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(value().sum(), (features, weights, Y))

    calls = {
        "ours value": our_value,
        "theirs value": their_value,
        "ours value and first derivatives": with_gradients(our_value, T, w),
        "theirs value and first derivatives": with_gradients(their_value, T_theirs, w_theirs),
    }
    return in_turns(f"allegro l{l_max} middle", calls, dtype)


def against_openequivariance(
    l_max: int, graph: Graph, channels: int, dtype: torch.dtype, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """From features, harmonics and weights to the result, and to derivatives by all three, ours and theirs in turns."""
    if options.openequivariance:
        sys.path.append(options.openequivariance)
    try:
        import openequivariance as oeq  # type: ignore[import-not-found]
    except ImportError as error:
        print(f"OpenEquivariance is not here ({error}): give --openequivariance to measure it.")
        return []
    plain = harmonics(l_max)
    spec = ConvolutionSpec(Irreps((irrep, channels) for irrep in plain), l_max, True, plain)
    number = {irrep: n for n, irrep in enumerate(plain)}
    problem = oeq.TPProblem(
        oeq.Irreps("+".join(f"{channels}x{irrep}" for irrep in plain)),
        oeq.Irreps("+".join(f"1x{irrep}" for irrep in plain)),
        oeq.Irreps("+".join(f"{channels}x{path.irrep_out}" for path in spec.paths)),
        [(number[path.irrep_in], path.l_edge, n, "uvu", True) for n, path in enumerate(spec.paths)],
        shared_weights=False,
        internal_weights=False,
        layout="ir_mul",
    )
    theirs, ours = oeq.TensorProductConv(problem, deterministic=True), make_convolution(spec, dtype, CUDA)
    h, Y, R = (
        torch.randn(shape, device=CUDA, dtype=dtype, requires_grad=True)
        for shape in convolution_shapes(spec, graph).values()
    )
    centre, neighbor = (index.contiguous() for index in graph.edge_index)

    def our_value() -> Tensor:
        out: Tensor = ours(h, Y, R, graph)
        return out

    def their_value() -> Tensor:
        out: Tensor = theirs(h, Y, R, centre, neighbor, graph.by_neighbor)
        return out

    # Theirs is path after path; ours has the paths to one irrep side by side.
    of_paths = their_value().split([path.irrep_out.dim * channels for path in spec.paths], dim=1)
    blocks_of = [
        torch.cat(
            [
                torch.unflatten(block, 1, (irrep.dim, channels))
                for block, path in zip(of_paths, spec.paths, strict=True)
                if path.irrep_out == irrep
            ],
            dim=2,
        ).flatten(1)
        for irrep in plain
    ]
    found, expected = torch.cat(blocks_of, dim=1), our_value()
    print(
        f"nequip l{l_max} middle: largest difference {float((found - expected).abs().max() / expected.abs().max()):.1e}"
    )

    def with_gradients(value: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(value().sum(), (h, Y, R))

    calls = {
        "ours value": our_value,
        "OpenEquivariance value": their_value,
        "ours value and first derivatives": with_gradients(our_value),
        "OpenEquivariance value and first derivatives": with_gradients(their_value),
    }
    return in_turns(f"nequip l{l_max} middle", calls, dtype)


def in_turns(case: str, calls: Mapping[str, Callable[[], Any]], dtype: torch.dtype) -> list[dict[str, Any]]:
    """A row for each call."""
    rows = []
    for name, call in calls.items():
        took = seconds(call)
        print(f"{case}, {name:46} {1e3 * took:8.3f} ms", flush=True)
        about = {"case": case, "kernel": name, "dtype": str(dtype).removeprefix("torch.")}
        rows.append(about | {"ms": round(1e3 * took, 4)})
    return rows


if __name__ == "__main__":
    main()
