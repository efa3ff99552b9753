"""The file of a compiled model, its bytes and its loading; what is not compiled yet is compiled."""

from __future__ import annotations

import atexit
import hashlib
import sys
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from nequip_core.data.cache import folder_of
from nequip_core.errors import InputError
from nequip_core.export.aoti import compile_model
from nequip_core.export.artifact import LoadedModel, load_model
from nequip_core.export.compiled import capability_of, is_compiled, read_metadata
from nequip_core.plugins.manager import load_registry

TARGET = "openmm"
"""Of ``nequip compile``."""

_LOADED: dict[tuple[str, str], LoadedModel] = {}
_LOCK = threading.RLock()
# Compiled models lie unpacked in temporary folders, which vanish with them; at exit Python would not get to it.
atexit.register(_LOADED.clear)


class ModelFile(NamedTuple):
    """A file and what it holds."""

    path: Path
    content: bytes
    sha256: str
    model: LoadedModel


def open_model(model: str | Path, device: str) -> ModelFile:
    """The compiled model of a file, which is compiled first where it is not.

    Args:
        model: a compiled file (.nequip.pt2), a package, a checkpoint, a run's folder.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ArtifactError: the file can not be read, or was compiled for another torch.
        InputError: it is not there; its device is not there.
    """
    path = compiled(Path(model), device)
    if device == "auto":
        device = read_metadata(path).device
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"Can not read the model {model}: {error.strerror}.") from error
    sha256 = hashlib.sha256(content).hexdigest()
    return ModelFile(path.absolute(), content, sha256, load(path, sha256, device))


def compiled(model: Path, device: str) -> Path:
    """The compiled file of a model; made once for each model, device and torch, and kept in the cache.

    Args:
        model: anything that `nequip_core.export.artifact.load_model` takes.
        device: auto, cpu, cuda or cuda:N.
    """
    if is_compiled(model):
        return model
    registry = load_registry()
    eager = load_model(model, device=device, derivatives=1, registry=registry)
    folder = folder_of("auto")
    assert folder is not None  # "off" alone has none
    where = "cpu" if eager.device.type == "cpu" else f"cuda{capability_of(eager.device)}"
    parts = (eager.hash, eager.weights, torch.__version__, where, version("nequip-core"), version("nequip-openmm"))
    name = hashlib.sha256("/".join(parts).encode()).hexdigest()[:32]
    path = folder / f"openmm-{name}.nequip.pt2"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _say(f"Compiling {eager.path} for OpenMM into {path}.")
        compile_model(eager, registry.targets[TARGET], path, registry, say=_say)
    return path


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def load(path: Path, sha256: str, device: str) -> LoadedModel:
    """The model of a file, once in a process."""
    with _LOCK:
        if (sha256, device) not in _LOADED:
            model = load_model(path, device=device)
            _LOADED[sha256, device] = _LOADED.setdefault((sha256, str(model.device)), model)
        return _LOADED[sha256, device]


def find(path: str, sha256: str, device: str, embedded: torch.Tensor | bytes | None) -> LoadedModel:
    """The model that a force names: the embedded copy, or else the file where it lay.

    Raises:
        InputError: there is no copy and the file is not what it was, or gone.
    """
    with _LOCK:
        if (sha256, device) in _LOADED:
            return _LOADED[sha256, device]
        if embedded is not None:
            content = embedded if isinstance(embedded, bytes) else embedded.cpu().numpy().tobytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise InputError(
                    f"The model inside this force, a copy of {path}, is damaged: its hash is not the one it had. "
                    "Write the force again."
                )
            with tempfile.TemporaryDirectory(prefix="nequip-openmm-") as folder:
                copy = Path(folder) / Path(path).name
                copy.write_bytes(content)
                return load(copy, sha256, device)
        file = Path(path)
        if not file.is_file():
            raise InputError(
                f"The model {path} is gone, and this force holds no copy of it. Put it back, or write the force again, "
                "with the model embedded (the default)."
            )
        if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            raise InputError(
                f"The model {path} has changed since this force was written, and the force holds no copy of it. "
                "Write the force again."
            )
        return load(file, sha256, device)
