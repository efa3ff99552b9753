"""What other programs find of nequip-openmm when they start: light modules, which import neither torch nor OpenMM.

They are no part of `nequip_openmm`, whose import brings torch and makes our operator known to it.
"""
