"""The folder of a run: who may write into it, what it says of itself, and whether the same run may go on in it.

Its files (all written under a temporary name first)::

    config.yaml   all keys, resolved: `nequip train DIR/config.yaml run.dir=OTHER` repeats the run
    run.json      id, state, command line, seed, versions, host, devices, times, best epoch, hashes of the data, kernels
    .lock         held by the process that writes
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shlex
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Self

from nequip_core.config.compose import compose, keys_of, to_yaml
from nequip_core.config.schema import Config
from nequip_core.errors import ConfigError, InputError
from nequip_core.files import atomic_write, sha256
from nequip_core.plugins.manager import Registry
from nequip_core.training.ranks import ONE, Ranks

SCHEMA = 1
"""Number of run.json's format."""

FIXED = ("seed", "model.", "data.", "training.loss.", "training.optimizer.name", "training.scheduler.name")
"""A run goes on only where these keys (or all keys below) are as they were."""

CHANGEABLE = ("data.workers", "data.cache", "data.batch.max_edges", "data.batch.eval_size")
"""Keys below `FIXED` that do not touch the results."""

FILES = ("data.path", "data.val_path", "data.test_paths", "data.isolated_atoms", "data.split.file")
"""Keys that name files; their contents are compared, not their names."""


def run_path(config: Config) -> Path:
    """The folder that a config names."""
    return Path(config.run.dir).expanduser()


def files_of(config: Config) -> dict[str, list[Path]]:
    """The files that each key of `FILES` names."""
    keys = dict(keys_of(config))
    names = {key: keys[key] if isinstance(keys[key], list) else [keys[key]] for key in FILES}
    return {key: [Path(name).expanduser() for name in row if name is not None] for key, row in names.items()}


def hashes(config: Config) -> dict[str, dict[str, str]]:
    """SHA-256 of each file that the config names, by key and file name."""
    return {key: {str(path): sha256(path) for path in paths} for key, paths in files_of(config).items() if paths}


def now() -> str:
    """The time, with its zone."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The run.json of a folder; None where there is none.

    Raises:
        InputError: it is no run.json of ours, or of a newer format.
    """
    file = path / "run.json"
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(f"{file} is no JSON: {error}. Choose another run.dir, or run.if_exists=new.") from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise InputError(
            f"{file}: expected a run of format {SCHEMA}. Choose another run.dir, or run.if_exists=new to set it aside."
        )
    return value


_LOCKS: set[int] = set()
"""Descriptors of the locks that this process holds."""


@cache
def _keep_locks_from_children() -> None:
    """Workers that prepare batches are forked and outlive a run that is killed for some seconds; its lock must not."""
    os.register_at_fork(after_in_child=lambda: _unlock(*_LOCKS))


def _unlock(*descriptors: int) -> None:
    """A lock is gone when all who have its descriptor have closed it."""
    for descriptor in _LOCKS.intersection(descriptors):
        _LOCKS.remove(descriptor)
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a folder, which exists.

    Raises:
        InputError: another process holds it.
    """
    _keep_locks_from_children()
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    _LOCKS.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown"
            raise InputError(
                f"{path}: another run writes into this folder ({holder}). Wait for it, stop it, or choose another "
                "run.dir."
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now()}\n".encode(), 0)
        yield
    finally:
        _unlock(descriptor)


def differences(
    old: Config, new: Config, old_hashes: Mapping[str, Mapping[str, str]], new_hashes: Mapping[str, Mapping[str, str]]
) -> list[tuple[str, str, str]]:
    """What keeps a run from going on: key, value it was started with, value now."""
    before, after = dict(keys_of(old)), dict(keys_of(new))
    rows = []
    for key in sorted({*before, *after}, key=[*before, *after].index):
        if not _is_fixed(key):
            continue
        if key in FILES:
            sides = old_hashes.get(key, {}), new_hashes.get(key, {})
            if list(sides[0].values()) != list(sides[1].values()):
                rows.append((key, _files_text(sides[0]), _files_text(sides[1])))
        elif before.get(key) != after.get(key):
            rows.append((key, repr(before.get(key)), repr(after.get(key))))
    if (old.training.ema_decay is None) != (new.training.ema_decay is None):
        rows.append(("training.ema_decay", repr(old.training.ema_decay), repr(new.training.ema_decay)))
    return rows


def changes(old: Config, new: Config) -> dict[str, list[Any]]:
    """Keys that differ and may: [before, after]."""
    before, after = dict(keys_of(old)), dict(keys_of(new))
    keys = [key for key in after if before.get(key) != after[key] and key not in FILES]
    return {key: [_plain(before.get(key)), _plain(after[key])] for key in keys}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=vars))


def _is_fixed(key: str) -> bool:
    return key not in CHANGEABLE and any(key == name or (name[-1] == "." and key.startswith(name)) for name in FIXED)


def _files_text(files: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({value[:8]})" for name, value in files.items()) or "none"


def refuse_differences(path: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """Stop with a table of both sides where there are differences.

    Raises:
        ConfigError: the run can not go on.
    """
    if not rows:
        return
    table = [("key", "the run has", "now"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(2)]
    lines = [f"  {row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}" for row in table]
    raise ConfigError(
        f"{path} holds a run that was started otherwise, so it can not go on.\n"
        + "\n".join(lines)
        + "\nGive the first values again, choose another run.dir, or set the old run aside with run.if_exists=new."
    )


def set_aside(path: Path) -> Path:
    """Rename DIR to the first free DIR.1, DIR.2 ..."""
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.rename(path.with_name(f"{path.name}.{number}"))


def versions() -> dict[str, str]:
    """Version of Python, of nequip-core and of each distribution that it requires."""
    required = [line for line in importlib.metadata.requires("nequip-core") or () if "extra ==" not in line]
    names = ["nequip-core", *(re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in required)]
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _new_id() -> str:
    return uuid.uuid4().hex[:12]


class Run:
    """A run's folder, from the first look at it to the end; a context that holds the lock.

    Nothing is written before `begin`.

    Args:
        config: of the run.
        registry: to read the config of an earlier start.
        ranks: that run together; the first looks and writes, and tells the others what it has found.

    Attributes:
        path: the folder.
        hashes: of the data files, by key and name.
        earlier: run.json of the run that this one goes on with, or None.
        finished: whether that one is over and nothing more is asked for.

    Raises:
        InputError: another process writes into the folder.
        ConfigError: the run in it was started otherwise.
    """

    def __init__(self, config: Config, registry: Registry, ranks: Ranks = ONE) -> None:
        self.config = config
        self.registry = registry
        self.ranks = ranks
        self.path = run_path(config)
        self.hashes = hashes(config)
        self.earlier: dict[str, Any] | None = None
        self.finished = False
        self.manifest: dict[str, Any] = {}
        self._changes: dict[str, list[Any]] = {}
        self._replaces = False
        self._locks = ExitStack()

    def __enter__(self) -> Self:
        """Look at the folder; where it holds a run, take the lock."""
        with ExitStack() as stack:
            if self.ranks.is_first and (self.path / "run.json").exists():
                stack.enter_context(locked(self.path))
                self._replaces = self.config.run.if_exists == "new"
                if self.config.run.if_exists == "resume":
                    self._look(read_manifest(self.path))
            self._locks = stack.pop_all()
        self.earlier, self.finished = self.ranks.from_first((self.earlier, self.finished), "a look at the run's folder")
        return self

    def __exit__(self, *error: object) -> None:
        """Let the lock go."""
        self._locks.close()

    def _look(self, manifest: dict[str, Any] | None) -> None:
        if manifest is None:
            return
        old = compose(self.path / "config.yaml", [], self.registry)
        refuse_differences(self.path, differences(old, self.config, manifest["data_hashes"], self.hashes))
        limits = [(config.trainer.max_epochs, config.trainer.max_steps) for config in (old, self.config)]
        self.finished = manifest["state"] == "finished" and limits[0] == limits[1]
        self.earlier = manifest
        self._changes = changes(old, self.config)

    @property
    def last_checkpoint(self) -> Path | None:
        """Where to go on from."""
        path = self.path / "checkpoints" / "last.ckpt"
        return path if self.earlier is not None and path.is_file() else None

    def begin(self, argv: Sequence[str], **facts: Any) -> Path | None:
        """Make the folder, config.yaml and run.json, whose state is "running".

        Args:
            argv: the command line after ``nequip train``.
            facts: for run.json: devices, kernels.

        Returns:
            Where an old run was put aside, if there was one.

        Raises:
            InputError: another process has begun a run here since we looked.
        """
        aside = self._begin(argv, facts) if self.ranks.is_first else None
        self.manifest = self.ranks.from_first(self.manifest, "the beginning of the run")
        return aside

    def _begin(self, argv: Sequence[str], facts: Mapping[str, Any]) -> Path | None:
        aside = set_aside(self.path) if self._replaces else None
        if self.earlier is None:
            self.path.mkdir(parents=True, exist_ok=True)
            self._locks.enter_context(locked(self.path))
            if (self.path / "run.json").exists():
                raise InputError(
                    f"{self.path}: another process has begun a run in this folder meanwhile. Choose another run.dir, "
                    "or give the command again to go on with that run."
                )
            self.manifest = self._first_manifest(argv)
        else:
            for leftover in self.path.rglob(".*.tmp"):  # of a run that was killed while it wrote
                leftover.unlink()
            restart = {"time": now(), "after": self.earlier["state"], "changed": self._changes}
            self.manifest = {"id": _new_id(), **self.earlier, "restarts": [*self.earlier["restarts"], restart]}
        with atomic_write(self.path / "config.yaml") as file:
            title = f"All keys of {self.config.run.name}. Repeat: nequip train {self.path}/config.yaml run.dir=OTHER"
            file.write(to_yaml(self.config, title))
        self.update(**facts, state="running", end=None, error=None)
        return aside

    def update(self, **values: Any) -> None:
        """Change run.json."""
        self.manifest.update(values)
        if self.ranks.is_first:
            write_json(self.path / "run.json", self.manifest)

    def _first_manifest(self, argv: Sequence[str]) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "id": _new_id(),
            "state": "running",
            "name": self.config.run.name,
            "command_line": shlex.join(["nequip", "train", *argv]),
            "folder": str(Path.cwd()),
            "seed": self.config.seed,
            "start": now(),
            "end": None,
            "best_epoch": None,
            "host": platform.node(),
            "devices": [],
            "world_size": self.ranks.size,
            "kernels": {},
            "compile": None,
            "data_hashes": self.hashes,
            "versions": versions(),
            "plugins": self.registry.versions(),
            "restarts": [],
            "error": None,
        }
