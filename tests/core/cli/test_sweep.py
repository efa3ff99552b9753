"""nequip train -m: the runs of a sweep, their folders, and what happens when one fails."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import ase.build
import ase.io
import pytest
from ase.calculators.emt import EMT

from nequip_core.cli import sweep
from nequip_core.cli.main import main
from nequip_core.errors import ConfigError
from nequip_core.plugins.manager import load_registry

CONFIG = """\
defaults: [base, {model: nequip}, _self_]
data: {path: data.xyz, split: {train: 4, val: 2}, batch: {size: 2}, cache: 'off'}
model: {cutoff: 3.0, num_layers: 1, l_max: 1, num_features: 4, radial_mlp: [4], num_bessels: 4}
trainer: {max_epochs: 1, accelerator: cpu}
loggers: [csv]
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = []
    for n in range(6):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=n)
        atoms.calc = EMT()
        atoms.get_forces()
        made.append(atoms)
    ase.io.write("data.xyz", made, format="extxyz")
    Path("run.yaml").write_text(CONFIG)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been started."""
    commands: list[list[str]] = []
    monkeypatch.setattr(sweep, "start", lambda command: commands.append(list(command)) or 0)
    return commands


def jobs(*words: str) -> list[sweep.Job]:
    return sweep.jobs(Path("run.yaml"), words, load_registry())


def test_a_run_for_each_combination_in_a_folder_of_its_own() -> None:
    made = jobs("trainer.max_epochs=2", "model.l_max=0,1", "seed=3,4")
    assert [job.chosen for job in made] == [
        (f"model.l_max={degree}", f"seed={seed}") for degree in (0, 1) for seed in (3, 4)
    ]
    assert [job.config.run.dir for job in made] == [
        f"runs/run/l_max-{degree}_seed-{seed}" for degree in (0, 1) for seed in (3, 4)
    ]
    assert {job.config.trainer.max_epochs for job in made} == {2}
    assert [(job.config.model.l_max, job.config.seed) for job in made] == [(0, 3), (0, 4), (1, 3), (1, 4)]


def test_folders_that_differ_are_taken_as_they_are() -> None:
    assert [job.config.run.dir for job in jobs("seed=range(1,4)", "run.dir=all/${seed}")] == ["all/1", "all/2", "all/3"]


def test_lists_and_groups() -> None:
    made = jobs("model.readout_mlp=[8],[8,8]", "model=nequip,nequip_starter")
    assert [job.config.model.readout_mlp for job in made] == [[8], [8], [8, 8], [8, 8]]
    names = [Path(job.config.run.dir).name for job in made]
    assert len(set(names)) == 4
    assert not any(set(name) & set("=,[] ") for name in names)


def test_a_file_with_a_comma_is_one_value() -> None:
    Path("a,b.xyz").write_bytes(Path("data.xyz").read_bytes())
    made = jobs("data.path=a,b.xyz", "seed=1,2")
    assert [job.config.data.path for job in made] == ["a,b.xyz"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1"], "-m takes several values"),
        (["training.optimizer.lr=interval(0,1)"], "Write the values"),
        (["seed=1,1", "run.dir=a"], "several runs would write into one folder"),
        (["seed=1,2", "model.l_max=1,-1"], "2 of 4 runs can not start"),
        (["model.lmax=1,2"], "The nearest is model.l_max"),
    ],
)
def test_wrong_sweeps_start_nothing(started: list[list[str]], words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep.sweep(Path("run.yaml"), words, load_registry())
    assert started == []


def test_commands_and_exit_codes(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "run.yaml", "-m", "seed=1,2", "--dry-run"]) == 0
    assert started == [["train", "run.yaml", f"seed={n}", f"run.dir=runs/run/seed-{n}", "--dry-run"] for n in (1, 2)]
    codes = iter([0, 2, 3, 0])
    monkeypatch.setattr(sweep, "start", lambda command: next(codes))
    assert main(["train", "run.yaml", "seed=1,2,3,4", "-m"]) == 2
    assert "exit code" in capsys.readouterr().out
    codes = iter([0, 130])
    assert main(["train", "run.yaml", "-m", "seed=1,2,3,4"]) == 130
    assert "The same command goes on" in capsys.readouterr().out


def test_a_sweep(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "run.yaml", "-m", "seed=1,2"]) == 0
    for n in (1, 2):
        assert Path(f"runs/run/seed-{n}/report.html").is_file()
    said = capfd.readouterr().out
    assert "run 2 of 2: nequip train run.yaml seed=2 run.dir=runs/run/seed-2" in said
    assert "best val_loss" in said


def test_ctrl_c_reaches_the_job_once(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import signal, time\nseen = []\nsignal.signal(signal.SIGINT, lambda *a: seen.append(1))\n"
        "open('ready', 'w').close()\nwhile not seen: time.sleep(0.01)\ntime.sleep(0.2)\n"
        "raise SystemExit(10 + len(seen))"
    )
    popen = sweep.subprocess.Popen
    monkeypatch.setattr(
        sweep.subprocess, "Popen", lambda command, **options: popen([command[0], "-c", program], **options)
    )

    def press() -> None:
        while not Path("ready").exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    assert sweep.start(["train"]) == 11
    thread.join()
