"""Structures as tensors, and batches of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from nequip_core.data.batch import Batch
from nequip_core.data.cache import Cache
from nequip_core.data.dataset import Dataset
from nequip_core.errors import InputError
from nequip_core.graph import collate, from_structure
from nequip_core.neighbors import make_vesin
from nequip_core.structure import Structure, TypeMap

TYPES = TypeMap(("H", "O"), ("H", "O"))
CUTOFFS = np.full((2, 2), 3.0)


def molecule(**labels: Any) -> Structure:
    atoms = Atoms("OH2", positions=[[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    return replace(Structure.from_ase(atoms, source="f.xyz frame 0"), **labels)


def crystal(**labels: Any) -> Structure:
    atoms = Atoms("HO", positions=[[0, 0, 0], [1.5, 1.5, 1.5]], cell=[3.0, 4.0, 5.0], pbc=True)
    return replace(Structure.from_ase(atoms, source="f.xyz frame 1"), **labels)


def dataset(*structures: Structure) -> Dataset:
    return Dataset(structures, TYPES, CUTOFFS, make_vesin(3.0))


FORCES, STRESS = np.arange(9.0).reshape(3, 3), np.arange(1.0, 10.0).reshape(3, 3)


@pytest.fixture
def batch() -> Batch:
    """A labelled molecule, a crystal with stress only, a bare molecule, a molecule with a stress that means nothing."""
    return dataset(
        molecule(energy=-3.0, forces=FORCES, weight=2.0),
        crystal(stress=STRESS),
        molecule(),
        molecule(energy=0.0, stress=STRESS),
    ).batch(range(4))


def test_labels_and_masks(batch: Batch) -> None:
    labels = batch.labels
    assert labels.energy.tolist() == [-3.0, 0.0, 0.0, 0.0]
    assert labels.has_energy.tolist() == [True, False, False, True]
    assert labels.has_forces.tolist() == [True] * 3 + [False] * 8
    np.testing.assert_array_equal(labels.forces[:3], FORCES)
    assert not labels.forces[3:].any()
    # stress counts in structures that are periodic in all three directions
    assert labels.has_stress.tolist() == [False, True, False, False]
    np.testing.assert_array_equal(labels.stress[1], STRESS)
    assert not labels.stress[3].any()
    assert labels.weight.tolist() == [2.0, 1.0, 1.0, 1.0]
    assert all(tensor.dtype in (torch.float64, torch.bool) for tensor in labels)


def test_cells_and_volumes(batch: Batch) -> None:
    np.testing.assert_array_equal(batch.cell[1], np.diag([3.0, 4.0, 5.0]))
    assert batch.volume[1].item() == pytest.approx(60.0)
    assert batch.volume.isnan().tolist() == [True, False, True, True]
    assert batch.ids.tolist() == [0, 1, 2, 3]


def test_denominators(batch: Batch) -> None:
    assert [number.item() for number in batch.denominators] == [2.0, 9.0, 9.0]
    assert all(number.dtype == torch.float64 and number.dim() == 0 for number in batch.denominators)


def test_ids_are_those_of_the_data_set() -> None:
    data = dataset(molecule(), crystal(), molecule())
    assert data.batch([2, 0]).ids.tolist() == [2, 0]


def test_given_denominators_stay(batch: Batch) -> None:
    data = dataset(molecule(energy=1.0), crystal())
    assert data.batch([0, 1], batch.denominators).denominators == batch.denominators


def test_one_structure_is_not_changed_by_what_is_done_to_its_batch() -> None:
    structure = molecule(energy=1.0, forces=FORCES.copy())
    dataset(structure)[0].labels.forces.add_(1.0)
    np.testing.assert_array_equal(structure.forces, FORCES)


def test_to_a_device(batch: Batch) -> None:
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    leaves = [*moved.graph, moved.cell, moved.volume, *moved.labels, moved.ids, *moved.denominators]
    assert {leaf.device.type for leaf in leaves} == {"meta"}


def test_sizes() -> None:
    data = dataset(molecule(), crystal())
    assert data.atoms.tolist() == [3, 2]
    assert data.edges.tolist() == [one.graph.edge_index.shape[1] for one in data]
    assert len(data) == 2


def test_a_label_in_some_frames_is_enough() -> None:
    dataset(molecule(), molecule(energy=1.0)).require("energy")


def test_no_forces_names_file_and_key() -> None:
    with pytest.raises(InputError, match=r"f\.xyz: no frame has forces.*data\.keys\.forces"):
        dataset(molecule(energy=1.0), molecule(energy=2.0)).require("energy", "forces")


def test_stress_of_frames_that_are_not_periodic_is_no_stress() -> None:
    with pytest.raises(InputError, match="stress"):
        dataset(molecule(stress=STRESS)).require("stress")


def test_an_unknown_element_is_named_with_its_frame() -> None:
    with pytest.raises(InputError, match=r"f\.xyz frame 9: .*Si"):
        dataset(molecule(), replace(Structure.from_ase(bulk("Si")), source="f.xyz frame 9"))


def test_overlapping_atoms_are_named_with_their_frame() -> None:
    with pytest.raises(InputError, match=r"f\.xyz frame 0: atoms"):
        dataset(molecule(positions=np.zeros((3, 3))))


def test_making_a_batch_takes_far_less_than_a_step() -> None:
    """64 atoms of silicon: a training step takes 20 ms."""
    types = TypeMap(("Si",), ("Si",))
    silicon = [Structure.from_ase(bulk("Si", cubic=True) * (2, 2, 2))] * 5
    data = Dataset(silicon, types, np.full((1, 1), 5.0), make_vesin(5.0))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        data.batch(range(5))
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3


def test_a_batch_is_the_graphs_of_its_structures_one_after_the_other(
    rng: np.random.Generator, random_structure: Callable[..., Structure]
) -> None:
    structures = [random_structure(rng, 2 + n, periodic=n % 2 == 0) for n in range(6)]
    data = dataset(*structures)
    chosen = [4, 1, 5, 1]
    expected = collate([from_structure(structures[n], TYPES, CUTOFFS, make_vesin(3.0)) for n in chosen])
    for name, tensor in data.batch(chosen).graph._asdict().items():
        torch.testing.assert_close(tensor, getattr(expected, name), rtol=0, atol=1e-13, msg=name)


def test_a_structure_is_the_same_in_every_batch(
    rng: np.random.Generator, random_structure: Callable[..., Structure]
) -> None:
    data = dataset(*(random_structure(rng, 5) for _ in range(3)))
    alone, among = data[1].graph, data.batch([0, 1, 2]).graph
    edges = slice(int(among.row_ptr[5]), int(among.row_ptr[10]))
    assert torch.equal(among.edge_shift[edges], alone.edge_shift)


def test_atoms_without_neighbours() -> None:
    far = replace(molecule(), positions=np.array([[0, 0, 0], [50.0, 0, 0], [0, 1, 0]]))
    graph = dataset(far, molecule(), far).batch([0, 1, 2]).graph
    assert graph.row_ptr.diff().tolist() == [1, 0, 1, 2, 2, 2, 1, 0, 1]
    assert dataset(Structure.from_ase(Atoms("H")))[0].graph.edge_index.shape == (2, 0)


def test_without_labels_a_batch_counts_nothing() -> None:
    labels = dataset(molecule(energy=1.0, forces=FORCES)).batch([0], counts=False).labels
    assert not labels.has_energy.any()
    assert not labels.has_forces.any()
    assert labels.energy.item() == 0


def test_edges_come_from_the_cache(tmp_path: Path) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError("computed again")

    said: list[str] = []
    cache = Cache(tmp_path, say=said.append)
    first = Dataset([molecule(), crystal()], TYPES, CUTOFFS, make_vesin(3.0), cache=cache)
    second = Dataset([molecule(), crystal()], TYPES, CUTOFFS, refuse, cache=cache)
    for one, other in zip(first.batch([0, 1]).graph, second.batch([0, 1]).graph, strict=True):
        assert torch.equal(one, other)
    # another geometry, order, cut-off or list is another file
    for structures, cutoffs, key in (
        ([crystal(), molecule()], CUTOFFS, {}),
        ([molecule()], CUTOFFS, {}),
        ([molecule(), crystal()], CUTOFFS - 0.1, {}),
        ([molecule(), crystal()], CUTOFFS, {"list": "matscipy"}),
    ):
        with pytest.raises(AssertionError, match="computed again"):
            Dataset(structures, TYPES, cutoffs, refuse, cache=cache, key=key)
    assert said == []


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int | None]] = []
    Dataset(
        [molecule()] * 2,
        TYPES,
        CUTOFFS,
        make_vesin(3.0),
        progress=lambda what, done, total=None: told.append((what, done, total)),
    )
    assert told == [("neighbour lists", 1, 2), ("neighbour lists", 2, 2)]


def test_stresses_of_molecules_are_not_enough_for_a_stress_loss() -> None:
    with pytest.raises(InputError, match=r"f\.xyz: 1 frames have a stress, but none is periodic in all three"):
        dataset(molecule(stress=STRESS), crystal()).require("stress")
