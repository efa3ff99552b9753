"""What openmm-ml finds by its entry points: ``MLPotential("nequip-compiled", modelPath="MODEL")``.

openmm-ml imports this at its own start, so it imports nothing else: an exception here would break openmm-ml.
"""

from __future__ import annotations

from typing import Any

from openmmml.mlpotential import MLPotentialImplFactory


class CompiledPotentialFactory(MLPotentialImplFactory):  # type: ignore[misc]  # openmm-ml has no types
    """Makes `nequip_openmm.mlpotential.CompiledPotential`, for any architecture; both names mean the same."""

    def createImpl(self, name: str, **options: Any) -> Any:  # noqa: N802  # openmm-ml's name
        """The potential of a model; called by openmm-ml."""
        from nequip_openmm.mlpotential import CompiledPotential

        return CompiledPotential(name, **options)
