"""Files to structures: any format ASE reads, labels by name, units converted at this border."""

from __future__ import annotations

import gzip
import io
import itertools
import lzma
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io.extxyz import read_extxyz
from ase.io.formats import UnknownFileTypeError, filetype, ioformats
from ase.stress import voigt_6_to_full_3x3_stress
from ase.utils import string2index

from nequip_core import units as conversions
from nequip_core.errors import InputError
from nequip_core.keys import key
from nequip_core.plugins.manager import nearest
from nequip_core.plugins.records import ReaderEntry
from nequip_core.structure import Floats, Structure, source_of

OPENERS: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".gz": gzip.open}

CALCULATOR_PROPERTIES = ("energy", "free_energy", "forces", "stress")
"""Labels that ASE's readers move from the frame to its calculator."""


@dataclass
class Keys:
    """Names of the labels in the file."""

    energy: str = key(
        "energy", "total energy of the frame; of VASP, QE ...: its free energy, which the forces belong to"
    )
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
    say: Callable[[str], None] = warnings.warn,
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
        say: told what looks wrong with the labels.

    Raises:
        InputError: no such file, units declared where ASE converts, two readers for one suffix, no frames, a frame that
            can not be read, a label that is not a number. Files are read while iterating, and so the error comes then.
    """
    path = Path(path)
    keys, units = keys or Keys(), units or Units()
    if not path.is_file():
        raise InputError(f"No such file: {path}. Paths are relative to the current folder.")
    entry = reader_of(path, format, readers or {})
    if entry is not None:
        frames = entry.open.load()(path, index, keys, units)
    else:
        frames = open_ase(path, index, keys, units, format="auto" if format == "ase" else format, say=say)
    empty = True
    for structure in frames:
        structure.validate()
        empty = False
        yield structure
    if empty:
        raise InputError(f"{path} holds no frames (index {index!r}). Expected at least one structure.")


def reader_of(path: Path, format: str, readers: Mapping[str, ReaderEntry]) -> ReaderEntry | None:
    """The plugin's reader of a format or of a file's suffix; None: ASE reads it."""
    others = {entry.name: entry for entry in readers.values() if entry.name != "ase"}
    if format != "auto":
        return others.get(format)
    claims = [entry for entry in others.values() if path.suffix in entry.suffixes]
    if len(claims) > 1:
        raise InputError(
            f"{path}: {' and '.join(entry.name for entry in claims)} both read files {path.suffix}. Say which: "
            f"data.format={claims[0].name}."
        )
    return claims[0] if claims else None


def open_ase(
    path: Path,
    index: str,
    keys: Keys,
    units: Units,
    *,
    format: str = "auto",
    say: Callable[[str], None] = warnings.warn,
) -> Iterator[Structure]:
    """Structures through ASE's readers, streamed."""
    name = _format_of(path, format)
    converted = name in ioformats and name not in AS_WRITTEN
    convert = _Converter(keys, units, forces_of_free_energy=converted)
    if converted and units != Units():
        _refuse_units(path, name, units)
    free = FreeEnergies(watch=keys.energy == "energy" and not converted)
    for atoms, source in ase_frames(path, index, format=format):
        free.look(atoms)
        yield convert(atoms, source)
    free.tell(path, say)


AS_WRITTEN = ("extxyz", "xyz", "traj", "json", "db", "bundletrajectory", "netcdftrajectory")
"""ASE's formats that hold numbers as somebody put them in. In all others ASE knows the program's units and converts."""


def _format_of(path: Path, format: str) -> str:
    """Name of the ASE format of a file; empty where nobody knows: its reader will say so."""
    inner = Path(path.stem) if path.suffix in OPENERS else path
    name = format if format != "auto" else _format_by_name(inner)
    if name is not None:
        return name
    try:
        return str(filetype(str(path), guess=True))
    except (UnknownFileTypeError, OSError, EOFError, lzma.LZMAError, zlib.error):
        return ""


def _refuse_units(path: Path, name: str, units: Units) -> None:
    """Units of a file whose units ASE knows are no matter of declaration."""
    declared = ", ".join(f"{key}: {value}" for key, value in vars(units).items() if value != getattr(Units(), key))
    raise InputError(
        f"{path}: data.units declares {declared}, but ASE reads {name} ({ioformats[name].description}) and "
        "converts it to eV and Å itself. Leave data.units out for such files."
    )


class FreeEnergies:
    """Notices frames whose energy is not the one that their forces belong to (a smeared density of states)."""

    def __init__(self, *, watch: bool) -> None:
        self.watch = watch
        self.frames, self.largest = 0, 0.0

    def look(self, atoms: Atoms) -> None:
        """At a frame as ASE read it."""
        results = {} if atoms.calc is None or not self.watch else atoms.calc.results
        energy, free = results.get("energy"), results.get("free_energy")
        if isinstance(energy, float) and isinstance(free, float) and abs(energy - free) > FREE_ENERGY:
            self.frames += 1
            self.largest = max(self.largest, abs(energy - free))

    def tell(self, path: Path, say: Callable[[str], None]) -> None:
        """What was found."""
        if self.frames:
            say(
                f"{path}: in {self.frames} frames the free energy differs from the energy (by up to "
                f"{self.largest:.3g} eV), and the forces are the derivative of the free energy. Train on it: "
                "data.keys.energy=free_energy."
            )


FREE_ENERGY = 1e-6
"""eV; differences below this are rounding."""


def read_atoms(path: str | Path, index: int = 0) -> Atoms:
    """One frame as ASE reads it, with its constraints and masses, for ASE's own engines; without units to convert.

    Raises:
        InputError: no such file or frame, a frame that can not be read or that no model can work with.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"No such file: {path}. Paths are relative to the current folder.")
    for atoms, source in ase_frames(path, str(index)):
        Structure.from_ase(atoms, source=source).validate()
        return atoms
    raise InputError(f"{path} holds no frame {index}. Expected a structure; the first frame is --index 0.")


def names_of_labels(path: Path, format: str = "auto") -> str:
    """A sentence on what the first frame of a file holds, by the names that ``data.keys`` may say."""
    for atoms, source in ase_frames(path, "0", format=format):
        results = [name for name in CALCULATOR_PROPERTIES if _lookup(atoms, name) is not None]
        per_atom = [name for name in atoms.arrays if name not in ("numbers", "positions")]
        return f"{source} holds {', '.join(dict.fromkeys([*results, *atoms.info, *per_atom])) or 'no label'}."
    return ""


def ase_frames(path: Path, index: str, *, format: str = "auto") -> Iterator[tuple[Atoms, str]]:
    """Frames through ASE's readers, streamed, each with where it came from."""
    inner = Path(path.stem) if path.suffix in OPENERS else path
    name = format if format != "auto" else _format_by_name(inner)
    if name is not None and name not in ioformats:
        raise InputError(f"data.format {format!r} is none of ASE's formats. See `ase info --formats`; auto guesses.")
    wanted = _parse_index(index, path)
    if path.stat().st_size == 0:
        return
    frames = _extxyz(path, wanted) if name == "extxyz" else _any_format(path, wanted, name)
    for number, atoms in frames:
        yield atoms, source_of(path, number)


def _unreadable(path: Path, number: int, format: str, error: Exception | str) -> InputError:
    return InputError(
        f"{path}: frame {number} can not be read as {format}: {str(error) or type(error).__name__}. "
        "Check the file, or name its format (data.format)."
    )


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


def _any_format(path: Path, wanted: slice, name: str | None) -> Iterator[tuple[int, Atoms]]:
    frames = _select(ase.io.iread(path, index=":", format=name, do_not_split_by_at_sign=True), wanted)
    number = -1
    while True:
        try:
            number, atoms = next(frames)
        except StopIteration:
            return
        except Exception as error:  # ASE's readers raise any error on a file that is not what it seems
            raise _unreadable(path, number + 1, name or "any format of ASE", error) from error
        yield number, atoms


def _extxyz(path: Path, wanted: slice) -> Iterator[tuple[int, Atoms]]:
    """Frames by ASE's parser, one at a time: on a whole file it seeks, and each seek unpacks .xz from the start."""
    for number, text in _select(_blocks(path), wanted):
        try:
            (atoms,) = read_extxyz(io.StringIO(text), 0)
        except Exception as error:  # see above
            strange = isinstance(error, KeyError) and error.args[0] in text.split()
            what = f"{error.args[0]!r} is no chemical element" if strange else error
            raise _unreadable(path, number, "extxyz", what) from error
        yield number, atoms


def _blocks(path: Path) -> Iterator[str]:
    """The text of each frame: number of atoms, comment, atoms, and cell vectors in lines that begin with VEC."""
    number = 0
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
            line = file.readline()
            while line:
                if not line.strip():
                    line = file.readline()
                    continue
                if not line.strip().isdecimal():
                    raise _unreadable(path, number, "extxyz", f"expected a number of atoms, received {line.strip()!r}")
                atoms = int(line)
                block = [line, *itertools.islice(file, atoms + 1)]
                if len(block) < atoms + 2:
                    raise _unreadable(path, number, "extxyz", f"the file ends within the frame's {atoms} atoms")
                while (line := file.readline()).lstrip().startswith("VEC"):
                    block.append(line)
                yield "".join(block)
                number += 1
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
        raise _unreadable(path, number, "extxyz", error) from error


T = TypeVar("T")


def _select(frames: Iterable[T], wanted: slice) -> Iterator[tuple[int, T]]:
    """(frame number, frame) of those that the slice selects, reading no more than needed."""
    numbered = enumerate(frames)
    start, stop, step = wanted.start, wanted.stop, wanted.step
    if all(bound is None or bound >= 0 for bound in (start, stop)) and (step or 1) > 0:
        return itertools.islice(numbered, start, stop, step)
    return iter(list(numbered)[wanted])


UNIT_WORDS: Mapping[str, tuple[str, ...]] = {
    "length": tuple(conversions.LENGTH),
    "energy": tuple(conversions.ENERGY),
    "forces": conversions.FORCE_NAMES,
    "stress": tuple(conversions.STRESS),
    "stress_sign": tuple(conversions.STRESS_SIGN),
}
"""What each key of `Units` may say."""


class _Converter:
    """ASE's frames to structures: labels by their names, in eV and Å.

    Where ASE reads a program's output, it calls the energy whose derivative the forces are ``free_energy``, and
    ``energy`` the one that was extrapolated to no smearing, if the program does that.
    """

    def __init__(self, keys: Keys, units: Units, *, forces_of_free_energy: bool) -> None:
        for name, known in UNIT_WORDS.items():
            word = getattr(units, name)
            if word not in known:
                raise InputError(
                    f"data.units.{name}: {word!r} is no unit known here.{nearest(word, known)} "
                    f"Expected one of {', '.join(known)}."
                )
        self.keys = keys
        self.energies = (
            ("free_energy", "energy") if forces_of_free_energy and keys.energy == "energy" else (keys.energy,)
        )
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
            energy=self._energy(atoms, source),
            forces=_array(atoms, keys.forces, (atoms_count, 3), self.force, source),
            stress=self._stress(atoms, cell, source),
            weight=1.0 if weight is None else weight,
            config_type=None if config_type is None else str(config_type),
            source=source,
        )

    def _energy(self, atoms: Atoms, source: str) -> float | None:
        found = (_number(atoms, name, self.energy, source) for name in self.energies)
        return next((value for value in found if value is not None), None)

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
