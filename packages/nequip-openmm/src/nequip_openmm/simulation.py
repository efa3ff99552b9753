"""Molecular dynamics with OpenMM's own integrators and reporters, of a system that the model computes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import openmm
from openmm import app, unit

from nequip_core.errors import InputError
from nequip_openmm.errors import OpenMMError, as_openmm
from nequip_openmm.system import Backend, create_system

READERS: dict[str, Callable[[IO[str]], Any]] = {".pdb": app.PDBFile, ".cif": app.PDBxFile, ".pdbx": app.PDBxFile}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is integrated, for how long.

    Attributes:
        ensemble: nve, nvt or npt; nvt and npt by Langevin dynamics, npt with the Monte Carlo barostat.
        temperature: of the first velocities and of the thermostat, K.
        friction: of Langevin dynamics, 1/ps.
        pressure: of the barostat, bar.
        timestep: fs.
        steps: number of steps.
        minimize: iterations of a relaxation before; 0: none.
        seed: of velocities, random forces and barostat.
        interval: steps between rows and frames.
    """

    ensemble: str = "nvt"
    temperature: float = 300.0
    friction: float = 1.0
    pressure: float = 1.0
    timestep: float = 0.5
    steps: int = 1000
    minimize: int = 0
    seed: int = 0
    interval: int = 100

    def __post_init__(self) -> None:
        if self.ensemble not in ("nve", "nvt", "npt"):
            raise InputError(f"There is no ensemble {self.ensemble!r}. Expected nve, nvt or npt.")
        for name, unit_ in (("timestep", "fs"), ("friction", "1/ps"), ("interval", "steps")):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0 {unit_}. Received {getattr(self, name):g}.")
        for name in ("temperature", "steps", "minimize"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative. Received {getattr(self, name):g}.")


@dataclass(frozen=True)
class Result:
    """How a run went.

    Attributes:
        steps: steps taken.
        seconds: of wall time.
        ns_per_day: speed.
    """

    steps: int
    seconds: float
    ns_per_day: float


def read_system(path: Path) -> Any:
    """Topology and positions of a PDB or PDBx file.

    Raises:
        InputError: it can not be read.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is no file of a system. Expected one of {', '.join(READERS)}.")
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    try:
        with path.open() as file:
            found = reader(file)
    except Exception as error:  # OpenMM's readers raise whatever their parsing meets
        raise InputError(f"{path} can not be read: {error}. Expected a PDB or PDBx file.") from error
    if found.topology.getNumAtoms() == 0:
        raise InputError(f"{path} holds no atoms.")
    return found


@as_openmm()
def prepare_simulation(
    start: Any,
    model: str | Path,
    settings: Settings,
    *,
    backend: Backend = "auto",
    platform: str = "auto",
    **options: Any,
) -> app.Simulation:
    """A simulation at its start: positions, relaxed if asked for, and velocities.

    Args:
        start: from `read_system`.
        model: see `nequip_openmm.create_system`.
        settings: of the run.
        backend: see `nequip_openmm.create_system`.
        platform: name of an OpenMM platform; auto: the fastest that is there.
        **options: of `nequip_openmm.create_system`.

    Raises:
        OpenMMError: something can not be used; the barostat has no box.
    """
    chosen = () if platform == "auto" else (_platform(platform),)
    system = create_system(start.topology, model, backend, **options)
    if settings.ensemble == "npt":
        if start.topology.getPeriodicBoxVectors() is None:
            raise OpenMMError("npt needs a periodic box, which the system does not have. Give it one, or use nvt.")
        barostat = openmm.MonteCarloBarostat(settings.pressure, settings.temperature)
        barostat.setRandomNumberSeed(settings.seed + 1)  # 0 would be another one at each run
        system.addForce(barostat)
    if settings.ensemble == "nve":
        integrator: Any = openmm.VerletIntegrator(settings.timestep * unit.femtosecond)
    else:
        integrator = openmm.LangevinMiddleIntegrator(
            settings.temperature, settings.friction / unit.picosecond, settings.timestep * unit.femtosecond
        )
        integrator.setRandomNumberSeed(settings.seed + 1)
    simulation = app.Simulation(start.topology, system, integrator, *chosen)
    simulation.context.setPositions(start.positions)
    if settings.minimize:
        simulation.minimizeEnergy(maxIterations=settings.minimize)
    simulation.context.setVelocitiesToTemperature(settings.temperature, settings.seed + 1)
    return simulation


def _platform(name: str) -> Any:
    there = [openmm.Platform.getPlatform(n).getName() for n in range(openmm.Platform.getNumPlatforms())]
    if name not in there:
        raise OpenMMError(
            f"OpenMM has no platform {name!r} here. There are {', '.join(there)}; CUDA comes with openmm-cuda-13."
        )
    return openmm.Platform.getPlatformByName(name)


def run_simulation(
    simulation: app.Simulation,
    settings: Settings,
    *,
    log: Path | None = None,
    trajectory: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Integrate and write.

    Args:
        simulation: from `prepare_simulation`.
        settings: of the run.
        log: CSV of OpenMM's StateDataReporter.
        trajectory: DCD.
        stop: asked at every interval.

    Raises:
        InputError: a file can not be written.
    """
    columns = {
        "step": True,
        "time": True,
        "potentialEnergy": True,
        "kineticEnergy": True,
        "totalEnergy": True,
        "temperature": True,
        "speed": True,
    }
    periodic = simulation.system.usesPeriodicBoundaryConditions()
    for path in filter(None, (log, trajectory)):
        _writable(path)
    if log is not None:
        simulation.reporters.append(
            app.StateDataReporter(str(log), settings.interval, volume=periodic, density=periodic, **columns)
        )
    if trajectory is not None:
        simulation.reporters.append(app.DCDReporter(str(trajectory), settings.interval))
    shown = {name: columns[name] for name in ("step", "time", "potentialEnergy", "temperature", "speed")}
    simulation.reporters.append(app.StateDataReporter(sys.stdout, settings.interval, separator="	", **shown))
    started, done = time.perf_counter(), 0
    while done < settings.steps and not stop():
        some = min(settings.interval, settings.steps - done)
        simulation.step(some)
        done += some
    seconds = time.perf_counter() - started
    simulation.reporters.clear()  # closes the files
    per_day = 86400 / seconds * done * settings.timestep * 1e-6 if done else 0.0
    return Result(done, seconds, per_day)


def _writable(path: Path) -> None:
    try:
        path.open("wb").close()
    except OSError as error:
        raise InputError(f"Can not write {path}: {error.strerror}.") from error
