"""Convolutions with weights from a table on a CUDA device: the reference's numbers, models, and compiled files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.kernels.tables import check, spec_of
from torch.profiler import ProfilerActivity, profile

from nequip_core.cli.main import main
from nequip_core.export.artifact import load_model
from nequip_core.export.compiled import read_metadata
from nequip_core.graph import to
from nequip_core.ops.contracts import NEQUIP_TABULATED_CONVOLUTION
from nequip_core.tracing import Sizes, sample_graph

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
LENGTHS = (86, 0, 71, 130, 99, 1, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("l_max", "channels", "parity"), [(1, 24, True), (2, 64, False), (3, 32, False)])
def test_the_reference(l_max: int, channels: int, parity: bool, dtype: torch.dtype) -> None:
    spec = spec_of(l_max, channels, parity=parity, intervals=1024)
    check(spec, dtype, CUDA, atoms=24, lengths=LENGTHS)


def test_a_compiled_file(tmp_path: Path) -> None:
    """Forces are those of the file with stored weights; the kernel runs, and nothing is as wide as the weights."""
    golden = Path(__file__).parents[1] / "golden" / "published" / "nequip-0.16-checkpoint"
    package = tmp_path / "model.nequip.zip"
    assert main(["convert", str(golden / "last.ckpt"), str(package)]) == 0
    found = []
    for number, kernels in enumerate(("nequip.tabulated_convolution=none", "auto")):
        out = tmp_path / f"{number}.nequip.pt2"
        command = ["compile", str(package), str(out), "--target", "ase", "--device", "cuda", "--kernels", kernels]
        assert main([*command, "--dtype", "float32"]) == 0
        assert (NEQUIP_TABULATED_CONVOLUTION in read_metadata(out).kernels) is (number == 1)
        model = load_model(out, device="cuda")
        graph = to(sample_graph(model.info, Sizes(1, 50, 900)), CUDA)
        model.potential(graph)
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
            found.append(model.potential(graph).forces)
            torch.cuda.synchronize()
        assert any(event.name.startswith("tabulated_forward") for event in seen.events()) is (number == 1)
    assert float((found[1] - found[0]).abs().max() / found[0].abs().max()) < 2e-5
