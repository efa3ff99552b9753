"""Allegro: strictly local equivariant interatomic potentials, a plugin of nequip-core."""
