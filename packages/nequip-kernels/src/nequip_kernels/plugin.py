"""What the plugin offers. Imports no torch and no triton."""

from __future__ import annotations

from collections.abc import Iterable

from nequip_core.plugins.hookspecs import hookimpl
from nequip_core.plugins.records import KernelEntry, Ref

NEQUIP_PLUGIN_API = 1

OPERATORS = (
    ("allegro.contract/1", "contraction"),
    ("nequip.convolution/1", "convolution"),
    ("scalar_mlp/1", "mlp"),
)
"""Each contract, and the folder of its kernels."""


@hookimpl
def nequip_kernels() -> Iterable[KernelEntry]:
    """Kernels in Triton, generated for each model's couplings."""
    for op, name in OPERATORS:
        yield KernelEntry(
            name="triton",
            op=op,
            make=Ref(f"nequip_kernels.{name}.make:make_{name}"),
            refuses=Ref(f"nequip_kernels.{name}.make:refuses"),
            devices=frozenset({"cuda"}),
            dtypes=frozenset({"float32", "float64"}),
            derivatives=2,
            exportable=True,
            libraries=("torch",),  # triton makes the kernels; a compiled file runs without it
        )
    # These two are taken where they are named: nobody has measured them yet.
    yield KernelEntry(
        name="triton_layers",
        op="scalar_mlp/1",
        make=Ref("nequip_kernels.mlp.make:make_layers"),
        refuses=Ref("nequip_kernels.mlp.make:refuses_layers"),
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"float32", "float64"}),
        derivatives=2,
        exportable=True,
        libraries=("torch",),
        auto=False,
    )
    yield KernelEntry(
        name="triton",
        op="allegro.chain/1",
        make=Ref("nequip_kernels.chain.make:make_chain"),
        refuses=Ref("nequip_kernels.chain.make:refuses"),
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"float32", "float64"}),
        derivatives=1,
        exportable=True,
        libraries=("torch",),
    )
    # Weights that are in no memory, for inference. Taken where it is named: it has no second derivative.
    yield KernelEntry(
        name="triton_fused",
        op="nequip.radial_convolution/1",
        make=Ref("nequip_kernels.radial.fused_make:make_fused"),
        refuses=Ref("nequip_kernels.radial.fused_make:refuses"),
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"float32", "float64"}),
        derivatives=1,
        exportable=True,
        libraries=("torch",),
    )
    # The same numbers in little memory, for training (`nequip_kernels.radial.parts`).
    for name, device in (("parts", "cpu"), ("triton", "cuda")):
        yield KernelEntry(
            name=name,
            op="nequip.radial_convolution/1",
            make=Ref("nequip_kernels.radial.make:make_radial_convolution"),
            refuses=Ref("nequip_kernels.radial.make:refuses"),
            devices=frozenset({device}),
            dtypes=frozenset({"float32", "float64"}),
            derivatives=2,
            exportable=False,
            libraries=("torch",),
        )
