"""Triton kernels for the heavy operators of nequip-core's models, a plugin of nequip-core."""
