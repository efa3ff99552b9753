"""nequip train: from a config to a run's folder; going on, being stopped, and bad input that leaves nothing behind."""

from __future__ import annotations

import csv
import importlib.util
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nequip_core.cli import running
from nequip_core.cli.main import main
from nequip_core.config.run import locked
from nequip_core.export.artifact import load_model
from nequip_core.plugins.manager import load_registry

CONFIG = """\
defaults:
  - base
  - model: nequip
  - _self_
data:
  path: data.xyz
  split: {train: 5, val: 2, test: rest}
  batch: {size: 2}
model: {cutoff: 3.0, num_layers: 2, l_max: 1, num_features: 4, radial_mlp: [4], num_bessels: 4}
training:
  optimizer: {lr: 0.01}
  ema_decay: 0.9
trainer: {max_epochs: 2, accelerator: cpu, log_every_n_steps: 1}
loggers: [csv]
"""


def frames(count: int, seed: int = 0) -> list[Atoms]:
    """Copper with a little gold, shaken."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.numbers[0] = 79 if n % 2 else 29
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_forces()
        atoms.info["molecule"] = f"m{n // 3}"
        made.append(atoms)
    return made


@pytest.fixture(scope="module")
def data() -> list[Atoms]:
    return frames(10)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: list[Atoms]) -> Path:
    """Where the tests stand: data.xyz and run.yaml."""
    monkeypatch.chdir(tmp_path)
    ase.io.write("data.xyz", data, format="extxyz")
    Path("run.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def real_report() -> None:
    """Asks for the report, whose plots take seconds; tests of the rest do without."""


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_report" not in request.fixturenames:
        monkeypatch.setattr(running, "write_report", lambda path: path / "report.html")


def train(*words: str) -> int:
    return main(["train", "run.yaml", "run.dir=run", *words])


def rows(path: str) -> list[dict[str, str]]:
    """metrics.csv without times."""
    with Path(path, "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "time_s"} for row in csv.DictReader(file)]


def run_json(path: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path, "run.json").read_text())
    return found


# A run


def test_a_run_and_its_folder(folder: Path, real_report: None, capsys: pytest.CaptureFixture[str]) -> None:
    ase.io.write("more.xyz", frames(2, seed=1), format="extxyz")
    assert train("data.test_paths=[more.xyz]") == 0
    expected = {
        *("config.yaml", "run.json", "log.txt", "metrics.csv", "steps.csv", "report.html"),
        *("data/splits.json", "data/statistics.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt"),
        *(f"evaluation/{name}.{suffix}" for name in ("val", "test", "more") for suffix in ("json", "extxyz")),
        *(f"plots/{name}.png" for name in ("learning", "parity_val", "parity_test", "parity_more")),
    }
    run = folder / "run"
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert found == expected

    manifest = run_json()
    assert (manifest["state"], manifest["seed"], manifest["name"]) == ("finished", 0, "run")
    assert manifest["command_line"].startswith("nequip train run.yaml run.dir=run ")
    assert manifest["best_epoch"] in (1, 2)
    assert manifest["versions"]["torch"]
    assert manifest["kernels"]["nequip.convolution/1"]["chosen"] == "reference"
    assert manifest["end"] >= manifest["start"]

    assert [row["epoch"] for row in rows("run")] == ["1", "2"]
    splits = json.loads((run / "data/splits.json").read_text())
    assert {name: len(part) for name, part in splits.items()} == {"train": 5, "val": 2, "test": 3}
    statistics = json.loads((run / "data/statistics.json").read_text())
    assert set(statistics["atoms_per_type"]) == {"Cu", "Au"}

    loaded = load_model(run, registry=load_registry())
    assert loaded.info.types == ("Cu", "Au")  # by atomic number
    best = rows("run")[manifest["best_epoch"] - 1]
    val = json.loads((run / "evaluation/val.json").read_text())
    assert val["forces"]["mae"] == pytest.approx(float(best["val_forces_mae"]), rel=1e-6)
    assert val["data"]["path"] == "data.xyz"
    assert len(ase.io.read(run / "evaluation/more.extxyz", ":")) == 2

    said = capsys.readouterr().out
    log = (run / "log.txt").read_text()
    for words in ("5 train, 2 val, 3 test", "neighbours per atom", "epoch 2/2", "report"):
        assert words in said
        assert words in log
    assert "GPU available" not in said


def test_same_command_same_numbers(folder: Path) -> None:
    assert train() == 0
    assert main(["train", "run.yaml", "run.dir=again"]) == 0
    assert rows("run") == rows("again")


def test_stored_config_repeats_the_run(folder: Path) -> None:
    assert train("seed=3", "model.dtype=float64") == 0
    assert main(["train", "run/config.yaml", "run.dir=again"]) == 0
    assert rows("run") == rows("again")


def test_another_seed_is_another_run(folder: Path) -> None:
    assert train() == 0
    assert main(["train", "run.yaml", "run.dir=again", "seed=1"]) == 0
    assert rows("run")[0]["val_loss"] != rows("again")[0]["val_loss"]
    splits = [Path(name, "data/splits.json").read_text() for name in ("run", "again")]
    assert splits[0] == splits[1]


def test_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert train("--dry-run") == 0
    said = capsys.readouterr().out
    for words in ("l_max: 1", "5 train", "weights, float32; types Cu, Au", "Nothing was written"):
        assert words in said
    assert sorted(folder.rglob("*")) == before


def test_options_of_data(folder: Path, data: list[Atoms]) -> None:
    alone = [Atoms(symbol, info={"energy": energy}) for symbol, energy in (("Cu", -1.0), ("Au", -2.0))]
    ase.io.write("alone.xyz", alone, format="extxyz")
    ase.io.write("val.xyz", data[:2], format="extxyz")
    words = [
        *("data.val_path=val.xyz", "data.isolated_atoms=alone.xyz", "model.atomic_energies=isolated_atoms"),
        *("data.split.by=group", "data.split.group=molecule", "data.split.train=6", "data.split.test=0"),
        *("model.avg_num_neighbors=auto_per_type", "model.energy_scale=per_atom_energy_std"),
        *("data.path=[data.xyz,val.xyz]", "data.index=:9", "data.batch.by=edges", "data.batch.size=100"),
        *("data.neighbor_list=matscipy", "loggers=[]", "training.loss.stress.weight=0.1", "trainer.max_epochs=1"),
        *("training.scheduler.name=cosine", "training.scheduler.args={T_max: 5}", "training.gradient_clip=1.0"),
    ]
    assert train(*words) == 0
    statistics = json.loads(Path("run/data/statistics.json").read_text())
    assert statistics["atomic_energies"]["values"] == {"Cu": -1.0, "Au": -2.0}
    splits = json.loads(Path("run/data/splits.json").read_text())
    molecules = [[n // 3 if n < 9 else 0 for n in part] for part in splits.values()]
    assert molecules[0]
    assert not set(molecules[0]) & set(molecules[1] + molecules[2])
    model = load_model("run", registry=load_registry()).config
    assert model["energy_scale"] == statistics["per_atom_energy_std"]
    assert model["avg_num_neighbors"] == statistics["avg_num_neighbors_per_type"]
    assert not Path("run/steps.csv").exists()


def test_other_optimizer_scheduler_and_callback(folder: Path) -> None:
    words = [
        *("training.optimizer.name=torch.optim.RAdam", "training.optimizer.args={betas: [0.8, 0.9]}"),
        *("training.scheduler.name=torch.optim.lr_scheduler.ExponentialLR", "training.scheduler.args={gamma: 0.5}"),
        "training.callbacks=[{name: lightning.pytorch.callbacks.EarlyStopping, args: {monitor: val_loss}}]",
    ]
    assert train(*words) == 0
    assert [float(row["lr"]) for row in rows("run")] == pytest.approx([0.01, 0.005])


def test_tensorboard_has_metrics_and_pace(folder: Path) -> None:
    assert train("loggers=[tensorboard]") == 0
    events = EventAccumulator("run/tensorboard").Reload()
    tags = set(events.Tags()["scalars"])
    assert {"val_loss", "val_forces_mae", "train_loss"} <= tags
    assert {"step/loss", "step/lr", "step/step_s", "step/data_wait"} <= tags
    assert [event.step for event in events.Scalars("step/loss")] == [1, 2, 3, 4, 5, 6]
    for name in ("epoch", "val_loss", "val_forces_mae", "train_loss"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        written = [(int(row["step"]), float(row[name])) for row in rows("run")]
        assert logged == [(step, pytest.approx(value, rel=1e-6)) for step, value in written]
    assert not Path("run/steps.csv").exists()


def test_wandb_that_is_not_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert train("loggers=[csv,wandb]") == 2
    said = capsys.readouterr().err
    assert "wandb is not installed here. Install it (pip install wandb)" in said
    assert not Path("run").exists()


# Going on


def test_finished_run_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.name != ".lock"}
    capsys.readouterr()
    assert train() == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.name != ".lock"} == before


def test_more_epochs_go_on_as_one_run(folder: Path) -> None:
    assert train("trainer.max_epochs=4") == 0
    assert main(["train", "run.yaml", "run.dir=parts"]) == 0
    assert main(["train", "run.yaml", "run.dir=parts", "trainer.max_epochs=4"]) == 0
    assert rows("run") == rows("parts")
    (restart,) = run_json("parts")["restarts"]
    assert restart["after"] == "finished"
    assert restart["changed"] == {"trainer.max_epochs": [2, 4]}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("batch", [0, 2])
def test_stopped_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, batch: int
) -> None:
    Path("stopping.py").write_text(
        "import signal\nfrom lightning.pytorch import Callback\n\n\n"
        "class Stop(Callback):\n"
        "    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):\n"
        f"        if (trainer.current_epoch, batch_idx) == (1, {batch}):\n"
        f"            signal.raise_signal(signal.{name})\n"
    )
    monkeypatch.syspath_prepend(folder)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert train("trainer.max_epochs=3", "training.callbacks=[{name: stopping.Stop}]") == 130
    assert run_json()["state"] == "stopped"
    assert Path("run/checkpoints/last.ckpt").is_file()
    assert "The same command goes on" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert train("trainer.max_epochs=3") == 0
    assert run_json()["state"] == "finished"
    assert main(["train", "run.yaml", "run.dir=whole", "trainer.max_epochs=3"]) == 0
    assert rows("run") == rows("whole")


def test_max_time_stops_the_run(folder: Path) -> None:
    assert train("trainer.max_epochs=100000", "trainer.max_time=00:00:00:01", "training.checkpoint_every=1000") == 0
    assert run_json()["state"] == "stopped"
    assert Path("run/checkpoints/last.ckpt").is_file()


CHANGES = (
    ("seed=1", ["seed", "0", "1"]),
    ("model.l_max=0", ["model.l_max", "1", "0"]),
    ("data.batch.size=1", ["data.batch.size", "2", "1"]),
    ("training.loss.forces.weight=2", ["training.loss.forces.weight", "1.0", "2.0"]),
    ("training.optimizer.name=adamw", ["training.optimizer.name", "'adam'", "'adamw'"]),
    ("training.ema_decay=null", ["training.ema_decay", "0.9", "None"]),
    ("data.path=other.xyz", ["data.path", "data.xyz (", "other.xyz ("]),
)


def test_changed_run_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ase.io.write("other.xyz", frames(10, seed=5), format="extxyz")
    assert train("trainer.max_epochs=1") == 0
    before = run_json()
    for word, table in CHANGES:
        assert train("trainer.max_epochs=2", word) == 2, word
        said = capsys.readouterr().err
        assert "started otherwise" in said
        (line,) = [line for line in said.splitlines() if line.split()[:1] == table[:1]]
        assert [part for part in table if part not in line] == []
        assert run_json() == before


def test_same_data_by_another_name_goes_on(folder: Path) -> None:
    assert train("trainer.max_epochs=1") == 0
    Path("moved.xyz").write_bytes(Path("data.xyz").read_bytes())
    assert train("data.path=moved.xyz", "training.optimizer.lr=0.1", "loggers=[]") == 0
    assert len(rows("run")) == 2


def test_new_and_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    assert train("run.if_exists=error") == 2
    assert "holds a run already" in capsys.readouterr().err
    assert train("run.if_exists=new", "seed=1") == 0
    assert (run_json()["seed"], run_json("run.1")["seed"]) == (1, 0)
    assert train("run.if_exists=new", "seed=2") == 0
    assert (run_json()["seed"], run_json("run.2")["seed"]) == (2, 1)


def test_two_runs_in_one_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("trainer.max_epochs=1") == 0
    with locked(Path("run")):
        assert train() == 2
        said = capsys.readouterr().err
        assert "another run writes into this folder" in said
        assert "process" in said
        assert train("run.if_exists=new") == 2
    assert train() == 0


def test_killed_before_its_first_checkpoint(folder: Path) -> None:
    assert train("trainer.max_epochs=1") == 0
    manifest = run_json() | {"state": "running"}
    Path("run/run.json").write_text(json.dumps(manifest))
    for path in Path("run/checkpoints").iterdir():
        path.unlink()
    assert train("trainer.max_epochs=1") == 0
    assert run_json()["state"] == "finished"


def test_diverged_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("training.optimizer.lr=1e30", "training.optimizer.name=sgd") == 2
    said = capsys.readouterr().err
    assert "not_finite.extxyz" in said
    assert run_json()["state"] == "failed"
    assert "loss" in run_json()["error"]


# Bad input


def broken(change: Callable[[list[Atoms]], None]) -> Callable[[], None]:
    """Write data.xyz with something wrong."""

    def write() -> None:
        made = frames(10)
        change(made)
        ase.io.write("data.xyz", made, format="extxyz")

    return write


def no_forces(made: list[Atoms]) -> None:
    for atoms in made:
        energy = atoms.get_potential_energy()
        atoms.calc = None
        atoms.info["energy"] = energy


def not_a_number(made: list[Atoms]) -> None:
    for atoms in made:
        atoms.calc.results["forces"][1, 2] = float("nan")


def overlapping(made: list[Atoms]) -> None:
    for atoms in made:
        atoms.positions[1] = atoms.positions[0]
        atoms.calc.atoms = atoms.copy()


def config(text: str) -> Callable[[], None]:
    return lambda: Path("run.yaml").write_text(text) and None


@pytest.mark.parametrize(
    ("prepare", "words", "expected"),
    [
        (lambda: Path("run.yaml").unlink(), [], ["run.yaml", "No such file"]),
        (config(CONFIG.replace("cutoff: 3.0, ", "")), [], ["run.yaml", "model.cutoff is missing"]),
        (config("model: {cutoff: 3.0}\n"), [], ["no `defaults:` list", "- base"]),
        (config(CONFIG.replace("l_max", "lmax")), [], ["run.yaml:9", "model.lmax is no key", "model.l_max"]),
        (None, ["+model.lmax=2"], ["model.lmax is no key", "The nearest is model.l_max"]),
        (None, ["model.l_max=many"], ["model.l_max: expected a whole number, received 'many'"]),
        (None, ["model.lmax=2", "seed=x"], ["2 errors", "model.l_max", "seed: expected a whole number"]),
        (None, ["data.path=a=b.xyz"], ["there is no file a=b.xyz"]),
        (lambda: Path("data.xyz").unlink(), [], ["there is no file data.xyz"]),
        (lambda: Path("data.xyz").write_text(""), [], ["data.xyz is an empty file"]),
        (lambda: Path("data.xyz").write_text("1\nno\n"), [], ["data.xyz", "frame"]),
        (None, ["model.types=[Cu]"], ["data.xyz frame ", "Au", "Cu"]),
        (None, ["data.split.train=100"], ["100", "10"]),
        (None, ["data.keys.energy=total"], ["energy", "data.keys.energy"]),
        (broken(no_forces), [], ["no frame has forces", "data.keys.forces"]),
        (broken(not_a_number), [], ["data.xyz frame 0: forces has nan of atom 1"]),
        (broken(overlapping), [], ["data.xyz frame ", "apart"]),
        (None, ["training.optimizer.args={bettas: 1}"], ["bettas", "betas"]),
        (None, ["training.callbacks=[{name: os.system}]"], ["os.system", "no class"]),
        (None, ["model.atomic_energies={Cu: -1}"], ["Au"]),
        (None, ["model.cutoff=0.5"], ["neighbour within the cut-off"]),
        (None, ["run.dir=data.xyz"], ["is a file"]),
        (None, ["model=alegro"], ["no 'alegro'", "nequip"]),
        (None, ["data.format=nothing"], ["nothing"]),
    ],
)
def test_bad_input_leaves_nothing(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[], None] | None,
    words: list[str],
    expected: list[str],
) -> None:
    if prepare is not None:
        prepare()
    before = sorted(folder.rglob("*"))
    assert train(*words) == 2
    said = capsys.readouterr().err
    assert said.startswith("nequip: ")
    assert "Traceback" not in said
    assert [word for word in expected if word not in said] == [], said
    assert sorted(folder.rglob("*")) == before


def test_path_with_equals_sign(folder: Path) -> None:
    Path("data.xyz").rename("a=b, (c).xyz")
    assert train("data.path=a=b, (c).xyz", "trainer.max_epochs=1") == 0
