"""Neighbour lists: who is within the cut-off of whom.

`libraries`: on the CPU, by well-kept libraries, one structure at a time. `device`: of tensors, on the CPU or a CUDA
device, many structures at once. `skin`: a library's list that serves several steps (`nequip_core.skin` does the same on
the device). All give the same pairs.
"""

from nequip_core.neighbors.device import DEVICE, DeviceNeighborList, TensorPairs, make_device
from nequip_core.neighbors.libraries import DEFAULT, NeighborList, Pairs, make_matscipy, make_vesin
from nequip_core.neighbors.skin import SkinNeighborList

__all__ = [
    "DEFAULT",
    "DEVICE",
    "DeviceNeighborList",
    "NeighborList",
    "Pairs",
    "SkinNeighborList",
    "TensorPairs",
    "make_device",
    "make_matscipy",
    "make_vesin",
]
