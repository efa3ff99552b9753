"""What depends on weights alone is computed before a model is compiled."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from nequip_core.export.aoti import export_program
from nequip_core.export.bind import bind
from nequip_core.plugins.manager import load_registry
from nequip_core.testing.checks import make_case


def test_constants_are_computed_and_views_stay():
    table = torch.arange(6.0).reshape(2, 3)

    def function(weight: Tensor, unused: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        scaled = (weight * 2).exp()
        return x @ scaled.t() @ table, torch.full([2], 3.0) + scaled.sum()

    weight, x = torch.randn(2, 4, requires_grad=True), torch.randn(5, 4)
    traced = make_fx(function)(weight, torch.ones(1), x, torch.ones(1))
    bound = bind(traced, [weight, torch.ones(1)])
    for received, expected in zip(bound(x, torch.ones(1)), function(weight, torch.ones(1), x, x), strict=True):
        torch.testing.assert_close(received, expected.detach(), rtol=0, atol=0)
    names = [node.target.name() for node in bound.graph.nodes if node.op == "call_function"]
    assert names == ["aten::t", "aten::mm", "aten::mm", "aten::full", "aten::add.Tensor"]
    assert sum(node.op == "placeholder" for node in bound.graph.nodes) == 2
    assert not any(tensor.requires_grad for tensor in bound.state_dict().values())


def test_exported_models_scale_no_weights():
    case = make_case(load_registry().models["nequip"])
    program = export_program(case.potential, ("atomic_energy", "forces", "virial"))
    constant = set(program.graph_signature.inputs_to_parameters) | set(program.graph_signature.inputs_to_buffers)
    views = {"aten::view", "aten::alias", "aten::permute", "aten::slice.Tensor", "aten::select.int", "aten::unsqueeze"}
    views |= {"aten::t", "aten::transpose.int", "aten::expand", "aten::squeeze.dims", "aten::detach"}
    for node in program.graph.nodes:
        of_constants = {one.name for one in node.all_input_nodes} <= constant
        if node.op == "call_function" and node.all_input_nodes and of_constants:
            assert node.target.name() in views, node
            constant.add(node.name)
