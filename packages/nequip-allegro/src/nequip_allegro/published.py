"""The published Allegro (nequip-allegro 0.7 and 0.8) as ours: the same numbers in another order.

Theirs gives the weights of harmonics as [channel, degree], ours as [degree, channel].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nequip_core.errors import InputError
from nequip_core.models.published import Converted, Options, Tensors, bessels, common, dtype_of, mlp, our_nonlinearity

EMBEDDINGS = {"TwoBodyBesselScalarEmbed": "bessel", "TwoBodySplineScalarEmbed": "spline"}


def from_published(options: Mapping[str, Any], weights: Mapping[str, Tensor], versions: Mapping[str, str]) -> Converted:
    """Keys of `AllegroConfig` and the state dict of our model; see `nequip_core.models.published`.

    Raises:
        InputError: an option has no counterpart, or the weights are not those of the options.

    Without weights (a training config) only the keys.
    """
    left = Options(options)
    embed = dict(left.need("radial_chemical_embed"))
    name = str(embed.pop("_target_")).rpartition(".")[2]
    if name not in EMBEDDINGS:
        raise InputError(
            f"The published model has model.radial_chemical_embed {name}; expected {' | '.join(EMBEDDINGS)}. "
            "It can not be converted."
        )
    inner = Options(embed, "model.radial_chemical_embed")
    # The envelope belongs to the embedding there; `common` reads the model's own.
    config, state = common(left, weights, versions)
    dtype = dtype_of(config)
    scalars, channels = int(left.take("num_scalar_features", 64)), int(left.take("num_tensor_features", 16))
    l_max, num_layers = int(left.need("l_max")), int(left.take("num_layers", 2))
    individual = bool(left.take("weight_individual_irreps", True))
    dim = left.take("radial_chemical_embed_dim")
    pair_word, pair_written = our_nonlinearity(left, "scalar_embed_mlp_nonlinearity")
    latent_word, latent_written = our_nonlinearity(left, "allegro_mlp_nonlinearity")
    readout_word, readout_written = our_nonlinearity(left, "readout_mlp_nonlinearity")
    left.refuse_unless("forward_normalize", True)
    config |= {
        "l_max": l_max,
        "parity": bool(left.take("parity", True)),
        "num_layers": num_layers,
        "num_scalar_features": scalars,
        "num_tensor_features": channels,
        "tp_path_channel_coupling": bool(left.take("tp_path_channel_coupling", True)),
        "weight_individual_irreps": individual,
        "two_body": EMBEDDINGS[name],
        "two_body_dim": scalars if dim is None else int(dim),
        "two_body_mlp": _widths(left, "scalar_embed_mlp", 64),
        "latent_mlp": _widths(left, "allegro_mlp", 64),
        "readout_mlp": _widths(left, "readout_mlp", 32),
        "nonlinearity": latent_word,
        "two_body_nonlinearity": pair_word,
        "readout_nonlinearity": readout_word,
    }
    prefix = "radial_chemical_embed."
    if config["two_body"] == "bessel":
        config["polynomial_cutoff_p"] = int(inner.take("polynomial_cutoff_p", 6))
        basis = bessels(
            inner, weights, f"{prefix}bessel_encode.bessel_weights", "architecture.two_body.bessels.frequencies", dtype
        )
        config |= basis.config
        state |= basis.weights
    else:
        config |= {
            "num_splines": int(inner.take("num_splines", 16)),
            "spline_span": int(inner.take("spline_span", 12)),
        }
    inner.finish()
    left.finish()
    if not weights:
        return Converted(config, {})

    own: Tensors = {}
    if config["two_body"] == "bessel":
        own["two_body.centre"] = weights[f"{prefix}type_embed.center_embed.weight"]
        own["two_body.neighbor"] = weights[f"{prefix}type_embed.neighbor_embed.weight"]
        own |= _mlp("two_body.linear", mlp(weights, f"{prefix}type_embed.basis_linear.", None))
    else:
        own["two_body.weights"] = weights[f"{prefix}spline.class_embed.weight"].reshape(len(config["types"]) ** 2, -1)
    own |= _mlp("two_body_mlp", mlp(weights, "scalar_embed_mlp.mlp_module.", pair_written))
    degrees = l_max + 1
    (tensor,) = mlp(weights, "tensor_embed.env_embed_linear.", None)
    own |= _mlp("tensor_weights", [_by_degree(tensor, 0, channels, degrees)])
    of_environment = degrees if individual else 1
    (first,) = mlp(weights, "allegro.first_layer_env_embed_projection.", None)
    coupled = config["tp_path_channel_coupling"]
    own |= _mlp("first", [_by_degree(first, scalars, channels, of_environment)])
    for n in range(num_layers):
        *hidden, last = mlp(weights, f"allegro.latents.{n}.", latent_written)
        if n < num_layers - 1:
            last = _by_degree(last, scalars, channels, of_environment)
        own |= _mlp(f"latents.{n}", [*hidden, last])
        paths = weights[f"allegro.tps.{n}.weights"]
        own[f"path_weights.{n}"] = paths.reshape(channels if coupled else 1, -1).T
    own |= _mlp("readout", mlp(weights, "edge_readout.mlp_module.", readout_written))
    state |= {f"architecture.{key}": tensor.detach().to(dtype).contiguous() for key, tensor in own.items()}
    return Converted(config, state)


def _widths(left: Options, name: str, width: int) -> list[int]:
    """Of the hidden layers."""
    depth = int(left.take(f"{name}_hidden_layers_depth", 1))
    given = left.take(f"{name}_hidden_layers_width", width)
    return [int(given)] * depth


def _mlp(name: str, matrices: list[Tensor]) -> Tensors:
    return {f"{name}.weights.{n}": matrix for n, matrix in enumerate(matrices)}


def _by_degree(matrix: Tensor, start: int, channels: int, degrees: int) -> Tensor:
    """The columns from ``start`` on, [channel, degree] there, as [degree, channel]."""
    weights = torch.unflatten(matrix[:, start:], 1, (channels, degrees)).mT.flatten(1)
    return torch.cat([matrix[:, :start], weights], dim=1)
