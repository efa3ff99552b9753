"""The container of a model: one zip, stored, of JSON and safetensors. Nothing in it is ever executed.

A package (``NAME.nequip.zip``) holds what a user of the model needs. A checkpoint (``NAME.ckpt``) is a package with the
training state inside, so that dropping those members makes a package. `Members` lists what is in it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from nequip_core.errors import ArtifactError
from nequip_core.export.upgrade import UPGRADES, Contents, EditedError, upgraded
from nequip_core.files import atomic_write
from nequip_core.structure import Structure

FORMAT = "nequip-core/package"
SCHEMA = 1
"""Number of the container's format, for packages and checkpoints alike; a change of meaning changes it."""

UNITS = {
    "length": "Angstrom",
    "energy": "eV",
    "forces": "eV/Angstrom",
    "virial": "eV",
    "stress": "eV/Angstrom^3",
}


class ChangedError(ArtifactError):
    """A file's contents are not those that its hash was made of."""


Json = dict[str, Any]
Tensors = dict[str, Tensor]


PACKAGE = {
    "manifest": "manifest.json",
    "model": "model.json",
    "weights": "weights.safetensors",
    "data": "data.json",
    "metrics": "metrics.json",
    "check": "check.json",
    "check_tensors": "check.safetensors",
}
"""Fields of `Members` and the files in the zip that hold them; the suffix says how."""

TRAINING = {
    "config": "config.json",
    "state": "state.json",
    "state_tensors": "state.safetensors",
    "raw": "raw.safetensors",
    "optimizer": "optimizer.json",
    "optimizer_tensors": "optimizer.safetensors",
}
"""The same for `TrainingMembers`."""


MANIFEST = frozenset(
    {"versions", "model_hash", "raw_model_hash", "model_from", "units", "weights", "licence", "citations"}
)
"""What each manifest says besides format and schema; see `manifest`."""


@dataclass(frozen=True, kw_only=True)
class TrainingMembers:
    """What a checkpoint holds beyond a package.

    Attributes:
        config: the resolved config of the run. Names in it are text; reading imports nothing.
        state: epoch, step, loops, scheduler, callbacks, random states, best; see `nequip_core.training.checkpoint`.
        state_tensors: the tensors that ``state`` refers to.
        raw: the weights that are trained, where the package's are their average; else empty.
        optimizer: the optimizer's state.
        optimizer_tensors: the tensors that ``optimizer`` refers to.
    """

    config: Json
    state: Json
    state_tensors: Tensors
    raw: Tensors
    optimizer: Json
    optimizer_tensors: Tensors


@dataclass(frozen=True, kw_only=True)
class Members:
    """What a package holds.

    Attributes:
        manifest: format, schema, versions, model hash, units, which weights, licence, citations; see `manifest`.
        model: the resolved model block: name, types, atomic energies, cut-offs and the architecture's own keys.
        weights: state dict of the `nequip_core.models.base.EnergyModel`.
        data: sizes of the splits, hashes, units of the labels, statistics.
        metrics: of the weights, as in metrics.csv.
        check: up to two structures with predictions; see `pack_check`.
        check_tensors: the arrays of ``check``.
        training: the rest of a checkpoint; None in a package, or where it was not read.
    """

    manifest: Json
    model: Json
    weights: Tensors
    data: Json
    metrics: Json
    check: Json
    check_tensors: Tensors
    training: TrainingMembers | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a model comes from: what its files say besides the weights.

    Attributes:
        model: the resolved model block.
        data: for data.json.
        config: the resolved config of the run.
        versions: of every distribution that took part.
        provider: the distribution that offers the architecture, with its version.
        citations: DOIs or arXiv numbers.
        licence: of the model, None where nobody has given it one.
    """

    model: Json
    data: Json
    config: Json
    versions: Mapping[str, str]
    provider: str
    citations: Sequence[str] = ()
    licence: str | None = None


class CheckCase(NamedTuple):
    """A structure and what the model predicts for it, float64.

    Attributes:
        structure: without labels.
        energy: eV.
        forces: eV/Å.
        stress: eV/Å³; None unless all three directions are periodic.
    """

    structure: Structure
    energy: Float[Tensor, ""]
    forces: Float[Tensor, "atoms 3"]
    stress: Float[Tensor, "3 3"] | None


def manifest(provenance: Provenance, *, kind: str, weights: Tensors, raw: Tensors) -> Json:
    """What manifest.json says.

    Args:
        provenance: of the model.
        kind: of ``weights``, "ema" or "raw".
        weights: the package's.
        raw: of a checkpoint whose weights are averages, else empty.
    """
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "versions": dict(provenance.versions),
        "model_hash": model_hash(provenance.model, weights),
        "raw_model_hash": model_hash(provenance.model, raw) if raw else None,
        "model_from": provenance.provider,
        "units": UNITS,
        "weights": kind,
        "licence": provenance.licence,
        "citations": list(provenance.citations),
    }


def model_hash(model: Json, weights: Tensors) -> str:
    """SHA-256 of the model block and the weights, whatever file they are in."""
    digest = hashlib.sha256(json.dumps(model, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_package(path: str | Path, members: Members) -> None:
    """Write a package or checkpoint: whole, or not at all.

    Raises:
        InputError: the folder can not be written to, or the disk is full; a file of that name stays as it was.
    """
    with atomic_write(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in _contents(members):
            # ZipInfo's fixed date: equal contents make equal files.
            archive.writestr(zipfile.ZipInfo(name), _encode(name, content))


def read_package(path: str | Path, *, training: bool = False) -> Members:
    """Read a package or checkpoint; tensors on the CPU.

    Args:
        path: of the file.
        training: read the training state too. The file must be a checkpoint then.

    Raises:
        ArtifactError: the file is missing, truncated, damaged, foreign or of another schema, lacks a member, or its
            hash is not that of its contents.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} is no file. Expected a checkpoint (.ckpt) or package (.nequip.zip).")
    try:
        with zipfile.ZipFile(path) as archive:
            names = frozenset(archive.namelist())
            schema = _check_manifest(path, archive, names)
            wanted = names if schema < SCHEMA else names & {*PACKAGE.values(), *(TRAINING.values() if training else ())}
            contents = {name: _decode(path, name, archive.read(name)) for name in sorted(wanted)}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        # What zipfile raises for members that are damaged, encrypted or packed in an unknown way.
        raise ArtifactError(f"{path} {_unreadable(path)} ({error}).") from error
    if schema < SCHEMA:
        contents, names = _upgraded(path, contents, schema), frozenset(PACKAGE.values())
    state = TrainingMembers(**_fields(path, contents, names, TRAINING)) if training else None
    members = Members(**_fields(path, contents, names, PACKAGE), training=state)
    if schema < SCHEMA:
        # It was checked by its own hash when it was upgraded.
        hashes = {"model_hash": model_hash(members.model, members.weights)}
        return replace(members, manifest=members.manifest | hashes)
    _check_hash(path, "model_hash", members, members.weights)
    if state is not None and state.raw:
        _check_hash(path, "raw_model_hash", members, state.raw)
    return members


def without_training(members: Members) -> Members:
    """A package of a checkpoint: the same weights without the rest."""
    return replace(members, manifest=members.manifest | {"raw_model_hash": None}, training=None)


def is_checkpoint(path: str | Path) -> bool:
    """Whether a file that `read_package` can read holds training state."""
    with zipfile.ZipFile(path) as archive:
        return "state.json" in archive.namelist()


NORM = "norm."
"""Before a weight's name in check.safetensors."""


def pack_check(cases: Sequence[CheckCase], weights: Tensors) -> tuple[Json, Tensors]:
    """check.json and check.safetensors: what the weights predict for these structures, and the norm of each."""
    tensors: Tensors = {f"{NORM}{name}": tensor.detach().double().norm() for name, tensor in weights.items()}
    for n, (structure, energy, forces, stress) in enumerate(cases):
        tensors |= {
            f"{n}.positions": torch.from_numpy(structure.positions),
            f"{n}.numbers": torch.from_numpy(structure.numbers),
            f"{n}.cell": torch.from_numpy(structure.cell),
            f"{n}.pbc": torch.from_numpy(structure.pbc),
            f"{n}.energy": energy.double(),
            f"{n}.forces": forces.double(),
        }
        if stress is not None:
            tensors[f"{n}.stress"] = stress.double()
    about = [
        {"source": case.structure.source, "type_names": list(case.structure.type_names or ()) or None} for case in cases
    ]
    return {"structures": about, "units": UNITS}, tensors


def unpack_check(members: Members) -> list[CheckCase]:
    """The structures of a package with the predictions that its weights must give."""
    cases = []
    for n, about in enumerate(members.check["structures"]):
        arrays = {
            name.removeprefix(f"{n}."): t for name, t in members.check_tensors.items() if name.startswith(f"{n}.")
        }
        structure = Structure(
            positions=arrays["positions"].numpy(),
            numbers=arrays["numbers"].numpy(),
            cell=arrays["cell"].numpy(),
            pbc=arrays["pbc"].numpy().astype(np.bool_),
            type_names=tuple(about["type_names"]) if about["type_names"] else None,
            source=about["source"],
        )
        cases.append(CheckCase(structure, arrays["energy"], arrays["forces"], arrays.get("stress")))
    return cases


def unpack_norms(members: Members) -> Tensors:
    """The norms of the weights when they were written, by their names; files of early versions have none."""
    tensors = members.check_tensors
    return {name.removeprefix(NORM): tensor for name, tensor in tensors.items() if name.startswith(NORM)}


def _contents(members: Members) -> Iterator[tuple[str, Any]]:
    for part, table in ((members, PACKAGE), (members.training, TRAINING)):
        if part is not None:
            yield from ((name, getattr(part, key)) for key, name in table.items())


def _encode(name: str, content: Any) -> bytes:
    if name.endswith(".json"):
        return json.dumps(content, indent=1, allow_nan=False).encode()
    # Copies, since safetensors refuses tensors that share memory.
    return safetensors.torch.save({key: t.detach().to("cpu", copy=True).contiguous() for key, t in content.items()})


def _fields(path: Path, contents: Contents, names: frozenset[str], table: dict[str, str]) -> dict[str, Any]:
    missing = sorted(set(table.values()) - names)
    if missing and table is TRAINING and not set(table.values()) & names:
        raise ArtifactError(f"{path} is a package: it holds no training state. Expected a checkpoint (.ckpt) of a run.")
    if missing:
        raise ArtifactError(f"{path} lacks {', '.join(missing)}: it was changed or badly copied. Take another copy.")
    return {key: contents[name] for key, name in table.items()}


def _decode(path: Path, name: str, content: bytes) -> Any:
    try:
        return json.loads(content) if name.endswith(".json") else safetensors.torch.load(content)
    except (ValueError, RecursionError, SafetensorError) as error:
        raise ArtifactError(f"{path}: its member {name} can not be read ({error}). Take another copy.") from error


def _upgraded(path: Path, contents: Contents, schema: int) -> Contents:
    try:
        return upgraded(contents, schema, SCHEMA)
    except EditedError as error:
        raise ChangedError(f"{path}: {error}. The file was changed after it was written. Take another copy.") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is of schema {schema}, but not as that schema says ({type(error).__name__}: {error}). It was "
            "changed or badly copied. Take another copy."
        ) from error


def _check_manifest(path: Path, archive: zipfile.ZipFile, names: frozenset[str]) -> int:
    """The schema, if it is one of ours that can be read."""
    if "manifest.json" not in names:
        raise ArtifactError(f"{path} {_foreign(names)}")
    about = _decode(path, "manifest.json", archive.read("manifest.json"))
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise ArtifactError(f"{path}: its manifest says format {found!r}, expected {FORMAT!r}. It is not one of ours.")
    schema = about.get("schema")
    if type(schema) is not int or not min(UPGRADES) <= schema <= SCHEMA:
        versions = about.get("versions", {})
        writer = versions.get("nequip-core", "?") if isinstance(versions, dict) else "?"
        raise ArtifactError(
            f"{path} is of schema {schema}; this nequip-core reads schemas up to {SCHEMA}. It was written by "
            f"nequip-core {writer}: install that version or a later one."
        )
    missing = sorted(MANIFEST - about.keys()) if schema == SCHEMA else []
    if missing:
        raise ArtifactError(f"{path}: its manifest lacks {', '.join(missing)}. Take another copy.")
    return schema


def _check_hash(path: Path, key: str, members: Members, weights: Tensors) -> None:
    expected, received = members.manifest.get(key), model_hash(members.model, weights)
    if expected != received:
        raise ChangedError(
            f"{path}: {key} in its manifest is {expected}, but the model block and weights inside give {received}. The "
            "file was changed after it was written. Take another copy."
        )


FOREIGN = (
    (lambda name: name.rpartition("/")[2] == "data.pkl", "is a torch pickle, such as a published nequip checkpoint"),
    (
        lambda name: "/.data/" in name or name.startswith(".data/"),
        "is a published nequip package (a torch.package file)",
    ),
    (lambda name: "aotinductor" in name, "is a compiled model (.pt2)"),
)
"""How a member's name tells whose file it is; the first that fits, since torch's pickles have a .data/ too."""

CONVERT = (
    "Expected a checkpoint or package written by nequip-core. Files of the published nequip, 0.16 or later, become "
    "ours by `nequip convert SOURCE OUT.ckpt`."
)


def _foreign(names: frozenset[str]) -> str:
    for belongs, what in FOREIGN:
        if any(belongs(name) for name in names):
            return f"{what}. {CONVERT}"
    return f"is a zip file without manifest.json. {CONVERT}"


def _unreadable(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        return "is empty"
    if start == b"PK\x03\x04":
        return "is truncated or damaged: the copy or the write was cut off. Take another copy, or an earlier checkpoint"
    return (
        "is no checkpoint or package of nequip-core, which are zip files. Give a run's folder, a .ckpt or a .nequip.zip"
    )
