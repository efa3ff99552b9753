"""Convolutions with weights from a table: the table, the operators, and whole models."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.kernels.tables import SPEC, check, inputs, spec_of

from nequip_core.errors import ConfigError
from nequip_core.models.base import Settling
from nequip_core.models.build import build_model
from nequip_core.models.nequip import NequIP
from nequip_core.nn.mlp import MLP
from nequip_core.nn.radial import BesselBasis
from nequip_core.nn.tabulated import INTERVALS, RadialTable, places
from nequip_core.ops.contracts import NEQUIP_TABULATED_CONVOLUTION
from nequip_core.ops.reference import of_table
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.plugins.records import Ref
from nequip_core.potential import Potential
from nequip_core.testing import systems
from nequip_core.testing.checks import Case, make_case
from nequip_core.testing.kernels import random_graph
from nequip_kernels.tabulated.make import KernelTabulatedConvolution, bytes_of_table, refuses

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [5, 6])
def test_the_table_is_the_network(p: int) -> None:
    """Values and slopes, in float64; zero from the cut-off on."""
    torch.manual_seed(0)
    bessels, radial = BesselBasis(8, p), MLP([8, 64, 30]).double()
    inside, beyond = torch.rand(5000, 1, dtype=torch.float64) * 0.9 + 0.1, torch.tensor([[0.9999999], [1.0], [1.7]])
    x = torch.cat([inside, beyond.double()]).requires_grad_()
    table = RadialTable(radial.spec)(bessels, list(radial.weights))
    assert table.shape == (INTERVALS + 1, 4, 30)
    found, expected = of_table(table, *places(x, torch.float64)), radial(bessels(x))
    direction = torch.randn_like(expected)
    slopes = [torch.autograd.grad((one * direction).sum(), x, retain_graph=True)[0] for one in (found, expected)]
    found, expected = found.detach(), expected.detach()
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-8
    assert float((slopes[0] - slopes[1]).abs().max() / slopes[1].abs().max()) < 1e-6
    assert not found[-2:].any()


def test_a_network_that_is_too_steep() -> None:
    torch.manual_seed(0)
    bessels, radial = BesselBasis(8, 6), MLP([8, 64, 30]).double()
    with torch.no_grad():
        radial.weights[0].mul_(30)
    with pytest.raises(ConfigError, match=r"too steep for a table of 1024 intervals: slopes would be off by up to "):
        RadialTable(radial.spec)(bessels, list(radial.weights))


def test_the_operators_are_the_reference() -> None:
    check(SPEC, torch.float64, CPU)


def test_there_is_no_second_derivative_and_none_by_the_table() -> None:
    graph = random_graph(6, (7, 0, 3, 11, 1, 5))
    named, place, table = inputs(graph, SPEC, torch.float64)
    made = KernelTabulatedConvolution(SPEC, torch.float64, CPU)
    h, harmonics, fraction = (x.requires_grad_() for x in named.values())
    out = made(h, harmonics, place, fraction, table, graph)
    (first,) = torch.autograd.grad(out.square().sum(), fraction, create_graph=True)
    with pytest.raises(ConfigError, match=r"has no second derivative: it is for inference"):
        torch.autograd.grad(first.sum(), h)
    with pytest.raises(ConfigError, match=r"has no derivative by the table"):
        made(h, harmonics, place, fraction, table.requires_grad_(), graph).sum().backward()


def tabulated(case: Case, kernel: str) -> Potential:
    """The model of a case as it is built where tables are taken, on the CPU."""
    kernels = dict(load_registry().kernels)
    name = f"{NEQUIP_TABULATED_CONVOLUTION}/{kernel}"
    here = {"devices": frozenset({"cpu"}), "refuses": Ref("nequip_core.ops.reference:refuses")}
    kernels[name] = replace(kernels[name], dtypes=frozenset({"float64", "float32"}), **here)  # type: ignore[arg-type]
    request = {NEQUIP_TABULATED_CONVOLUTION: kernel}
    ops = Ops(kernels, dtype=case.info.torch_dtype, derivatives=1, request=request)
    model = build_model(case.entry, case.config, ops)
    model.load_state_dict(case.potential.model.state_dict())
    return Potential(model).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[{"l_max": 1, "num_features": [4, 3]}, {"l_max": 2, "train_bessels": True}])
def case(request: pytest.FixtureRequest) -> Case:
    made = make_case(load_registry().models["nequip"], dict(request.param))
    made.potential.eval()
    return made


@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_predictions_are_the_same(case: Case, kernel: str) -> None:
    potential = tabulated(case, kernel)
    assert all(
        layer.tabulated is not None for one in potential.modules() if isinstance(one, NequIP) for layer in one.layers
    )
    structures = [*systems.systems().values()]
    expected, found = (one.predict(*structures) for one in (case, Case(case.entry, case.config, potential)))
    for name, one, other in zip(("energy", "atomic_energy", "forces", "virial"), expected, found, strict=False):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_layers_may_have_tables_or_networks(case: Case) -> None:
    potential = tabulated(case, "triton")
    (architecture,) = (one for one in potential.modules() if isinstance(one, NequIP))
    layer = architecture.layers[0]
    layer.table = layer.tabulated = None
    structures = [*systems.systems().values()]
    expected, found = (one.predict(*structures) for one in (case, Case(case.entry, case.config, potential)))
    torch.testing.assert_close(found[2], expected[2], rtol=0, atol=1e-6)
    with torch.no_grad():
        layer.radial.weights[0].zero_()
    assert (Case(case.entry, case.config, potential).predict(*structures)[2] - expected[2]).abs().max() > 1e-3


def test_in_training_the_network_is_computed(case: Case) -> None:
    ours = tabulated(case, "triton").requires_grad_(True).train()
    graph = case.graph(*[*systems.systems().values()][:2])
    plain = copy.deepcopy(case.potential).requires_grad_(True).train()
    expected, found = (one(graph).forces.square().sum() for one in (plain, ours))
    torch.testing.assert_close(found, expected)
    found.backward()


@pytest.mark.parametrize(
    ("options", "report"),
    [
        ({}, None),
        ({"derivatives": 2}, {}),
        ({"dtype": torch.float64}, {"triton": "computes in ['float32'], not in float64"}),
        ({"device": "cpu"}, {"triton": "runs on ['cuda'], not on cpu"}),
        ({"request": "reference"}, {}),
        ({"request": {"nequip.tabulated_convolution": "none"}}, {}),
    ],
)
def test_files_for_cuda_take_it(options: dict[str, Any], report: dict[str, str] | None) -> None:
    """Others do not; a refusal is in the report."""
    kernels = dict(load_registry().kernels)
    name = f"{NEQUIP_TABULATED_CONVOLUTION}/triton"
    kernels[name] = replace(kernels[name], refuses=Ref("nequip_core.ops.reference:refuses"))  # as on any machine
    given: dict[str, Any] = {"dtype": torch.float32, "device": "cuda", "derivatives": 1} | options
    ops = Ops(kernels, **given)
    assert ops.is_quicker(NEQUIP_TABULATED_CONVOLUTION, SPEC) is (report is None)
    expected = {NEQUIP_TABULATED_CONVOLUTION: {"chosen": "none", "refused": report}} if report else {}
    assert ops.report == expected


def test_a_table_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nequip_kernels.requirements.missing", lambda device: None)
    small, large = (spec_of(l_max, 64, parity=True, intervals=INTERVALS) for l_max in (1, 3))
    assert refuses(small, torch.float32, torch.device("cuda")) is None
    size = bytes_of_table(large, torch.float32)
    assert size == 1025 * 4 * large.convolution.num_weights * 4
    reason = refuses(large, torch.float32, torch.device("cuda"))
    assert reason == f"its table has {size / 2**20:.0f} MiB, and may have 16 to stay in a cache"


@pytest.mark.parametrize("named", [False, True])
def test_a_model_that_is_too_steep_keeps_its_networks(case: Case, named: bool) -> None:
    """Unless the tables were named, which is an error then."""
    kernels = dict(load_registry().kernels)
    name = f"{NEQUIP_TABULATED_CONVOLUTION}/triton"
    here = {"devices": frozenset({"cpu"}), "refuses": Ref("nequip_core.ops.reference:refuses")}
    kernels[name] = replace(kernels[name], dtypes=frozenset({"float64"}), **here)  # type: ignore[arg-type]
    request = {NEQUIP_TABULATED_CONVOLUTION: "triton"} if named else "auto"
    ops = Ops(kernels, dtype=torch.float64, derivatives=1, request=request)
    model = build_model(case.entry, case.config, ops)
    (architecture,) = (one for one in model.modules() if isinstance(one, NequIP))
    assert isinstance(architecture, Settling)
    architecture.settle(ops)
    assert all(layer.tabulated is not None for layer in architecture.layers)
    assert ops.report[NEQUIP_TABULATED_CONVOLUTION]["chosen"] == "triton"
    with torch.no_grad():
        architecture.layers[1].radial.weights[0].mul_(30)
    if named:
        with pytest.raises(ConfigError, match=r"'triton' can not compute nequip.tabulated_convolution/1: a radial "):
            architecture.settle(ops)
        return
    architecture.settle(ops)
    about = ops.report[NEQUIP_TABULATED_CONVOLUTION]
    assert about["chosen"] == "none"
    assert "too steep for a table of 1024 intervals" in about["refused"]["triton"]
    potential = Potential(model).eval().requires_grad_(False)
    plain = copy.deepcopy(case.potential)
    plain.model.load_state_dict(model.state_dict())
    graph = case.graph(*[*systems.systems().values()][:2])
    assert torch.equal(potential(graph).forces, plain(graph).forces)
