"""What the data of a run may be: cut into micro-batches, cached, and wrong in ways that are said."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from lightning.pytorch import Callback

from nequip_core.cli import running
from nequip_core.cli.main import main
from nequip_core.config import build

CONFIG = """\
defaults: [base, {model: nequip}, _self_]
data: {path: data.xyz, split: {train: 8, val: 2}, batch: {size: 60, by: edges, max_edges: 20}, cache: cache}
model: {cutoff: 3.0, dtype: float64, num_layers: 2, l_max: 1, num_features: 4, radial_mlp: [4], num_bessels: 4}
training: {optimizer: {lr: 0.01}, ema_decay: 0.9}
trainer: {max_epochs: 3, accelerator: cpu}
loggers: []
"""


def frames() -> list[Atoms]:
    """Clusters of one to five atoms of copper and gold."""
    rng = np.random.default_rng(0)
    made = []
    for n in range(10):
        atoms = ase.build.bulk("Cu", cubic=True) * (2, 1, 1)
        atoms = atoms[: 3 + n % 5]
        atoms.pbc = False
        atoms.numbers[0] = 79
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_forces()
        atoms.info["molecule"] = f"m{n // 3}"
        made.append(atoms)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "write_report", lambda path: path / "report.html")
    ase.io.write("data.xyz", frames(), format="extxyz")
    Path("run.yaml").write_text(CONFIG)
    return tmp_path


def train(*words: str, run: str = "run") -> int:
    return main(["train", "run.yaml", f"run.dir={run}", *words])


def rows(path: str) -> list[dict[str, str]]:
    with Path(path, "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "time_s"} for row in csv.DictReader(file)]


def numbers(path: str) -> np.ndarray:
    return np.array([[float(value or "nan") for value in row.values()] for row in rows(path)])


def test_micro_batches_change_nothing(folder: Path) -> None:
    assert train() == 0
    assert train("data.batch.max_edges=null", run="whole") == 0
    np.testing.assert_allclose(numbers("run"), numbers("whole"), rtol=1e-11)
    assert len(rows("run")) == 3
    assert int(rows("run")[-1]["step"]) > 3  # several steps an epoch


class Press(Callback):
    """Ctrl-C in the middle of the second epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
        if (trainer.current_epoch, batch_idx) == (1, 0):
            assert len(batch) > 1  # micro-batches
            signal.raise_signal(signal.SIGINT)


def test_a_run_goes_on_between_steps_of_micro_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(running, "Terminator", Press)
        assert train() == 130
    assert train("data.workers=1") == 0
    assert train(run="whole") == 0
    assert rows("run") == rows("whole")


def test_the_second_start_reads_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    files = sorted(path.name.partition("-")[0] for path in Path("cache").iterdir())
    assert files == ["edges", "edges", "frames", "statistics"]

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(build, "read", refuse)
        assert train(run="again") == 0
    assert rows("again") == rows("run")

    (frame_file,) = Path("cache").glob("frames-*")
    frame_file.write_bytes(frame_file.read_bytes()[:-10])
    capsys.readouterr()
    assert train(run="third") == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert "is damaged" in said
    assert rows("third") == rows("run")


def test_a_file_that_has_changed_is_read_again(folder: Path) -> None:
    assert train() == 0
    changed = frames()
    for atoms in changed:
        atoms.calc.results["energy"] += 1.0 * len(atoms) ** 2
    ase.io.write("data.xyz", changed, format="extxyz")
    assert train(run="other") == 0
    assert rows("other") != rows("run")


def test_a_dry_run_caches_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    assert train("--dry-run") == 0
    assert sorted(folder.rglob("*")) == before


def test_repeated_frames_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = frames()
    made[9] = made[2]
    ase.io.write("data.xyz", made, format="extxyz")
    assert train("data.split.by=order", "trainer.max_steps=1") == 0
    assert "1 of the 2 frames of val are in the training set too" in capsys.readouterr().out.replace("\n", " ")


def without_group() -> None:
    made = frames()
    for atoms in made[3:5]:
        del atoms.info["molecule"]
    ase.io.write("data.xyz", made, format="extxyz")


@pytest.mark.parametrize(
    ("prepare", "words", "expected"),
    [
        (
            without_group,
            ["data.split.by=group", "data.split.group=molecule"],
            ["data.xyz frame 3: no 'molecule', nor in 1 other frames of 10"],
        ),
        (None, ["data.split.by=group", "data.split.group=mol"], ["data.xyz frame 0: no 'mol', nor in 9 other"]),
        (None, ["training.loss.stress.weight=1"], ["8 frames have a stress, but none is periodic"]),
        (None, ["training.loss.stress.weight=1", "data.keys.stress=S"], ["no frame has stress", "data.keys.stress"]),
        (
            None,
            ["data.keys.forces=F"],
            ["no frame has forces", "frame 0 holds energy, free_energy, forces, stress, molecule.", "data.keys.forces"],
        ),
        (lambda: Path("split.json").write_text('{"train": [0, 1]}'), ["data.split.by=file"], ["to validate on"]),
        (None, ["data.units.length=bohr"], ["data.units.length", "The nearest is Bohr"]),
        (None, ["data.units.energy=kcal"], ["data.units.energy", "The nearest is kcal/mol"]),
        (None, ["data.batch.max_edges=0"], ["data.batch.max_edges", "at least 1"]),
        (None, ["data.cache=data.xyz"], ["data.cache: data.xyz is a file"]),
    ],
)
def test_bad_input_leaves_nothing(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[], object] | None,
    words: list[str],
    expected: list[str],
) -> None:
    if prepare is not None:
        prepare()
    if "data.split.by=file" in words:
        words = [*words, "data.split.file=split.json"]
    before = sorted(path for path in folder.rglob("*") if "cache" not in path.parts)
    assert train(*words) == 2
    said = capsys.readouterr().err
    assert said.startswith("nequip: ")
    assert [word for word in expected if word not in said] == [], said
    assert sorted(path for path in folder.rglob("*") if "cache" not in path.parts) == before
