"""Code that only launches a GPU's kernels asks for no vector instructions; the processor's own has them as before."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
import torch
import torch._inductor.config as inductor_config
from torch import Tensor
from torch._inductor import cpu_vec_isa
from torch._inductor.cpu_vec_isa import VecISA, pick_vec_isa

from nequip_core.launching import OPTIONS, launching
from nequip_core.training.compiled import ON_CUDA

GPU = torch.device("cuda")


@pytest.fixture
def asking_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if nothing had been asked yet."""
    with launching(GPU):  # forgets
        pass

    def check_build(self: VecISA, code: str) -> NoReturn:
        pytest.fail(f"Inductor asks for {self}.")

    monkeypatch.setattr(VecISA, "check_build", check_build)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("asking_fails")
def test_launching_code_asks_nothing() -> None:
    """As training compiles for CUDA, but for the device."""
    assert ON_CUDA.items() >= OPTIONS.items()

    def function(x: Tensor) -> Tensor:
        return x.sin() + 1

    x = torch.linspace(0, 1, 97)
    with launching(GPU):
        found = torch.compile(function, fullgraph=True, options=ON_CUDA)(x)
    assert torch.allclose(found, function(x))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_processors_own_code_has_its_instructions_afterwards(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with launching(GPU):  # forgets
        pass
    asked: list[VecISA] = []

    def check_build(self: VecISA, code: str) -> bool:
        asked.append(self)
        return True

    monkeypatch.setattr(VecISA, "check_build", check_build)
    before = pick_vec_isa()
    if before is cpu_vec_isa.invalid_vec_isa:
        pytest.skip("this processor has none that Inductor knows")
    with launching(GPU):  # forgets
        pass
    with launching(torch.device(device)), inductor_config.patch(OPTIONS if device == "cuda" else {}):
        assert (pick_vec_isa() is cpu_vec_isa.invalid_vec_isa) is (device == "cuda")
    number = len(asked)
    assert pick_vec_isa() is before
    assert (len(asked) > number) is (device == "cuda")  # a CPU's answers are not asked for twice
    with launching(GPU):  # forgets what was made up here
        pass
