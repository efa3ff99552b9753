"""Recorded steps: the numbers of steps that are not, however atoms, cells and systems change."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nequip_core import recorded_steps
from nequip_core.errors import CheckError, InputError
from nequip_core.graph import Graph
from nequip_core.moving import MovingPotential
from nequip_core.narrow import Narrowing
from nequip_core.neighbors import DEVICE
from nequip_core.neighbors.device import FixedList
from nequip_core.plugins.manager import load_registry
from nequip_core.potential import Prediction
from nequip_core.recording import Function, Recording
from nequip_core.structure import Structure
from nequip_core.testing import systems
from nequip_core.testing.checks import Case, make_case
from nequip_core.testing.recordings import Repeating

LIST = load_registry().neighbor_lists[DEVICE]
SKIN = 0.6


@pytest.fixture(scope="module", params=["nequip", "allegro"])
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(load_registry().models[request.param], {"zbl": True})


def assert_in_memory(graph: Graph) -> None:
    """What kernels read and write is there, whatever becomes of it."""
    edges, atoms = graph.edge_shift.shape[0], graph.types.shape[0]
    for index, end in ((graph.edge_index, atoms - 1), (graph.by_neighbor, edges - 1), (graph.structure_ptr, atoms)):
        assert ((index >= 0) & (index <= end)).all()
    for pointers in (graph.row_ptr, graph.neighbor_ptr):
        assert len(pointers) == atoms + 1
        assert (pointers.diff() >= 0).all()
        assert (pointers[0], pointers[-1]) == (0, edges)


def assert_valid(graph: Graph) -> None:
    """All that the sums of kernels rely on, for every row: those of torch on CUDA end with the last row, always."""
    assert_in_memory(graph)
    edges, atoms = graph.edge_shift.shape[0], graph.types.shape[0]
    centre, neighbor = graph.edge_index
    for index, pointers in ((centre, graph.row_ptr), (neighbor[graph.by_neighbor], graph.neighbor_ptr)):
        assert (index.diff() >= 0).all()
        assert pointers.tolist() == torch.searchsorted(index, torch.arange(atoms + 1)).tolist()
    assert graph.by_neighbor.sort()[0].tolist() == list(range(edges))
    assert (graph.structure.diff() >= 0).all()
    structures = torch.arange(len(graph.structure_ptr))
    assert graph.structure_ptr.tolist() == torch.searchsorted(graph.structure, structures).tolist()
    assert len(graph.positions) == len(graph.local) == len(graph.structure) == atoms == graph.structure_ptr[-1]


def loaded(case: Case, check: Callable[[Graph], None]) -> Any:
    def potential(*arguments: Any, **options: Any) -> Prediction:
        """In the form that compiled files have."""
        check(*arguments)
        with mock.patch("nequip_core.ops.reference.is_traced", return_value=True):
            return case.potential(*arguments, **options)

    narrowing = Narrowing(np.array(case.info.pair_cutoffs))
    return SimpleNamespace(
        potential=potential,
        info=case.info,
        device=torch.device("cpu"),
        narrow=lambda tensors: list(narrowing(*tensors)),
    )


def moving(
    case: Case,
    record: Callable[..., Recording],
    skin: float = SKIN,
    unit: float = 1.0,
    check: Callable[[Graph], None] = assert_valid,
) -> MovingPotential:
    return MovingPotential(loaded(case, check), LIST, skin=skin, unit=unit, record=record)


def predict(
    potential: MovingPotential, *structures: Structure, virials: bool = True, watched: Tensor | None = None
) -> Prediction:
    return potential.batch(
        np.concatenate([one.positions for one in structures]),
        np.concatenate([[systems.TYPES.index(name) for name in one.type_names or ()] for one in structures]),
        np.stack([one.cell for one in structures]),
        np.stack([one.pbc for one in structures]),
        np.array([len(one) for one in structures]),
        watched=watched,
        atomic_virial=virials,
    )


def assert_right(case: Case, received: Prediction, *structures: Structure) -> None:
    expected = case.potential(case.graph(*structures), atomic_virial=received.atomic_virial is not None)
    for name, got, want in zip(Prediction._fields, received, expected, strict=True):
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11, msg=lambda text, of=name: f"{of}: {text}")


def walked(structures: Sequence[Structure], rng: np.random.Generator, step: float) -> list[Structure]:
    return [
        systems.replaced(one, positions=one.positions + rng.uniform(-step, step, size=one.positions.shape))
        for one in structures
    ]


def test_a_walk(case: Case) -> None:
    rng, record = np.random.default_rng(5), Repeating()
    potential = moving(case, record)
    structures = [systems.crystal(), systems.molecule()]
    earlier: list[tuple[Prediction, Prediction]] = []
    for _ in range(30):
        structures = walked(structures, rng, 0.09)
        found = predict(potential, *structures)
        assert_right(case, found, *structures)
        earlier.append((found, Prediction(*(None if one is None else one.clone() for one in found))))
    assert record.recorded < 4 < potential.graph.builds  # lists after the first fit into its recording
    assert record.repeated > 10
    assert record.listed > record.names.count("list_neighbors") > 0  # once each to be compared
    for found, then in earlier:  # and stay what they were
        torch.testing.assert_close(list(found), list(then), rtol=0, atol=0)


def test_a_list_is_made_before_it_must_be(case: Case) -> None:
    """Of the steps that were recorded none is in vain where atoms go their way little by little."""
    record = Repeating()
    potential = moving(case, record)
    crystal, molecule = systems.crystal(), systems.molecule()
    direction = np.array([[1.0, 0, 0]] + [[0.0, 0, 0]] * (len(crystal) - 1))
    for n in range(40):
        now = systems.replaced(crystal, positions=crystal.positions + 0.02 * n * direction)
        assert_right(case, predict(potential, now, molecule), now, molecule)
    assert potential.graph.builds == 3  # the last by a recording, which was repeated before to be compared
    assert (record.names, record.listed) == (["_find_graph", "predict", "list_neighbors"], 2)
    # With the second step the step was recorded, and repeated to be compared; one more was launched, that with a list.
    assert record.repeated == 40 - 3 + 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda one: systems.replaced(one, cell=one.cell * 1.01), id="cell"),
        pytest.param(lambda one: systems.permuted(one, [1, 0, 2, 3]), id="order of types"),
        pytest.param(lambda one: systems.permuted(one, [0, 1, 2]), id="one atom less"),
        pytest.param(lambda one: systems.moved(one, np.array([[1, 0, -2], [0] * 3, [0] * 3, [0] * 3])), id="image"),
        pytest.param(
            lambda one: systems.replaced(one, positions=0.85 * one.positions, cell=0.85 * one.cell), id="dense"
        ),
    ],
)
def test_after_a_change(case: Case, change: Callable[[Structure], Structure]) -> None:
    record = Repeating()
    potential = moving(case, record)
    before = systems.crystal()
    for one in (before, before, before, change(before), change(before), change(before), before):
        assert_right(case, predict(potential, one), one)
    assert record.repeated >= 2


def test_more_edges_than_there_is_room_for(case: Case) -> None:
    """Atoms that come nearer within one list."""
    record = Repeating()
    rng = np.random.default_rng(0)
    potential = moving(case, record, skin=3.0, check=assert_in_memory)
    sparse = systems.structure(["H"] * 60, 3.2 * (np.stack(np.unravel_index(range(60), (5, 4, 3)), 1)))
    dense = systems.replaced(sparse, positions=0.78 * sparse.positions + rng.normal(scale=0.05, size=(60, 3)))
    middle = sparse.positions.mean(0)
    dense = systems.replaced(dense, positions=dense.positions - dense.positions.mean(0) + middle)
    assert potential._steps is not None
    potential._steps.reach = 15.0  # so that it is the edges that tell
    for one in (sparse, sparse, sparse):
        assert_right(case, predict(potential, one), one)
    counts = [case.graph(one).edge_shift.shape[0] for one in (sparse, dense)]
    assert counts[1] > 1.02 * counts[0] + 256
    assert_right(case, predict(potential, dense), dense)
    assert_right(case, predict(potential, dense), dense)
    assert record.recorded == 2


def along(
    case: Case, potential: MovingPotential, steps: int, by: float = 0.05, cell: float = 1.0, first: int = 0
) -> None:
    """One atom of a crystal goes its way, little by little."""
    crystal = systems.crystal()
    crystal = systems.replaced(crystal, cell=cell * crystal.cell, positions=cell * crystal.positions)
    for n in range(first, first + steps):
        positions = crystal.positions + by * n * np.array([[1.0, 0, 0], *[[0.0, 0, 0]] * (len(crystal) - 1)])
        now = systems.replaced(crystal, positions=positions)
        assert_right(case, predict(potential, now), now)


@pytest.mark.parametrize("moves", [True, False], ids=["same boxes", "more boxes"])
def test_lists_in_another_cell(case: Case, monkeypatch: pytest.MonkeyPatch, moves: bool) -> None:
    if not moves:
        monkeypatch.setattr(FixedList, "move_to", lambda it, cells: np.array_equal(cells, it._cells))
    record = Repeating()
    potential = moving(case, record)
    along(case, potential, 25)
    assert record.names.count("list_neighbors") == 1
    assert record.listed >= 2
    listed = record.listed
    along(case, potential, 25, cell=0.98)
    along(case, potential, 5)  # and back
    assert record.names.count("list_neighbors") == (1 if moves else 3)
    assert record.listed >= listed + 2


def test_a_cell_that_changes_with_each_step(case: Case) -> None:
    """As under a barostat: steps are recorded, and the list of each too."""
    record = Repeating()
    potential = moving(case, record)
    rng = np.random.default_rng(3)
    structures = [systems.crystal(), systems.molecule()]
    for _ in range(30):
        structures = walked(structures, rng, 0.05)
        strain = np.eye(3) + rng.normal(scale=5e-4, size=(3, 3))
        structures = [
            systems.replaced(one, positions=one.positions @ strain, cell=one.cell @ strain) for one in structures
        ]
        assert_right(case, predict(potential, *structures), *structures)
    assert potential.graph.builds == 30
    assert record.names == ["_find_graph", "predict", "list_neighbors"]
    # Three were launched: the first, that with which the step was recorded, and that with which its list was; both were
    # repeated to be compared.
    assert (record.repeated, record.listed) == (30 - 3 + 1, 30 - 3 + 1)


def test_without_room_in_another_cell(case: Case) -> None:
    """Edges that were launched in one cell do not serve in the other, though no atom has moved."""
    record = Repeating()
    potential = moving(case, record)
    along(case, potential, 15)
    assert potential._steps is not None
    assert potential._steps._list is not None
    potential._steps._list.edges._pairs._candidates = 3
    crystal, listed = systems.crystal(), potential.graph.listed  # type: ignore[union-attr]
    assert listed is not None
    one = systems.replaced(crystal, positions=listed.wide.positions.numpy().copy(), cell=1.01 * crystal.cell)
    repeated = record.listed
    assert_right(case, predict(potential, one), one)
    assert record.listed == repeated + 2  # in vain; and another one to be compared


def test_in_another_cell_what_is_wrong_is_said(case: Case) -> None:
    record = Repeating()
    potential = moving(case, record)
    along(case, potential, 25)
    crystal = systems.crystal()
    strained = systems.replaced(crystal, cell=1.001 * crystal.cell)
    positions = strained.positions.copy()
    positions[1] = positions[0] + 1e-3
    listed = record.listed
    with pytest.raises(InputError, match=r"atoms 0 and 1 are 0\.002"):
        predict(potential, systems.replaced(strained, positions=positions))
    assert record.listed == listed + 1
    for one in (strained, crystal, strained):
        assert_right(case, predict(potential, one), one)
    for cell in (np.full((3, 3), np.nan), np.zeros((3, 3))):
        with pytest.raises(InputError, match=r"not finite|no volume"):
            predict(potential, systems.replaced(crystal, cell=cell))
    assert_right(case, predict(potential, crystal), crystal)


def test_steps_of_a_cell_that_changes_much_are_recorded_now_and_then(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells that come near to each other and do not fit into one recording."""
    monkeypatch.setattr(recorded_steps, "SPARE", 1)
    record = Repeating()
    potential = moving(case, record, check=assert_in_memory)  # with more edges than there is room for, too
    for n in range(60):
        one = systems.crystal()
        factor = 1.009**n if n < 30 else 1.009 ** (60 - n)
        one = systems.replaced(one, cell=factor * one.cell, positions=factor * one.positions)
        assert_right(case, predict(potential, one), one)
    assert 2 <= record.recorded <= 1 + 60 / recorded_steps.STEPS_BETWEEN


def test_a_list_for_which_there_is_no_room_is_launched(case: Case) -> None:
    record = Repeating()
    potential = moving(case, record)
    steps = potential._steps
    assert steps is not None
    along(case, potential, 15)
    assert steps._list is not None
    steps._list.edges._pairs._candidates = 3  # all others are lacking
    builds, repeated = potential.graph.builds, record.listed
    along(case, potential, 25, by=0.1)
    assert potential.graph.builds > builds + 2
    assert record.listed > repeated + 1
    assert record.names.count("list_neighbors") == 2


def test_a_recorded_list_that_is_not_the_list_stops(case: Case) -> None:
    class Wrong(Repeating):
        def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Recording:
            made = super().__call__(function, inputs)

            def repeat() -> None:
                made.repeat()
                if function.__name__ == "list_neighbors":
                    steps._recorded.graph.inputs[4][1, 0] += 1  # type: ignore[union-attr]

            return Recording(made.inputs, made.outputs, repeat)

    potential = moving(case, Wrong())
    steps = potential._steps
    assert steps is not None
    with pytest.raises(CheckError, match=r"edge_index differs.*NEQUIP_RECORD_STEPS=0"):
        along(case, potential, 15)


def test_with_few_edges_the_next_list_is_launched(case: Case) -> None:
    """And all is recorded for as many."""
    record = Repeating()
    potential = moving(case, record)
    along(case, potential, 20, by=0.02)
    steps = potential._steps
    assert steps is not None
    assert steps._list is not None
    steps._room = steps._room._replace(fewest=10**6)
    listed, repeated = record.listed, record.repeated
    along(case, potential, 20, by=0.02, first=20)
    assert record.repeated == repeated + 20 - 2 + 1  # one launched with a list, one to record it, which was compared
    assert (record.listed, record.recorded) == (listed, 2)


def test_lists_of_a_list_that_can_not_are_launched(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("nequip_core.neighbors.DeviceNeighborList.fixed")
    record = Repeating()
    potential = moving(case, record)
    along(case, potential, 25)
    assert potential.graph.builds > 3
    assert record.names == ["_find_graph", "predict"]


@pytest.mark.parametrize("why", ["too many", "no memory"])
def test_what_can_not_be_listed_by_a_recording_is_tried_once(
    case: Case, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    tried: list[str] = []

    def make_room(fixed: FixedList, positions: Tensor) -> bool:
        tried.append(why)
        if why == "no memory":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return False

    monkeypatch.setattr(FixedList, "make_room", make_room)
    record = Repeating()
    potential = moving(case, record)
    along(case, potential, 25)
    assert potential.graph.builds > 3
    assert record.names == ["_find_graph", "predict"]
    assert len(tried) == 1
    assert ("no memory to record lists" in caplog.text) == (why == "no memory")


class Kept(Repeating):
    """Sees which memory is read that was there before, as a recording on a device reads it: by its address."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: dict[int, Function] = {}
        self.read: list[tuple[str, str, StorageWeakRef]] = []

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Recording:
        number, memory = len(self.functions), Memory(inputs)  # a recording keeps its inputs
        self.functions[number] = function
        with memory:
            function(inputs)
        self.read += [(function.__name__, *one) for one in memory.read]
        made = super().__call__(lambda given: self.functions[number](given), inputs)
        self.names[-1] = function.__name__
        return made


class Memory(TorchDispatchMode):
    """Which memory operators read that none of them made."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.read: list[tuple[str, StorageWeakRef]] = []
        # Kept, so that no other memory comes to the same number.
        self._made = {one.cdata: one for one in self._of(known)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is not torch.ops.aten.lift_fresh.default:  # a number of the host's
            self.read += [(str(func), one) for one in self._of((args, kwargs)) if one.cdata not in self._made]
        self._made |= {one.cdata: one for one in self._of(found)}
        return found

    def _of(self, tree: Any) -> list[StorageWeakRef]:
        tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
        return [StorageWeakRef(one.untyped_storage()) for one in tensors]


def test_what_recordings_read_is_kept(case: Case) -> None:
    """A recording on a device keeps nothing alive that it reads; who made it must."""
    record = Kept()
    potential = moving(case, record)
    along(case, potential, 25)
    assert {name for name, _, _ in record.read} == {"_find_graph", "predict", "list_neighbors"}
    assert potential._steps is not None
    record.functions.clear()
    gc.collect()
    lost = {(name, operator) for name, operator, one in record.read if one.expired()}
    assert not lost, lost


@pytest.mark.parametrize("what", ["other atoms", "far in the same cell", "another cell"])
def test_one_structure_after_another_is_never_recorded(case: Case, what: str) -> None:
    record = Repeating()
    potential = moving(case, record)
    crystal = systems.crystal()
    other = {
        "other atoms": systems.molecule(),
        "far in the same cell": systems.replaced(crystal, positions=crystal.positions[:, [1, 2, 0]]),
        "another cell": systems.replaced(crystal, positions=1.05 * crystal.positions, cell=1.05 * crystal.cell),
    }[what]
    for one in (crystal, other) * 3:
        assert_right(case, predict(potential, one), one)
    assert record.recorded == 0


def test_virials_when_they_are_asked_for(case: Case) -> None:
    potential = moving(case, Repeating())
    crystal = systems.crystal()
    for virials in (False, False, False, True, True, True, False):
        found = predict(potential, crystal, virials=virials)
        assert (found.atomic_virial is not None) == virials
        assert_right(case, found, crystal)


def test_fewer_edges_than_the_atoms_without_use_were_made_for(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one list it is right; the next list is recorded anew."""
    monkeypatch.setattr(recorded_steps, "SPARE", 1)
    record = Repeating()
    potential = moving(case, record, skin=3.0)
    assert potential._steps is not None
    crystal = systems.crystal()
    wider = systems.replaced(crystal, positions=1.25 * crystal.positions)
    for one in (crystal, crystal, wider):
        assert_right(case, predict(potential, one), one)
    assert (record.recorded, record.repeated, potential.graph.builds) == (1, 2, 1)
    counts = [case.graph(one).edge_shift.shape[0] for one in (crystal, wider)]
    assert counts[1] < potential._steps._room.fewest < counts[0]
    potential.graph.forget()  # type: ignore[union-attr]
    for _ in range(3):
        assert_right(case, predict(potential, wider), wider)
    assert record.recorded == 2
    assert potential._steps._room.fewest < counts[1]


class Launches(TorchDispatchMode):
    """The operators that compute something, in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[list[str]] = [[]]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.parts[-1].append(str(func))
        return func(*args, **(kwargs or {}))

    def begin(self) -> None:
        self.parts.append([])


def test_a_step_has_few_launches_besides_narrow_and_model(case: Case) -> None:
    record, launches = Repeating(), Launches()
    potential = moving(case, record)
    steps = potential._steps
    assert steps is not None
    x, box = torch.tensor(systems.crystal().positions), torch.eye(3)
    for _ in range(2):
        predict(potential, systems.crystal(), watched=box)
    of_steps = {name: getattr(steps, name) for name in ("narrow", "potential")}

    def between(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            launches.begin()
            found = function(*arguments, **options)
            launches.begin()
            return found

        return call

    with mock.patch.multiple(steps, **{name: between(function) for name, function in of_steps.items()}), launches:
        ahead = potential.ahead(x, watched=box)
        assert ahead is not None
        launches.begin()
        ahead.kept()
    before, _, between_them, _, after, kept = launches.parts
    assert before == ["aten._foreach_copy_.default", "aten.mul.Tensor"]
    of_the_cpu = {"aten.copy_.default", "aten.clone.default"}  # `Repeating`, and what is told
    between_them, after = ([name for name in names if name not in of_the_cpu] for names in (between_them, after))
    assert len(between_them) <= 10, between_them
    assert not after
    assert kept == ["aten._foreach_mul.Scalar"]


def test_another_box_is_told_by_the_device(case: Case) -> None:
    record = Repeating()
    potential = moving(case, record)
    crystal = systems.crystal()
    x, box = torch.tensor(crystal.positions), torch.eye(3)
    assert potential.ahead(x, watched=box) is None
    for _ in range(2):
        predict(potential, crystal, watched=box)
    same = potential.ahead(x, watched=box.clone())
    assert same is not None
    assert_right(case, same.prediction, crystal)
    assert same.holds()
    assert potential.ahead(x[:-1], watched=box) is None
    for other in (torch.eye(3) * 1.001, torch.full((3, 3), torch.nan)):
        ahead = potential.ahead(x, watched=other)
        assert ahead is not None
        assert not ahead.holds()
        assert potential.ahead(x, watched=box) is None  # until a step was launched
        predict(potential, crystal, watched=box)
    assert potential.ahead(x, watched=box) is not None
    assert record.recorded == 1


def test_positions_in_another_unit(case: Case) -> None:
    record = Repeating()
    potential = moving(case, record, unit=10.0)
    crystal = systems.crystal()
    for _ in range(4):
        found = predict(potential, systems.replaced(crystal, positions=crystal.positions / 10))
        assert_right(case, found, crystal)
    assert record.repeated == 3


def test_what_is_wrong_is_said(case: Case) -> None:
    potential = moving(case, Repeating(), skin=4.0)
    molecule = systems.molecule()
    for _ in range(3):
        predict(potential, systems.crystal(), molecule)
    positions = molecule.positions.copy()
    positions[3] = positions[0] + 1e-3
    with pytest.raises(InputError, match=r"structure 1: atoms 0 and 3 are 0\.002"):
        predict(potential, systems.crystal(), systems.replaced(molecule, positions=positions))
    positions[3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        predict(potential, systems.crystal(), systems.replaced(molecule, positions=positions))
    assert_right(case, predict(potential, systems.crystal(), molecule), systems.crystal(), molecule)


def test_a_recording_that_is_not_the_step_stops(case: Case) -> None:
    class Wrong(Repeating):
        def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Recording:
            made = super().__call__(function, inputs)

            def repeat() -> None:
                made.repeat()
                if not inputs:  # it is the model
                    made.outputs[2][-1] += 1e-3

            return Recording(made.inputs, made.outputs, repeat)

    potential = moving(case, Wrong())
    predict(potential, systems.crystal())
    with pytest.raises(CheckError, match=r"forces differs by .*NEQUIP_RECORD_STEPS=0"):
        predict(potential, systems.crystal())


def test_what_is_no_number_is_not_compared(case: Case) -> None:
    """The model's own fault is not said to be the recording's."""
    record = Repeating()
    potential = moving(case, record)
    usual = potential.potential.potential

    def broken(graph: Graph, **options: Any) -> Prediction:
        found = usual(graph, **options)
        return found._replace(forces=torch.full_like(found.forces, torch.nan))

    with mock.patch.object(potential.potential, "potential", broken):
        for _ in range(3):
            assert predict(potential, systems.crystal()).forces.isnan().all()
    assert record.repeated == 0


def test_without_memory_steps_are_launched(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    class Full(Repeating):
        def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Recording:
            super().__call__(function, inputs)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    record = Full()
    potential = moving(case, record)
    for _ in range(4):
        assert_right(case, predict(potential, systems.crystal()), systems.crystal())
    assert len(record.repeats) == 1
    assert "no memory to record steps" in caplog.text


def test_what_is_divided_is_not_recorded(case: Case) -> None:
    record = Repeating()
    potential = moving(case, record)
    potential.potential.taken = 1000  # as where memory asks for blocks of so many edges
    for _ in range(3):
        with mock.patch.object(potential.potential, "_take"):
            predict(potential, systems.crystal())
    assert record.recorded == 0


def test_without_atoms_or_edges(case: Case) -> None:
    potential = moving(case, Repeating())
    nothing = systems.structure([], np.zeros((0, 3)))
    alone = systems.structure(["H", "O"], [[0, 0, 0], [30.0, 0, 0]])
    for one in (nothing, nothing, alone, alone, alone):
        assert_right(case, predict(potential, one), one)
