"""The processes of one run: which of them this is, and what they tell each other.

A launcher starts them and tells each its place by environment variables: `nequip_core.cli.launch`, torchrun or SLURM.
All that they exchange goes through `Ranks`, so that every process knows how far each other one has come, see
`nequip_core.training.watch`.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import ClassVar, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nequip_core.errors import InputError, NequipError
from nequip_core.training.watch import Watch

T = TypeVar("T")

START = timedelta(minutes=30)
"""In which all processes must have come."""

FOREVER = timedelta(days=365)
"""torch's own limit of an exchange. It can not know who waits for good reason, and `Watch` does."""

PORTS = range(20000, 40000)
"""One of these is taken from the numbers of a SLURM job and its step."""


class Wish(IntEnum):
    """What a process asks the others for; the strongest of all counts."""

    GO_ON = 0
    MAX_TIME = 1
    CTRL_C = 2


class LostRankError(NequipError):
    """An exchange failed: another process is gone."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which of a run's processes this is.

    Attributes:
        launcher: who started it; empty: nobody did, it is alone.
        rank: among all.
        size: of all.
        local_rank: among those of this machine.
        local_size: of these.
        nodes: number of machines.
        address: where the processes find each other.
        port: likewise.
        hosts: whether this process is the one that the others find there.
        attempt: tells a restart of the same processes from the first start.
    """

    launcher: str = ""
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    hosts: bool = True
    attempt: str = "0"


TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, and ours, tells each process; fewer of them come from something else."""

AGENT = "TORCHELASTIC_USE_AGENT_STORE"
"""Whether the launcher is found at the address, and not the process of rank 0."""


def place_of(environ: Mapping[str, str]) -> Place:
    """Where a launcher put this process, by its environment variables."""
    return _torchrun(environ) or _slurm(environ) or Place()


def _torchrun(environ: Mapping[str, str]) -> Place | None:
    if not all(name in environ for name in TORCHRUN):
        return None
    rank = int(environ["RANK"])
    return Place(
        launcher="torchrun",
        rank=rank,
        size=int(environ["WORLD_SIZE"]),
        local_rank=int(environ["LOCAL_RANK"]),
        local_size=int(environ["LOCAL_WORLD_SIZE"]),
        nodes=int(environ["GROUP_WORLD_SIZE"]),
        address=environ["MASTER_ADDR"],
        port=int(environ["MASTER_PORT"]),
        hosts=rank == 0 and environ.get(AGENT) != "True",
        attempt=environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def _slurm(environ: Mapping[str, str]) -> Place | None:
    # srun sets these; a batch script, and a shell that srun opened for one task, are no ranks.
    size = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if size == 1:
        return None
    rank, node = int(environ["SLURM_PROCID"]), int(environ["SLURM_NODEID"])
    job, step = int(environ["SLURM_JOB_ID"]), int(environ.get("SLURM_STEP_ID", 0))
    return Place(
        launcher="SLURM",
        rank=rank,
        size=size,
        local_rank=int(environ["SLURM_LOCALID"]),
        local_size=tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])[node],
        nodes=int(environ["SLURM_STEP_NUM_NODES"]),
        address=environ.get("MASTER_ADDR") or first_node(environ["SLURM_STEP_NODELIST"]),
        port=int(environ.get("MASTER_PORT") or PORTS[(31 * job + step) % len(PORTS)]),
        hosts=rank == 0,
        attempt=f"{job}.{step}.{environ.get('SLURM_RESTART_COUNT', 0)}",
    )


def tasks_per_node(text: str) -> list[int]:
    """``4(x2),1`` of SLURM is 4, 4, 1."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in parts for _ in range(int(times or 1))]


def first_node(text: str) -> str:
    """``gpu[03-05,11]-ib,login`` of SLURM begins with gpu03-ib."""
    found = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", text)
    assert found is not None
    return "".join(part or "" for part in found.groups())


class Ranks:
    """The processes of a run, as one of them sees them; a context in which they can talk.

    Alone, it says to itself what it would say to others.

    Args:
        place: of this process.

    Attributes:
        place: of this process.
        rank: among all.
        size: of all.
        watch: ends this process when another one fails or hangs; None: it is alone.
        left: whether the others are gone.
    """

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()
        self.rank, self.size = self.place.rank, self.place.size
        self.watch: Watch | None = None
        self.left = False

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def __enter__(self) -> Self:
        """Find the others.

        Raises:
            InputError: they are not found.
        """
        if self.size > 1:
            store = _meet(self.place)
            self.watch = Watch(self.rank, self.size, _store(self.place, hosts=False))
            # The processes talk on the host, and the gradients of CUDA devices go between these.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            group = dist.PrefixStore("group", store)
            dist.init_process_group(backend, store=group, rank=self.rank, world_size=self.size, timeout=FOREVER)
            self.watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave them; of an error they learn by `nequip_core.training.watch.Watch.fail`."""
        if error[0] is None:
            self.leave()

    def leave(self) -> None:
        """Go on without the others, when all have come here."""
        if self.watch is not None and not self.left:
            self.left = True
            self.wait("the end")
            self.watch.stop()
            dist.destroy_process_group()

    def patience(self, seconds: float, on_end: Callable[[str], None]) -> None:
        """How long all may stand still; called with the reason before this process is ended for it."""
        if self.watch is not None:
            self.watch.timeout, self.watch.on_end = seconds, on_end

    def at(self, what: str) -> None:
        """Say what this process is about to do; it has not hung."""
        if self.watch is not None:
            self.watch.at(what)

    # ---- exchanges, which all processes take part in, in the same order

    def sum_(self, tensor: Tensor, what: str) -> None:
        """Add up a tensor over all, in place; the same bits everywhere."""
        if self.size > 1:
            with self._together(what):
                dist.all_reduce(tensor)

    def gather(self, value: T, what: str) -> list[T]:
        """Everybody's value, by rank."""
        if self.size == 1:
            return [value]
        found: list[T] = [value] * self.size
        with self._together(what):
            dist.all_gather_object(found, value)
        return found

    def from_first(self, value: T, what: str) -> T:
        """The value of rank 0."""
        if self.size == 1:
            return value
        found = [value]
        with self._together(what):
            dist.broadcast_object_list(found)
        return found[0]

    def wait(self, what: str) -> None:
        """Until all are here."""
        if self.size > 1:
            with self._together(what):
                dist.barrier()

    @contextmanager
    def first_ahead(self, what: str) -> Iterator[None]:
        """The first process of each machine does this alone, and the others when it is done."""
        first = self.place.local_rank == 0
        if not first:
            self.wait(what)
        yield
        if first:
            self.wait(what)

    def same(self, values: Mapping[str, object], advice: str) -> None:
        """Check that all processes have the same values.

        Raises:
            InputError: names a value and both sides.
        """
        table = self.gather({name: json.dumps(value, default=str) for name, value in values.items()}, "the comparison")
        hosts = self.gather(socket.gethostname(), "the comparison")
        for rank, row in enumerate(table):
            for name in table[0]:
                if row[name] != table[0][name]:
                    raise InputError(
                        f"The processes of this run are not alike: {name} is {table[0][name]} in rank 0 on {hosts[0]}, "
                        f"but {row[name]} in rank {rank} on {hosts[rank]}. {advice}"
                    )

    @contextmanager
    def _together(self, what: str) -> Iterator[None]:
        assert self.watch is not None
        self.watch.enters(what)
        try:
            yield
        except RuntimeError as error:  # torch's sign that a connection is gone
            raise LostRankError(
                f"Rank {self.rank} lost its connection to the others during {what}: {error}. Look above for the "
                "message of the process that ended first; where there is none, it was killed: too little memory?"
            ) from error
        self.watch.at(f"after {what}")


ONE = Ranks()
"""A run of one process."""


def _store(place: Place, *, hosts: bool) -> dist.Store:
    """What processes find each other by. Each thread needs its own: a wait in one blocks it for all."""
    try:
        store = dist.TCPStore(place.address, place.port, is_master=hosts, wait_for_workers=False, timeout=START)
    except RuntimeError as error:
        raise InputError(
            f"Rank {place.rank} can not reach the others at {place.address}:{place.port}: {error} Expected a port that "
            "is free there and open to all machines of the run: set MASTER_ADDR and MASTER_PORT."
        ) from error
    return dist.PrefixStore(f"nequip/{place.attempt}", store)


def _meet(place: Place) -> dist.Store:
    store = _store(place, hosts=place.hosts)
    store.set(f"here/{place.rank}", f"{socket.gethostname()} {os.getpid()}")
    names = [f"here/{rank}" for rank in range(place.size)]
    try:
        store.wait(names, START)
    except RuntimeError as error:
        missing = [str(rank) for rank, name in enumerate(names) if not store.check([name])]
        raise InputError(
            f"After {START} only {place.size - len(missing)} of {place.size} processes are here. Missing ranks: "
            f"{', '.join(missing)}. Start all of them, each with the same MASTER_ADDR and MASTER_PORT."
        ) from error
    return store
