"""Time to list neighbours, and of a step that uses the list again, by size, list and device.

    python benchmarks/neighbors.py [--devices cpu cuda] [--atoms 64 192 1000 10000] [--cutoff 6] [--skin 1] [--csv OUT]

"pairs": from positions to pairs within cut-off and skin, sorted or not. "rebuild": from positions to the sorted wide
graph on the device and the graph of now. "step": the graph of now from the wide one. Water's density, a cubic cell. On
the CPU the process's own time counts, which others on the machine do not change; on a CUDA device the clock does.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date

import numpy as np
import torch

from nequip_core.graph import Graph
from nequip_core.moving import MovingGraph
from nequip_core.neighbors import SkinNeighborList, make_device, make_matscipy, make_vesin
from nequip_core.plugins.manager import load_registry
from nequip_core.skin import SkinGraph

DENSITY = 0.1
"""Atoms per Å³."""

LIBRARIES = {"vesin": make_vesin, "matscipy": make_matscipy}
COLUMNS = ("what", "list", "device", "hardware", "atoms", "edges", "ms", "date")


def system(atoms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, cell and periodicity: a grid with noise, no two atoms near each other."""
    rng = np.random.default_rng(0)
    length, side = (atoms / DENSITY) ** (1 / 3), int(np.ceil(atoms ** (1 / 3)))
    places = rng.permutation(side**3)[:atoms]
    grid = np.stack(np.unravel_index(places, (side,) * 3), axis=1)
    positions = (grid + 0.5) * length / side + rng.normal(scale=0.2, size=(atoms, 3))
    return positions, length * np.eye(3), np.full(3, True)


def milliseconds(run: Callable[[], object], device: str, seconds: float) -> float:
    """Median over about so many seconds, after two calls to warm up; at least three."""
    wait, clock = (torch.cuda.synchronize, time.perf_counter) if device == "cuda" else (int, time.process_time)
    for _ in range(2):
        run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        wait()
        start = clock()
        run()
        wait()
        times.append(clock() - start)
    return float(np.median(times) * 1e3)


def cases(atoms: int, device: str, cutoff: float, skin: float) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """(what, list, what to time)."""
    positions, cell, pbc = system(atoms)
    types, cutoffs = np.zeros(atoms, dtype=np.int64), np.full((1, 1), cutoff)
    on = torch.device(device)
    x = torch.from_numpy(positions).to(on)
    own = make_device(cutoff, skin)
    yield "pairs", "device", lambda: own.pairs(x, cell[None], pbc[None], np.array([atoms]))
    if device == "cpu":
        for name, make in LIBRARIES.items():
            yield "pairs", name, lambda make=make: make(cutoff, skin)(positions, cell, pbc)
    if importlib.util.find_spec("vesin_torch"):
        from vesin_torch import NeighborList

        theirs, box = NeighborList(cutoff=cutoff + skin, full_list=True), torch.from_numpy(cell).to(on)
        yield "pairs", "vesin-torch", lambda: theirs.compute(points=x, box=box, periodic=True, quantities="ijS")

    def graphs(name: str) -> Callable[[], MovingGraph | SkinGraph]:
        if name == "device":
            return lambda: SkinGraph(load_registry().neighbor_lists["device"], cutoffs, skin, on)
        return lambda: MovingGraph(SkinNeighborList(LIBRARIES[name], cutoff, skin), cutoffs, on)

    for name in ("device", *LIBRARIES):
        make = graphs(name)

        def rebuild(make: Callable[[], MovingGraph | SkinGraph] = make) -> Graph:
            return make()(positions, types, cell, pbc)

        graph = make()
        graph(positions, types, cell, pbc)
        yield "rebuild", name, rebuild
        yield "step", name, lambda graph=graph: graph(positions, types, cell, pbc)


def edges_of(atoms: int, cutoff: float) -> int:
    positions, cell, pbc = system(atoms)
    return len(make_vesin(cutoff)(positions, cell, pbc).centre)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", default=["cpu"], choices=["cpu", "cuda"])
    parser.add_argument("--atoms", nargs="+", type=int, default=[64, 192, 1000, 10_000])
    parser.add_argument("--cutoff", type=float, default=6.0, help="Å")
    parser.add_argument("--skin", type=float, default=1.0, help="Å")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for each figure")
    parser.add_argument("--csv", type=argparse.FileType("w"), default=sys.stdout)
    options = parser.parse_args()
    table = csv.writer(options.csv)
    table.writerow(COLUMNS)
    for device in options.devices:
        hardware = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
        for atoms in options.atoms:
            edges = edges_of(atoms, options.cutoff)
            for what, name, run in cases(atoms, device, options.cutoff, options.skin):
                ms = milliseconds(run, device, options.seconds)
                table.writerow((what, name, device, hardware, atoms, edges, f"{ms:.3f}", date.today()))
                options.csv.flush()


if __name__ == "__main__":
    main()
