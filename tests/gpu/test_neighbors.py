"""Neighbours and blocks on a CUDA device: what the CPU gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nequip_core import blocks
from nequip_core.blocks import Blocks
from nequip_core.graph import Graph, to
from nequip_core.neighbors import DEVICE
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Potential
from nequip_core.skin import SkinGraph
from nequip_core.structure import Structure
from nequip_core.testing import systems
from nequip_core.testing.checks import Case, make_case

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(load_registry().models["allegro"], {"zbl": True})


def listed(case: Case, structures: list[Structure], moving: SkinGraph) -> Graph:
    names = [name for one in structures for name in (one.type_names or ())]
    return moving.batch(
        np.concatenate([one.positions for one in structures]),
        np.array([case.info.types.index(name) for name in names]),
        np.stack([one.cell for one in structures]),
        np.stack([one.pbc for one in structures]),
        np.array([len(one) for one in structures]),
    )


def test_a_walk_of_a_batch_is_that_of_the_cpu(case: Case):
    rng = np.random.default_rng(0)
    structures = [*systems.systems().values(), systems.supercell(systems.crystal(), (4, 4, 4))]
    entry = load_registry().neighbor_lists[DEVICE]
    moving = SkinGraph(entry, np.array(case.info.pair_cutoffs), 0.6, CUDA)
    for _ in range(15):
        structures = [
            systems.replaced(one, positions=one.positions + rng.uniform(-0.06, 0.06, size=one.positions.shape))
            for one in structures
        ]
        received = listed(case, structures, moving)
        assert {tensor.device.type for tensor in received} == {"cuda"}
        for name, here, there in zip(Graph._fields, case.graph(*structures), received, strict=True):
            torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-12, msg=name)
    assert 2 <= moving.builds < 15


def test_memory_decides_about_blocks(case: Case, monkeypatch: pytest.MonkeyPatch):
    graph = to(case.graph(systems.supercell(systems.crystal(), (6, 6, 6))), CUDA)
    potential = Blocks(Potential(case.potential.model.cuda()).eval(), case.info)
    whole = potential(graph, atomic_virial=True)
    assert potential.taken is None
    monkeypatch.setattr(blocks, "PROBE", 1000)
    monkeypatch.setattr(blocks, "_free_memory", lambda _: 1_000_000)
    potential = Blocks(potential.potential, case.info)  # what fitted once is not asked about again
    divided = potential(graph, atomic_virial=True)
    assert potential.taken is not None
    for here, there in zip(whole, divided, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-11, atol=1e-11)
