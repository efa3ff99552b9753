"""``nequip doctor``: what this machine has, and whether each engine can run here."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from nequip_core.cli import plugins
from nequip_core.cli.options import add_json, command_parser
from nequip_core.errors import PluginError
from nequip_core.plugins.manager import Registry, load_registry, replaced_distributions

SCHEMA = 1

LIBRARIES = (
    "nequip-core",
    "torch",
    "triton",
    "lightning",
    "e3nn",
    "ase",
    "numpy",
    "matscipy",
    "vesin",
    "hydra-core",
    "omegaconf",
    "safetensors",
    "pluggy",
)
"""Distributions whose versions are listed; one that is missing says so."""

COMPILERS = ("g++", "nvcc")


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = command_parser("doctor", "Versions, devices, compilers, plugins and the engines' verdicts.")
    add_json(result)
    return result


def run(argv: Sequence[str]) -> int:
    """Print the report. Exit code 0: it describes, and leaves the judgement to the reader."""
    options = parser().parse_args(argv)
    report = examine(load_registry())
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return 0


def examine(registry: Registry) -> dict[str, Any]:
    """``{schema, system, versions, cuda, devices, compilers, plugins, disabled, engines, notes}``."""
    listed = plugins.as_json(registry, replaced_distributions())
    return {
        "schema": SCHEMA,
        "system": {"platform": platform.platform(), "python": platform.python_version()},
        "versions": {name: _version(name) for name in LIBRARIES},
        **_devices(),
        "compilers": {name: _compiler(name) for name in COMPILERS},
        "plugins": listed["plugins"],
        "disabled": listed["disabled"],
        "engines": _engines(registry),
        "notes": listed["notes"],
    }


def as_text(report: dict[str, Any]) -> str:
    """The report for people."""
    blocks: dict[str, dict[str, Any]] = {
        "system": report["system"],
        "versions": report["versions"] | {"cuda (of torch)": report["cuda"]},
        "devices": {device["name"]: device["description"] for device in report["devices"]},
        "compilers": {
            name: found and f"{found['version']}  ({found['path']})" for name, found in report["compilers"].items()
        },
        "plugins": {plugin["distribution"]: plugin["version"] for plugin in report["plugins"]}
        | dict.fromkeys(report["disabled"], "disabled"),
        "engines": {
            engine["name"]: f"{'ready' if engine['usable'] else 'not usable'}: {engine['verdict']}"
            for engine in report["engines"]
        },
    }
    lines = []
    for title, rows in blocks.items():
        lines.append(title)
        lines.extend(f"  {name:16} {'not found' if value is None else value}" for name, value in rows.items())
    return "\n".join([*lines, *(f"Note: {note}" for note in report["notes"])])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    import torch

    devices: list[dict[str, Any]] = [
        {"name": "cpu", "description": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": f"cuda:{index}",
                "description": f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, capability "
                f"{properties.major}.{properties.minor}",
            }
        )
    return {"cuda": torch.version.cuda, "devices": devices}


def _compiler(name: str) -> dict[str, str] | None:
    path = shutil.which(name)
    if path is None:
        return None
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    # g++ says its version in the first line, nvcc in one that holds "release".
    lines = answer.stdout.splitlines() or ["it does not say its version"]
    return {"path": path, "version": next((line for line in lines if "release" in line), lines[0]).strip()}


def _engines(registry: Registry) -> list[dict[str, Any]]:
    rows = []
    for entry in registry.engines.values():
        try:
            usable, verdict = entry.check.load()()
        except PluginError as error:  # a library that it needs is missing: that is the verdict
            usable, verdict = False, str(error)
        rows.append({"name": entry.name, "target": entry.target, "usable": usable, "verdict": verdict})
    return rows
