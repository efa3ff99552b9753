"""``nequip benchmark``: what it measures belongs to other packages."""

from __future__ import annotations

import pytest
import torch

from nequip_core.cli import benchmark
from nequip_core.errors import InputError, PluginError


def test_kernels_need_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a CUDA device"):
        benchmark.run(["kernels", "--json", "out.json"])


def test_help_is_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.run(["kernels", "--help"])
    assert stopped.value.code == 0
    assert "--tune" in capsys.readouterr().out


def test_a_part_whose_package_is_missing_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = benchmark.PARTS["kernels"]._replace(module="nequip_absent.benchmark", distribution="nequip-absent")
    monkeypatch.setitem(benchmark.PARTS, "kernels", missing)
    with pytest.raises(PluginError, match="pip install nequip-absent"):
        benchmark.run(["kernels"])


def test_what_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.run(["nothing"])
    assert "kernels" in capsys.readouterr().err
