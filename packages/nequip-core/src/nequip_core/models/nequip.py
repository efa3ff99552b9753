"""NequIP: E(3)-equivariant message passing (Batzner et al., arXiv:2101.03164).

A layer sends to each atom the features of its neighbours, multiplied by spherical harmonics of the edge in a tensor
product whose weights depend on the distance, and updates the atom through a gate. Read-out is a linear map of the
scalars of the last layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nequip_core.errors import ConfigError
from nequip_core.graph import Graph
from nequip_core.models.base import ModelConfig, ModelInfo, key, per_type
from nequip_core.nn.directions import Directions
from nequip_core.nn.embedding import of_types, one_hot
from nequip_core.nn.gate import Gate
from nequip_core.nn.linear import EquivariantLinear, SelfConnection
from nequip_core.nn.mlp import MLP
from nequip_core.nn.radial import BesselBasis, ScaledDistance
from nequip_core.nn.tabulated import INTERVALS, LARGEST_DEVIATION, RadialTable, places, too_steep
from nequip_core.o3 import SCALAR, Blocks, Irrep, Irreps, couplings
from nequip_core.ops.contracts import (
    NEQUIP_CONVOLUTION,
    NEQUIP_RADIAL_CONVOLUTION,
    NEQUIP_TABULATED_CONVOLUTION,
    ConvolutionSpec,
    RadialConvolutionSpec,
    TabulatedConvolutionSpec,
)
from nequip_core.ops.kept import Kept
from nequip_core.ops.select import Exchange, Ops, identity


@dataclass
class NequIPConfig(ModelConfig):
    """Keys of NequIP."""

    name: str = key("nequip", "registered name of the model")
    l_max: int = key(2, "largest degree of features and of the edges' spherical harmonics")
    parity: bool = key(True, "features of both parities; false: only those of the edges' harmonics, (-1)^l")
    num_layers: int = key(4, "interaction layers; information travels one cut-off in each")
    num_features: Any = key(32, "channels of each irrep; one number, or a list with one for each l")
    type_embedding_dim: Any = key("auto", "width of the type embedding; auto: the channels of l = 0")
    radial_mlp: list[int] = key([128], "widths of the hidden layers of the radial network")
    num_bessels: int = key(8, "radial basis functions")
    train_bessels: bool = key(False, "whether the frequencies of the radial basis are trained")
    polynomial_cutoff_p: int = key(6, "exponent of the smooth envelope at the cut-off")
    nonlinearity: str = key("silu", "of the radial network: silu | mish | gelu | none")
    readout_mlp: list[int] = key([], "widths of hidden layers of the read-out; []: linear")
    readout_nonlinearity: str = key("auto", "of the read-out network: auto (nonlinearity) | silu | mish | gelu | none")
    avg_num_neighbors_of: str = key(
        "receiver", "whose type avg_num_neighbors goes by: receiver | sender (models of the published nequip)"
    )

    def message_passing_layers(self) -> int:
        """One cut-off for each layer."""
        return self.num_layers


class Atoms(NamedTuple):
    """What all layers see of the atoms: one-hot types, embedding of types, 1 / sqrt(average number of neighbours)."""

    types: Float[Tensor, "atoms types"]
    embedding: Float[Tensor, "types dim"]
    norm: Float[Tensor, "atoms 1 1"]


class Edges(NamedTuple):
    """What all layers see of the edges, in the model's dtype: of the distance the basis, places in tables, or both."""

    harmonics: Float[Tensor, "edges components"]
    radial: Float[Tensor, "edges bessels"] | None
    places: tuple[Int[Tensor, "edges"], Float[Tensor, "edges"]] | None


class Interaction(nn.Module):
    """One layer: features [atoms, irreps_in] to features [atoms, irreps_out].

    self-connection + Linear(sum over neighbours of Linear(h) (x) Y, weighted by the radial network), then the gate.
    The first layer has no self-connection, so that the energy of an isolated atom is exactly its E0.
    """

    def __init__(
        self,
        irreps_in: Irreps,
        irreps_out: Irreps,
        config: NequIPConfig,
        *,
        first: bool,
        num_types: int,
        embedding_dim: int,
        ops: Ops,
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.norm_of_sender = config.avg_num_neighbors_of == "sender"
        spec = ConvolutionSpec(irreps_in, config.l_max, True, tuple(irrep for irrep, _ in irreps_out))
        self.linear_in = EquivariantLinear(irreps_in, irreps_in)
        self.exchange: Exchange = identity if first else ops.exchange
        widths = [config.num_bessels, *config.radial_mlp, spec.num_weights]
        with_radial = RadialConvolutionSpec(spec, widths[-2])
        self.stores_weights = not ops.recomputes(NEQUIP_RADIAL_CONVOLUTION, with_radial, spec.num_weights)
        if self.stores_weights:
            self.radial = MLP(widths, config.nonlinearity, ops)
            self.convolution = ops.make(NEQUIP_CONVOLUTION, spec)
        else:
            self.radial = MLP(widths, config.nonlinearity)
            self.convolution = ops.make(NEQUIP_RADIAL_CONVOLUTION, with_radial)
        of_table = TabulatedConvolutionSpec(spec, INTERVALS)
        by_table = self.stores_weights and (
            ops.is_named(NEQUIP_TABULATED_CONVOLUTION) or ops.is_quicker(NEQUIP_TABULATED_CONVOLUTION, of_table)
        )
        self.table = RadialTable(self.radial.spec) if by_table else None
        self.tabulated = ops.make(NEQUIP_TABULATED_CONVOLUTION, of_table) if by_table else None
        self.irreps_messages = spec.irreps_out
        self.gate = Gate(irreps_out)
        self.linear_out = EquivariantLinear(spec.irreps_out, self.gate.irreps_in)
        self.self_connection = (
            None if first else SelfConnection(irreps_in, self.gate.irreps_in, num_types, embedding_dim)
        )

    def forward(
        self,
        h: Float[Tensor, "atoms features_in"],
        edges: Edges,
        atoms: Atoms,
        graph: Graph,
        bessels: BesselBasis,
    ) -> Float[Tensor, "atoms features_out"]:
        """Features after this layer."""
        blocks = self.irreps_in.split(h)
        messages = self.linear_in(blocks)
        if self.norm_of_sender:
            messages = _scaled(messages, atoms.norm)
        sent = self.exchange(self.irreps_in.join(messages))
        received = self._received(sent, edges, graph, bessels)
        update: Blocks = self.linear_out(self.irreps_messages.split(received))
        if not self.norm_of_sender:
            update = _scaled(update, atoms.norm)
        if self.self_connection is not None:
            for irrep, block in self.self_connection(blocks, atoms.embedding, atoms.types).items():
                update[irrep] = update[irrep] + block
        return self.irreps_out.join(self.gate(update))

    def _received(self, sent: Tensor, edges: Edges, graph: Graph, bessels: BesselBasis) -> Tensor:
        """The convolution."""
        received: Tensor
        if edges.places is not None and self.table is not None:
            assert self.tabulated is not None
            table = self.table(bessels, list(self.radial.weights))
            received = self.tabulated(sent, edges.harmonics, *edges.places, table, graph)
            return received
        assert edges.radial is not None
        weights = (self.radial(edges.radial),) if self.stores_weights else self.radial.before_last(edges.radial)
        received = self.convolution(sent, edges.harmonics, *weights, graph)
        return received


class NequIP(nn.Module):
    """Graph to dimensionless atomic energies."""

    def __init__(self, config: NequIPConfig, info: ModelInfo, ops: Ops) -> None:
        super().__init__()
        self.info = info
        before_and_after = layouts(config)
        num_types, embedding_dim = len(info.types), before_and_after[0].dim
        self.embedding = nn.Parameter(torch.randn(num_types, embedding_dim))
        self.distance = ScaledDistance(info.pair_cutoffs)
        self.harmonics = Directions(config.l_max)
        self.bessels = BesselBasis(
            config.num_bessels,
            config.polynomial_cutoff_p,
            trainable=config.train_bessels,
            factor=2 * math.pi / info.cutoff**2,
        )
        # A single number or one per type; both become one per type.
        self.register_buffer("norm", per_type(config.avg_num_neighbors, info.types).rsqrt(), persistent=False)
        self.norm: Tensor
        self.norm_of_types = Kept()

        self.layers = nn.ModuleList(
            Interaction(before, after, config, first=n == 0, num_types=num_types, embedding_dim=embedding_dim, ops=ops)
            for n, (before, after) in enumerate(itertools.pairwise(before_and_after))
        )
        auto = config.readout_nonlinearity == "auto"
        nonlinearity = config.nonlinearity if auto else config.readout_nonlinearity
        self.readout = MLP([before_and_after[-1].dim, *config.readout_mlp, 1], nonlinearity)

    def settle(self, ops: Ops) -> None:
        """Tables stand for radial networks that are not too steep for them; see `nequip_core.models.base.Settling`."""
        layers = [layer for layer in self.layers if isinstance(layer, Interaction)]
        deviations = [
            layer.table.deviation(self.bessels, list(layer.radial.weights))
            for layer in layers
            if layer.table is not None
        ]
        if not all(deviation <= LARGEST_DEVIATION for deviation in deviations):
            ops.withdraw(NEQUIP_TABULATED_CONVOLUTION, too_steep(max(deviations)))
            for layer in layers:
                layer.table = layer.tabulated = None

    def forward(self, graph: Graph, edge_vectors: Float[Tensor, "edges 3"]) -> Float[Tensor, "atoms"]:
        """Energy of each atom, dimensionless, from edge vectors in Å; zero for an atom without edges."""
        dtype = self.info.torch_dtype
        distance, harmonics = self.harmonics.of(edge_vectors)
        scaled = self.distance(graph, distance)
        # Tables have no derivative by the weights that they are made of.
        by_table = [not self.training and layer.table is not None for layer in self.layers]
        edges = Edges(
            harmonics=harmonics.to(dtype),
            radial=None if all(by_table) else self.bessels(scaled).to(dtype),
            places=places(scaled, dtype) if any(by_table) else None,
        )
        types = one_hot(graph.types, len(self.info.types), dtype)
        norms: Tensor = self.norm_of_types(lambda norm: norm.to(dtype), self.norm)
        atoms = Atoms(types, self.embedding, of_types(norms, graph.types)[:, None, None])
        h = of_types(self.embedding, graph.types)
        for layer in self.layers:
            h = layer(h, edges, atoms, graph, self.bessels)
        energy: Tensor = self.readout(h)
        return energy.squeeze(1)


def build(config: NequIPConfig, info: ModelInfo, ops: Ops) -> NequIP:
    """A new NequIP with random weights from torch's default generator.

    Raises:
        ConfigError: a value that makes no model.
    """
    if config.num_layers < 1:
        raise ConfigError(f"model.num_layers must be at least 1, received {config.num_layers}.")
    return NequIP(config, info, ops)


def _scaled(blocks: Blocks, factor: Float[Tensor, "atoms 1 1"]) -> Blocks:
    return {irrep: factor * block for irrep, block in blocks.items()}


def _features(config: NequIPConfig) -> list[int]:
    """Channels for each l."""
    given = config.num_features
    channels = [int(c) for c in given] if isinstance(given, Iterable) else [int(given)] * (config.l_max + 1)
    if len(channels) != config.l_max + 1 or min(channels) < 0 or channels[0] < 1:
        raise ConfigError(
            f"model.num_features must be one number or {config.l_max + 1} of them, one for each l = 0 ... l_max, with "
            f"at least one scalar; received {given}."
        )
    return channels


def layouts(config: NequIPConfig, *, pruned: bool = True) -> list[Irreps]:
    """The features before the first and after each layer: irreps that can be reached and that matter to the energy.

    Forward, an irrep exists where a tensor product gives it. Backward, one that no later layer can turn into an even
    scalar has no effect (with parity, half of the features before the last layer) and is left out.

    Args:
        config: of the model.
        pruned: false: keep those without effect before the last layer, as the published nequip does.

    Raises:
        ConfigError: the numbers of features make no model.
    """
    features = _features(config)
    embedding_dim = features[0] if config.type_embedding_dim == "auto" else int(config.type_embedding_dim)
    degrees = range(config.l_max + 1)
    wanted = [Irrep(degree, p) for degree in degrees for p in ((1, -1) if config.parity else ((-1) ** degree,))]

    def reached(irrep: Irrep, outputs: Iterable[Irrep]) -> set[Irrep]:
        return {out for degree in degrees for out in couplings(irrep, degree, (-1) ** degree, list(outputs))}

    exist = [{SCALAR}]
    for _ in range(config.num_layers - 1):
        exist.append(set().union(*(reached(irrep, wanted) for irrep in exist[-1])))
    matter = [{SCALAR}]
    for before in reversed(exist[1:]):
        # Through a tensor product, or through the self-connection.
        matter.append({irrep for irrep in before if irrep in matter[-1] or reached(irrep, matter[-1])})
    kept = reversed(matter) if pruned else [*exist[1:], {SCALAR}]
    hidden = [Irreps((irrep, features[irrep.l]) for irrep in wanted if irrep in after) for after in kept]
    return [Irreps([(SCALAR, embedding_dim)]), *hidden]
