"""Compiled training on a CUDA device: one code for all batches, eager's gradients, repeatable, and nobody waits."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

from nequip_core.data.ghost import Ghost
from nequip_core.plugins.manager import load_registry
from nequip_core.testing.checks import make_case
from nequip_core.tracing import Sizes
from nequip_core.training.compiled import CompiledTraining, Sample, flatten, sample_batch
from nequip_core.training.loss import Loss, Term, huber, mae, mse

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


@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("name", SMALL)
def test_no_step_waits_for_the_device(tmp_path: Path, name: str, compiled: str) -> None:
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
        [sys.executable, "-m", "nequip_core", "train", "cu.yaml", "run.dir=run", f"training.compile={compiled}"],
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
