"""Which frames train, validate and test. The split has its own seed, so that several runs share one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nequip_core.errors import InputError


class Splits(NamedTuple):
    """Frame numbers of each part, in the order of the file (random: in the order drawn)."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]

    def to_json(self) -> dict[str, list[int]]:
        """For data/splits.json."""
        return {name: list(part) for name, part in self._asdict().items()}


def split(
    frames: int,
    shares: Mapping[str, Any],
    *,
    by: str = "random",
    seed: int = 0,
    groups: Sequence[Any] | None = None,
    file: str | Path | None = None,
) -> Splits:
    """Divide ``frames`` frames.

    Args:
        frames: how many there are.
        shares: train, val, test: a whole number of frames, a fraction below 1, or ``rest``.
        by: random; order (train first); group (frames of one group stay together); file.
        seed: of the random order.
        groups: by group: each frame's group.
        file: by file: JSON {"train": [frame numbers], "val": [...], "test": [...]}.

    Raises:
        InputError: more frames asked for than there are, no frames to train on, a bad file.
    """
    if by == "file":
        return _from_file(frames, file)
    if by == "group":
        return _by_groups(frames, shares, seed, groups)
    order = np.random.default_rng(seed).permutation(frames) if by == "random" else np.arange(frames)
    parts, start = [], 0
    for count in _counts(frames, shares, "frames"):
        parts.append(tuple(order[start : start + count].tolist()))
        start += count
    return Splits(*parts)


def _counts(available: int, shares: Mapping[str, Any], what: str) -> list[int]:
    """Numbers for train, val and test."""
    names = ("train", "val", "test")
    values = [shares.get(name, 0) for name in names]
    counts = [
        0 if value == "rest" else int(value) if value >= 1 or value == 0 else round(value * available)
        for value in values
    ]
    fractions = [value for value in values if value != "rest" and 0 < value < 1]
    excess = sum(counts) - available
    if excess > 0 and fractions and sum(fractions) <= 1 + 1e-9:
        # Rounding of fractions that add up to one; the largest part gives way.
        counts[int(np.argmax(counts))] -= excess
        excess = 0
    if excess > 0:
        wanted = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
        raise InputError(
            f"data.split asks for {sum(counts)} {what} ({wanted}), but there are {available}. "
            "Lower the numbers, or use fractions."
        )
    if "rest" in values:
        counts[values.index("rest")] = available - sum(counts)
    if counts[0] < 1:
        raise InputError(f"data.split leaves no {what} to train on: {available} in all, shares {dict(shares)}.")
    if counts[1] == 0 and values[1] != 0 and available > counts[0]:
        # A fraction of a small set still validates on something.
        counts[1] = 1
    return counts


def _by_groups(frames: int, shares: Mapping[str, Any], seed: int, groups: Sequence[Any] | None) -> Splits:
    """Whole groups in random order, each to the part that lacks most of its frames."""
    if groups is None or any(group is None for group in groups):
        missing = 0 if groups is None else list(groups).index(None)
        raise InputError(f"data.split.by=group: frame {missing} has no value of the info key data.split.group.")
    targets = np.array(_counts(frames, shares, "frames"), dtype=float)
    members: dict[Any, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    names = list(members)
    parts: tuple[list[int], ...] = ([], [], [])
    for n in np.random.default_rng(seed).permutation(len(names)):
        lacking = targets - [len(part) for part in parts]
        parts[int(np.argmax(lacking / np.maximum(targets, 1e-9)))].extend(members[names[n]])
    return Splits(*(tuple(sorted(part)) for part in parts))


def _from_file(frames: int, file: str | Path | None) -> Splits:
    if file is None or not Path(file).is_file():
        raise InputError(f"data.split.by=file: no such file: {file}. Set data.split.file.")
    try:
        content = json.loads(Path(file).read_text())
        parts = [tuple(int(number) for number in content.get(name, ())) for name in ("train", "val", "test")]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f'{file}: expected JSON {{"train": [frame numbers], "val": [...]}}, received something else ({error}).'
        ) from error
    numbers = [number for part in parts for number in part]
    outside = [number for number in numbers if not 0 <= number < frames]
    if outside or len(set(numbers)) < len(numbers) or not parts[0]:
        raise InputError(
            f"{file}: frame numbers must be 0 to {frames - 1}, each in one part only, with at least one to train on; "
            f"outside: {outside[:5]}."
        )
    return Splits(*parts)
