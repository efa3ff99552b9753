"""Splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nequip_core.data.split import Splits, split
from nequip_core.errors import InputError


def sizes(frames: int, **shares: Any) -> tuple[int, int, int]:
    result = split(frames, shares)
    numbers = [n for part in result for n in part]
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) <= set(range(frames))
    return len(result.train), len(result.val), len(result.test)


@pytest.mark.parametrize(
    ("frames", "shares", "expected"),
    [
        (100, {"train": 60, "val": 10}, (60, 10, 0)),
        (100, {"train": 60, "val": 10, "test": "rest"}, (60, 10, 30)),
        (100, {"train": "rest", "val": 10, "test": 5}, (85, 10, 5)),
        (100, {"train": 0.9, "val": 0.1}, (90, 10, 0)),
        (100, {"train": 0.7, "val": 0.2, "test": 0.1}, (70, 20, 10)),
        (15, {"train": 0.9, "val": 0.1}, (14, 1, 0)),
        (3, {"train": 0.9, "val": 0.1}, (2, 1, 0)),
        (100, {"train": 0.5, "val": 0.1}, (50, 10, 0)),
        (100, {"train": 80, "val": 0.1}, (80, 10, 0)),
        (2, {"train": 1, "val": 1, "test": 0}, (1, 1, 0)),
    ],
)
def test_numbers(frames: int, shares: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert sizes(frames, **shares) == expected


@pytest.mark.parametrize(
    ("frames", "shares"),
    [
        (10, {"train": 9, "val": 2}),
        (10, {"train": 9, "val": 0.2}),  # a number that was asked for is not made smaller
        (10, {"train": 0.9, "val": 0.2}),
        (2, {"train": 1, "val": 0.1, "test": 1}),
        (1, {"train": 0.9, "val": 0.1}),
        (10, {"train": 0, "val": 2}),
        (10, {"train": "rest", "val": 10}),
        (10, {"train": "rest", "val": "rest"}),
    ],
)
def test_what_can_not_be_had(frames: int, shares: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"data\.split"):
        split(frames, shares)


def test_more_than_there_is_says_both_numbers() -> None:
    with pytest.raises(InputError, match=r"asks for 120 .*there are 100"):
        split(100, {"train": 100, "val": 20})


def test_random_is_a_function_of_its_seed() -> None:
    shares = {"train": 30, "val": 10}
    assert split(50, shares, seed=3) == split(50, shares, seed=3)
    assert split(50, shares, seed=3) != split(50, shares, seed=4)
    assert sorted(split(50, shares, seed=3).train) != list(range(30))


def test_order() -> None:
    assert split(6, {"train": 3, "val": 2, "test": 1}, by="order") == Splits((0, 1, 2), (3, 4), (5,))


GROUPS = [n // 5 for n in range(100)]


@pytest.mark.parametrize("shares", [{"train": 0.8, "val": 0.2}, {"train": 20, "val": 10}])
def test_groups_stay_together(shares: dict[str, Any]) -> None:
    result = split(100, shares, by="group", groups=GROUPS, seed=1)
    of_part = [{GROUPS[n] for n in part} for part in result]
    assert sum(len(groups) for groups in of_part) == len(set.union(*of_part))
    wanted = [value * 100 if value < 1 else value for value in shares.values()]
    assert [len(part) for part in result[:2]] == wanted


def test_groups_of_other_sizes_come_near() -> None:
    groups = ["a"] * 7 + ["b"] * 11 + ["c"] * 13 + ["d"] * 9 + ["e"] * 20 + ["f"] * 40
    result = split(100, {"train": 0.6, "val": 0.4}, by="group", groups=groups)
    assert len(result.train) + len(result.val) == 100
    assert result.train
    assert result.val


def test_a_part_without_a_group_is_an_error() -> None:
    with pytest.raises(InputError, match="group"):
        split(10, {"train": 5, "val": 5}, by="group", groups=["a"] * 10)


def test_a_frame_without_group_is_named() -> None:
    with pytest.raises(InputError, match="frame 2 has no value"):
        split(4, {"train": 2, "val": 1}, by="group", groups=["a", "b", None, "c"])


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    wanted = Splits((3, 1), (0,), ())
    path.write_text(json.dumps(wanted.to_json()))
    assert split(4, {}, by="file", file=path) == wanted


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[1, 2]",
        '{"train": 5}',
        '{"train": [0, 4]}',
        '{"train": [-1, 0]}',
        '{"train": [0, 1], "val": [1]}',
        '{"train": [0, 0]}',
        '{"val": [1]}',
        '{"train": ["x"]}',
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"splits\.json"):
        split(4, {}, by="file", file=path)


def test_no_file() -> None:
    with pytest.raises(InputError, match="no such file"):
        split(4, {}, by="file", file="nowhere.json")
