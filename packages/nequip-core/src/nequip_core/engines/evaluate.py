"""A loaded model applied to many structures: predictions in batches, and their errors against labels.

`Predictor` is what `nequip_core.load` returns. `evaluate` streams structures through it and sums errors structure by
structure in float64, so that its numbers do not depend on the size of the batches beyond the rounding of the model's
dtype: a matrix product of few rows and the last elements of a vector loop are rounded otherwise than the same numbers
in a larger batch. Batches are therefore those of the run's validation unless said otherwise, and the numbers those of
metrics.csv.
"""

from __future__ import annotations

import io
import itertools
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.io.extxyz import write_extxyz
from matplotlib.figure import Figure
from torch import Tensor

from nequip_core.blocks import BlockEdges, Blocks
from nequip_core.engines.batches import batch_graphs
from nequip_core.errors import CheckError, InputError
from nequip_core.export.artifact import LoadedModel, load_model
from nequip_core.files import atomic_write
from nequip_core.graph import Graph
from nequip_core.neighbors import DEFAULT, DEVICE
from nequip_core.plugins.manager import Registry, find, load_registry
from nequip_core.plugins.records import NeighborListEntry
from nequip_core.potential import Prediction, stress
from nequip_core.progress import Progress, silent
from nequip_core.structure import Floats, Structure

SCHEMA = 1
"""Number of the results' format; a change of meaning changes it."""

UNITS = {"energy": "eV", "energy_per_atom": "eV/atom", "forces": "eV/Angstrom", "stress": "eV/Angstrom^3"}
"""The quantities that are compared, and their units."""

BATCH_ATOMS = 1000
"""Atoms per batch where neither the user nor the model's file says otherwise."""

ANTICORRELATED = -0.5
"""Predicted and labelled stress below this cosine: one of them has the other sign."""

NO_CONFIG_TYPE = "none"
"""The row of structures without a config_type, where others have one."""

T = TypeVar("T")


def load(
    model: str | Path,
    device: str | torch.device = "auto",
    *,
    checkpoint: str = "best",
    weights: Literal["ema", "raw"] = "ema",
    kernels: str | Mapping[str, str] = "auto",
    batch_atoms: int | None = None,
    block_edges: BlockEdges = "auto",
) -> Predictor:
    """A model ready to predict, from a run's folder, a checkpoint, a package or a compiled file.

    Args:
        model: DIR means DIR/checkpoints/best.ckpt.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".
        checkpoint: of a run's folder: "best" or "last".
        weights: "ema": the averaged ones where there are any; "raw": the trained ones.
        kernels: "auto", "reference", a kernel's name, or {operator: name}.
        batch_atoms: atoms per batch; None: batches as in the validation of the model's run.
        block_edges: edges in a block of a strictly local model; "auto": on CUDA, as memory asks; None: one block.

    Raises:
        ArtifactError: the file can not be read.
        InputError: the device is not there.
    """
    registry = load_registry()
    loaded = load_model(
        model, checkpoint=checkpoint, weights=weights, device=device, kernels=kernels, registry=registry
    )
    return predictor(loaded, registry, batch_atoms=batch_atoms, block_edges=block_edges)


class Limits(NamedTuple):
    """What a batch may hold at most; one structure may be larger. None: no limit.

    Attributes:
        structures: their number.
        atoms: of all structures.
        edges: of all structures; a batch with more is cut into pieces.
    """

    structures: int | None = None
    atoms: int | None = None
    edges: int | None = None


def limits(loaded: LoadedModel, batch_atoms: int | None) -> Limits:
    """Of ``batch_atoms``, or of the validation of the model's run, or `BATCH_ATOMS` where the file names none."""
    if batch_atoms is not None:
        if batch_atoms < 1:
            raise InputError(f"A batch must hold at least one atom. Received batch_atoms {batch_atoms}.")
        return Limits(atoms=batch_atoms)
    if "validation_batches" in loaded.data:
        return Limits(**loaded.data["validation_batches"])
    return Limits(atoms=BATCH_ATOMS)


@dataclass(frozen=True, eq=False, kw_only=True)
class StructurePrediction:
    """What a model computes for one structure, in NumPy.

    Attributes:
        energy: eV.
        atomic_energies: [N], eV.
        forces: [N, 3], eV/Å.
        virial: [3, 3], eV; -dE/dstrain.
        stress: [3, 3], eV/Å³, tension positive, symmetric; None unless all three directions are periodic.
    """

    energy: float
    atomic_energies: Floats
    forces: Floats
    virial: Floats
    stress: Floats | None


def _alone(value: T) -> list[T]:
    return [value]


@dataclass(frozen=True)
class Share:
    """Which batches a process predicts, of several that evaluate together.

    Attributes:
        rank: of this process.
        size: how many there are.
        gather: everybody's value, by rank; all call it, equally often.
    """

    rank: int = 0
    size: int = 1
    gather: Callable[[Any], list[Any]] = _alone


ALONE = Share()


class Predictor:
    """A model on its device: structures in, predictions out.

    Args:
        loaded: from `nequip_core.export.artifact.load_model`.
        neighbor_list: the registry's record of a neighbour list; see `predictor`.
        batch_atoms: atoms per batch; no effect on results beyond rounding in the model's dtype. None: see `limits`.
        block_edges: see `nequip_core.blocks.Blocks`; no effect on results.
        share: of the batches of `stream`; all processes see all results, in the same order.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        neighbor_list: NeighborListEntry,
        *,
        batch_atoms: int | None = None,
        block_edges: BlockEdges = "auto",
        share: Share = ALONE,
    ) -> None:
        self.share = share
        self.limits = limits(loaded, batch_atoms)
        self.loaded = loaded
        self.potential = Blocks(loaded.potential, loaded.info, block_edges)
        self.neighbor_list = neighbor_list
        self.device = loaded.device
        self._graphs = batch_graphs(neighbor_list, np.array(loaded.info.pair_cutoffs), loaded.device)

    def __call__(
        self, structures: Structure | Atoms | Sequence[Structure | Atoms], *, atomic_virial: bool = False
    ) -> Prediction:
        """Predictions of all structures together, float64 on the CPU; atoms in the order of the structures.

        Raises:
            InputError: an element or type that the model does not know.
        """
        if isinstance(structures, Structure | Atoms):
            structures = [structures]
        batches = [
            self._predict(batch, atomic_virial=atomic_virial)
            for batch in _batches(map(_as_structure, structures), self.limits)
        ]
        if not batches:
            raise InputError("There are no structures to predict. Expected at least one.")
        return _join(batches)

    def stream(self, structures: Iterable[Structure]) -> Iterator[tuple[Structure, StructurePrediction]]:
        """Each structure with its prediction, in order, one batch of each process in memory at a time."""
        batches = _batches(structures, self.limits)
        while turn := list(itertools.islice(batches, self.share.size)):
            mine = self._rows(turn[self.share.rank]) if self.share.rank < len(turn) else []
            for batch, rows in zip(turn, self.share.gather(mine), strict=False):
                yield from zip(batch, rows, strict=True)

    def _rows(self, batch: Sequence[Structure]) -> list[StructurePrediction]:
        energy, atomic_energy, forces, virial, _ = self._predict(batch)
        ends = np.cumsum([len(structure) for structure in batch])
        return [
            StructurePrediction(
                energy=float(energy[row]),
                atomic_energies=atomic_energy[end - len(structure) : end].numpy(),
                forces=forces[end - len(structure) : end].numpy(),
                virial=virial[row].numpy(),
                stress=_stress(virial[row], structure.volume),
            )
            for row, (structure, end) in enumerate(zip(batch, ends, strict=True))
        ]

    def _predict(self, batch: Sequence[Structure], *, atomic_virial: bool = False) -> Prediction:
        types = [self.loaded.type_map.indices(structure) for structure in batch]
        try:
            graphs = self._graphs(batch, types, self.limits.edges)
            return _join([self._predict_graph(graph, atomic_virial) for graph in graphs])
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{self.device} has too little memory for a batch of {sum(map(len, batch))} atoms. Take fewer atoms "
                "per batch (--batch-atoms)."
            ) from error

    def _predict_graph(self, graph: Graph, atomic_virial: bool) -> Prediction:
        prediction = self.potential(graph, atomic_virial=atomic_virial)
        return Prediction(*(tensor if tensor is None else tensor.detach().cpu() for tensor in prediction))  # type: ignore[arg-type]


def predictor(
    loaded: LoadedModel,
    registry: Registry,
    *,
    batch_atoms: int | None = None,
    block_edges: BlockEdges = "auto",
    share: Share = ALONE,
) -> Predictor:
    """A predictor that lists neighbours with `DEVICE` on CUDA, and with `DEFAULT`, as quick there, on the CPU."""
    name = DEFAULT if loaded.device.type == "cpu" else DEVICE
    entry = find(registry.neighbor_lists, name, "neighbour list")
    return Predictor(loaded, entry, batch_atoms=batch_atoms, block_edges=block_edges, share=share)


def _join(batches: Sequence[Prediction]) -> Prediction:
    """One prediction of several."""
    columns = zip(*batches, strict=True)
    return Prediction(*(column[0] if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


def _as_structure(structure: Structure | Atoms) -> Structure:
    return structure if isinstance(structure, Structure) else Structure.from_ase(structure)


def _stress(virial: Tensor, volume: float | None) -> Floats | None:
    if volume is None:
        return None
    tensor: Floats = stress(virial.unsqueeze(0), torch.tensor([volume], dtype=torch.float64))[0].numpy()
    return tensor


def _batches(structures: Iterable[Structure], most: Limits) -> Iterator[list[Structure]]:
    """Consecutive structures, as many as the limits let in, or one that is larger."""
    batch: list[Structure] = []
    atoms = 0
    for structure in structures:
        full = len(batch) == most.structures or (most.atoms is not None and atoms + len(structure) > most.atoms)
        if batch and full:
            yield batch
            batch, atoms = [], 0
        batch.append(structure)
        atoms += len(structure)
    if batch:
        yield batch


@dataclass
class Errors:
    """Running sums of differences between prediction and label."""

    absolute: float = 0.0
    squared: float = 0.0
    largest: float = 0.0
    count: int = 0

    def add(self, difference: Floats | float) -> None:
        """Count the components of a difference."""
        size = np.abs(np.asarray(difference, dtype=np.float64))
        self.absolute += float(size.sum())
        self.squared += float((size**2).sum())
        self.largest = float(np.maximum(self.largest, size.max(initial=0.0)))
        self.count += size.size

    def summary(self) -> dict[str, float | int] | None:
        """``{mae, rmse, max, n}``, or None where nothing was labelled."""
        if self.count == 0:
            return None
        return {
            "mae": self.absolute / self.count,
            "rmse": float(np.sqrt(self.squared / self.count)),
            "max": self.largest,
            "n": self.count,
        }


@dataclass
class Row:
    """Errors of a group of structures."""

    n_structures: int = 0
    n_atoms: int = 0
    errors: dict[str, Errors] = field(default_factory=lambda: {quantity: Errors() for quantity in UNITS})

    def add(self, structure: Structure, prediction: StructurePrediction) -> None:
        """Count a structure; what it has no label for is left out."""
        self.n_structures += 1
        self.n_atoms += len(structure)
        for quantity, (predicted, label) in compared(structure, prediction).items():
            self.errors[quantity].add(predicted - label)
            if quantity == "energy":
                # Not as the difference of the quotients, from which digits would be lost.
                self.errors["energy_per_atom"].add((predicted - label) / len(structure))

    def summary(self) -> dict[str, Any]:
        """Sizes and errors as the results file has them."""
        errors = {quantity: errors.summary() for quantity, errors in self.errors.items()}
        return {"n_structures": self.n_structures, "n_atoms": self.n_atoms, **errors}


def compared(structure: Structure, prediction: StructurePrediction) -> dict[str, tuple[Floats, Floats]]:
    """(prediction, label) of the total energy, forces and stress, as far as the structure has labels."""
    pairs: dict[str, tuple[Floats, Floats]] = {}
    if structure.energy is not None:
        pairs["energy"] = np.array([prediction.energy]), np.array([structure.energy])
    if structure.forces is not None:
        pairs["forces"] = prediction.forces, structure.forces
    if structure.stress is not None and prediction.stress is not None:
        pairs["stress"] = prediction.stress, structure.stress
    return pairs


def evaluate(
    predictor: Predictor,
    structures: Iterable[Structure],
    *,
    data: dict[str, Any] | None = None,
    write: Path | None = None,
    plots: Path | None = None,
    warn: Callable[[str], None] = warnings.warn,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Errors of a model on labelled structures.

    Args:
        predictor: the model.
        structures: read one batch at a time; labels may be missing.
        data: where they came from: ``{path, sha256}``.
        write: extended XYZ with the predictions as each frame's results, labels as ``ref_energy``, ``ref_forces``,
            ``ref_stress`` and the energies of the atoms as ``nequip_energies``. Complete or not written at all.
        plots: folder for parity plots, ``energy_per_atom.png`` ... of what is labelled.
        warn: told what looks wrong with the labels.
        progress: told how many structures are done.

    Returns:
        The results as ``nequip evaluate --json`` writes them: energies in eV, forces in eV/Å over the 3N components,
        stress in eV/Å³ over the nine components of structures that are periodic in all three directions.

    Raises:
        InputError: there are no structures, or one holds an element that the model does not know.
        CheckError: a prediction is not finite.
    """
    start = time.perf_counter()
    total = Row()
    by_config_type: defaultdict[str, Row] = defaultdict(Row)
    by_element: defaultdict[int, Errors] = defaultdict(Errors)
    atoms_of_element: defaultdict[int, int] = defaultdict(int)
    stress_products = np.zeros(3)  # prediction.label, prediction.prediction, label.label
    points: defaultdict[str, list[tuple[Floats, Floats]]] = defaultdict(list)
    in_all = len(structures) if isinstance(structures, Sized) else None
    with ExitStack() as files:
        frames: IO[str] | None = files.enter_context(atomic_write(write)) if write else None
        for structure, prediction in predictor.stream(structures):
            if not (np.isfinite(prediction.energy) and np.isfinite(prediction.forces).all()):
                raise CheckError(
                    f"{structure.source or 'structure'}: the model's energy or forces are not finite: "
                    "the training has diverged, or the model is far outside what it was trained on."
                )
            total.add(structure, prediction)
            by_config_type[structure.config_type or NO_CONFIG_TYPE].add(structure, prediction)
            for number in np.unique(structure.numbers):
                of_element = structure.numbers == number
                atoms_of_element[int(number)] += int(of_element.sum())
                if structure.forces is not None:
                    by_element[int(number)].add((prediction.forces - structure.forces)[of_element])
            pairs = compared(structure, prediction)
            if "stress" in pairs:
                p, q = pairs["stress"]
                stress_products += [(p * q).sum(), (p * p).sum(), (q * q).sum()]
            if plots:
                for quantity, (predictions, labels) in pairs.items():
                    points[quantity].append((predictions, labels))
                    if quantity == "energy":
                        points["energy_per_atom"].append((predictions / len(structure), labels / len(structure)))
            if frames:
                frames.write(frame_text(structure, prediction))
            progress("evaluation", total.n_structures, in_all)
        if total.n_structures == 0:
            raise InputError("There are no structures to evaluate. Expected at least one frame; look at --index.")
    if plots:
        write_parity_plots(plots, points)
    if all(errors.count == 0 for errors in total.errors.values()):
        warn("No structure has a label; all errors are null. Name the labels of the file with --keys energy=NAME,...")
    product, predicted, labelled = stress_products
    if product < ANTICORRELATED * np.sqrt(predicted * labelled):
        warn(
            f"Predicted and labelled stress point in opposite directions (cosine "
            f"{product / np.sqrt(predicted * labelled):.2f}). Expected stress = dE/dstrain / V, tension positive; if "
            "the labels are of the other sign set data.units.stress_sign: compression_positive."
        )
    loaded = predictor.loaded
    named = set(by_config_type) != {NO_CONFIG_TYPE}
    return {
        "schema": SCHEMA,
        "model": {
            "path": str(loaded.path),
            "kind": loaded.kind,
            "checkpoint": loaded.checkpoint,
            "weights": loaded.weights,
            "hash": loaded.hash,
        },
        "data": {"path": None, "sha256": None, **(data or {})},
        **total.summary(),
        "units": dict(UNITS),
        "per_element": {
            chemical_symbols[number]: {"n_atoms": count, "forces": by_element[number].summary()}
            for number, count in sorted(atoms_of_element.items())
        },
        "per_config_type": {name: row.summary() for name, row in sorted(by_config_type.items())} if named else {},
        "device": str(predictor.device),
        "dtype": loaded.info.dtype,
        "time_s": time.perf_counter() - start,
    }


def frame_text(structure: Structure, prediction: StructurePrediction) -> str:
    """A frame of extended XYZ: predictions as its results, labels as ``ref_*``, atoms' energies."""
    frame = Atoms(numbers=structure.numbers, positions=structure.positions, cell=structure.cell, pbc=structure.pbc)
    labels = {"ref_energy": structure.energy, "ref_stress": structure.stress, "config_type": structure.config_type}
    frame.info.update({name: label for name, label in labels.items() if label is not None})
    if structure.forces is not None:
        frame.arrays["ref_forces"] = structure.forces
    frame.arrays["nequip_energies"] = prediction.atomic_energies
    results: dict[str, Any] = {"energy": prediction.energy, "forces": prediction.forces}
    if prediction.stress is not None:
        results["stress"] = prediction.stress
    frame.calc = SinglePointCalculator(frame, **results)
    text = io.StringIO()
    write_extxyz(text, frame)
    return text.getvalue()


def write_parity_plots(folder: Path, points: dict[str, list[tuple[Floats, Floats]]]) -> list[Path]:
    """One PNG for each quantity: prediction against label, with the diagonal."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Can not make the folder {folder}: {error.strerror}.") from error
    written = []
    for quantity, pairs in points.items():
        predicted, labels = (np.concatenate([np.ravel(pair[side]) for pair in pairs]) for side in (0, 1))
        figure = Figure(figsize=(4.5, 4.5), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        axes.axline((float(labels.mean()), float(labels.mean())), slope=1, color="0.6", linewidth=1)
        axes.scatter(labels, predicted, s=6, alpha=0.5, linewidths=0, rasterized=True)
        rmse = float(np.sqrt(np.mean((predicted - labels) ** 2)))
        title = quantity.replace("_", " ")
        axes.set(
            xlabel=f"label ({UNITS[quantity]})",
            ylabel=f"prediction ({UNITS[quantity]})",
            title=f"{title}: RMSE {rmse:.3g} {UNITS[quantity]}, n = {labels.size}",
            aspect="equal",
            adjustable="datalim",
        )
        path = folder / f"{quantity}.png"
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format="png")
        written.append(path)
    return written
