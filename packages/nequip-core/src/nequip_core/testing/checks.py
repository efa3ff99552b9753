"""The laws that a potential obeys, one function each. A function returns nothing, or raises a `CheckError`.

Usable anywhere::

    from nequip_core.plugins.manager import load_registry
    from nequip_core.testing import checks

    checks.forces(checks.make_case(load_registry().models["nequip"]))

The weights are random and the energy scale is such that forces are of order 1 eV/Å, so tolerances mean what they say.
All is float64 unless the law is about float32. Step sizes are such that a law that is broken shows: differences of
1e-4 Å resolve derivatives to about 1e-7, and a jump at a cut-off can not hide behind a slope.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nequip_core.errors import CheckError
from nequip_core.export.package import Members, Provenance, manifest, pack_check, write_package
from nequip_core.graph import Graph, collate, from_structure
from nequip_core.models.base import EnergyModel, ModelConfig, ModelInfo, per_type
from nequip_core.models.build import build_model, model_info
from nequip_core.neighbors import make_matscipy
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import load_registry
from nequip_core.plugins.records import ModelEntry
from nequip_core.potential import Potential, stress
from nequip_core.structure import Floats, Structure, TypeMap
from nequip_core.testing import systems
from nequip_core.tracing import Sizes, axes, sample_graph, trace

EXACT = 1e-10
"""eV, eV/Å: what differs by the order of sums only."""

STEP = 1e-4
"""Å, or strain: of central differences."""

DERIVATIVE = 1e-5
"""eV/Å, eV: error of a derivative by central differences."""

COMMON_KEYS: Mapping[str, Any] = {
    "cutoff": systems.CUTOFF,
    "types": list(systems.TYPES),
    "elements": {"Ow": "O"},
    "atomic_energies": systems.ATOMIC_ENERGIES,
    "energy_scale": {"H": 1.3, "O": 0.6, "Ow": 1.0},
    "avg_num_neighbors": 6.0,
}
"""What every model's config gets here, unless a variation says otherwise."""


TRACED, SMALLEST, LARGER = Sizes(3, 23, 101), Sizes(2, 16, 64), Sizes(5, 37, 307)
"""Of the graphs at which `one_graph` traces and compares."""


class Outputs(NamedTuple):
    """A `nequip_core.potential.Prediction` with atomic virials, without gradients."""

    energy: Tensor
    atomic_energy: Tensor
    forces: Tensor
    virial: Tensor
    atomic_virial: Tensor


@dataclass(frozen=True)
class Case:
    """A model of `systems`' types with random weights that a check works on; see `make_case`.

    Attributes:
        entry: the architecture.
        config: resolved.
        potential: in evaluation mode.
    """

    entry: ModelEntry
    config: ModelConfig
    potential: Potential

    @property
    def info(self) -> ModelInfo:
        """The facts of the model."""
        return self.potential.model.info

    @cached_property
    def atomic_energies(self) -> Tensor:
        """E0 as configured, eV, [types]."""
        return per_type(self.config.atomic_energies, self.info.types)

    def graph(self, *structures: Structure) -> Graph:
        """The graph of a batch."""
        info = self.info
        type_map = TypeMap(info.types, info.elements)
        cutoffs, neighbor_list = np.array(info.pair_cutoffs), make_matscipy(info.cutoff)
        return collate([from_structure(one, type_map, cutoffs, neighbor_list) for one in structures])

    def predict(self, *structures: Structure) -> Outputs:
        """All outputs of a batch, atomic virials included."""
        return self.of_graph(self.graph(*structures))

    def of_graph(self, graph: Graph) -> Outputs:
        """All outputs of a graph."""
        prediction = self.potential(graph, atomic_virial=True)
        return Outputs(*(getattr(prediction, name).detach() for name in Outputs._fields))

    def as_dtype(self, dtype: str) -> Case:
        """The same weights in another dtype."""
        config = replace(self.config, dtype=dtype)
        model = _build(self.entry, config)
        model.load_state_dict(self.potential.model.state_dict())
        return Case(self.entry, config, Potential(model).eval())

    def write(self, path: Path) -> Path:
        """Write the model's package, as if it had been trained."""
        block, weights = asdict(self.config), dict(self.potential.model.state_dict())
        about = Provenance(model=block, data={}, config={}, versions={}, provider="nequip_core.testing")
        head = manifest(about, kind="raw", weights=weights, raw={})
        check, check_tensors = pack_check([], weights)
        write_package(
            path,
            Members(
                manifest=head,
                model=block,
                weights=weights,
                data={},
                metrics={},
                check=check,
                check_tensors=check_tensors,
            ),
        )
        return path


def make_case(entry: ModelEntry, keys: Mapping[str, Any] | None = None, *, seed: int = 0) -> Case:
    """A model with random weights, its ``tiny`` config, `COMMON_KEYS` and ``keys``, in float64.

    All weights are random, also those that start at zero, and the energy scale is such that the root mean square of
    the architecture's forces is 1 eV/Å.

    Raises:
        CheckError: the model's forces are zero or not finite.
    """
    given = {"dtype": "float64", **COMMON_KEYS, **entry.tiny, **(keys or {})}
    config: ModelConfig = entry.config.load()(**given)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = _build(entry, config)
        for weights in model.architecture.parameters():
            weights.add_(torch.randn_like(weights), alpha=0.1)
        bare = EnergyModel(model.architecture, model.info, scale=model.scale, shift=model.shift)
        forces = Case(entry, config, Potential(bare).eval()).predict(systems.molecule(), systems.crystal()).forces
        size = forces.square().mean().sqrt().item()
        if not 0 < size < np.inf:
            raise CheckError(f"The forces of {entry.name} with random weights have the root mean square {size} eV/Å.")
        model.scale.div_(size)
    return Case(entry, config, Potential(model).eval())


def _build(entry: ModelEntry, config: ModelConfig) -> EnergyModel:
    ops = Ops(load_registry().kernels, request="reference", dtype=model_info(config).torch_dtype)
    return build_model(entry, config, ops)


# Symmetries


def rotation(case: Case) -> None:
    """Energies stay, forces and virials turn with the structure."""
    for seed in range(2):
        _turns_with(case, _rotation(seed), "rotated")


def inversion(case: Case) -> None:
    """The same for reflections: the inversion, and an improper rotation."""
    _turns_with(case, -np.eye(3), "inverted")
    _turns_with(case, -_rotation(2), "reflected and rotated")


def no_inversion(case: Case) -> None:
    """Energies of mirror images differ: the model is chiral, as was said of it."""
    here, there = case.predict(systems.molecule()), case.predict(systems.transformed(systems.molecule(), -np.eye(3)))
    if abs((here.energy - there.energy).item()) < 1e-6:
        raise CheckError("The energy of the mirror image is the same, though the model was said to be chiral.")


def translation(case: Case) -> None:
    """Nothing changes when all atoms move by the same vector."""
    for name, one in systems.systems().items():
        there = systems.replaced(one, positions=one.positions + np.array([0.37, -11.2, 4.1]))
        _same(f"{name}, translated", case.predict(there), case.predict(one))


def lattice_shifts(case: Case) -> None:
    """Nothing changes when single atoms move by lattice vectors."""
    rng = np.random.default_rng(0)
    for name, one in systems.systems().items():
        there = systems.moved(one, rng.integers(-3, 4, size=(len(one), 3)))
        _same(f"{name}, atoms moved by lattice vectors", case.predict(there), case.predict(one))


def permutation(case: Case) -> None:
    """Another order of the atoms gives the outputs in that order."""
    rng = np.random.default_rng(0)
    for name, one in systems.systems().items():
        order = rng.permutation(len(one))
        here, there = case.predict(one), case.predict(systems.permuted(one, order))
        expected = here._replace(
            atomic_energy=here.atomic_energy[order], forces=here.forces[order], atomic_virial=here.atomic_virial[order]
        )
        _same(f"{name}, atoms in another order", there, expected)


def extensivity(case: Case) -> None:
    """A supercell is so many cells: atoms stay as they are, energy and virial multiply."""
    for name, one, repeats in (
        ("crystal", systems.crystal(), (1, 2, 1)),
        ("skewed", systems.skewed(), (2, 1, 3)),
        ("tiny", systems.tiny(), (2, 2, 2)),
        ("slab", systems.slab(), (2, 2, 1)),
    ):
        here, copies = case.predict(one), int(np.prod(repeats))
        expected = Outputs(
            energy=copies * here.energy,
            atomic_energy=here.atomic_energy.repeat(copies),
            forces=here.forces.repeat(copies, 1),
            virial=copies * here.virial,
            atomic_virial=here.atomic_virial.repeat(copies, 1, 1),
        )
        _same(f"{name}, supercell {repeats}", case.predict(systems.supercell(one, repeats)), expected)


# Batches


def batch(case: Case) -> None:
    """A structure in a batch gives what it gives alone, wherever it stands."""
    every = list(systems.systems().values())
    for structures in (every, every[::-1], [systems.atom("H"), systems.atom("O")]):
        singles = [case.predict(one) for one in structures]
        expected = Outputs(*(torch.cat(parts) for parts in zip(*singles, strict=True)))
        _same(f"batch of {len(structures)}", case.predict(*structures), expected)


def isolated_atom(case: Case) -> None:
    """An atom without neighbours has exactly its E0, feels no force, and makes no virial; alone, in a box, in a batch.

    In both dtypes: E0 is added in float64.
    """
    every = systems.systems()
    alone = [make(name) for name in case.info.types for make in (systems.atom, systems.atom_in_box)]
    mixed = [systems.molecule(), *alone[:3], every["with a lone atom"], *alone[3:], every["crystal"]]
    for dtype in ("float64", "float32"):
        one_case = case.as_dtype(dtype)
        for where, structures in ("in a batch of single atoms", alone), ("in a batch with others", mixed):
            graph = one_case.graph(*structures)
            out = one_case.of_graph(graph)
            lone = graph.row_ptr.diff() == 0
            assert int(lone.sum()) >= len(alone)
            expected = case.atomic_energies[graph.types]
            _close(f"{dtype}: energy of an atom {where}", out.atomic_energy[lone], expected[lone], 0.0)
            _close(f"{dtype}: force on an atom {where}", out.forces[lone], torch.zeros_like(out.forces[lone]), 0.0)
            _close(f"{dtype}: virial of an atom {where}", out.atomic_virial[lone], torch.zeros(1), 0.0)


def inputs_not_mutated(case: Case) -> None:
    """Graph and structures are as before, and a second call gives the same numbers bit for bit."""
    structures = list(systems.systems().values())
    arrays = [array.copy() for one in structures for array in (one.positions, one.numbers, one.cell, one.pbc)]
    graph = case.graph(*structures)
    copies = Graph(*(field.clone() for field in graph))
    first, second = case.of_graph(graph), case.of_graph(graph)
    for name, ours, before in zip(Graph._fields, graph, copies, strict=True):
        if not torch.equal(ours, before):
            raise CheckError(f"The model changed graph.{name}. Its inputs belong to the caller.")
    now = [array for one in structures for array in (one.positions, one.numbers, one.cell, one.pbc)]
    if not all(np.array_equal(a, b) for a, b in zip(now, arrays, strict=True)):
        raise CheckError("The model changed the arrays of a structure. Its inputs belong to the caller.")
    for name, ours, theirs in zip(Outputs._fields, first, second, strict=True):
        if not torch.equal(ours, theirs):
            raise CheckError(f"A second call with the same graph gave another {name}.")


# Derivatives


def forces(case: Case) -> None:
    """Forces are -dE/dx by central differences, of every kind of structure."""
    for name in ("molecule", "crystal", "skewed", "tiny", "slab", "wire", "with a lone atom"):
        one = systems.systems()[name]
        steps = STEP * np.eye(one.positions.size).reshape(-1, *one.positions.shape)
        slope = _slope(
            case, one, [systems.replaced(one, positions=one.positions + s * h) for s in (1, -1) for h in steps]
        )
        _close(f"{name}: forces against differences", case.predict(one).forces, -slope.reshape(-1, 3), DERIVATIVE)


def virial_and_stress(case: Case) -> None:
    """The virial is -dE/dstrain by central differences of atoms and cell; stress = dE/dstrain / V, in one batch."""
    names = ("molecule", "crystal", "skewed", "tiny", "slab", "wire")
    structures = [systems.systems()[name] for name in names]
    volumes = torch.tensor([np.nan if one.volume is None else one.volume for one in structures], dtype=torch.float64)
    out = case.predict(*structures)
    stresses = stress(out.virial, volumes)
    for n, (name, one) in enumerate(zip(names, structures, strict=True)):
        # x_b becomes x_b + x_a strain_ab.
        strains = STEP * np.eye(9).reshape(9, 3, 3)
        slope = _slope(case, one, [systems.transformed(one, np.eye(3) + s * h.T) for s in (1, -1) for h in strains])
        slope = slope.reshape(3, 3)
        _close(f"{name}: virial against differences", out.virial[n], -slope, 3 * DERIVATIVE)
        if one.volume is None:
            if not stresses[n].isnan().all():
                raise CheckError(f"{name}: stress is {stresses[n].tolist()}, expected NaN: there is no volume.")
        else:
            _close(f"{name}: stress against differences", stresses[n], slope / one.volume, DERIVATIVE)


def atomic_virials(case: Case) -> None:
    """W_k = -sum of r_e (x) dE/dr_e over the edges with neighbour k, dE/dr_e by differences; their sum: the virial."""
    for name, one in ("molecule", systems.permuted(systems.molecule(), [4, 1, 0, 2])), ("tiny", systems.tiny()):
        graph, out = case.graph(one), case.predict(one)
        edges = len(graph.edge_shift)
        shifts = [
            graph.edge_shift + sign * STEP * step
            for sign in (1, -1)
            for step in torch.eye(3 * edges, dtype=torch.float64).reshape(-1, edges, 3)
        ]
        moved = case.of_graph(collate([graph._replace(edge_shift=shift) for shift in shifts]))
        gradient = _central(moved, len(one)).reshape(edges, 3)
        centre, neighbor = graph.edge_index
        vectors = graph.positions[neighbor] - graph.positions[centre] + graph.edge_shift
        expected = torch.zeros(len(one), 3, 3, dtype=torch.float64)
        for e in range(edges):
            expected[neighbor[e]] -= torch.outer(vectors[e], gradient[e])
        _close(f"{name}: atomic virials against differences", out.atomic_virial, expected, 3 * DERIVATIVE)
        _close(f"{name}: sum of the atomic virials", out.atomic_virial.sum(0, keepdim=True), out.virial, EXACT)


def single_energies(case: Case) -> None:
    """With one local atom, energy, forces and virial are of that atom's energy: what engines with ghosts rely on."""
    one = systems.molecule()
    graph = case.graph(one)
    steps = STEP * np.eye(one.positions.size).reshape(-1, *one.positions.shape)
    strains = STEP * np.eye(9).reshape(9, 3, 3)
    displaced = [systems.replaced(one, positions=one.positions + s * h) for s in (1, -1) for h in steps]
    strained = [systems.transformed(one, np.eye(3) + s * h.T) for s in (1, -1) for h in strains]
    # [2, steps, atoms]: the energy of each atom after each step.
    by_step = case.predict(*displaced).atomic_energy.reshape(2, -1, len(one))
    by_strain = case.predict(*strained).atomic_energy.reshape(2, -1, len(one))
    for k in range(len(one)):
        out = case.of_graph(graph._replace(local=torch.arange(len(one)) == k))
        expected_forces = -(by_step[0, :, k] - by_step[1, :, k]).reshape(-1, 3) / (2 * STEP)
        expected_virial = -(by_strain[0, :, k] - by_strain[1, :, k]).reshape(1, 3, 3) / (2 * STEP)
        _close(f"energy with atom {k} local", out.energy, out.atomic_energy[k : k + 1], 0.0)
        _close(f"forces with atom {k} local", out.forces, expected_forces, DERIVATIVE)
        _close(f"virial with atom {k} local", out.virial, expected_virial, 3 * DERIVATIVE)


def weight_gradients(case: Case) -> None:
    """The gradient by the weights of a loss of energies, forces and virials, by central differences along a direction.

    Forces are differentiated twice here: what a detach or a wrong second derivative spoils while outputs stay right.
    """
    graph = case.graph(systems.molecule(), systems.atom(), systems.crystal())
    rng = torch.Generator().manual_seed(0)
    potential = case.as_dtype("float64").potential.train()
    weights = [weight for weight in potential.parameters() if weight.requires_grad]
    direction = [torch.randn(weight.shape, generator=rng, dtype=torch.float64) for weight in weights]
    scale = sum(part.square().sum() for part in direction) ** -0.5
    direction = [scale * part for part in direction]
    out = potential(graph)
    cotangents = [torch.randn(field.shape, generator=rng, dtype=torch.float64) for field in out[:4]]

    def losses() -> list[Tensor]:
        return [(field * factor).sum() for field, factor in zip(potential(graph)[:4], cotangents, strict=True)]

    def along(loss: Tensor) -> float:
        gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        return sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True) if g is not None)

    exact = torch.tensor([along(loss) for loss in losses()], dtype=torch.float64)
    shifted = []
    for sign in (1, -2):
        with torch.no_grad():
            for weight, part in zip(weights, direction, strict=True):
                weight.add_(part, alpha=sign * STEP)
        shifted.append(torch.stack(losses()).detach())
    slope = (shifted[0] - shifted[1]) / (2 * STEP)
    for name, ours, theirs in zip(("energies", "atomic energies", "forces", "virials"), exact, slope, strict=True):
        tolerance = DERIVATIVE * max(1.0, abs(theirs.item()))
        _close(f"gradient by the weights of a loss of {name}", ours, theirs, tolerance)
        if abs(theirs) < 1e-6:
            raise CheckError(f"A loss of {name} does not depend on the weights.")


# Cut-offs


def one_graph(case: Case) -> None:
    """Traced at one size, the potential is one graph that has eager's predictions and weight gradients at others.

    What compiled training and exported models stand on: nothing may depend on values or sizes of the example.
    """
    potential = case.potential
    names, weights = zip(*potential.named_parameters(), strict=True)
    trained = {name: weight for name, weight in potential.named_parameters() if weight.requires_grad}

    def function(*tensors: Tensor) -> Tensor:
        graph = Graph(*tensors[len(names) :])
        prediction = torch.func.functional_call(potential, dict(zip(names, tensors, strict=False)), (graph,))
        # Of the forces a function that is not symmetric, so that no part of the gradient cancels.
        virials = torch.stack([part.square().sum() for part in prediction[2:4]])
        total: Tensor = (prediction.forces * torch.cos(prediction.forces)).sum() + virials.sum()
        return total

    def results(compute: Callable[..., Tensor], sizes: Sizes) -> list[Tensor]:
        loss = compute(*weights, *sample_graph(case.info, sizes, seed=1))
        gradients = torch.autograd.grad(loss, tuple(trained.values()), allow_unused=True)
        return [loss.detach(), *(torch.zeros(1) if g is None else g for g in gradients)]

    potential.train()
    try:
        example = sample_graph(case.info, TRACED)
        traced = trace(function, weights, list(example), axes(Graph), TRACED, SMALLEST)
        for sizes in (TRACED, SMALLEST, LARGER):
            expected, found = results(function, sizes), results(traced, sizes)
            for name, one, other in zip(("loss", *trained), found, expected, strict=True):
                _close(f"{name} of the traced graph at {sizes}", one, other, EXACT * max(1.0, float(other.abs().max())))
    finally:
        potential.eval()


def smoothness(case: Case) -> None:
    """Energies and forces are continuous as an atom crosses each cut-off, in the presence of others.

    Both sides are extrapolated to the cut-off from three points, so that the tolerance can be far below any slope.
    """
    step, names = 1e-3, case.info.types
    for a, row in enumerate(case.info.pair_cutoffs):
        for b, cutoff in enumerate(row):
            distances = cutoff + step * np.array([-3, -2, -1, 1, 2, 3])
            near = [[0.0, 0.0, 0.0], [-0.9, 0.6, 0.2], [-0.1, -0.8, 0.7]]
            crossing = [
                systems.structure([names[a], names[0], names[-1], names[b]], [*near, [r, 0.0, 0.0]]) for r in distances
            ]
            out = case.predict(*crossing)
            for what, values in ("energy", out.energy), ("forces", out.forces.reshape(6, -1)):
                inside = values[0] - 3 * values[1] + 3 * values[2]
                beyond = 3 * values[3] - 3 * values[4] + values[5]
                where = f"{what} as {names[b]} crosses the cut-off of {names[a]} at {cutoff} Å"
                _close(where, inside, beyond, 1e-6)


def locality(case: Case) -> None:
    """``message_passing_layers`` is honest: in a chain, an atom's energy depends on atoms so many links away, and no
    further; strictly local models see one link.
    """
    link = 0.55 * case.info.cutoff  # neighbours see each other, next neighbours do not
    if link > min(min(row) for row in case.info.pair_cutoffs):
        raise ValueError(f"Cut-offs below {link} Å are too short for this check: {case.info.pair_cutoffs}.")
    reach = max(1, case.info.message_passing_layers)
    numbers = np.arange(reach + 2)
    positions = np.stack([link * numbers, 0.1 * (numbers % 2), 0.1 * (numbers % 3 == 1)], axis=1)
    chain = systems.structure([case.info.types[n % len(case.info.types)] for n in numbers], positions)
    moves = np.zeros((2, *positions.shape))
    moves[0, reach], moves[1, reach + 1] = (-0.1, 0.15, 0.1), (-0.1, 0.15, 0.1)
    out = case.predict(chain, *(systems.replaced(chain, positions=positions + move) for move in moves))
    energies = out.atomic_energy.reshape(3, -1)[:, 0] - case.atomic_energies[0]
    declared = f"message_passing_layers = {case.info.message_passing_layers}"
    if not (energies[2] - energies[0]).abs() < 1e-12:
        raise CheckError(
            f"{declared}, but an atom's energy changed by {(energies[2] - energies[0]).item():.3g} eV when an atom "
            f"{reach + 1} links away moved. Engines would place too few ghosts. Declare more layers."
        )
    if not (energies[1] - energies[0]).abs() > 1e-12:
        raise CheckError(
            f"{declared}, but an atom's energy does not depend on atoms {reach} links away. Engines would place ghosts "
            "for nothing. Declare fewer layers."
        )


# Precision


def float32(case: Case) -> None:
    """A float32 model gives float64 outputs that agree with the float64 model to float32's precision."""
    structures = list(systems.systems().values())
    exact, rounded = case.predict(*structures), case.as_dtype("float32").predict(*structures)
    for name, ours, theirs in zip(Outputs._fields, rounded, exact, strict=True):
        if ours.dtype != torch.float64:
            raise CheckError(f"{name} is {ours.dtype}, expected torch.float64 from a model of any dtype.")
        _close(f"float32 against float64: {name}", ours, theirs, 1e-4 * _size(name, theirs))


# Tools


def _rotation(seed: int) -> Floats:
    """A random rotation."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    rotation_: Floats = q * np.sign(np.linalg.det(q))
    return rotation_


def _turns_with(case: Case, matrix: Floats, how: str) -> None:
    turn = torch.from_numpy(matrix)
    for name, one in systems.systems().items():
        here = case.predict(one)
        expected = here._replace(
            forces=here.forces @ turn.T,
            virial=turn @ here.virial @ turn.T,
            atomic_virial=turn @ here.atomic_virial @ turn.T,
        )
        _same(f"{name}, {how}", case.predict(systems.transformed(one, matrix)), expected)


def _slope(case: Case, one: Structure, steps: Sequence[Structure]) -> Tensor:
    """dE along each step from structures after +STEP, then after -STEP. [steps]."""
    return _central(case.predict(*steps), len(one))


def _central(moved: Outputs, atoms: int) -> Tensor:
    # Differences of atoms' energies before their sum: E0s cancel without loss.
    plus, minus = moved.atomic_energy.reshape(2, -1, atoms)
    slope: Tensor = (plus - minus).sum(1) / (2 * STEP)
    return slope


def _same(what: str, actual: Outputs, expected: Outputs) -> None:
    for name, ours, theirs in zip(Outputs._fields, actual, expected, strict=True):
        _close(f"{what}: {name}", ours, theirs, EXACT * _size(name, theirs))


def _size(name: str, values: Tensor) -> float:
    """What a tolerance is relative to: 1, or more for large forces and virials (energies are large by E0s only)."""
    return 1.0 if name in ("energy", "atomic_energy") else max(1.0, values.abs().max().item())


def _close(what: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise unless all entries agree; NaN agrees with nothing."""
    difference = (actual - expected).abs()
    if not bool((difference <= tolerance).all()):
        worst = difference.nan_to_num(nan=np.inf).max().item()
        at = int(difference.nan_to_num(nan=np.inf).argmax())
        ours, theirs = (values.expand_as(difference).flatten()[at].item() for values in (actual, expected))
        raise CheckError(
            f"{what}: {ours:.12g}, expected {theirs:.12g} (entry {at} of shape {list(difference.shape)}); they differ "
            f"by {worst:.3g}, allowed is {tolerance:.3g}."
        )
