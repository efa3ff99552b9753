"""Steps of training as CUDA graphs: what batches of the same sizes launch, one after the other, becomes one launch.

Sizes that come for the first time are launched, and recorded when they come again. What is recorded is a loss and its
gradients by the weights, which it writes to the same memory for all sizes. From there they are added to those of the
parameters: outside, since it depends on the micro-batches before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from nequip_core.errors import InputError
from nequip_core.recording import Record, Recording

LIMIT = 64
"""Recordings of a run; each takes some milliseconds, and memory for a batch."""

LARGEST = 100_000
"""Edges of a usual batch up to which steps are recorded where nobody says: larger ones do not wait for launches."""

Results = tuple[Tensor, Sequence[Tensor | None]]
"""A loss, and its gradient by each weight."""

Step = Callable[[Sequence[nn.Parameter], Sequence[Tensor]], Results]
"""Of weights and a batch."""

Check = Callable[[Sequence[Tensor], Results, Results], object]
"""Raises where what was recorded of a batch is not what was launched."""


class StepGraphs:
    """The losses and gradients of batches, by recordings where their sizes repeat.

    A recording reads the weights where they were. If one of them has moved since, or asks for a gradient no longer, all
    is recorded anew. Steps are launched while a weight has hooks of autograd, which recordings would not call.

    Args:
        step: what is recorded.
        weights: of the step.
        recorder: makes what records; its recordings share memory, and are dropped together.
        check: see `Check`; called after each recording.
        limit: of recordings.

    Attributes:
        recorded: how many recordings were made.
        replayed: losses that came from them.
        launched: losses that did not.
    """

    def __init__(
        self,
        step: Step,
        weights: Sequence[nn.Parameter],
        recorder: Callable[[], Record],
        check: Check,
        limit: int = LIMIT,
    ) -> None:
        self.step, self.weights, self.recorder, self.check, self.limit = step, weights, recorder, check, limit
        self.recorded = self.replayed = self.launched = 0
        self._seen: set[Hashable] = set()
        self._begin(self._places())

    def loss(self, sizes: Hashable, batch: Sequence[Tensor]) -> Tensor | None:
        """The loss of a batch, whose gradients are in `gradients` until the next call; None: it is to be launched.

        Args:
            sizes: all that the shapes of the batch depend on.
            batch: on the device.

        Raises:
            InputError: the step can not be recorded.
        """
        recording = None if any(_has_hooks(weight) for weight in self.weights) else self._recording(sizes, batch)
        if recording is None:
            self.launched += 1
            return None
        recording(batch)
        self.replayed += 1
        return self._value.clone()  # the next micro-batch overwrites it

    @property
    def gradients(self) -> list[Tensor | None]:
        """Of the last loss, by each weight."""
        return [found if number in self._used else None for number, found in enumerate(self._found)]

    def add_gradients(self) -> None:
        """Add `gradients` to those of the parameters."""
        added: list[Tensor] = []
        to: list[Tensor] = []
        first = []
        for number in self._used:
            gradient = self.weights[number].grad
            if gradient is None:
                first.append(number)
            else:
                to.append(gradient)
                added.append(self._found[number])
        if to:
            torch._foreach_add_(to, added)
        if first:
            torch._foreach_copy_([self._given[number] for number in first], [self._found[number] for number in first])
            for number in first:
                self.weights[number].grad = self._given[number]

    def _recording(self, sizes: Hashable, batch: Sequence[Tensor]) -> Recording | None:
        places = self._places()
        if places != self._as_recorded:
            self._begin(places)
        if sizes not in self._recordings and sizes in self._seen and self.recorded < self.limit:
            self._recordings[sizes] = self._record(sizes, batch)
        self._seen.add(sizes)
        return self._recordings.get(sizes)

    def _places(self) -> list[tuple[int, bool]]:
        return [(weight.data_ptr(), weight.requires_grad) for weight in self.weights]

    def _begin(self, places: list[tuple[int, bool]]) -> None:
        """Without recordings."""
        self._as_recorded = places
        self._recordings: dict[Hashable, Recording] = {}
        self._new_recording = self.recorder()
        # Others than the parameters: autograd keeps the stream on which it first met a parameter, which is not that of
        # recordings.
        self._leaves = [nn.Parameter(weight.detach(), weight.requires_grad) for weight in self.weights]
        self._found = [torch.zeros_like(weight) for weight in self._leaves]
        self._given = [torch.zeros_like(weight) for weight in self._leaves]
        self._used: list[int] = []
        self._value = torch.zeros((), dtype=torch.float64, device=self._leaves[0].device)

    def _record(self, sizes: Hashable, batch: Sequence[Tensor]) -> Recording:
        loss, gradients = self.step(self.weights, batch)  # before, so that both need not have memory at a time
        loss = loss.detach()
        try:
            recording = self._new_recording(self._write, batch)
        except RuntimeError as error:
            raise InputError(
                f"The training step of {sizes} can not be recorded as a CUDA graph: {error}\nRecordings take as much "
                "memory again as a step that is launched. To go on, train with training.cuda_graphs=false."
            ) from error
        self.recorded += 1
        recording(batch)
        self.check(batch, (self._value, self.gradients), (loss, gradients))
        return recording

    def _write(self, batch: Sequence[Tensor]) -> Sequence[Tensor]:
        """What is recorded."""
        loss, gradients = self.step(self._leaves, batch)
        found = {number: gradient for number, gradient in enumerate(gradients) if gradient is not None}
        self._used = [*found]
        self._value.copy_(loss.detach())
        torch._foreach_copy_([self._found[number] for number in found], [*found.values()])
        return [self._value, *self._found]


def _has_hooks(weight: nn.Parameter) -> bool:
    return bool(weight._backward_hooks or weight._post_accumulate_grad_hooks)
