"""From a potential to a compiled file: machine code that engines load without Python or the model's source.

    trace (nequip_core.tracing) -> torch.export -> AOTInductor -> one file -> compared with eager

The graph holds torch's own operators only, and any number of structures, atoms and edges, none included. A file for
CUDA also holds `nequip_core.narrow`, compiled for the model's cut-offs.
"""

from __future__ import annotations

import struct
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch._inductor.config as inductor_config
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.func import functional_call

from nequip_core import launching
from nequip_core.errors import ArtifactError, CheckError, InputError
from nequip_core.export.artifact import LoadedModel
from nequip_core.export.bind import bind
from nequip_core.export.compiled import (
    KEY,
    MODEL,
    NARROW,
    CompiledPotential,
    Metadata,
    capability_of,
    installed_version,
    this_isa,
)
from nequip_core.export.target import OUTPUTS, inputs_of, outputs_of
from nequip_core.files import atomic_write
from nequip_core.graph import Graph, edge_vectors, filter_edges, to
from nequip_core.models.base import ModelInfo
from nequip_core.narrow import MOST_EDGES, Narrow, Narrowing, Wide, graph_of, wide_of
from nequip_core.ops.segment import sum_bags, take_rows
from nequip_core.ops.select import NOTHING
from nequip_core.plugins.manager import Registry
from nequip_core.plugins.records import TargetEntry
from nequip_core.potential import Potential
from nequip_core.tracing import Sizes, axes, sample_graph, trace

Say = Callable[[str], None]

TRACED = Sizes(3, 97, 1009)
"""Of the first example; in both sizes have no common factor, so that none can be taken for another's."""

EXPORTED = {"cpu": Sizes(2, 53, 601), "cuda": Sizes(2, 607, 30_011)}
"""Of the second, by device. On CUDA Inductor times a kernel's blocks with tensors of these sizes, to choose one; with
few edges all take the same time."""

SMALLEST = Sizes(2, 2, 2)
"""What the tracer may assume. Nothing in the graph depends on it: `COMPARED` has less."""

LARGEST = 2**31 - 1
"""Of each size. Without a bound Inductor takes 32-bit indices where the example's suffice, and products overflow."""

LISTED = Sizes(1, 10_007, 1_000_003)
"""Of the example of a wide graph: Inductor divides sums as suits it."""

COMPARED = (
    Sizes(1, 1, 0),
    Sizes(1, 2, 2),
    Sizes(4, 5, 0),
    Sizes(1, 24, 530),
    Sizes(3, 97, 1009),
    Sizes(16, 301, 4007),
    Sizes(1, 1000, 9001),
)
"""Sizes at which compiled and eager are compared."""

TOLERANCE = {"float64": 1e-10, "float32": 5e-5}
"""Largest difference of compiled and eager, relative to the largest number of the output."""

ISA = {"x86_64": ("AVX2", {"cpp.march": "x86-64-v3", "cpp.simdlen": 256})}
"""By machine: the instruction set that files are made for, since its CPUs have it, and Inductor's options for it."""


@dataclass(frozen=True)
class Report:
    """What became of a compilation.

    Attributes:
        metadata: of the file.
        trace_s: seconds of torch.fx and torch.export.
        inductor_s: seconds of AOTInductor.
        deviation: {output: largest difference from eager, relative to the output's largest number}.
        tolerance: allowed.
    """

    metadata: Metadata
    trace_s: float
    inductor_s: float
    deviation: Mapping[str, float]
    tolerance: float


def compile_model(
    model: LoadedModel, target: TargetEntry, path: str | Path, registry: Registry, *, native: bool = False, say: Say
) -> Report:
    """Write the compiled file of a model, for the device on which it is.

    Args:
        model: of a checkpoint or package.
        target: whose outputs are wanted.
        path: of the file; whole, or not at all.
        registry: knows the kernels.
        native: for this very CPU instead of all with `ISA`; quicker where it has AVX512.
        say: told what takes long.

    Raises:
        TraceError: the model can not be one graph.
        CheckError: compiled and eager differ.
        InputError: the target asks for outputs that there are not.
    """
    potential = model.potential
    if not isinstance(potential, Potential):
        raise ArtifactError(
            f"{model.path} is compiled already. Compile the checkpoint or package that it was made from."
        )
    unknown = sorted(set(target.outputs) - set(OUTPUTS))
    if unknown or target.inputs != Graph._fields:
        raise InputError(
            f"Target {target.name} can not be compiled: expected the inputs {', '.join(Graph._fields)} and outputs "
            f"among {', '.join(OUTPUTS)}; received {', '.join(target.inputs)} and {', '.join(target.outputs)}."
        )
    libraries = _libraries(model, registry)
    isa, options = _options(model.device, native)
    metadata = _metadata(model, target, isa, libraries)

    say("Tracing ...")
    start = time.perf_counter()
    with _without_torchs_warnings():
        program = export_program(potential, target.outputs)
    trace_s = time.perf_counter() - start

    say("Compiling with Inductor: a minute or two ...")
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.pt2"
        programs = {MODEL: program}
        if metadata.narrows:
            programs[NARROW] = narrow_program(model.info, model.device)
        parts = {}
        for name, part in programs.items():
            parts[name] = Path(folder) / name / "made.pt2"
            parts[name].parent.mkdir()
            options["aot_inductor.metadata"] = {KEY: metadata.to_json()} if name == MODEL else {}
            with _without_torchs_warnings(), launching.launching(model.device):
                torch._inductor.aoti_compile_and_package(part, package_path=str(parts[name]), inductor_configs=options)
        join(parts, whole)
        inductor_s = time.perf_counter() - start
        tolerance = TOLERANCE[metadata.dtype]
        compiled = CompiledPotential(whole, metadata, model.device)
        deviation = compare(compiled, potential, metadata)
        say(
            "Compiled and eager differ by "
            + ", ".join(f"{name} {value:.1e}" for name, value in deviation.items())
            + f" of the largest number (allowed: {tolerance:.0e})."
        )
        wrong = {name: value for name, value in deviation.items() if not value <= tolerance}
        if wrong:
            raise CheckError(
                f"The compiled model is not the eager one: {wrong} of the largest number, allowed are {tolerance}. "
                f"{path} was not written. This is our fault: please report it, with the torch version "
                f"{torch.__version__}."
            )
        if compiled.narrow is not None and not narrows_as_eager(compiled.narrow, model.info, model.device):
            raise CheckError(
                f"The compiled list of edges within the cut-offs is not the eager one. {path} was not written. This is "
                f"our fault: please report it, with the torch version {torch.__version__}."
            )
        with atomic_write(path, "wb") as file:
            file.write(whole.read_bytes())
    return Report(metadata, round(trace_s, 3), round(inductor_s, 3), deviation, tolerance)


@contextmanager
def _without_torchs_warnings() -> Iterator[None]:
    """Those that say nothing to who compiles a model."""
    with warnings.catch_warnings():
        # That products are of float32 numbers; torch's own use of its own old names.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec", category=FutureWarning)
        yield


def export_program(potential: Potential, outputs: tuple[str, ...]) -> ExportedProgram:
    """The exported program of a potential in evaluation mode: a graph's tensors to these outputs.

    Raises:
        TraceError: the model can not be one graph.
    """
    potential.eval()
    parameters = dict(potential.named_parameters())
    names, weights = tuple(parameters), tuple(parameters.values())

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        graph = Graph(*tensors[len(names) :])
        of_call = dict(zip(names, tensors, strict=False))
        prediction = functional_call(potential, of_call, (graph,), {"atomic_virial": "atomic_virial" in outputs})
        return tuple(getattr(prediction, name) for name in outputs)

    device = potential.model.shift.device
    axes_of_graph = axes(Graph)
    operators = {
        torch.ops.nequip.gather.default: take_rows,
        torch.ops.nequip.segment_sum.default: sum_bags,
    }
    example = to(sample_graph(potential.model.info, TRACED), device)
    traced = trace(function, weights, example, axes_of_graph, TRACED, SMALLEST, operators)
    return torch.export.export(
        bind(traced, weights),
        tuple(to(sample_graph(potential.model.info, EXPORTED[device.type]), device)),
        dynamic_shapes=_dynamic_shapes(axes_of_graph),
        strict=False,
    )


def _dynamic_shapes(axes_of_graph: list[tuple[str | int, ...]], largest: int = LARGEST) -> tuple[dict[int, Any], ...]:
    lengths: dict[str, Any] = {name: Dim(name, min=0, max=largest) for name in Sizes._fields}
    lengths |= {f"{name}_and_one": lengths[name] + 1 for name in ("structures", "atoms")}
    return tuple(
        {axis: lengths[name] for axis, name in enumerate(names) if isinstance(name, str)} for names in axes_of_graph
    )


def compare(compiled: CompiledPotential, potential: Potential, metadata: Metadata) -> dict[str, float]:
    """{output: largest difference of compiled and eager} at the sizes of `COMPARED`, relative to the largest number."""
    names = [output["name"] for output in metadata.outputs]
    with_virials = "atomic_virial" in names
    difference, largest = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    shift = potential.model.shift
    for seed, sizes in enumerate(COMPARED):
        graph = to(sample_graph(potential.model.info, sizes, seed), compiled.device)
        found, expected = (one(graph, atomic_virial=with_virials) for one in (compiled, potential))
        for name in names:
            ours, theirs = getattr(found, name), getattr(expected, name)
            if not (ours.shape == theirs.shape and ours.dtype == theirs.dtype and bool(ours.isfinite().all())):
                return {**difference, name: float("nan")}
            # E0 is large and exact: what is compared with is the part of the energy that the network makes.
            size = theirs - shift[graph.types] if name == "atomic_energy" else theirs
            difference[name] = max(difference[name], float((ours - theirs).abs().max()))
            largest[name] = max(largest[name], float(size.abs().max()))
    return {name: difference[name] / largest[name] if largest[name] else difference[name] for name in names}


def narrow_program(info: ModelInfo, device: torch.device) -> ExportedProgram:
    """The exported program of `nequip_core.narrow.Narrowing`, for the cut-offs of a model."""
    graph = to(sample_graph(info, LISTED), device)
    reach = torch.zeros(1, dtype=torch.float64, device=device)
    return torch.export.export(
        Narrowing(np.array(info.pair_cutoffs)).to(device),
        tuple(wide_of(graph, graph.positions.clone(), reach)),
        dynamic_shapes=_dynamic_shapes(axes(Wide), MOST_EDGES),
        strict=False,
    )


def narrows_as_eager(narrow: Callable[[list[Tensor]], list[Tensor]], info: ModelInfo, device: torch.device) -> bool:
    """Whether the compiled function gives the graph that eager operators give, number by number."""
    cutoffs = torch.tensor(info.pair_cutoffs, dtype=torch.float64, device=device)
    reach = torch.full((1,), 0.5, dtype=torch.float64, device=device)
    for seed, sizes in enumerate((Sizes(1, 1, 1), Sizes(1, 24, 530), Sizes(3, 97, 1009), Sizes(2, 1009, 70_001))):
        graph = to(sample_graph(info, sizes, seed), device)
        wide = graph._replace(positions=1.3 * graph.positions, edge_shift=1.3 * graph.edge_shift)
        kept = edge_vectors(wide).norm(dim=1) < cutoffs[tuple(wide.types[wide.edge_index])]
        expected = filter_edges(wide, kept)
        listed = wide.positions.clone()
        listed[0] += 1.0
        found = Narrow(*narrow([tensor.contiguous() for tensor in wide_of(wide, listed, reach)]))
        near, edges, overlaps = found.seen.tolist()
        graphs = zip(graph_of(wide, found, edges), expected, strict=True)
        if (near, edges, overlaps) != (sizes.atoms - 1, int(kept.sum()), 0) or not all(
            torch.equal(ours, theirs) for ours, theirs in graphs
        ):
            return False
    return True


def join(parts: Mapping[str, Path], out: Path) -> None:
    """One package of several, in which the model of each has its name; their libraries ask for no executable stack.

    Torch 2.13 sets that flag. They do not need it, and glibc 2.41 and later refuse to load such a library.
    """
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as whole:
        there: set[str] = set()
        for name, path in parts.items():
            with zipfile.ZipFile(path) as package:
                for member in package.namelist():
                    place = member.replace(f"/data/aotinductor/{MODEL}/", f"/data/aotinductor/{name}/")
                    if place not in there:
                        whole.writestr(zipfile.ZipInfo(place), _plain_stack(package.read(member)))
                    there.add(place)


def _plain_stack(content: bytes) -> bytes:
    elf64, gnu_stack, executable = b"\x7fELF\x02", 0x6474E551, 1
    if not content.startswith(elf64):
        return content
    changed = bytearray(content)
    (table,) = struct.unpack_from("<Q", changed, 32)  # e_phoff
    size, count = struct.unpack_from("<HH", changed, 54)  # e_phentsize, e_phnum
    for place in range(table, table + size * count, size):
        kind, flags = struct.unpack_from("<II", changed, place)
        if kind == gnu_stack:
            struct.pack_into("<I", changed, place + 4, flags & ~executable)
    return bytes(changed)


def _libraries(model: LoadedModel, registry: Registry) -> dict[str, str]:
    """Versions of what the chosen kernels need at run time besides torch."""
    libraries: dict[str, str] = {}
    for op, about in model.kernels.items():
        if about["chosen"] == NOTHING:
            continue
        entry = next(one for one in registry.kernels.values() if (one.op, one.name) == (op, about["chosen"]))
        if not entry.exportable:
            raise InputError(
                f"The kernel {entry.name} of {op} can not be part of a compiled model. Choose another: --kernels auto "
                "or --kernels reference."
            )
        libraries |= {name: installed_version(name) or "none" for name in entry.libraries if name != "torch"}
    return libraries


def _options(device: torch.device, native: bool) -> tuple[str | None, dict[str, Any]]:
    """The instruction set of the file, and Inductor's options."""
    # Indices are those of graphs, which are made with care.
    options: dict[str, Any] = {"assert_indirect_indexing": False}
    if device.type != "cpu":
        return None, options | launching.OPTIONS
    options["cpp.dynamic_threads"] = True  # as many as the engine has, not as many as are here
    machine, host = this_isa().split(" ", 1)
    # Before 2.13 torch takes all instructions of this CPU, and can not be told otherwise.
    if native or machine not in ISA or not hasattr(inductor_config.cpp, "march"):
        return this_isa(), options
    name, of_isa = ISA[machine]
    if host == "DEFAULT":
        raise InputError(f"This CPU has no {name}, for which models are compiled. Use --native.")
    return f"{machine} {name}", options | of_isa


def _metadata(model: LoadedModel, target: TargetEntry, isa: str | None, libraries: dict[str, str]) -> Metadata:
    info = model.info
    on_cuda = model.device.type == "cuda"
    return Metadata(
        target=target.name,
        inputs=inputs_of(sample_graph(info, TRACED)),
        outputs=outputs_of(target.outputs),
        types=list(info.types),
        elements=list(info.elements),
        cutoff_A=info.cutoff,
        pair_cutoffs_A=[list(row) for row in info.pair_cutoffs],
        message_passing_layers=info.message_passing_layers,
        strictly_local=info.strictly_local,
        ghost_distance_A=info.ghost_distance,
        dtype=info.dtype,
        units=dict(target.units),
        device="cuda" if on_cuda else "cpu",
        isa=isa,
        capability=capability_of(model.device) if on_cuda else None,
        torch=torch.__version__,
        cuda=torch.version.cuda if on_cuda else None,
        narrows=on_cuda,
        kernels=model.kernels,
        kernel_libraries=libraries,
        model_hash=model.hash,
        weights=model.weights,
        model=model.config,
        n_parameters=model.n_parameters,
        atomic_energies_eV=model.atomic_energies,
        energy_scale_eV=model.energy_scale,
        manifest=model.manifest,
        training_data=model.data,
        metrics=model.metrics,
    )
