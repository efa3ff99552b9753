"""``training.compile=true``: the losses of eager, and resumed bit for bit. Compiles a training step (a minute)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nequip_core.cli.running import untested_torch

DEMO = Path(__file__).parents[3] / "examples" / "demo" / "molecules.xyz.xz"

CONFIG = """\
defaults: [base, {{model: nequip}}, _self_]
loggers: [csv]
data: {{path: {data}, index: "0:40", split: {{train: 24, val: 6}}, batch: {{size: 5, max_edges: 400}}}}
model: {{cutoff: 3.5, num_layers: 1, l_max: 1, num_features: 4, radial_mlp: [8], dtype: float64}}
training: {{optimizer: {{lr: 0.005}}, ema_decay: 0.99, gradient_clip: 5.0, compile_check_every: 4}}
trainer: {{log_every_n_steps: 1, enable_progress_bar: false, accelerator: cpu}}
"""


def rows(folder: Path, file: str) -> list[dict[str, Any]]:
    with (folder / file).open() as lines:
        return [{k: float(v) for k, v in row.items() if v and k not in UNEQUAL} for row in csv.DictReader(lines)]


UNEQUAL = ("time_s", "step_s", "data_wait")


def test_compiled_training(tmp_path: Path, nequip: Callable[..., Any]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(data=DEMO))

    def train(name: str, epochs: int, *more: str) -> Path:
        torch._dynamo.reset()
        done = nequip("train", config, f"run.dir={tmp_path / name}", f"trainer.max_epochs={epochs}", *more)
        assert done.code == 0, done.err
        return tmp_path / name

    eager = train("eager", 4, "training.compile_check_every=0")
    compiled = train("compiled", 4, "training.compile=true")
    for file in ("metrics.csv", "steps.csv"):
        ours, theirs = rows(compiled, file), rows(eager, file)
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs, strict=True):
            assert one == pytest.approx(other, rel=1e-9)
    report = json.loads((compiled / "run.json").read_text())["compile"]
    for part in (report, report["validation"]):
        assert (part["graphs"], part["breaks"], part["recompiles"]) == (1, 0, 0)
        assert part["trace_s"] > 0
        assert part["inductor_s"] > 0
        assert part["deviation"] < 1e-9
    assert report["cuda_graphs"] is None
    assert json.loads((eager / "run.json").read_text())["compile"] is None
    assert "gradients deviate from eager by" in (compiled / "log.txt").read_text()

    resumed = train("resumed", 2, "training.compile=true")
    resumed = train("resumed", 4, "training.compile=true")
    assert rows(resumed, "metrics.csv") == rows(compiled, "metrics.csv")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (("training.matmul_precision=bf16",), "training.matmul_precision is bf16, which needs training.compile=true"),
        (("training.matmul_precision=bf16", "training.compile=true"), "but model.dtype is float64"),
        (
            ("training.matmul_precision=tf32", "training.compile=true", "model.dtype=float32"),
            "training.matmul_precision is tf32, which only CUDA devices have",
        ),
        (("training.matmul_precision=fp8",), "float32 | tf32 | bf16"),
        (("training.compile_check_every=-1",), "a whole number of at least 0"),
        ((), "training.compile_check_every needs training.compile=true"),
        (("training.cuda_graphs=true",), "training.cuda_graphs is true, which needs training.compile=true"),
        (("training.cuda_graphs=true", "training.compile=true"), "this run is on the CPU, where there are none"),
        (("training.cuda_graphs=never",), "auto | true | false"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, nequip: Callable[..., Any], override: tuple[str, ...], said: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(data=DEMO))
    done = nequip("train", config, f"run.dir={tmp_path / 'run'}", *override)
    assert done.code == 2
    assert said in done.err


@pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cpu", "2.14.1"])
def test_tested_versions_of_torch(version: str) -> None:
    assert untested_torch(version) is None


@pytest.mark.parametrize("version", ["2.10.1", "2.15.0", "3.0.0a0+git1234"])
def test_untested_versions_of_torch_are_told(version: str) -> None:
    assert f"torch {version} is not among the versions that are tested, 2.11 to 2.14" in str(untested_torch(version))
