"""Checkpoints and packages of the published packages (nequip, nequip-allegro), and their models as ours.

Both are zip files with pickles inside. Nothing of them is run: checkpoints are read by torch's weights-only unpickler,
and what that refuses, and packages, by one that knows tensors and containers and makes an inert stand-in of anything
else that the file names.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import torch
import yaml
from ase.data import chemical_symbols
from torch import Tensor

from nequip_core.errors import ArtifactError, InputError
from nequip_core.export.package import Json, Members, Provenance, Tensors, TrainingMembers, manifest
from nequip_core.export.verify import with_check
from nequip_core.files import sha256
from nequip_core.models.build import build_model
from nequip_core.ops.select import Ops
from nequip_core.plugins.manager import CORE_DISTRIBUTION, Registry
from nequip_core.plugins.records import ModelEntry

SOLE_MODEL = "sole_model"
"""The published name of the model of a file that holds one."""

OLDEST = (0, 16)
"""The first published nequip whose models have the form of today's."""

DISTRIBUTIONS = {"allegro": "nequip-allegro"}
"""Where a published builder's top-level module has a plugin of ours: the distribution to install."""

ELEMENTS = frozenset(chemical_symbols[1:])


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a published file holds.

    Attributes:
        path: of the file.
        kind: of the file.
        versions: of the packages that wrote it.
        config: its training config: "data", "trainer", "training_module".
        options: the arguments of the model's builder, "_target_" among them.
        weights: the model's state dict without the wrappers' prefix; the averaged ones where there are any.
        raw: the trained ones where ``weights`` are averages that the file holds them beside; else empty.
        averaged: whether ``weights`` are averages (EMA).
        licence: that the file states.
    """

    path: Path
    kind: Literal["checkpoint", "package"]
    versions: dict[str, str]
    config: Json
    options: Json
    weights: Tensors
    raw: Tensors
    averaged: bool
    licence: str | None


def read_published(path: str | Path) -> Published:
    """Read a checkpoint or package of the published packages; tensors on the CPU. Runs no code of the file.

    Raises:
        ArtifactError: the file is missing, truncated, foreign, or of a version before `OLDEST`.
        InputError: it holds several models, or one whose config the file does not hold.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} is no file. Expected a checkpoint or package of the published nequip.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            if "manifest.json" in archive.namelist():
                raise ArtifactError(f"{path} is a file of nequip-core: there is nothing to convert.")
            damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            if "model/eager_model.pkl" in names:
                found = _read_package(path, archive, names)
            elif "data.pkl" in names:
                found = _read_checkpoint(path, archive, names)
            else:
                raise ArtifactError(
                    f"{path} is a zip file, but neither a checkpoint nor a package of the published nequip (it holds "
                    f"{', '.join(sorted(names)[:4])} ...)."
                )
    except zipfile.BadZipFile as error:
        raise ArtifactError(
            f"{path} is no zip file, or is truncated or damaged ({error}). Expected a checkpoint (.ckpt) or package "
            "(.nequip.zip) of the published nequip, 0.16 or later; take another copy."
        ) from error
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError, AttributeError, TypeError, ValueError) as error:
        # Whatever an unpickler meets in a file that was not made by what it says.
        raise ArtifactError(
            f"{path} is not as the published nequip writes it ({type(error).__name__}: {error})."
        ) from error
    _check_version(found)
    return found


def convert(
    published: Published, registry: Registry, *, elements: Mapping[str, str] | None = None, licence: str | None = None
) -> Members:
    """The same model as a checkpoint of ours, whose training state holds the raw weights only.

    Args:
        published: what `read_published` gave.
        registry: whose models can be converted.
        elements: of types whose names are no element symbols; what the file says of them need not be repeated.
        licence: of the model; the file's own unless given.

    Raises:
        InputError: an option of the model has no counterpart; a type's element is not known.
        ArtifactError: no installed plugin has this architecture, or weights do not fit their options.
    """
    entry = _entry(published, registry)
    assert entry.from_published is not None
    from_published = entry.from_published.load()
    options = {key: value for key, value in published.options.items() if key != "_target_"}
    try:
        config, weights = from_published(options, published.weights, published.versions)
        raw = from_published(options, published.raw, published.versions).weights if published.raw else {}
    except (KeyError, RuntimeError) as error:
        raise ArtifactError(
            f"{published.path}: its weights do not fit its options ({type(error).__name__}: {error})."
        ) from error
    known = {
        **config.get("elements", {}),
        **elements_of_transforms(published.config.get("data") or {}, config["types"]),
        **(elements or {}),
    }
    resolved = entry.config.load()(
        **{**config, "name": entry.name, "elements": _elements(published.path, config["types"], known)}
    )
    with torch.random.fork_rng(devices=[]):
        model = build_model(entry, resolved, Ops(registry.kernels, dtype=getattr(torch, resolved.dtype)))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for state in (weights, raw):
        received = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if state and received != expected:
            wrong = sorted(n for n in expected.keys() | received.keys() if expected.get(n) != received.get(n))
            raise ArtifactError(f"{published.path}: its weights do not fit its options ({', '.join(wrong[:5])}).")
    plugin = next(plugin for plugin in registry.plugins if entry.name in plugin.records["models"])
    core = next(plugin for plugin in registry.plugins if plugin.distribution == CORE_DISTRIBUTION)
    provenance = Provenance(
        model=asdict(resolved),
        data={},
        config={},
        versions={p.distribution: p.version for p in (core, plugin)},
        provider=f"{plugin.distribution} {plugin.version}",
        citations=[entry.reference] if entry.reference else [],
        licence=licence or published.licence,
    )
    # A package of averages holds no trained weights, and so is no checkpoint of ours.
    training = (
        TrainingMembers(config={}, state={}, state_tensors={}, raw=raw, optimizer={"states": []}, optimizer_tensors={})
        if raw or not published.averaged
        else None
    )
    kind = "ema" if published.averaged else "raw"
    about = manifest(provenance, kind=kind, weights=weights, raw=raw)
    source = {
        "file": published.path.name,
        "sha256": sha256(published.path),
        "kind": f"published {published.kind}",
        "versions": published.versions,
    }
    members = Members(
        manifest=about | {"converted_from": source},
        model=provenance.model,
        weights=weights,
        data={},
        metrics={},
        check={"structures": []},
        check_tensors={},
        training=training,
    )
    return with_check(published.path, members, registry)


# ---------------------------------------------------------------------------------------------------- reading


def _read_checkpoint(path: Path, archive: zipfile.ZipFile, names: Mapping[str, str]) -> Published:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # Objects that torch does not know, such as a callback's; ours stand in for them.
        with archive.open(names["data.pkl"]) as file:
            content = Unpickler(file, lambda key: archive.read(names[f"data/{key}"])).load()
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), Mapping):
        raise ArtifactError(f"{path} is a torch file, but no Lightning checkpoint: it has no state_dict.")
    info = content.get("hyper_parameters", {}).get("info_dict")
    if not isinstance(info, Mapping) or "training_module" not in info:
        raise ArtifactError(
            f"{path} is a Lightning checkpoint, but not of the published nequip, 0.16 or later: it holds no config."
        )
    options = _options(path, info["training_module"]["model"])
    state = content["state_dict"]
    names_of_models = {name.split(".")[1] for name in state if name.startswith("model.")}
    _check_sole(path, names_of_models)
    trained = _unwrapped(state, f"model.{SOLE_MODEL}.")
    averages = [state[f"ema.ema_weight_{n}"] for n in range(sum(name.startswith("ema.ema_weight_") for name in state))]
    return Published(
        path=path,
        kind="checkpoint",
        versions={name: str(version) for name, version in info["versions"].items()},
        config={key: value for key, value in info.items() if key != "versions"},
        options=options,
        weights=_averaged(path, trained, averages, options) if averages else trained,
        raw=trained if averages else {},
        averaged=bool(averages),
        licence=None,
    )


def _read_package(path: Path, archive: zipfile.ZipFile, names: Mapping[str, str]) -> Published:
    about = yaml.safe_load(archive.read(names["model/package_metadata.txt"]))
    config = yaml.safe_load(archive.read(names["model/config.yaml"]))
    with archive.open(names["model/eager_model.pkl"]) as file:
        models = Unpickler(file, lambda key: archive.read(names[f".data/{key}.storage"])).load()
    tensors = dict(_tensors(models, ""))
    _check_sole(path, {name.partition(".")[0] for name in tensors})
    training = config["training_module"]
    licences = [original for name, original in names.items() if name.rpartition("/")[2].upper() in LICENCES]
    return Published(
        path=path,
        kind="package",
        versions={name: str(version) for name, version in about["versions"].items()},
        config=config,
        options=_options(path, training["model"]),
        weights=_unwrapped(tensors, f"{SOLE_MODEL}."),
        raw={},
        # Packages are made with the averages where there are any.
        averaged="EMA" in str(training["_target_"]).rpartition(".")[2],
        licence=about.get("licence")
        or about.get("license")
        or (archive.read(licences[0]).decode(errors="replace").strip() if licences else None),
    )


LICENCES = ("LICENSE", "LICENCE", "LICENSE.TXT", "LICENCE.TXT", "LICENSE.MD", "LICENCE.MD")

KERNELS = (
    "enable_OpenEquivariance",
    "enable_CuEquivariance",
    "enable_TritonContracter",
    "enable_CuEquivarianceContracter",
)
"""Published modifiers that change the speed only."""


def _options(path: Path, model: Mapping[str, Any]) -> Json:
    """The arguments of the innermost builder, modifiers applied.

    Raises:
        InputError: the model was made from another file; it is modified in a way that has no counterpart.
    """
    name = str(model["_target_"]).rpartition(".")[2]
    if name == "modify":
        options = _options(path, model["model"])
        for modifier in model["modifiers"]:
            given = dict(modifier)
            what = given.pop("modifier")
            if what == "modify_PerTypeScaleShift":
                # The weights hold the numbers.
                for part in ("scales", "shifts"):
                    options[f"per_type_energy_{part}_trainable"] = bool(given.get(f"{part}_trainable", False))
            elif what not in KERNELS:
                raise InputError(f"{path}: its model has the modifier {what}, which has no counterpart here.")
        return options
    if name in ("ModelFromPackage", "ModelFromCheckpoint"):
        origin = Path(str(model.get("package_path", model.get("checkpoint_path"))))
        if not origin.is_file():
            raise InputError(
                f"{path}: its model was made from {origin}, which alone holds the model's options. Put that file there "
                "(relative to this folder), or package the model with its `nequip-package build` and convert that."
            )
        return dict(read_published(origin).options)
    return dict(model)


def _check_sole(path: Path, models: set[str]) -> None:
    if models != {SOLE_MODEL}:
        raise InputError(f"{path} holds the models {', '.join(sorted(models))}. Files of one model can be converted.")


def _check_version(found: Published) -> None:
    version = found.versions.get("nequip", "0")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
        raise ArtifactError(f"{found.path} was written by nequip {version}. Models of 0.16 and later can be converted.")


def _unwrapped(state: Mapping[str, Any], prefix: str) -> Tensors:
    """The model's own tensors, with the names that they have inside the wrappers."""
    start = f"{prefix}model.func."
    return {name.removeprefix(start): t.detach() for name, t in state.items() if name.startswith(start)}


BUFFERS = ("output_mask", "atomic_numbers", "w3j", "lower", "upper")
"""Last parts of the names of what is never trained; nor is what begins with an underscore."""

TRAINABLE = {
    "bessel_weights": "bessel_trainable",
    "scales": "per_type_energy_scales_trainable",
    "shifts": "per_type_energy_shifts_trainable",
}
"""Last parts of the names of what is a parameter where this option says so."""


def _averaged(path: Path, trained: Tensors, averages: list[Tensor], options: Json) -> Tensors:
    """The trained weights with their averages, which are stored by number, in their places."""
    places = [name for name, tensor in trained.items() if _is_parameter(name, tensor, options)]
    shapes = [tuple(trained[name].shape) for name in places]
    if shapes != [tuple(average.shape) for average in averages]:
        raise ArtifactError(f"{path}: its averaged weights (EMA) do not fit its trained ones.")
    return {**trained, **dict(zip(places, averages, strict=True))}


def _is_parameter(name: str, tensor: Tensor, options: Json) -> bool:
    last = name.rpartition(".")[2]
    if last in TRAINABLE:
        return bool(_find(options, TRAINABLE[last]))
    return last not in BUFFERS and not last.startswith("_") and tensor.numel() > 0


def _find(options: Any, key: str) -> Any:
    """An option at any depth: Allegro's two-body embedding has its own."""
    if not isinstance(options, Mapping):
        return None
    return options.get(key) or next(filter(None, (_find(value, key) for value in options.values())), None)


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a stand-in of a torch module: its own tensors, then those of its children."""
    state = module.state if isinstance(module, StandIn) else {}
    for part in ("_parameters", "_buffers"):
        for name, tensor in (state.get(part) or {}).items():
            if isinstance(tensor, Tensor):
                yield f"{prefix}{name}", tensor
    for name, child in (state.get("_modules") or {}).items():
        yield from _tensors(child, f"{prefix}{name}.")


class StandIn:
    """In the place of an object whose class is not known: keeps what it was given, does nothing.

    Attributes:
        state: what a pickle restores the object from.
    """

    state: dict[str, Any]

    def __new__(cls, *args: Any, **keywords: Any) -> StandIn:
        """With any arguments."""
        made = object.__new__(cls)
        made.state = {}
        return made

    def __init__(self, *args: Any, **keywords: Any) -> None:
        pass

    def __call__(self, *args: Any, **keywords: Any) -> StandIn:
        """Of a function or class: itself."""
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Of a list; the item is dropped."""

    def extend(self, items: Any) -> None:
        """Of a list; the items are dropped."""

    def add(self, item: Any) -> None:
        """Of a set; the item is dropped."""


STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone()


def _parameter(tensor: Tensor, *rest: Any) -> Tensor:
    return tensor


class Unpickler(pickle.Unpickler):
    """Reads tensors, containers, numbers and text; everything else becomes a `StandIn`.

    Args:
        file: the pickle.
        storage: the bytes of a tensor's storage, by its key.
    """

    KNOWN: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("builtins", "frozenset"): frozenset,
        ("torch", "Size"): tuple,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        **{("torch", name): dtype for name, dtype in STORAGES.items()},
    }

    def __init__(self, file: IO[bytes], storage: Callable[[str], bytes]) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle means: never the object of that name."""
        return self.KNOWN.get((module, name)) or type(name.rpartition(".")[2], (StandIn,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Any:
        """A storage as a one-dimensional tensor; of other things (scripted modules) a stand-in."""
        if not (isinstance(pid, tuple) and pid[0] == "storage" and isinstance(pid[1], torch.dtype)):
            return StandIn()
        content = bytearray(self._storage(str(pid[2])))
        return torch.frombuffer(content, dtype=pid[1]) if content else torch.zeros(0, dtype=pid[1])


# ------------------------------------------------------------------------------------------------- converting


def _entry(published: Published, registry: Registry) -> ModelEntry:
    target = str(published.options["_target_"])
    module, _, name = target.rpartition(".")
    for entry in registry.models.values():
        if name in entry.published and entry.from_published is not None:
            return entry
    known = ", ".join(name for entry in registry.models.values() for name in entry.published)
    distribution = DISTRIBUTIONS.get(module.partition(".")[0])
    if distribution is not None and distribution not in {plugin.distribution for plugin in registry.plugins}:
        raise ArtifactError(
            f"{published.path} holds a model of {target}, which needs the plugin {distribution}: pip install "
            f"--find-links dist {distribution}"
        )
    raise ArtifactError(
        f"{published.path} holds a model of {target}, which no installed plugin can convert. These can be: {known}."
    )


def elements_of_transforms(data: Json, types: list[str]) -> dict[str, str]:
    """The elements of types as the training data's transforms map them."""
    found: dict[str, str] = {}
    for transform in data.get("transforms") or []:
        if str(transform.get("_target_", "")).endswith("ChemicalSpeciesToAtomTypeMapper"):
            chart = transform.get("chemical_species_to_atom_type_map")
            symbols = transform.get("chemical_symbols")
            if isinstance(chart, Mapping):
                found |= {t: element for element, t in chart.items() if t in types and t != element}
            elif isinstance(symbols, list) and len(symbols) == len(types):
                found |= {t: element for t, element in zip(types, symbols, strict=True) if t != element}
    return found


def _elements(path: Path, types: list[str], known: Mapping[str, str]) -> dict[str, str]:
    unknown = [t for t in types if known.get(t, t) not in ELEMENTS]
    if unknown:
        example = ",".join(f"{t}=O" for t in unknown)
        raise InputError(
            f"{path}: the types {', '.join(unknown)} are no element symbols, and the file does not say which elements "
            f"they are. Say it: --elements {example}"
        )
    return {t: known[t] for t in types if known.get(t, t) != t}
