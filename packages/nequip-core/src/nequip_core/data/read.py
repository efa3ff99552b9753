"""Files to structures: any format ASE reads, labels by name, units converted at this border."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io.formats import ioformats
from ase.stress import voigt_6_to_full_3x3_stress
from ase.utils import string2index

from nequip_core import units as conversions
from nequip_core.errors import InputError
from nequip_core.keys import key
from nequip_core.plugins.records import ReaderEntry
from nequip_core.structure import Floats, Structure

OPENERS: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".gz": gzip.open}

CALCULATOR_PROPERTIES = ("energy", "free_energy", "forces", "stress")
"""Labels that ASE's readers move from the frame to its calculator."""


@dataclass
class Keys:
    """Names of the labels in the file."""

    energy: str = key("energy", "total energy of the frame (VASP: free_energy, whose derivative the forces are)")
    forces: str = key("forces", "forces on the atoms")
    stress: str = key("stress", "3x3, or Voigt xx yy zz yz xz xy")
    virial: str | None = key(None, "used instead of stress when named; -dE/dstrain")
    type: str | None = key(None, "per-atom type names, for types finer than elements")
    weight: str | None = key(None, "per-frame factor in the loss")
    config_type: str = key("config_type", "rows of the error tables")


@dataclass
class Units:
    """Units of the numbers in the file; everything inside is eV and Å."""

    length: str = key("Angstrom", "Angstrom | Bohr | nm")
    energy: str = key("eV", "eV | meV | Hartree | Rydberg | kcal/mol | kJ/mol")
    forces: str = key("auto", "auto: energy/length; or e.g. Hartree/Bohr")
    stress: str = key("eV/Angstrom^3", "eV/Angstrom^3 | GPa | kbar | Hartree/Bohr^3")
    stress_sign: str = key(
        "tension_positive",
        "tension_positive (ASE: dE/dstrain / V) | compression_positive (as VASP prints)",
    )


def read(
    path: str | Path,
    *,
    index: str = ":",
    format: str = "auto",
    keys: Keys | None = None,
    units: Units | None = None,
    readers: Mapping[str, ReaderEntry] | None = None,
) -> Iterator[Structure]:
    """The structures of a file, one after the other, in eV and Å.

    Args:
        path: the file; ``.xz`` and ``.gz`` are unpacked as a stream.
        index: which frames, an ASE slice or number.
        format: auto: a reader by the file's suffix, otherwise ASE by the file's name; or the name of a reader or of one
            of ASE's formats.
        keys: names of the labels.
        units: of the numbers in the file.
        readers: the registry's, by name.

    Raises:
        InputError: no such file, no frames, a frame that can not be read, a label that is not a number. Files are read
            while iterating, and so the error comes then.
    """
    path = Path(path)
    keys, units = keys or Keys(), units or Units()
    if not path.is_file():
        raise InputError(f"No such file: {path}. Paths are relative to the current folder.")
    named = {entry.name: entry for entry in (readers or {}).values()}
    by_suffix = {suffix: entry for entry in named.values() for suffix in entry.suffixes}
    entry = named.get(format) or (by_suffix.get(path.suffix) if format == "auto" else None)
    if entry is not None and entry.name != "ase":
        frames = entry.open.load()(path, index, keys, units)
    else:
        frames = open_ase(path, index, keys, units, format="auto" if format == "ase" else format)
    empty = True
    for structure in frames:
        structure.validate()
        empty = False
        yield structure
    if empty:
        raise InputError(f"{path} holds no frames (index {index!r}). Expected at least one structure.")


def open_ase(path: Path, index: str, keys: Keys, units: Units, *, format: str = "auto") -> Iterator[Structure]:
    """Structures through ASE's readers, streamed."""
    inner = Path(path.stem) if path.suffix in OPENERS else path
    name = format if format != "auto" else _format_by_name(inner)
    if name is not None and name not in ioformats:
        raise InputError(f"data.format {format!r} is none of ASE's formats. See `ase info --formats`; auto guesses.")
    convert = _Converter(keys, units)
    wanted = _parse_index(index, path)
    with ExitStack() as stack:
        source: Any = path
        if path.suffix in OPENERS:
            # A text stream of known format: ASE would otherwise seek, and every seek unpacks again from the start.
            source = stack.enter_context(OPENERS[path.suffix](path, "rt"))
            name = name or "extxyz"
        frames = _iterate(source, wanted, name, path)
        number = -1
        while True:
            try:
                number, atoms = next(frames)
            except StopIteration:
                return
            except Exception as error:  # ASE's readers raise any error on a file that is not what it seems
                raise InputError(
                    f"{path}: frame {number + 1} can not be read as {name or 'any format of ASE'}: "
                    f"{error or type(error).__name__}. "
                    "Check the file, or name its format (data.format)."
                ) from error
            yield convert(atoms, f"{path}:{number}")


def _format_by_name(path: Path) -> str | None:
    """extxyz for .xyz; otherwise None, and ASE looks at the name and at the content."""
    return "extxyz" if path.suffix in (".xyz", ".extxyz") else None


def _parse_index(index: str, path: Path) -> slice:
    try:
        wanted = string2index(str(index))
    except ValueError:
        wanted = None
    if isinstance(wanted, int):
        return slice(wanted, None if wanted == -1 else wanted + 1)
    if not isinstance(wanted, slice):
        raise InputError(f"{path}: index {index!r} is no slice. Expected start:stop:step or a number, such as ':100'.")
    return wanted


def _iterate(source: Any, wanted: slice, name: str | None, path: Path) -> Iterator[tuple[int, Atoms]]:
    """Pairs (frame number, frame) that the slice selects, reading no more than needed."""
    forward = all(bound is None or bound >= 0 for bound in (wanted.start, wanted.stop)) and (wanted.step or 1) > 0
    if path.stat().st_size == 0:
        return
    frames = ase.io.iread(source, index=":", format=name)
    if forward:
        start, stop, step = wanted.start or 0, wanted.stop, wanted.step or 1
        for number, atoms in enumerate(frames):
            if stop is not None and number >= stop:
                return
            if number >= start and (number - start) % step == 0:
                yield number, atoms
    else:
        yield from list(enumerate(frames))[wanted]


class _Converter:
    """ASE's frames to structures: labels by their names, in eV and Å."""

    def __init__(self, keys: Keys, units: Units) -> None:
        self.keys = keys
        self.length = conversions.LENGTH[units.length]
        self.energy = conversions.ENERGY[units.energy]
        self.force = conversions.force(units.forces, length=units.length, energy=units.energy)
        self.stress = conversions.STRESS[units.stress] * conversions.STRESS_SIGN[units.stress_sign]

    def __call__(self, atoms: Atoms, source: str) -> Structure:
        keys, atoms_count = self.keys, len(atoms)
        cell = np.asarray(atoms.cell.array) * self.length
        names = _lookup(atoms, keys.type) if keys.type else None
        if keys.type and names is None:
            raise InputError(f"{source}: no per-atom array {keys.type!r} (data.keys.type).")
        config_type = _lookup(atoms, keys.config_type)
        weight = _number(atoms, keys.weight, 1.0, source) if keys.weight else None
        return Structure(
            positions=np.asarray(atoms.positions, dtype=np.float64) * self.length,
            numbers=np.asarray(atoms.numbers, dtype=np.int64),
            cell=cell,
            pbc=np.asarray(atoms.pbc, dtype=bool),
            type_names=None if names is None else tuple(str(name) for name in names),
            energy=_number(atoms, keys.energy, self.energy, source),
            forces=_array(atoms, keys.forces, (atoms_count, 3), self.force, source),
            stress=self._stress(atoms, cell, source),
            weight=1.0 if weight is None else weight,
            config_type=None if config_type is None else str(config_type),
            source=source,
        )

    def _stress(self, atoms: Atoms, cell: Floats, source: str) -> Floats | None:
        if self.keys.virial is None:
            return _tensor(atoms, self.keys.stress, self.stress, source)
        # Virials are energies, and their sign is fixed: -dE/dstrain.
        virial = _tensor(atoms, self.keys.virial, self.energy, source)
        if virial is None or not atoms.pbc.all():
            return None
        return -virial / abs(float(np.linalg.det(cell)))


def _lookup(atoms: Atoms, name: str) -> Any:
    """A label from the frame's calculator, its arrays or its info; None where it has none."""
    if name in CALCULATOR_PROPERTIES and atoms.calc is not None:
        if name == "free_energy":
            return atoms.calc.results.get("free_energy", atoms.info.get(name))
        try:
            return atoms.calc.get_property(name, atoms, allow_calculation=False)
        except PropertyNotImplementedError:
            pass
    if name in atoms.arrays:
        return atoms.arrays[name]
    return atoms.info.get(name)


def _number(atoms: Atoms, name: str, factor: float, source: str) -> float | None:
    value = _lookup(atoms, name)
    if value is None:
        return None
    try:
        return float(value) * factor
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {name} = {value!r} is not a number.") from error


def _array(atoms: Atoms, name: str, shape: tuple[int, ...], factor: float, source: str) -> Floats | None:
    value = _lookup(atoms, name)
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.shape != shape:
        raise InputError(
            f"{source}: {name} has shape {array.shape} of {array.dtype}. Expected numbers of shape {shape}."
        )
    return np.asarray(array, dtype=np.float64) * factor


def _tensor(atoms: Atoms, name: str, factor: float, source: str) -> Floats | None:
    """3x3 from 3x3, nine numbers, or Voigt's six."""
    value = _lookup(atoms, name)
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.size not in (6, 9):
        raise InputError(f"{source}: {name} has shape {array.shape}. Expected 3x3, or Voigt xx yy zz yz xz xy.")
    full = voigt_6_to_full_3x3_stress(array.ravel()) if array.size == 6 else array.reshape(3, 3)
    return np.asarray(full, dtype=np.float64) * factor
