"""The smallest whole plugin of nequip-core."""
