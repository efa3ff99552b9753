"""Models of nequip-core in OpenMM.

    import nequip_openmm
    system = nequip_openmm.create_system(pdb.topology, "MODEL")

The import makes the operator known to torch that files for TorchForce call.
"""

from __future__ import annotations

from nequip_openmm import torch_operator as torch_operator  # registers the operator
from nequip_openmm.errors import OpenMMError
from nequip_openmm.pythonforce import python_force
from nequip_openmm.system import create_system
from nequip_openmm.torchforce import export_torchforce, torch_force

__all__ = ["OpenMMError", "create_system", "export_torchforce", "python_force", "torch_force"]
