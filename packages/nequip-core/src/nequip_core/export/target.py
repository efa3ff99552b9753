"""What an exported model reads and writes: the tensors of a graph, in the order of its fields; some of a prediction's.

One signature serves all engines; they differ in the sizes and in the outputs that they ask for.
"""

from __future__ import annotations

from typing import Any, get_type_hints

from torch import Tensor

from nequip_core.graph import Graph
from nequip_core.potential import Prediction

OUTPUTS = ("atomic_energy", "forces", "virial", "atomic_virial")
"""That an engine may ask for: fields of `nequip_core.potential.Prediction`."""


def prepare(graph: Graph) -> tuple[Tensor, ...]:
    """The input tensors of a graph, in the order of its fields.

    Contiguous, because a compiled model reads memory by the strides of its example and would be silently wrong.
    """
    return tuple(tensor.contiguous() for tensor in graph)


def inputs_of(example: Graph) -> list[dict[str, Any]]:
    """[{name, dtype, shape}] of the inputs; lengths that may change are words."""
    return [_describe(Graph, name, str(getattr(example, name).dtype)) for name in Graph._fields]


def outputs_of(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The same of the outputs, which are float64."""
    return [_describe(Prediction, name, "float64") for name in names]


def _describe(kind: type, name: str, dtype: str) -> dict[str, Any]:
    hint = get_type_hints(kind)[name]
    # An output that may be absent is annotated `Float[...] | None`.
    shape = next(part.dim_str for part in (hint, *getattr(hint, "__args__", ())) if hasattr(part, "dim_str"))
    lengths = [int(word) if word.isdigit() else word for word in shape.split()]
    return {"name": name, "dtype": dtype.removeprefix("torch."), "shape": lengths}
