"""Compiled training on a CUDA device: one code for all batches, eager's gradients, repeatable, and nobody waits.

Recorded as CUDA graphs, steps are what they are launched, by few launches.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

from nequip_core.data.batch import Batch
from nequip_core.data.ghost import Ghost
from nequip_core.plugins.manager import load_registry
from nequip_core.recording import Recorder
from nequip_core.testing.checks import make_case
from nequip_core.tracing import Sizes
from nequip_core.training.compiled import CompiledTraining, Sample, flatten, sample_batch
from nequip_core.training.loss import Loss, Term, huber, mae, mse
from nequip_core.training.optimizers import adam

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
BATCHES = 1000
LOSS = Loss((Term("energy_per_atom", 1.0, mse(0.0)), Term("forces", 1.0, huber(0.1)), Term("stress", 1.0, mae(0.0))))
KEYS = {
    "nequip": {"num_layers": 2, "l_max": 1, "num_features": 8},
    "allegro": {"num_layers": 2, "l_max": 1, "num_scalar_features": 16, "num_tensor_features": 8},
}


@pytest.mark.parametrize("name", ["nequip", "allegro"])
def test_a_thousand_batches(name: str, tmp_path: Path) -> None:
    case = make_case(load_registry().models[name], KEYS[name]).as_dtype("float32")
    potential = case.potential.cuda().train()
    training = CompiledTraining(
        potential,
        LOSS,
        sample=Sample(Sizes(5, 127, 1511), Sizes(5, 127, 1511)),
        ghost=Ghost(1.2),
        check_every=100,
        dump=tmp_path / "deviation.safetensors",
        say=print,
    )
    training.prepare_training(CUDA)
    weights = [p for p in potential.parameters() if p.requires_grad]
    rng = np.random.default_rng(0)
    for seed in range(BATCHES):
        structures = int(rng.integers(1, 17))
        atoms = int(rng.integers(structures, 501))
        edges = int(rng.integers(0, 20 * atoms)) * int(rng.integers(0, 4) > 0)
        batch = sample_batch(potential, Sizes(structures, atoms, edges), training.ghost, seed).to(CUDA)
        loss = training.loss(batch)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    # Where Inductor would choose other code by itself.
    large = sample_batch(potential, Sizes(16, 8000, 700_000), training.ghost).to(CUDA)
    assert torch.isfinite(training.loss(large))
    report = training.report()
    assert (report["graphs"], report["breaks"], report["recompiles"]) == (1, 0, 0)
    assert torch.isfinite(loss)
    for _ in range(20):
        again = torch.autograd.grad(training.loss(batch), weights, allow_unused=True)
        for one, other in zip(gradients, again, strict=True):
            assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_precision_of_products_is_measured(precision: str, tmp_path: Path) -> None:
    case = make_case(load_registry().models["nequip"], KEYS["nequip"]).as_dtype("float32")
    training = CompiledTraining(
        case.potential.cuda().train(),
        LOSS,
        sample=Sample(Sizes(5, 127, 1511), Sizes(5, 127, 1511)),
        ghost=Ghost(1.2),
        precision=precision,
        dump=tmp_path / "deviation.safetensors",
        say=print,
    )
    before = torch.get_float32_matmul_precision()
    training.prepare_training(CUDA)
    assert torch.get_float32_matmul_precision() == before
    assert training.report()["deviation"] > 1e-6
    training.loss(sample_batch(training.potential, Sizes(3, 100, 900), training.ghost).to(CUDA))
    assert len(flatten(sample_batch(training.potential, Sizes(3, 100, 900), training.ghost))) == 21


class Side(NamedTuple):
    """A training and its optimizer."""

    training: CompiledTraining
    optimizer: torch.optim.Optimizer

    def losses(self, step: Sequence[Batch]) -> torch.Tensor:
        """Of the micro-batches of a step, whose gradients come together in the parameters."""
        self.optimizer.zero_grad()
        losses = []
        for batch in step:
            losses.append(self.training.loss(batch))
            self.training.backward(losses[-1])
        return torch.stack([loss.detach() for loss in losses])

    def counts(self) -> dict[str, int]:
        return self.training.report()["cuda_graphs"]


class Sides(NamedTuple):
    """With equal weights."""

    recorded: Side
    launched: Side


SIZES = (Sizes(4, 110, 1400), Sizes(5, 127, 1511), Sizes(3, 90, 1000))


@pytest.fixture(scope="module", params=["nequip", "allegro"])
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    def make(recorder: Callable[[torch.device], Recorder] | None) -> Side:
        case = make_case(load_registry().models[request.param], KEYS[request.param]).as_dtype("float32")
        potential = case.potential.cuda().train()
        training = CompiledTraining(
            potential,
            LOSS,
            sample=Sample(SIZES[1], SIZES[1]),
            ghost=Ghost(1.2),
            dump=tmp_path_factory.mktemp("dump") / "deviation.safetensors",
            say=print,
            recorder=recorder,
        )
        training.prepare_training(CUDA)
        return Side(training, adam([p for p in potential.parameters() if p.requires_grad], 1e-3))

    made = Sides(make(Recorder), make(None))
    one, other = (dict(side.training.potential.state_dict()) for side in made)
    assert all(torch.equal(one[name], other[name]) for name in one)
    return made


def batches_of(side: Side, sizes: Sequence[Sizes]) -> list[Batch]:
    ghost: Callable[..., Batch] = partial(side.training.ghost, rounded=True)
    return [sample_batch(side.training.potential, each, ghost, n).to(CUDA) for n, each in enumerate(sizes)]


def gradients(side: Side) -> list[torch.Tensor]:
    return [p.grad.clone() for p in side.training.potential.parameters() if p.grad is not None]


def test_thirty_steps_are_those_that_are_launched(sides: Sides) -> None:
    batches = batches_of(sides.recorded, [SIZES[n] for n in np.random.default_rng(0).integers(0, 3, size=30)])
    losses = []
    for side in sides:
        found = []
        for batch in batches:
            found.append(side.losses([batch]))
            side.optimizer.step()
        losses.append(torch.cat(found).tolist())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][-1] != losses[0][0]
    assert sides.recorded.counts() == {"recorded": 3, "replayed": 27, "launched": 3}
    assert sides.launched.training.report()["cuda_graphs"] is None


def test_two_micro_batches(sides: Sides) -> None:
    with torch.no_grad():
        pair = [[*side.training.potential.parameters()] for side in sides]
        torch._foreach_copy_(pair[1], pair[0])
    first, second, other = batches_of(sides.recorded, [SIZES[0], SIZES[0], SIZES[2]])
    for step in ([first, second], [second, other], [other]) * 2:
        ours, theirs = (side.losses(step) for side in sides)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0.0)
        for one, two in zip(gradients(sides.recorded), gradients(sides.launched), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * float(two.abs().max()))
    assert sides.recorded.counts()["replayed"] > 6


def test_a_recorded_step_does_not_wait_and_is_few_launches(sides: Sides) -> None:
    side = sides.recorded
    first, second = batches_of(side, [SIZES[0], SIZES[0]])
    for batch in (first, second, first):
        side.losses([batch])
        side.optimizer.step()
    before = side.counts()
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in (second, first):
                side.losses([batch])
                side.optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert side.counts() == before | {"replayed": before["replayed"] + 2}

    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        side.losses([second])
        side.optimizer.step()
        torch.cuda.synchronize()
    calls = Counter(event.name for event in profile.events() if event.name.startswith(("cudaLaunch", "cuLaunch")))
    graphs = sum(event.name.startswith("cudaGraphLaunch") for event in profile.events())
    print(dict(calls), graphs)
    assert graphs == 1
    assert 0 < sum(calls.values()) + graphs < 40


STRICT = """\
import torch
from lightning.pytorch import Callback

class Strict(Callback):
    '''Waiting for the device is an error from a step's batch to the next, where no row of steps.csv is due.'''

    def on_train_batch_start(self, trainer, module, batch, index):
        free = (trainer.global_step + 1) % 5 == 0 or trainer.global_step < 5
        torch.cuda.set_sync_debug_mode("default" if free else "error")

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.is_last_batch:
            torch.cuda.set_sync_debug_mode("default")
"""


SMALL = {
    "nequip": "{cutoff: 4.0, l_max: 1, num_layers: 2, num_features: 8}",
    "allegro": "{cutoff: 4.0, l_max: 1, num_layers: 2, num_scalar_features: 16, num_tensor_features: 8}",
}


@pytest.mark.parametrize("compiled", ["false", "launched", "true"])
@pytest.mark.parametrize("name", SMALL)
def test_no_step_waits_for_the_device(tmp_path: Path, name: str, compiled: str) -> None:
    words = {
        "false": ["training.compile=false"],
        "launched": ["training.compile=true", "training.cuda_graphs=false"],
        "true": ["training.compile=true"],  # small batches are recorded then
    }[compiled]
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(60):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_potential_energy()
        atoms.get_stress()
        frames.append(atoms)
    write(tmp_path / "cu.xyz", frames, format="extxyz")
    (tmp_path / "strict.py").write_text(STRICT)
    (tmp_path / "cu.yaml").write_text(
        f"defaults: [base, {{model: {name}}}, _self_]\n"
        "loggers: [csv]\n"
        "data: {path: cu.xyz, split: {train: 50, val: 10}, batch: {size: 2}}\n"
        f"model: {SMALL[name]}\n"
        "training: {ema_decay: 0.9, gradient_clip: 10.0, callbacks: [{name: strict.Strict}]}\n"
        "trainer: {accelerator: cuda, max_epochs: 2, enable_progress_bar: false, log_every_n_steps: 5}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "nequip_core", "train", "cu.yaml", "run.dir=run", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "run" / "steps.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 10
    report = json.loads((tmp_path / "run" / "run.json").read_text())["compile"]
    assert (report is None) == (compiled == "false")
    if report is not None:  # batches are that small that the ghost makes them all of one size
        assert report["cuda_graphs"] == ({"recorded": 1, "replayed": 49, "launched": 1} if compiled == "true" else None)
        said = (tmp_path / "run" / "log.txt").read_text()
        assert ("CUDA graphs: 1 recorded" in said) == (compiled == "true")
