"""The makers give torch's classes; every one of them can be registered, stepped and resumed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from nequip_core.plugins.manager import load_registry
from nequip_core.training import optimizers

ARGUMENTS: dict[str, dict[str, Any]] = {"cosine": {"T_max": 10}, "step": {"step_size": 2}}


@pytest.mark.parametrize(("name", "kind"), [("adam", Adam), ("adamw", AdamW), ("sgd", SGD)])
def test_optimizers_of_the_registry(name: str, kind: type) -> None:
    make = load_registry().training["optimizer", name].make.load()
    parameter = nn.Parameter(torch.ones(2))
    optimizer = make([parameter, nn.Parameter(torch.ones(1, dtype=torch.float64))], lr=0.1)
    assert type(optimizer) is kind
    assert optimizer.defaults["fused"]
    parameter.sum().backward()
    optimizer.step()
    assert (parameter < 1).all()


@pytest.mark.parametrize("name", ["none", "plateau", "cosine", "step"])
def test_schedulers_of_the_registry(name: str) -> None:
    make = load_registry().training["scheduler", name].make.load()
    parameter = nn.Parameter(torch.ones(2))
    optimizer = optimizers.sgd([parameter], lr=0.1)
    scheduler = make(optimizer, **ARGUMENTS.get(name, {}))
    for _ in range(20):
        parameter.sum().backward()
        optimizer.step()
        scheduler.step(*([1.0] if name == "plateau" else []))
    rate = optimizer.param_groups[0]["lr"]
    # The cosine is back at its top after two times T_max.
    assert (rate == pytest.approx(0.1, rel=1e-12)) is (name in ("none", "cosine"))


def test_amsgrad_is_passed_on() -> None:
    made = optimizers.adam([nn.Parameter(torch.ones(1))], 0.1, amsgrad=True, betas=[0.8, 0.9])
    assert made.defaults["amsgrad"]
    assert made.defaults["betas"] == (0.8, 0.9)
