"""``nequip plugins``: the installed plugins and what each offers. Imports no torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from nequip_core.cli.options import add_json, command_parser
from nequip_core.plugins.manager import DISABLE, PluginInfo, Registry, load_registry, replaced_distributions
from nequip_core.plugins.records import API

SCHEMA = 1


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = command_parser("plugins", "List the installed plugins and what each offers.")
    add_json(result)
    return result


def run(argv: Sequence[str]) -> int:
    """Print the plugins. Exit code 0."""
    options = parser().parse_args(argv)
    registry = load_registry()
    notes = replaced_distributions()
    if options.json:
        print(json.dumps(as_json(registry, notes), indent=2))
    else:
        print(as_text(registry, notes))
    return 0


def as_json(registry: Registry, notes: Sequence[str]) -> dict[str, Any]:
    """``{schema, api, plugins: [{name, distribution, version, api, module, requires, records}], disabled, notes}``."""
    return {
        "schema": SCHEMA,
        "api": API,
        "plugins": [_plugin(plugin) for plugin in registry.plugins],
        "disabled": list(registry.disabled),
        "notes": list(notes),
    }


def as_text(registry: Registry, notes: Sequence[str]) -> str:
    """A paragraph for each plugin."""
    lines: list[str] = []
    for plugin in registry.plugins:
        range_ = f", requires nequip-core {plugin.requires}" if plugin.requires else ""
        lines.append(f"{plugin.distribution} {plugin.version}  (plugin {plugin.name}, API {plugin.api}{range_})")
        lines.extend(f"  {kind:15} {', '.join(names)}" for kind, names in plugin.records.items() if names)
    lines.extend(f"{name}: left out by {DISABLE}" for name in registry.disabled)
    lines.extend(f"Note: {note}" for note in notes)
    return "\n".join(lines)


def _plugin(plugin: PluginInfo) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "api": plugin.api,
        "module": plugin.module,
        "requires": plugin.requires,
        "records": {kind: list(names) for kind, names in plugin.records.items()},
    }
