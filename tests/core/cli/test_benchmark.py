"""``nequip benchmark``: what it measures belongs to other packages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nequip_core.cli import benchmark
from nequip_core.errors import ArtifactError, InputError, PluginError
from nequip_core.plugins.records import Ref


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
    missing = benchmark.PARTS["kernels"]._replace(run=Ref("nequip_absent.benchmark:run"), distribution="nequip-absent")
    monkeypatch.setitem(benchmark.PARTS, "kernels", missing)
    with pytest.raises(PluginError, match="pip install nequip-absent"):
        benchmark.run(["kernels"])


def test_what_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.run(["nothing"])
    assert "kernels" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["inference", "training"])
def test_a_model_by_size(
    what: str, write_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package, out = (
        write_model(tmp_path / "model.nequip.zip", num_layers=1, l_max=1, num_features=4),
        tmp_path / "out.json",
    )
    options = [what, str(package), "--sizes", "8,30", "--seconds", "0", "--device", "cpu", "--json", str(out)]
    assert benchmark.run(options) == 0
    report = json.loads(out.read_text())
    assert [row["atoms"] for row in report["rows"]] == [8, 30]
    # 3.5 Å and 0.1 atoms/Å³: 18 neighbours.
    assert 10 < report["rows"][1]["edges"] / 30 < 26
    assert all(row["seconds"] > 0 for row in report["rows"])
    assert report["kernels"]["nequip.convolution/1"]["chosen"] == "reference"
    assert "nequip.convolution/1: reference" in capsys.readouterr().out


def test_sizes_are_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.run(["inference", "model.ckpt", "--sizes", "8,many"])
    assert "'8,many' is no list of numbers of atoms" in capsys.readouterr().err


def test_a_compiled_file_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    from nequip_core.cli import loading

    compiled = type("Compiled", (), {"potential": None, "path": "model.nequip.pt2"})()
    monkeypatch.setattr(loading, "load", lambda options, **how: compiled)
    with pytest.raises(ArtifactError, match="is compiled: it can not be trained"):
        benchmark.run(["training", "model.nequip.pt2"])
