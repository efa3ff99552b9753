"""Strictly local models in blocks: the numbers of the whole, however it is divided."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

import nequip_core
from nequip_core import blocks
from nequip_core.blocks import BlockEdges, Blocks
from nequip_core.engines.ase import NequIPCalculator
from nequip_core.errors import InputError
from nequip_core.graph import Graph
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Prediction
from nequip_core.testing import systems
from nequip_core.testing.checks import Case, make_case


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(load_registry().models["allegro"], {"zbl": True, "num_layers": 2})


@pytest.fixture(scope="module")
def graph(case: Case) -> Graph:
    """A batch of all kinds, atoms without edges at either end and in the middle."""
    alone = systems.structure(["H", "O", "H"], [[0, 0, 0], [30.0, 0, 0], [60.0, 0, 0]])
    return case.graph(alone, *systems.systems().values(), systems.structure([], np.zeros((0, 3))), alone)


def assert_same(received: Prediction, expected: Prediction) -> None:
    for name, got, want in zip(Prediction._fields, received, expected, strict=True):
        assert (got is None) == (want is None)
        if got is not None and want is not None:
            assert got.dtype == torch.float64
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("block_edges", [1, 37, 100, 1000, 10**9, None, "auto"])
def test_blocks_are_the_whole(case: Case, graph: Graph, block_edges: BlockEdges) -> None:
    expected = case.potential(graph, atomic_virial=True)
    potential = Blocks(case.potential, case.info, block_edges)
    assert_same(potential(graph, atomic_virial=True), expected)
    assert_same(potential(graph), expected._replace(atomic_virial=None))


def test_ghosts_stay_ghosts(case: Case) -> None:
    """Atoms that are not local in the whole are not in a block either; their forces are kept."""
    graph = case.graph(systems.crystal(), systems.molecule())
    graph = graph._replace(local=torch.arange(len(graph.local)) % 3 > 0)
    assert_same(Blocks(case.potential, case.info, 20)(graph), case.potential(graph))


def test_blocks_hold_what_they_may(case: Case, graph: Graph) -> None:
    sizes: list[tuple[int, int]] = []

    def potential(graph: Graph, *, atomic_virial: bool = False) -> Prediction:
        sizes.append((len(graph.types), graph.edge_shift.shape[0]))
        assert all(tensor.is_contiguous() for tensor in graph)
        return case.potential(graph, atomic_virial=atomic_virial)

    edges = graph.edge_shift.shape[0]
    most_of_an_atom = int(graph.row_ptr.diff().max())
    divided = Blocks(potential, case.info, 100)
    divided(graph)
    assert sum(e for _, e in sizes) == edges
    assert len(sizes) >= edges // 100
    assert max(e for _, e in sizes) <= max(100, most_of_an_atom)
    assert max(atoms for atoms, _ in sizes) < len(graph.types)  # renumbered
    assert divided.taken is not None
    assert divided.taken <= 100


def test_no_atoms_and_no_edges(case: Case) -> None:
    for structures in ([systems.structure([], np.zeros((0, 3)))], [systems.atom("H")], [systems.atom("O")] * 3):
        graph = case.graph(*structures)
        assert_same(Blocks(case.potential, case.info, 1)(graph), case.potential(graph))


class Device:
    """Stands in for a device whose memory is watched: a block takes 1000 bytes an edge."""

    def __init__(self, case: Case, free: int, holds: int) -> None:
        self.potential, self.free, self.holds = case.potential, free, holds
        self.edges: list[int] = []

    def __call__(self, graph: Graph, *, atomic_virial: bool = False) -> Prediction:
        self.edges.append(graph.edge_shift.shape[0])
        if self.edges[-1] > self.holds:
            raise torch.OutOfMemoryError("planted")
        return self.potential(graph, atomic_virial=atomic_virial)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, case: Case) -> Callable[..., Device]:
    def make(*, free: int, holds: int = 10**9) -> Device:
        device = Device(case, free, holds)

        def peak(run: Callable[[], object], _: torch.device) -> int:
            run()
            return 1000 * device.edges[-1]

        monkeypatch.setattr(blocks, "MEASURED", {"cpu"})
        monkeypatch.setattr(blocks, "PROBE", 64)
        monkeypatch.setattr(blocks, "_peak_memory", peak)
        monkeypatch.setattr(blocks, "_free_memory", lambda _: device.free)
        return device

    return make


def test_auto_takes_what_memory_lets(case: Case, graph: Graph, watched: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="nequip_core.blocks")
    edges = graph.edge_shift.shape[0]
    device = watched(free=10**9)
    potential = Blocks(device, case.info)
    expected = case.potential(graph)
    assert_same(potential(graph), expected)
    assert potential.taken is None
    assert device.edges[-1] == edges
    assert max(device.edges[:-1]) <= 64  # what was measured

    device.free = 200_000  # 0.8 of it are 160 edges
    device.edges.clear()
    assert_same(potential(graph), expected)
    assert potential.taken is None  # what went through at once is not asked about again, unless it fails

    device.holds = 160
    assert_same(potential(graph), expected)
    assert potential.taken is not None
    device.edges.clear()
    assert_same(potential(graph), expected)
    assert 100 < potential.taken <= 160
    assert max(device.edges) <= 160
    assert sum(device.edges) == edges  # measured once
    assert f"in blocks of at most {potential.taken}" in caplog.text


def test_auto_halves_what_does_not_fit(case: Case, graph: Graph, watched: Any) -> None:
    device = watched(free=10**9, holds=150)
    potential = Blocks(device, case.info)
    assert_same(potential(graph), case.potential(graph))
    assert potential.taken is not None
    assert potential.taken <= 150
    with pytest.raises(InputError, match="too little memory for a block of 1 atoms"):
        Blocks(watched(free=10**9, holds=2), case.info)(case.graph(systems.crystal()))


def test_a_size_that_was_asked_for_is_kept(case: Case, graph: Graph, watched: Any) -> None:
    with pytest.raises(InputError, match="Take a smaller block_edges"):
        Blocks(watched(free=10**9, holds=50), case.info, 120)(graph)


def test_models_that_pass_messages_are_not_divided(watched: Any) -> None:
    case = make_case(load_registry().models["nequip"])
    assert not case.info.strictly_local
    with pytest.raises(InputError, match=r"2 layers.*up to 6 Å"):
        Blocks(case.potential, case.info, 1000)
    watched(free=1000)
    graph = case.graph(systems.crystal())
    potential = Blocks(case.potential, case.info)
    assert_same(potential(graph), case.potential(graph))
    assert potential.taken is None


def test_sizes_that_are_none(case: Case) -> None:
    with pytest.raises(InputError, match="block_edges 0"):
        Blocks(case.potential, case.info, 0)


def test_in_the_engines(tmp_path: Path, write_model: Callable[..., Path]) -> None:
    path = write_model(tmp_path / "m.nequip.zip")
    for engine in (NequIPCalculator.from_file, nequip_core.load):
        with pytest.raises(InputError, match="can not be evaluated in blocks"):
            engine(path, device="cpu", block_edges=100)
        assert engine(path, device="cpu").potential.taken is None


def test_in_ase_and_in_batches(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    import copy

    from nequip_core.engines.evaluate import Predictor
    from nequip_core.structure import TypeMap

    class Loaded:
        potential, info, device = case.potential, case.info, torch.device("cpu")
        type_map = TypeMap(case.info.types, case.info.elements)
        data: dict[str, Any] = {}  # noqa: RUF012

    atoms = Atoms("H4", [[0, 0, 0], [1, 0, 0], [0, 1.1, 0], [0, 0, 1.2]], cell=[3, 3.1, 3.2], pbc=True)
    results = []
    for block_edges in (None, 20):
        atoms.calc = NequIPCalculator(Loaded, block_edges=block_edges)  # type: ignore[arg-type]
        results.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(), atoms.get_stresses()))
        assert (atoms.calc.potential.taken is not None) == (block_edges is not None)
        assert copy.deepcopy(atoms).calc.potential.block_edges == block_edges
    for whole, divided in zip(*results, strict=True):
        np.testing.assert_allclose(divided, whole, rtol=1e-12, atol=1e-12)
    vesin = load_registry().neighbor_lists["vesin"]
    predictions = [
        Predictor(Loaded, vesin, block_edges=block_edges)([atoms, atoms], atomic_virial=True)  # type: ignore[arg-type]
        for block_edges in (None, 20)
    ]
    assert_same(predictions[1], predictions[0])
