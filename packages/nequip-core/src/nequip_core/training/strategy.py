"""How a step is spread over devices.

A strategy is made from the device of this process and the ranks of the run. With several, each computes its share of a
step as if it were alone, all micro-batches of it; then gradients are added up, once.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from nequip_core.training.module import TrainingModule
from nequip_core.training.ranks import ONE, Ranks

T = TypeVar("T")


def single(device: torch.device | str, ranks: Ranks = ONE) -> SingleDeviceStrategy:
    """One process on one device."""
    return SingleDeviceStrategy(device=device)


class DeferredDDP(SingleDeviceStrategy):
    """Data-parallel training whose gradients meet once per optimizer step, after the backward pass.

    The step itself knows nothing of other ranks: no hooks, no waiting, so it can be one compiled graph. What the ranks
    have to tell each other goes into one buffer, which is added up: gradients, who has which of them, losses, wishes.

    Lightning takes this for training on a single device (``world_size`` is 1): of several it would ask in each step,
    by a broadcast, whether one was sent SIGTERM, which our ranks tell each other with their gradients.

    Args:
        device: of this process.
        ranks: of the run.
    """

    strategy_name = "deferred_ddp"

    def __init__(self, device: torch.device | str, ranks: Ranks = ONE) -> None:
        super().__init__(device)
        self.ranks = ranks
        self.global_rank, self.local_rank = ranks.rank, ranks.place.local_rank
        rank_zero_only.rank = ranks.rank  # type: ignore[attr-defined]  # Lightning keeps it on its decorator
        self._sums = GradientSums(ranks)
        self._parameters: list[nn.Parameter] | None = None

    @property
    def is_global_zero(self) -> bool:
        """Whether this process writes files."""
        return self.ranks.is_first

    def post_backward(self, closure_loss: Tensor) -> None:
        """The last backward pass of the step is over."""
        module = self.lightning_module
        assert isinstance(module, TrainingModule)
        if self._parameters is None:  # to find them takes as long as to tell them
            self._parameters = list(module.parameters())
        trained = [parameter for parameter in self._parameters if parameter.requires_grad]
        step = module.trainer.global_step + 1
        module.shares = self._sums(trained, module.shares, f"the sum of the gradients of step {step}")

    def reduce(self, tensor: Any, *args: Any, reduce_op: Any = "mean", **kwargs: Any) -> Any:
        """The sum or the mean over all ranks."""
        if not isinstance(tensor, Tensor):
            return tensor
        total = tensor.clone()
        self.ranks.sum_(total, "a sum that Lightning asks for")
        return total / self.ranks.size if str(reduce_op).lower() in ("mean", "avg") else total

    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        """Those of all ranks, in a new first direction."""
        found = self.ranks.gather(tensor.detach().cpu(), "tensors that Lightning asks for")
        return torch.stack(found).to(tensor.device)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for all ranks."""
        self.ranks.wait(str(args[0]) if args else "Lightning")

    def broadcast(self, obj: T, src: int = 0) -> T:
        """The value of rank 0."""
        assert src == 0
        return self.ranks.from_first(obj, "a value that Lightning asks for")


deferred_ddp = DeferredDDP


class GradientSums:
    """Adds up gradients over ranks by one exchange.

    A parameter that no rank has used keeps no gradient, as in one process: an optimizer leaves it alone. One that some
    ranks have used gets the same gradient on all.

    Args:
        ranks: of the run.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._exchange: Exchange | None = None
        self._unused: set[tuple[bool, ...]] = set()

    def __call__(
        self, parameters: Sequence[nn.Parameter], shares: Float[Tensor, "1 2"], what: str
    ) -> Float[Tensor, "ranks 2"]:
        """Add up the gradients: those that parameters have from now on are overwritten by the next exchange.

        Args:
            parameters: trained ones, the same on all ranks.
            shares: of this rank, float64; they are told exactly, whatever the gradients' dtype.
            what: the exchange is called.

        Returns:
            Those of all ranks.
        """
        if self.ranks.size == 1:
            return shares
        if self._exchange is None or not self._exchange.serves(parameters):
            self._exchange = Exchange(parameters, self.ranks.rank, self.ranks.size)
        exchange = self._exchange
        used = tuple(parameter.grad is not None for parameter in parameters)
        exchange.fill([parameter.grad for parameter in parameters], used, shares[0])
        self.ranks.sum_(exchange.memory, what)
        for parameter, total, set_ in zip(parameters, exchange.gradients, self._set(used, exchange.used), strict=True):
            parameter.grad = total.to(parameter.dtype) if set_ else None
        return from_bytes(exchange.table)

    def _set(self, used: tuple[bool, ...], presence: Tensor) -> Sequence[bool]:
        """Which parameters have a gradient on any rank.

        The device is asked only where this rank lacks gradients; and not again, if it once lacked the same and all
        others did too. A rank that has come to use such a parameter since is found by the check of the weights.
        """
        if all(used) or (used in self._unused and presence.device.type != "cpu"):
            return used
        anywhere: list[bool] = (presence > 0).tolist()
        if tuple(anywhere) == used:
            self._unused.add(used)
        return anywhere


class Exchange:
    """What ranks add up, in one piece of memory that is made once: a step that made it anew would wait for the host.

    Args:
        parameters: whose gradients are exchanged.
        rank: of this process.
        ranks: how many there are.

    Attributes:
        memory: all of it.
        gradients: of each parameter.
        used: [parameters] how many ranks have a gradient of each.
        table: [ranks, bytes] what each rank tells beside, as `as_bytes` writes it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], rank: int, ranks: int) -> None:
        told = as_bytes(torch.zeros(2, dtype=torch.float64)).numel()
        lengths = [*(parameter.numel() for parameter in parameters), len(parameters), ranks * told]
        dtype = max((p.dtype for p in parameters), key=lambda dtype: torch.finfo(dtype).bits)
        self.memory = torch.zeros(sum(lengths), dtype=dtype, device=parameters[0].device)
        *parts, self.used, table = self.memory.split(lengths)
        self.gradients = [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
        self.table = table.view(ranks, told)
        self._row = self.table[rank]
        self._of = [*parameters]
        self._flags: dict[tuple[bool, ...], Tensor] = {}

    def serves(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether it was made for these."""
        return len(self._of) == len(parameters) and all(map(operator.is_, self._of, parameters))

    def fill(self, gradients: Sequence[Tensor | None], used: tuple[bool, ...], told: Float[Tensor, "2"]) -> None:
        """Write what this rank has, and zeros where others write.

        Args:
            gradients: of the parameters.
            used: which of them there are.
            told: two float64 numbers.
        """
        if any(used):
            given = [gradient for gradient in gradients if gradient is not None]
            torch._foreach_copy_([to for to, there in zip(self.gradients, used, strict=True) if there], given)
        if not all(used):
            torch._foreach_zero_([to for to, there in zip(self.gradients, used, strict=True) if not there])
        if used not in self._flags:  # the way to a device makes us wait
            self._flags[used] = torch.tensor(used, dtype=self.memory.dtype, device=self.memory.device)
        self.used.copy_(self._flags[used])
        # Each rank's row is zero on all others, so that sums are what it told.
        self.table.zero_()
        self._row.copy_(as_bytes(told))


def as_bytes(values: Float[Tensor, "n"]) -> Int[Tensor, "bytes"]:
    """float64 numbers byte by byte: whole numbers that every dtype of gradients holds exactly."""
    return values.contiguous().view(torch.uint8)


def from_bytes(told: Float[Tensor, "ranks bytes"]) -> Float[Tensor, "ranks n"]:
    """The opposite of `as_bytes`."""
    return told.to(torch.uint8).view(torch.float64)
