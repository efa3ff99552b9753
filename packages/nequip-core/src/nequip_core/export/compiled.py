"""Compiled models (``NAME.nequip.pt2``): what such a file says of itself, and how it is run.

The file is an AOTInductor package: machine code for one device and one torch, with a JSON of `Metadata` inside. It is
read, and compared with this machine, before any of its code is loaded. Running one needs torch alone: no plugin, no
e3nn, Hydra or Lightning.
"""

from __future__ import annotations

import json
import platform
import threading
import weakref
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nequip_core.errors import ArtifactError, InputError
from nequip_core.export.target import prepare
from nequip_core.graph import Graph
from nequip_core.models.base import ModelInfo
from nequip_core.ops.segment import segment_sum
from nequip_core.potential import Prediction

FORMAT = "nequip-core/compiled"
SCHEMA = 1
"""Number of the metadata and of the signature of compiled files; a change of meaning changes it."""

KEY = "nequip"
"""Of our JSON in the package's metadata."""

MODEL = "model"
"""Name of the model in the package."""

NARROW = "narrow"
"""Name of the function of `nequip_core.narrow` in the package of a file for CUDA."""

Run = Callable[[list[Tensor]], list[Tensor]]
"""Contiguous input tensors to output tensors."""

CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")
"""Instruction sets of x86-64 as torch names them; each includes the ones before."""

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a compiled file says of itself.

    Attributes:
        target: the engine that it was compiled for.
        inputs: [{name, dtype, shape}] in order; a length that is a word may change.
        outputs: likewise.
        types: names in the order of their indices.
        elements: of each type.
        cutoff_A: largest cut-off.
        pair_cutoffs_A: [centre][neighbour].
        message_passing_layers: 0 for strictly local models.
        strictly_local: whether an atom's energy depends on atoms within one cut-off only.
        ghost_distance_A: how far from an atom others can change its energy.
        dtype: of the weights and the inner arithmetic; inputs and outputs are float64.
        units: of the inputs and outputs.
        device: "cpu" or "cuda".
        isa: machine and instruction set that the code needs, "x86_64 AVX2"; None on CUDA.
        capability: of the CUDA device that the code is for, "9.0"; None on the CPU.
        torch: version that the file was made with.
        cuda: version of torch's CUDA; None on the CPU.
        narrows: whether the file holds `NARROW` too.
        kernels: {operator: {chosen, refused}}.
        kernel_libraries: {distribution: version} that must be there to run.
        model_hash: of the model block and weights, as in the package.
        weights: "ema" or "raw".
        model: the resolved model block.
        n_parameters: of the architecture.
        atomic_energies_eV: by type.
        energy_scale_eV: by type.
        manifest: of the package or checkpoint: versions, licence, citations.
        training_data: as in the package.
        metrics: as in the package.
    """

    target: str
    inputs: list[Json]
    outputs: list[Json]
    types: list[str]
    elements: list[str]
    cutoff_A: float
    pair_cutoffs_A: list[list[float]]
    message_passing_layers: int
    strictly_local: bool
    ghost_distance_A: float
    dtype: str
    units: Mapping[str, str]
    device: Literal["cpu", "cuda"]
    isa: str | None
    capability: str | None
    torch: str
    cuda: str | None
    narrows: bool
    kernels: Mapping[str, Any]
    kernel_libraries: Mapping[str, str]
    model_hash: str
    weights: Literal["ema", "raw"]
    model: Json
    n_parameters: int
    atomic_energies_eV: Mapping[str, float]
    energy_scale_eV: Mapping[str, float]
    manifest: Json = field(default_factory=dict)
    training_data: Json = field(default_factory=dict)
    metrics: Json = field(default_factory=dict)

    def to_json(self) -> str:
        """The text in the file."""
        return json.dumps({"format": FORMAT, "schema": SCHEMA, **asdict(self)})

    @property
    def info(self) -> ModelInfo:
        """The facts that engines need."""
        return ModelInfo(
            cutoff=self.cutoff_A,
            types=tuple(self.types),
            elements=tuple(self.elements),
            pair_cutoffs=tuple(tuple(row) for row in self.pair_cutoffs_A),
            message_passing_layers=self.message_passing_layers,
            dtype=self.dtype,
        )


def is_compiled(path: str | Path) -> bool:
    """Whether a file's name says that it is a compiled model."""
    return Path(path).suffix == ".pt2"


def read_metadata(path: str | Path) -> Metadata:
    """What a compiled file says of itself; none of its code is loaded.

    Raises:
        ArtifactError: it is no compiled model of ours, damaged, or of another schema.
    """
    found = _metadata_of(Path(path))
    schema = found.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        raise ArtifactError(
            f"{path} is of schema {schema}; this nequip-core runs compiled files of schema {SCHEMA}. Compile the model "
            "again with this version: nequip compile MODEL OUT.nequip.pt2."
        )
    names = {one.name for one in fields(Metadata)}
    missing = sorted(names - found.keys())
    if missing:
        raise ArtifactError(f"{path}: its metadata lack {', '.join(missing)}. Take another copy, or compile it again.")
    return Metadata(**{name: found[name] for name in names})


def _metadata_of(path: Path) -> Json:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("_metadata.json")]
            texts: list[Json] = [json.loads(archive.read(name)) for name in names]
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist. Expected a compiled model (.nequip.pt2).") from error
    except (OSError, zipfile.BadZipFile, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{path} can not be read as a compiled model ({error}): it is truncated, damaged or another kind of file. "
            "Take another copy, or compile the model again."
        ) from error
    for text in texts:
        if KEY in text:
            ours = json.loads(text[KEY])
            if isinstance(ours, dict) and ours.get("format") == FORMAT:
                return ours
    if any("nequip_aoti_inputs" in text for text in texts):
        raise ArtifactError(
            f"{path} was compiled by the published nequip package, which only that can run. Take the checkpoint or "
            "package that it was made from: `nequip convert` it, then `nequip compile`."
        )
    raise ArtifactError(
        f"{path} is not one of our compiled models: it holds no {KEY!r} metadata. Make one: nequip compile MODEL "
        "OUT.nequip.pt2."
    )


# This machine


def this_isa() -> str:
    """Machine and instruction set of this CPU, as torch uses it: "x86_64 AVX2"."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def check_machine(path: str | Path, metadata: Metadata, device: torch.device) -> None:
    """Whether this machine can run the code of a file.

    Raises:
        ArtifactError: it can not; the message says what the file needs and what is here.
    """
    for what, needed, here, fits in _requirements(metadata, device):
        if not fits:
            kind = metadata.device
            raise ArtifactError(
                f"{path} was compiled for {what} {needed}, but here is {here}. Compile the model here: nequip compile "
                f"MODEL OUT.nequip.pt2 --target {metadata.target} --device {kind if what != 'device' else device.type}."
            )


def _requirements(metadata: Metadata, device: torch.device) -> list[tuple[str, str, str, bool]]:
    """(what, needed, here, whether it fits), in the order in which they matter."""
    rows = [
        ("device", metadata.device, device.type, metadata.device == device.type),
        ("torch", metadata.torch, torch.__version__, _minor(metadata.torch) == _minor(torch.__version__)),
    ]
    if metadata.device == "cpu":
        rows.append(("the instruction set", str(metadata.isa), this_isa(), _runs(str(metadata.isa), this_isa())))
    elif device.type == "cuda":
        here = capability_of(device)
        rows.append(("CUDA devices of capability", str(metadata.capability), here, metadata.capability == here))
        cuda = str(torch.version.cuda)
        rows.append(("CUDA", str(metadata.cuda), cuda, _major(str(metadata.cuda)) == _major(cuda)))
    for library, needed in metadata.kernel_libraries.items():
        found = installed_version(library)
        rows.append((f"the kernel library {library}", needed, found or "none", found == needed))
    return rows


def capability_of(device: torch.device) -> str:
    """Of a CUDA device, "9.0"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"


def installed_version(distribution: str) -> str | None:
    """Of a distribution, if it is installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _runs(needed: str, here: str) -> bool:
    (machine, isa), (machine_here, isa_here) = needed.split(" ", 1), here.split(" ", 1)
    if machine != machine_here:
        return False
    if isa in CAPABILITIES and isa_here in CAPABILITIES:
        return CAPABILITIES.index(isa) <= CAPABILITIES.index(isa_here)
    return isa == isa_here


def _minor(text: str) -> list[str]:
    return text.split("+")[0].split(".")[:2]


def _major(text: str) -> str:
    return text.split(".")[0]


# Running


class CompiledPotential:
    """The machine code of a compiled file, called like a `nequip_core.potential.Potential`; loaded when first needed.

    Args:
        path: of the file, which this machine can run (see `check_machine`).
        metadata: of the file.
        device: where it runs.
    """

    def __init__(self, path: str | Path, metadata: Metadata, device: torch.device) -> None:
        self.path = Path(path)
        self.metadata = metadata
        self.device = device
        self.outputs = [output["name"] for output in metadata.outputs]

    @cached_property
    def run(self) -> Run:
        """The model, with inputs and outputs in the order of the metadata."""
        return self._load(MODEL)

    @cached_property
    def narrow(self) -> Run | None:
        """From `nequip_core.narrow.Wide` to `nequip_core.narrow.Narrow`, where the file holds it."""
        return self._load(NARROW) if self.metadata.narrows else None

    def _load(self, name: str) -> Run:
        cuda = self.device.type == "cuda"
        # On CUDA without torch's own waiting for the run before, which can not be recorded (nequip_core.recording).
        index = -1
        if cuda:
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
        with torch.cuda.device(index):  # the loader makes it the current one; -1: none
            loader = torch._C._aoti.AOTIModelPackageLoader(str(self.path), name, cuda, 1, index)
        # The loader's temporary folder goes with it, which must be before the interpreter does.
        weakref.finalize(self, vars(self).clear)
        if not cuda:
            run: Run = loader.run
            return run
        alone = threading.Lock()

        def run_alone(inputs: list[Tensor]) -> list[Tensor]:
            with alone:
                outputs: list[Tensor] = loader.run(inputs)
            return outputs

        return run_alone

    def __call__(self, graph: Graph, *, atomic_virial: bool = False) -> Prediction:
        """Energies, forces and virials of a graph on the device of the model.

        Raises:
            InputError: the graph is on another device; atomic virials of a file that has none.
        """
        where = graph.positions.device
        if where.type != self.device.type:
            raise InputError(f"{self.path} runs on {self.device}, but the graph is on {where}. Move it there first.")
        if atomic_virial and "atomic_virial" not in self.outputs:
            raise InputError(
                f"{self.path} was compiled for target {self.metadata.target}, which gives no atomic virials. Compile "
                "the model with --target ase."
            )
        found = dict(zip(self.outputs, self.run(list(prepare(graph))), strict=True))
        atomic_energy = found["atomic_energy"]
        counted = torch.where(graph.local, atomic_energy, 0.0)
        return Prediction(
            energy=segment_sum(counted, graph.structure, graph.structure_ptr),
            atomic_energy=atomic_energy,
            forces=found["forces"],
            virial=found["virial"],
            atomic_virial=found["atomic_virial"] if atomic_virial else None,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process loads the file itself."""
        return load_compiled, (self.path, self.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledPotential:
        """The code is shared: it has no state."""
        return self


def load_compiled(path: str | Path, device: torch.device) -> CompiledPotential:
    """The model of a compiled file, ready to run.

    Raises:
        ArtifactError: it can not be read, or can not run here; nothing of it has been loaded then.
    """
    metadata = read_metadata(path)
    check_machine(path, metadata, device)
    potential = CompiledPotential(path, metadata, device)
    potential.run, potential.narrow  # noqa: B018  # now, not in the first step, when the file may be gone
    return potential
