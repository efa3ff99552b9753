"""What records steps where there is no GPU: the function again, on the memory that was there when it was recorded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nequip_core.recording import Function, Recording


class Repeating:
    """In place of `nequip_core.recording.Recorder`.

    Attributes:
        recorded: how many functions.
        repeated: how often they were repeated.
    """

    def __init__(self) -> None:
        self.recorded = self.repeated = 0

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Recording:
        """Inputs are read, and outputs written, where they were."""
        self.recorded += 1
        inputs = [tensor.clone() for tensor in inputs]
        outputs = [tensor.clone() for tensor in function(inputs)]

        def repeat() -> None:
            self.repeated += 1
            for output, now in zip(outputs, function(inputs), strict=True):
                output.copy_(now)

        return Recording(inputs, outputs, repeat)
