"""A run that is interrupted goes on to the same bits as one that is not; `nox -s slow_tests` interrupts more often."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WORKERS = ("data.workers=2", "data.batch.max_edges=60")
"""Batches from other processes, in two micro-batches each."""


@pytest.mark.parametrize(
    ("count", "seed", "overrides"),
    [
        (3, 1, WORKERS),
        *(pytest.param(20, seed, words, marks=pytest.mark.slow) for seed, words in ((2, ()), (3, ()), (4, WORKERS))),
    ],
)
def test_interruptions_leave_no_trace(tmp_path: Path, count: int, seed: int, overrides: tuple[str, ...]) -> None:
    script = Path(__file__).with_name("interruptions.py")
    command = [sys.executable, script, tmp_path / "run", "--count", str(count), "--seed", str(seed), *overrides]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{count} interruptions: the same bits" in ended.stdout
