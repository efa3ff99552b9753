"""The published NequIP (nequip 0.16 to 0.19) as ours: the same numbers in another order.

Theirs has every irrep that can be reached; ours leaves out those that can not reach the energy, so that their columns,
blocks and gates are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nequip_core.errors import InputError
from nequip_core.models.nequip import NequIPConfig, layouts
from nequip_core.models.published import (
    Converted,
    Options,
    Tensors,
    bessels,
    common,
    dtype_of,
    mlp,
    our_nonlinearity,
)
from nequip_core.o3 import SCALAR, Irrep, Irreps
from nequip_core.ops.contracts import ConvolutionSpec

PRESET = {"parity": False, "type_embed_num_features": 32}
"""What all presets share; the radial network is read off the weights."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "S": {"num_layers": 2, "l_max": 1, "num_features": [128, 64]},
    "M": {"num_layers": 4, "l_max": 2, "num_features": [128, 64, 32]},
    "L": {"num_layers": 6, "l_max": 3, "num_features": [128, 64, 32, 32]},
    "XL": {"num_layers": 6, "l_max": 4, "num_features": [320, 96, 64, 32, 32]},
}


def from_published(options: Mapping[str, Any], weights: Mapping[str, Tensor], versions: Mapping[str, str]) -> Converted:
    """Keys of `NequIPConfig` and the state dict of our model; see `nequip_core.models.published`.

    Raises:
        InputError: an option has no counterpart, or the weights are not those of the options.

    Without weights (a training config) only the keys.
    """
    preset = options.get("preset")
    if preset is not None:
        name = str(preset).upper()
        if name not in PRESETS:
            raise InputError(f"The published model has model.preset: {preset!r}; expected {', '.join(PRESETS)}.")
        options = {**PRESET, **PRESETS[name], **{key: value for key, value in options.items() if key != "preset"}}
    left = Options(options)
    config, state = common(left, weights, versions)
    dtype = dtype_of(config)
    l_max = int(left.take("l_max", 1))
    features = left.take("num_features", 32)
    dim = left.take("type_embed_num_features")
    word, written = our_nonlinearity(left, "readout_mlp_nonlinearity")
    # The weights tell the widths, whatever the defaults of the version that wrote them.
    depth, width = int(left.take("radial_mlp_depth", 1)), int(left.take("radial_mlp_width", 128))
    readout_depth = int(left.take("readout_mlp_hidden_layers_depth", 0))
    readout_width = left.take("readout_mlp_hidden_layers_width")
    if readout_width is None:
        readout_width = features[0] if isinstance(features, Sequence) else features
    radial_mlp, readout_mlp = [width] * depth, [int(readout_width)] * readout_depth
    readout: list[Tensor] = []
    if weights:
        readout = mlp(weights, "per_atom_energy_readout.mlp_module.", written)
        readout_mlp = [matrix.shape[1] for matrix in readout[:-1]]
        radial_mlp = [matrix.shape[1] for matrix in mlp(weights, "layer0_convnet.conv.edge_mlp.", "silu")[:-1]]
    basis = bessels(left, weights, "bessel_encode.bessel_weights", "architecture.bessels.frequencies", dtype)
    one = isinstance(config["avg_num_neighbors"], (int, float)) or config["avg_num_neighbors"] == "auto"
    config |= {
        "l_max": l_max,
        "parity": bool(left.take("parity", True)),
        "num_layers": int(left.take("num_layers", 4)),
        "num_features": [int(n) for n in features] if isinstance(features, Sequence) else int(features),
        "type_embedding_dim": "auto" if dim is None else int(dim),
        "radial_mlp": radial_mlp,
        "readout_mlp": readout_mlp,
        "readout_nonlinearity": word if readout_mlp else "auto",
        "avg_num_neighbors_of": "receiver" if one else "sender",
        **basis.config,
    }
    left.refuse_unless("convnet_sc", True)
    left.refuse_unless("learnable_shift", False)
    left.refuse_unless("convnet_resnet", False)
    left.refuse_unless("convnet_nonlinearity_type", "gate")
    left.refuse_unless("convnet_nonlinearity_scalars", {"e": "silu", "o": "tanh"})
    left.refuse_unless("convnet_nonlinearity_gates", {"e": "silu", "o": "tanh"})
    left.refuse_unless("categorical_graph_field_embed", None, [])
    left.finish()
    if not weights:
        return Converted(config, {})

    state |= basis.weights
    state["architecture.embedding"] = weights["type_embed.embed_module.weight"]
    state |= {f"architecture.readout.weights.{n}": matrix for n, matrix in enumerate(readout)}
    resolved = NequIPConfig(**config)
    ours, theirs = layouts(resolved), layouts(resolved, pruned=False)
    for n in range(config["num_layers"]):
        inside = {
            name.removeprefix(f"layer{n}_convnet.conv."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"layer{n}_convnet.conv.")
        }
        layer = _layer(inside, theirs[n], theirs[n + 1], ours[n], ours[n + 1], l_max)
        state |= {f"architecture.layers.{n}.{name}": tensor for name, tensor in layer}
    exact = {"scale", "shift"}
    return Converted(config, {name: t if name in exact else t.detach().to(dtype) for name, t in state.items()})


def _layer(
    weights: Tensors,
    their_in: Irreps,
    their_out: Irreps,
    our_in: Irreps,
    our_out: Irreps,
    l_max: int,
) -> Iterator[tuple[str, Tensor]]:
    """One layer's state dict. Their scalars come first, and so do ours; they sort results by degree, odd ones first."""
    gated = [(irrep, channels) for irrep, channels in their_out if irrep.l > 0]
    # Even scalars are followed by one gate for each gated channel.
    gates = torch.cat(
        [torch.full((their_out.channels[SCALAR],), True)]
        + [torch.full((channels,), irrep in our_out) for irrep, channels in gated]
    )
    their_gate = dict(their_out) | {SCALAR: len(gates)}

    def kept(irrep: Irrep, block: Tensor) -> Tensor:
        return block[..., gates] if irrep == SCALAR else block

    for irrep, block in _blocks(weights["linear_1.weight"], [(i, (c, c)) for i, c in their_in]):
        if irrep in our_in:
            yield f"linear_in.weights.{irrep}", block

    their_spec = ConvolutionSpec(their_in, l_max, True, tuple(irrep for irrep, _ in their_out))
    our_spec = ConvolutionSpec(our_in, l_max, True, tuple(irrep for irrep, _ in our_out))
    middle = their_spec.irreps_out
    shapes = [(irrep, (middle.channels[irrep], their_gate[irrep])) for irrep in sorted(i for i, _ in middle)]
    for irrep, block in _blocks(weights["linear_2.weight"], shapes):
        if irrep in our_out:
            yield f"linear_out.weights.{irrep}", kept(irrep, block)

    if "sc.weight" in weights:
        dim = _embedding_dim(weights["sc.weight"], their_in, their_gate)
        shapes3 = [(irrep, (c, dim, their_gate[irrep])) for irrep, c in their_in if irrep in their_gate]
        for irrep, block in _blocks(weights["sc.weight"], shapes3):
            if irrep in our_out and irrep in our_in:
                yield f"self_connection.weights.{irrep}", kept(irrep, block)

    position = {irrep: n for n, (irrep, _) in enumerate(their_in)}
    columns, start = {}, 0
    for path in sorted(their_spec.paths, key=lambda path: (position[path.irrep_in], path.l_edge, path.irrep_out.l)):
        width = their_in.channels[path.irrep_in]
        columns[path] = torch.arange(start, start + width)
        start += width
    *hidden, last = mlp(weights, "edge_mlp.", "silu")
    if last.shape[1] != start:
        raise InputError(f"The published radial network has {last.shape[1]} outputs, its options make {start}.")
    for n, matrix in enumerate([*hidden, last[:, torch.cat([columns[path] for path in our_spec.paths])]]):
        yield f"radial.weights.{n}", matrix


def _embedding_dim(weight: Tensor, irreps: Irreps, outputs: Mapping[Irrep, int]) -> int:
    return weight.numel() // sum(channels * outputs[irrep] for irrep, channels in irreps if irrep in outputs)


def _blocks(flat: Tensor, shapes: Sequence[tuple[Irrep, tuple[int, ...]]]) -> Iterator[tuple[Irrep, Tensor]]:
    """A flat weight as one matrix for each irrep.

    Raises:
        InputError: it is of another size.
    """
    sizes = [torch.Size(shape).numel() for _, shape in shapes]
    if sum(sizes) != flat.numel():
        raise InputError(f"The published weights have {flat.numel()} numbers where their options make {sum(sizes)}.")
    for (irrep, shape), part in zip(shapes, flat.split_with_sizes(sizes), strict=True):
        yield irrep, part.reshape(shape)
