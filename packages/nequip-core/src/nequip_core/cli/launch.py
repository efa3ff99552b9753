"""The processes of ``nequip train ... trainer.devices=4`` on one machine: started, told of signals, ended together.

Each is told its place as torchrun would tell it, so that what follows does not depend on who started it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch.distributed as dist

from nequip_core.training.ranks import AGENT, TORCHRUN
from nequip_core.training.watch import GRACE

PERIOD = 0.05
"""Seconds between two looks at the processes."""

ADDRESS = "127.0.0.1"


def launch(argv: Sequence[str], size: int) -> int:
    """Run ``nequip train`` with these arguments in ``size`` processes.

    Returns:
        0, or the exit code of the first that failed; 128 + N where signal N ended it.
    """
    store = dist.TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False)
    command = [sys.executable, "-m", "nequip_core", "train", *argv]
    processes: list[subprocess.Popen[bytes]] = []
    with _passed_on(processes):
        for rank in range(size):
            places = (rank, size, rank, size, 1, ADDRESS, store.port)
            environment = {name: str(value) for name, value in zip(TORCHRUN, places, strict=True)}
            threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // size))}
            # A group of its own: Ctrl-C reaches us only, and each process once, through us.
            processes.append(
                subprocess.Popen(command, env={**threads, **os.environ, **environment, AGENT: "True"}, process_group=0)
            )
        try:
            return _wait(processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Until all have ended, or one has failed and the others were given their time."""
    failed, limit = 0, float("inf")
    running = dict(enumerate(processes))
    while running and time.monotonic() < limit:
        for rank, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[rank]
            if code and not failed:
                failed, limit = (code if code > 0 else 128 - code), time.monotonic() + 2 * GRACE
                if code < 0:
                    name = signal.Signals(-code).name
                    print(f"nequip: rank {rank} (process {process.pid}) was ended by {name}.", file=sys.stderr)
        time.sleep(PERIOD)
    return failed


@contextmanager
def _passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to each process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(signum: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(signum)

    before = {kind: signal.signal(kind, pass_on) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
