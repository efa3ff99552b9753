"""How a step is spread over devices.

A strategy is made from the device of this process and the ranks of the run. With several, each computes its share of a
step as if it were alone, all micro-batches of it; then gradients are added up, once.
"""

from __future__ import annotations

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

    @property
    def is_global_zero(self) -> bool:
        """Whether this process writes files."""
        return self.ranks.is_first

    def post_backward(self, closure_loss: Tensor) -> None:
        """The last backward pass of the step is over."""
        module = self.lightning_module
        assert isinstance(module, TrainingModule)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
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
        self._flags: dict[tuple[bool, ...], Tensor] = {}
        self._unused: set[tuple[bool, ...]] = set()

    def __call__(
        self, parameters: Sequence[nn.Parameter], shares: Float[Tensor, "1 2"], what: str
    ) -> Float[Tensor, "ranks 2"]:
        """Add up the gradients in place.

        Args:
            parameters: trained ones, the same on all ranks.
            shares: of this rank, float64; they are told exactly, whatever the gradients' dtype.
            what: the exchange is called.

        Returns:
            Those of all ranks.
        """
        if self.ranks.size == 1:
            return shares
        used = tuple(parameter.grad is not None for parameter in parameters)
        dtype = max((p.dtype for p in parameters), key=lambda dtype: torch.finfo(dtype).bits)
        told = as_bytes(shares[0]).to(dtype)
        table = told.new_zeros(self.ranks.size, len(told))
        table[self.ranks.rank] = told
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        parts += [self._flags_of(used, table), table]
        flat = torch.cat([part.reshape(-1).to(dtype) for part in parts])
        self.ranks.sum_(flat, what)
        *sums, presence, table_sum = flat.split([part.numel() for part in parts])
        for parameter, total, set_ in zip(parameters, sums, self._set(used, presence), strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype) if set_ else None
        # Each rank's row was zero on all others, so that sums are what it told.
        return from_bytes(table_sum.view_as(table))

    def _flags_of(self, used: tuple[bool, ...], like: Tensor) -> Tensor:
        """[parameters] 1 where this rank has a gradient; made once, since the way to a device makes us wait."""
        if used not in self._flags:
            self._flags[used] = torch.tensor(used, dtype=like.dtype, device=like.device)
        return self._flags[used]

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


def as_bytes(values: Float[Tensor, "n"]) -> Int[Tensor, "bytes"]:
    """float64 numbers byte by byte: whole numbers that every dtype of gradients holds exactly."""
    return values.contiguous().view(torch.uint8)


def from_bytes(told: Float[Tensor, "ranks bytes"]) -> Float[Tensor, "ranks n"]:
    """The opposite of `as_bytes`."""
    return told.to(torch.uint8).view(torch.float64)
