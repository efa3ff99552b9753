"""Two processes train as one with `trainer.strategy=deferred_ddp`; `nox -s distributed_tests` tries more."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

EXACT = 1e-12
WEIGHTS = 1e-10


def callback(name: str, **arguments: object) -> str:
    """A planted callback, as the command line takes it."""
    given = ", ".join(f"{key}: {value}" for key, value in arguments.items())
    return f"training.callbacks=[{{name: planted.{name}, args: {{{given}}}}}]"


def events_of_steps(events: list[str]) -> list[list[str]]:
    """What happens within each optimizer step."""
    text = " ".join(events)
    return [part.partition(" end")[0].split() for part in text.split("step")[1:]]


def test_two_processes_train_as_one(work: Any, close: Callable[..., None]) -> None:
    words = ("data.batch.max_edges=60", "trainer.log_every_n_steps=3")  # up to three micro-batches
    several = ("trainer.devices=2", "trainer.strategy=deferred_ddp", callback("Count", folder=work.folder))
    one, _ = work.run("run.dir=one", *words)
    two, err = work.run("run.dir=two", *words, *several)
    assert err == ""
    assert two.replace("two", "one").splitlines()[0] == one.splitlines()[0]
    assert two.count("Training in") == 1
    close(work.rows("two"), work.rows("one"), EXACT)
    close(work.rows("two", "steps"), work.rows("one", "steps"), EXACT)
    pair = [work.checkpoint(run) for run in ("two", "one")]
    close(*(members.training.raw for members in pair), WEIGHTS)
    close(*(members.weights for members in pair), WEIGHTS)
    close(*(members.training.optimizer_tensors for members in pair), WEIGHTS)
    manifest = json.loads((work.folder / "two" / "run.json").read_text())
    assert (manifest["world_size"], manifest["devices"], manifest["state"]) == (2, ["cpu", "cpu"], "finished")
    for rank in (0, 1):
        steps = events_of_steps(json.loads((work.folder / f"events-{rank}.json").read_text()))
        assert len(steps) == 8
        for number, step in enumerate(steps, 1):
            weights_are_compared = ["all_gather_object"] if number % 3 == 0 else []
            assert step == ["backward", "all_reduce", "optimizer", *weights_are_compared]
    assert work.leftovers() == []


def test_ctrl_c_ends_all_after_the_same_step(work: Any, close: Callable[..., None]) -> None:
    process = work.start("run.dir=two", "trainer.devices=2")
    work.wait_for("two", 3, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = work.end(process, 130)
    assert err.count("Stopped by Ctrl-C") == 1
    assert "Traceback" not in err
    assert json.loads((work.folder / "two" / "run.json").read_text())["state"] == "stopped"
    assert work.leftovers() == []
    assert work.checkpoint("two").training.state["global_step"] == len(work.rows("two", "steps"))


def test_bad_input_is_said_once(work: Any) -> None:
    words = ("trainer.devices=2", "data.keys.energy=nothing", "model.atomic_energies=zero")
    _, err = work.run("run.dir=two", *words, code=2)
    assert err.count("nequip:") == 1
    assert "no frame has energy" in err
    assert not (work.folder / "two").exists()
    assert work.leftovers() == []
