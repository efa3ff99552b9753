"""What `nequip train` shows: the data, the model, the errors at the end; in the terminal and in the run's log.txt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, NewLine
from rich.control import Control
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from nequip_core.models.base import EnergyModel
from nequip_core.models.build import count_parameters

if TYPE_CHECKING:
    from nequip_core.config.build import RunData

WIDTH = 160
"""Columns of log.txt."""

REFRESH = 0.2
"""Seconds between drawings of a bar."""

LINES = 30.0
"""Seconds between lines about long work where there is no terminal."""


class RunConsole(Console):
    """Prints to the terminal, and to the log once there is one; what came before goes there first.

    Args:
        bar: whether a progress bar may be drawn.
        stderr: print to standard error, where standard output is for results.
        quiet: print nothing.
    """

    def __init__(self, *, bar: bool = True, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(highlight=False, force_terminal=None if bar else False, stderr=stderr, quiet=quiet)
        self._bar: Progress | None = None
        self._what = ""
        self._shown = 0.0
        self._log: Console | None = None
        self._early: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def print(self, *objects: Any, **options: Any) -> None:
        """Print renderables, as rich does."""
        control = any(isinstance(item, Control | NewLine) for item in objects)  # what bars are made of
        if not control:
            self._end_bar()
        super().print(*objects, **options)
        if control:
            return
        if self._log is None:
            self._early.append((objects, options))
        else:
            self._log.print(*objects, **options)

    def say(self, sentence: str, warning: str = "") -> None:
        """Print a line, which the terminal may break and nobody else; ``warning`` is a word that goes before it."""
        self.print(Text.assemble((f"{warning}: " if warning else "", "yellow"), sentence), soft_wrap=True)

    def progress(self, what: str, done: int, total: int | None = None) -> None:
        """A bar in a terminal, a line now and then elsewhere, as `nequip_core.progress.Progress` is called."""
        now = time.monotonic()
        if what != self._what:
            self._end_bar()
            self._what, self._shown = what, now
        if now - self._shown < (REFRESH if self.is_terminal else LINES) and done != total:
            return
        if self.is_terminal:
            if self._bar is None:
                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
                self._bar = Progress(*columns, console=self, auto_refresh=False, transient=True)
                self._bar.add_task(what, total=total)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, refresh=True)
        elif now - self._shown >= LINES:
            self.say(f"{what}: {done}" + ("" if total is None else f" of {total}"))
        self._shown = now
        if done == total:
            self._end_bar()

    def _end_bar(self) -> None:
        bar, self._bar, self._what = self._bar, None, ""
        if bar is not None:
            bar.stop()

    def log_to(self, path: Path) -> None:
        """Append to a file from now on."""
        self._log = Console(file=path.open("a", encoding="utf-8", buffering=1), width=WIDTH, highlight=False)
        for objects, options in self._early:
            self._log.print(*objects, **options)
        self._early.clear()

    def close(self) -> None:
        """No more log, and no bar."""
        self._end_bar()
        if self._log is not None:
            self._log.file.close()
            self._log = None


def data_summary(console: RunConsole, data: RunData) -> None:
    """Frames, atoms, neighbours and atomic energies."""
    statistics = data.statistics
    parts = ", ".join(f"{len(part)} {name}" for name, part in data.splits._asdict().items() if part)
    others = ", ".join(f"{len(item.structures)} in {name}" for name, item in data.sets.items() if name != "test")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("frames", f"{parts}; evaluated at the end: {others}")
    table.add_row("training set", f"{statistics.n_atoms} atoms, {statistics.avg_num_neighbors:.1f} neighbours per atom")
    if statistics.forces_rms is not None:
        table.add_row("forces", f"{1000 * statistics.forces_rms:.0f} meV/Å rms")
    energies = ", ".join(f"{name} {value:.4f}" for name, value in statistics.atomic_energies.values.items())
    residual = statistics.atomic_energies.residual_rms
    left = "" if residual is None else f"; {1000 * residual:.1f} meV/atom rms remain"
    table.add_row("atomic energies", f"{energies} eV ({statistics.atomic_energies.method}{left})")
    console.print(table)
    for note in data.notes:
        console.say(note, "note")


def model_summary(console: RunConsole, model: EnergyModel, kernels: Mapping[str, Mapping[str, Any]]) -> None:
    """Size, reach and kernels."""
    info = model.info
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("model", f"{count_parameters(model):,} weights, {info.dtype}; types {', '.join(info.types)}")
    reach = f"{info.cutoff:g} Å cut-off, {info.message_passing_layers} layers of messages"
    table.add_row("", f"{reach}: an atom's energy depends on others within {info.ghost_distance:g} Å")
    for operator, choice in kernels.items():
        table.add_row("kernel", f"{operator}: {choice['chosen']}")
    console.print(table)


COLUMNS = (
    ("energy_per_atom", "mae", "energy MAE\nmeV/atom"),
    ("energy_per_atom", "rmse", "energy RMSE\nmeV/atom"),
    ("forces", "mae", "forces MAE\nmeV/Å"),
    ("forces", "rmse", "forces RMSE\nmeV/Å"),
    ("stress", "mae", "stress MAE\nmeV/Å³"),
    ("stress", "rmse", "stress RMSE\nmeV/Å³"),
)


def results_table(console: RunConsole, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Errors of each evaluated set, where there are labels."""
    used = [column for column in COLUMNS if any(result[column[0]] for result in results.values())]
    table = Table(
        "set", "frames", *(title for _, _, title in used), title="Errors with best.ckpt", title_justify="left"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, result in results.items():
        errors = [f"{1000 * result[key][kind]:.3g}" if result[key] else "" for key, kind, _ in used]
        table.add_row(name, str(result["n_structures"]), *errors)
    console.print(table)
