"""Fields of typed configs, each with its description and unit, from which the reference page is generated."""

from __future__ import annotations

from dataclasses import field
from typing import Any

MISSING = "???"
"""OmegaConf's mark of a value that has no default."""


def key(default: Any, text: str, unit: str | None = None) -> Any:
    """A dataclass field with its description and unit."""
    metadata = {"text": text, "unit": unit}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
