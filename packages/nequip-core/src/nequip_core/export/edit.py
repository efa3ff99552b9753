"""Changes of a finished model: each is written into its manifest, with the hash of the model that it was made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from nequip_core.errors import InputError
from nequip_core.export.package import Json, Members, model_hash
from nequip_core.export.verify import check_cases, with_check
from nequip_core.plugins.manager import CORE_DISTRIBUTION, Registry


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to be changed; what is empty or None stays.

    Attributes:
        licence: of the model.
        citations: DOIs or arXiv numbers that are added.
        atomic_energies: {type: eV}, of some types or all.
        energy_scale: {type: eV}, of some types or all.
        rename: {type: its new name}; the elements stay.
        dtype: of the weights and the inner arithmetic.
    """

    licence: str | None = None
    citations: tuple[str, ...] = ()
    atomic_energies: Mapping[str, float] = field(default_factory=dict)
    energy_scale: Mapping[str, float] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    dtype: str | None = None


def modified(path: Path, members: Members, changes: Changes, registry: Registry) -> Members:
    """The changed model, with the predictions of its check structures computed again.

    Args:
        path: of the file, for messages.
        members: of a package.
        changes: to be made. Types are named as they were before.
        registry: of plugins.

    Raises:
        InputError: there is nothing to change, a type is unknown, a new name is taken or another element's.
        ArtifactError: the members make no model.
    """
    about, model, weights = dict(members.manifest), dict(members.model), dict(members.weights)
    log: dict[str, list[Any]] = {}

    def note(what: str, before: Any, after: Any) -> None:
        if before != after:
            log[what] = [before, after]

    about |= with_about(members, changes.licence, changes.citations).manifest
    for key in ("licence", "citations"):
        note(key, members.manifest[key], about[key])
    for key, name, values in (
        ("atomic_energies", "shift", changes.atomic_energies),
        ("energy_scale", "scale", changes.energy_scale),
    ):
        if values:
            before = _by_type(model, weights[name])
            _known(path, model, values)
            weights[name] = torch.tensor([(before | dict(values))[t] for t in model["types"]], dtype=torch.float64)
            model[key] = _by_type(model, weights[name])
            note(key, before, model[key])
    if changes.rename:
        _known(path, model, changes.rename)
        note("types", model["types"], [changes.rename.get(t, t) for t in model["types"]])
        model = _renamed(path, model, changes.rename)
    if changes.dtype is not None:
        note("dtype", model["dtype"], changes.dtype)
        model["dtype"] = changes.dtype
        weights = _cast(weights, changes.dtype)
    if not log:
        raise InputError(f"{path} is so already: there is nothing to change. See `nequip package modify --help`.")

    structures = [case.structure for case in check_cases(path, members)]
    if changes.rename:
        structures = [
            replace(one, type_names=tuple(changes.rename.get(t, t) for t in one.type_names or one.symbols))
            for one in structures
        ]
    about["modified"] = [
        *about.get("modified", []),
        {
            "from": members.manifest["model_hash"],
            "changes": log,
            "versions": {p.distribution: p.version for p in registry.plugins if p.distribution == CORE_DISTRIBUTION},
        },
    ]
    about["model_hash"] = model_hash(model, weights)
    return with_check(path, replace(members, manifest=about, model=model, weights=weights), registry, structures)


def with_about(members: Members, licence: str | None, citations: Sequence[str]) -> Members:
    """The same members with a licence, unless it is None, and further citations."""
    about = dict(members.manifest)
    about["licence"] = about["licence"] if licence is None else licence
    about["citations"] = list(dict.fromkeys([*about["citations"], *citations]))
    return replace(members, manifest=about)


def without_folders(members: Members) -> Members:
    """The same members with the names of data files alone: a shared file says nothing of the disk it comes from."""
    data, check = dict(members.data), dict(members.check)
    if isinstance(data.get("sha256"), Mapping):
        data["sha256"] = {
            key: {_short(name, files): sha256 for name, sha256 in files.items()}
            if isinstance(files, Mapping)
            else files
            for key, files in data["sha256"].items()
        }
    check["structures"] = [one | {"source": Path(one["source"]).name} for one in check["structures"]]
    return replace(members, data=data, check=check)


def _short(name: str, names: Iterable[str]) -> str:
    """The last part of a path, or the last two where that is another one's too."""
    path = Path(name)
    alike = sum(Path(other).name == path.name for other in names)
    return path.name if alike == 1 else "/".join(path.parts[-2:])


def _by_type(model: Json, values: Tensor) -> dict[str, float]:
    return dict(zip(model["types"], values.tolist(), strict=True))


def _known(path: Path, model: Json, values: Mapping[str, Any]) -> None:
    unknown = [t for t in values if t not in model["types"]]
    if unknown:
        raise InputError(f"{path} has no type {', '.join(unknown)}. Its types are {', '.join(model['types'])}.")


def _renamed(path: Path, model: Json, names: Mapping[str, str]) -> Json:
    """The model block with other names of types, in every key that names them."""

    def new(t: str) -> str:
        return names.get(t, t)

    types = [new(t) for t in model["types"]]
    if len(set(types)) < len(types):
        raise InputError(f"{path}: the names would be {', '.join(types)}. Expected each once.")
    elements = {new(t): model["elements"].get(t, t) for t in model["types"]}
    wrong = [f"{t} (element {e})" for t, e in elements.items() if t in chemical_symbols[1:] and t != e]
    if wrong:
        raise InputError(
            f"{path}: {', '.join(wrong)} would have the name of another element. A new name keeps the type's element."
        )
    of_types = {
        key: {new(t): inner for t, inner in value.items()}
        for key, value in model.items()
        if isinstance(value, Mapping) and set(value) <= set(model["types"])
    }
    return {
        **model,
        **of_types,
        "types": types,
        "elements": {t: e for t, e in elements.items() if t != e},
        "pair_cutoffs": {
            new(centre): {new(t): cutoff for t, cutoff in row.items()} for centre, row in model["pair_cutoffs"].items()
        },
    }


def _cast(weights: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The architecture's weights in another dtype; scale, shift and pair potentials are float64 in both."""
    return {
        name: tensor.to(getattr(torch, dtype))
        if name.startswith("architecture.") and tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }
