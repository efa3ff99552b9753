"""What the plugin offers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from nequip_core.plugins.hookspecs import hookimpl
from nequip_core.plugins.records import ModelEntry, Ref

NEQUIP_PLUGIN_API = 1


@hookimpl
def nequip_models() -> Iterable[ModelEntry]:
    """Allegro."""
    yield ModelEntry(
        name="allegro",
        config=Ref("nequip_allegro.model:AllegroConfig"),
        build=Ref("nequip_allegro.model:build"),
        tiny={
            "num_layers": 2,
            "l_max": 1,
            "num_scalar_features": 8,
            "num_tensor_features": 4,
            "two_body_dim": 8,
            "two_body_mlp": [8],
            "latent_mlp": [8],
            "readout_mlp": [8],
        },
        reference="10.1038/s41467-023-36329-y",
        from_published=Ref("nequip_allegro.published:from_published"),
        published=("AllegroModel",),
    )
