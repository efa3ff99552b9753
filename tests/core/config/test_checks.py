"""What is wrong with a config beyond keys and types is found before any data is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nequip_core.config.checks import CHECKS, check_devices, local_processes
from nequip_core.config.compose import compose
from nequip_core.errors import ConfigError
from nequip_core.plugins.manager import Registry, load_registry

FILE = """\
defaults: [base, {model: nequip}, _self_]
data: {path: data.xyz}
model: {cutoff: 5.0, num_layers: 1, l_max: 0, num_features: 2, radial_mlp: []}
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.xyz").write_text("some data")
    path = tmp_path / "run.yaml"
    path.write_text(FILE)
    return path


def test_a_good_file_passes(file: Path, registry: Registry) -> None:
    state = torch.get_rng_state()
    assert compose(file, [], registry, CHECKS).run.name == "run"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["training.optimizer.args={betta: 1}"], ["training.optimizer.args do not fit adam", "betta", "betas"]),
        (["training.optimizer.args={lr: 1}"], ["The learning rate is training.optimizer.lr"]),
        (["training.optimizer.name=torch.optim.Nothing"], ["training.optimizer.name", "can not be imported"]),
        (["training.optimizer.name=os.system"], ["'os.system' is no class"]),
        (["training.optimizer.name=torch.optim.RMSprop", "training.optimizer.args={a: 1}"], ["'a'", "momentum"]),
        (["training.scheduler.name=plateau", "training.scheduler.args={patiens: 1}"], ["patiens", "patience"]),
        (["training.scheduler.name=torch.optim.lr_scheduler.StepLR"], ["step_size"]),
        (["training.callbacks=[{name: os.system}]"], ["training.callbacks[0].name", "is no class"]),
        (["training.callbacks=[{name: lightning.pytorch.callbacks.Timer, args: {a: 1}}]"], ["'a'", "duration"]),
        (["training.callbacks=[{name: torch.nn.Module}]"], ["is no subclass of lightning.pytorch.Callback"]),
        (["training.optimizer.name=torch.nn.Module"], ["is no subclass of torch.optim"]),
        (["training.monitor=val_los"], ["training.monitor: expected one of", "val_forces_mae"]),
        (["training.scheduler.name=plateau", "training.scheduler.interval=step"], ["Expected epoch"]),
        (["training.callbacks=[{name: no.such.Thing}]"], ["No module named 'no'"]),
        (["data.split.by=group"], ["data.split.group must be given"]),
        (["data.split.group=mol"], ["is used by data.split.by: group only"]),
        (["data.split.by=file", "data.split.file=no.json"], ["data.split.file: there is no file no.json"]),
        (["data.split.train=rest", "data.split.val=rest"], ["only one"]),
        (["data.split.train=0.9", "data.split.val=0.2"], ["sum to 1.1"]),
        (["data.split.train=0"], ["at least one frame to train on"]),
        (["data.split.val=0"], ["frames to validate on"]),
        (["model.atomic_energies=isolated_atoms"], ["data.isolated_atoms must name a file"]),
        (["training.loss.energy.weight=0", "training.loss.forces.weight=0"], ["every weight is 0"]),
        (["trainer.max_epochs=-1"], ["the run has no end"]),
        (["model.pair_cutoffs={H: {O: 6}}"], ["model.pair_cutoffs.H.O is 6 Å", "at most model.cutoff, 5.0 Å"]),
        (["model.types=[H,Xx]"], ["Xx"]),
        (["model.types=[H,O]", "model.pair_cutoffs={H: {C: 3}}"], ["names 'C'"]),
        (["model.nonlinearity=relu"], ["silu | mish"]),
        (["model.num_features=[2,2,2]"], ["model.num_features must be one number or 1 of them"]),
        (["model.num_layers=0"], ["num_layers"]),
        (["kernels=fast"], ["kernels", "fast", "reference"]),
        (["data.path=other.xyz"], ["there is no file other.xyz", "seen from"]),
        (["data.path=data.xy"], ["there is no file data.xy", "Did you mean 'data.xyz'?"]),
        (["data.path=."], ["is no file"]),
        (["data.path=[data.xyz,empty.xyz]"], ["empty.xyz is an empty file"]),
        (["run.dir=data.xyz/run"], ["is a file"]),
    ],
)
def test_found(file: Path, registry: Registry, words: list[str], expected: list[str]) -> None:
    (file.parent / "empty.xyz").touch()
    with pytest.raises(ConfigError) as caught:
        compose(file, words, registry, CHECKS)
    text = str(caught.value)
    assert [word for word in expected if word not in text] == [], text
    assert "errors in the config" not in text, text


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_device_that_is_not_there(file: Path, registry: Registry) -> None:
    with pytest.raises(ConfigError, match="sees no CUDA device here"):
        compose(file, ["trainer.accelerator=cuda"], registry, CHECKS)


TWO_OF_TWO = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "node01",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("environ", "words", "expected"),
    [
        ({}, ["trainer.devices=0"], "trainer.devices: expected a whole number of at least 1, or auto"),
        (
            {},
            ["trainer.devices=2", "trainer.strategy=single"],
            "trainer.strategy is single, but the run has 2 processes",
        ),
        ({}, ["trainer.num_nodes=2"], "torchrun --nnodes 2"),
        (TWO_OF_TWO, ["trainer.devices=3"], "trainer.devices is 3, but torchrun has started 2 processes on each of 2"),
        (TWO_OF_TWO, ["trainer.num_nodes=3"], "trainer.num_nodes is 3, but torchrun has started 2 processes on each"),
        (TWO_OF_TWO, ["trainer.strategy=single"], "trainer.strategy is single, but the run has 4 processes"),
    ],
)
def test_processes(
    file: Path,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    words: list[str],
    expected: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        compose(file, ["trainer.accelerator=cpu", *words], registry, CHECKS)
    assert expected in str(caught.value)


@pytest.mark.parametrize("words", [[], ["trainer.devices=2", "trainer.num_nodes=2"], ["trainer.devices=auto"]])
def test_a_launcher_says_how_many(
    file: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    for name, value in TWO_OF_TWO.items():
        monkeypatch.setenv(name, value)
    config = compose(file, ["trainer.accelerator=cpu", *words], registry, CHECKS)
    assert local_processes(config) == 2


@pytest.mark.parametrize(("devices", "count"), [("auto", 3), ("2", 2)])
def test_devices_of_this_machine(
    file: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, devices: str, count: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert local_processes(compose(file, [f"trainer.devices={devices}"], registry, [check_devices])) == count
    with pytest.raises(ConfigError, match="4 CUDA devices are asked for, but only 3 are here"):
        compose(file, ["trainer.devices=4"], registry, [check_devices])


def test_dotted_class_that_fits(file: Path, registry: Registry) -> None:
    words = [
        "training.optimizer.name=torch.optim.RMSprop",
        "training.optimizer.args={momentum: 0.9}",
        "training.scheduler.name=torch.optim.lr_scheduler.StepLR",
        "training.scheduler.args={step_size: 3}",
        "training.callbacks=[{name: lightning.pytorch.callbacks.Timer, args: {duration: 00:01:00:00}}]",
    ]
    assert compose(file, words, registry, CHECKS).training.optimizer.args == {"momentum": 0.9}


def test_other_errors_beside_them(file: Path, registry: Registry) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(file, ["model.lmax=2", "data.path=other.xyz", "training.optimizer.args={a: 1}"], registry, CHECKS)
    text = str(caught.value)
    assert text.startswith("3 errors in the config")
    assert "model.l_max" in text
    assert "other.xyz" in text
    assert "do not fit adam" in text


def test_refused_values_do_not_reach_the_checks(file: Path, registry: Registry) -> None:
    file.write_text(FILE.replace("cutoff: 5.0, ", ""))
    with pytest.raises(ConfigError) as caught:
        compose(file, ["model.pair_cutoffs={H: 3.0}", "data.split.train=most", "data.path=3"], registry, CHECKS)
    text = str(caught.value)
    assert "model.cutoff is missing" in text
    assert "model.pair_cutoffs: expected" in text
    assert "data.split.train: expected" in text


def test_existing_run(file: Path, registry: Registry) -> None:
    folder = file.parent / "old"
    folder.mkdir()
    (folder / "run.json").write_text('{"schema": 1, "state": "stopped"}')
    with pytest.raises(ConfigError, match=r"holds a run already \(state: stopped\)"):
        compose(file, [f"run.dir={folder}", "run.if_exists=error"], registry, CHECKS)
    (folder / "run.json").write_text('{"schema": 99}')
    with pytest.raises(ConfigError, match="expected a run of format 1"):
        compose(file, [f"run.dir={folder}"], registry, CHECKS)
    compose(file, [f"run.dir={folder}", "run.if_exists=new"], registry, CHECKS)
