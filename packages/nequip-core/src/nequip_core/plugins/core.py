"""What nequip-core itself offers, through the same hooks as any other plugin. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from nequip_core.plugins.hookspecs import hookimpl
from nequip_core.plugins.records import (
    CommandEntry,
    EngineEntry,
    KernelEntry,
    ModelEntry,
    NeighborListEntry,
    ReaderEntry,
    Ref,
    TargetEntry,
    TrainingEntry,
)

NEQUIP_PLUGIN_API = 1

GRAPH = (
    "positions",
    "types",
    "edge_index",
    "edge_shift",
    "structure",
    "structure_ptr",
    "row_ptr",
    "by_neighbor",
    "neighbor_ptr",
    "local",
)
"""The fields of `nequip_core.graph.Graph`, which imports torch and so is not read here; a test holds them equal."""


@hookimpl
def nequip_models() -> Iterable[ModelEntry]:
    """NequIP."""
    yield ModelEntry(
        name="nequip",
        config=Ref("nequip_core.models.nequip:NequIPConfig"),
        build=Ref("nequip_core.models.nequip:build"),
        tiny={"num_layers": 2, "l_max": 1, "num_features": 4, "num_bessels": 4, "radial_mlp": [8]},
        reference="10.1038/s41467-022-29939-5",
        from_published=Ref("nequip_core.models.nequip_published:from_published"),
        published=("NequIPGNNModel", "PresetNequIPGNNModel"),
    )


REFERENCES = (
    ("nequip.convolution/1", "reference", "make_convolution"),
    ("nequip.radial_convolution/1", "reference", "make_radial_convolution"),
    ("nequip.tabulated_convolution/1", "reference", "make_tabulated_convolution"),
    ("allegro.contract/1", "contraction", "make_contraction"),
    ("allegro.chain/1", "contraction", "make_chain"),
    ("scalar_mlp/1", "mlp", "make_mlp"),
)
"""Each contract, and the file of nequip_core.ops and the function that make its reference."""


@hookimpl
def nequip_kernels() -> Iterable[KernelEntry]:
    """The reference: plain PyTorch, which runs everywhere."""
    for op, file, make in REFERENCES:
        yield KernelEntry(
            name="reference",
            op=op,
            make=Ref(f"nequip_core.ops.{file}:{make}"),
            refuses=Ref(f"nequip_core.ops.{file}:refuses"),
            devices=frozenset({"cpu", "cuda"}),
            dtypes=frozenset({"float32", "float64"}),
            derivatives=2,
            exportable=True,
            libraries=("torch",),
        )


@hookimpl
def nequip_neighbor_lists() -> Iterable[NeighborListEntry]:
    """Two well-kept libraries on the CPU, and our own list of tensors."""
    for name in ("matscipy", "vesin"):
        yield NeighborListEntry(name=name, make=Ref(f"nequip_core.neighbors:make_{name}"), devices=frozenset({"cpu"}))
    yield NeighborListEntry(
        name="device",
        make=Ref("nequip_core.neighbors:make_device"),
        devices=frozenset({"cpu", "cuda"}),
        batched=True,
    )


@hookimpl
def nequip_export_targets() -> Iterable[TargetEntry]:
    """The graph's tensors in; energies, forces and virials out. Of single atoms for ASE, whose users ask for them."""
    for name, outputs in (
        ("ase", ("atomic_energy", "forces", "virial", "atomic_virial")),
        ("batch", ("atomic_energy", "forces", "virial")),
    ):
        yield TargetEntry(
            name=name,
            inputs=GRAPH,
            outputs=outputs,
            dynamic=("structures", "atoms", "edges"),
            prepare=Ref("nequip_core.export.target:prepare"),
            units={"length": "Angstrom", "energy": "eV", "forces": "eV/Angstrom", "virial": "eV"},
        )


@hookimpl
def nequip_data_readers() -> Iterable[ReaderEntry]:
    """All formats that ASE reads; no suffix is its own, so another plugin's suffix goes first."""
    yield ReaderEntry(name="ase", suffixes=(), open=Ref("nequip_core.data.read:open_ase"))


@hookimpl
def nequip_training() -> Iterable[TrainingEntry]:
    """The common losses, optimizers and schedulers, and training on one device and on several."""
    modules = {
        "strategy": ("nequip_core.training.strategy", ("single", "deferred_ddp")),
        "loss": ("nequip_core.training.loss", ("mse", "mae", "huber")),
        "optimizer": ("nequip_core.training.optimizers", ("adam", "adamw", "sgd")),
        "scheduler": ("nequip_core.training.optimizers", ("none", "plateau", "cosine", "step")),
    }
    for kind, (module, names) in modules.items():
        for name in names:
            yield TrainingEntry(kind=kind, name=name, make=Ref(f"{module}:{name}"))  # type: ignore[arg-type]


@hookimpl
def nequip_engines() -> Iterable[EngineEntry]:
    """ASE and torch-sim."""
    yield EngineEntry(
        name="ase",
        target="ase",
        check=Ref("nequip_core.engines.ase:check"),
        example=(
            "from nequip_core.engines.ase import NequIPCalculator\n"
            'atoms.calc = NequIPCalculator.from_file("MODEL", device="auto")'
        ),
        docs="docs/engines/ase.md",
    )
    yield EngineEntry(
        name="torch-sim",
        target="batch",
        check=Ref("nequip_core.engines.optional:check_torch_sim"),
        example=(
            "from nequip_core.engines.torchsim import NequIPModel\n"
            'model = NequIPModel.from_file("MODEL", device="auto")'
        ),
        docs="docs/engines/torch-sim.md",
    )


@hookimpl
def nequip_config_modules() -> Iterable[str]:
    """Core's own groups of YAML presets."""
    return ("nequip_core.config.groups",)


@hookimpl
def nequip_commands() -> Iterable[CommandEntry]:
    """Core's commands; each lives in the module of its name."""
    summaries = {
        "train": "train a model as a config file says",
        "evaluate": "errors of a model on labelled structures",
        "info": "what a model is: types, cut-offs, layers, training data, versions",
        "md": "molecular dynamics in ASE",
        "relax": "relax atoms, and the cell if asked",
        "package": "make, list, compare, change and verify the files that models are shared as",
        "compile": "a model as machine code for an engine",
        "convert": "a published checkpoint, package or training config into ours",
        "plugins": "what each installed plugin offers",
        "benchmark": "speed of parts of this installation on this machine",
        "doctor": "versions, devices, compilers, plugins and engines of this machine",
    }
    for name, summary in summaries.items():
        yield CommandEntry(name=name, summary=summary, run=Ref(f"nequip_core.cli.{name}:run"))
