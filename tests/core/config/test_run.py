"""A run's folder: its lock, its manifest, and what may change when it goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nequip_core.config.run import (
    Run,
    changes,
    differences,
    hashes,
    locked,
    read_manifest,
    refuse_differences,
    set_aside,
    versions,
    write_json,
)
from nequip_core.config.schema import Config
from nequip_core.errors import ConfigError, InputError
from nequip_core.models.nequip import NequIPConfig
from nequip_core.plugins.manager import load_registry


def make(path: Any, **top: Any) -> Config:
    config = Config(model=NequIPConfig(cutoff=5.0), **top)
    config.data.path = path if isinstance(path, list) else str(path)
    config.run.name = "test"
    return config


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.xyz"
    path.write_text("one")
    return path


def test_differences_and_changes(data: Path, tmp_path: Path) -> None:
    old, new = make(data), make(data, seed=3, kernels="reference")
    new.model = dataclasses.replace(new.model, l_max=1)
    new.data.workers = 2
    new.trainer.max_epochs = 7
    new.training.optimizer.lr = 0.5
    new.training.ema_decay = 0.9
    rows = differences(old, new, hashes(old), hashes(new))
    assert rows == [("seed", "0", "3"), ("model.l_max", "2", "1"), ("training.ema_decay", "None", "0.9")]
    assert changes(old, new)["trainer.max_epochs"] == [100, 7]
    assert changes(old, new)["data.workers"] == [0, 2]
    with pytest.raises(ConfigError) as caught:
        refuse_differences(tmp_path, rows)
    lines = [line.split() for line in str(caught.value).splitlines()]
    assert ["model.l_max", "2", "1"] in lines
    refuse_differences(tmp_path, [])


def test_files_are_compared_by_content(data: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy.xyz", tmp_path / "other.xyz"
    copy.write_text("one")
    other.write_text("two")
    old = make(data)
    assert differences(old, make(copy), hashes(old), hashes(make(copy))) == []
    ((key, before, now),) = differences(old, make(other), hashes(old), hashes(make(other)))
    assert key == "data.path"
    assert "data.xyz (" in before
    assert "other.xyz (" in now
    both = make([str(data), str(other)])
    assert len(differences(old, both, hashes(old), hashes(both))) == 1


KILLED = """\
import os, signal, sys, time
from pathlib import Path
from nequip_core.config.run import locked
with locked(Path(sys.argv[1])):
    parent = os.getpid()
    if os.fork() == 0:  # the worker speaks when it runs: just forked, it has the lock for a moment
        os.kill(parent, signal.SIGKILL)
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_run_goes_before_its_workers(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        assert run.wait() == -signal.SIGKILL
        try:
            with locked(tmp_path):
                os.kill(worker, 0)  # it is there
        finally:
            os.kill(worker, signal.SIGKILL)


def test_lock(tmp_path: Path) -> None:
    refused = pytest.raises(InputError, match=r"another run writes into this folder \(process \d+ on")
    with locked(tmp_path), refused, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_set_aside_takes_the_first_free_number(tmp_path: Path) -> None:
    for name in ("run", "run.1", "run.3", "run.old"):
        (tmp_path / name).mkdir()
    assert set_aside(tmp_path / "run") == tmp_path / "run.2"
    assert not (tmp_path / "run").exists()


def test_read_manifest(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        read_manifest(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 2}')
    with pytest.raises(InputError, match="expected a run of format 1"):
        read_manifest(tmp_path)


def test_versions_are_of_all_that_we_require() -> None:
    assert {"python", "nequip-core", "torch", "lightning", "hydra-core", "e3nn"} <= versions().keys()
    assert "pytest" not in versions()


def test_nothing_is_written_before_begin(data: Path, tmp_path: Path) -> None:
    config = make(data)
    config.run.dir = str(tmp_path / "a" / "run")
    with Run(config, load_registry()) as run:
        assert not (tmp_path / "a").exists()
        assert run.earlier is None
        run.begin(["a b.yaml", "seed=1"], kernels={"op": 1})
        with pytest.raises(InputError, match="another run"), locked(run.path):
            pass
        run.update(state="finished")
    manifest = json.loads((run.path / "run.json").read_text())
    assert manifest["command_line"] == "nequip train 'a b.yaml' seed=1"
    assert manifest["kernels"] == {"op": 1}
    with Run(config, load_registry()) as again:
        assert again.finished
        assert again.last_checkpoint is None
    with locked(run.path):
        pass


def test_two_that_begin_at_once(data: Path, tmp_path: Path) -> None:
    config = make(data)
    config.run.dir = str(tmp_path / "run")
    with Run(config, load_registry()) as one, Run(config, load_registry()) as two:
        one.begin([])
        with pytest.raises(InputError, match="another run writes"):
            two.begin([])
        one.__exit__()
        with pytest.raises(InputError, match="has begun a run in this folder meanwhile"):
            two.begin([])
    assert not (tmp_path / "run.1").exists()


def test_leftovers_of_a_killed_run_are_removed(data: Path, tmp_path: Path) -> None:
    config = make(data)
    config.run.dir = str(tmp_path / "run")
    with Run(config, load_registry()) as run:
        run.begin([])
    leftover = tmp_path / "run" / "checkpoints" / ".last.ckpt.abc.tmp"
    leftover.parent.mkdir()
    leftover.write_text("half")
    with Run(config, load_registry()) as run:
        run.begin([])
    assert not leftover.exists()


def test_write_json_makes_the_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"x": [1.5, None]})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": [1.5, None]}
