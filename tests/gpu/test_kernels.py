"""The kernels on a CUDA device: the numbers of the reference, repeatable, without copies, beyond 2^31 numbers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code
from torch.profiler import ProfilerActivity, profile

from nequip_allegro.model import AllegroConfig, contraction_specs
from nequip_core.cli.main import main
from nequip_core.export.artifact import load_model
from nequip_core.export.compiled import read_metadata
from nequip_core.graph import Graph, to
from nequip_core.models.build import build_model, model_info
from nequip_core.models.nequip import NequIPConfig, layouts
from nequip_core.ops.contracts import SCALAR_MLP, ContractionSpec, ConvolutionSpec, ScalarMLPSpec
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.testing import systems
from nequip_core.testing.checks import make_case
from nequip_core.testing.kernels import check_kernel, contraction_shapes, convolution_shapes, random_graph
from nequip_core.tracing import Sizes, sample_graph
from nequip_kernels.benchmark import networks
from nequip_kernels.contraction.make import make_contraction
from nequip_kernels.convolution.make import make_convolution
from nequip_kernels.mlp import accuracy

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
LENGTHS = (86, 0, 71, 130, 99, 1, 64)
"""Edges of atoms as in a liquid, with some that no liquid has."""


def contractions(l_max: int, parity: bool, channels: int, coupled: bool) -> list[ContractionSpec]:
    return contraction_specs(
        AllegroConfig(
            l_max=l_max,
            parity=parity,
            num_layers=3,
            num_tensor_features=channels,
            tp_path_channel_coupling=coupled,
        )
    )


def convolutions(l_max: int, parity: bool, features: int | list[int]) -> Iterator[ConvolutionSpec]:
    config = NequIPConfig(l_max=l_max, parity=parity, num_layers=3, num_features=features)
    for before, after in itertools.pairwise(layouts(config)):
        yield ConvolutionSpec(before, l_max, True, tuple(irrep for irrep, _ in after))


CASES = [
    *((1, 64, torch.float64), (1, 130, torch.float32), (2, 64, torch.float32), (2, 20, torch.float64)),
    *((2, 130, torch.float64), (3, 64, torch.float32), (3, 20, torch.float64)),
]
"""l_max, channels, dtype: Triton compiles some 15 functions for each."""


@pytest.mark.parametrize(("l_max", "channels", "dtype"), CASES)
def test_contraction(l_max: int, channels: int, dtype: torch.dtype) -> None:
    for n, spec in enumerate(contractions(l_max, l_max < 3, channels, coupled=channels != 20)):
        check_kernel("triton", spec, dtype, CUDA, seed=n, atoms=120, lengths=LENGTHS)
    check_kernel("triton", spec, dtype, CUDA, seed=n, atoms=5, degrees=1)
    first, *_ = contractions(l_max, False, channels, coupled=channels != 20)
    check_kernel("triton", replace(first, scalars_apart=False), dtype, CUDA, atoms=5)


@pytest.mark.parametrize(("l_max", "channels", "dtype"), CASES)
def test_convolution(l_max: int, channels: int, dtype: torch.dtype) -> None:
    features = [130, 32, 16][: l_max + 1] if channels == 130 else channels
    for n, spec in enumerate(convolutions(l_max, True, features)):
        check_kernel("triton", spec, dtype, CUDA, seed=n, atoms=120, lengths=LENGTHS)


@pytest.mark.parametrize(("atoms", "lengths"), [(0, (1,)), (3, (0,)), (1, (1,)), (70_000, (1, 0))])
def test_few_and_many(atoms: int, lengths: tuple[int, ...]) -> None:
    """No atoms, no edges, and more atoms than the second axis of a grid has room for."""
    (*_, contraction) = contractions(1, True, 4, True)
    (_, convolution, _) = convolutions(1, True, 4)
    for spec in (contraction, convolution):
        check_kernel("triton", spec, torch.float64, CUDA, atoms=atoms, lengths=lengths)


def step(spec: ContractionSpec | ConvolutionSpec, graph: Graph, dtype: torch.dtype) -> list[Tensor]:
    """Value, first and second derivatives of random numbers."""
    torch.manual_seed(0)
    contracting = isinstance(spec, ContractionSpec)
    shapes = contraction_shapes(spec, graph) if contracting else convolution_shapes(spec, graph)
    inputs = [torch.randn(shape, dtype=dtype, device=CUDA, requires_grad=True) for shape in shapes.values()]
    kernel = (make_contraction if contracting else make_convolution)(spec, dtype, CUDA)  # type: ignore[operator]
    result = kernel(*inputs, graph)
    out, *others = result if contracting else (result,)
    squares = torch.stack([one.square().sum() for one in (out, *others[1:])])  # the environment has no derivative
    first = torch.autograd.grad(squares.sum(), inputs, create_graph=True)
    second = torch.autograd.grad(torch.stack([one.square().sum() for one in first]).sum(), inputs)
    return [out.detach(), *(one.detach() for one in first), *second]


def test_twenty_repeats_are_equal_bit_for_bit() -> None:
    graph = to(random_graph(500, LENGTHS), CUDA)
    for spec in (*contractions(2, True, 64, True), *convolutions(2, True, 64)):
        before = step(spec, graph, torch.float32)
        for _ in range(20):
            assert all(map(torch.equal, before, step(spec, graph, torch.float32)))


def test_tensors_need_not_be_on_the_current_device() -> None:
    """Where there is one GPU only, they are."""
    (_, spec, _) = contractions(1, False, 8, True)
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    check_kernel("triton", spec, torch.float64, last, atoms=5)


@pytest.mark.xdist_group("memory")
def test_more_than_two_to_the_31_numbers() -> None:
    """The last atoms of a graph whose features have 2.4e9 numbers are what they are alone: about 60 GB."""
    (_, spec, _) = contractions(2, False, 64, True)
    atoms, row = 70_001, 60
    edges = atoms * row
    assert edges * spec.dim_in * spec.channels > 2**31
    row_ptr = torch.arange(atoms + 1, device=CUDA) * row
    nothing = torch.zeros(0, device=CUDA)
    graph = Graph(*[nothing] * len(Graph._fields))._replace(row_ptr=row_ptr)
    kernel = make_contraction(spec, torch.float32, CUDA)
    shapes = [(edges, spec.dim_in, 64), (edges, 3, 64), (edges, 9), (len(spec.paths), 64)]
    inputs = [torch.empty(shape, device=CUDA).normal_().requires_grad_() for shape in shapes]
    out, *_ = kernel(*inputs, graph)
    gradients = torch.autograd.grad(out, inputs[:3], torch.ones_like(out))
    some = [x.detach()[-3 * row :].clone().requires_grad_() for x in inputs[:3]]
    few, *_ = kernel(*some, inputs[3].detach(), graph._replace(row_ptr=row_ptr[:4]))
    assert torch.equal(out[-3 * row :], few)
    of_few = torch.autograd.grad(few, some, torch.ones_like(few))
    assert all(torch.equal(one[-3 * row :], other) for one, other in zip(gradients, of_few, strict=True))
    del inputs, out, gradients
    torch.cuda.empty_cache()  # others run beside


def test_compiled_code_copies_no_tensor_of_edges() -> None:
    """Whatever a kernel is thought to write to is copied first: it must be fresh memory only."""
    (_, spec, _) = contractions(1, False, 64, True)
    graph = to(random_graph(300, LENGTHS), CUDA)
    kernel = make_contraction(spec, torch.float32, CUDA)
    inputs = [torch.randn(shape, device=CUDA, requires_grad=True) for shape in contraction_shapes(spec, graph).values()]

    def energy(features: Tensor, weights: Tensor, harmonics: Tensor, paths: Tensor, row_ptr: Tensor) -> Tensor:
        out, _, scalars = kernel(features, weights, harmonics, paths, graph._replace(row_ptr=row_ptr))
        return out.square().sum() + scalars.sin().sum()

    def gradients() -> list[Tensor]:
        total = torch.compile(energy, fullgraph=True, dynamic=True)(*inputs, graph.row_ptr)
        return list(torch.autograd.grad(total, inputs))

    received, code = run_and_get_code(gradients)
    text = "".join(code)
    assert "clone" not in text
    assert "copy_" not in text
    expected = torch.autograd.grad(energy(*inputs, graph.row_ptr), inputs)
    for one, other in zip(received, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["nequip", "allegro"])
def test_models(name: str) -> None:
    """Chosen by auto; predictions and gradients of a loss of forces are the reference's."""
    case = make_case(load_registry().models[name], {"l_max": 2})
    ops = Ops(load_registry().kernels, dtype=model_info(case.config).torch_dtype, device=CUDA)
    model = build_model(case.entry, case.config, ops)
    assert {about["chosen"] for about in ops.report.values()} == {"triton"}, ops.report
    model.load_state_dict(case.potential.model.state_dict())
    graph = to(case.graph(*[systems.supercell(systems.crystal(), (2, 2, 2))] * 2), CUDA)
    found = []
    for potential in (Potential(model.cuda()), case.potential.cuda()):
        weights = [p for p in potential.parameters() if p.requires_grad]
        prediction = potential.train()(graph)
        loss = prediction.forces.square().sum() + prediction.energy.square().sum() * 1e-6
        found.append([prediction.forces, *torch.autograd.grad(loss, weights)])
    for ours, theirs in zip(*found, strict=True):
        largest = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * max(1.0, largest))


@pytest.mark.parametrize(
    ("name", "kernels", "kernel"),
    [
        ("nequip", "triton", "tabulated_forward_0"),
        ("nequip", "nequip.convolution=triton,nequip.tabulated_convolution=none", "convolve_forward_0"),
        ("allegro", "triton", "chain_forward"),
        ("allegro", "triton", "contract_forward"),
    ],
)
def test_a_compiled_file_runs_the_kernel_that_it_names(name: str, kernels: str, kernel: str, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "published"
    source = {"nequip": "nequip-0.16-checkpoint", "allegro": "allegro-0.8-checkpoint"}[name]
    package, out = tmp_path / "model.nequip.zip", tmp_path / "model.nequip.pt2"
    assert main(["convert", str(golden / source / "last.ckpt"), str(package)]) == 0
    command = ["compile", str(package), str(out), "--target", "ase", "--device", "cuda", "--kernels", kernels]
    assert main([*command, "--dtype", "float32"]) == 0
    assert {about["chosen"] for about in read_metadata(out).kernels.values()} == {"triton"}
    model = load_model(out, device="cuda")
    graph = to(sample_graph(model.info, Sizes(1, 50, 900)), CUDA)
    model.potential(graph)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
        model.potential(graph)
        torch.cuda.synchronize()
    assert any(event.name.startswith(kernel) for event in seen.events()), [event.name for event in seen.events()]


def test_the_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = ["benchmark", "kernels", "--only", "l1 middle", "--atoms", "200", "--json", str(out)]
    assert main(command) == 0
    report = json.loads(out.read_text())
    assert {one["case"] for one in report["kernels"]} == {
        f"{name} l1 middle" for name in ("allegro", "nequip", "tabulated")
    }
    assert all(one["seconds"] > 0 and 0 < one["share"] < 2 for one in report["kernels"])


NETWORKS = {
    **networks(64),
    "odd widths": ScalarMLPSpec((33, 5, 17), (37, 70), (35, 3), "silu"),
    "odd widths passed on": ScalarMLPSpec((33, 5, 17), (37,), (35, 3), "silu", passes=2),
    "few": ScalarMLPSpec((3, 2), (5,), (1,), "mish"),
    "deep": ScalarMLPSpec((20,), (64, 64, 64), (20,), "gelu"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_mlp(name: str, dtype: torch.dtype) -> None:
    for atoms, lengths in ((40, LENGTHS), (1, (1,)), (2, (64,)), (3, (0,))):
        check_kernel("triton", NETWORKS[name], dtype, CUDA, atoms=atoms, lengths=lengths)
        if NETWORKS[name].passes:  # what adds gradients has no second derivative
            check_kernel("triton", NETWORKS[name], dtype, CUDA, atoms=atoms, lengths=lengths, orders=1)


@pytest.mark.parametrize("name", [*networks(64), "odd widths"])
def test_errors_of_networks_are_at_most_twice_those_of_float32_products(name: str) -> None:
    """Or the kernel is refused, which those of our models are not."""
    compared = accuracy.compare(NETWORKS[name], CUDA)
    for result, found in compared.items():
        print(f"{name}, {result}: kernel {found.kernel}, float32 products {found.products}")
    within = all(found.good() for found in compared.values())
    assert (accuracy.reason(NETWORKS[name], CUDA) is None) == within
    assert within or name == "odd widths"


def test_networks_are_repeatable_and_read_columns_in_place() -> None:
    spec = NETWORKS["latent"]
    wide = torch.randn(5000, 700, device=CUDA)
    weights = [torch.randn(shape, device=CUDA) for shape in (spec.widths[:2], spec.widths[1:])]
    apart = [wide[:, 5:133], wide[:, 300:364]]
    ops = Ops(load_registry().kernels, device=CUDA, request={SCALAR_MLP: "triton"})
    mlp = ops.make(SCALAR_MLP, spec)
    before = mlp([x.contiguous() for x in apart], weights)
    for _ in range(20):
        assert all(map(torch.equal, mlp(apart, weights), before))


def test_a_compiled_file_runs_the_networks_kernels(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "published" / "allegro-0.8-checkpoint"
    package, out = tmp_path / "model.nequip.zip", tmp_path / "model.nequip.pt2"
    assert main(["convert", str(golden / "last.ckpt"), str(package)]) == 0
    assert main(["compile", str(package), str(out), "--target", "ase", "--device", "cuda", "--kernels", "auto"]) == 0
    assert read_metadata(out).kernels[SCALAR_MLP]["chosen"] == "triton", read_metadata(out).kernels
    model, reference = load_model(out, device="cuda"), load_model(package, device="cuda", kernels="reference")
    graph = to(sample_graph(model.info, Sizes(1, 50, 900)), CUDA)
    received, expected = model.potential(graph), reference.potential(graph)
    scale = float(expected.forces.abs().max())
    torch.testing.assert_close(received.forces, expected.forces, rtol=0, atol=1e-5 * scale)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
        model.potential(graph)
        torch.cuda.synchronize()
    names = {event.name for event in seen.events()}
    for kernel in ("mlp_forward", "mlp_backward"):
        assert any(name.startswith(kernel) for name in names), names
