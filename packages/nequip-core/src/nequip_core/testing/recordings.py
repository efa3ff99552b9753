"""What records steps where there is no GPU: the function again, on the memory that was there when it was recorded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nequip_core.recording import Function, Recording


class Repeating:
    """In place of `nequip_core.recording.Recorder`.

    Attributes:
        repeats: how often each function was repeated.
    """

    def __init__(self) -> None:
        self.repeats: list[int] = []

    @property
    def recorded(self) -> int:
        """Steps of `nequip_core.recorded_steps`, each of which is two functions: its graph and its model."""
        return len(self.repeats) // 2

    @property
    def repeated(self) -> int:
        """How often they were repeated."""
        return sum(self.repeats[1::2])

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Recording:
        """Inputs are read, and outputs written, where they were."""
        number = len(self.repeats)
        self.repeats.append(0)
        inputs = [tensor.clone() for tensor in inputs]
        outputs = [tensor.clone() for tensor in function(inputs)]

        def repeat() -> None:
            self.repeats[number] += 1
            for output, now in zip(outputs, function(inputs), strict=True):
                output.copy_(now)

        return Recording(inputs, outputs, repeat)
