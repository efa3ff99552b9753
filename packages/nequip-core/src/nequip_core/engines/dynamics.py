"""Molecular dynamics and relaxation with ASE's own classes: what is integrated, logged and written.

Any ASE calculator will do; `nequip_core.engines.ase.NequIPCalculator` is the one the command line attaches. Units are
those of the command line: K, fs, GPa, eV, Å. Nothing is written before the first energy is known to be finite, and
whatever is written is whole rows and whole frames, so that a run may be stopped at any moment.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.io.extxyz import write_extxyz
from ase.md.langevin import Langevin
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE, LBFGS

from nequip_core.errors import CheckError, InputError
from nequip_core.files import RecordFile

COLUMNS = {
    "step": "d",
    "time_fs": ".10g",
    "temperature_K": ".4f",
    "potential_energy_eV": ".9f",
    "kinetic_energy_eV": ".9f",
    "total_energy_eV": ".9f",
    "volume_A3": ".6f",
    "pressure_GPa": ".6f",
}
"""Columns of the log and their formats. Volume and pressure are empty unless all three directions are periodic."""

BAROSTAT_TO_THERMOSTAT = 10.0
"""Ratio of the barostat's time constant to the thermostat's."""

HOTTEST = 20.0
"""A run is stopped above this multiple of the temperature asked for (of 300 K where less was asked for)."""

KEPT_ARRAYS = {"numbers", "positions", "momenta", "masses", "tags"}
"""Per-atom arrays that still hold once atoms have moved; labels of the first geometry do not."""


@dataclass(frozen=True, kw_only=True)
class DynamicsSettings:
    """What is integrated, for how long.

    Attributes:
        ensemble: nve, nvt or npt (isotropic: the cell keeps its shape).
        thermostat: langevin or nose-hoover; None with nve.
        temperature: of the first velocities and of the thermostat, K.
        friction: of Langevin dynamics; the inverse time constant of a Nosé-Hoover chain. 1/fs.
        pressure: of the barostat, GPa.
        timestep: fs.
        steps: number of steps.
        seed: of velocities and random forces.
        interval: steps between rows of the log and frames of the trajectory.
    """

    ensemble: str = "nve"
    thermostat: str | None = None
    temperature: float = 300.0
    friction: float = 0.01
    pressure: float = 0.0
    timestep: float = 1.0
    steps: int = 1000
    seed: int = 0
    interval: int = 10

    def __post_init__(self) -> None:
        if (self.ensemble, self.thermostat) not in INTEGRATORS:
            known = ", ".join(f"{e} with {t or 'no thermostat'}" for e, t in INTEGRATORS)
            raise InputError(
                f"There is no {self.ensemble} dynamics with {self.thermostat or 'no thermostat'}. Expected: {known}."
            )
        for name, unit in (("timestep", "fs"), ("friction", "1/fs"), ("interval", "steps")):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0 {unit}. Received {getattr(self, name):g}.")
        for name, unit in (("temperature", "K"), ("steps", "")):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative. Received {getattr(self, name):g} {unit}".rstrip() + ".")
        if self.thermostat is not None and self.temperature == 0:
            raise InputError("A thermostat needs a temperature above 0 K. Received 0.")


@dataclass
class DynamicsResult:
    """How a run went.

    Attributes:
        steps: steps taken.
        rows: the log, one row per ``interval``, by column; None for volume and pressure of an open system.
        interrupted: whether it was asked to stop before its last step.
        seconds: wall time.
    """

    steps: int = 0
    rows: list[dict[str, float | None]] = field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0

    def mean_temperature(self) -> float:
        """Mean of the logged temperatures, K."""
        return float(np.mean([row["temperature_K"] for row in self.rows]))

    def drift(self, num_atoms: int) -> float:
        """Slope of a line fitted to the logged total energy, meV/atom/ps; NaN with fewer than two rows."""
        if len(self.rows) < 2:
            return float("nan")
        time_ps = np.array([row["time_fs"] for row in self.rows], dtype=float) / 1e3
        energy_meV = np.array([row["total_energy_eV"] for row in self.rows], dtype=float) * 1e3 / num_atoms
        time_ps -= time_ps.mean()
        return float(time_ps @ (energy_meV - energy_meV.mean()) / (time_ps @ time_ps))


def draw_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Maxwell-Boltzmann momenta at ``temperature`` (K) without net momentum, in place.

    Where atoms are constrained the net momentum is left as drawn: the constraints hold the system in place.
    """
    masses = atoms.get_masses()[:, None]
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * ase.units.kB * temperature)
    if not atoms.constraints:
        momenta -= masses * (momenta.sum(0) / masses.sum())
    atoms.set_momenta(momenta)


def _nve(atoms: Atoms, settings: DynamicsSettings, rng: np.random.Generator, dof: int) -> MolecularDynamics:
    return VelocityVerlet(atoms, timestep=settings.timestep * ase.units.fs)


def _nvt_langevin(atoms: Atoms, settings: DynamicsSettings, rng: np.random.Generator, dof: int) -> MolecularDynamics:
    return Langevin(
        atoms,
        timestep=settings.timestep * ase.units.fs,
        temperature_K=settings.temperature,
        friction=settings.friction / ase.units.fs,
        fixcm=False,
        rng=rng,
    )


def _nvt_nose_hoover(atoms: Atoms, settings: DynamicsSettings, rng: np.random.Generator, dof: int) -> MolecularDynamics:
    return NoseHooverChainNVT(
        atoms,
        timestep=settings.timestep * ase.units.fs,
        temperature_K=_chain_temperature(atoms, settings, dof),
        tdamp=ase.units.fs / settings.friction,
    )


def _npt_nose_hoover(atoms: Atoms, settings: DynamicsSettings, rng: np.random.Generator, dof: int) -> MolecularDynamics:
    return IsotropicMTKNPT(
        atoms,
        timestep=settings.timestep * ase.units.fs,
        temperature_K=_chain_temperature(atoms, settings, dof),
        pressure_au=settings.pressure * ase.units.GPa,
        tdamp=ase.units.fs / settings.friction,
        pdamp=BAROSTAT_TO_THERMOSTAT * ase.units.fs / settings.friction,
    )


def _npt_langevin(atoms: Atoms, settings: DynamicsSettings, rng: np.random.Generator, dof: int) -> MolecularDynamics:
    time_constant = BAROSTAT_TO_THERMOSTAT * ase.units.fs / settings.friction
    return LangevinBAOAB(
        atoms,
        timestep=settings.timestep * ase.units.fs,
        temperature_K=settings.temperature,
        externalstress=-settings.pressure * ase.units.GPa,
        hydrostatic=True,
        T_tau=ase.units.fs / settings.friction,
        P_tau=time_constant,
        # the barostat mass of Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177 (1994)
        P_mass=(dof + 3) * ase.units.kB * settings.temperature * time_constant**2,
        rng=rng,
    )


INTEGRATORS: dict[
    tuple[str, str | None], Callable[[Atoms, DynamicsSettings, np.random.Generator, int], MolecularDynamics]
] = {
    ("nve", None): _nve,
    ("nvt", "langevin"): _nvt_langevin,
    ("nvt", "nose-hoover"): _nvt_nose_hoover,
    ("npt", "nose-hoover"): _npt_nose_hoover,
    ("npt", "langevin"): _npt_langevin,
}
"""(ensemble, thermostat) -> ASE's integrator; the first of each ensemble is its default."""


def _chain_temperature(atoms: Atoms, settings: DynamicsSettings, dof: int) -> float:
    """The temperature that makes ASE's chain, which counts 3N degrees of freedom, hold ``dof`` of them at ours."""
    return settings.temperature * dof / (3 * len(atoms))


def degrees_of_freedom(atoms: Atoms, thermostat: str | None) -> int:
    """Momenta that carry thermal energy: without random forces the centre of mass stays at rest."""
    if atoms.constraints or thermostat == "langevin" or len(atoms) == 1:
        return int(atoms.get_number_of_degrees_of_freedom())
    return 3 * len(atoms) - 3


def run_dynamics(
    atoms: Atoms,
    settings: DynamicsSettings,
    *,
    log: Path | None = None,
    trajectory: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[dict[str, float | None]], None] = lambda row: None,
) -> DynamicsResult:
    """Integrate ``atoms`` in place, with new velocities at the temperature of ``settings``.

    Args:
        atoms: with a calculator attached.
        settings: ensemble, temperatures, length.
        log: CSV with `COLUMNS`, a row per interval, flushed row by row.
        trajectory: extended XYZ with energy, forces, stress and momenta, a frame per interval, flushed frame by frame.
        stop: asked after each step; true ends the run with ``interrupted``.
        report: called with each row of the log.

    Raises:
        InputError: npt without a periodic cell, or constraints that the integrator does not know.
        CheckError: the energy is not finite or the atoms fly apart; log and trajectory hold what went before.
    """
    if settings.ensemble == "npt" and not atoms.pbc.all():
        raise InputError(
            "npt dynamics needs a cell that is periodic in all three directions. "
            f"Received pbc {atoms.pbc.tolist()}. Use --ensemble nvt."
        )
    if atoms.constraints and (settings.ensemble, settings.thermostat) not in {("nve", None), ("nvt", "langevin")}:
        raise InputError(
            f"{settings.ensemble} dynamics with {settings.thermostat} does not know constraints. Received "
            f"{', '.join(type(c).__name__ for c in atoms.constraints)}. Use --ensemble nve, or nvt with langevin."
        )
    _keep_what_moves(atoms)
    rng = np.random.default_rng(settings.seed)
    draw_velocities(atoms, settings.temperature, rng)
    dof = degrees_of_freedom(atoms, settings.thermostat)
    integrator = INTEGRATORS[settings.ensemble, settings.thermostat](atoms, settings, rng, dof)
    limit = HOTTEST * max(settings.temperature, 300.0)
    result = DynamicsResult()
    start = time.perf_counter()
    with ExitStack() as files:
        rows: RecordFile | None = None
        frames: RecordFile | None = None
        for _ in integrator.irun(settings.steps):
            result.steps = integrator.nsteps
            potential = atoms.get_potential_energy()
            kinetic = atoms.get_kinetic_energy()
            temperature = 2.0 * kinetic / (dof * ase.units.kB) if dof else 0.0
            _check_sane(result.steps, settings, potential, temperature, limit)
            if result.steps == 0:  # only now is it known that the model takes this structure
                rows = files.enter_context(RecordFile(log)) if log else None
                frames = files.enter_context(RecordFile(trajectory)) if trajectory else None
                if rows:
                    rows.write(",".join(COLUMNS) + "\n")
            if result.steps % settings.interval == 0:
                row = _row(atoms, result.steps, settings.timestep, temperature, potential, kinetic)
                result.rows.append(row)
                report(row)
                if rows:
                    rows.write(",".join(_cell(row[name], format) for name, format in COLUMNS.items()) + "\n")
                if frames:
                    frames.write(_frame(atoms, step=result.steps, time_fs=result.steps * settings.timestep))
            if result.steps < settings.steps and stop():
                result.interrupted = True
                break
    result.seconds = time.perf_counter() - start
    return result


def _row(
    atoms: Atoms, step: int, timestep: float, temperature: float, potential: float, kinetic: float
) -> dict[str, float | None]:
    volume = pressure = None
    if atoms.pbc.all():
        volume = float(atoms.get_volume())
        # the pressure a barostat holds: virial and momenta
        virial_part = -float(atoms.get_stress(voigt=True)[:3].mean())
        pressure = (virial_part + 2.0 * kinetic / (3.0 * volume)) / ase.units.GPa
    return {
        "step": step,
        "time_fs": step * timestep,
        "temperature_K": temperature,
        "potential_energy_eV": potential,
        "kinetic_energy_eV": kinetic,
        "total_energy_eV": potential + kinetic,
        "volume_A3": volume,
        "pressure_GPa": pressure,
    }


def _check_sane(step: int, settings: DynamicsSettings, potential: float, temperature: float, limit: float) -> None:
    if np.isfinite(potential) and temperature < limit:
        return
    where = f"at step {step} ({step * settings.timestep:g} fs)"
    found = f"the atoms fly apart {where}: {temperature:.0f} K, more than {limit:.0f} K"
    if not (np.isfinite(potential) and np.isfinite(temperature)):
        found = f"the energy is not finite {where}"
    raise CheckError(
        f"Stopped: {found}. Take a smaller --timestep (received {settings.timestep:g} fs), relax the structure first "
        "(nequip relax), or look whether the model was trained on structures like this one (nequip evaluate)."
    )


def _keep_what_moves(atoms: Atoms) -> None:
    """Drop labels and notes that belong to the first geometry only, so that no frame repeats them."""
    atoms.info.clear()
    for name in set(atoms.arrays) - KEPT_ARRAYS:
        del atoms.arrays[name]


def _cell(value: float | None, format: str) -> str:
    return "" if value is None else f"{value:{format}}"


def _frame(atoms: Atoms, **info: float) -> str:
    """Extended XYZ of the atoms with their results."""
    frame = atoms.copy()
    frame.info.update(info)
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(apply_constraint=False)}
    if atoms.pbc.all():
        results["stress"] = atoms.get_stress(voigt=True, apply_constraint=False)
    frame.calc = SinglePointCalculator(frame, **results)
    text = io.StringIO()
    write_extxyz(text, frame)
    return text.getvalue()


OPTIMIZERS = {"bfgs": BFGS, "lbfgs": LBFGS, "fire": FIRE}
"""ASE's optimizers by the name on the command line."""


@dataclass(frozen=True, kw_only=True)
class RelaxStep:
    """One step of a relaxation: energy in eV, the largest force (and, with the cell, generalised force) in eV/Å."""

    step: int
    energy: float
    fmax: float


@dataclass(frozen=True, kw_only=True)
class RelaxResult:
    """The last step, and whether it is below the force asked for."""

    last: RelaxStep
    converged: bool
    interrupted: bool


def relax(
    atoms: Atoms,
    *,
    fmax: float = 0.01,
    cell: bool = False,
    optimizer: str = "bfgs",
    steps: int = 500,
    trajectory: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[RelaxStep], None] = lambda step: None,
) -> RelaxResult:
    """Move atoms (and cell) to a minimum of the energy, in place.

    Args:
        atoms: with a calculator attached.
        fmax: largest force on an atom at the end, eV/Å; with ``cell`` also the largest generalised force of the cell.
        cell: relax the lattice vectors too, at no external pressure (exponential filter, ASE's FrechetCellFilter).
        optimizer: a name of `OPTIMIZERS`.
        steps: at most so many.
        trajectory: extended XYZ, a frame per step; the last is the relaxed structure.
        stop: asked after each step; true ends the run with ``interrupted``.
        report: called with each step.

    Raises:
        InputError: an unknown optimizer, a value out of range, or ``cell`` without a periodic cell.
        CheckError: the energy is not finite.
    """
    if optimizer not in OPTIMIZERS:
        raise InputError(f"There is no optimizer {optimizer!r}. Expected one of {', '.join(OPTIMIZERS)}.")
    if not fmax > 0 or steps < 0:
        raise InputError(f"fmax must be above 0 and steps not negative. Received {fmax:g} and {steps}.")
    if cell and not atoms.pbc.all():
        raise InputError(
            "--cell needs a cell that is periodic in all three directions. "
            f"Received pbc {atoms.pbc.tolist()}. Leave --cell out."
        )
    _keep_what_moves(atoms)
    search = OPTIMIZERS[optimizer](FrechetCellFilter(atoms) if cell else atoms, logfile=None)
    with ExitStack() as files:
        frames: RecordFile | None = None
        for converged, last in _relax_steps(search, fmax, steps):
            if not np.isfinite(last.energy) or not np.isfinite(last.fmax):
                raise CheckError(
                    f"Stopped: the energy or a force is not finite at step {last.step}. Look whether atoms overlap and "
                    "whether the model was trained on structures like this one (nequip evaluate)."
                )
            if last.step == 0 and trajectory:
                frames = files.enter_context(RecordFile(trajectory))
            report(last)
            if frames:
                frames.write(_frame(atoms, step=last.step))
            if not converged and last.step < steps and stop():
                return RelaxResult(last=last, converged=False, interrupted=True)
    return RelaxResult(last=last, converged=converged, interrupted=False)


def _relax_steps(search: Any, fmax: float, steps: int) -> Iterator[tuple[bool, RelaxStep]]:
    for converged in search.irun(fmax=fmax, steps=steps):
        gradient = search.optimizable.get_gradient().reshape(-1, 3)
        largest = float(np.sqrt((gradient**2).sum(1).max()))
        yield bool(converged), RelaxStep(step=search.nsteps, energy=float(search.optimizable.get_value()), fmax=largest)
