"""The convolution that stores no weights on a CUDA device: the reference's numbers, repeatable, in little memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from nequip_core.cli.main import main
from nequip_core.export.artifact import load_model
from nequip_core.export.compiled import read_metadata
from nequip_core.graph import Graph, to
from nequip_core.o3 import Irrep, Irreps
from nequip_core.ops import reference
from nequip_core.ops.contracts import NEQUIP_RADIAL_CONVOLUTION, ConvolutionSpec, RadialConvolutionSpec
from nequip_core.testing.kernels import TOLERANCE, derivatives, radial_convolution_shapes, random_graph
from nequip_core.tracing import Sizes, sample_graph
from nequip_kernels.radial.fused_make import make_fused

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
LENGTHS = (86, 0, 71, 130, 99, 1, 64)


def spec_of(l_max: int, channels: int, width: int, *, parity: bool = False) -> RadialConvolutionSpec:
    """A middle layer."""
    signs = (1, -1) if parity else (None,)
    irreps = [Irrep(degree, (-1) ** degree if sign is None else sign) for degree in range(l_max + 1) for sign in signs]
    convolution = ConvolutionSpec(Irreps((irrep, channels) for irrep in irreps), l_max, True, tuple(irreps))
    return RadialConvolutionSpec(convolution, width)


def inputs_of(
    spec: RadialConvolutionSpec, graph: Graph, dtype: torch.dtype, seed: int = 0
) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = radial_convolution_shapes(spec, graph).values()
    *inputs, matrix = (torch.randn(shape, generator=generator, dtype=torch.float64).to(CUDA, dtype) for shape in shapes)
    return inputs, matrix


def results(
    spec: RadialConvolutionSpec, graph: Graph, dtype: torch.dtype, kind: torch.dtype, *, fused: bool
) -> dict[str, Tensor]:
    """Value and first derivatives, computed in ``kind`` from numbers of ``dtype``."""
    inputs, matrix = inputs_of(spec, graph, dtype)
    made = make_fused(spec, kind, CUDA) if fused else reference.make_radial_convolution(spec, kind, CUDA)

    def function(h: Tensor, harmonics: Tensor, hidden: Tensor, graph: Graph) -> Tensor:
        result: Tensor = made(h, harmonics, hidden, matrix.to(kind), graph)
        return result

    named = dict(zip(("h", "harmonics", "hidden"), (x.to(kind) for x in inputs), strict=True))
    return derivatives(function, named, graph, 1, 0)


CASES = [
    *((0, 64, 64, torch.float32), (1, 64, 64, torch.float32), (2, 64, 128, torch.float32), (3, 64, 64, torch.float32)),
    *((2, 32, 64, torch.float32), (1, 128, 100, torch.float32), (2, 20, 8, torch.float32), (1, 7, 37, torch.float32)),
    *((2, 64, 64, torch.float64), (1, 70, 37, torch.float64)),
]
"""l_max, channels, width, dtype."""


@pytest.mark.parametrize(("l_max", "channels", "width", "dtype"), CASES)
def test_numbers(l_max: int, channels: int, width: int, dtype: torch.dtype) -> None:
    graph = to(random_graph(120, LENGTHS), CUDA)
    for parity in (False, True) if l_max == 1 else (False,):
        spec = spec_of(l_max, channels, width, parity=parity)
        received = results(spec, graph, dtype, dtype, fused=True)
        expected = results(spec, graph, dtype, torch.float64, fused=False)
        for name, one in expected.items():
            deviation = float((received[name].double() - one).abs().max() / one.abs().max())
            print(f"l_max {l_max}, {channels} channels, width {width}, {dtype}, {name}: {deviation:.1e}")
            assert deviation < TOLERANCE[dtype], (name, deviation)


@pytest.mark.parametrize(("atoms", "lengths"), [(0, (1,)), (3, (0,)), (1, (1,)), (70_000, (1, 0))])
def test_few_and_many(atoms: int, lengths: tuple[int, ...]) -> None:
    """No atoms, no edges, and more atoms than the second axis of a grid has room for."""
    spec, graph = spec_of(1, 32, 16), to(random_graph(atoms, lengths), CUDA)
    received = results(spec, graph, torch.float64, torch.float64, fused=True)
    for name, one in results(spec, graph, torch.float64, torch.float64, fused=False).items():
        torch.testing.assert_close(received[name], one, rtol=1e-12, atol=1e-11)


def test_twenty_repeats_are_equal_bit_for_bit() -> None:
    """Two blocks of channels and several irreps add to the hidden layer's gradient one after the other."""
    spec, graph = spec_of(2, 128, 64), to(random_graph(500, LENGTHS), CUDA)
    before = results(spec, graph, torch.float32, torch.float32, fused=True)
    for _ in range(20):
        again = results(spec, graph, torch.float32, torch.float32, fused=True)
        assert all(torch.equal(before[name], again[name]) for name in before)


def test_it_takes_less_memory_than_the_weights() -> None:
    """What is made besides inputs and results is messages of the features' width: 576 numbers, not 704."""
    spec, graph = spec_of(2, 64, 128), to(random_graph(2000, LENGTHS), CUDA)
    (h, harmonics, hidden), matrix = inputs_of(spec, graph, torch.float32)
    leaves = [x.requires_grad_() for x in (h, harmonics, hidden)]
    made, edges = make_fused(spec, torch.float32, CUDA), hidden.shape[0]
    torch.autograd.grad(made(*leaves, matrix, graph).sum(), leaves)
    peaks = []
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = made(*leaves, matrix, graph)
    peaks.append(torch.cuda.max_memory_allocated() - before)
    torch.autograd.grad(out, leaves, torch.ones_like(out))
    peaks.append(torch.cuda.max_memory_allocated() - before)
    of_atoms = 4 * h.shape[0] * (2 * spec.convolution.irreps_out.dim + 2 * h.shape[1])
    slack = 2**22 + 4 * 2 * matrix.numel()
    print(f"{edges} edges, weights {4e-6 * edges * matrix.shape[1]:.0f} MB, peaks {[1e-6 * one for one in peaks]} MB")
    assert peaks[0] <= of_atoms + slack
    assert peaks[1] <= of_atoms + slack + 4 * edges * (h.shape[1] + 128 + 9 * 4)


def test_a_compiled_file_runs_it(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "published" / "nequip-0.16-checkpoint"
    package, out = tmp_path / "model.nequip.zip", tmp_path / "model.nequip.pt2"
    assert main(["convert", str(golden / "last.ckpt"), str(package)]) == 0
    named = "nequip.radial_convolution=triton_fused"
    assert main(["compile", str(package), str(out), "--target", "ase", "--device", "cuda", "--kernels", named]) == 0
    assert read_metadata(out).kernels[NEQUIP_RADIAL_CONVOLUTION]["chosen"] == "triton_fused"
    model, expected = load_model(out, device="cuda"), load_model(package, device="cuda", kernels="reference")
    graph = to(sample_graph(model.info, Sizes(1, 50, 900)), CUDA)
    received, forces = model.potential(graph).forces, expected.potential(graph).forces
    torch.testing.assert_close(received, forces, rtol=0, atol=1e-5 * float(forces.abs().max()))
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
        model.potential(graph)
        torch.cuda.synchronize()
    names = {event.name for event in seen.events()}
    for kernel in ("radial_forward_0", "radial_backward_0"):
        assert any(name.startswith(kernel) for name in names), names
