"""Every config of examples/ trains: two steps on the repository's own molecules, or on a small alloy for stress."""

from __future__ import annotations

import json
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
import yaml
from ase.calculators.emt import EMT

from nequip_core.cli import running
from nequip_core.cli.main import main

pytestmark = pytest.mark.no_cover
EXAMPLES = Path(__file__).parents[1] / "examples"
CONFIGS = sorted(EXAMPLES.rglob("*.yaml"))
OWN = EXAMPLES / "demo" / "molecules.xyz.xz"


def alloy(path: Path) -> Path:
    """Twelve cells of copper and gold with energies, forces and stress."""
    rng = np.random.default_rng(0)
    frames = []
    for n in range(12):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.numbers[: n % 3] = 79
        atoms.positions += rng.normal(scale=0.05, size=(4, 3))
        atoms.calc = EMT()
        atoms.get_stress()
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return path


def test_there_are_examples() -> None:
    assert len(CONFIGS) >= 5


DEMO = EXAMPLES / "demo" / "demo.yaml"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        *(pytest.param(path, [], id=path.stem) for path in CONFIGS),
        pytest.param(DEMO, ["model=nequip"], id="demo NequIP"),
    ],
)
def test_example_trains(config: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "write_report", lambda path: path / "report.html")
    block = yaml.safe_load(config.read_text())
    stress = block["training"].get("loss", {}).get("stress", {}).get("weight", 0)
    data = [f"data.path={alloy(tmp_path / 'alloy.xyz')}"] if stress else [f"data.path={OWN}", "data.index=::35"]
    few = ["data.split.train=8", "data.split.val=4", "data.split.test=0", "data.test_paths=[]", "data.cache=off"]
    short = ["trainer.max_steps=2", "trainer.accelerator=cpu", "run.dir=run", "loggers=[csv]"]
    assert main(["train", str(config), *data, *few, *short, *words]) == 0
    assert json.loads(Path("run/run.json").read_text())["state"] == "finished"
    assert Path("run/metrics.csv").read_text().splitlines()[-1].split(",")[1] == "2"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_foreign_data_is_asked_for(config: Path) -> None:
    text = config.read_text()
    path = yaml.safe_load(text)["data"]["path"]
    if path == "???":
        # The comment above the keys says what kind of file, and a set of that kind.
        comment = text.partition("defaults:")[0]
        assert "data.path=" in comment
        assert "doi:" in comment or "github.com/" in comment
    else:
        assert (EXAMPLES.parent / path).is_file()
