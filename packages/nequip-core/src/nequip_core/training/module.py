"""One training run as Lightning sees it: a potential, a loss, an optimizer, averaged weights.

Nothing here waits for the device in a step, and nothing is logged in a step: losses stay where they were computed until
a row of steps.csv, the end of an epoch or a checkpoint needs them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from nequip_core.data.batch import Batch
from nequip_core.errors import ConfigError, InputError
from nequip_core.export.package import CheckCase
from nequip_core.graph import Graph, to
from nequip_core.potential import Potential, stress
from nequip_core.structure import Structure
from nequip_core.training.checkpoint import PREFIX
from nequip_core.training.ema import EMA
from nequip_core.training.loss import Loss
from nequip_core.training.metrics import NAMES, Metrics
from nequip_core.training.nonfinite import Found, LossRecord, Offending
from nequip_core.training.ranks import ONE, Ranks, Wish

if TYPE_CHECKING:  # it imports the compiler, which takes a second
    from nequip_core.training.compiled import CompiledTraining

MONITORS = ("train_loss", "val_loss", *(f"val_{name}" for name in NAMES))
"""Columns of metrics.csv that ``training.monitor`` may name."""


class TrainingModule(LightningModule):
    """A potential in training.

    Args:
        potential: on the CPU; Lightning moves it.
        loss: to make small.
        make_optimizer: from the trained parameters.
        make_scheduler: from the optimizer.
        interval: when the scheduler advances.
        monitor: one of `MONITORS`; a plateau scheduler follows it.
        ema_decay: of the averaged weights, which validation and packages use; None: none.
        check: graphs and structures whose predictions go into checkpoints.
        read_losses_every: steps, on devices where reading waits.
        offending: called with the numbers of the structures of a batch whose loss is not finite; returns a sentence
            that names them, see `nequip_core.training.nonfinite.offending_to`.
        offending_val: the same for structures of the validation set.
        compiled: computes losses and the predictions of validation; None: operator by operator.
        ranks: that train together.

    Attributes:
        shares: [ranks, 2] of the step: each rank's part of the loss, and its `wish`. A step puts this rank's there, and
            the strategy those of all, together with the gradients.
        wish: of this rank.
        metrics: of the last validation, and train_loss of its epoch, by the names of metrics.csv.
    """

    def __init__(
        self,
        potential: Potential,
        loss: Loss,
        *,
        make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        make_scheduler: Callable[[Optimizer], LRScheduler],
        interval: Literal["epoch", "step"] = "epoch",
        monitor: str = "val_loss",
        ema_decay: float | None = None,
        check: Sequence[tuple[Graph, Structure]] = (),
        read_losses_every: int = 50,
        offending: Offending,
        offending_val: Offending,
        compiled: CompiledTraining | None = None,
        ranks: Ranks = ONE,
    ) -> None:
        super().__init__()
        if monitor not in MONITORS:
            raise ConfigError(
                f"training.monitor: there is no column {monitor!r}. Expected one of {', '.join(MONITORS)}."
            )
        self.potential = potential
        self.loss = loss
        self.make_optimizer = make_optimizer
        self.make_scheduler = make_scheduler
        self.interval = interval
        self.monitor = monitor
        self.check = tuple(check)
        self.read_losses_every = read_losses_every
        self.offending, self.offending_val = offending, offending_val
        self.compiled = compiled
        self.ema = None if ema_decay is None else EMA(potential.model, ema_decay)
        self.losses = LossRecord()
        self.ranks = ranks
        self.wish = Wish.GO_ON
        self.validation = Metrics(loss, ranks)
        self.metrics: dict[str, float | None] = {}
        self.validated = False
        self.scheduler: LRScheduler | None = None
        self._restored: dict[str, Any] = {}

    # ---- steps

    def training_step(self, batches: Sequence[Batch], batch_idx: int) -> Tensor:
        """The loss of the last micro-batch of a step, whose gradient Lightning adds to those of the others.

        Only there a strategy has to reduce gradients over ranks: once per step.

        """
        super().optimizer_zero_grad(self.trainer.current_epoch, batch_idx, self._optimizer)
        *first, last = batches
        losses = []
        for batch in first:
            losses.append(self.loss_of(batch))
            self.backward(losses[-1])
        losses.append(self.loss_of(last))
        total = torch.stack([loss.detach() for loss in losses]).sum()
        self.shares = torch.stack([total, torch.full_like(total, self.wish)])[None]
        self._ids = torch.cat([batch.ids for batch in batches])
        return losses[-1]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Take in the loss, which is that of all ranks now."""
        self._stop_unless_finite(self.losses.add(self.shares, self._ids))

    def loss_of(self, batch: Batch) -> Tensor:
        """A batch's share of the loss of its step."""
        return self.loss(self.potential(batch.graph), batch) if self.compiled is None else self.compiled.loss(batch)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The gradients of a loss; Lightning's hook."""
        if self.compiled is None:
            torch.autograd.backward(loss)
        else:
            self.compiled.backward(loss)

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Done at the beginning of a step: Lightning would do it between its forward and its last backward."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch to the metrics."""
        predict = self.potential if self.compiled is None else self.compiled.predict
        self.validation.update(predict(batch.graph), batch)

    # ---- optimizer, scheduler, average

    def configure_optimizers(self) -> Optimizer:
        """The optimizer. The scheduler is kept here.

        Lightning would let a plateau scheduler advance after the checkpoint of its epoch was written, and lose that
        step on resuming.
        """
        optimizer = self.make_optimizer([p for p in self.potential.parameters() if p.requires_grad])
        self.scheduler = self.make_scheduler(optimizer)
        if isinstance(self.scheduler, ReduceLROnPlateau) and self.interval == "step":
            raise ConfigError(
                "training.scheduler: plateau follows validations. Set training.scheduler.interval: epoch."
            )
        if "scheduler" in self._restored:
            self.scheduler.load_state_dict(self._restored["scheduler"])
        return optimizer

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, then the average takes in the new weights."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update()
        if self.interval == "step":
            self._advance_scheduler()

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer

    def _advance_scheduler(self) -> None:
        assert self.scheduler is not None
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        elif self.validated:
            self.scheduler.step(self.monitored())

    # ---- epochs

    def on_fit_start(self) -> None:
        """The average follows the weights to their device; what is compiled is compiled now."""
        self.losses.every = 1 if self.device.type == "cpu" else self.read_losses_every
        if self.ema is not None:
            self.ema.follow()
        if self.compiled is not None:
            self.ranks.at("the compilation of the step")
            self.compiled.prepare_training(self.device)
            with self.as_packaged():
                self.compiled.prepare_validation(self.device)

    def on_train_start(self) -> None:
        """Random numbers go on where the checkpoint left them."""
        if "random" in self._restored:
            set_random_state(self._restored["random"], self.device)
        self._restored = {}

    def on_train_epoch_start(self) -> None:
        """Begin the epoch's mean."""
        self.losses.reset()
        self.validated = False

    def on_validation_epoch_start(self) -> None:
        """Take the weights of packages."""
        self.validation.reset()
        self._packaged = ExitStack()
        self._packaged.enter_context(self.as_packaged())

    def on_validation_epoch_end(self) -> None:
        """The metrics; and the weights of training again."""
        self._packaged.close()
        self.finish_losses()
        self.metrics = {"train_loss": self.losses.mean()}
        self.metrics |= {f"val_{name}": value for name, value in self.validation.compute(self.device).items()}
        loss = self.metrics["val_loss"]
        if loss is not None and not math.isfinite(loss):
            found = self.validation.not_finite()
            parts = self.ranks.gather(found.ids if found else [], "the structures of a loss that is not finite")
            named = self._name(self.offending_val, [number for part in parts for number in part])
            self._stop(f"The validation loss of epoch {self.trainer.current_epoch + 1} is {loss}. {named}")
        self.validated = True
        # For callbacks of others; the loggers get them with the row of metrics.csv.
        self.log_dict({name: value for name, value in self.metrics.items() if value is not None}, logger=False)

    def on_train_epoch_end(self) -> None:
        """The scheduler advances; callbacks that write checkpoints come after this, others before."""
        self.finish_losses()
        if self.interval == "epoch":
            self._advance_scheduler()

    def monitored(self) -> float:
        """The metric that ``training.monitor`` names.

        Raises:
            ConfigError: nothing is labelled with it.
        """
        value = self.metrics[self.monitor]
        if value is None:
            raise ConfigError(
                f"training.monitor: {self.monitor} has no value, since no structure of the validation set has that "
                "label. Name another column, or label the validation set."
            )
        return value

    def finish_losses(self) -> None:
        """Read all losses.

        Raises:
            InputError: one is not finite.
        """
        self._stop_unless_finite(self.losses.read())

    def _stop_unless_finite(self, found: Found | None) -> None:
        if found is not None:
            where = f"step {self.losses.steps} of epoch {self.trainer.current_epoch + 1}"
            parts = self.ranks.gather(found.ids, "the structures of a loss that is not finite")
            ids = [number for rank in found.ranks or range(len(parts)) for number in parts[rank]]
            self._stop(f"The loss of {where} is {found.loss}. {self._name(self.offending, ids)}")

    def _name(self, offending: Offending, ids: Sequence[int]) -> str:
        return self.ranks.from_first(offending(ids) if self.ranks.is_first else "", "their names")

    def _stop(self, what: str) -> NoReturn:
        raise InputError(
            f"{what} Look there for wrong labels and overlapping atoms. If there are none, the weights have diverged: "
            "lower training.optimizer.lr or set training.gradient_clip. No checkpoint has been written since."
        )

    def on_train_end(self) -> None:
        """What is compiled says how it has worked."""
        if self.compiled is not None:
            self.compiled.say_counts()

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What Lightning does not know of.

        Raises:
            InputError: a loss or a weight is not finite; the earlier checkpoint stays.
        """
        self.finish_losses()
        self._require_finite_weights()
        assert self.scheduler is not None
        checkpoint["scheduler"] = self.scheduler.state_dict()
        checkpoint["ema"] = None if self.ema is None else self.ema.state_dict()
        checkpoint["losses"] = {"total": self.losses.total, "steps": self.losses.steps}
        checkpoint["random"] = random_state(self.device)
        checkpoint["metrics"] = self.metrics
        checkpoint["check"] = self.predict_check()

    def _require_finite_weights(self) -> None:
        """The last step's gradient may be NaN where its loss is not, and nobody has computed a loss since."""
        weights = dict(self.potential.model.named_parameters())
        finite = torch.stack([weight.detach().isfinite().all() for weight in weights.values()]).tolist()
        wrong = [name for name, good in zip(weights, finite, strict=True) if not good]
        if wrong:
            where = f"step {self.losses.steps} of epoch {self.trainer.current_epoch + 1}"
            raise InputError(
                f"After {where}, whose loss was {self.losses.last}, {len(wrong)} of {len(weights)} weights are not "
                f"finite: {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}. Lower training.optimizer.lr or set "
                "training.gradient_clip, and look for atoms that lie on each other. No checkpoint has been written "
                "since; the earlier one is as it was."
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it over again; the scheduler and random numbers when their time has come."""
        self._restored = {name: checkpoint[name] for name in ("scheduler", "random")}
        self.losses.total = checkpoint["losses"]["total"]
        self.losses.steps = checkpoint["losses"]["steps"]
        self.metrics = checkpoint["metrics"]
        if self.ema is not None:
            # A run that begins to average now starts from the trained weights.
            trained = {name.removeprefix(PREFIX): t for name, t in checkpoint["state_dict"].items()}
            self.ema.load_state_dict(checkpoint["ema"] or {"updates": 0, "average": trained})

    def predict_check(self) -> list[CheckCase]:
        """Predictions of the weights that a package of this moment has."""
        cases = []
        with self.as_packaged():
            for graph, structure in self.check:
                prediction = self.potential(to(graph, self.device))
                volume = torch.tensor([structure.volume or float("nan")], dtype=torch.float64, device=self.device)
                tensor = None if structure.volume is None else stress(prediction.virial, volume)[0]
                cases.append(CheckCase(structure, prediction.energy[0], prediction.forces, tensor))
        return cases

    @contextmanager
    def as_packaged(self) -> Iterator[None]:
        """The potential is what a package of this moment would be: averaged weights, none of them asking for gradients.

        torch computes ``x @ weight`` in another way where the weight asks for one; so these numbers are those of
        ``nequip evaluate``, bit for bit in the same batches.
        """
        training = self.potential.training
        trained = [parameter for parameter in self.potential.parameters() if parameter.requires_grad]
        with ExitStack() as stack:
            if self.ema is not None:
                stack.enter_context(self.ema.averaged())
            self.potential.eval().requires_grad_(False)
            try:
                yield
            finally:
                self.potential.train(training)
                for parameter in trained:
                    parameter.requires_grad_(True)


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of all generators that a training run could use."""
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)
    numpy_state["state"] = {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """The opposite of `random_state`; a run that changes to another kind of device starts that one's numbers anew."""
    random.setstate(state["python"])
    inner = {**state["numpy"]["state"], "key": np.array(state["numpy"]["state"]["key"], dtype=np.uint32)}
    np.random.set_state({**state["numpy"], "state": inner})
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
