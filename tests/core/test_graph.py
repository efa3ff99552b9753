"""Graphs: edges, order, pointers, batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from nequip_core.errors import InputError
from nequip_core.graph import Graph, build_graph, collate, edge_vectors, filter_edges, from_structure, longest_row, to
from nequip_core.neighbors import Pairs, make_matscipy, make_vesin
from nequip_core.structure import Structure, TypeMap

TYPES = TypeMap(("H", "O"), ("H", "O"))
UNIFORM = np.full((2, 2), 3.0)


def graph_of(structure: Structure, cutoffs: np.ndarray = UNIFORM) -> Graph:
    return from_structure(structure, TYPES, cutoffs, make_matscipy(float(cutoffs.max())))


def check_order(graph: Graph) -> None:
    """What the docstring of Graph says of each field."""
    n, e = len(graph.types), graph.edge_index.shape[1]
    centre, neighbor = graph.edge_index.numpy()
    keys = centre * n + neighbor
    assert (np.diff(keys) >= 0).all()
    np.testing.assert_array_equal(np.repeat(np.arange(n), np.diff(graph.row_ptr)), centre)
    order = graph.by_neighbor.numpy()
    np.testing.assert_array_equal(np.sort(order), np.arange(e))
    assert (np.diff(neighbor[order] * n + centre[order]) >= 0).all()
    np.testing.assert_array_equal(np.repeat(np.arange(n), np.diff(graph.neighbor_ptr)), neighbor[order])
    structures = len(graph.structure_ptr) - 1
    np.testing.assert_array_equal(np.repeat(np.arange(structures), np.diff(graph.structure_ptr)), graph.structure)
    assert (graph.structure[graph.edge_index[0]] == graph.structure[graph.edge_index[1]]).all()
    assert graph.positions.dtype == graph.edge_shift.dtype == torch.float64
    assert graph.local.dtype == torch.bool
    for tensor in (graph.types, graph.edge_index, graph.structure_ptr, graph.row_ptr, graph.by_neighbor):
        assert tensor.dtype == torch.int64
    assert all(tensor.is_contiguous() for tensor in graph)


@pytest.mark.parametrize("periodic", [True, False])
def test_order_of_one_structure(
    random_structure: Callable[..., Structure], rng: np.random.Generator, periodic: bool
) -> None:
    graph = graph_of(random_structure(rng, periodic=periodic))
    assert graph.edge_index.shape[1] > 0
    check_order(graph)


def test_edge_vectors_are_those_of_the_list(
    random_structure: Callable[..., Structure], rng: np.random.Generator
) -> None:
    structure = random_structure(rng)
    vectors = edge_vectors(graph_of(structure)).numpy()
    pairs = make_vesin(3.0)(structure.positions, structure.cell, structure.pbc)
    expected = structure.positions[pairs.neighbor] - structure.positions[pairs.centre] + pairs.shift @ structure.cell
    assert len(vectors) == len(expected)
    np.testing.assert_allclose(np.sort(vectors, axis=0), np.sort(expected, axis=0), atol=1e-12)
    assert (np.linalg.norm(vectors, axis=1) < 3.0).all()


def test_both_libraries_give_the_same_graph(
    random_structure: Callable[..., Structure], rng: np.random.Generator
) -> None:
    structure = random_structure(rng)
    one, other = (from_structure(structure, TYPES, UNIFORM, make(3.0)) for make in (make_matscipy, make_vesin))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_cutoff_is_excluded() -> None:
    structure = Structure.from_ase(Atoms("H2", positions=[[0, 0, 0], [3.0, 0, 0]]))
    pairs = Pairs(np.array([0, 1]), np.array([1, 0]), np.zeros((2, 3), dtype=np.int64))
    for cutoff, edges in ((3.0, 0), (np.nextafter(3.0, 4.0), 2)):
        cutoffs = np.full((1, 1), cutoff)
        graph = build_graph(structure.positions, np.zeros(2, np.int64), pairs, structure.cell, cutoffs)
        assert graph.edge_index.shape[1] == edges


def test_asymmetric_cutoffs_are_by_centre_then_neighbour() -> None:
    structure = Structure.from_ase(Atoms("HOO", positions=[[0, 0, 0], [2.0, 0, 0], [4.5, 0, 0]]))
    cutoffs = np.array([[3.0, 1.5], [2.5, 2.8]])  # H sees O within 1.5, O sees H within 2.5
    graph = graph_of(structure, cutoffs)
    assert graph.edge_index.T.tolist() == [[1, 0], [1, 2], [2, 1]]
    check_order(graph)


def test_pairs_beyond_the_cutoff_are_left_out(
    random_structure: Callable[..., Structure], rng: np.random.Generator
) -> None:
    structure = random_structure(rng)
    wide = from_structure(structure, TYPES, UNIFORM, make_vesin(3.0, 1.5))
    for a, b in zip(wide, graph_of(structure), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_order_where_one_number_can_not_hold_it(
    random_structure: Callable[..., Structure], rng: np.random.Generator
) -> None:
    """An atom written millions of cells away: edges are in the same order, sorted by columns."""
    structure = random_structure(rng)
    pairs = make_vesin(3.0)(structure.positions, structure.cell, structure.pbc)
    far = np.zeros((len(structure), 3), dtype=np.int64)
    far[2] = [3_000_000, -3_000_000, 2_000_000]
    shift = pairs.shift + far[pairs.centre] - far[pairs.neighbor]
    assert np.prod([float(n) for n in np.ptp(shift, axis=0) + 1]) > 2.0**63
    graphs = [
        build_graph(positions, np.zeros(len(structure), np.int64), Pairs(*pairs[:2], moved), structure.cell, UNIFORM)
        for positions, moved in (
            (structure.positions, pairs.shift),
            (structure.positions + far @ structure.cell, shift),
        )
    ]
    check_order(graphs[1])
    torch.testing.assert_close(graphs[1].edge_index, graphs[0].edge_index, rtol=0, atol=0)
    torch.testing.assert_close(edge_vectors(graphs[1]), edge_vectors(graphs[0]), rtol=0, atol=1e-7)


def test_filter_edges_is_the_smaller_graph(
    random_structure: Callable[..., Structure], rng: np.random.Generator
) -> None:
    structure = random_structure(rng)
    wide = from_structure(structure, TYPES, UNIFORM + 1.5, make_vesin(4.5))
    kept = filter_edges(wide, edge_vectors(wide).norm(dim=1) < 3.0)
    assert 0 < kept.edge_index.shape[1] < wide.edge_index.shape[1]
    check_order(kept)
    for a, b in zip(kept, graph_of(structure), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def mixed(random_structure: Callable[..., Structure], rng: np.random.Generator) -> list[Structure]:
    """With and without cell, a slab, one atom, an atom that nobody sees between others, no atoms."""
    slab = Structure.from_ase(Atoms("OH", positions=[[0, 0, 0], [0, 0, 1]], cell=[3, 3, 0], pbc=[True, True, False]))
    lonely = Structure.from_ase(Atoms("HOH", positions=[[0, 0, 0], [50, 0, 0], [1, 0, 0]]))
    return [
        random_structure(rng),
        Structure.from_ase(Atoms("H")),
        slab,
        lonely,
        Structure.from_ase(Atoms()),
        random_structure(rng, periodic=False),
    ]


def test_a_batch_is_its_structures(random_structure: Callable[..., Structure], rng: np.random.Generator) -> None:
    graphs = [graph_of(structure) for structure in mixed(random_structure, rng)]
    batch = collate(graphs)
    check_order(batch)
    torch.testing.assert_close(edge_vectors(batch), torch.cat([edge_vectors(graph) for graph in graphs]))
    torch.testing.assert_close(batch.types, torch.cat([graph.types for graph in graphs]))
    assert batch.structure_ptr.diff().tolist() == [len(graph.types) for graph in graphs]


def test_batches_of_batches(random_structure: Callable[..., Structure], rng: np.random.Generator) -> None:
    graphs = [graph_of(structure) for structure in mixed(random_structure, rng)]
    nested = collate([collate(graphs[:2]), collate(graphs[2:5]), graphs[5]])
    for a, b in zip(nested, collate(graphs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_atoms_that_nobody_sees() -> None:
    graph = graph_of(Structure.from_ase(Atoms("HOH", positions=[[0, 0, 0], [50, 0, 0], [1, 0, 0]])))
    assert graph.row_ptr.tolist() == [0, 1, 1, 2]
    assert graph.neighbor_ptr.tolist() == [0, 1, 1, 2]


def test_an_atom_on_top_of_another_is_named() -> None:
    structure = Structure.from_ase(Atoms("HOH", positions=[[0, 0, 0], [1, 0, 0], [1, 0, 1e-6]]), source="f.xyz frame 7")
    with pytest.raises(InputError, match=r"f\.xyz frame 7: atoms 1 and 2 are 0\.000"):
        graph_of(structure)


def test_an_atom_on_top_of_an_image_is_named() -> None:
    atoms = Atoms("HO", positions=[[0, 0, 0], [4.0, 0, 0]], cell=[4, 4, 4], pbc=True)
    with pytest.raises(InputError, match=r"f\.xyz frame 0: atoms 0 and 1"):
        graph_of(Structure.from_ase(atoms, source="f.xyz frame 0"))


def test_the_structure_stays_as_it_is() -> None:
    structure = Structure.from_ase(bulk("O", "fcc", 4.0, cubic=True))
    before = structure.positions.copy()
    graph = graph_of(structure)
    graph.positions.add_(1.0)
    np.testing.assert_array_equal(structure.positions, before)


def test_to_a_device() -> None:
    graph = to(graph_of(Structure.from_ase(Atoms("H"))), "meta")
    assert {tensor.device.type for tensor in graph} == {"meta"}


def test_the_longest_row_of_a_graph_on_a_device_needs_no_read_back() -> None:
    graph = graph_of(Structure.from_ase(Atoms("HHO", [[0, 0, 0], [2.0, 0, 0], [4.0, 0, 0]])))
    assert longest_row(graph) == longest_row(to(graph, "meta")) == 2
