"""Write the reference pages that follow from the code: config.md, commands.md and plugins.md in docs/reference.

    python docs/generate.py [--check]

``--check`` writes nothing and fails when a page is not what the code says. A config key, an option or a hook without a
description fails in either case.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from nequip_core.config.schema import RULES, Config
from nequip_core.keys import MISSING
from nequip_core.models.base import ModelConfig
from nequip_core.plugins import hookspecs
from nequip_core.plugins.manager import Registry, build_registry, discover

REFERENCE = Path(__file__).parent / "reference"
OURS = {path.parent.name for path in Path(__file__).parents[1].glob("packages/*/pyproject.toml")}
NOTE = "<!-- Written by docs/generate.py from the code; change it there. -->\n\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; pipes inside cells are escaped."""
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n\n"


# config.md


def default(item: Field[Any]) -> str:
    """The default as it would stand in a YAML file; empty where the description says it."""
    value = item.default_factory() if callable(item.default_factory) else item.default
    if value == MISSING:
        return "" if "default:" in item.metadata["text"] else "required"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def keys(cls: type, prefix: str, leave_out: Iterable[str] = ()) -> str:
    """The table of the fields of a dataclass that are no blocks: key, default, unit, meaning."""
    rows = []
    for item in fields(cls):
        if item.name in leave_out or is_block(item):
            continue
        name, text = f"{prefix}{item.name}", item.metadata.get("text")
        if not text:
            raise SystemExit(f"docs/generate.py: the config key {name} has no description. Give it one with key(...).")
        rule = RULES.get(name)
        if rule is not None and rule.words and not all(word in text for word in rule.words):
            text = f"{text}: {rule.expected}"
        rows.append([f"`{item.name}`", default(item), item.metadata["unit"] or "", text])
    head = ["key", "default", "unit", "meaning"]
    if not any(unit for _, _, unit, _ in rows):
        head, rows = head[:2] + head[3:], [row[:2] + row[3:] for row in rows]
    return table(head, rows) if rows else ""


def is_block(item: Field[Any]) -> bool:
    """Whether a field holds further keys."""
    return callable(item.default_factory) and is_dataclass(item.default_factory())


def sections(cls: type, prefix: str, heading: str) -> str:
    """A heading and table for a dataclass, then those of its blocks."""
    text = f"## {heading}\n\n{cls.__doc__}\n\n{keys(cls, prefix, leave_out=('model',))}"
    for item in fields(cls):
        if is_block(item):
            assert callable(item.default_factory)
            block = f"{prefix}{item.name}"
            text += sections(type(item.default_factory()), f"{block}.", f"`{block}`")
    return text


def config_page(registry: Registry) -> str:
    """All keys of a training config."""
    common = [item.name for item in fields(ModelConfig)]
    text = "# Config\n\n" + NOTE
    text += (
        "Every key of a file for `nequip train`, with its default. A minimal file names the model's group, a data "
        "file and the cut-off:\n\n"
        "```yaml\ndefaults: [base, {model: nequip}, _self_]\ndata: {path: FILE.xyz}\nmodel: {cutoff: 5.0}\n```\n\n"
        "On the command line a key is changed by `key=value`. A key that does not exist is an error that names the "
        "nearest one, before any data is read. Paths are relative to the folder you stand in.\n\n"
    )
    text += sections(Config, "", "Top level")
    text += "## `model`: common to all models\n\n" + keys(ModelConfig, "model.", leave_out=("name",))
    for name, entry in registry.models.items():
        cls = entry.config.load()
        text += f"## `model: {name}`\n\n{cls.__doc__}\n\n" + keys(cls, "model.", leave_out=common)
    return text


# commands.md


def options(parser: argparse.ArgumentParser) -> Iterable[list[str]]:
    """Name, default and meaning of a parser's arguments."""
    for action in parser._actions:
        if "--help" in action.option_strings:
            continue
        label = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
        if not action.help:
            raise SystemExit(f"docs/generate.py: {parser.prog}: {label} has no help text.")
        value = "\\|".join(map(str, action.choices)) if action.choices else str(action.metavar or action.dest.upper())
        takes = f" {value}" if action.option_strings and action.nargs != 0 else ""
        shown = action.default
        plain = shown in (None, False, argparse.SUPPRESS) or shown in ({}, []) or not action.option_strings
        yield [f"`{label}{takes}`".replace("\\|", "|"), "" if plain else f"`{shown}`", action.help]


def commands_page(registry: Registry) -> str:
    """All commands with their options."""
    text = "# Commands\n\n" + NOTE
    text += table(
        ("command", "what it does"),
        ([f"[`nequip {name}`](#nequip-{name})", entry.summary] for name, entry in registry.commands.items()),
    )
    text += "Exit codes:\n\n" + table(
        ("code", "meaning"),
        [
            ["0", "done"],
            ["1", "our fault; a traceback follows"],
            ["2", "bad input; one message says what was wrong, expected, received, and what to do"],
            ["3", "a check failed"],
            ["130", "Ctrl-C; a training run has written its checkpoint"],
        ],
    )
    text += "Environment:\n\n" + table(
        ("variable", "meaning"), [["`NEQUIP_DISABLE_PLUGINS`", "names of plugins to leave out, separated by commas"]]
    )
    for name, entry in registry.commands.items():
        module = importlib.import_module(entry.run.path.partition(":")[0])
        text += f"## nequip {name}\n\n{describe(module.parser(), name)}"
    return text


def describe(parser: argparse.ArgumentParser, name: str) -> str:
    """What a command does and its options; those of its actions under a heading of their own."""
    text = f"{parser.description}\n\n"
    actions = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not actions:
        return text + table(("argument", "default", "meaning"), options(parser))
    for action, inner in actions[0].choices.items():
        text += f"### nequip {name} {action}\n\n{describe(inner, f'{name} {action}')}"
    return text


# plugins.md


def plugins_page(registry: Registry) -> str:
    """All hooks with their examples, and what our packages offer through them."""
    text = "# Plugin hooks\n\n" + NOTE + f"{demark(hookspecs.__doc__ or '')}\n\n"
    tree = ast.parse(Path(hookspecs.__file__).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node)
            if not doc:
                raise SystemExit(f"docs/generate.py: the hook {node.name} has no docstring.")
            text += f"## {node.name}\n\n{demark(doc)}\n\n"
    for plugin in registry.plugins:
        offered = [
            [f"`{hook}`", ", ".join(map("`{}`".format, names))] for hook, names in plugin.records.items() if names
        ]
        text += f"## What {plugin.distribution} offers\n\n{table(('hook', 'names'), offered)}"
    return text


def demark(doc: str) -> str:
    """A docstring as Markdown: ``code`` and `name` become code, an indented example after ``::`` a fenced block."""
    before, colons, example = doc.partition("::\n")
    text = before.replace("``", "`")
    if not colons:
        return text
    lines = example.strip("\n").splitlines()
    lead = indentation(lines[0])
    end = next((i for i, line in enumerate(lines) if line.strip() and indentation(line) < lead), len(lines))
    code = textwrap.dedent("\n".join(lines[:end])).rstrip()
    rest = "\n".join(lines[end:]).replace("``", "`")
    language = "toml" if code.startswith("# pyproject") else "python"  # in braces: ruff leaves the example alone
    return f"{text}:\n\n``` {{ .{language} }}\n{code}\n```\n\n{rest}".rstrip()


def indentation(line: str) -> int:
    """Spaces before the first letter."""
    return len(line) - len(line.lstrip())


PAGES: dict[str, Callable[[Registry], str]] = {
    "config.md": config_page,
    "commands.md": commands_page,
    "plugins.md": plugins_page,
}


def main(argv: list[str]) -> int:
    """Write or check the pages: what our packages offer, whatever else is installed."""
    registry = build_registry([source for source in discover() if source.distribution in OURS])
    lacking = OURS - {plugin.distribution for plugin in registry.plugins}
    if lacking:
        raise SystemExit(f"docs/generate.py: install {', '.join(sorted(lacking))} first; nox -s docs does.")
    stale = []
    for name, make in PAGES.items():
        path, text = REFERENCE / name, make(registry).rstrip("\n") + "\n"
        if argv == ["--check"]:
            stale += [name] if not path.exists() or path.read_text(encoding="utf-8") != text else []
        else:
            path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"docs/reference/{name} is not what the code says. Run: python docs/generate.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
