"""Lightning's checkpoints in our container: what torch would pickle becomes JSON and safetensors.

Every value of the checkpoint keeps its type: dictionaries with keys that are not text, tuples, numbers that are not
finite. A value of an unknown type is refused by its name when the checkpoint is written, not found missing when it is
needed.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from nequip_core.errors import ArtifactError
from nequip_core.export.package import (
    CheckCase,
    Json,
    Members,
    Provenance,
    Tensors,
    TrainingMembers,
    manifest,
    pack_check,
    read_package,
    write_package,
)

PREFIX = "potential.model."
"""Of the model's weights in the Lightning module's state dict."""


class PackageIO(CheckpointIO):
    """Lightning's reading and writing of checkpoints, on `nequip_core.export.package`.

    `nequip_core.training.module.TrainingModule` adds to Lightning's dictionary: "ema" (or None), "metrics", "check".

    Args:
        provenance: what the files say besides the weights and the state.
    """

    def __init__(self, provenance: Provenance) -> None:
        self.provenance = provenance

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            ArtifactError: it holds a value of an unknown type.
            InputError: the folder can not be written to, or the disk is full.
        """
        rest = dict(checkpoint)
        trained = {name.removeprefix(PREFIX): t for name, t in rest.pop("state_dict").items()}
        ema = rest.pop("ema")
        optimizer = rest.pop("optimizer_states")
        metrics: Json = rest.pop("metrics")
        cases: list[CheckCase] = rest.pop("check")
        weights, raw = (trained, {}) if ema is None else ({**trained, **ema["average"]}, trained)
        rest["ema_updates"] = None if ema is None else ema["updates"]
        state_tensors: Tensors = {}
        optimizer_tensors: Tensors = {}
        check, check_tensors = pack_check(cases, weights)
        kind = "raw" if ema is None else "ema"
        training = TrainingMembers(
            config=self.provenance.config,
            state=encode(rest, state_tensors, "state"),
            state_tensors=state_tensors,
            raw=raw,
            optimizer={"states": encode(optimizer, optimizer_tensors, "optimizer")},
            optimizer_tensors=optimizer_tensors,
        )
        members = Members(
            manifest=manifest(self.provenance, kind=kind, weights=weights, raw=raw),
            model=self.provenance.model,
            weights=weights,
            data=self.provenance.data,
            metrics=metrics,
            check=check,
            check_tensors=check_tensors,
            training=training,
        )
        write_package(path, members)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Lightning's dictionary again, tensors on the CPU. Nothing is unpickled, whatever ``weights_only`` says.

        Raises:
            ArtifactError: see `nequip_core.export.package.read_package`.
        """
        members = read_package(path, training=True)
        training = members.training
        assert training is not None
        checkpoint: dict[str, Any] = decode(training.state, training.state_tensors)
        updates = checkpoint.pop("ema_updates")
        checkpoint["ema"] = None if updates is None else {"updates": updates, "average": members.weights}
        checkpoint["metrics"] = members.metrics
        checkpoint["optimizer_states"] = decode(training.optimizer["states"], training.optimizer_tensors)
        trained = training.raw or members.weights
        checkpoint["state_dict"] = {f"{PREFIX}{name}": t for name, t in trained.items()}
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint that may exist."""
        Path(path).unlink(missing_ok=True)


def encode(value: Any, tensors: Tensors, where: str) -> Any:
    """A value as JSON; tensors go to ``tensors`` under the name ``where``.

    Raises:
        ArtifactError: it is of an unknown type.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, Tensor):
        tensors[where] = value
        return {"$tensor": where}
    if type(value) is list:
        return [encode(item, tensors, f"{where}/{n}") for n, item in enumerate(value)]
    if type(value) is dict and all(type(key) is str and not key.startswith("$") for key in value):
        return {key: encode(item, tensors, f"{where}/{key}") for key, item in value.items()}
    if type(value) in PAIRS:
        pairs = [[encode(key, tensors, where), encode(item, tensors, f"{where}/{key}")] for key, item in value.items()]
        return {PAIRS[type(value)]: pairs}
    if type(value) in ITEMS:
        return {ITEMS[type(value)]: [encode(item, tensors, f"{where}/{n}") for n, item in enumerate(value)]}
    kind = type(value)
    raise ArtifactError(
        f"The checkpoint can not hold {where}, a {kind.__module__}.{kind.__qualname__}. It holds numbers, text, lists, "
        "tuples, sets, dictionaries and tensors: make it one of these in the state_dict of that part."
    )


PAIRS: dict[type, str] = {dict: "$dict", OrderedDict: "$OrderedDict", Counter: "$Counter"}
"""Mappings that JSON does not keep as they are, and their marks."""

ITEMS: dict[type, str] = {tuple: "$tuple", set: "$set"}
"""Sequences likewise."""


def decode(value: Any, tensors: Tensors) -> Any:
    """What `encode` was given."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    mark = next(iter(value), "")
    if mark == "$tensor":
        return tensors[value[mark]]
    if mark == "$float":
        return float(value[mark])
    if mark in PAIRS.values():
        make: Callable[..., Any] = next(kind for kind, name in PAIRS.items() if name == mark)
        return make({decode(key, tensors): decode(item, tensors) for key, item in value[mark]})
    if mark in ITEMS.values():
        make = next(kind for kind, name in ITEMS.items() if name == mark)
        return make(decode(item, tensors) for item in value[mark])
    return {key: decode(item, tensors) for key, item in value.items()}
