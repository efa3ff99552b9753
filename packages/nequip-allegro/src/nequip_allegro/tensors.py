"""The tensor features of pairs from layer to layer: stored, or made again from those of the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from nequip_core.graph import Graph
from nequip_core.o3 import SCALAR
from nequip_core.ops.contracts import ALLEGRO_CHAIN, ChainSpec, ContractionSpec
from nequip_core.ops.select import Ops

MADE_AGAIN = 2
"""Layers whose features may be made again; those of a third would cost more than to read them."""


def chain_specs(layers: Sequence[ContractionSpec], widths: Sequence[int] = (0, 0)) -> list[ChainSpec]:
    """The chains that take the place of the first layers. Of the first, only the even scalars are stored.

    Args:
        layers: of the model.
        widths: of the hidden layers from which environments are made, see `ChainSpec.width`.
    """
    first = dataclasses.replace(layers[0], irreps_out=(SCALAR,), scalars_apart=False)
    return [
        ChainSpec((first,), passes=True, width=widths[0]),
        ChainSpec(tuple(layers[:MADE_AGAIN]), width=widths[1]),
    ]


def make_chains(ops: Ops, layers: Sequence[ContractionSpec], widths: Sequence[int] = (0, 0)) -> nn.ModuleList | None:
    """None: the features are stored, as what has no better kernel for a chain, and what is to be trained, does it."""
    if len(layers) < MADE_AGAIN:
        return None
    specs = chain_specs(layers, widths)
    if not (ops.is_named(ALLEGRO_CHAIN) or all(ops.is_quicker(ALLEGRO_CHAIN, spec) for spec in specs)):
        return None
    return nn.ModuleList(ops.make(ALLEGRO_CHAIN, spec) for spec in specs)


class TensorTrack:
    """Features of the pairs of one graph, from layer to layer.

    Args:
        contractions: of all layers.
        chains: in the place of the first ones; None: all features are stored.
        factors: of the first features.
        harmonics: of the edges.
        graph: of the pairs.
    """

    def __init__(
        self,
        contractions: nn.ModuleList,
        chains: nn.ModuleList | None,
        factors: Float[Tensor, "edges degrees channels"],
        harmonics: Float[Tensor, "edges components"],
        graph: Graph,
    ) -> None:
        self.contractions = contractions
        self.chains: Sequence[Any] = [] if chains is None else list(chains)
        self.features, self.harmonics, self.graph = factors, harmonics, graph
        self.factors = factors
        self.environments: list[Tensor] = []
        self.path_weights: list[Tensor] = []

    def __call__(
        self,
        layer: int,
        env_weights: Float[Tensor, "edges env_degrees channels"],
        path_weights: Float[Tensor, "paths channels_or_1"],
        mixing: Float[Tensor, "components width channels"] | None = None,
    ) -> Float[Tensor, "edges channels"]:
        """The even scalars after a layer. Layers are taken in order.

        Args:
            layer: its number.
            env_weights: for its environment; with ``mixing`` [edges, 1, width], the hidden layer that they follow from.
            path_weights: of its contraction.
            mixing: see allegro.chain/1 in `nequip_core.ops.contracts`.
        """
        if layer < len(self.chains):
            scalars = self._chain(layer, env_weights, path_weights, mixing)
        else:
            given = self.features, env_weights, self.harmonics, path_weights, self.graph
            self.features, _, *scalars = self.contractions[layer](*given)
        return scalars[0] if scalars else self.features.flatten(1)

    def _chain(self, layer: int, env_weights: Tensor, path_weights: Tensor, mixing: Tensor | None) -> list[Tensor]:
        chain = self.chains[layer]
        # Of a layer whose scalars alone are wanted, the paths to them, which come first.
        paths = [*self.path_weights, path_weights[: len(chain.spec.layers[-1].paths)]]
        given = self.factors, self.harmonics, self.environments, env_weights, paths, self.graph, mixing
        scalars: list[Tensor]
        self.features, environment, *scalars = chain(*given)
        if chain.spec.passes:
            self.factors = scalars.pop()
        self.environments.append(environment)
        self.path_weights.append(path_weights)
        return scalars
