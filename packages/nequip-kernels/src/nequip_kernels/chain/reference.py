"""The operators of chains in plain torch, term by term: what they do with tensors of the CPU.

Arguments and results are those of `nequip_kernels.chain.operators`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nequip_core.ops.segment import sum_bags
from nequip_kernels.contraction.reference import Columns, couple
from nequip_kernels.contraction.table import Table, factor


class Atoms:
    """From edges to the atoms at their centres, and back."""

    def __init__(self, row_ptr: Tensor, edges: int) -> None:
        self.row_ptr = row_ptr
        # The last row that starts at or before the edge: rows without edges are passed over.
        numbers = torch.arange(edges, device=row_ptr.device)
        self.centre = torch.searchsorted(row_ptr, numbers, right=True) - 1

    def gather(self, atoms: Tensor) -> Columns:
        """[atoms, components, channels] for each edge."""
        return atoms.index_select(0, self.centre).unbind(1)

    def sum(self, columns: Columns) -> Tensor:
        """Over the edges of each atom, [atoms, components, channels]."""
        return sum_bags(torch.stack(list(columns), dim=1), self.centre, self.row_ptr)


def environment(table: Table, env_weights: Tensor, harmonics: Tensor, row_ptr: Tensor) -> Tensor:
    """Sums of weighted harmonics."""
    w, Y = env_weights.unbind(1), _columns(harmonics)
    atoms = Atoms(row_ptr, harmonics.shape[0])
    return atoms.sum([w[table.degree(j)] * Y[j] for j in range(table.components)])


def environment_backward(
    table: Table, env_weights: Tensor, harmonics: Tensor, grad: Tensor, row_ptr: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives by weights and harmonics."""
    w, Y = env_weights.unbind(1), _columns(harmonics)
    n = Atoms(row_ptr, harmonics.shape[0]).gather(grad)
    members = [[j for j in range(table.components) if table.degree(j) == d] for d in range(table.degrees)]
    d_weights = torch.stack([_total([n[j] * Y[j] for j in group]) for group in members], dim=1)
    return d_weights, torch.stack([(n[j] * w[table.degree(j)]).sum(1) for j in range(table.components)], dim=1)


def chain(
    tables: Sequence[Table],
    factors: Tensor,
    harmonics: Tensor,
    environments: Sequence[Tensor],
    path_weights: Sequence[Tensor],
    row_ptr: Tensor,
) -> list[Tensor]:
    """What the last layer gives, and its even scalars if they are wanted apart."""
    atoms = Atoms(row_ptr, harmonics.shape[0])
    around = [atoms.gather(one) for one in environments]
    *_, last = _features(tables, factors, harmonics, around, path_weights)
    scalars = [last[0].clone()] if tables[-1].spec.scalars_apart else []
    return [torch.stack(list(last), dim=1), *scalars]


def chain_backward(
    tables: Sequence[Table],
    factors: Tensor,
    harmonics: Tensor,
    environments: Sequence[Tensor],
    path_weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    row_ptr: Tensor,
    *,
    passes: bool,
) -> list[Tensor]:
    """Derivatives by factors, harmonics and environments, of the sum of results times ``grads``."""
    atoms = Atoms(row_ptr, harmonics.shape[0])
    around = [atoms.gather(one) for one in environments]
    features = _features(tables, factors, harmonics, around, path_weights)
    grad, *others = grads
    d = list(grad.unbind(1))
    if tables[-1].spec.scalars_apart:
        d[0] = d[0] + others[0]
    of_environments: list[Tensor] = []
    for m in reversed(range(len(tables))):
        W = path_weights[m].unbind(0)
        of_environments.insert(0, atoms.sum(couple(tables[m], "j", path=W, i=features[m], k=d)))
        d = couple(tables[m], "i", path=W, j=around[m], k=d)
    f, Y = factors.unbind(1), _columns(harmonics)
    members = [range(degree**2, (degree + 1) ** 2) for degree in range(tables[0].stored_in)]
    d_factors = torch.stack([_total([d[i] * Y[i] for i in group]) for group in members], dim=1)
    d_harmonics = torch.stack([(one * f[factor(i)]).sum(1) for i, one in enumerate(d)], dim=1)
    return [d_factors + others[-1] if passes else d_factors, d_harmonics, *of_environments]


def _features(
    tables: Sequence[Table], factors: Tensor, harmonics: Tensor, around: Sequence[Columns], weights: Sequence[Tensor]
) -> list[Columns]:
    """T_0, T_1, and so on, with what the last layer gives."""
    f, Y = factors.unbind(1), _columns(harmonics)
    found: list[Columns] = [[f[factor(i)] * Y[i] for i in range(tables[0].spec.dim_in)]]
    for table, v, W in zip(tables, around, weights, strict=True):
        found.append(couple(table, "k", path=W.unbind(0), i=found[-1], j=v))
    return found


def _columns(numbers: Tensor) -> Columns:
    return numbers.unsqueeze(2).unbind(1)


def _total(tensors: Columns) -> Tensor:
    total = tensors[0]
    for one in tensors[1:]:
        total = total + one
    return total
