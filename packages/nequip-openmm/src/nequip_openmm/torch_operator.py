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


class _EnergyForces(torch.autograd.Function):
    """Energy and forces, of which the energy has derivatives by positions and parameter."""

    @staticmethod
    def forward(
        ctx: Any,
        positions: Tensor,
        first: Tensor | None,
        second: Tensor | None,
        types: Tensor,
        atoms: Tensor,
        text: str,
        blob: Tensor,
    ) -> tuple[Tensor, Tensor]:
        of = evaluator(text, types, blob if blob.numel() else None, positions.device)
        check_number(of.spec, positions)
        box, factor = box_and_factor(of.spec, (first, second))
        seen = positions if atoms.numel() == 0 else positions.index_select(0, atoms)
        energy, forces = of(seen, box)
        if atoms.numel():
            forces = forces.new_zeros(positions.shape).index_copy(0, atoms, forces)
        # The plugin reads memory as it is: contiguous, and of the positions' type.
        forces = forces.to(positions.dtype).contiguous()
        if factor is None:
            scaled_energy, scaled_forces = energy, forces
        else:
            scale = factor.reshape(())
            scaled_energy, scaled_forces = scale.to(energy) * energy, scale.to(forces) * forces
        ctx.factor_is = [factor is not None and factor is one for one in (first, second)]
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
    result: tuple[Tensor, Tensor] = _EnergyForces.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


# Not CompositeExplicitAutograd, under which a model that differentiates itself fails inside the operator.
_LIBRARY.impl("energy_forces", _energy_forces, "CompositeImplicitAutograd")
