from __future__ import annotations

import torch

from nequip_core.export.target import prepare
from nequip_core.graph import Graph
from nequip_core.plugins.core import nequip_export_targets


def test_inputs_are_named_in_order_and_contiguous():
    graph = Graph(*(torch.full((3, 2), float(n)).T for n in range(len(Graph._fields))))
    tensors = prepare(graph)
    assert all(tensor.is_contiguous() for tensor in tensors)
    for entry in nequip_export_targets():
        given = dict(zip(entry.inputs, tensors, strict=True))
        assert all(torch.equal(given[name], getattr(graph, name)) for name in Graph._fields)
