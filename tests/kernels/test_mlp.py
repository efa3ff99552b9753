"""The operators of networks of scalars where there is no GPU: what they compute, and what compilers make of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nequip_core.errors import ConfigError
from nequip_core.nn.mlp import MLP
from nequip_core.ops.contracts import SCALAR_MLP, ScalarMLPSpec
from nequip_core.ops.mlp import NONLINEARITIES, ReferenceMLP
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.testing.kernels import check_kernel, mlp_shapes
from nequip_core.tracing import Sizes, trace
from nequip_kernels import requirements
from nequip_kernels.mlp import accuracy, operators
from nequip_kernels.mlp.accuracy import Comparison, Errors
from nequip_kernels.mlp.make import WIDEST, KernelLayers, KernelMLP, make_mlp, parts, refuses

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPEC = ScalarMLPSpec((4, 3), (5,), (4, 2), "silu")


RULES = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
"""All but that an operator has a derivative: packing has none."""


def inputs_of(spec: ScalarMLPSpec, rows: int) -> tuple[list[Tensor], list[Tensor]]:
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in mlp_shapes(spec, rows).values()]
    return tensors[: len(spec.inputs)], tensors[len(spec.inputs) :]


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("hidden", [(), (5,), (5, 2, 3)], ids=str)
def test_on_the_cpu_operators_are_the_reference(hidden: tuple[int, ...], nonlinearity: str) -> None:
    check_kernel("triton", ScalarMLPSpec((3, 1), hidden, (2, 1), nonlinearity), torch.float64, CPU)


def test_operators_keep_torchs_rules() -> None:
    inputs, weights = inputs_of(SPEC, 7)
    (text,) = make_mlp(SPEC, torch.float64, CPU).texts
    leaves = [[x.requires_grad_() for x in some] for some in (inputs, weights)]
    grads = [torch.randn(7, width, dtype=torch.float64, requires_grad=True) for width in SPEC.outputs]
    packed = operators.mlp_pack(leaves[1], text).detach()
    torch.library.opcheck(operators.mlp_pack.operator, (weights, text), test_utils=RULES)
    torch.library.opcheck(operators.mlp.operator, (*leaves, packed, text))
    torch.library.opcheck(operators.mlp_backward.operator, (*leaves, packed, grads, text))
    adding = inputs, weights, packed, grads, [torch.randn_like(inputs[0])], text
    with torch.no_grad():
        torch.library.opcheck(operators.mlp_backward_and_add.operator, adding, test_utils=RULES[:2])


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """The operators that are called: ours, and products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "nequip_kernels" or func._opname == "mm":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def test_forces_cost_no_gradient_by_weights() -> None:
    inputs, weights = inputs_of(SPEC, 7)
    for x in (*inputs, *weights):
        x.requires_grad_()
    mlp = make_mlp(SPEC, torch.float64, CPU)
    with Calls() as calls:
        torch.autograd.grad(mlp(inputs, weights)[0].sum(), inputs)
    assert calls.names == ["mlp_pack", "mlp", "mlp_backward"]


def test_what_is_passed_on_costs_no_sum() -> None:
    """Unless a second derivative is wanted."""
    spec = replace(SPEC, passes=2)
    inputs, weights = inputs_of(spec, 7)
    for x in inputs:
        x.requires_grad_()
    mlp = make_mlp(spec, torch.float64, CPU)
    for again, names in ((False, ["mlp_backward_and_add"]), (True, ["mlp_backward"])):
        result, _, one, other = mlp(inputs, weights)
        with Calls() as calls:
            torch.autograd.grad((one * other.sum()).sum() + result.sum(), inputs, create_graph=again)
        assert calls.names == names


class Forces(nn.Module):
    """Value and first derivative of one network whose result goes into another, in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = KernelMLP(SPEC, torch.float64, CPU), KernelMLP(SPEC, torch.float64, CPU)
        _, first = inputs_of(SPEC, 0)
        _, second = inputs_of(SPEC, 0)
        self.weights = nn.ParameterList([*first, *second]).requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        x, y = x.requires_grad_(), y.requires_grad_()
        one, other = self.first([x, y], list(self.weights[:2]))
        again, _ = self.second([one, y * other.sum(1, keepdim=True)], list(self.weights[2:]))
        return again.detach(), *torch.autograd.grad(again.square().sum(), [x, y])


def test_one_graph_compiled_and_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    forces = Forces()
    example, _ = inputs_of(SPEC, 9)
    module = trace(forces, [], example, [("edges", 4), ("edges", 3)], Sizes(1, 1, 9), Sizes(1, 0, 0))
    names = [node.target._opname for node in module.graph.nodes if "nequip_kernels" in str(node.target)]
    assert names == ["mlp_pack", "mlp", "mlp_pack", "mlp", "mlp_backward", "mlp_backward"]
    edges = torch.export.Dim("edges", min=0, max=2**31 - 1)
    program = torch.export.export(module, tuple(example), dynamic_shapes=({0: edges}, {0: edges}))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    assert b"nequip_kernels" not in (tmp_path / "model.pt2").read_bytes()
    loaded = torch._inductor.aoti_load_package(path)
    for rows in (0, 1, 9, 40):
        inputs, _ = inputs_of(SPEC, rows)
        expected = forces(*inputs)
        for received in (module(*inputs), loaded(*[x.detach() for x in inputs])):
            for one, other in zip(received, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_compiled_whole_with_gradients_of_weights() -> None:
    mlp = make_mlp(SPEC, torch.float64, CPU)

    def energy(x: Tensor, y: Tensor, *weights: Tensor) -> Tensor:
        one, other = mlp([x, y], weights)
        total: Tensor = one.sin().sum() + (one[:, :2] * other).sum()
        return total

    compiled = torch.compile(energy, fullgraph=True, dynamic=True)
    for rows in (5, 8):
        inputs, weights = inputs_of(SPEC, rows)
        leaves = [x.requires_grad_() for x in (*inputs, *weights)]
        expected = torch.autograd.grad(energy(*leaves), leaves)
        for one, other in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_is_refused_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refuses(SPEC, torch.float32, CPU) == "runs on cuda, not on cpu"
    assert refuses(SPEC, torch.float32, CUDA) is None
    worse = ScalarMLPSpec((4,), (5,), (6,), "silu")
    monkeypatch.setattr(accuracy, "reason", lambda spec, device: "errors" if spec == worse else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    ops = Ops(load_registry().kernels, device="cuda")
    for spec in (SPEC, worse):
        ops.make(SCALAR_MLP, spec)
    # A model has several networks: chosen for the first, and the reason why not for the second.
    assert ops.report[SCALAR_MLP] == {"chosen": "triton", "refused": {"triton": "errors"}}
    with pytest.raises(ConfigError, match="errors"):
        Ops(load_registry().kernels, device="cuda", request="triton").make(SCALAR_MLP, worse)


@pytest.mark.parametrize("nonlinearity", ["silu", "none"])
def test_wide_networks_are_cut(nonlinearity: str) -> None:
    wide = ScalarMLPSpec((4, 3), (WIDEST - 10, 8, 3, WIDEST + 1, 2), (6,), nonlinearity)
    assert [(part.hidden, part.outputs) for part in parts(wide)] == [
        ((WIDEST - 10, 8), (3,)),
        ((), (WIDEST + 1,)),
        ((2,), (6,)),
    ]
    assert parts(SPEC) == [SPEC]
    check_kernel("triton", wide, torch.float64, CPU)


@pytest.mark.parametrize("nonlinearity", ["silu", "none"])
def test_layer_by_layer(nonlinearity: str) -> None:
    """Hidden layers are stored; value, first and second derivative are the same."""
    check_kernel("triton_layers", replace(SPEC, nonlinearity=nonlinearity), torch.float64, CPU)
    check_kernel("triton_layers", ScalarMLPSpec((3, 2), (), (4, 1), "none"), torch.float64, CPU)


def test_a_model_in_training_takes_layers_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "missing", lambda device: None)
    kernels = {
        name: replace(entry, devices=frozenset({"cpu"})) if entry.name == "triton_layers" else entry
        for name, entry in load_registry().kernels.items()
    }
    for request, expected in (("auto", ReferenceMLP), ({"scalar_mlp": "triton_layers"}, KernelLayers)):
        network = MLP([4, 5, 3], ops=Ops(kernels, request=request))
        assert type(network.trained) is expected
        x = torch.randn(6, 4)
        torch.testing.assert_close(network.train()(x), network.eval()(x))


def test_a_kernel_of_larger_errors_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Comparison(Errors(2e-7, 1e-6), Errors(1e-7, 1e-6))
    for found, expected in ((good, None), (good._replace(kernel=Errors(1e-7, 3e-6)), "errors of the derivative")):
        monkeypatch.setattr(accuracy, "compare", lambda *given, found=found: {"value": good, "derivative": found})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        reason = refuses(SPEC, torch.float32, CUDA)
        assert reason is None if expected is None else expected in str(reason)
        assert refuses(SPEC, torch.float64, CUDA) is None  # where it multiplies float64 numbers


def test_errors_are_measured_against_float64() -> None:
    """On the CPU operators are float32 products themselves, so both have the same errors."""
    found = accuracy.compare(SPEC, CPU)
    assert found.keys() == {"value", "derivative"}
    for one in found.values():
        assert one.good()
        assert 1e-9 < one.products.rms < one.products.largest < 1e-5


def test_a_tensor_of_another_shape_is_refused() -> None:
    inputs, weights = inputs_of(SPEC, 3)
    mlp = make_mlp(SPEC, torch.float64, CPU)
    for wrong in ([inputs[0], inputs[1][:, :2]], [inputs[0], inputs[1][:2]], [inputs[0], inputs[1].float()]):
        with pytest.raises(ValueError, match=r"inputs\[1\] has the shape"):
            mlp(wrong, weights)
    with pytest.raises(ValueError, match=r"weights\[0\] has the shape"):
        mlp(inputs, [weights[0].mT, weights[1]])
    with pytest.raises(ValueError, match="1 inputs and 2 weights; expected 2 and 2"):
        mlp(inputs[:1], weights)


def test_a_models_network_is_the_kernel_where_it_is_not_trained() -> None:
    kernels = load_registry().kernels
    mlp = MLP([7, 5, 6], ops=Ops(kernels, dtype=torch.float64), inputs=[4, 3], outputs=[4, 2]).double()
    assert list(mlp.state_dict()) == ["weights.0", "weights.1"]
    mlp.chosen = KernelMLP(mlp.spec, torch.float64, CPU)
    inputs, _ = inputs_of(SPEC, 3)
    with Calls() as calls:
        trained = mlp.train()(*inputs)
        assert calls.names == ["mm", "mm"]
        calls.names.clear()
        evaluated = mlp.eval()(*inputs)
        assert calls.names == ["mlp_pack", "mlp"]
    assert all(map(torch.equal, trained, evaluated))
