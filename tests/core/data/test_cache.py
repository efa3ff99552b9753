"""Arrays on the disk: found again, made again when damaged."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nequip_core.data.cache import ENVIRONMENT, Cache, DamagedError, Stored, dump, folder_of, load
from nequip_core.errors import InputError

KEY = {"file": "a.xyz", "cutoff": 5.0}


def value() -> Stored:
    arrays = {
        "positions": np.random.default_rng(0).normal(size=(7, 3)),
        "numbers": np.array([1, 8, 1, 200, -3]),
        "large": np.array([2**40, -1]),
        "pbc": np.array([[True, False, True]]),
        "none": np.zeros((0, 3)),
        "no_edges": np.zeros(0, dtype=np.int64),
    }
    return Stored(arrays, {"files": ["a.xyz"], "energy": 0.1 + 0.2})


def same(one: Stored, other: Stored) -> bool:
    return (
        one.about == other.about
        and one.arrays.keys() == other.arrays.keys()
        and all(np.array_equal(array, other.arrays[name]) for name, array in one.arrays.items())
    )


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Stored:
        self.calls += 1
        return value()


@pytest.fixture
def said() -> list[str]:
    return []


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    dump(value(), path)
    found = load(path)
    assert same(found, value())
    assert found.arrays["numbers"].dtype == np.int16  # as few bytes as they need
    assert found.arrays["large"].dtype == np.int64
    assert not found.arrays["positions"].flags.writeable


def test_made_once(tmp_path: Path, said: list[str]) -> None:
    make, cache = Maker(), Cache(tmp_path / "new" / "folder", say=said.append)
    assert same(cache.get("frames", KEY, make), value())
    assert same(cache.get("frames", KEY, make), value())
    assert make.calls == 1
    cache.get("frames", KEY | {"cutoff": 4.0}, make)
    cache.get("edges", KEY, make)
    assert make.calls == 3
    assert said == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[:-5] + b"x" + content[-4:],
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: b"no safetensors file at all",
        lambda content: content.replace(b'"about"', b'"abort"'),
    ],
)
def test_a_damaged_file_is_made_again_and_said(
    tmp_path: Path, said: list[str], damage: Callable[[bytes], bytes]
) -> None:
    make, cache = Maker(), Cache(tmp_path, say=said.append)
    cache.get("frames", KEY, make)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedError):
        load(path)
    assert same(cache.get("frames", KEY, make), value())
    assert make.calls == 2
    (sentence,) = said
    assert str(path) in sentence
    assert "damaged" in sentence
    cache.get("frames", KEY, make)
    assert make.calls == 2


def test_off_and_read_only_write_nothing(tmp_path: Path) -> None:
    make = Maker()
    Cache(None).get("frames", KEY, make)
    Cache(tmp_path, write=False).get("frames", KEY, make)
    assert list(tmp_path.iterdir()) == []
    Cache(tmp_path).get("frames", KEY, make)
    Cache(tmp_path, write=False).get("frames", KEY, make)
    assert make.calls == 3


def test_a_folder_that_can_not_be_written_to_is_said(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").write_text("")
    assert same(Cache(tmp_path / "file" / "cache", say=said.append).get("frames", KEY, Maker()), value())
    (sentence,) = said
    assert "Nothing is cached in" in sentence


def test_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    assert folder_of("auto") == tmp_path
    assert folder_of("off") is None
    assert folder_of("my/folder") == Path("my/folder")
    monkeypatch.delenv(ENVIRONMENT)
    assert folder_of("auto") == Path("~/.cache/nequip").expanduser()


def test_of_several_at_once_one_makes_it(tmp_path: Path, said: list[str]) -> None:
    made = []

    def slow(number: int) -> int:
        def make() -> Stored:
            made.append(number)
            time.sleep(0.5)
            return Stored({"number": np.array([number])}, {})

        # A lock belongs to an open file: threads stand for processes.
        return int(Cache(tmp_path, say=said.append).get("frames", {"a": 1}, make).arrays["number"][0])

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(slow, range(3)))
    assert len(made) == 1
    assert found == made * 3
    assert len(said) == 2
    assert all("Waiting for another process" in sentence for sentence in said)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_what_fails_is_not_waited_for(tmp_path: Path) -> None:
    def fail() -> Stored:
        raise InputError("a bad frame")

    cache = Cache(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match="a bad frame"):
            cache.get("frames", {"a": 1}, fail)
    assert list(tmp_path.iterdir()) == []
