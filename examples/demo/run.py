"""The demo: train a small Allegro, test it, run molecular dynamics, write the report. `nox -s demo` calls this.

python examples/demo/run.py [key=value ...]      # model=nequip: another architecture
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from nequip_core.training.report import write_report

HERE = Path("examples/demo")  # the paths of demo.yaml are relative to the root of the repository
RUN = Path("runs/demo")
NEQUIP = Path(sysconfig.get_path("scripts")) / "nequip"
ETHANOL = 60  # its first frame in molecules_test.xyz.xz


def nequip(*words: str | Path) -> None:
    """Run a command as a user would type it."""
    print(f"\n$ nequip {shlex.join(map(str, words))}", flush=True)
    done = subprocess.run([NEQUIP, *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main(overrides: list[str]) -> None:
    """Train with ``key=value`` overrides, simulate, report."""
    nequip("train", HERE / "demo.yaml", f"run.dir={RUN}", "run.if_exists=new", *overrides)
    (RUN / "md").mkdir()
    start = [HERE / "molecules_test.xyz.xz", "--index", str(ETHANOL)]
    length = ["--timestep", "0.5", "--steps", "4000", "--interval", "40", "--temperature", "300"]
    files = ["--log", RUN / "md" / "ethanol.csv", "--trajectory", RUN / "md" / "ethanol.extxyz"]
    nequip("md", RUN, *start, "--ensemble", "nve", *length, *files)
    print(f"\nThe report: {write_report(RUN).resolve()}")


if __name__ == "__main__":
    main(sys.argv[1:])
