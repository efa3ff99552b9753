"""A neighbour list of tensors, on the CPU or a CUDA device, for many structures at once, in torch's own operators.

Each structure's lattice is cut into boxes along its lattice vectors, and its atoms are sorted by box. An atom's
neighbours are in boxes nearby, whose atoms are consecutive and found by a binary search for the box's number: there is
no table of boxes, so that atoms may be as far apart as they like. Boxes beyond the lattice are boxes of an image; a
lattice smaller than the cut-off is one box with many images. A direction without period has boxes whose numbers begin
anew after `FOLD`; what then seems near by its number is too far by its distance.

Each pair is looked for from one side and written down from both. Lattices are planned on the host, where nine numbers a
structure cost less than launches; the number of candidates and that of pairs are read back, nothing else. `FixedList`
reads back nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from nequip_core.errors import InputError
from nequip_core.neighbors.libraries import Pairs
from nequip_core.structure import Floats, Ints

DEVICE = "device"
"""Its name among the lists of plugins."""

FOLD = 1024
"""Boxes of a direction: at most, or until their numbers begin anew where there is no period."""

FINENESS = (0, 1, 2)
"""Boxes per cut-off; 0: one box for all, so that every atom is compared with every other."""

DENSITY = 0.1
"""Atoms per Å³ where a structure has no volume that would tell, about that of water. A matter of speed alone."""

SEARCH = 2.0
"""Cost of looking for a box, in comparisons of two atoms."""

MARGIN = 1e-9
"""Relative; beyond the distance that was asked for, so that no rounding loses a pair."""

MOST_IMAGES = 1 << 20
"""A cell of which an atom sees more images is no cell that somebody means."""

SEARCHES_AT_ONCE = 1 << 21
CANDIDATES_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 23}
"""Each takes about 0.2 kB."""

MORE, SPARE = 1.1, 256
"""Room in a `FixedList` beyond the candidates and pairs that there are: share, and number."""

NARROWER = 0.97
"""Part of their widths that cells may come to before a `FixedList` would have to look into more boxes."""

Bools = NDArray[np.bool_]


class TensorPairs(NamedTuple):
    """Directed pairs within a distance, sorted by centre, then neighbour, then image.

    Attributes:
        centre: atom that receives.
        neighbor: atom that sends.
        shift: the neighbour's image in multiples of the lattice vectors, whole numbers as float64: the vector from
            centre to neighbour is x_j - x_i + shift · cell.
    """

    centre: Int[Tensor, "pairs"]
    neighbor: Int[Tensor, "pairs"]
    shift: Float[Tensor, "pairs 3"]


class DeviceNeighborList:
    """Pairs within a distance, on the device of the positions.

    Args:
        reach: Å.
    """

    def __init__(self, reach: float) -> None:
        self.reach = reach

    def __call__(self, positions: Floats, cell: Floats, pbc: Bools) -> Pairs:
        """The pairs of one structure in NumPy, as `nequip_core.neighbors.NeighborList` has it."""
        x = torch.tensor(positions, dtype=torch.float64)
        centre, neighbor, shift = self.pairs(x, cell[None], pbc[None], np.array([len(positions)]))
        vectors = x[neighbor] - x[centre] + shift @ torch.from_numpy(_periodic(cell, pbc))
        within = vectors.norm(dim=1) < self.reach
        return Pairs(centre[within].numpy(), neighbor[within].numpy(), shift[within].long().numpy())

    def pairs(self, positions: Float[Tensor, "atoms 3"], cells: Floats, pbc: Bools, atoms: Ints) -> TensorPairs:
        """The pairs of B structures, and perhaps some that are a billionth farther apart.

        Args:
            positions: of all structures, one after the other, Å, float64 and finite.
            cells: [B, 3, 3], Å, finite; rows that are not periodic do not matter.
            pbc: [B, 3].
            atoms: [B], their number in each structure.

        Raises:
            InputError: a cell has no volume where it is periodic, or an atom sees more than a million of its images.
        """
        if len(positions) == 0:
            none = torch.zeros(0, dtype=torch.int64, device=positions.device)
            return TensorPairs(none, none, positions.new_zeros(0, 3))
        reach = self.reach * (1 + MARGIN)
        plan = _plan(cells, pbc, atoms, reach, positions.device)
        boxed = _sort(positions, _structure(atoms, positions.device), plan)
        centre, neighbor, shift, rank = (torch.cat(column) for column in zip(*_half(boxed, plan, reach), strict=True))
        return _both_sides(centre, neighbor, shift, rank, len(positions), plan.images)

    def fixed(self, positions: Float[Tensor, "atoms 3"], cells: Floats, pbc: Bools, atoms: Ints) -> FixedList | None:
        """The same for positions, and perhaps cells, that are to come; None: no atoms, or too much at once.

        Args:
            positions: [N, 3] Å, float64 and finite; they tell how much room there must be.
            cells: [B, 3, 3], Å.
            pbc: [B, 3].
            atoms: [B], their number in each structure.

        Raises:
            InputError: as `pairs`.
        """
        if len(positions) == 0:
            return None
        made = FixedList(self.reach * (1 + MARGIN), cells, pbc, atoms, positions.device)
        return made if made.make_room(positions) else None


class FixedPairs(NamedTuple):
    """Pairs as `TensorPairs` has them, then rows that are none: from the number of atoms to itself.

    Attributes:
        centre: atom that receives.
        neighbor: atom that sends.
        shift: see `TensorPairs`.
        number: how many rows are pairs.
        lacking: how many there was no room for; if any, pairs are missing.
    """

    centre: Int[Tensor, "rows"]
    neighbor: Int[Tensor, "rows"]
    shift: Float[Tensor, "rows 3"]
    number: Int[Tensor, "1"]
    lacking: Int[Tensor, "1"]


class FixedList:
    """Pairs of structures as `DeviceNeighborList` lists them, in tensors whose sizes stay.

    Nothing is read back and nothing comes from the host, so that it can be recorded (`nequip_core.recording`). What it
    reads besides the positions it keeps itself.

    Args:
        reach: Å, with the margin for rounding.
        cells: [B, 3, 3], Å.
        pbc: [B, 3].
        atoms: [B].
        device: of positions.
    """

    def __init__(self, reach: float, cells: Floats, pbc: Bools, atoms: Ints, device: torch.device) -> None:
        self._reach, self._cells, self._pbc = reach, cells.copy(), pbc
        self._plan = _plan(cells, pbc, atoms, reach, device, NARROWER)
        self._structure = _structure(atoms, device)
        self._searches = int((self._plan.searches * atoms).sum())
        self._candidates = self._half = 0

    @property
    def lattice(self) -> Float[Tensor, "B 3 3"]:
        """The cells, zero where not periodic; always the same memory."""
        return self._plan.cells

    def move_to(self, cells: Floats) -> bool:
        """List pairs in these cells from now on; False: for them one would have to look into more boxes.

        Raises:
            InputError: a cell has no volume where it is periodic.
        """
        if np.array_equal(cells, self._cells):
            return True
        span = _span(cells, self._pbc)
        if (_look_for(self._plan.cut, span.height, self._reach) > self._plan.near)[self._pbc].any():
            return False
        self._cells = cells.copy()
        rows = np.stack([_periodic(cells, self._pbc), span.inverse], axis=1).reshape(len(cells), 18)
        self._plan.rows.copy_(torch.from_numpy(rows), non_blocking=True)  # what else a plan has stays
        return True

    def make_room(self, positions: Float[Tensor, "atoms 3"]) -> bool:
        """For the candidates and pairs that there are, and some more; False: they are too many."""
        if self._searches > SEARCHES_AT_ONCE:
            return False
        boxed, looked = self._look(positions)
        self._candidates = int(MORE * int(looked.held.sum())) + SPARE
        if self._candidates > CANDIDATES_AT_ONCE[positions.device.type]:
            return False
        *_, near, _ = self._compare(boxed, looked)
        self._half = int(MORE * int(near.sum())) + SPARE
        return True

    def __call__(self, positions: Float[Tensor, "atoms 3"]) -> FixedPairs:
        """The pairs; positions as `DeviceNeighborList.pairs` takes them. What is not finite has pairs of any kind."""
        boxed, looked = self._look(positions)
        search, other, near, candidates = self._compare(boxed, looked)
        place, used, pairs = marked(near, self._half)
        centre, neighbor, shift, rank = _write(boxed, self._plan, looked, search[place], other[place])
        # Sorted, what is no pair comes last.
        centre, neighbor = (index.masked_fill(~used, len(positions)) for index in (centre, neighbor))
        sides = _both_sides(centre, neighbor, shift, rank, len(positions), self._plan.images)
        lacking = (candidates - self._candidates).clamp(min=0) + (pairs - self._half).clamp(min=0)
        return FixedPairs(*sides, 2 * pairs.clamp(max=self._half), lacking)

    def _compare(self, boxed: _Boxed, looked: _Searches) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Search and sorted atom of each candidate, whether it is a pair, and [1] how many candidates there are."""
        until = looked.held.cumsum(0)
        number = torch.arange(self._candidates, device=until.device)
        search = torch.searchsorted(until, number, right=True).clamp(max=self._searches - 1)
        other = ((looked.first - until + looked.held)[search] + number).clamp(0, len(boxed.atom) - 1)
        near = _near(boxed, looked, search, other, self._reach) & (number < until[-1:])
        return search, other, near, until[-1:]

    def _look(self, positions: Tensor) -> tuple[_Boxed, _Searches]:
        boxed = _sort(positions, self._structure, self._plan)
        return boxed, _look(0, len(positions), self._searches, boxed, self._plan)


def marked(marks: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where marks are, without waiting for their number: [room] places, whether each is one, and [1] how many are."""
    upto = marks.cumsum(0)
    number = torch.arange(room, device=marks.device)
    place = torch.searchsorted(upto, number, right=True).clamp(max=len(marks) - 1)
    return place, number < upto[-1:], upto[-1:]


def make_device(cutoff: float, skin: float = 0.0) -> DeviceNeighborList:
    """Our own cell list. Any periodicity, cells smaller than the cut-off, atoms outside the cell; batched."""
    return DeviceNeighborList(cutoff + skin)


class _Plan(NamedTuple):
    """How the lattices of B structures are cut into boxes: first four on the host, tensors on the device.

    Attributes:
        atoms: [B] their number.
        searches: [B] boxes that each atom looks into: its own, and one of each two that lie opposite.
        cut: [B, 3] number of boxes.
        near: [B, 3] how far atoms look, in boxes.
        rows: [B, 18], of which cells and inverse are views.
        cells: [B, 3, 3] lattice vectors, Å; zero where not periodic.
        inverse: [B, 3, 3]; positions · inverse are coordinates along the lattice vectors, or Å where not periodic.
        periodic: [B, 3], 1 or 0.
        boxes: [B, 3] ``cut``.
        scale: [B, 3] boxes per unit of the coordinates.
        number: [B], ``searches``.
        first: [B] row of ``offsets`` where they begin.
        offsets: [rows, 3] from an atom's box to the other.
        rank: [rows, 2] place of the offset, and of the opposite one, among all around a box, in the order of images.
        images: more than any rank.
    """

    atoms: Ints
    searches: Ints
    cut: Floats
    near: Floats
    rows: Tensor
    cells: Tensor
    inverse: Tensor
    periodic: Tensor
    boxes: Tensor
    scale: Tensor
    number: Tensor
    first: Tensor
    offsets: Tensor
    rank: Tensor
    images: int


def _plan(cells: Floats, pbc: Bools, atoms: Ints, reach: float, device: torch.device, narrower: float = 1.0) -> _Plan:
    """For these cells, and those whose widths are ``narrower`` of theirs and more."""
    span = _span(cells, pbc)
    cuts = [_cut(fineness, span, pbc, atoms, reach, narrower) for fineness in FINENESS]
    boxes, near, cost = (np.stack(column) for column in zip(*cuts, strict=True))
    best = cost.argmin(axis=0)
    boxes, near = boxes[best, np.arange(len(atoms))], near[best, np.arange(len(atoms))]
    _refuse(
        (2 * near + 1).prod(axis=1) > MOST_IMAGES, cells, f"has more than {MOST_IMAGES} images within {reach:.3g} Å"
    )
    kinds, kind = np.unique(near, axis=0, return_inverse=True)
    tables = [_offsets(one) for one in kinds]
    lengths = np.array([len(table) for table in tables])
    searches, first = lengths[kind.reshape(-1)], (lengths.cumsum() - lengths)[kind.reshape(-1)]
    scale = np.where(pbc, boxes, np.array(FINENESS)[best, None] / reach)
    # Two copies to the device are quicker than nine.
    flat = [
        array.reshape(len(atoms), -1)
        for array in (_periodic(cells, pbc), span.inverse, pbc, boxes, scale, searches, first)
    ]
    rows, columns = torch.from_numpy(np.concatenate(flat, axis=1)).to(device).split([18, 11], dim=1)
    periodic, parts, per_unit, number, begin = columns.split([3, 3, 3, 1, 1], dim=1)
    table = torch.from_numpy(np.concatenate(tables)).to(device)
    return _Plan(
        atoms=atoms,
        searches=searches,
        cut=boxes,
        near=near,
        rows=rows,
        cells=rows[:, :9].unflatten(1, (3, 3)),
        inverse=rows[:, 9:].unflatten(1, (3, 3)),
        periodic=periodic,
        boxes=parts,
        scale=per_unit,
        number=number.squeeze(1).long(),
        first=begin.squeeze(1).long(),
        offsets=table[:, :3],
        rank=table[:, 3:].long(),
        images=int(2 * lengths.max() - 1),
    )


class _Span(NamedTuple):
    """What lattices are like.

    Attributes:
        inverse: [B, 3, 3] as in a plan.
        height: [B, 3] distance of the lattice planes, Å.
        volume: [B] Å³.
    """

    inverse: Floats
    height: Floats
    volume: Floats


def _span(cells: Floats, pbc: Bools) -> _Span:
    basis = _spanning(cells, pbc)
    volume = abs(np.linalg.det(basis))
    _refuse(volume <= 1e-12 * np.linalg.norm(basis, axis=2).prod(axis=1), cells, "has no volume where it is periodic")
    inverse = np.asarray(np.linalg.inv(basis), dtype=np.float64)
    height: Floats = 1 / np.linalg.norm(inverse, axis=1)
    return _Span(inverse, height, volume)


def _look_for(boxes: Floats, height: Floats, reach: float) -> Floats:
    """[B, 3] boxes beyond its own that an atom looks into, where it is periodic."""
    found: Floats = np.ceil(reach * boxes / height)
    return found


def _cut(
    fineness: int, span: _Span, pbc: Bools, atoms: Ints, reach: float, narrower: float
) -> tuple[Floats, Floats, Floats]:
    """Boxes of at least reach / fineness: [B, 3] their number, [B, 3] how far to look, [B] what it costs an atom."""
    boxes = np.where(pbc, np.clip(np.floor(fineness * span.height / reach), 1, FOLD), FOLD if fineness else 1)
    near = np.where(pbc, _look_for(boxes, narrower * span.height, reach), fineness)
    # Atoms in one box: its share of all, and no more than its space can hold.
    parts = np.where(pbc, boxes, 1).prod(axis=1)
    held = atoms / parts
    if fineness:
        space = span.volume / parts * (reach / fineness) ** (~pbc).sum(axis=1)
        held = np.where(pbc.all(axis=1), held, np.minimum(held, DENSITY * space))
    return boxes, near, (2 * near + 1).prod(axis=1) * (SEARCH + held)


def _offsets(near: Floats) -> Floats:
    """[rows, 5]: none, and of the others within ``near`` those after it; their rank, and that of the opposite one."""
    ranges = [np.arange(-distance, distance + 1) for distance in near]
    table = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    rank = np.arange(len(table))
    return np.column_stack([table, rank, rank[::-1]])[len(table) // 2 :]


def _refuse(wrong: Bools, cells: Floats, what: str) -> None:
    if wrong.any():
        number = int(wrong.argmax())
        raise InputError(
            f"The cell {cells[number].tolist()} of structure {number} {what}. Expected three independent lattice "
            "vectors in Å where it is periodic; check cell, units and periodicity."
        )


def _periodic(cells: Floats, pbc: Bools) -> Floats:
    """The cells with zero rows where they are not periodic."""
    rows: Floats = np.where(pbc[..., None], cells, 0.0)
    return rows


def _spanning(cells: Floats, pbc: Bools) -> Floats:
    """The cells with unit vectors, orthogonal to all others, where they are not periodic. [B, 3, 3]."""
    if pbc.all():
        return cells
    order = np.argsort(~pbc, axis=1, kind="stable")  # periodic ones first: the rest of Q is orthogonal to them
    rows = np.take_along_axis(_periodic(cells, pbc), order[:, :, None], axis=1)
    complement = np.linalg.qr(rows.swapaxes(1, 2), mode="complete")[0].swapaxes(1, 2)
    back = np.argsort(order, axis=1)
    basis: Floats = np.where(pbc[:, :, None], cells, np.take_along_axis(complement, back[:, :, None], axis=1))
    return basis


class _Boxed(NamedTuple):
    """Atoms sorted by structure and box, moved into their cells.

    Attributes:
        key: number of the box, ascending.
        atom: which atom it is.
        structure: its structure.
        box: where its box lies, counted from the cell's corner.
        image: lattice vectors by which it was moved.
        positions: Å.
    """

    key: Int[Tensor, "atoms"]
    atom: Int[Tensor, "atoms"]
    structure: Int[Tensor, "atoms"]
    box: Float[Tensor, "atoms 3"]
    image: Float[Tensor, "atoms 3"]
    positions: Float[Tensor, "atoms 3"]


def _structure(atoms: Ints, device: torch.device) -> Int[Tensor, "atoms"]:
    """The structure of each atom, from their number in each structure."""
    number = torch.from_numpy(atoms).to(device)
    return torch.arange(len(atoms), device=device).repeat_interleave(number, output_size=int(atoms.sum()))


def _sort(positions: Float[Tensor, "atoms 3"], structure: Int[Tensor, "atoms"], plan: _Plan) -> _Boxed:
    coordinates = times(positions, plan.inverse, structure)
    box = (coordinates * plan.scale[structure]).floor()
    boxes = plan.boxes[structure]
    turn = (box / boxes).floor()
    box = box - turn * boxes
    image = turn * plan.periodic[structure]
    moved = positions - times(image, plan.cells, structure)
    key, atom = _key(structure, box).sort()
    return _Boxed(key, atom, structure[atom], box[atom], image[atom], moved[atom])


def _key(structure: Int[Tensor, "rows"], box: Float[Tensor, "rows 3"]) -> Int[Tensor, "rows"]:
    x, y, z = box.long().unbind(1)
    return ((structure * FOLD + x) * FOLD + y) * FOLD + z


def times(rows: Float[Tensor, "rows 3"], matrices: Float[Tensor, "B 3 3"], of_row: Int[Tensor, "rows"]) -> Tensor:
    """Each row times the matrix of its structure."""
    if len(matrices) == 1:
        return rows @ matrices[0]
    return (rows.unsqueeze(2) * matrices[of_row]).sum(1)


def _half(boxed: _Boxed, plan: _Plan, reach: float) -> Iterator[tuple[Tensor, ...]]:
    """Centre, neighbour, shift and rank of each pair, from one of its sides."""
    of_atom = np.repeat(plan.searches, plan.atoms)  # structures stay in their order when atoms are sorted
    until = of_atom.cumsum()
    start = 0
    while start < len(of_atom):
        done = until[start] - of_atom[start]
        end = max(start + 1, int(np.searchsorted(until, done + SEARCHES_AT_ONCE, side="right")))
        yield from _pairs_of(start, end, int(until[end - 1] - done), boxed, plan, reach)
        start = end


def _pairs_of(
    start: int, end: int, searches: int, boxed: _Boxed, plan: _Plan, reach: float
) -> Iterator[tuple[Tensor, ...]]:
    """The same for the atoms from ``start`` to ``end`` of the sorted ones, with the number of their searches."""
    looked = _look(start, end, searches, boxed, plan)
    for search, other in _candidates(looked.first, looked.held):
        near = _near(boxed, looked, search, other, reach).nonzero().squeeze(1)
        yield _write(boxed, plan, looked, search[near], other[near])


class _Searches(NamedTuple):
    """What sorted atoms find in boxes nearby.

    Attributes:
        atom: who looks.
        offset: row of the plan's offsets.
        image: of the box, in lattice vectors.
        to_image: Å; with the position of an atom in the box, the vector from who looks to that atom.
        first: the first atom there.
        held: how many there are.
    """

    atom: Int[Tensor, "searches"]
    offset: Int[Tensor, "searches"]
    image: Float[Tensor, "searches 3"]
    to_image: Float[Tensor, "searches 3"]
    first: Int[Tensor, "searches"]
    held: Int[Tensor, "searches"]


def _look(start: int, end: int, searches: int, boxed: _Boxed, plan: _Plan) -> _Searches:
    """The searches of the atoms from ``start`` to ``end``, and their number."""
    device = boxed.positions.device
    number = plan.number[boxed.structure[start:end]]
    row = torch.arange(end - start, device=device).repeat_interleave(number, output_size=searches)
    which = torch.arange(searches, device=device) - (number.cumsum(0) - number)[row]  # of an atom's searches
    atom = row + start
    structure = boxed.structure[atom]
    offset = plan.first[structure] + which
    box = boxed.box[atom] + plan.offsets[offset]
    boxes = plan.boxes[structure]
    turn = (box / boxes).floor()
    key = _key(structure, box - turn * boxes)
    image = turn * plan.periodic[structure]
    # In an atom's own box only those after it count: each pair once.
    first = torch.where(which == 0, atom + 1, torch.searchsorted(boxed.key, key))
    held = torch.searchsorted(boxed.key, key, right=True) - first
    return _Searches(atom, offset, image, times(image, plan.cells, structure) - boxed.positions[atom], first, held)


def _near(boxed: _Boxed, looked: _Searches, search: Tensor, other: Tensor, reach: float) -> Tensor:
    """Whether each candidate is a pair."""
    vector = boxed.positions[other].add_(looked.to_image[search]).square_()
    return vector[:, 0] + vector[:, 1] + vector[:, 2] < reach**2


def _write(
    boxed: _Boxed, plan: _Plan, looked: _Searches, search: Tensor, other: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre, neighbour, shift and rank of candidates."""
    one = looked.atom[search]
    shift = looked.image[search] + boxed.image[one] - boxed.image[other]
    return boxed.atom[one], boxed.atom[other], shift, plan.rank[looked.offset[search]]


def _candidates(first: Int[Tensor, "searches"], held: Int[Tensor, "searches"]) -> Iterator[tuple[Tensor, Tensor]]:
    """The search and the sorted atom of each candidate, as many at once as memory is meant for."""
    until = held.cumsum(0)
    most = CANDIDATES_AT_ONCE[held.device.type]
    total = int(until[-1])
    number = min(max(1, -(-total // most)), len(held))
    parts = np.linspace(0, len(held), number + 1).astype(np.int64)
    ends = [total] if number == 1 else until[torch.from_numpy(parts[1:] - 1).to(held.device)].tolist()
    begin = 0
    for start, end, upto in zip(parts[:-1], parts[1:], ends, strict=True):
        search = torch.arange(start, end, device=held.device)
        search = search.repeat_interleave(held[start:end], output_size=upto - begin)
        yield search, (first - until + held)[search] + torch.arange(begin, upto, device=held.device)
        begin = upto


def _both_sides(centre: Tensor, neighbor: Tensor, shift: Tensor, rank: Tensor, atoms: int, images: int) -> TensorPairs:
    """Each pair and its opposite, sorted."""
    there = (centre * atoms + neighbor) * images + rank[:, 0]
    back = (neighbor * atoms + centre) * images + rank[:, 1]
    order = torch.cat([there, back]).argsort()
    return TensorPairs(
        torch.cat([centre, neighbor])[order], torch.cat([neighbor, centre])[order], torch.cat([shift, -shift])[order]
    )
