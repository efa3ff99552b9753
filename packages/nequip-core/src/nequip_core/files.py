"""Files that appear whole or not at all, and the hash that names one."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

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


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
