"""Ranks and their strategy, without a training around them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nequip_core.training.ranks import TORCHRUN, Place, Ranks, first_node, place_of, tasks_per_node

TORCHRUN_OF_RANK_3 = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "node01",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "False",
}
SRUN_OF_RANK_5 = {
    "SLURM_JOB_ID": "8123456",
    "SLURM_JOB_NAME": "nequip",
    "SLURM_JOB_NODELIST": "gpu[003,007-008]",
    "SLURM_LOCALID": "1",
    "SLURM_NNODES": "3",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "5",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[003,007-008]",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
}
SBATCH_SCRIPT = {  # of the same job: no step of srun
    name: value for name, value in SRUN_OF_RANK_5.items() if "STEP" not in name
} | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


def test_two_ranks() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        places = dict(zip(TORCHRUN, (rank, 2, rank, 2, 1, "127.0.0.1", port), strict=True))
        environment = {**os.environ, **{name: str(value) for name, value in places.items()}}
        command = [sys.executable, str(Path(__file__).with_name("exchanges.py"))]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    ended = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(ended)


def test_alone() -> None:
    with Ranks() as alone:
        assert (alone.rank, alone.size, alone.is_first) == (0, 1, True)
        assert alone.gather(3, "x") == [3]
        alone.same({"a": 1}, "")


def test_a_place_of_torchrun() -> None:
    assert place_of(TORCHRUN_OF_RANK_3) == Place(
        launcher="torchrun",
        rank=3,
        size=4,
        local_rank=1,
        local_size=2,
        nodes=2,
        address="node01",
        port=29500,
        hosts=False,
        attempt="1",
    )


def test_a_place_of_slurm() -> None:
    place = place_of(SRUN_OF_RANK_5)
    assert (place.launcher, place.rank, place.size, place.local_rank, place.local_size) == ("SLURM", 5, 6, 1, 2)
    assert (place.nodes, place.address, place.hosts) == (3, "gpu003", False)
    first = place_of({**SRUN_OF_RANK_5, "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"})
    assert first.hosts
    assert first.port == place.port
    assert place_of({**SRUN_OF_RANK_5, "SLURM_STEP_ID": "1"}).port != place.port
    assert place_of({**SRUN_OF_RANK_5, "MASTER_PORT": "1234", "MASTER_ADDR": "ib0"}).port == 1234


@pytest.mark.parametrize("environ", [{}, SBATCH_SCRIPT, {"RANK": "1", "WORLD_SIZE": "2"}, {"SLURM_JOB_ID": "3"}])
def test_no_launcher(environ: dict[str, str]) -> None:
    assert place_of(environ) == Place()


def test_lists_of_slurm() -> None:
    assert tasks_per_node("4(x2),1") == [4, 4, 1]
    assert tasks_per_node("8") == [8]
    assert first_node("gpu[03-05,11]-ib,login") == "gpu03-ib"
    assert first_node("n1,n2") == "n1"
    assert first_node("host-a7") == "host-a7"
