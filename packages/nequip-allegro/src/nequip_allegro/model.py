"""Allegro: strictly local equivariance (Musaelian et al., arXiv:2204.05249).

Every pair of atoms within the cut-off has scalar and tensor features. A layer contracts a pair's tensor with the
environment of its centre, the weighted sum of the harmonics of all its edges; what becomes scalar joins the scalar
track, whose network gives the weights of the next environment. Read-out sums pair energies over an atom's edges.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nequip_allegro.hidden import HiddenWeights, narrower
from nequip_allegro.tensors import MADE_AGAIN, TensorTrack, make_chains
from nequip_allegro.two_body import BesselEmbedding, SplineEmbedding
from nequip_core.errors import ConfigError
from nequip_core.graph import Graph
from nequip_core.keys import key
from nequip_core.models.base import ModelConfig, ModelInfo, per_type
from nequip_core.nn.directions import Directions
from nequip_core.nn.mlp import MLP, NONLINEARITIES
from nequip_core.nn.radial import ScaledDistance
from nequip_core.o3 import SCALAR, Irrep, couplings
from nequip_core.ops.contracts import ALLEGRO_CONTRACT, SCALAR_MLP, ContractionSpec
from nequip_core.ops.kept import Kept
from nequip_core.ops.segment import segment_sum
from nequip_core.ops.select import Ops


@dataclass
class AllegroConfig(ModelConfig):
    """Keys of Allegro."""

    name: str = key("allegro", "registered name of the model")
    l_max: int = key(2, "largest degree of tensor features and of the edges' spherical harmonics")
    parity: bool = key(True, "tensor features of both parities; false: those of the spherical harmonics only")
    num_layers: int = key(2, "layers; information does not travel further with more")
    num_scalar_features: int = key(64, "width of the scalar track")
    num_tensor_features: int = key(16, "channels of the tensor track")
    tp_path_channel_coupling: bool = key(True, "path weights for each channel; false: one for all channels")
    weight_individual_irreps: bool = key(True, "environment weights for each degree; false: one for all degrees")
    two_body: str = key("bessel", "embedding of pairs: bessel | spline")
    two_body_dim: int = key(64, "width of the embedding of pairs")
    num_bessels: int = key(8, "radial basis functions (two_body: bessel)")
    train_bessels: bool = key(False, "whether the frequencies of the radial basis are trained (two_body: bessel)")
    polynomial_cutoff_p: int = key(6, "exponent of the smooth envelope at the cut-off (two_body: bessel)")
    num_splines: int = key(16, "splines for each pair of types (two_body: spline)")
    spline_span: int = key(12, "how many spacings a spline is wide (two_body: spline)")
    two_body_mlp: list[int] = key([64], "widths of hidden layers after the embedding of pairs")
    latent_mlp: list[int] = key([64], "widths of hidden layers of each layer's scalar network")
    nonlinearity: str = key("silu", "of the networks: silu | mish | gelu | none")
    two_body_nonlinearity: str = key("auto", "of the network after the embedding of pairs; auto: nonlinearity")
    readout_nonlinearity: str = key("auto", "of the read-out; auto: nonlinearity")
    readout_mlp: list[int] = key([32], "widths of hidden layers of the read-out; []: linear")

    def message_passing_layers(self) -> int:
        """None: strictly local."""
        return 0


class Allegro(nn.Module):
    """Graph to dimensionless atomic energies."""

    def __init__(self, config: AllegroConfig, info: ModelInfo, ops: Ops) -> None:
        super().__init__()
        self.info = info
        scalars, channels = config.num_scalar_features, config.num_tensor_features
        self.channels = channels
        self.degrees = config.l_max + 1 if config.weight_individual_irreps else 1
        self.distance = ScaledDistance(info.pair_cutoffs)
        self.harmonics = Directions(config.l_max)
        self.two_body = _two_body(config, len(info.types))
        # Where they are not trained, `opening` is these three.
        of_training = ops if ops.is_named(SCALAR_MLP) else None
        self.two_body_mlp = MLP(
            [config.two_body_dim, *config.two_body_mlp, scalars],
            _or_common(config.two_body_nonlinearity, config),
            of_training,
        )
        weights, of_tensors = self.degrees * channels, (config.l_max + 1) * channels
        self.tensor_weights = MLP([scalars, of_tensors], ops=of_training)
        self.first = MLP([scalars, scalars + weights], ops=of_training, outputs=[scalars, weights])
        # The last layer of the two-body network and these two are linear: one map, where they are not trained.
        self.opening_spec = dataclasses.replace(self.two_body_mlp.spec, outputs=(of_tensors, scalars, weights))
        self.opening = ops.make(SCALAR_MLP, self.opening_spec)
        # A single number or one for each type of centre; both become one for each type.
        self.register_buffer("norm", per_type(config.avg_num_neighbors, info.types).rsqrt(), persistent=False)
        self.norm: Tensor
        self.one_norm = len(set(self.norm.tolist())) == 1
        self.norm_of_types, self.opening_weights = Kept(), Kept()

        specs = contraction_specs(config)
        self.contractions = nn.ModuleList(ops.make(ALLEGRO_CONTRACT, spec) for spec in specs)
        self.path_weights = nn.ParameterList(
            torch.empty(len(spec.paths), channels if spec.coupled else 1).uniform_(-math.sqrt(3), math.sqrt(3))
            for spec in specs
        )
        self.scaled_paths = [Kept() for _ in specs]
        latents = [
            MLP(
                [
                    scalars * (n + 1) + channels,
                    *config.latent_mlp,
                    scalars + (weights if n < config.num_layers - 1 else 0),
                ],
                config.nonlinearity,
                ops,
                inputs=[*[scalars] * (n + 1), channels],
                outputs=[scalars, weights] if n < config.num_layers - 1 else None,
                passes=n + 1,
            )
            for n in range(config.num_layers)
        ]
        self.latents = nn.ModuleList(latents)
        # Where features are made again, environments are made from the hidden layers before their weights.
        networks = [self.opening_spec, *(one.spec for one in latents[:-1])][:MADE_AGAIN]
        widths = [narrower(one) for one in networks]
        narrow = len(widths) == MADE_AGAIN and all(widths)
        self.chains = make_chains(ops, specs, widths) if narrow else make_chains(ops, specs)
        self.hidden = (
            nn.ModuleList(HiddenWeights(one, self.degrees, config.l_max, ops) for one in networks)
            if narrow and self.chains is not None
            else None
        )
        self.readout = MLP(
            [scalars * (config.num_layers + 1), *config.readout_mlp, 1],
            _or_common(config.readout_nonlinearity, config),
            ops,
            inputs=[scalars] * (config.num_layers + 1),
        )

    def forward(self, graph: Graph, edge_vectors: Float[Tensor, "edges 3"]) -> Float[Tensor, "atoms"]:
        """Energy of each atom, dimensionless, from edge vectors in Å; zero for an atom without edges."""
        dtype = self.info.torch_dtype
        centre = graph.edge_index[0]
        distance, harmonics = self.harmonics.of(edge_vectors)
        harmonics = harmonics.to(dtype)
        pairs = self.two_body(graph, self.distance(graph, distance))
        norms: Tensor = self.norm_of_types(lambda norm: norm.to(dtype), self.norm)
        norm = norms.index_select(0, graph.types).unsqueeze(1)
        # The contraction is linear in the environment and in the path weights. One norm for all atoms belongs to those,
        # which are few; one for each type to the environment weights of each edge.
        of_edges = None if self.one_norm else norm[centre]

        # Chains have no derivative by their weights.
        chains, hidden = (None, None) if self.training else (self.chains, self.hidden)
        (tensors, scalars, weights), mixing = self._open(pairs)
        tensor_track = TensorTrack(self.contractions, chains, self._by_degree(tensors), harmonics, graph)
        track = [scalars]
        layers = zip(self.path_weights, self.scaled_paths, self.latents, strict=True)
        for n, (path_weights, scaled, network) in enumerate(layers):
            of_environment = weights if of_edges is None else of_edges * weights
            environment = self._by_degree(of_environment) if mixing is None else of_environment.unsqueeze(1)
            paths = scaled(_first_times, norms, path_weights) if self.one_norm else path_weights
            inputs = *track, tensor_track(n, environment, paths, mixing)
            if hidden is not None and n + 1 < len(hidden):
                assert isinstance(network, MLP)
                latent, mixing = hidden[n + 1](inputs, list(network.weights))
            else:
                latent, mixing = network(*inputs), None
            # The last layer has no next environment. What all layers read, each passes on to the next.
            scalars, *rest = latent[: -len(track)]
            weights = rest[0] if rest else weights
            track = [*latent[-len(track) :], scalars]
        energy = segment_sum(self.readout(*track), centre, graph.row_ptr)
        return (energy * norm).squeeze(1) * math.sqrt(0.5)

    def _open(self, pairs: Float[Tensor, "edges inputs"]) -> tuple[Sequence[Tensor], Tensor | None]:
        """Of the embedding of pairs: weights of tensors, scalars, weights of the first environment.

        The last may be a hidden layer instead, with what multiplies its sums.
        """
        if self.training:
            scalars = self.two_body_mlp(pairs)
            return (self.tensor_weights(scalars), *self.first(scalars)), None
        weights = *self.two_body_mlp.weights, self.tensor_weights.weights[0], self.first.weights[0]
        joined = self.opening_weights(self._join, *weights)
        opened: tuple[Sequence[Tensor], Tensor | None]
        opened = (self.opening([pairs], joined), None) if self.hidden is None else self.hidden[0]([pairs], joined)
        return opened

    def _join(self, *weights: Tensor) -> list[Tensor]:
        """The last three matrices as one."""
        *hidden, last, of_tensors, first = weights
        (alpha,) = self.first.spec.alphas
        return [*hidden, last @ (alpha * torch.cat([of_tensors, first], dim=1))]

    def _by_degree(self, weights: Float[Tensor, "edges weights"]) -> Float[Tensor, "edges degrees channels"]:
        return torch.unflatten(weights, 1, (-1, self.channels))


def build(config: AllegroConfig, info: ModelInfo, ops: Ops) -> Allegro:
    """A new Allegro with random weights from torch's default generator.

    Raises:
        ConfigError: a value that makes no model.
    """
    for name in ("num_layers", "num_scalar_features", "num_tensor_features", "two_body_dim"):
        if getattr(config, name) < 1:
            raise ConfigError(f"model.{name} must be at least 1, received {getattr(config, name)}.")
    if config.two_body not in ("bessel", "spline"):
        raise ConfigError(f"model.two_body must be bessel or spline, received {config.two_body!r}.")
    for name in ("nonlinearity", "two_body_nonlinearity", "readout_nonlinearity"):
        word = getattr(config, name)
        if word not in NONLINEARITIES and (word != "auto" or name == "nonlinearity"):
            raise ConfigError(f"model.{name} must be one of {', '.join(NONLINEARITIES)}, received {word!r}.")
    if config.two_body == "bessel" and config.two_body_dim < 2:
        raise ConfigError("model.two_body_dim must be at least 2 with bessel: half of it is for either atom's type.")
    return Allegro(config, info, ops)


def _first_times(norms: Tensor, path_weights: Tensor) -> Tensor:
    return norms[0] * path_weights


def _or_common(nonlinearity: str, config: AllegroConfig) -> str:
    return config.nonlinearity if nonlinearity == "auto" else nonlinearity


def _two_body(config: AllegroConfig, num_types: int) -> nn.Module:
    if config.two_body == "spline":
        return SplineEmbedding(num_types, config.two_body_dim, config.num_splines, config.spline_span)
    return BesselEmbedding(
        num_types,
        config.two_body_dim,
        config.num_bessels,
        config.polynomial_cutoff_p,
        train_bessels=config.train_bessels,
    )


def contraction_specs(config: AllegroConfig) -> list[ContractionSpec]:
    """What each layer couples. The scalar track takes the even scalars: apart, where a result holds more than them."""
    return [
        ContractionSpec(
            irreps_in=before,
            irreps_out=after,
            l_max=config.l_max,
            channels=config.num_tensor_features,
            coupled=config.tp_path_channel_coupling,
            factors=n == 0,
            scalars_apart=after != (SCALAR,),
        )
        for n, (before, after) in enumerate(itertools.pairwise(_layouts(config)))
    ]


def _layouts(config: AllegroConfig) -> list[tuple[Irrep, ...]]:
    """Irreps of the tensor track before the first and after each layer: those that exist and that matter.

    Forward, an irrep exists where a contraction with the harmonics gives it. Backward, one that no later layer can turn
    into an even scalar has no effect and is left out.
    """
    harmonics = [Irrep(degree, (-1) ** degree) for degree in range(config.l_max + 1)]
    wanted = [Irrep(degree, p) for degree in range(config.l_max + 1) for p in (1, -1)] if config.parity else harmonics

    def reached(irrep: Irrep, outputs: list[Irrep]) -> set[Irrep]:
        return {out for one in harmonics for out in couplings(irrep, one.l, one.p, outputs)}

    exist = [set(harmonics)]
    for _ in range(config.num_layers - 1):
        exist.append(set().union(*(reached(irrep, wanted) for irrep in exist[-1])))
    matter = [{SCALAR}]
    for before in reversed(exist):
        # Even scalars matter in themselves: the scalar track takes them.
        matter.append({irrep for irrep in before if irrep == SCALAR or reached(irrep, list(matter[-1]))})
    return [tuple(irrep for irrep in wanted if irrep in kept) for kept in reversed(matter)]
