"""Signs, units and formulas that no law fixes, against numbers and formulas written out here."""

from __future__ import annotations

import math

import pytest
import torch

from nequip_core.models.base import ModelInfo
from nequip_core.models.zbl import ZBL
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import stress
from nequip_core.testing import checks, systems


def test_stress_is_symmetrised() -> None:
    virial = torch.arange(18, dtype=torch.float64).reshape(2, 3, 3)
    found = stress(virial, torch.tensor([2.0, float("nan")], dtype=torch.float64))
    assert found[0].tolist() == [[0.0, -1.0, -2.0], [-1.0, -2.0, -3.0], [-2.0, -3.0, -4.0]]
    assert found[1].isnan().all()


@pytest.mark.parametrize(("types", "charges"), [(("H", "Ow"), (1, 8)), (("O", "O"), (8, 8))])
def test_zbl_of_a_dimer(types: tuple[str, str], charges: tuple[int, int]) -> None:
    info = ModelInfo(
        cutoff=3.0,
        types=systems.TYPES,
        elements=tuple(systems.ELEMENTS.values()),
        pair_cutoffs=((3.0,) * 3,) * 3,
        message_passing_layers=0,
    )
    case = checks.make_case(load_registry().models["nequip"])
    r = 0.6
    graph = case.graph(systems.structure(types, [[0.0, 0.0, 0.0], [0.0, r, 0.0]]))
    vectors = torch.tensor([[0.0, r, 0.0], [0.0, -r, 0.0]], dtype=torch.float64)
    z1, z2 = charges
    x = r * (z1**0.23 + z2**0.23) / 0.46850
    coefficients = ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980))
    u = r / 3.0
    envelope = 1 - 28 * u**6 + 48 * u**7 - 21 * u**8
    whole = 14.399645 * z1 * z2 / r * sum(c * math.exp(-d * x) for c, d in coefficients) * envelope
    # Each atom has half of the pair's energy.
    assert ZBL(info)(graph, vectors).tolist() == pytest.approx([whole / 2, whole / 2], rel=1e-12)


def test_a_stretched_bond_pulls_and_has_tension() -> None:
    """Forces of a bond that is too long point inwards; its virial is negative, its stress positive."""
    case = checks.make_case(load_registry().models["nequip"])
    dimers = [systems.structure(["O", "H"], [[0.0, 0.0, 0.0], [r, 0.0, 0.0]]) for r in (1.2, 1.2001)]
    out = case.predict(*dimers)
    slope = (out.energy[1] - out.energy[0]) / 1e-4
    assert abs(slope) > 1e-3
    assert out.forces[0, 0] == pytest.approx(slope.item(), rel=1e-2)
    assert out.virial[0, 0, 0] == pytest.approx(-1.2 * slope.item(), rel=1e-2)
    assert stress(out.virial, torch.ones(2))[0, 0, 0] == pytest.approx(1.2 * slope.item(), rel=1e-2)
