"""The operator that files for TorchForce call: ``torch.ops.nequip_openmm.energy_forces``.

TorchForce runs a TorchScript module in C++. Ours has one line, which calls this operator; registered from Python, it
runs here again. So whatever Python can load can be inside, and the plugin needs no code of ours compiled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nequip_openmm.evaluate import box_and_factor, check_number, evaluator

_LIBRARY = torch.library.Library("nequip_openmm", "DEF")  # gone when no longer referred to
_LIBRARY.define(
    "energy_forces(Tensor positions, Tensor? first, Tensor? second, Tensor types, Tensor atoms, str spec, Tensor blob) "
    "-> (Tensor, Tensor)"
)


def _compute(
    positions: Tensor,
    first: Tensor | None,
    second: Tensor | None,
    types: Tensor,
    atoms: Tensor,
    text: str,
    blob: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Energy and forces, and the parameter that both are to be multiplied with."""
    of = evaluator(text, types, blob if blob.numel() else None, positions.device)
    check_number(of.spec, positions)
    box, factor = box_and_factor(of.spec, (first, second))
    if atoms.numel() == 0:
        energy, forces = of(positions, box)
    else:
        energy, of_atoms = of(positions.index_select(0, atoms), box)
        forces = of_atoms.new_zeros(positions.shape).index_copy(0, atoms, of_atoms)
    # The plugin reads memory as it is: contiguous, and of the positions' type.
    return energy, forces.to(positions.dtype).contiguous(), factor


def _scaled(energy: Tensor, forces: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    if factor is None:
        return energy, forces
    scale = factor.reshape(())
    return scale.to(energy) * energy, scale.to(forces) * forces


class _EnergyForces(torch.autograd.Function):
    """Energy and forces, of which the energy has derivatives by positions and parameter."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        energy, forces, factor = _compute(*arguments)
        scaled_energy, scaled_forces = _scaled(energy, forces, factor)
        ctx.factor_is = [factor is not None and factor is one for one in arguments[1:3]]
        ctx.save_for_backward(energy, scaled_forces, factor)
        ctx.mark_non_differentiable(scaled_forces)
        return scaled_energy, scaled_forces

    @staticmethod
    def backward(ctx: Any, by_energy: Tensor, by_forces: Tensor) -> tuple[Tensor | None, ...]:
        energy, forces, factor = ctx.saved_tensors
        by_factor = None if factor is None else (by_energy * energy).to(factor).reshape(factor.shape)
        by_arguments = [by_factor if is_it else None for is_it in ctx.factor_is]
        return -by_energy.to(forces) * forces, *by_arguments, None, None, None, None


def _energy_forces(*arguments: Any) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in arguments[:3]):
        result: tuple[Tensor, Tensor] = _EnergyForces.apply(*arguments)  # type: ignore[no-untyped-call]
        return result
    return _scaled(*_compute(*arguments))  # where nobody asks for derivatives, as with forces, without their price


# Not CompositeExplicitAutograd, under which a model that differentiates itself fails inside the operator.
_LIBRARY.impl("energy_forces", _energy_forces, "CompositeImplicitAutograd")
