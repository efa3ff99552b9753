"""Engines that need a package which nequip-core does not: whether it is here. Imports none of them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def check_torch_sim() -> tuple[bool, str]:
    """Whether torch-sim can run our models here, and a sentence about it."""
    try:
        found = version("torch-sim-atomistic")
    except PackageNotFoundError:
        return False, "torch-sim-atomistic is not installed: pip install 'nequip-core[torch-sim]'"
    return True, f"torch-sim-atomistic {found} is installed; NequIPModel runs in it"
