"""Contracts of the heavy operators: what a kernel must compute, independent of who computes it.

A contract has a name and a number; a kernel names the contract that it implements (`KernelEntry.op`), so that a package
of kernels imports no model. Operators hold no parameters.

nequip.convolution/1
    The sum over neighbours of NequIP's messages (arXiv:2101.03164, eq. 6): gather, tensor product, sum.

    ``convolution(h, harmonics, weights, graph) -> out``

    h          [atoms, irreps_in.dim]        neighbours' features, blocks [2 l1 + 1, channels]
    harmonics  [edges, (l_max + 1)^2]        Y of the edge vectors
    weights    [edges, num_weights]          one per path and channel, path after path
    out        [atoms, irreps_out.dim]       blocks [2 l3 + 1, channels], the paths to one irrep side by side

    out_i[path, m3, u] = sum_j weights_ij[path, u] sum_{m1, m2} sqrt(2 l3 + 1) w3j[m1, m2, m3] h_j[m1, u] Y_ij[m2]

    Differentiable twice with respect to h, harmonics and weights. Deterministic.

nequip.radial_convolution/1
    The same with the weights as what they are in a model, the last, linear layer of the radial network, so that they
    need not be stored.

    ``convolution(h, harmonics, hidden, matrix, graph) -> out``

    h, harmonics, out   as above
    hidden              [edges, width]         the last hidden layer, after its nonlinearity
    matrix              [width, num_weights]   of the last layer, scaled

    out = nequip.convolution/1 of h, harmonics and the weights hidden @ matrix.

    Differentiable twice with respect to h, harmonics, hidden and matrix. Deterministic.

nequip.tabulated_convolution/1
    nequip.convolution/1 of weights that are cubic functions of the distance, piece by piece, and in no memory.

    ``convolution(h, harmonics, place, fraction, table, graph) -> out``

    place      [edges], int32, the number of the edge's interval
    fraction   [edges], where the edge is in it, from 0 to 1
    table      [intervals + 1, 4, num_weights]: weights = t0 + fraction (t1 + fraction (t2 + fraction t3)); the last
               row is of all edges beyond the cut-off, and zero

    Differentiable once, with respect to h, harmonics and fraction. Deterministic.

allegro.contract/1
    One tensor-product layer of Allegro (arXiv:2204.05249, eq. 15-17): each atom's environment, the sum over its edges
    of weighted harmonics, contracted with the tensor features of the same edges.

    ``contract(features, env_weights, harmonics, path_weights, graph) -> (out, environment[, scalars])``

    features      [edges, irreps_in's components, channels]; in a first layer (``factors``) the weights w0
                  [edges, l_max + 1, channels] of the features w0 * Y instead, which are never stored
    env_weights   [edges, l_max + 1, channels], or [edges, 1, channels] for all degrees
    harmonics     [edges, (l_max + 1)^2]
    path_weights  [paths, channels], or [paths, 1] for all channels
    out           [edges, irreps_out's components, channels]
    environment   [atoms, (l_max + 1)^2, channels], returned so that a derivative need not compute it again
    scalars       [edges, channels], with ``scalars_apart`` only: out's first component, the even scalars

    environment_i[m2, u] = sum_j env_weights_ij[l(m2), u] Y_ij[m2]
    out_ij[k, u] = sum_path path_weights[path, u] sum_{m1, m2} sqrt(2 l3 + 1) w3j[m1, m2, k] features_ij[m1, u]
                   environment_i[m2, u]

    ``out`` and ``scalars`` are differentiated, twice with respect to the first four arguments; the environment is not.
    Who wants the scalars alone takes them from here: the gradient of ``out[:, 0]`` is as large as ``out``, zeros nearly
    all of it, and is added to the other gradient of ``out``. Deterministic.

allegro.chain/1
    Several layers of allegro.contract/1 from the first on, of which only the last one's result exists: the features
    between them are made again from the first ones' factors and the environments of the layers before.

    ``chain(factors, harmonics, environments, env_weights, path_weights, graph, mixing)
        -> (out, environment[, scalars][, factors_again])``

    factors, harmonics, out, scalars   as above, of the first layer and of the last
    environments    [atoms, (l_max + 1)^2, channels] of all layers but the last, a sequence: what the chains of these
                    gave as their environment
    env_weights     of the last layer; with ``width`` [edges, 1, width], the last hidden layer of the network that gives
                    the weights, whose last matrix then is
    mixing          [(l_max + 1)^2, width, channels], for each component; else None. Sums over edges are multiplied by
                    it in the place of each edge's hidden layer: the environment is linear in its weights
    path_weights    of all layers, a sequence
    environment     of the last layer
    factors_again   the factors as they are, with ``passes`` only: who takes them from here has their gradients added
                    by the kernel

    All results are differentiated, once, with respect to factors, harmonics, environments and env_weights. Models that
    are not trained use it. Deterministic.

scalar_mlp/1
    A multilayer perceptron without bias, applied to each row of its inputs side by side.

    ``mlp(inputs, weights) -> outputs``

    inputs   [rows, inputs_n], a sequence of tensors
    weights  [fan_in, fan_out] of each layer, a sequence of tensors
    outputs  [rows, outputs_n], a sequence of tensors; behind them those of the inputs that it passes on, as they are

    x_0 = inputs side by side, x_{n+1} = s(alpha_n x_n W_n), and alpha_n x_n W_n of the last layer is the outputs side
    by side.

    Differentiable twice with respect to inputs and weights. Deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor

from nequip_core.graph import Graph
from nequip_core.o3 import SCALAR, Irrep, Irreps, couplings

NEQUIP_CONVOLUTION = "nequip.convolution/1"


class Path(NamedTuple):
    """One coupling of a tensor product: features' irrep, degree of the edge's harmonic, result's irrep."""

    irrep_in: Irrep
    l_edge: int
    irrep_out: Irrep


@dataclass(frozen=True)
class ConvolutionSpec:
    """What one convolution couples. All else follows from it.

    Attributes:
        irreps_in: of the neighbours' features.
        l_max: of the edges' harmonics.
        parity: whether harmonics have the parity (-1)^l (O(3)); otherwise all are even (SO(3)).
        targets: irreps that are wanted; those that no path reaches do not occur in the output.
    """

    irreps_in: Irreps
    l_max: int
    parity: bool
    targets: tuple[Irrep, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All couplings, sorted by input irrep and then by degree of the result: the order of the weights."""
        found = [
            Path(irrep, l_edge, out)
            for irrep, _ in self.irreps_in
            for l_edge in range(self.l_max + 1)
            for out in couplings(irrep, l_edge, (-1) ** l_edge if self.parity else 1, self.targets)
        ]
        position = {irrep: n for n, (irrep, _) in enumerate(self.irreps_in)}
        return tuple(sorted(found, key=lambda path: (position[path.irrep_in], path.irrep_out.l)))

    @property
    def num_weights(self) -> int:
        """Radial weights for each edge."""
        return sum(self.irreps_in.channels[path.irrep_in] for path in self.paths)

    @property
    def irreps_out(self) -> Irreps:
        """Of the result: for each target, the channels of all paths to it, in the order of ``paths``."""
        channels = dict.fromkeys(self.targets, 0)
        for path in self.paths:
            channels[path.irrep_out] += self.irreps_in.channels[path.irrep_in]
        return Irreps(channels.items())


NEQUIP_RADIAL_CONVOLUTION = "nequip.radial_convolution/1"

LARGEST_WEIGHTS = 512_000_000
"""Bytes of a convolution's weights above which training does not store them, and which it has at a time then."""


@dataclass(frozen=True)
class RadialConvolutionSpec:
    """A convolution and the last hidden layer of the network that gives its weights.

    Attributes:
        convolution: what is coupled.
        width: of the hidden layer.
    """

    convolution: ConvolutionSpec
    width: int


NEQUIP_TABULATED_CONVOLUTION = "nequip.tabulated_convolution/1"


@dataclass(frozen=True)
class TabulatedConvolutionSpec:
    """A convolution whose weights come from a table.

    Attributes:
        convolution: what is coupled.
        intervals: from distance zero to the cut-off.
    """

    convolution: ConvolutionSpec
    intervals: int


ALLEGRO_CONTRACT = "allegro.contract/1"


@dataclass(frozen=True)
class ContractionSpec:
    """What one layer of Allegro couples. All else follows from it.

    Attributes:
        irreps_in: of the tensor features, in the order of storage; all have the same channels.
        irreps_out: that are wanted and that some path reaches, in the order of storage.
        l_max: of the edges' harmonics, which have the parity (-1)^l.
        channels: of the tensor features.
        coupled: whether each channel has path weights of its own.
        factors: whether the features come as the weights of harmonics (first layer).
        scalars_apart: whether the even scalars are wanted as a result of their own too.

    Raises:
        ValueError: scalars are wanted apart where they do not come first, or where there is nothing else.
    """

    irreps_in: tuple[Irrep, ...]
    irreps_out: tuple[Irrep, ...]
    l_max: int
    channels: int
    coupled: bool
    factors: bool
    scalars_apart: bool = False

    def __post_init__(self) -> None:
        if self.scalars_apart and (self.irreps_out[:1] != (SCALAR,) or len(self.irreps_out) == 1):
            raise ValueError(
                "scalars_apart needs irreps_out that begin with 0e and go on, received "
                f"{'+'.join(map(str, self.irreps_out)) or 'none'}."
            )

    @property
    def paths(self) -> tuple[Path, ...]:
        """All couplings, sorted by irrep of the result, then of the features, then degree of the environment."""
        found = [
            Path(irrep, l_edge, out)
            for irrep in self.irreps_in
            for l_edge in range(self.l_max + 1)
            for out in couplings(irrep, l_edge, (-1) ** l_edge, self.irreps_out)
        ]
        ins, outs = self.irreps_in.index, self.irreps_out.index
        return tuple(sorted(found, key=lambda path: (outs(path.irrep_out), ins(path.irrep_in), path.l_edge)))

    @property
    def dim_in(self) -> int:
        """Components of the features."""
        return sum(irrep.dim for irrep in self.irreps_in)

    @property
    def dim_out(self) -> int:
        """Components of the result."""
        return sum(irrep.dim for irrep in self.irreps_out)


ALLEGRO_CHAIN = "allegro.chain/1"


@dataclass(frozen=True)
class ChainSpec:
    """What a chain of layers couples.

    Attributes:
        layers: from the first on, whose features come as factors; each takes what the one before gives.
        passes: whether the factors are passed on.
        width: of the hidden layer in the place of the last layer's environment weights; 0: of these.
    """

    layers: tuple[ContractionSpec, ...]
    passes: bool = False
    width: int = 0


SCALAR_MLP = "scalar_mlp/1"


@dataclass(frozen=True)
class ScalarMLPSpec:
    """The widths of a network of scalars and its nonlinearity.

    Attributes:
        inputs: of the tensors that are its input side by side.
        hidden: of the hidden layers.
        outputs: of the tensors that are its result side by side.
        nonlinearity: silu, mish, gelu or none; after each layer but the last.
        passes: how many of its inputs, from the first on, it passes on. Who takes these instead of the inputs leaves it
            to the network to add both gradients, within its own derivative.
    """

    inputs: tuple[int, ...]
    hidden: tuple[int, ...]
    outputs: tuple[int, ...]
    nonlinearity: str
    passes: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Of input, hidden layers and result."""
        return sum(self.inputs), *self.hidden, sum(self.outputs)

    @property
    def layers(self) -> int:
        """Matrices of weights."""
        return len(self.hidden) + 1

    @property
    def alphas(self) -> tuple[float, ...]:
        """gain / sqrt(fan_in) of each layer: gain 1 for the first layer and without nonlinearity, else sqrt(2)."""
        gain = 1.0 if self.nonlinearity == "none" else math.sqrt(2)
        return tuple((gain if n else 1.0) / math.sqrt(width) for n, width in enumerate(self.widths[:-1]))


class ScalarMLP(Protocol):
    """The callable of scalar_mlp/1."""

    def __call__(
        self, inputs: Sequence[Float[Tensor, "rows inputs"]], weights: Sequence[Float[Tensor, "fan_in fan_out"]]
    ) -> Sequence[Float[Tensor, "rows outputs"]]:
        """The last layer's result, and what is passed on."""
        ...


class Contraction(Protocol):
    """The callable of allegro.contract/1."""

    def __call__(
        self,
        features: Float[Tensor, "edges components_in channels"],
        env_weights: Float[Tensor, "edges degrees channels"],
        harmonics: Float[Tensor, "edges components"],
        path_weights: Float[Tensor, "paths channels_or_1"],
        graph: Graph,
    ) -> tuple[Tensor, ...]:
        """Features of the next layer, the environment, and the scalars if they are wanted apart."""
        ...


class Chain(Protocol):
    """The callable of allegro.chain/1."""

    def __call__(
        self,
        factors: Float[Tensor, "edges degrees channels"],
        harmonics: Float[Tensor, "edges components"],
        environments: Sequence[Float[Tensor, "atoms components channels"]],
        env_weights: Float[Tensor, "edges env_degrees channels"],
        path_weights: Sequence[Float[Tensor, "paths channels_or_1"]],
        graph: Graph,
        mixing: Float[Tensor, "components width channels"] | None = None,
    ) -> tuple[Tensor, ...]:
        """What the last layer gives, its environment, its scalars and the factors if they are wanted."""
        ...


class Convolution(Protocol):
    """The callable of nequip.convolution/1."""

    def __call__(
        self,
        h: Float[Tensor, "atoms features_in"],
        harmonics: Float[Tensor, "edges components"],
        weights: Float[Tensor, "edges num_weights"],
        graph: Graph,
    ) -> Float[Tensor, "atoms features_out"]:
        """Messages summed to their centres."""
        ...


class RadialConvolution(Protocol):
    """The callable of nequip.radial_convolution/1."""

    def __call__(
        self,
        h: Float[Tensor, "atoms features_in"],
        harmonics: Float[Tensor, "edges components"],
        hidden: Float[Tensor, "edges width"],
        matrix: Float[Tensor, "width num_weights"],
        graph: Graph,
    ) -> Float[Tensor, "atoms features_out"]:
        """Messages summed to their centres."""
        ...
