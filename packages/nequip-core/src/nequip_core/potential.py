"""Energy to forces, virial and atomic virials: the only place with ``autograd.grad``.

One gradient by the edge vectors, f_e = dE/dr_e with E the sum of the local atoms' energies, gives everything:

* forces: F_i = sum over edges with centre i of f_e - sum over edges with neighbour i of f_e  (= -dE/dx_i)
* virial of a structure: -sum_e r_e (x) f_e  (= -dE/dstrain, LAMMPS' sign)
* stress: -virial / V  (tension positive, ASE's sign)
* atomic virial of atom k: -sum over edges with neighbour k of r_e (x) f_e; their sum is the virial.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Prediction(NamedTuple):
    """What a potential computes, float64.

    Attributes:
        energy: sum of the local atoms' energies of each structure, eV.
        atomic_energy: eV; ghosts' are not counted in ``energy``.
        forces: -dE/dx, eV/Å.
        virial: -dE/dstrain, eV.
        atomic_virial: eV; None unless asked for.
    """

    energy: Float[Tensor, "structures"]
    atomic_energy: Float[Tensor, "atoms"]
    forces: Float[Tensor, "atoms 3"]
    virial: Float[Tensor, "structures 3 3"]
    atomic_virial: Float[Tensor, "atoms 3 3"] | None = None
