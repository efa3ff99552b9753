"""The operators of the contraction in plain torch, term by term: what they do with tensors of the CPU.

They are the definition that the kernels are held to, one by one, and what an operator does where there is no GPU.
Arguments and results are those of `nequip_kernels.contraction.operators`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nequip_core.ops.segment import sum_bags
from nequip_kernels.contraction.table import Table, factor

Columns = Sequence[Tensor]
"""One tensor for each component."""


def couple(table: Table, target: str, **factors: Columns) -> list[Tensor]:
    """Sums of value times three of the four factors of each term, [edges, channels] for each place of ``target``.

    Args:
        table: of the contraction.
        target: the factor that is left out: path, i, j or k.
        factors: the other three, by name.
    """
    sums: dict[int, Tensor] = {}
    for term in table.terms:
        product: Tensor | float = term.value
        for name, columns in factors.items():
            product = product * columns[getattr(term, name)]
        place = getattr(term, target)
        sums[place] = sums[place] + product if place in sums else product  # type: ignore[assignment]
    sizes = {"path": table.paths, "i": table.spec.dim_in, "j": table.components, "k": table.spec.dim_out}
    some = next(iter(sums.values()))
    return [sums[n] if n in sums else torch.zeros_like(some) for n in range(sizes[target])]


class Inputs:
    """What every operator needs of its arguments, in columns."""

    def __init__(
        self, table: Table, features: Tensor, harmonics: Tensor, environment: Tensor | None, row_ptr: Tensor
    ) -> None:
        self.table, self.row_ptr = table, row_ptr
        edges = torch.arange(harmonics.shape[0], device=row_ptr.device)
        # The last row that starts at or before the edge: rows without edges are passed over.
        self.centre = torch.searchsorted(row_ptr, edges, right=True) - 1
        self.Y = harmonics.unsqueeze(2).unbind(1)
        self.stored = features.unbind(1)
        self.T = _expand(table, self.stored, self.Y)
        self.v = () if environment is None else self.gather(environment)

    def gather(self, atoms: Tensor) -> Columns:
        """[atoms, components, channels] for each edge."""
        return atoms.index_select(0, self.centre).unbind(1)

    def sum(self, columns: Columns) -> Tensor:
        """Over the edges of each atom, [atoms, components, channels]."""
        return sum_bags(torch.stack(list(columns), dim=1), self.centre, self.row_ptr)


def _expand(table: Table, stored: Columns, Y: Columns) -> Columns:
    """The features of their factors, in a first layer."""
    return [stored[factor(i)] * Y[i] for i in range(table.spec.dim_in)] if table.spec.factors else stored


def _weights(path_weights: Tensor) -> Columns:
    return path_weights.unbind(0)


def _to_degrees(table: Table, columns: Columns, harmonics: Columns) -> Tensor:
    """[edges, degrees, channels]: sums of columns times harmonics over the components of each weight."""
    members = [[j for j in range(table.components) if table.degree(j) == d] for d in range(table.degrees)]
    return torch.stack([_total([columns[j] * harmonics[j] for j in group]) for group in members], dim=1)


def _to_factors(table: Table, columns: Columns, harmonics: Columns) -> Tensor:
    """Likewise, over the components of each factor."""
    members = [range(d**2, (d + 1) ** 2) for d in range(table.stored_in)]
    return torch.stack([_total([columns[j] * harmonics[j] for j in group]) for group in members], dim=1)


def _total(tensors: Columns) -> Tensor:
    total = tensors[0]
    for one in tensors[1:]:
        total = total + one
    return total


def _gradient(grad: Tensor, scalar_grad: Tensor | None) -> Columns:
    """Of the output, that of the scalars in its first column."""
    first, *others = grad.unbind(1)
    return [first if scalar_grad is None else first + scalar_grad, *others]


def _scalars(table: Table, output: Columns) -> Tensor:
    """A tensor of its own, not a part of the output; empty where it is not wanted."""
    return output[0] if table.spec.scalars_apart else output[0].new_empty(0)


def forward(
    table: Table, features: Tensor, env_weights: Tensor, harmonics: Tensor, path_weights: Tensor, row_ptr: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Result, environment and scalars."""
    given = Inputs(table, features, harmonics, None, row_ptr)
    w = env_weights.unbind(1)
    environment = given.sum([w[table.degree(j)] * given.Y[j] for j in range(table.components)])
    out = couple(table, "k", path=_weights(path_weights), i=given.T, j=given.gather(environment))
    return torch.stack(out, dim=1), environment, _scalars(table, out)


def backward(
    table: Table,
    features: Tensor,
    env_weights: Tensor,
    harmonics: Tensor,
    path_weights: Tensor,
    environment: Tensor,
    grad: Tensor,
    scalar_grad: Tensor | None,
    row_ptr: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives by features, environment weights, harmonics and environment."""
    given = Inputs(table, features, harmonics, environment, row_ptr)
    w, g, W = env_weights.unbind(1), _gradient(grad, scalar_grad), _weights(path_weights)
    d = couple(table, "i", path=W, j=given.v, k=g)
    d_environment = given.sum(couple(table, "j", path=W, i=given.T, k=g))
    n = given.gather(d_environment)
    d_harmonics = torch.stack([(n[j] * w[table.degree(j)]).sum(1) for j in range(table.components)], dim=1)
    d_features = torch.stack(d, dim=1)
    if table.spec.factors:
        d_features = _to_factors(table, d, given.Y)
        d_harmonics = d_harmonics + torch.stack([(one * given.stored[factor(i)]).sum(1) for i, one in enumerate(d)], 1)
    return d_features, _to_degrees(table, n, given.Y), d_harmonics, d_environment


def double_backward(
    table: Table,
    features: Tensor,
    env_weights: Tensor,
    harmonics: Tensor,
    path_weights: Tensor,
    environment: Tensor,
    grad: Tensor,
    scalar_grad: Tensor | None,
    d_environment: Tensor,
    to_features: Tensor,
    to_env_weights: Tensor,
    to_harmonics: Tensor,
    row_ptr: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Derivatives by both gradients, features, environment weights, harmonics; the environment's direction."""
    given = Inputs(table, features, harmonics, environment, row_ptr)
    w, c, W = env_weights.unbind(1), to_env_weights.unbind(1), _weights(path_weights)
    g = _gradient(grad, scalar_grad)
    y = to_harmonics.unsqueeze(2).unbind(1)
    x = directions(table, given, to_features, y)
    degrees = [table.degree(j) for j in range(table.components)]
    to_environment = given.sum([c[d] * given.Y[j] + w[d] * y[j] for j, d in enumerate(degrees)])
    z = given.gather(to_environment)
    moved = couple(table, "k", path=W, i=x, j=given.v), couple(table, "k", path=W, i=given.T, j=z)
    of_g = [one + other for one, other in zip(*moved, strict=True)]
    d = couple(table, "i", path=W, j=z, k=g)
    b = given.gather(given.sum(couple(table, "j", path=W, i=x, k=g)))
    n = given.gather(d_environment)
    of_harmonics = torch.stack([(b[j] * w[k] + n[j] * c[k]).sum(1) for j, k in enumerate(degrees)], dim=1)
    of_env_weights = _to_degrees(table, b, given.Y) + _to_degrees(table, n, y)
    of_features = torch.stack(d, dim=1)
    if table.spec.factors:
        p = couple(table, "i", path=W, j=given.v, k=g)
        of_features = _to_factors(table, d, given.Y) + _to_factors(table, p, y)
        moving = to_features.unbind(1)
        of_harmonics = of_harmonics + torch.stack(
            [(d[i] * given.stored[factor(i)] + p[i] * moving[factor(i)]).sum(1) for i in range(table.spec.dim_in)], 1
        )
    of_grad, of_scalar_grad = torch.stack(of_g, dim=1), _scalars(table, of_g)
    return of_grad, of_scalar_grad, of_features, of_env_weights, of_harmonics, to_environment


def by_weights(
    table: Table,
    features: Tensor,
    harmonics: Tensor,
    environment: Tensor,
    grad: Tensor,
    scalar_grad: Tensor | None,
    row_ptr: Tensor,
) -> Tensor:
    """Derivative by the path weights, [paths, channels] or [paths, 1]."""
    given = Inputs(table, features, harmonics, environment, row_ptr)
    return _sum_paths(table, couple(table, "path", i=given.T, j=given.v, k=_gradient(grad, scalar_grad)))


def double_by_weights(
    table: Table,
    features: Tensor,
    harmonics: Tensor,
    environment: Tensor,
    grad: Tensor,
    scalar_grad: Tensor | None,
    to_features: Tensor,
    to_harmonics: Tensor,
    to_environment: Tensor,
    row_ptr: Tensor,
) -> Tensor:
    """The same of a sum of first derivatives times directions."""
    given = Inputs(table, features, harmonics, environment, row_ptr)
    g = _gradient(grad, scalar_grad)
    x = directions(table, given, to_features, to_harmonics.unsqueeze(2).unbind(1))
    one = couple(table, "path", i=x, j=given.v, k=g)
    other = couple(table, "path", i=given.T, j=given.gather(to_environment), k=g)
    return _sum_paths(table, one) + _sum_paths(table, other)


def directions(table: Table, given: Inputs, to_features: Tensor, y: Columns) -> Columns:
    """How the features move."""
    x = to_features.unbind(1)
    if not table.spec.factors:
        return x
    return [x[factor(i)] * given.Y[i] + given.stored[factor(i)] * y[i] for i in range(table.spec.dim_in)]


def _sum_paths(table: Table, columns: Columns) -> Tensor:
    sums = torch.stack([one.sum(0) for one in columns])
    return sums if table.spec.coupled else sums.sum(1, keepdim=True)
