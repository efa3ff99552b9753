"""``nequip train FILE.yaml key=value ...``: train a model as a config says, evaluate it, write a report."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from nequip_core.cli.imports import imports
from nequip_core.cli.options import command_parser
from nequip_core.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = command_parser(
        "train", "Train a model as a config file says. The same command goes on with a run that was stopped."
    )
    result.add_argument("file", metavar="FILE.yaml", type=Path, help="the config")
    result.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="change a key; model=NAME: another model; +key=value: a new entry of a free dictionary",
    )
    result.add_argument(
        "--dry-run", action="store_true", help="check and read everything, print what would be trained, write nothing"
    )
    result.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="one run after the other for each combination of values: -m seed=1,2 model.l_max=1,2",
    )
    return result


def run(argv: Sequence[str]) -> int:
    """Train; returns the exit code."""
    options = parser().parse_intermixed_args(list(argv))

    # These import torch and Lightning; `nequip train --help` does not.
    with imports():
        from nequip_core.cli.launch import launch
        from nequip_core.cli.running import dry_run, terminate_as_interrupt, together, train
        from nequip_core.cli.sweep import sweep
        from nequip_core.config.checks import CHECKS, local_processes
        from nequip_core.config.compose import compose
        from nequip_core.plugins.manager import load_registry
        from nequip_core.training.ranks import Ranks, place_of

    registry, place = load_registry(), place_of(os.environ)
    if options.multirun:
        if place.launcher:
            raise ConfigError(
                f"-m starts the processes of each run by itself, but {place.launcher} has started {place.size} of them "
                "already. Leave it out, and say how many with trainer.devices; or leave -m out."
            )
        return sweep(options.file, options.overrides, registry, dry_run=options.dry_run)

    def act(ranks: Ranks) -> int:
        config = compose(options.file, options.overrides, registry, CHECKS)
        if options.dry_run:
            ranks.leave()
            return dry_run(config, registry) if ranks.is_first else 0
        if not place.launcher and local_processes(config) > 1:
            return launch(argv, local_processes(config))
        return train(config, registry, argv, ranks)

    with terminate_as_interrupt():
        return together(place, act)
