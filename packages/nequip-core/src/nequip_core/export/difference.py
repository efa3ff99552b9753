"""What two packages have in common, and what not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nequip_core.export.package import Json, Members, Tensors

ABSENT = "(absent)"
"""In the place of a value that one of the two does not have."""

FILES = ("model", "manifest", "data", "metrics")
"""The JSON members that are compared."""

HASHES = ("model_hash", "raw_model_hash")
"""Of the manifest; what they are hashes of is compared instead."""


def difference(a: Members, b: Members) -> Json:
    """``{same_model, model, manifest, data, metrics, weights}``.

    The JSON members give ``{key: [a's, b's]}`` with nested keys joined by dots, weights ``{name: {...}}`` with the
    ``largest`` absolute difference, the ``relative`` one (root mean square over that of a's), and the ``values`` of
    those with one number for each type.
    """
    found: Json = {"same_model": a.manifest["model_hash"] == b.manifest["model_hash"]}
    for name in FILES:
        found[name] = _changed(_flat(getattr(a, name)), _flat(getattr(b, name)))
    for name in HASHES:
        found["manifest"].pop(name, None)
    found["weights"] = _weights(a.weights, b.weights)
    return found


def is_empty(found: Json) -> bool:
    """Whether nothing differs."""
    return not any(found[name] for name in (*FILES, "weights"))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) else {f"{prefix}{key}": inner}
    return flat


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    keys = [*a, *(key for key in b if key not in a)]
    return {key: [a.get(key, ABSENT), b.get(key, ABSENT)] for key in keys if a.get(key, ABSENT) != b.get(key, ABSENT)}


def _weights(a: Tensors, b: Tensors) -> Json:
    found: Json = {}
    for name in [*a, *(name for name in b if name not in a)]:
        one, other = a.get(name), b.get(name)
        if _kind(one) != _kind(other):
            found[name] = {"kind": [_kind(one), _kind(other)]}
        elif one is not None and other is not None and not torch.equal(one, other):
            delta, size = (other.double() - one.double()), one.double().norm()
            found[name] = {
                "largest": float(delta.abs().max()),
                "relative": float(delta.norm() / size) if size > 0 else None,
            }
            if name in ("scale", "shift"):
                found[name]["values"] = [one.tolist(), other.tolist()]
    return found


def _kind(tensor: Tensor | None) -> str:
    return ABSENT if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
