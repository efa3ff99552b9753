"""Arrays kept on the disk under the hash of all that they were made from, and mapped into memory when used again.

A file is a safetensors file, so loading one runs no code. Its metadata hold the rest of the value as JSON and a
checksum of the arrays; a file that does not fit its checksum is made again, and somebody is told.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from nequip_core.errors import InputError
from nequip_core.files import atomic_write

SCHEMA = 1
"""Of what is stored; part of every name, so that older files are not found."""

ENVIRONMENT = "NEQUIP_CACHE_DIR"
"""Environment variable that names the folder of ``auto``."""

DTYPES = {"F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "BOOL": "?"}
"""Those of safetensors that are used here."""


class Stored(NamedTuple):
    """A value that can be kept: arrays, and anything that JSON holds."""

    arrays: dict[str, NDArray[Any]]
    about: dict[str, Any]


class DamagedError(Exception):
    """A file whose content is not what was written."""


@dataclass(frozen=True)
class Cache:
    """A folder of values.

    Args:
        folder: made when something is written; None: nothing is kept.
        write: False: what is there is used, and nothing is added.
        say: told when a file is damaged or can not be written.
    """

    folder: Path | None
    write: bool = True
    say: Callable[[str], None] = print

    def get(self, kind: str, key: Mapping[str, Any], make: Callable[[], Stored]) -> Stored:
        """The value that ``key`` stands for, from the folder or made.

        Args:
            kind: first part of the file's name.
            key: all that the value depends on, as JSON.
            make: makes it.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{kind}-{fingerprint({'schema': SCHEMA, **key})}.safetensors"
        found = self._find(path)
        if found is not None:
            return found
        if not self.write:
            return make()
        with self._alone(path) as waited:
            found = self._find(path) if waited else None
            return self._keep(make(), path) if found is None else found

    def _find(self, path: Path) -> Stored | None:
        if not path.is_file():
            return None
        try:
            return load(path)
        except (DamagedError, OSError) as error:
            self.say(f"The cached file {path} is damaged ({error}): it is made again.")
            return None

    @contextmanager
    def _alone(self, path: Path) -> Iterator[bool]:
        """Of several processes that need a value one makes it, and the others wait; gives whether this one has waited.

        Where nothing can be locked nobody waits, and each makes it: that is slow, not wrong.
        """
        lock, waited = path.with_suffix(".lock"), False
        with ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(lock.open("w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self.say(f"Waiting for another process, which is making {path.name} ...")
                    waited = True
                    fcntl.flock(file, fcntl.LOCK_EX)
                stack.callback(lock.unlink, missing_ok=True)
            except OSError:
                pass  # what prevents it prevents writing too, which says so
            yield waited

    def _keep(self, made: Stored, path: Path) -> Stored:
        """Write it, and map what was written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            dump(made, path)
            return load(path)
        except (OSError, InputError) as error:
            self.say(f"Nothing is cached in {self.folder}: {error} The next start does the same work again.")
            return made


NO_CACHE = Cache(None)


def folder_of(name: str) -> Path | None:
    """The folder that ``data.cache`` names.

    Args:
        name: off: none; auto: ``NEQUIP_CACHE_DIR``, or else ~/.cache/nequip; or a folder.
    """
    if name == "off":
        return None
    if name == "auto":
        name = os.environ.get(ENVIRONMENT) or "~/.cache/nequip"
    return Path(name).expanduser()


def fingerprint(key: Mapping[str, Any]) -> str:
    """32 hexadecimal digits that stand for a value of JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]


def dump(stored: Stored, path: Path) -> None:
    """Write a value, whole or not at all. Whole numbers are written in as few bytes as they need.

    Raises:
        InputError: the disk is full, or the folder can not be written to.
    """
    arrays = {name: np.ascontiguousarray(_narrow(array)) for name, array in stored.arrays.items()}
    metadata = {"about": json.dumps(stored.about), "checksum": json.dumps(_checksums(arrays))}
    with atomic_write(path, "wb") as file:
        file.write(save(arrays, metadata))


def load(path: Path) -> Stored:
    """A value, whose arrays are read-only views of the file.

    Raises:
        DamagedError: the file is not as it was written.
    """
    content = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray) if path.stat().st_size else np.zeros(0, "u1")
    try:
        length = int(content[:8].view("<u8")[0])
        header = json.loads(content[8 : 8 + length].tobytes())
        about = header.pop("__metadata__")
        body = content[8 + length :]
        arrays = {
            name: body[slice(*entry["data_offsets"])].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in header.items()
        }
        found = _checksums(arrays)
        value = Stored(arrays, json.loads(about["about"]))
        expected = json.loads(about["checksum"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DamagedError(f"it is cut off or overwritten: {error}") from error
    wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if wrong:
        raise DamagedError(f"the checksum of {', '.join(wrong)} is wrong")
    return value


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers in the smallest of 1, 2, 4, 8 bytes that holds them."""
    if array.dtype.kind not in "iu":
        return array
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    fits = (size for size in ("i1", "<i2", "<i4") if np.iinfo(size).min <= low and high <= np.iinfo(size).max)
    return array.astype(next(fits, "<i8"))


def _checksums(arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    return {name: zlib.crc32(array.reshape(-1).view(np.uint8).data) for name, array in arrays.items()}
