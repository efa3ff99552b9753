"""A small run: NequIP in float64 on five structures, some periodic, some without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from nequip_core.data.datamodule import DataModule
from nequip_core.data.dataset import Dataset
from nequip_core.export.package import Provenance
from nequip_core.models.base import EnergyModel
from nequip_core.models.nequip import NequIPConfig
from nequip_core.neighbors import make_matscipy
from nequip_core.potential import Potential
from nequip_core.structure import Structure, TypeMap
from nequip_core.training import callbacks, loss, optimizers
from nequip_core.training.checkpoint import PackageIO
from nequip_core.training.module import TrainingModule
from nequip_core.training.nonfinite import offending_to
from nequip_core.training.pace import Pace
from nequip_core.training.strategy import single

TINY: dict[str, Any] = {"num_layers": 2, "l_max": 1, "num_features": 4, "num_bessels": 4, "radial_mlp": [4]}


@pytest.fixture
def structures(random_structure: Callable[..., Structure]) -> list[Structure]:
    """Twelve labelled ones of 2 to 5 atoms; every third is periodic and has a stress."""
    rng = np.random.default_rng(3)
    made = []
    for n in range(12):
        one = random_structure(rng, 2 + n % 4, periodic=n % 3 == 0)
        symmetric = rng.normal(size=(3, 3))
        made.append(
            replace(
                one,
                energy=float(rng.normal() + np.where(one.numbers == 1, -13.6, -430.0).sum()),
                forces=rng.normal(size=(len(one), 3)),
                stress=0.01 * (symmetric + symmetric.T) if n % 3 == 0 else None,
                weight=1.0 + n % 2,
                source=f"made.xyz frame {n}",
            )
        )
    return made


@pytest.fixture
def terms() -> loss.Loss:
    return loss.Loss(
        (
            loss.Term("energy_per_atom", 1.0, loss.mse(0.0)),
            loss.Term("forces", 2.0, loss.huber(0.5)),
            loss.Term("stress", 3.0, loss.mae(0.0)),
        )
    )


class Run:
    """The parts of a training run in a folder, as the composition root makes them."""

    def __init__(self, folder: Path, model: EnergyModel, config: NequIPConfig, structures: list[Structure]) -> None:
        self.folder = folder
        self.model = model
        self.structures = structures
        info = model.info
        self.type_map, self.cutoffs = TypeMap(info.types, info.elements), np.array(info.pair_cutoffs)
        self.neighbor_list = make_matscipy(info.cutoff)
        self.train, self.val = self.dataset(structures[:8]), self.dataset(structures[8:])
        self.provenance = Provenance(
            model=asdict(config),
            data={"train": 8},
            config={"seed": 1, "training": {"optimizer": {"name": "adam"}}},
            versions={"nequip-core": "0.1.0"},
            provider="nequip-core 0.1.0",
        )

    def dataset(self, structures: Sequence[Structure]) -> Dataset:
        """For the model."""
        return Dataset(structures, self.type_map, self.cutoffs, self.neighbor_list)

    def relabel(self, part: str, number: int, **labels: Any) -> None:
        """Change labels of one structure of ``train`` or ``val``."""
        structures = list(getattr(self, part).structures)
        structures[number] = replace(structures[number], **labels)
        setattr(self, part, self.dataset(structures))

    def parts(
        self,
        terms: loss.Loss,
        *,
        scheduler: Callable[..., Any] = lambda o: optimizers.plateau(o, factor=0.7, patience=0),
        optimizer: Callable[..., Any] = lambda p: optimizers.adam(p, 0.01, amsgrad=True),
        interval: Any = "epoch",
        ema_decay: float | None = 0.9,
        monitor: str = "val_loss",
        every: int = 1,
        keep_every: int | None = None,
        patience: int | None = None,
        max_time: float | None = None,
        max_steps: int | None = None,
        more: Sequence[Callback] = (),
        **trainer: Any,
    ) -> tuple[Trainer, TrainingModule, DataModule]:
        """Trainer, module and data of a run of the same kind."""
        self.checkpoints = callbacks.Checkpoints(self.folder / "checkpoints", every=every, keep_every=keep_every)
        clock, pace = callbacks.Clock(), Pace()
        chosen = [
            clock,
            pace,
            callbacks.MetricsTable(self.folder / "metrics.csv", clock),
            callbacks.StepsTable(self.folder / "steps.csv", clock, pace, 3),
            *([callbacks.Patience(patience)] if patience else []),
            *([callbacks.StepLimit(max_steps)] if max_steps else []),
            *more,
            callbacks.EarlyEnd(self.checkpoints, max_time=max_time),
            self.checkpoints,
        ]
        module = TrainingModule(
            Potential(self.model),
            terms,
            make_optimizer=optimizer,
            make_scheduler=scheduler,
            interval=interval,
            monitor=monitor,
            ema_decay=ema_decay,
            check=[(self.val[n].graph, self.val.structures[n]) for n in (0, 1)],
            offending=offending_to(
                self.folder / "nonfinite.extxyz", lambda ids: [self.train.structures[n] for n in ids]
            ),
            offending_val=offending_to(
                self.folder / "nonfinite.extxyz", lambda ids: [self.val.structures[n] for n in ids]
            ),
        )
        settings = {
            "max_epochs": 4,
            "strategy": single("cpu"),
            "accelerator": "cpu",
            "devices": 1,
            "plugins": [PackageIO(self.provenance)],
            "callbacks": chosen,
            "profiler": pace.fetch,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "inference_mode": False,
            "default_root_dir": self.folder,
        }
        return Trainer(**(settings | trainer)), module, DataModule(self.train, self.val, seed=1, size=3, eval_size=3)

    def fit(self, terms: loss.Loss, *, resume: bool = False, **keys: Any) -> TrainingModule:
        """Train."""
        trainer, module, data = self.parts(terms, **keys)
        path = self.folder / "checkpoints" / "last.ckpt"
        trainer.fit(module, datamodule=data, ckpt_path=path if resume else None, weights_only=False)
        return module


@pytest.fixture
def make_run(
    tmp_path: Path,
    make_model: Callable[..., EnergyModel],
    make_config: Callable[..., NequIPConfig],
    structures: list[Structure],
) -> Callable[..., Run]:
    """``(name, **model keys)``: a run in a folder of its own, always with the same weights at the start."""

    def make(name: str = "run", **keys: Any) -> Run:
        keys = TINY | keys
        folder = tmp_path / name
        folder.mkdir()
        return Run(folder, make_model(**keys), make_config(**keys), structures)

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
