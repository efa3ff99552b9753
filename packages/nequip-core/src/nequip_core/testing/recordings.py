"""What records steps where there is no GPU: the function again, on the memory that was there when it was recorded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nequip_core.recording import Function, Recording


class Repeating:
    """In place of `nequip_core.recording.Recorder`.

    Attributes:
        names: of the functions.
        repeats: how often each was repeated.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.repeats: list[int] = []

    @property
    def recorded(self) -> int:
        """Steps of `nequip_core.recorded_steps`, each of which has a function that is its model."""
        return self.names.count("predict")

    @property
    def repeated(self) -> int:
        """How often they were repeated."""
        return self._of("predict")

    @property
    def listed(self) -> int:
        """How often a recorded list was repeated."""
        return self._of("list_neighbors")

    def _of(self, name: str) -> int:
        return sum(repeats for of, repeats in zip(self.names, self.repeats, strict=True) if of == name)

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Recording:
        """Inputs are read, and outputs written, where they were."""
        number = len(self.repeats)
        self.names.append(function.__name__)
        self.repeats.append(0)
        inputs = [tensor.clone() for tensor in inputs]
        outputs = [tensor.clone() for tensor in function(inputs)]

        def repeat() -> None:
            self.repeats[number] += 1
            for output, now in zip(outputs, function(inputs), strict=True):
                output.copy_(now)

        return Recording(inputs, outputs, repeat)
