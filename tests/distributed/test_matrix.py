"""Up to four processes: the same weights as one, whatever happens on the way; run by nox -s distributed_tests."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import pytest
import torch

pytestmark = pytest.mark.distributed

EXACT = 1e-12
WEIGHTS = 1e-10
TWO = "trainer.devices=2"

MIXES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "three micro-batches": ("data.batch.max_edges=60",),
    "ranks without structures": ("data.batch.size=2",),
    "by atoms": ("data.batch.by=atoms", "data.batch.size=20"),
    "by edges, workers": ("data.batch.by=edges", "data.batch.size=300", "data.workers=1"),
    "one structure to validate on": ("data.split.val=1",),
    "other loss and optimizer": ("training.optimizer.name=adamw", "training.loss.forces.function=huber"),
    "early stopping": ("training.early_stopping_patience=1", "trainer.max_epochs=4", "training.monitor=val_energy_mae"),
}


def port() -> int:
    """One that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def planted(rank: int, step: int, what: str) -> str:
    return f"training.callbacks=[{{name: planted.At, args: {{rank: {rank}, step: {step}, what: {what}}}}}]"


def state(work: Any, run: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work.folder / run / "run.json").read_text())
    return found


def same(work: Any, close: Callable[..., None], ours: str, theirs: str) -> None:
    """Tables, weights, averages, optimizer and what was decided."""
    close(work.rows(ours), work.rows(theirs), EXACT)
    close(work.rows(ours, "steps"), work.rows(theirs, "steps"), EXACT)
    for name in ("last", "best"):
        pair = [work.checkpoint(run, name) for run in (ours, theirs)]
        close(*(members.training.raw for members in pair), WEIGHTS)
        close(*(members.weights for members in pair), WEIGHTS)
        close(*(members.training.optimizer_tensors for members in pair), WEIGHTS)
    assert state(work, ours)["best_epoch"] == state(work, theirs)["best_epoch"]


@pytest.mark.parametrize("mix", MIXES)
def test_any_number_of_processes_gives_the_same_weights(work: Any, close: Callable[..., None], mix: str) -> None:
    words = MIXES[mix]
    work.run("run.dir=one", *words)
    for count in (2, 4):
        work.run(f"run.dir=run{count}", f"trainer.devices={count}", *words)
        same(work, close, f"run{count}", "one")
    assert work.leftovers() == []


def test_compiled_steps_of_two_processes(work: Any, close: Callable[..., None]) -> None:
    words = ("model.num_layers=1", "data.batch.size=2")  # the last step of an epoch leaves a process the ghost only
    work.run("run.dir=one", *words)
    work.run("run.dir=run", TWO, "training.compile=true", *words)
    close(work.rows("run"), work.rows("one"), 1e-9)
    close(work.rows("run", "steps"), work.rows("one", "steps"), 1e-9)
    close(work.checkpoint("run").training.raw, work.checkpoint("one").training.raw, 1e-8)
    report = state(work)["compile"]
    assert (report["graphs"], report["breaks"], report["recompiles"]) == (1, 0, 0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_two_gpus_train_as_one_and_wait_for_nothing(work: Any, close: Callable[..., None], compiled: str) -> None:
    words = ("trainer.accelerator=cuda", "trainer.log_every_n_steps=50", "trainer.max_epochs=6", "data.batch.size=4")
    words += (f"training.compile={compiled}",)
    # Epochs have four steps, and the last of each waits for its losses.
    quiet = "training.callbacks=[{name: planted.NoWaiting, args: {first: 10, last: 11}}]"
    work.run("run.dir=one", *words)
    work.run("run.dir=run", TWO, quiet, *words)
    close(work.rows("run"), work.rows("one"), 1e-9)
    close(work.checkpoint("run").training.raw, work.checkpoint("one").training.raw, 1e-9)
    assert state(work)["devices"] == ["cuda:0", "cuda:1"]
    patience = "trainer.rank_timeout=60"  # compiling takes its time too
    _, err = work.run("run.dir=hung", TWO, planted(1, 3, "sleep"), patience, *words, code=1)
    assert "the others wait for rank 1 (process " in err
    assert work.leftovers() == []


def test_one_process_with_the_strategy_of_several(work: Any) -> None:
    work.run("run.dir=one")
    work.run("run.dir=run", "trainer.strategy=deferred_ddp")
    assert work.rows("run") == work.rows("one")


def test_two_four_one(work: Any, close: Callable[..., None]) -> None:
    for epochs, count in ((1, 2), (2, 4), (3, 1)):
        work.run("run.dir=run", f"trainer.max_epochs={epochs}", f"trainer.devices={count}")
    work.run("run.dir=one", "trainer.max_epochs=3")
    same(work, close, "run", "one")
    assert [sorted(restart["changed"]) for restart in state(work)["restarts"]] == [
        ["trainer.devices", "trainer.max_epochs"]
    ] * 2


def test_torchrun(work: Any, close: Callable[..., None]) -> None:
    work.run("run.dir=one")
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", 4, "--master_port", port())
    work.run("run.dir=run", launcher=launcher)
    same(work, close, "run", "one")
    assert state(work)["world_size"] == 4


def nodes(work: Any, first: tuple[object, ...], second: tuple[object, ...], code: int) -> tuple[str, str]:
    """Two torchruns of two processes each, as on two machines; what they print to standard error."""
    where = ("--nnodes", 2, "--nproc_per_node", 2, "--master_addr", "127.0.0.1", "--master_port", port())
    started = [
        work.start("run.dir=run", *words, launcher=("-m", "torch.distributed.run", *where, "--node_rank", number))
        for number, words in enumerate((first, second))
    ]
    ended = [work.end(process, code)[1] for process in started]
    return ended[0], ended[1]


def test_two_nodes(work: Any, close: Callable[..., None]) -> None:
    work.run("run.dir=one")
    nodes(work, (), (), 0)
    same(work, close, "run", "one")


def test_nodes_with_other_configs(work: Any) -> None:
    printed = "".join(nodes(work, (), ("training.optimizer.lr=0.02",), 1))
    assert printed.count("training.optimizer.lr is 0.01 in rank 0 on ") == 1
    assert printed.count("but 0.02 in rank 2 on ") == 1
    assert not (work.folder / "run").exists()


def test_nodes_with_other_data(work: Any) -> None:
    frames = ase.io.read(work.folder / "data.xyz", ":")
    frames[3].positions += 0.01
    ase.io.write(work.folder / "other.xyz", frames, format="extxyz")
    printed = "".join(nodes(work, (), ("data.path=other.xyz",), 1))
    assert printed.count("the content of data.path is") == 1
    assert not (work.folder / "run").exists()


def test_srun(work: Any, close: Callable[..., None]) -> None:
    work.run("run.dir=one")
    started = []
    for rank in range(2):
        environment = {
            "SLURM_JOB_ID": 8123456,
            "SLURM_STEP_ID": 0,
            "SLURM_PROCID": rank,
            "SLURM_LOCALID": rank,
            "SLURM_NODEID": 0,
            "SLURM_STEP_NUM_TASKS": 2,
            "SLURM_STEP_NUM_NODES": 1,
            "SLURM_STEP_TASKS_PER_NODE": "2",
            "SLURM_STEP_NODELIST": "localhost",
            "MASTER_PORT": port() if rank == 0 else started[0][1],
        }
        started.append((work.start("run.dir=run", **environment), environment["MASTER_PORT"]))
    for process, _ in started:
        work.end(process)
    same(work, close, "run", "one")


def test_a_nan_of_one_rank_stops_all_and_names_its_structures(work: Any) -> None:
    _, err = work.run("run.dir=run", TWO, planted(1, 3, "poison"), code=2)
    assert err.count("nequip:") == 1
    assert re.search(
        r"step 3 of epoch 1 is nan\. The structures of its batch, data\.xyz frame \d+, data\.xyz frame", err
    )
    assert len(ase.io.read(work.folder / "run" / "not_finite.extxyz", ":")) == 2  # of the four of the step
    assert not (work.folder / "run" / "checkpoints").exists()
    assert state(work)["state"] == "failed"


def test_weights_that_deviate(work: Any) -> None:
    _, err = work.run("run.dir=run", TWO, planted(1, 3, "bend"), code=3)
    assert err.count("nequip:") == 1
    assert "The weights of rank 1 are not those of rank 0 after step 3: potential.model." in err


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("fail", 1, "ValueError: planted"),
        ("kill", 137, "rank 1 (process "),
    ],
)
def test_a_process_that_ends_takes_the_others_with_it(work: Any, what: str, code: int, message: str) -> None:
    process = work.start("run.dir=run", TWO, planted(1, 3, what))
    work.wait_for("run", 2, process)
    start = time.monotonic()
    _, err = work.end(process, code)
    assert time.monotonic() - start < 20
    assert message in err
    assert err.count("Traceback (most recent call last)") == (what == "fail")
    assert work.leftovers() == []
    assert state(work)["state"] == "failed"
    work.run("run.dir=run", TWO)  # goes on


def test_a_process_that_hangs_is_named(work: Any) -> None:
    _, err = work.run("run.dir=run", TWO, planted(1, 3, "sleep"), "trainer.rank_timeout=5", code=1)
    assert err.count("nequip:") == 1
    assert "No process has moved for 5 s (trainer.rank_timeout): the others wait for rank 1 (process " in err
    assert "which is at step 3" in err
    assert state(work)["state"] == "failed"
    assert "rank 1" in state(work)["error"]
    assert work.leftovers() == []


def test_processes_that_are_all_busy_are_named(work: Any) -> None:
    """The network is not blamed."""
    both = ", ".join(f"{{name: planted.At, args: {{rank: {rank}, step: 3, what: sleep}}}}" for rank in (0, 1))
    _, err = work.run("run.dir=run", TWO, f"training.callbacks=[{both}]", "trainer.rank_timeout=5", code=1)
    assert re.search(r"all are busy: rank 0 \(.*\), which is at step 3, rank 1 \(.*\), which is at step 3\. If", err)
    assert work.leftovers() == []


def test_the_first_process_is_stopped(work: Any) -> None:
    process = work.start("run.dir=run", TWO, "trainer.rank_timeout=5", "trainer.max_epochs=1000")
    work.wait_for("run", 3, process)
    first = next(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and b"\0RANK=0\0" in environment(entry) and (entry / "cwd").readlink() == work.folder
    )
    os.kill(first, signal.SIGSTOP)
    _, err = work.end(process, 1)
    assert "rank 0 (process " in err
    assert "is not heard of" in err
    assert work.leftovers() == []


def environment(entry: Path) -> bytes:
    try:
        return b"\0" + (entry / "environ").read_bytes()
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return b""


def test_ctrl_c_that_reaches_one_process_ends_all(work: Any, close: Callable[..., None]) -> None:
    _, err = work.run("run.dir=run", TWO, planted(1, 6, "interrupt"), code=130)
    assert err.count("after step 7") == 1  # it comes when step 6 has begun
    assert len(work.rows("run", "steps")) == 7
    work.run("run.dir=run", TWO)
    work.run("run.dir=one")
    same(work, close, "run", "one")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_signals_while_data_are_read(work: Any, kind: signal.Signals) -> None:
    process = work.start("run.dir=run", TWO)
    while not (work.folder / "cache").exists():
        time.sleep(0.01)
    process.send_signal(kind)
    _, err = work.end(process, 130)
    assert "Traceback" not in err
    assert work.leftovers() == []


def test_max_time_is_over_for_all(work: Any, close: Callable[..., None]) -> None:
    _, err = work.run("run.dir=run", TWO, "trainer.max_time=00:00:00:02", "trainer.max_epochs=-1")
    assert err.count("Stopped by trainer.max_time (2 s)") == 1
    done = len(work.rows("run", "steps"))
    work.run("run.dir=one", f"trainer.max_steps={done}", "trainer.max_epochs=-1")
    close(work.rows("run", "steps"), work.rows("one", "steps"), 1e-9)


def test_ctrl_c_under_torchrun(work: Any) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", port())
    process = work.start("run.dir=run", "trainer.max_epochs=1000", launcher=launcher)
    work.wait_for("run", 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert err.count("Stopped by Ctrl-C") == 1
    assert state(work)["state"] == "stopped"
    assert (work.folder / "run" / "checkpoints" / "last.ckpt").exists()
    assert work.leftovers() == []


def test_another_run_in_the_folder(work: Any) -> None:
    process = work.start("run.dir=run", TWO, "trainer.max_epochs=1000")
    work.wait_for("run", 1, process)
    _, err = work.run("run.dir=run", TWO, code=2)
    assert err.count("another run writes into this folder") == 1
    process.send_signal(signal.SIGINT)
    work.end(process, 130)


def test_a_finished_run(work: Any) -> None:
    work.run("run.dir=run", TWO)
    out, err = work.run("run.dir=run", TWO)
    assert out.count("nothing is left to do") == 1
    assert err == ""
