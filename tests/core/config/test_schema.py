"""The schema: every key is described, and each rule belongs to a key."""

from __future__ import annotations

import pytest

from nequip_core.config.schema import MOVED, RULES, Config, described
from nequip_core.models.nequip import NequIPConfig

KEYS = {**dict(described(Config)), **{f"model.{name}": item for name, item in described(NequIPConfig)}}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_a_description(key: str) -> None:
    metadata = KEYS[key].metadata
    assert metadata["text"]
    assert "unit" in metadata


def test_rules_are_of_keys() -> None:
    assert set(RULES) <= set(KEYS)


def test_moved_keys_are_not_ours() -> None:
    assert not set(MOVED) & set(KEYS)
    assert {"precision", "logger", "callbacks", "default_root_dir", "inference_mode"} <= {
        name.removeprefix("trainer.") for name in MOVED
    }


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("data.split.train", [0, 60, 0.5, "rest"], [1.0, -1, True, "all", None]),
        ("data.index", [":", "-1", "0:10", "::2", "-5:"], ["", "a", "1,2", "::0", "1:2:3:4"]),
        ("data.path", ["a.xyz", ["a.xyz", "b.xyz"]], [[], [1], 3, ""]),
        ("model.types", ["auto", ["H", "O"]], ["H", [], {"H": 1}]),
        ("model.atomic_energies", ["zero", {"H": -13.6}], [3.0, "none", {"H": "x"}]),
        ("model.energy_scale", ["forces_rms", 2.0, {"H": 1.0}], ["rms", [1.0]]),
        ("model.pair_cutoffs", [{}, {"H": {"O": 3.0}}], [{"H": 3.0}, {"H": {"O": -1.0}}]),
        ("training.ema_decay", [None, 0.99], [0.0, 1.0]),
        ("trainer.max_time", [None, "00:08:00:00"], ["3h", "8:00"]),
        ("trainer.limit_train_batches", [1, 1.0, 0.1], [0, 0.0, 2.0, True]),
        ("run.dir", ["runs/a"], ["runs/${now:%Y}", "${hydra.job.name}"]),
    ],
)
def test_rules(key: str, good: list[object], bad: list[object]) -> None:
    rule = RULES[key]
    assert [value for value in good if not rule.accepts(value)] == []
    assert [value for value in bad if rule.accepts(value)] == []
