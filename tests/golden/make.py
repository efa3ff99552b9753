"""Keeps a few of the cases of tests/parity/generate.py as golden files for the ordinary tests.

    python tests/golden/make.py OUT/04=nequip-0.16 OUT/09=nequip-0.17 ...

Packages lose what conversion does not read: source code, the second model and the tensors that only it has.
"""

from __future__ import annotations

import argparse
import shutil
import zipfile
from pathlib import Path

HERE = Path(__file__).parent / "published"


def keep(case: Path, name: str) -> None:
    """One case."""
    folder = HERE / name
    folder.mkdir(parents=True)
    shutil.copy(case / "case.json", folder)
    if (case / "last.ckpt").exists():
        shutil.copy(case / "last.ckpt", folder)
        return
    with zipfile.ZipFile(case / "model.nequip.zip") as source:
        names = [n for n in source.namelist() if not n.endswith((".py", "compile_model.pkl", "example_data.pkl"))]
        with zipfile.ZipFile(folder / "model.nequip.zip", "w", zipfile.ZIP_DEFLATED) as target:
            for member in names:
                target.writestr(zipfile.ZipInfo(member), source.read(member), zipfile.ZIP_DEFLATED)


def main() -> None:
    """Keep the cases that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", metavar="FOLDER=NAME")
    for case in parser.parse_args().cases:
        folder, _, name = case.rpartition("=")
        keep(Path(folder), name)


if __name__ == "__main__":
    main()
