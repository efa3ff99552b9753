"""What the tests of LAMMPS on a device and those of kernels have in common; its fixtures are in conftest.py."""

from __future__ import annotations

from collections.abc import Callable

from tests.lammps.lammps_support import KEYS, Ended, Model

from nequip_core.engines.ase import NequIPCalculator

DEVICE = "cuda"
EXECUTABLE = "NEQUIP_LMP"
# The features of Allegro's first two layers are made again, by other kernels than those of the third.
MODELS = {"allegro": KEYS["allegro"] | {"num_layers": 3}, "nequip": KEYS["nequip"] | {"num_layers": 2}}

Run = Callable[..., Ended]


class OnDevice(Model):
    """The model eager on the device."""

    def calculator(self) -> NequIPCalculator:
        return NequIPCalculator.from_file(self.package, device=DEVICE, skin=0.0, kernels="reference")
