"""What a force is, apart from its atoms' types and the model itself: one JSON text, inside files and pickles."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Self

from nequip_openmm.errors import OpenMMError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A force.

    Attributes:
        path: of the model's file, where it lay when the force was made.
        sha256: of the model's file.
        device: cpu, cuda or cuda:N.
        particles: how many the system has (a PythonForce: how many the model sees).
        periodic: whether the model sees periodic images.
        box: whether the force gets a box: where it is periodic, and where a molecule of a periodic system is unwrapped.
        parameter: name of the global parameter that energy and forces are multiplied with, or None.
        energy_only: whether TorchForce gets the energy and differentiates it, instead of energy and forces.
        skin: of the neighbour list, Å.
        parents: see `nequip_openmm.region.parents`; of a molecule that is unwrapped, else empty.
        key: tells forces apart that differ in their atoms only.
    """

    path: str
    sha256: str
    device: str
    particles: int
    periodic: bool
    box: bool
    parameter: str | None
    energy_only: bool
    skin: float
    parents: tuple[int, ...]
    key: str

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The spec of a line.

        Raises:
            OpenMMError: it is of another version.
        """
        values = json.loads(text)
        schema = values.pop("schema", None)
        if schema != SCHEMA or values.keys() != {one.name for one in fields(cls)}:
            raise OpenMMError(
                f"This force was written by another version of nequip-openmm (schema {schema}; here it is {SCHEMA}). "
                "Write it again with `nequip openmm export` or python_force."
            )
        return cls(**{**values, "parents": tuple(values["parents"])})
