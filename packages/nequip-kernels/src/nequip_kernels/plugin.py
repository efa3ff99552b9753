"""What the plugin offers. Imports no torch and no triton."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from nequip_core.plugins.hookspecs import hookimpl
from nequip_core.plugins.records import KernelEntry, Ref

NEQUIP_PLUGIN_API = 1


@hookimpl
def nequip_kernels() -> Iterable[KernelEntry]:
    """Kernels in Triton, generated for each model's couplings."""
    yield _triton("allegro.contract/1", "contraction.make", "contraction")
    yield _triton("nequip.convolution/1", "convolution.make", "convolution")
    yield _triton("scalar_mlp/1", "mlp.make", "mlp")
    yield replace(_triton("allegro.chain/1", "chain.make", "chain"), derivatives=1)
    tabulated = _triton("nequip.tabulated_convolution/1", "tabulated.make", "tabulated")
    yield replace(tabulated, derivatives=1, dtypes=frozenset({"float32"}))
    # What is not `auto` is taken where it is named. Layers have been measured for Allegro only, and the fused
    # convolution is slower than stored weights.
    layers = _triton("scalar_mlp/1", "mlp.make", "layers")
    yield replace(layers, name="triton_layers", refuses=Ref("nequip_kernels.mlp.make:refuses_layers"), auto=False)
    fused = _triton("nequip.radial_convolution/1", "radial.fused_make", "fused")
    yield replace(fused, name="triton_fused", derivatives=1, auto=False)
    # Weights made again in little memory, for training (`nequip_kernels.radial.parts`).
    parts = replace(_triton("nequip.radial_convolution/1", "radial.make", "radial_convolution"), exportable=False)
    yield parts
    yield replace(parts, name="parts", devices=frozenset({"cpu"}))


def _triton(op: str, file: str, what: str) -> KernelEntry:
    return KernelEntry(
        name="triton",
        op=op,
        make=Ref(f"nequip_kernels.{file}:make_{what}"),
        refuses=Ref(f"nequip_kernels.{file}:refuses"),
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"float32", "float64"}),
        derivatives=2,
        exportable=True,
        libraries=("torch",),  # triton makes the kernels; a compiled file runs without it
    )
