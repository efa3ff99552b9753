"""Edges within the cut-offs as a function of tensors alone: the graph that filtering gives, eager and compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nequip_core.export.aoti import join, narrow_program, narrows_as_eager
from nequip_core.export.compiled import MODEL, NARROW
from nequip_core.graph import Graph
from nequip_core.models.base import ModelInfo
from nequip_core.narrow import Narrow, Narrowing, graph_of, wide_of
from nequip_core.testing import systems

CPU = torch.device("cpu")
UNIFORM = ((3.0, 3.0), (3.0, 3.0))
ASYMMETRIC = ((3.0, 2.4), (2.8, 2.6))


def info_of(pair_cutoffs: tuple[tuple[float, ...], ...]) -> ModelInfo:
    return ModelInfo(
        cutoff=3.0,
        types=("H", "O"),
        elements=("H", "O"),
        pair_cutoffs=pair_cutoffs,
        message_passing_layers=0,
        dtype="float64",
    )


@pytest.mark.parametrize("cutoffs", [UNIFORM, ASYMMETRIC], ids=["uniform", "asymmetric"])
def test_the_graph_that_filtering_gives(cutoffs: tuple[tuple[float, ...], ...]) -> None:
    narrowing = Narrowing(np.array(cutoffs))
    assert narrows_as_eager(lambda tensors: list(narrowing(*tensors)), info_of(cutoffs), CPU)


def test_a_wrong_function_is_found() -> None:
    larger = Narrowing(np.array(UNIFORM) + 0.1)
    assert not narrows_as_eager(lambda tensors: list(larger(*tensors)), info_of(UNIFORM), CPU)


def test_no_edge_within_the_cut_offs_and_two_atoms_in_one_place() -> None:
    pair = systems.structure(["H", "H"], np.array([[0.0, 0.0, 0.0], [0.01, 0.0, 0.0]]))
    two = torch.tensor([0, 1, 2])
    wide = Graph(
        positions=torch.tensor(pair.positions),
        types=torch.zeros(2, dtype=torch.int64),
        edge_index=torch.tensor([[0, 1], [1, 0]]),
        edge_shift=torch.zeros(2, 3, dtype=torch.float64),
        structure=torch.zeros(2, dtype=torch.int64),
        structure_ptr=torch.tensor([0, 2]),
        row_ptr=two,
        by_neighbor=torch.tensor([1, 0]),
        neighbor_ptr=two,
        local=torch.ones(2, dtype=torch.bool),
    )
    narrowing, reach = Narrowing(np.array(UNIFORM)), torch.zeros(1, dtype=torch.float64)
    found = Narrow(*narrowing(*wide_of(wide, wide.positions, reach)))
    assert found.seen.tolist() == [2, 2, 2]
    apart = wide._replace(positions=400 * wide.positions)
    found = Narrow(*narrowing(*wide_of(apart, torch.full_like(wide.positions, torch.nan), reach)))
    assert found.seen.tolist() == [0, 0, 0]
    graph = graph_of(apart, found, 0)
    assert graph.edge_index.shape == (2, 0)
    assert graph.row_ptr.tolist() == graph.neighbor_ptr.tolist() == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("cutoffs", [UNIFORM, ASYMMETRIC], ids=["uniform", "asymmetric"])
def test_compiled_beside_a_model(cutoffs: tuple[tuple[float, ...], ...], tmp_path: Path) -> None:
    info = info_of(cutoffs)
    made, whole = tmp_path / "made.pt2", tmp_path / "whole.pt2"
    torch._inductor.aoti_compile_and_package(narrow_program(info, CPU), package_path=str(made))
    join({MODEL: made, NARROW: made}, whole)
    for name in (MODEL, NARROW):
        loader = torch._C._aoti.AOTIModelPackageLoader(str(whole), name, False, 1, -1)
        assert narrows_as_eager(loader.run, info, CPU)
