"""The convolution that stores no weights where there is no GPU: what it computes, what it refuses, who takes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nequip_core.errors import ConfigError
from nequip_core.export.aoti import export_program
from nequip_core.graph import Graph
from nequip_core.models.build import build_model
from nequip_core.o3 import SCALAR, Irrep, Irreps
from nequip_core.ops import reference
from nequip_core.ops.contracts import NEQUIP_RADIAL_CONVOLUTION, ConvolutionSpec, RadialConvolutionSpec
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.testing import systems
from nequip_core.testing.checks import Case, make_case
from nequip_core.testing.kernels import derivatives, radial_convolution_shapes, random_graph
from nequip_kernels import floors
from nequip_kernels.convolution import make as convolution
from nequip_kernels.radial import fused_benchmark, fused_make, fused_operators
from nequip_kernels.radial.fused_generate import WIDEST
from nequip_kernels.radial.fused_make import FusedRadialConvolution, make_fused, refuses

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NAMED = {NEQUIP_RADIAL_CONVOLUTION: "triton_fused"}
CONVOLUTION = ConvolutionSpec(
    Irreps([(SCALAR, 2), (Irrep(0, -1), 3), (Irrep(1, -1), 4)]), 1, True, (SCALAR, Irrep(1, 1), Irrep(1, -1))
)
SMALL = RadialConvolutionSpec(CONVOLUTION, width=5)
RULES = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
"""All but that an operator's derivative has one by all its inputs: the matrix has none."""


def inputs_of(spec: RadialConvolutionSpec, graph: Graph) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64) for shape in radial_convolution_shapes(spec, graph).values()]


def test_on_the_cpu_it_is_the_reference() -> None:
    graph = random_graph(5, (3, 0, 2))
    *inputs, matrix = inputs_of(SMALL, graph)
    found = [
        derivatives(
            lambda h, harmonics, hidden, graph, made=made: made(h, harmonics, hidden, matrix, graph),
            dict(zip(("h", "harmonics", "hidden"), inputs, strict=True)),
            graph,
            1,
            0,
        )
        for made in (
            make_fused(SMALL, torch.float64, CPU),
            reference.make_radial_convolution(SMALL, torch.float64, CPU),
        )
    ]
    assert len(found[0]) == 4
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, rtol=1e-12, atol=1e-12)


def test_operators_keep_torchs_rules() -> None:
    graph = random_graph(4, (2, 0, 3))
    *inputs, matrix = inputs_of(SMALL, graph)
    leaves = [x.requires_grad_() for x in inputs]
    text = make_fused(SMALL, torch.float64, CPU).text
    about = (graph.edge_index[1], graph.row_ptr, graph.by_neighbor, graph.neighbor_ptr, text)
    transposed = matrix.mT.contiguous()
    torch.library.opcheck(fused_operators.radial_fused.operator, (*leaves, matrix, transposed, *about))
    grad = torch.randn(4, CONVOLUTION.irreps_out.dim, dtype=torch.float64)
    still = [x.detach() for x in inputs]
    given = (*still, matrix, transposed, grad, *about)
    torch.library.opcheck(fused_operators.radial_fused_backward.operator, given, test_utils=RULES)


def test_derivatives_that_it_lacks_are_refused() -> None:
    graph = random_graph(3, (2,))
    leaves = [x.requires_grad_() for x in inputs_of(SMALL, graph)]
    out = make_fused(SMALL, torch.float64, CPU)(*leaves, graph)
    # A matrix that has a gradient, as a parameter has, is no hindrance where none is asked for.
    first = torch.autograd.grad(out.sum(), leaves[:3], create_graph=True)
    with pytest.raises(ConfigError, match="has no second derivative: it is for inference"):
        torch.autograd.grad(first[0].square().sum(), leaves[:3])
    with pytest.raises(ConfigError, match="has no derivative by the matrix: it is for inference"):
        torch.autograd.grad(make_fused(SMALL, torch.float64, CPU)(*leaves, graph).sum(), leaves)


def test_what_is_refused_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refuses(SMALL, torch.float32, CPU) == "runs on cuda, not on cpu"
    assert refuses(SMALL, torch.float32, CUDA) is None
    assert f"room for {WIDEST}" in str(refuses(RadialConvolutionSpec(CONVOLUTION, WIDEST + 1), torch.float32, CUDA))
    monkeypatch.setattr(fused_make, "PATHS", 1)
    assert "a program has room for the weights of 1" in str(refuses(SMALL, torch.float32, CUDA))
    monkeypatch.setattr(convolution, "TERMS", 3)
    assert "and a generated kernel at most 3" in str(refuses(SMALL, torch.float32, CUDA))
    with pytest.raises(ConfigError, match="a generated kernel at most 3"):
        Ops(load_registry().kernels, device="cuda", request=NAMED).make(NEQUIP_RADIAL_CONVOLUTION, SMALL)


def test_a_tensor_of_another_shape_is_refused() -> None:
    graph = random_graph(3, (2,))
    inputs = inputs_of(SMALL, graph)
    kernel = make_fused(SMALL, torch.float64, CPU)
    for n in range(4):
        with pytest.raises(ValueError, match="expected rows of"):
            kernel(*[x[:, :-1] if m == n else x for m, x in enumerate(inputs)], graph)
    with pytest.raises(ValueError, match="matrix has 4 rows; expected 5"):
        kernel(*inputs[:3], inputs[3][:-1], graph)


def test_auto_does_not_take_it() -> None:
    ops = Ops(load_registry().kernels, device="cuda")
    ops.make(NEQUIP_RADIAL_CONVOLUTION, SMALL)
    assert ops.report[NEQUIP_RADIAL_CONVOLUTION]["chosen"] == "triton"


def test_a_model_takes_it_where_it_is_named() -> None:
    """Made for a GPU, evaluated on the CPU, with the weights of the same model without it."""
    case, potential, ops = named()
    assert ops.report[NEQUIP_RADIAL_CONVOLUTION]["chosen"] == "triton_fused"
    assert sum(isinstance(module, FusedRadialConvolution) for module in potential.modules()) > 1
    graph = case.graph(systems.supercell(systems.crystal(), (2, 2, 2)))
    received, expected = (one.eval()(graph) for one in (potential, case.potential))
    torch.testing.assert_close(received.forces, expected.forces, rtol=0, atol=1e-10)


def test_an_exported_program_has_its_operators_and_no_matrix_to_turn() -> None:
    _, potential, _ = named()
    program = export_program(potential.eval().requires_grad_(False), ("energy", "forces"))
    targets = [str(node.target) for node in program.graph.nodes]
    layers = sum(isinstance(module, FusedRadialConvolution) for module in potential.modules())
    for operator in ("radial_fused", "radial_fused_backward"):
        assert sum(f"nequip_kernels.{operator}.default" == target for target in targets) == layers
    turned = [
        node.args[4] for node in program.graph.nodes if str(node.target).startswith("nequip_kernels.radial_fused.")
    ]
    assert all(one.op == "placeholder" for one in turned)  # computed once, in the file


def named() -> tuple[Case, Potential, Ops]:
    """A model of the reference, and the same where the kernel is named."""
    case = make_case(load_registry().models["nequip"], {"l_max": 2})
    ops = Ops(load_registry().kernels, dtype=torch.float64, device="cuda", request=NAMED)
    model = build_model(case.entry, case.config, ops)
    model.load_state_dict(case.potential.model.state_dict())
    return case, Potential(model), ops


def test_floors_and_cases() -> None:
    """A middle layer of l_max 2: 11 paths, 35 components of results."""
    channels, width, atoms, edges = 64, 128, 10, 500
    (case,) = (one for one in fused_benchmark.cases(channels, (width,)) if one.name == "radial l2 width 128")
    found = floors.of_radial(case.spec, atoms, edges, 4)  # type: ignore[arg-type]
    assert found["forward"].operations == 2 * edges * width * 11 * channels
    assert found["forward"].products == 3
    assert found["forward"].bytes == 4 * (edges * (width + 9) + atoms * (9 + 35) * channels)
    assert found["backward"].operations == 2 * found["forward"].operations
    for sweep in ("forward", "backward"):
        assert sum(found[f"{sweep}_{n}"].operations for n in range(3)) == found[sweep].operations
    calls = list(case.calls(random_graph(2, (3,)), torch.float32))
    assert [call.kernel for call in calls] == [f"{sweep}_{n}" for sweep in ("forward", "backward") for n in range(3)]
    small = floors.of_radial(case.spec, 2, 6, 4)  # type: ignore[arg-type]
    assert all(call.floor == small[call.kernel] for call in calls)
