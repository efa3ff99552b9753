"""A run that is interrupted goes on to the same bits as one that is not; `nox -s slow_tests` interrupts more often."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("count", "seed"), [(3, 1), *(pytest.param(20, seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
def test_interruptions_leave_no_trace(tmp_path: Path, count: int, seed: int) -> None:
    script = Path(__file__).with_name("interruptions.py")
    command = [sys.executable, script, tmp_path / "run", "--count", str(count), "--seed", str(seed)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{count} interruptions: the same bits" in ended.stdout
