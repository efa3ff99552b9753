"""Processes that build a model each and measure when they are asked: in turns, so that noise troubles all alike."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).parent


class Program(NamedTuple):
    """How a side is started.

    Attributes:
        python: interpreter.
        script: ours.py or theirs.py.
        mode: what to measure; the script says what there is.
        path: folder where its packages are, if they are not installed.
        words: further arguments of the script.
    """

    python: str
    script: str
    mode: str
    path: str = ""
    words: tuple[str, ...] = ()


class EndedError(RuntimeError):
    """A side ended before it answered."""


class Side:
    """A process with a model of one side; it is ready when `figures` has answered once."""

    def __init__(self, program: Program, case: tuple[str, str], device: str, threads: int) -> None:
        command = [program.python, str(HERE / program.script), *case, str(threads), device, program.mode]
        command += program.words
        environment = os.environ | ({"PYTHONPATH": program.path} if program.path else {})
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.ready: dict[str, float] | None = None

    def wait(self) -> None:
        """Until it is ready, or has ended."""
        with contextlib.suppress(EndedError):  # which `figures` says again
            self.ready = self._answer()

    def figures(self) -> dict[str, float]:
        """The next line of JSON that it prints."""
        if self.ready is not None:
            found, self.ready = self.ready, None
            return found
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise EndedError(f"{' '.join(map(str, self.process.args))} ended with code {self.process.wait()}; see above")

    def measure(self) -> dict[str, float]:
        """Now, while the other sides wait."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.figures()

    def end(self) -> None:
        """No more."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def start(programs: Mapping[str, Program], case: tuple[str, str], device: str, threads: int) -> dict[str, Side]:
    """All sides of a case; they build and compile at the same time."""
    return {name: Side(program, case, device, threads) for name, program in programs.items()}


def compare(
    sides: Mapping[str, Side], case: tuple[str, str], figures: Sequence[str], rounds: int, remarks: Mapping[str, object]
) -> list[dict[str, object]]:
    """A row for each figure and each side that is compared with the first one.

    A side that ends (for want of memory, say) is named and left out.

    Args:
        sides: started ones.
        case: model and system.
        figures: of what sides measure.
        rounds: in each of which every side measures once.
        remarks: further columns.
    """
    going: dict[str, Side] = {}
    for name, side in sides.items():
        try:
            print(" ".join(case), name, "is ready:", side.figures(), flush=True)
            going[name] = side
        except EndedError as error:
            print(" ".join(case), f"without {name}: {error}", flush=True)
    measured: list[dict[str, dict[str, float]]] = []
    for _ in range(rounds):
        measured.append({})
        for name, side in list(going.items()):
            try:
                measured[-1][name] = side.measure()
            except EndedError as error:
                print(" ".join(case), f"without {name}: {error}", flush=True)
                del going[name]
    for side in going.values():
        side.end()
    if not going:
        return []
    first, *others = going
    rows: list[dict[str, object]] = []
    if not others:  # nothing to compare with: itself
        others = [first]
    for figure, other in itertools.product(figures, others):
        ours, theirs = (np.array([one[name][figure] for one in measured]) for name in (first, other))
        ratio = theirs / ours
        rows.append(
            {
                "date": today(),
                **remarks,
                "model": case[0],
                "system": case[1],
                "figure": figure,
                "other": other,
                "ours_median": round(float(np.median(ours)), 2),
                "other_median": round(float(np.median(theirs)), 2),
                "other_over_ours_median": round(float(np.median(ratio)), 2),
                "min": round(float(ratio.min()), 2),
                "max": round(float(ratio.max()), 2),
                "rounds": rounds,
            }
        )
        print(rows[-1], flush=True)
    return rows


def write(path: Path | None, rows: Sequence[Mapping[str, object]]) -> None:
    """A table."""
    if path is not None and rows:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def today() -> str:
    """For the table."""
    return datetime.now(UTC).date().isoformat()


def hardware(device: str, threads: int) -> str:
    """Its name, for the table."""
    import torch

    return torch.cuda.get_device_name(0) if device == "cuda" else f"{os.cpu_count()} cores (CPU), {threads} threads"
