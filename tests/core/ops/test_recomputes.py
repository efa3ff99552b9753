"""When a model takes the operator that makes weights of edges again: a rule of sizes, and of what is installed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from nequip_core.errors import ConfigError
from nequip_core.o3 import SCALAR, Irreps
from nequip_core.ops.contracts import LARGEST_WEIGHTS, ConvolutionSpec, RadialConvolutionSpec
from nequip_core.ops.select import Ops
from nequip_core.plugins.records import KernelEntry, Ref

OP = "nequip.radial_convolution/1"
SPEC = RadialConvolutionSpec(ConvolutionSpec(Irreps([(SCALAR, 4)]), 0, True, (SCALAR,)), 3)
WEIGHTS = 100
EDGES = LARGEST_WEIGHTS / 4 / WEIGHTS
"""Whose float32 weights are just stored."""


def entry(name: str, device: str = "cpu") -> KernelEntry:
    return KernelEntry(
        name=name,
        op=OP,
        make=Ref("nequip_core.ops.reference:make_radial_convolution"),
        refuses=Ref("nequip_core.ops.reference:refuses"),
        devices=frozenset({device}),
        dtypes=frozenset({"float32", "float64"}),
        derivatives=2,
        exportable=True,
    )


REFERENCE, OURS, ELSEWHERE = entry("reference"), entry("ours"), entry("elsewhere", "cuda")


def recomputes(edges: float, *entries: KernelEntry, request: str | Mapping[str, str] = "auto", **options: Any) -> bool:
    ops = Ops({f"{OP}/{one.name}": one for one in entries}, request=request, edges=edges, **options)
    return ops.recomputes(OP, SPEC, WEIGHTS)


@pytest.mark.parametrize(
    ("edges", "dtype", "expected"),
    [
        (0, torch.float32, False),
        (EDGES, torch.float32, False),
        (EDGES + 1, torch.float32, True),
        (EDGES / 2 + 1, torch.float64, True),
        (math.inf, torch.float32, True),
    ],
)
def test_by_size(edges: float, dtype: torch.dtype, expected: bool) -> None:
    assert recomputes(edges, REFERENCE, OURS, dtype=dtype) is expected


@pytest.mark.parametrize(
    ("entries", "request_"),
    [
        ((REFERENCE,), "auto"),
        ((REFERENCE, ELSEWHERE), "auto"),
        ((REFERENCE, OURS), "reference"),
        ((REFERENCE, OURS), "another"),  # which serves the convolution
    ],
)
def test_where_nothing_serves_weights_are_stored(entries: tuple[KernelEntry, ...], request_: str) -> None:
    assert not recomputes(2 * EDGES, *entries, request=request_)
    with pytest.raises(ConfigError, match=r"^training\.recompute_weights is true, but no kernel serves") as error:
        recomputes(math.inf, *entries, request=request_)
    if ELSEWHERE in entries:
        assert "'elsewhere': \"runs on ['cuda'], not on cpu\"" in str(error.value)


def test_auto_needs_what_training_needs() -> None:
    """Forces are a derivative, and their loss has one by the weights."""
    once = replace(OURS, derivatives=1)
    assert not recomputes(2 * EDGES, REFERENCE, once)
    assert not recomputes(2 * EDGES, REFERENCE, once, request="ours")
    assert recomputes(2 * EDGES, REFERENCE, once, derivatives=1)
    assert recomputes(0, REFERENCE, once, request={OP: "ours"})


def test_auto_takes_nothing_that_wants_to_be_named() -> None:
    shy = replace(OURS, auto=False)
    assert not recomputes(2 * EDGES, REFERENCE, shy)
    assert not recomputes(2 * EDGES, REFERENCE, shy, request="ours")  # a name for all operators
    assert recomputes(0, REFERENCE, shy, request={OP: "ours"})


def test_names_are_those_of_operators() -> None:
    with pytest.raises(ConfigError, match=r"kernels: nequip\.convolutoin is no operator\. Expected some of nequip\."):
        recomputes(0, REFERENCE, OURS, request={"nequip.convolutoin": "ours"})


def test_who_names_a_kernel_gets_it() -> None:
    assert recomputes(0, REFERENCE, OURS, request={OP: "ours"})
    assert recomputes(0, REFERENCE, OURS, request={"nequip.radial_convolution": "ours"})
    stored = replace(OURS, op="nequip.convolution/1")
    assert not Ops({"one": OURS, "other": stored}, request={"nequip.convolution": "ours"}).recomputes(OP, SPEC, WEIGHTS)
    assert not recomputes(0, REFERENCE, OURS, request="ours")  # it is the whole model's
