"""The contraction's operators where there is no GPU: what they compute, and what torch's compilers make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from nequip_allegro.model import AllegroConfig, contraction_specs
from nequip_core.errors import CheckError, ConfigError
from nequip_core.graph import Graph
from nequip_core.o3 import SCALAR, Irrep
from nequip_core.ops.contraction import make_contraction as make_reference
from nequip_core.ops.contracts import ALLEGRO_CONTRACT, ContractionSpec
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.testing.kernels import check_kernel, contraction_shapes, random_graph
from nequip_core.tracing import Sizes, axes, trace
from nequip_kernels import requirements
from nequip_kernels.contraction import operators
from nequip_kernels.contraction.make import TERMS, make_contraction, refuses

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HARMONICS = tuple(Irrep(degree, (-1) ** degree) for degree in range(2))
FIRST = ContractionSpec(HARMONICS, (SCALAR, Irrep(1, 1), Irrep(1, -1)), 1, 3, True, True)
LATER = ContractionSpec(HARMONICS, HARMONICS, 1, 3, False, False)
APART = replace(LATER, scalars_apart=True)


def inputs_of(spec: ContractionSpec, graph: Graph, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = contraction_shapes(spec, graph).values()
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


MODEL = contraction_specs(AllegroConfig(l_max=2, parity=True, num_layers=3, num_tensor_features=3))


@pytest.mark.parametrize("spec", MODEL, ids=["first layer", "second layer", "last layer"])
def test_on_the_cpu_operators_are_the_reference(spec: ContractionSpec) -> None:
    check_kernel("triton", spec, torch.float64, CPU)


@pytest.mark.parametrize("spec", [FIRST, LATER], ids=["coupled", "uncoupled"])
def test_one_environment_weight_for_all_degrees(spec: ContractionSpec) -> None:
    check_kernel("triton", spec, torch.float64, CPU, degrees=1)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(FIRST, id="first layer", marks=pytest.mark.slow),
        pytest.param(LATER, id="later layer"),
        pytest.param(APART, id="scalars apart"),
    ],
)
def test_operators_keep_torchs_rules(spec: ContractionSpec) -> None:
    graph = random_graph(4, (2, 0, 3))
    features, weights, harmonics, paths = inputs_of(spec, graph)
    kernel = make_contraction(spec, torch.float64, CPU)
    out, environment, *scalars = (x.detach() for x in kernel(features, weights, harmonics, paths, graph))
    grad = torch.randn_like(out, requires_grad=True)
    scalar_grad = torch.randn_like(scalars[0], requires_grad=True) if scalars else None
    row_ptr, text = graph.row_ptr, kernel.text
    moving = [torch.randn_like(x) for x in (features, weights, harmonics)]
    by_all = (features, weights, harmonics, paths, environment, grad, scalar_grad)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (operators.contract, (features, weights, harmonics, paths, row_ptr, text)),
        (operators.contract_backward, (*by_all, row_ptr, text)),
        (operators.contract_by_weights, (features, weights, harmonics, environment, grad, scalar_grad, row_ptr, text)),
    ]
    # These two have no further derivative.
    features, weights, harmonics, grad, paths = (x.detach() for x in (features, weights, harmonics, grad, paths))
    grads = grad, None if scalar_grad is None else scalar_grad.detach()
    calls += [
        (
            operators.contract_double_backward,
            (features, weights, harmonics, paths, environment, *grads, environment, *moving, row_ptr, text),
        ),
        (
            operators.contract_double_by_weights,
            (features, weights, harmonics, environment, *grads, moving[0], moving[2], environment, row_ptr, text),
        ),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator.operator, arguments)


def test_an_absent_gradient_costs_nothing_and_weights_are_left_out_of_forces() -> None:
    graph = random_graph(4, (2, 0, 3))
    features, weights, harmonics, paths = inputs_of(LATER, graph)
    kernel = make_contraction(LATER, torch.float64, CPU)
    with Calls() as calls:
        out, _ = kernel(features, weights, harmonics, paths, graph)
        (force,) = torch.autograd.grad(out.square().sum(), harmonics, create_graph=True)
        assert calls.names == ["contract", "contract_backward"]
        calls.names.clear()
        force.square().sum().backward()
    assert sorted(calls.names) == sorted(
        ["contract_double_backward", "contract_double_by_weights", "contract_backward", "contract_by_weights"]
    )
    assert paths.grad is not None


@pytest.mark.parametrize("used", [(0,), (2,), (0, 2)], ids=["tensors", "scalars", "both"])
def test_scalars_apart_are_the_first_component_whatever_is_used(used: tuple[int, ...]) -> None:
    """The same as of a contraction that gives no scalars, value and both derivatives."""
    graph = random_graph(4, (2, 0, 3))
    inputs = inputs_of(APART, graph)

    def derivatives(spec: ContractionSpec) -> list[Tensor]:
        out, environment, *apart = make_contraction(spec, torch.float64, CPU)(*inputs, graph)
        results = out, environment, apart[0] if apart else out[:, 0]
        first = torch.autograd.grad(sum(results[n].sin().sum() for n in used), inputs, create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), inputs)
        return [*results, *first, *second]

    for one, other in zip(derivatives(APART), derivatives(LATER), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """The names of our operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "nequip_kernels":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def step(contraction: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    """What training does: a loss of first derivatives, and its gradients."""

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, graph = [x.requires_grad_() for x in tensors[:4]], Graph(*tensors[4:])
        out, _ = contraction(*inputs, graph)
        forces = torch.autograd.grad(out.square().sum(), inputs[:3], create_graph=True)
        loss = torch.stack([force.square().sum() for force in forces]).sum()
        return torch.autograd.grad(loss, inputs)

    return function


AXES: list[tuple[str | int, ...]] = [("edges", 2, 3), ("edges", 2, 3), ("edges", 4), (5, 3), *axes(Graph)]


def traced(spec: ContractionSpec, kernel: Callable[..., Any], sizes: Sizes) -> tuple[fx.GraphModule, list[Tensor]]:
    graph = random_graph(sizes.atoms, (4,))
    example = [*inputs_of(spec, graph), *graph]
    return trace(step(kernel), [], example, AXES, Sizes(1, sizes.atoms, 4 * sizes.atoms), Sizes(1, 0, 0)), example


def test_one_graph_for_all_sizes() -> None:
    kernel = make_contraction(FIRST, torch.float64, CPU)
    graph_module, _ = traced(FIRST, kernel, Sizes(1, 23, 92))
    names = {node.target._opname for node in ours(graph_module)}
    assert names == {
        *("contract", "contract_backward", "contract_double_backward"),
        *("contract_by_weights", "contract_double_by_weights"),
    }
    for atoms, lengths in ((5, (3, 0, 1)), (1, (2,)), (2, (0,)), (0, (1,))):
        graph = random_graph(atoms, lengths)
        inputs = inputs_of(FIRST, graph)
        expected = step(make_reference(FIRST, torch.float64, CPU))(*inputs, *graph)
        for received, one in zip(graph_module(*[x.detach() for x in inputs], *graph), expected, strict=True):
            torch.testing.assert_close(received, one, rtol=1e-12, atol=1e-12)


def ours(graph_module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph_module.graph.nodes if "nequip_kernels" in str(node.target)]


def test_compiled_whole() -> None:
    kernel = make_contraction(LATER, torch.float64, CPU)

    def energy(features: Tensor, weights: Tensor, harmonics: Tensor, paths: Tensor, *graph: Tensor) -> Tensor:
        out, _ = kernel(features, weights, harmonics, paths, Graph(*graph))
        total: Tensor = out.sin().sum()
        return total

    compiled = torch.compile(energy, fullgraph=True, dynamic=True)
    for atoms in (5, 7):
        graph = random_graph(atoms, (3, 0, 2))
        inputs = inputs_of(LATER, graph)
        expected = torch.autograd.grad(energy(*inputs, *graph), inputs)
        received = torch.autograd.grad(compiled(*inputs, *graph), inputs)
        for one, other in zip(received, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_an_exported_package_holds_aten_only(tmp_path: Path) -> None:
    """What reaches AOTInductor's code has none of our operators, so it runs without this package."""
    kernel = make_contraction(FIRST, torch.float64, CPU)

    class Forces(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            inputs, graph = [x.requires_grad_() for x in tensors[:4]], Graph(*tensors[4:])
            out, _ = kernel(*inputs, graph)
            return (out, *torch.autograd.grad(out.square().sum(), inputs[:3]))

    graph = random_graph(5, (3, 0, 2))
    example = [*[x.detach() for x in inputs_of(FIRST, graph)], *graph]
    module = trace(Forces(), [], example, AXES, Sizes(1, 5, 8), Sizes(1, 0, 0))
    assert len(ours(module)) == 2
    atoms, edges = torch.export.Dim("atoms", min=0, max=2**31 - 1), torch.export.Dim("edges", min=0, max=2**31 - 1)
    names = {"atoms": atoms, "edges": edges, "atoms_and_one": atoms + 1}
    shapes = tuple(
        {axis: names[name] for axis, name in enumerate(one) if isinstance(name, str) and name in names} for one in AXES
    )
    program = torch.export.export(module, tuple(example), dynamic_shapes=shapes)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    text = (tmp_path / "model.pt2").read_bytes()
    assert b"nequip_kernels" not in text
    loaded = torch._inductor.aoti_load_package(package)
    for atoms_, lengths in ((4, (2, 5, 0)), (0, (1,)), (2, (0,))):
        graph = random_graph(atoms_, lengths)
        inputs = [x.detach() for x in inputs_of(FIRST, graph)]
        for received, expected in zip(loaded(*inputs, *graph), Forces()(*inputs, *graph), strict=True):
            torch.testing.assert_close(received, expected, rtol=1e-12, atol=1e-12)


def test_what_is_refused_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refuses(FIRST, torch.float32, CPU) == "runs on cuda, not on cpu"
    both = tuple(Irrep(degree, p) for degree in range(5) for p in (1, -1))
    large = ContractionSpec(both, both, 4, 4, True, False)
    assert f"at most {TERMS}" in str(refuses(large, torch.float32, CUDA))
    assert refuses(FIRST, torch.float32, CUDA) is None
    monkeypatch.setattr(requirements.importlib.util, "find_spec", lambda name: None)
    assert "triton is not installed" in str(refuses(FIRST, torch.float32, CUDA))
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a T4")
    assert refuses(FIRST, torch.float32, CUDA) == "needs a GPU of compute capability 8.0 or higher, a T4 has 7.5"


def test_auto_takes_it_on_cuda_and_says_why_not_on_the_cpu() -> None:
    kernels = load_registry().kernels
    on_cpu = Ops(kernels, device="cpu")
    on_cpu.make(ALLEGRO_CONTRACT, FIRST)
    assert on_cpu.report[ALLEGRO_CONTRACT] == {
        "chosen": "reference",
        "refused": {"triton": "runs on ['cuda'], not on cpu"},
    }
    on_cuda = Ops(kernels, device="cuda")
    on_cuda.make(ALLEGRO_CONTRACT, FIRST)
    assert on_cuda.report[ALLEGRO_CONTRACT]["chosen"] == "triton"
    with pytest.raises(ConfigError, match=r"'triton' can not compute allegro\.contract/1: runs on"):
        Ops(kernels, device="cpu", request="triton").make(ALLEGRO_CONTRACT, FIRST)


def test_a_tensor_of_another_shape_is_refused() -> None:
    graph = random_graph(3, (2,))
    inputs = inputs_of(FIRST, graph)
    kernel = make_contraction(FIRST, torch.float64, CPU)
    for n in range(4):
        wrong: Sequence[Tensor] = [x[..., :1] if m == n else x for m, x in enumerate(inputs)]
        with pytest.raises(ValueError, match="has the shape"):
            kernel(*wrong, graph)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        kernel(*inputs[:3], inputs[3].float(), graph)
    with pytest.raises(ValueError, match="one a path"):
        kernel(*inputs[:3], inputs[3][:1], graph)


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckError, match="No installed plugin has a kernel 'nobody'"):
        check_kernel("nobody", FIRST, torch.float64, CPU)
    exact = operators.reference.double_by_weights
    monkeypatch.setattr(operators.reference, "double_by_weights", lambda *given: (1 + 1e-10) * exact(*given))
    with pytest.raises(CheckError, match="second by path_weights"):
        check_kernel("triton", FIRST, torch.float64, CPU)


def test_there_is_no_third_derivative() -> None:
    inputs = inputs_of(LATER, graph := random_graph(3, (2,)))
    out, _ = make_contraction(LATER, torch.float64, CPU)(*inputs, graph)
    (first,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        torch.autograd.grad(second.square().sum(), inputs[2])


def test_state_is_that_of_the_reference() -> None:
    """A checkpoint has the same keys whichever computes."""
    ours_, theirs = (make(FIRST, torch.float64, CPU) for make in (make_contraction, make_reference))
    assert ours_.state_dict() == theirs.state_dict() == {}
