"""A model as a file for OpenMM's TorchForce (the plugin openmm-torch), and the TorchForce of such a file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nequip_core.errors import ArtifactError
from nequip_core.files import atomic_write
from nequip_openmm.check import plugin_verdict
from nequip_openmm.errors import OpenMMError, as_openmm
from nequip_openmm.prepare import Prepared, prepare
from nequip_openmm.region import Atoms, Types
from nequip_openmm.spec import Spec


class Shell(nn.Module):
    """What TorchForce loads: calls our operator and returns energy and forces.

    Args:
        types: [n] type of each atom of the model.
        atoms: [n] its particle; empty: all particles.
        spec: see `nequip_openmm.spec.Spec`.
        blob: bytes of the model; empty: read from its path.
    """

    def __init__(self, types: Tensor, atoms: Tensor, spec: str, blob: Tensor) -> None:
        super().__init__()
        self.register_buffer("types", types)
        self.register_buffer("atoms", atoms)
        self.register_buffer("blob", blob)
        self.spec = spec

    def forward(
        self, positions: Tensor, first: Tensor | None = None, second: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Energy, kJ/mol, and forces, kJ/mol/nm; after the positions come the box and the global parameter, if any."""
        energy, forces = torch.ops.nequip_openmm.energy_forces(
            positions, first, second, self.types, self.atoms, self.spec, self.blob
        )
        return energy, forces


class EnergyShell(Shell):
    """The same for a TorchForce that differentiates the energy itself."""

    def forward(  # type: ignore[override]
        self, positions: Tensor, first: Tensor | None = None, second: Tensor | None = None
    ) -> Tensor:
        """Energy, kJ/mol."""
        energy, _ = torch.ops.nequip_openmm.energy_forces(
            positions, first, second, self.types, self.atoms, self.spec, self.blob
        )
        return energy  # type: ignore[no-any-return]


def script(ready: Prepared) -> torch.jit.ScriptModule:
    """The TorchScript module of what `nequip_openmm.prepare.prepare` gave."""
    blob = torch.from_numpy(np.frombuffer(ready.content or b"", dtype=np.uint8).copy())
    kind = EnergyShell if ready.spec.energy_only else Shell
    shell = kind(ready.types, ready.indices, ready.spec.to_json(), blob).eval()
    with quiet():
        module: torch.jit.ScriptModule = torch.jit.script(shell)
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings of TorchScript, which here is no choice of ours but what TorchForce reads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.[a-z]+` is deprecated", category=DeprecationWarning)
        yield


@as_openmm()
def export_torchforce(
    model: str | Path,
    atoms_of: Atoms,
    path: str | Path,
    *,
    embed: bool = True,
    atoms: Iterable[int] | None = None,
    periodic: bool | None = None,
    lambda_name: str | None = None,
    energy_only: bool = False,
    types: Types = None,
    device: str = "auto",
    skin: float = 1.0,
) -> Path:
    """Write a file for ``TorchForce(path)``; `usage` gives the lines that go with it.

    Args:
        model: a compiled file (.nequip.pt2); a package, checkpoint or run's folder is compiled first.
        atoms_of: the topology, or the element of every particle.
        path: of the file, NAME.pt.
        embed: whether the file holds the model, or only says where it lies.
        atoms: the particles that the model sees; None: all that have an element.
        periodic: see `nequip_openmm.python_force`.
        lambda_name: of a global parameter that energy and forces are multiplied with.
        energy_only: for a TorchForce without ``setOutputsForces``.
        types: element -> type, where the model has several types of an element; or each atom's.
        device: auto, cpu, cuda, cuda:N.
        skin: of the neighbour list, Å.

    Returns:
        The path.

    Raises:
        OpenMMError: one of these can not be used, or the file can not be written.
    """
    ready = prepare(
        model,
        atoms_of,
        atoms=atoms,
        periodic=periodic,
        lambda_name=lambda_name,
        types=types,
        device=device,
        skin=skin,
        embed=embed,
        energy_only=energy_only,
    )
    module = script(ready)
    with atomic_write(path, "wb") as file, quiet():
        torch.jit.save(module, file)
    return Path(path)


def read_spec(path: str | Path) -> Spec:
    """What a file for TorchForce says about itself.

    Raises:
        ArtifactError: it is no such file.
    """
    if not Path(path).is_file():
        raise ArtifactError(f"{path} is no file. Expected one that `nequip openmm export` wrote.")
    try:
        with quiet():
            module = torch.jit.load(str(path), map_location="cpu")
        text = module.spec
        json.loads(text)
    except (RuntimeError, AttributeError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path} was not written by `nequip openmm export`, or is cut off. Write it again."
        ) from error
    return Spec.from_json(text)


def usage(spec: Spec, path: str | Path) -> str:
    """The lines that a user types for a file."""
    lines = ["import nequip_openmm", "from openmmtorch import TorchForce", f'force = TorchForce("{path}")']
    if not spec.energy_only:
        lines.append("force.setOutputsForces(True)")
    if spec.box:
        lines.append("force.setUsesPeriodicBoundaryConditions(True)")
    if spec.parameter is not None:
        lines.append(f'force.addGlobalParameter("{spec.parameter}", 1.0)')
    return "\n".join([*lines, "system.addForce(force)"])


@as_openmm()
def torch_force(path: str | Path) -> Any:
    """The TorchForce of a file, its flags set as the file needs them.

    Raises:
        OpenMMError: the plugin is missing or was built for another torch; the file is none of ours.
    """
    spec = read_spec(path)
    return flagged(_plugin().TorchForce(str(path)), spec)


def of_prepared(ready: Prepared) -> Any:
    """The TorchForce of what `nequip_openmm.prepare.prepare` gave, without a file.

    Raises:
        OpenMMError: the plugin is missing or was built for another torch.
    """
    return flagged(_plugin().TorchForce(script(ready)), ready.spec)


def flagged(force: Any, spec: Spec) -> Any:
    """The force with the flags of its spec."""
    force.setOutputsForces(not spec.energy_only)
    force.setUsesPeriodicBoundaryConditions(spec.box)
    if spec.parameter is not None:
        force.addGlobalParameter(spec.parameter, 1.0)
        force.addEnergyParameterDerivative(spec.parameter)
    force.setName("NequIP")
    return force


def _plugin() -> Any:
    usable, sentence = plugin_verdict()
    if not usable:
        raise OpenMMError(sentence)
    import openmmtorch

    return openmmtorch
