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
    for count in _counts(frames, shares):
        parts.append(tuple(order[start : start + count].tolist()))
        start += count
    return Splits(*parts)


def _counts(available: int, shares: Mapping[str, Any]) -> list[int]:
    """Frames of train, val and test.

    A fraction is rounded down, to one frame at least; where fractions add up to 1, train takes what is over or short.
    """
    values = [shares.get(name, 0) for name in Splits._fields]
    fractions = [value for value in values if value != "rest" and 0 < value < 1]
    counts = [
        0 if value == "rest" else int(value) if value >= 1 or value == 0 else max(1, int(value * available + 1e-9))
        for value in values
    ]
    over = available - sum(counts)
    if "rest" in values:
        counts[values.index("rest")] = over
    elif abs(sum(fractions) - 1) < 1e-9 and 0 < values[0] < 1:
        counts[0] += over
    wanted = ", ".join(f"{name} {value}" for name, value in zip(Splits._fields, values, strict=True))
    if values.count("rest") > 1:
        raise InputError(f"data.split: only one part can be the rest; received {wanted}. Give the other a number.")
    if sum(counts) > available or min(counts) < 0:
        raise InputError(
            f"data.split asks for {sum(count for count in counts if count > 0)} frames ({wanted}), but there are "
            f"{available}. Lower the numbers, or use fractions."
        )
    if counts[0] < 1:
        raise InputError(f"data.split leaves no frames to train on: {available} in all, {wanted}. Raise train.")
    return counts


def _by_groups(frames: int, shares: Mapping[str, Any], seed: int, groups: Sequence[Any] | None) -> Splits:
    """Whole groups in random order, each to the part that lacks most of its frames."""
    if groups is None or any(group is None for group in groups):
        missing = 0 if groups is None else list(groups).index(None)
        raise InputError(f"data.split.by=group: frame {missing} has no value of the info key data.split.group.")
    targets = np.array(_counts(frames, shares), dtype=float)
    members: dict[Any, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    names = list(members)
    parts: tuple[list[int], ...] = ([], [], [])
    for n in np.random.default_rng(seed).permutation(len(names)):
        lacking = (targets - [len(part) for part in parts]) / np.maximum(targets, 1)
        if lacking.max() > 0:  # once every part has its frames, further groups are left over
            parts[int(np.argmax(lacking))].extend(members[names[n]])
    for name, part, target in zip(Splits._fields, parts, targets, strict=True):
        if target > 0 and not part:
            raise InputError(
                f"data.split.by=group: {len(names)} groups are too few for a part of their own for {name} "
                f"({target:.0f} frames). Use another key for data.split.group, or split by: random."
            )
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
