"""What an exported model reads: the tensors of a graph, in the order of its fields.

One signature serves all engines; they differ in the sizes and in the outputs that they ask for.
"""

from __future__ import annotations

from torch import Tensor

from nequip_core.graph import Graph


def prepare(graph: Graph) -> tuple[Tensor, ...]:
    """The input tensors of a graph, in the order of its fields.

    Contiguous, because a compiled model reads memory by the strides of its example and would be silently wrong.
    """
    return tuple(tensor.contiguous() for tensor in graph)
