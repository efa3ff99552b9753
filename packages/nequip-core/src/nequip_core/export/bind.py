"""A traced graph becomes one of the inputs alone: what follows from the weights is computed now, not in each call.

Scaled weights, tables in the model's dtype and the like were 22 of the 170 launches of a NequIP of three layers on a
GPU. Views are left to the graph, which gets them for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn


def bind(traced: fx.GraphModule, weights: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of the inputs that come after the weights.

    Args:
        traced: a graph of operators, whose first inputs are the weights.
        weights: their values; none of them gets a gradient.
    """
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    values: dict[fx.Node, Any] = {node: weight.detach() for node, weight in zip(placeholders, weights, strict=False)}
    with torch.no_grad():
        for node in traced.graph.nodes:
            if node.op == "get_attr":
                values[node] = getattr(traced, node.target)
            elif node.op == "call_function" and node.all_input_nodes and values.keys() >= set(node.all_input_nodes):
                arguments, options = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*arguments, **options)

    root, graph = nn.Module(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}

    def copied(node: fx.Node) -> fx.Node:
        """The node in the new graph: a constant, where it has a value that it owns."""
        if node not in copies:
            if isinstance(values.get(node), Tensor) and not _is_view(node):
                name = f"constant_{len(copies)}"
                root.register_buffer(name, values[node])
                copies[node] = graph.get_attr(name)
            else:
                copies[node] = graph.node_copy(node, copied)
        return copies[node]

    inputs = placeholders[len(weights) :]
    for node in inputs:  # used or not
        copies[node] = graph.node_copy(node)
    for node in traced.graph.nodes:
        if node.op == "output" or (node.op == "call_function" and node not in values):
            copied(node)
    return fx.GraphModule(root, graph)


def _is_view(node: fx.Node) -> bool:
    """Whether the operator gives memory of one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)
