"""Which kernel computes each heavy operator of a model: the quickest that serves, or the one that was named.

The choice is made when a model is built, for this process; it is never part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nequip_core.errors import ConfigError
from nequip_core.plugins.records import KernelEntry

Exchange = Callable[[Tensor], Tensor]


def identity(h: Tensor) -> Tensor:
    """The exchange of a process that owns all atoms."""
    return h


class Ops:
    """Makes operators for a model that is being built, and remembers what it chose and why.

    Args:
        kernels: the registry's kernels.
        request: "auto", "reference", a kernel's name for all operators, or {operator: name}.
        dtype: of the model.
        device: where the model will run.
        exchange: called on features [atoms, features] before neighbours' features are gathered in every layer but the
            first; fills in the rows of ghosts that other processes own.
    """

    def __init__(
        self,
        kernels: Mapping[str, KernelEntry],
        *,
        request: str | Mapping[str, str] = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        exchange: Exchange = identity,
    ) -> None:
        self.kernels = kernels
        self.request = request
        self.dtype = dtype
        self.device = torch.device(device)
        self.exchange = exchange
        self.report: dict[str, dict[str, Any]] = {}

    def make(self, op: str, spec: Any) -> Any:
        """A callable that fulfils the contract ``op`` for ``spec``.

        Raises:
            ConfigError: the kernel that was named does not exist or refuses; the message says why.
        """
        offered = {entry.name: entry for entry in self.kernels.values() if entry.op == op}
        refused = {name: reason for name, entry in offered.items() if (reason := self._refusal(entry, spec))}
        wanted = self.request if isinstance(self.request, str) else self._wanted(op)
        if wanted == "auto":
            # The reference comes last: any kernel that serves is there because it is quicker.
            usable = sorted(offered.keys() - refused.keys(), key=lambda name: (name == "reference", name))
            if not usable:
                raise ConfigError(f"No kernel serves {op}. Refused: {refused or 'none is installed'}.")
            wanted = usable[0]
        if wanted not in offered:
            raise ConfigError(f"kernels: {wanted!r} is no kernel of {op}. Expected auto or one of {sorted(offered)}.")
        if wanted in refused:
            raise ConfigError(f"kernels: {wanted!r} can not compute {op}: {refused[wanted]}. Choose another, or auto.")
        self._note(op, wanted, refused)
        return offered[wanted].make.load()(spec, self.dtype, self.device)

    def _note(self, op: str, chosen: str, refused: dict[str, str]) -> None:
        """A model has several of an operator: what is not the reference is named, and every reason."""
        known = self.report.get(op, {"chosen": chosen, "refused": {}})
        if chosen == "reference":
            chosen = known["chosen"]
        self.report[op] = {"chosen": chosen, "refused": {**refused, **known["refused"]}}

    def _wanted(self, op: str) -> str:
        """The entry for an operator in {operator: name}; the contract's number may be left out."""
        assert not isinstance(self.request, str)
        return self.request.get(op, self.request.get(op.split("/")[0], "auto"))

    def _refusal(self, entry: KernelEntry, spec: Any) -> str | None:
        if self.device.type not in entry.devices:
            return f"runs on {sorted(entry.devices)}, not on {self.device.type}"
        dtype = str(self.dtype).removeprefix("torch.")
        if dtype not in entry.dtypes:
            return f"computes in {sorted(entry.dtypes)}, not in {dtype}"
        reason: str | None = entry.refuses.load()(spec, self.dtype, self.device)
        return reason
