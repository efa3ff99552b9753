"""``nequip benchmark inference`` and ``training``: the time of a model's calls and training steps, by size.

The atoms are a disordered lattice with the density of water, 0.1 atoms/Å³, with all types of the model: numbers of
edges are those of a liquid, energies mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nequip_core.cli.imports import imports
from nequip_core.cli.options import add_device, add_kernels, add_model, command_parser
from nequip_core.errors import ArtifactError
from nequip_core.files import atomic_write

if TYPE_CHECKING:
    import torch

    from nequip_core.export.artifact import LoadedModel
    from nequip_core.graph import Graph
    from nequip_core.models.base import ModelInfo
    from nequip_core.potential import Potential

SCHEMA = 1
DENSITY = 0.1
"""Atoms / Å³."""

FEWEST, MOST = 3, 50
"""Repeats of a call; between them, as many as fit the time that is given."""


def sizes(text: str) -> list[int]:
    """Numbers of atoms as the user writes them."""
    numbers = [int(part) if part.isdigit() else 0 for part in text.split(",")]
    if not all(number > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers of atoms separated by commas")
    return numbers


def parser(what: str) -> argparse.ArgumentParser:
    """The options of either."""
    of = {"inference": "energies, forces and virial", "training": "one eager training step on energies and forces"}
    result = command_parser(f"benchmark {what}", f"The time of {of[what]} of a model, by number of atoms.")
    add_model(result)
    result.add_argument("--sizes", type=sizes, default=[192, 1536], metavar="N,N,...", help="numbers of atoms")
    result.add_argument("--seconds", type=float, default=5.0, help="for each size, after a call that is not counted")
    add_kernels(result)
    result.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file")
    add_device(result)
    return result


def inference(argv: Sequence[str]) -> int:
    """Print a line for each size. Exit code 0."""
    return _measure("inference", argv)


def training(argv: Sequence[str]) -> int:
    """Likewise.

    Raises:
        ArtifactError: the model is a compiled file, which can not be trained.
    """
    return _measure("training", argv)


def _measure(what: str, argv: Sequence[str]) -> int:
    options = parser(what).parse_args(argv)

    with imports():
        import torch

        from nequip_core.cli.loading import load
        from nequip_core.graph import to
        from nequip_core.potential import Potential

    model = load(options, device=options.device, kernels=options.kernels)
    trained = model.potential if what == "training" and isinstance(model.potential, Potential) else None
    if what == "training" and trained is None:
        raise ArtifactError(f"{model.path} is compiled: it can not be trained. Name the package it was made from.")
    for op, about in model.kernels.items():
        print(f"{op}: {about['chosen']}")
    print(f"{'atoms':>8s} {'edges':>10s} {'ms':>10s} {'us/atom':>9s} {'peak MB':>9s}")
    rows: list[dict[str, Any]] = []
    for atoms in options.sizes:
        graph = to(liquid(model.info, atoms), model.device)
        call = call_of(model, graph) if trained is None else step_of(trained, graph)
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
        took = median_time(call, model.device, options.seconds)
        peak = torch.cuda.max_memory_allocated(model.device) / 2**20 if model.device.type == "cuda" else None
        edges = graph.edge_shift.shape[0]
        rows.append(
            {"atoms": atoms, "edges": edges, "seconds": took, "us_per_atom": 1e6 * took / atoms, "peak_MB": peak}
        )
        shown = "" if peak is None else f"{peak:.0f}"
        print(f"{atoms:8d} {edges:10d} {1e3 * took:10.3f} {1e6 * took / atoms:9.2f} {shown:>9s}", flush=True)
    if options.json:
        report = {
            "schema": SCHEMA,
            "what": what,
            "model": str(model.path),
            "hash": model.hash,
            "kind": model.kind,
            "dtype": model.info.dtype,
            "kernels": model.kernels,
            "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "rows": rows,
        }
        with atomic_write(options.json) as file:
            json.dump(report, file, indent=2)
    return 0


def liquid(info: ModelInfo, atoms: int) -> Graph:
    """A periodic cube of so many atoms, the same at every call, on the CPU."""
    import numpy as np

    from nequip_core.graph import build_graph
    from nequip_core.neighbors import make_matscipy

    rng = np.random.default_rng(atoms)
    side = (atoms / DENSITY) ** (1 / 3)
    places = int(np.ceil(round(atoms ** (1 / 3), 9)))
    chosen = rng.permutation(places**3)[:atoms]
    lattice = np.stack(np.unravel_index(chosen, (places,) * 3), axis=1) * (side / places)
    positions = lattice + rng.uniform(-0.3, 0.3, size=(atoms, 3))
    cell = side * np.eye(3)
    types = rng.integers(len(info.types), size=atoms)
    pairs = make_matscipy(info.cutoff)(positions, cell, np.full(3, True))
    return build_graph(positions, types, pairs, cell, np.array(info.pair_cutoffs), f"{atoms} atoms")


def call_of(model: LoadedModel, graph: Graph) -> Callable[[], Any]:
    """Energies, forces and virial."""
    return lambda: model.potential(graph)


def step_of(potential: Potential, graph: Graph) -> Callable[[], Any]:
    """A loss of energy and forces and its gradient by the weights, without the optimizer."""
    potential.train().requires_grad_(True)

    def step() -> None:
        prediction = potential(graph)
        loss = prediction.forces.square().mean() + prediction.energy.square().mean()
        potential.zero_grad(set_to_none=True)
        loss.backward()

    return step


def median_time(call: Callable[[], Any], device: torch.device, limit: float) -> float:
    """Of a call, in seconds; the first is not counted."""
    import torch

    def once() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < limit and len(times) < MOST):
        times.append(once())
    return statistics.median(times)
