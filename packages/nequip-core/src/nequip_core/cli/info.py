"""``nequip info MODEL``: what a model is, and where it comes from."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from nequip_core.cli.imports import imports
from nequip_core.cli.options import add_json, add_model, command_parser

if TYPE_CHECKING:
    from nequip_core.export.artifact import LoadedModel

SCHEMA = 1


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = command_parser("info", "Types, cut-offs, layers, training data and versions of a model.")
    add_model(result)
    add_json(result)
    return result


def run(argv: list[str]) -> int:
    """Print it."""
    return show(parser().parse_args(argv))


def show(options: argparse.Namespace) -> int:
    """Print what the options ask for; `nequip package info` has the same."""
    with imports():
        from nequip_core.cli.loading import inspect

    report = describe(inspect(options))
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return 0


def describe(loaded: LoadedModel) -> dict[str, Any]:
    """The report as ``--json`` prints it. Lengths in Å, energies in eV."""
    info = loaded.info
    return {
        "schema": SCHEMA,
        "name": loaded.config["name"],
        "kind": loaded.kind,
        "path": str(loaded.path),
        "checkpoint": loaded.checkpoint,
        "weights": loaded.weights,
        "hash": loaded.hash,
        "types": list(info.types),
        "elements": list(info.elements),
        "cutoff_A": info.cutoff,
        "pair_cutoffs_A": {
            centre: dict(zip(info.types, row, strict=True))
            for centre, row in zip(info.types, info.pair_cutoffs, strict=True)
        },
        "message_passing_layers": info.message_passing_layers,
        "strictly_local": info.strictly_local,
        "ghost_distance_A": info.ghost_distance,
        "dtype": info.dtype,
        "n_parameters": loaded.n_parameters,
        "atomic_energies_eV": dict(loaded.atomic_energies),
        "energy_scale_eV": dict(loaded.energy_scale),
        "units": loaded.manifest["units"],
        "training_data": loaded.data,
        "metrics": loaded.metrics,
        "versions": loaded.manifest["versions"],
        "licence": loaded.manifest["licence"],
        "citations": loaded.manifest["citations"],
        "model": loaded.config,
        **_compiled(loaded),
    }


def _compiled(loaded: LoadedModel) -> dict[str, Any]:
    """What only a compiled file has: the machine that it is for."""
    from nequip_core.export.compiled import CompiledPotential

    if not isinstance(loaded.potential, CompiledPotential):
        return {}
    metadata = loaded.potential.metadata
    names = ("target", "device", "isa", "capability", "torch", "cuda", "kernels", "kernel_libraries")
    return {name: getattr(metadata, name) for name in (*names, "inputs", "outputs")}


def as_text(report: dict[str, Any]) -> str:
    """The report for people."""
    types = [f"{t} ({e})" if t != e else t for t, e in zip(report["types"], report["elements"], strict=True)]
    cutoffs = sorted({c for row in report["pair_cutoffs_A"].values() for c in row.values()})
    rows = {
        "model": f"{report['name']}, {report['n_parameters']} parameters, {report['dtype']}",
        "file": f"{report['path']} ({report['kind']}, {report['weights']} weights)",
        "hash": report["hash"],
        "types": ", ".join(types),
        "cut-off": f"{report['cutoff_A']:g} Å"
        + (f" (by pair {', '.join(f'{c:g}' for c in cutoffs)} Å)" if len(cutoffs) > 1 else ""),
        "layers": "none: strictly local"
        if report["strictly_local"]
        else f"{report['message_passing_layers']} of message passing: an atom feels others up to "
        f"{report['ghost_distance_A']:g} Å away",
        "atomic energies": ", ".join(f"{t} {e:.6g} eV" for t, e in report["atomic_energies_eV"].items()),
        "energies by": _fit(report["training_data"]),
        "energy scale": ", ".join(f"{t} {e:.4g} eV" for t, e in report["energy_scale_eV"].items()),
        "metrics": ", ".join(f"{k} {v:.4g}" for k, v in report["metrics"].items() if isinstance(v, float)),
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        "licence": report["licence"] or "not stated",
        "compiled for": _machine(report),
        "citations": ", ".join(report["citations"]),
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items() if value)


def _fit(data: dict[str, Any]) -> str:
    """How the atomic energies were determined, where the training set says so."""
    energies = data.get("statistics", {}).get("atomic_energies", {})
    if not energies.get("fit"):
        return ""
    loose = energies["undetermined"]
    return f"{energies['method']}, {energies['fit']}" + (f"; not determined: {', '.join(loose)}" if loose else "")


def _machine(report: dict[str, Any]) -> str:
    """What a compiled file runs on."""
    if "target" not in report:
        return ""
    code = report["isa"] or f"CUDA {report['cuda']}, capability {report['capability']}"
    kernels = ", ".join(f"{op} {about['chosen']}" for op, about in report["kernels"].items())
    return f"{report['target']}, {report['device']} ({code}), torch {report['torch']}; kernels: {kernels}"
