"""Whether OpenMM, and its plugin openmm-torch, can run our models here."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from typing import Any

import numpy as np
import openmm
import torch
from openmm import unit

PLUGIN = "openmmtorch"
WHEELS = "acellera-openmmtorch-cpu (or -cu12, -cu13) 1.10 with torch 2.10 to 2.12"
SELF_TEST = "nequip_openmm_plugin.self_test"


@functools.cache
def plugin_verdict() -> tuple[bool, str]:
    """Whether TorchForce works, and a sentence.

    A plugin that was built for another torch is imported without complaint and fails, or ends the process, at the first
    force; so a process of its own tries two particles, once.
    """
    if importlib.util.find_spec(PLUGIN) is None:
        return False, (
            f"The plugin openmm-torch is not installed, which TorchForce comes from. Install {WHEELS}, or use "
            "backend='python', which needs no plugin."
        )
    done = subprocess.run([sys.executable, "-m", SELF_TEST], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return False, (
            f"The installed openmm-torch was built for another torch than {torch.__version__}, or does not fit OpenMM "
            f"{openmm.version.version}: two particles fail with {last[:200]!r}. Install {WHEELS}, or use "
            "backend='python', which needs no plugin."
        )
    return True, f"TorchForce works with torch {torch.__version__}"


def platforms() -> list[str]:
    """Names of OpenMM's platforms here."""
    return [openmm.Platform.getPlatform(n).getName() for n in range(openmm.Platform.getNumPlatforms())]


def check() -> tuple[bool, str]:
    """Whether the engine can run here, and a sentence about it."""
    plugin = "TorchForce is tried by `nequip openmm check`" if importlib.util.find_spec(PLUGIN) else "no TorchForce"
    return True, (
        f"OpenMM {openmm.version.version} is installed (platforms {', '.join(platforms())}; {plugin}); "
        "nequip_openmm.create_system runs in it"
    )


def examine() -> dict[str, Any]:
    """``{openmm, torch, platforms, backends: {name: {usable, sentence}}}``; tries a force with each backend."""
    verdicts = {"python": python_verdict(), "torchforce": plugin_verdict()}
    return {
        "openmm": openmm.version.version,
        "torch": torch.__version__,
        "platforms": platforms(),
        "backends": {name: {"usable": usable, "sentence": text} for name, (usable, text) in verdicts.items()},
    }


class Spring:
    """Two particles on a spring of 1 kJ/mol/nm^2, as a force in Python."""

    def __call__(self, state: Any) -> tuple[float, Any]:
        """Energy and forces."""
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        vector = positions[1] - positions[0]
        return 0.5 * float(vector @ vector), np.stack([vector, -vector])


def python_verdict() -> tuple[bool, str]:
    """Whether PythonForce works on every platform, and a sentence."""
    for name in platforms():
        system = openmm.System()
        for _ in range(2):
            system.addParticle(1.0)
        system.addForce(openmm.PythonForce(Spring()))
        try:
            context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(name))
            context.setPositions([[0, 0, 0], [0.5, 0, 0]])
            force = (
                context.getState(forces=True)
                .getForces(asNumpy=True)
                .value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
            )
        except openmm.OpenMMException as error:
            return False, f"A PythonForce fails on the platform {name}: {error}."
        if abs(force[0, 0] - 0.5) > 1e-5:
            return False, f"A PythonForce gives {force[0, 0]:g} on the platform {name}; expected 0.5."
    return True, f"PythonForce works on {', '.join(platforms())}"
