"""The average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nequip_core.training.ema import EMA


@pytest.fixture
def module() -> nn.Module:
    made = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1).double())
    made[0].bias.requires_grad_(False)
    return made


def test_it_follows_the_formula(module: nn.Module) -> None:
    ema = EMA(module, 0.3)
    assert ema.names == ("0.weight", "1.weight", "1.bias")
    expected = [p.detach().clone() for p in ema.parameters]
    for n in range(1, 8):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update()
        decay = min(0.3, (1 + n) / (10 + n))
        expected = [decay * a + (1 - decay) * p.detach() for a, p in zip(expected, ema.parameters, strict=True)]
    assert decay == 0.3
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(ema.average, expected, strict=True))


def test_the_average_is_inside_the_block_only(module: nn.Module) -> None:
    ema = EMA(module, 0.9)
    parameters = list(module.parameters())
    with torch.no_grad():
        parameters[0].fill_(5.0)
    average = ema.average[0].clone()
    with ema.averaged():
        assert torch.equal(module[0].weight, average)  # type: ignore[index]
        assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    assert (parameters[0] == 5.0).all()
    with pytest.raises(RuntimeError, match="inside"), ema.averaged():
        raise RuntimeError("inside")
    assert (parameters[0] == 5.0).all()


def test_state_round_trip(module: nn.Module) -> None:
    ema, other = EMA(module, 0.9), EMA(module, 0.9)
    with torch.no_grad():
        module[0].weight.fill_(2.0)  # type: ignore[index]
    ema.update()
    state = ema.state_dict()
    other.load_state_dict({**state, "average": {**state["average"], "a buffer": torch.zeros(1)}})
    assert other.updates == 1
    assert all(torch.equal(a, b) for a, b in zip(ema.average, other.average, strict=True))
    assert other.average[0].data_ptr() != ema.average[0].data_ptr()
