"""The benchmark's cases, floors and table of tuned blocks; times are made up, for want of a GPU."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nequip_core.o3 import Irrep
from nequip_core.ops.contracts import ContractionSpec
from nequip_kernels import benchmark, blocks, floors
from nequip_kernels.benchmark import CANDIDATES, Machine
from nequip_kernels.blocks import Block
from nequip_kernels.contraction.table import Table
from nequip_kernels.launch import Functions

PLAIN = tuple(Irrep(degree, (-1) ** degree) for degree in range(3))


def test_the_floor_is_what_must_be_moved() -> None:
    """Of l_max 2: 9 numbers of features and result, 3 weights; what atoms and channels share counts once."""
    atoms, edges, channels = 10, 1000, 64
    found = floors.of_contraction(ContractionSpec(PLAIN, PLAIN, 2, channels, True, False), atoms, edges, 4)
    assert found["forward"].bytes == 4 * (edges * channels * (9 + 3 + 9) + 9 * edges + 9 * atoms * channels)
    assert found["backward"].bytes == 4 * (edges * channels * (18 + 9 + 6) + 18 * edges + 18 * atoms * channels)
    assert found["double_backward"].bytes == 4 * (edges * channels * (27 + 18 + 9) + 27 * edges + 27 * atoms * channels)
    assert found["forward"].operations == 3 * 83 * edges * channels
    factors = floors.of_contraction(ContractionSpec(PLAIN, PLAIN, 2, channels, True, True), atoms, edges, 4)
    assert found["forward"].bytes - factors["forward"].bytes == 4 * edges * channels * 6
    # With scalars apart, one number more for each of the result and its gradient.
    apart = floors.of_contraction(ContractionSpec(PLAIN, PLAIN, 2, channels, True, False, True), atoms, edges, 4)
    more = {name: (apart[name].bytes - found[name].bytes) / (4 * edges * channels) for name in found}
    assert more == {"forward": 1, "backward": 1, "double_backward": 2, "by_weights": 1, "double_by_weights": 1}
    assert found["forward"].seconds(bandwidth=1e12, rate=1e30) == found["forward"].bytes / 1e12
    assert found["forward"].seconds(bandwidth=1e30, rate=1e12) == found["forward"].operations / 1e12


def test_every_case_has_a_path_to_each_result() -> None:
    names = [case.name for case in benchmark.cases(8)]
    assert len(names) == len(set(names)) == 41
    for case in benchmark.cases(8):
        if isinstance(case.spec, ContractionSpec):
            assert all(paths for _, paths in Table(case.spec, 1).by_output())


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that calls nothing, where each call takes less time than the one before."""
    times = iter(range(10**6, 0, -1))
    monkeypatch.setenv("NEQUIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(benchmark, "measure_machine", lambda device: Machine("made up", "sm_99", 1e12, 1e13, 1e14))
    monkeypatch.setattr(benchmark, "seconds", lambda call, repeats=0: float(next(times)))
    monkeypatch.setattr(benchmark, "to", lambda graph, device: graph)
    monkeypatch.setattr(benchmark, "compile_ahead", lambda *args: None)
    blocks.rows.cache_clear()


def test_figures_and_tuned_blocks(made_up: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    options = ["--only", "l1 middle", "--atoms", "3", "--edges-per-atom", "4", "--tune", "--json", str(out)]
    assert benchmark.run(options) == 0
    report = json.loads(out.read_text())
    assert [(one["case"], one["kernel"]) for one in report["kernels"]][:2] == [
        ("allegro l1 middle", "forward"),
        ("allegro l1 middle", "backward"),
    ]
    assert len(report["kernels"]) == 10
    # The last candidate that 64 channels have room for took the least time.
    last = [list(block) for block in CANDIDATES if block.channels <= 64][-1]
    assert all(one["block"] == last for one in report["kernels"])
    assert "of floor" in capsys.readouterr().out
    try:
        chosen = blocks.choose("sm_99", "allegro.contract/1", "forward", torch.float32, 10, 64)
        assert list(chosen) == last
        assert blocks.choose("sm_90", "allegro.contract/1", "forward", torch.float32, 10, 64) != chosen
    finally:
        blocks.rows.cache_clear()
    lines = blocks.tuned_file().read_text()
    assert benchmark.run(options) == 0
    assert blocks.tuned_file().read_text() == lines


def test_all_that_tuning_tries_is_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions that note their constants in the place of Triton's; tensors have no memory."""
    seen: list[tuple[str, tuple[Any, ...], dict[str, int]]] = []

    class Noting:
        def __getattr__(self, name: str) -> Any:
            return SimpleNamespace(warmup=lambda *args, grid, **constants: seen.append((name, args, constants)))

    class Here(contextlib.nullcontext[Any]):
        """A pool of this process."""

        def __init__(self, workers: int, context: Any) -> None:
            assert workers > 0
            super().__init__(self)

        map = staticmethod(map)

    monkeypatch.setattr(Functions, "module", Noting())
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", Here)
    chosen = [
        case for case in benchmark.cases(64) if case.name in ("allegro l1 first", "nequip l1 middle", "mlp latent")
    ]
    benchmark.compile_ahead(chosen, 64, 48, 5, torch.float32)
    fits = {block for block in CANDIDATES if block.channels <= 64}
    assert len(fits) > 20
    for name in ("contract_forward", "contract_double_by_weights", "convolve_backward_0", "convolve_backward_1"):
        blocks_of = [(one["BU"], one["BE"], one["num_warps"], one["STAGES"]) for at, _, one in seen if at == name]
        assert len(blocks_of) == len(set(blocks_of)) >= len(fits)
        assert {Block(*one) for one in blocks_of} >= fits
    by_weights = [args for name, args, _ in seen if name == "contract_by_weights"]
    assert all(args[-1] == 48 for args in by_weights)  # whole numbers as they will be
    assert all(args[0] is torch.float32 and args[-2] is torch.int64 for args in by_weights)
    assert len([name for name, _, _ in seen if name == "mlp_backward_and_add"]) == len(benchmark.OF_NETWORKS)
