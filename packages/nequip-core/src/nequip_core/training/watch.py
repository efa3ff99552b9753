"""A thread of each process that knows how the others are: it ends the run when one of them fails or hangs.

A process that waits for another in the middle of a step can not notice by itself that the other will never come. So
each tells now and then, in a store of key and value that all see, how many exchanges it has entered and what it does.
Exchanges come in the same order everywhere: whoever has entered the fewest is the one that the others wait for.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

TIMEOUT = 1800.0
"""Seconds, until the config is known."""

PERIOD = 1.0
"""Seconds between two looks."""

GRACE = 5.0
"""Seconds in which a process may end by itself after another one has failed."""

HUNG = 1
"""Exit code of a run in which a process hangs."""


class Failure(NamedTuple):
    """Why a run ends.

    Attributes:
        rank: of the process that noticed.
        code: exit code.
        message: what the user is told.
    """

    rank: int
    code: int
    message: str


class Beat(NamedTuple):
    """What a process tells of itself.

    Attributes:
        ticks: of its thread, which goes on while the process waits or computes.
        entered: exchanges so far.
        moves: grows while the process does something.
        waits: whether it is in an exchange.
        what: it does, or exchanges.
        where: host and process number.
    """

    ticks: int
    entered: int
    moves: int
    waits: bool
    what: str
    where: str


class Watch:
    """Says where this process is and hears where the others are.

    Args:
        rank: of this process.
        size: of all processes.
        store: of this thread's own.

    Attributes:
        timeout: seconds without a move of any process, after which the run ends.
        on_end: called with the message before this process is ended from here.
    """

    def __init__(self, rank: int, size: int, store: dist.Store) -> None:
        self.rank, self.size = rank, size
        self.timeout = TIMEOUT
        self.on_end: Callable[[str], None] = lambda message: None
        self._store = store
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._where = f"process {os.getpid()} on {socket.gethostname()}"
        self._ticks = self._entered = self._moves = 0
        self._waits, self._what = False, "the start"
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._tell()

    def start(self) -> None:
        """Begin; all processes have made theirs."""
        self._thread.start()

    def stop(self) -> None:
        """No more; the other processes may do without this one."""
        self._stopped.set()
        self._thread.join()

    def at(self, what: str) -> None:
        """The process is about to do something."""
        self._waits, self._what = False, what
        self._moves += 1

    def enters(self, what: str) -> None:
        """The process is about to exchange something."""
        self._entered += 1
        self._waits, self._what = True, what
        self._moves += 1

    def fail(self, failure: Failure) -> Failure:
        """Tell that this process fails; what the first one told comes back. The thread ends the process if need be."""
        for _ in range(2):  # a signal, as launchers send it when a process has failed, may break off the first try
            try:
                with self._lock:
                    return Failure(*json.loads(self._store.compare_set("failure", "", json.dumps(failure))))
            except RuntimeError:
                continue
        return failure  # the store went with the process that held it

    def said(self) -> None:
        """The message of the first failure has been printed."""
        with suppress(RuntimeError), self._lock:
            self._store.set("said", "")

    def wait_until_said(self) -> None:
        """Until then, or until it is no use to wait."""
        with suppress(RuntimeError), self._lock:
            self._store.wait(["said"], timedelta(seconds=GRACE))

    # ---- the thread

    def _run(self) -> None:
        seen: object = None
        moved = time.monotonic()
        while not self._stopped.wait(min(PERIOD, self.timeout / 4)):
            try:
                self._tell()
                failure, beats = self._failure(), self._beats()
            except RuntimeError:
                self._end(
                    Failure(self.rank, HUNG, f"Rank {self.rank}: the process that held the others together is gone.")
                )
                return
            if failure is not None:
                self._end(failure)
                return
            # Rank 0 judges all; the others judge rank 0, whose thread has to go on.
            signs = [(beat.entered, beat.moves) for beat in beats] if self.rank == 0 else beats[0].ticks
            if signs != seen:
                seen, moved = signs, time.monotonic()
            elif time.monotonic() - moved > self.timeout:
                self.fail(Failure(self.rank, HUNG, self._verdict(beats)))

    def _tell(self) -> None:
        self._ticks += 1
        beat = Beat(self._ticks, self._entered, self._moves, self._waits, self._what, self._where)
        with self._lock:
            self._store.set(f"beat/{self.rank}", json.dumps(beat))

    def _failure(self) -> Failure | None:
        with self._lock:
            return Failure(*json.loads(self._store.get("failure"))) if self._store.check(["failure"]) else None

    def _beats(self) -> list[Beat]:
        """Of all processes, as rank 0 needs them; the others ask for that of rank 0 only."""
        names = [f"beat/{rank}" for rank in range(self.size if self.rank == 0 else 1)]
        with self._lock:
            return [Beat(*json.loads(beat)) for beat in self._store.multi_get(names)]

    def _verdict(self, beats: Sequence[Beat]) -> str:
        least = min(beat.entered for beat in beats)
        late = [rank for rank, beat in enumerate(beats) if beat.entered == least]
        busy = [rank for rank in late if not beats[rank].waits]
        named = ", ".join(f"rank {rank} ({beats[rank].where}), which is at {beats[rank].what}" for rank in busy or late)
        if self.rank != 0:
            what = f"rank 0 ({beats[0].where}) is not heard of; it was at {beats[0].what}"
        elif len(busy) == self.size:
            what = f"all are busy: {named}. If that may take so long, raise trainer.rank_timeout"
        elif busy or len(late) < self.size:
            what = f"the others wait for {named}"
        else:
            what = f"all wait for each other in {beats[0].what}: the network between them does not work"
        return (
            f"No process has moved for {self.timeout:g} s (trainer.rank_timeout): {what}. The same command goes on "
            "from the last checkpoint."
        )

    def _end(self, failure: Failure) -> None:
        """Let the process end by itself; end it when it does not, since it may wait for something for ever."""
        hangs = failure.code == HUNG and failure.rank == self.rank
        if hangs:
            print(f"nequip: {failure.message}", file=sys.stderr, flush=True)
        if not self._stopped.wait(0 if hangs else GRACE):
            self.on_end(failure.message)
            sys.stdout.flush()
            os._exit(failure.code)
