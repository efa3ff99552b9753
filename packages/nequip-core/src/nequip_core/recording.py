"""The launches of a function on a CUDA device, recorded once and repeated as one (a CUDA graph).

A small step waits for its launches: the host takes five microseconds for each, the device often less. Recorded, some
two hundred of them are one launch. What is repeated is exactly what was recorded: the same kernels, the same sizes, the
same memory. So inputs are copied to where they were, and outputs are overwritten by the next repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Of tensors of fixed shapes on one device; never waits for it."""


class Recorder:
    """Records functions on a device. All its recordings share memory, so that none runs while another does.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Recording:
        """Run the function once, which makes what it needs only once, then record it.

        Raises:
            torch.OutOfMemoryError: there is no memory for it.
            RuntimeError: the function can not be recorded, since it waits for the device, for instance.
        """
        inputs = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                function(inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            try:
                # Other threads may take pinned memory meanwhile, as those that load data do.
                with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                    outputs = [*function(inputs)]
            except RuntimeError as error:
                # What ended the capture, and not that it could not be ended as it should.
                if error.__context__ is None:
                    raise
                raise error.__context__ from None
        return Recording(inputs, outputs, graph.replay)


class Recording:
    """One function that was recorded.

    Attributes:
        inputs: what a repetition reads.
        outputs: what it writes.
    """

    def __init__(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], repeat: Callable[[], None]) -> None:
        self.inputs, self.outputs, self.repeat = [*inputs], [*outputs], repeat
        dtypes = [tensor.dtype for tensor in inputs]
        self._by_dtype = [[n for n, one in enumerate(dtypes) if one is dtype] for dtype in dict.fromkeys(dtypes)]

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs for other inputs of the same shapes; they are there until the next repetition."""
        for numbers in self._by_dtype:  # of one dtype it is one launch
            torch._foreach_copy_([self.inputs[n] for n in numbers], [inputs[n] for n in numbers])
        self.repeat()
        return self.outputs


class Told:
    """Numbers on their way to the host, which waits for them and not for what the device was given afterwards.

    Args:
        device: whose they are.
    """

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event() if device.type == "cuda" else None
        self._there = torch.empty(0)

    def tell(self, numbers: Tensor) -> None:
        """These, in place of any before; on the current stream of their device, which need not be the current one."""
        if self.event is None:
            self._there = numbers.clone()
            return
        if self._there.shape != numbers.shape or self._there.dtype is not numbers.dtype:
            self._there = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        self._there.copy_(numbers, non_blocking=True)
        self.event.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[Any]:
        """They are waited for."""
        if self.event is not None:
            self.event.synchronize()
        numbers: list[Any] = self._there.tolist()
        return numbers


Record = Callable[[Function, Sequence[Tensor]], Recording]
"""What `Recorder` does with a function and its inputs."""
