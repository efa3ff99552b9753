"""``nequip train FILE -m model.l_max=1,2 seed=1,2``: a run for each combination, one process after the other.

Hydra's grammar and its basic sweeper say what a sweep is; each job is a plain ``nequip train`` command, which can be
given by hand as well. Every config is checked before the first job starts. A sweep that was stopped goes on by the same
command, since each job does.
"""

from __future__ import annotations

import csv
import math
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from rich.console import Console
from rich.table import Table

from nequip_core.config.checks import CHECKS
from nequip_core.config.compose import compose
from nequip_core.config.run import run_path
from nequip_core.config.schema import Config
from nequip_core.errors import ConfigError
from nequip_core.plugins.manager import Registry

INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        chosen: its values of the swept keys, ``key=value``.
        words: all overrides of its command.
        config: what they give.
    """

    chosen: tuple[str, ...]
    words: tuple[str, ...]
    config: Config


def jobs(file: Path, words: Sequence[str], registry: Registry) -> list[Job]:
    """The runs of a sweep, every config checked.

    Each takes the folder that its config names, where these differ; otherwise a folder below it, named by its values.

    Raises:
        ConfigError: nothing is swept, or a config is wrong; all of these at once.
    """
    swept = {word: override for word in words if (override := _sweep(word)) is not None}
    if not swept:
        raise ConfigError(
            "-m takes several values of a key, for example: -m seed=1,2,3 model.l_max=1,2. Leave -m out for one run."
        )
    try:
        ((*combinations,),) = BasicSweeper.split_arguments(list(swept.values()), None)
    except HydraException as error:
        raise ConfigError(
            f"-m: {' '.join(str(error).split())}. Write the values: key=1,2,3, or key=range(1,4)."
        ) from error
    plain = [word for word in words if word not in swept]
    configs, problems = [], []
    for chosen in combinations:
        try:
            configs.append(compose(file, [*plain, *chosen], registry, CHECKS))
        except ConfigError as error:
            problems.append(f"{' '.join(chosen)}: {error}")
    if problems:
        raise ConfigError("\n".join([f"{len(problems)} of {len(combinations)} runs can not start:", *problems]))
    folders = [str(run_path(config)) for config in configs]
    if len(set(folders)) == len(folders):
        return [
            Job(tuple(chosen), (*plain, *chosen), config) for chosen, config in zip(combinations, configs, strict=True)
        ]
    below = [f"run.dir={folder}/{_name(chosen)}" for folder, chosen in zip(folders, combinations, strict=True)]
    if len(set(below)) < len(below):
        raise ConfigError(
            "-m: several runs would write into one folder. Name the swept keys in run.dir, for example "
            "'run.dir=runs/${run.name}_${seed}'."
        )
    return [
        Job(tuple(chosen), (*plain, *chosen, folder), compose(file, [*plain, *chosen, folder], registry, CHECKS))
        for chosen, folder in zip(combinations, below, strict=True)
    ]


def _sweep(word: str) -> Override | None:
    """A word of the command line that gives several values; a file whose name looks so is one value."""
    try:
        override: Override = OverridesParser.create().parse_override(word)
    except HydraException:
        return None
    is_file = Path(word.partition("=")[2]).exists()
    return override if override.is_sweep_override() and not is_file else None


def _name(chosen: Sequence[str]) -> str:
    """A folder's name: last parts of the keys, and their values."""
    short = (word.partition("=") for word in chosen)
    return re.sub(r"[^\w.]+", "-", "_".join(f"{key.rpartition('.')[2]}-{value}" for key, _, value in short)).strip("-")


def sweep(file: Path, words: Sequence[str], registry: Registry, *, dry_run: bool = False) -> int:
    """Run all jobs; 0, or the exit code of the first that failed. Ctrl-C ends the sweep, which can go on."""
    console = Console(highlight=False)
    listed = jobs(file, words, registry)
    codes: list[int] = []
    for number, job in enumerate(listed, 1):
        command = ["train", str(file), *job.words, *(["--dry-run"] if dry_run else [])]
        console.print(f"run {number} of {len(listed)}: nequip {shlex.join(command)}", soft_wrap=True, markup=False)
        codes.append(start(command))
        if codes[-1] == INTERRUPTED:
            console.print("The sweep was stopped. The same command goes on with it.")
            return INTERRUPTED
    if not dry_run:
        console.print(_table(listed, codes))
    return next((code for code in codes if code), 0)


def start(command: Sequence[str]) -> int:
    """A ``nequip`` command in a process of its own; its exit code, 128 + N where signal N ended it."""
    # A group of its own: Ctrl-C reaches us only, and the job once, through us.
    full = [sys.executable, "-m", "nequip_core", *command]
    with subprocess.Popen(full, process_group=0) as process, _passed_on(process.send_signal):
        code = process.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _passed_on(send: Callable[[int], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to the job."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(signum: int, frame: FrameType | None) -> None:
        send(signum)

    before = {kind: signal.signal(kind, pass_on) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _table(listed: Sequence[Job], codes: Sequence[int]) -> Table:
    """The runs with the smallest value of what each monitors."""
    names = list(dict.fromkeys(job.config.training.monitor for job in listed))
    table = Table(
        "run", "folder", *(f"best {name}" for name in names), "exit code", title="Sweep", title_justify="left"
    )
    for job, code in zip(listed, codes, strict=True):
        folder = run_path(job.config)
        best = [_best(folder, name) if name == job.config.training.monitor else "" for name in names]
        table.add_row(" ".join(job.chosen), str(folder), *best, str(code))
    return table


def _best(folder: Path, name: str) -> str:
    path = folder / "metrics.csv"
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", newline="") as file:
        values = [float(row[name]) for row in csv.DictReader(file) if row[name]]
    return f"{min(values, default=math.nan):.6g}"
