"""The launches of a function on a CUDA device, recorded once and repeated as one (a CUDA graph).

A small step waits for its launches: the host takes five microseconds for each, the device often less. Recorded, some
two hundred of them are one launch. What is repeated is exactly what was recorded: the same kernels, the same sizes, the
same memory. So inputs are copied to where they were, and outputs are overwritten by the next repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


Record = Callable[[Function, Sequence[Tensor]], Recording]
"""What `Recorder` does with a function and its inputs."""
