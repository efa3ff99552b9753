"""Differences of packages are found, all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from nequip_core.export.difference import ABSENT, difference, is_empty
from nequip_core.export.package import Members

Make = Callable[..., Members]


def test_a_package_and_itself(packaged: Make) -> None:
    members = packaged()
    assert is_empty(difference(members, members))
    assert difference(members, members)["same_model"]


def test_json_members(packaged: Make) -> None:
    a = packaged()
    b = replace(
        a,
        model=a.model | {"l_max": 3, "elements": {"H": "H"}},
        data={"n_structures": {"train": 5}},
        metrics={"val_loss": 1.0},
        manifest=a.manifest | {"licence": "MIT", "model_hash": "0"},
    )
    found = difference(a, b)
    assert not found["same_model"]
    assert found["model"] == {"l_max": [2, 3], "elements.H": [ABSENT, "H"]}
    assert found["data"] == {"n_structures.train": [ABSENT, 5]}
    assert found["metrics"] == {"val_loss": [ABSENT, 1.0]}
    assert found["manifest"] == {"licence": [None, "MIT"]}
    assert found["weights"] == {}
    for name in ("model", "data", "metrics", "manifest"):
        assert not is_empty(difference(a, replace(a, **{name: getattr(b, name)})))


def test_weights(packaged: Make) -> None:
    a = packaged()
    name, gone = "architecture.layers.0.linear_out.weights.0e", "architecture.layers.0.linear_out.weights.1o"
    others = {key: tensor for key, tensor in a.weights.items() if key != gone}
    others |= {name: 1.5 * a.weights[name], "scale": a.weights["scale"].float(), "new": torch.zeros(2)}
    found = difference(a, replace(a, weights=others))["weights"]
    assert found[name]["relative"] == pytest.approx(0.5)
    assert found[name]["largest"] == pytest.approx(0.5 * float(a.weights[name].abs().max()))
    assert found["scale"] == {"kind": ["float64 [2]", "float32 [2]"]}
    assert found[gone]["kind"][1] == ABSENT
    assert found["new"] == {"kind": [ABSENT, "float32 [2]"]}
    assert len(found) == 4
    zero = difference(replace(a, weights={"a": torch.zeros(2)}), replace(a, weights={"a": torch.ones(2)}))
    assert zero["weights"] == {"a": {"largest": 1.0, "relative": None}}
