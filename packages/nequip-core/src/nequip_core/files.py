"""Files that appear whole or not at all, files that grow by whole records, and the hash that names one."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self

from nequip_core.errors import InputError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file beside ``path`` that takes its place when the block ends, and vanishes when it fails.

    Args:
        path: an existing file stays as it was until the new one is complete and on the disk.
        mode: ``w`` (UTF-8) or ``wb``.

    Raises:
        InputError: the folder is missing or can not be written to, or the disk is full.
    """
    path = Path(path)
    encoding = None if "b" in mode else "utf-8"
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise InputError(f"Can not write {path}: {error.strerror} ({path.parent}).") from error
    try:
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)  # mkstemp's files are the owner's only
        Path(name).replace(path)
        folder = os.open(path.parent, os.O_RDONLY)  # the new name is on the disk only with its folder
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise InputError(f"Can not write {path}: {error.strerror}. Free some space and try again.") from error
        raise
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()


class RecordFile:
    """A file that grows by whole records, each on its way to the disk when `write` returns; read it at any time.

    Args:
        path: a file of that name is replaced.

    Raises:
        InputError: the folder is missing or can not be written to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("wb", buffering=0)
        except OSError as error:
            raise InputError(f"Can not write {path}: {error.strerror}.") from error

    def write(self, record: str) -> None:
        """Append a record, or leave the file as it was.

        Raises:
            InputError: the disk is full.
        """
        end = self._file.tell()
        rest = memoryview(record.encode())
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with suppress(OSError):  # a device has no length to restore
                self._file.truncate(end)
            raise InputError(f"Can not go on writing {self.path}: {error.strerror}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
