"""Which kernel computes each heavy operator of a model: the quickest that serves, or the one that was named.

The choice is made when a model is built, for this process; it is never part of a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from nequip_core.errors import ConfigError
from nequip_core.ops.contracts import LARGEST_WEIGHTS
from nequip_core.plugins.records import KernelEntry

Exchange = Callable[[Tensor], Tensor]


NOTHING = "none"
"""The kernel's name for an operator without which a model does, though one would serve."""

PLAIN = (NOTHING, "reference")
"""Of what a report need not speak where there is another kernel."""


def identity(h: Tensor) -> Tensor:
    """The exchange of a process that owns all atoms."""
    return h


class Ops:
    """Makes operators for a model that is being built, and remembers what it chose and why.

    Args:
        kernels: the registry's kernels.
        request: "auto", "reference", a kernel's name for all operators, or {operator: name}; "none" for one without
            which a model can do.
        dtype: of the model.
        device: where the model will run.
        exchange: called on features [atoms, features] before neighbours' features are gathered in every layer but the
            first; fills in the rows of ghosts that other processes own.
        edges: that training computes at a time, of which it follows whether weights of edges are stored; infinity: they
            are not; 0: there is no training, or they are.
        derivatives: that the model is to have. 2: all that training takes; 1: forces only, as in a compiled file.
    """

    def __init__(
        self,
        kernels: Mapping[str, KernelEntry],
        *,
        request: str | Mapping[str, str] = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        exchange: Exchange = identity,
        edges: float = 0.0,
        derivatives: Literal[1, 2] = 2,
    ) -> None:
        self.kernels = kernels
        self.request = request
        self.dtype = dtype
        self.device = torch.device(device)
        self.exchange = exchange
        self.edges = edges
        self.derivatives = derivatives
        self.report: dict[str, dict[str, Any]] = {}

    def make(self, op: str, spec: Any) -> Any:
        """A callable that fulfils the contract ``op`` for ``spec``.

        Raises:
            ConfigError: the kernel, or an operator, that was named does not exist, or the kernel refuses and says why.
        """
        offered, refused, wanted = self._choice(op, spec)
        if wanted == "auto":
            raise ConfigError(f"No kernel serves {op}. Refused: {refused or 'none is installed'}.")
        if wanted not in offered:
            raise ConfigError(f"kernels: {wanted!r} is no kernel of {op}. Expected auto or one of {sorted(offered)}.")
        if wanted in refused:
            raise ConfigError(f"kernels: {wanted!r} can not compute {op}: {refused[wanted]}. Choose another, or auto.")
        self._note(op, wanted, refused)
        return offered[wanted].make.load()(spec, self.dtype, self.device)

    def withdraw(self, op: str, reason: str) -> None:
        """The model does without an operator after all, whose kernel can not serve its weights.

        Raises:
            ConfigError: the kernel was named.
        """
        about = self.report[op]
        chosen = about["chosen"]
        if self.is_named(op):
            raise ConfigError(f"kernels: {chosen!r} can not compute {op}: {reason}. Choose another, or auto.")
        self.report[op] = {"chosen": NOTHING, "refused": {**about["refused"], chosen: reason}}

    def is_named(self, op: str) -> bool:
        """Whether a kernel of an operator was asked for by {operator: name}; "none" asks for no kernel.

        Raises:
            ConfigError: one of the names is no operator's.
        """
        return not isinstance(self.request, str) and self._wanted(op) not in ("auto", NOTHING)

    def is_quicker(self, op: str, spec: Any) -> bool:
        """Whether a kernel serves an operator without which a model can do: its reference is no reason to take it.

        A kernel's name for all operators does not take one that wants to be named for its own.
        """
        offered, refused, wanted = self._choice(op, spec)
        could = {name for name, entry in offered.items() if entry.auto and entry.derivatives >= self.derivatives}
        if wanted in could - refused.keys() - {"reference"}:
            return True
        if reasons := {name: reason for name, reason in refused.items() if name in could}:
            self._note(op, NOTHING, reasons)
        return False

    def recomputes(self, op: str, spec: Any, num_weights: int) -> bool:
        """Whether an operator is taken that makes weights of edges where it needs them, as all are too many to store.

        Args:
            op: the contract of that operator; its reference stores the weights.
            spec: its specification.
            num_weights: for each edge.

        Raises:
            ConfigError: it must be, but there is none that serves.
        """
        if self.is_named(op):
            return True
        if not self.edges * num_weights * self.dtype.itemsize > LARGEST_WEIGHTS:
            return False
        serves = self.is_quicker(op, spec)
        if not serves and self.edges == math.inf:
            _, refused, _ = self._choice(op, spec)
            raise ConfigError(
                f"training.recompute_weights is true, but no kernel serves {op}: kernels is {self.request}; refused: "
                f"{refused or 'none is installed (pip install nequip-kernels)'}. Take kernels=auto, or "
                "training.recompute_weights=auto."
            )
        return serves

    def _choice(self, op: str, spec: Any) -> tuple[dict[str, KernelEntry], dict[str, str], str]:
        """What is offered, what of it refuses, and the name that is wanted; auto: nothing is left."""
        offered = {entry.name: entry for entry in self.kernels.values() if entry.op == op}
        refused = {name: reason for name, entry in offered.items() if (reason := self._refusal(entry, spec))}
        wanted = self._wanted(op)
        if wanted == "auto":
            # The reference comes last: others are there as they are quicker.
            whole = {name for name, entry in offered.items() if entry.derivatives >= self.derivatives and entry.auto}
            usable = sorted(whole - refused.keys(), key=lambda name: (name == "reference", name))
            wanted = usable[0] if usable else wanted
        return offered, refused, wanted

    def _note(self, op: str, chosen: str, refused: dict[str, str]) -> None:
        """A model has several of an operator: what is not the reference is named, and every reason."""
        known = self.report.get(op, {"chosen": chosen, "refused": {}})
        telling = max(chosen, known["chosen"], key=lambda name: (name not in PLAIN, name != NOTHING))
        self.report[op] = {"chosen": telling, "refused": {**refused, **known["refused"]}}

    def _wanted(self, op: str) -> str:
        """The kernel's name for an operator; in {operator: name} the contract's number may be left out."""
        if isinstance(self.request, str):
            return self.request
        known = {of for entry in self.kernels.values() for of in (entry.op, entry.op.split("/")[0])}
        if unknown := sorted(self.request.keys() - known):
            raise ConfigError(
                f"kernels: {', '.join(unknown)} is no operator. Expected some of "
                f"{', '.join(sorted(name for name in known if '/' not in name))}."
            )
        return self.request.get(op, self.request.get(op.split("/")[0], "auto"))

    def _refusal(self, entry: KernelEntry, spec: Any) -> str | None:
        if self.device.type not in entry.devices:
            return f"runs on {sorted(entry.devices)}, not on {self.device.type}"
        dtype = str(self.dtype).removeprefix("torch.")
        if dtype not in entry.dtypes:
            return f"computes in {sorted(entry.dtypes)}, not in {dtype}"
        reason: str | None = entry.refuses.load()(spec, self.dtype, self.device)
        return reason
