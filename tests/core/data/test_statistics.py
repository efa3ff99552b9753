"""Statistics of a training set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms

from nequip_core.data.cache import Cache
from nequip_core.data.dataset import Dataset
from nequip_core.data.statistics import Statistics, compute
from nequip_core.errors import InputError
from nequip_core.neighbors import make_vesin
from nequip_core.structure import Structure, TypeMap

E0 = {"H": -13.6, "C": -1029.5, "O": -2041.98}


def structure(formula: str, energy: float | None = None, forces: Any = None, spacing: float = 1.0) -> Structure:
    """Atoms in a row."""
    atoms = Atoms(formula)
    atoms.positions[:, 0] = spacing * np.arange(len(atoms))
    bare = Structure.from_ase(atoms, source=f"f.xyz frame {formula}")
    return Structure(**{**vars(bare), "energy": energy, "forces": forces})


def exact(formula: str, left: float = 0.0) -> Structure:
    return structure(formula, sum(E0[symbol] for symbol in Atoms(formula).symbols) + left)


def statistics(
    structures: Sequence[Structure],
    method: str | Mapping[str, float] = "zero",
    names: tuple[str, ...] = ("H", "C", "O"),
    isolated: Sequence[Structure] = (),
    cutoff: float = 1.5,
) -> Statistics:
    cutoffs = np.full((len(names), len(names)), cutoff)
    return compute(Dataset(structures, TypeMap(names, names), cutoffs, make_vesin(cutoff)), method, isolated)


def test_least_squares_finds_what_made_the_energies() -> None:
    fit = statistics([exact("H2O"), exact("CH4"), exact("CO2"), exact("C2H6")], "least_squares").atomic_energies
    assert fit.values == pytest.approx(E0, rel=1e-9)
    assert (fit.rank, fit.undetermined, fit.message) == (3, (), "")
    assert fit.residual_rms == pytest.approx(0.0, abs=1e-9)


def test_least_squares_of_one_composition_says_so() -> None:
    """3BPA: one composition determines one number, whatever the number of frames."""
    fit = statistics([exact("CH3OH", 0.1 * n) for n in range(5)], "least_squares").atomic_energies
    assert fit.rank == 1
    assert fit.undetermined == ("H", "C", "O")
    for part in ("rank 1 of 3", "H, C, O", "isolated_atoms"):
        assert part in fit.message
    mean = 4 * E0["H"] + E0["C"] + E0["O"] + 0.2
    assert 4 * fit.values["H"] + fit.values["C"] + fit.values["O"] == pytest.approx(mean)


def test_least_squares_names_only_what_is_not_determined() -> None:
    fit = statistics([exact("H2"), exact("CO"), exact("C2O2H2")], "least_squares").atomic_energies
    assert (fit.rank, fit.undetermined) == (2, ("C", "O"))
    assert fit.values["H"] == pytest.approx(E0["H"])


def test_a_type_that_does_not_occur_is_not_determined() -> None:
    fit = statistics([exact("H2"), exact("C2")], "least_squares").atomic_energies
    assert (fit.rank, fit.undetermined) == (2, ("O",))


def test_mean_and_zero_and_given() -> None:
    frames = [exact("H2O"), exact("CO2")]
    mean = (frames[0].energy / 3 + frames[1].energy / 3) / 2  # type: ignore[operator]
    assert statistics(frames, "mean").atomic_energies.values == pytest.approx(dict.fromkeys(E0, mean))
    assert statistics(frames, "zero").atomic_energies.values == dict.fromkeys(E0, 0.0)
    assert statistics(frames, E0).atomic_energies.values == E0


def test_isolated_atoms() -> None:
    isolated = [exact(symbol) for symbol in E0]
    assert statistics([exact("H2O")], "isolated_atoms", isolated=isolated).atomic_energies.values == E0


def test_a_missing_isolated_atom_is_named() -> None:
    with pytest.raises(InputError, match=r"isolated_atoms: no one-atom frame with an energy for C"):
        statistics([exact("H2O")], "isolated_atoms", isolated=[exact("H"), exact("O"), structure("C")])


def test_a_missing_given_energy_is_named() -> None:
    with pytest.raises(InputError, match="no energy of C"):
        statistics([exact("H2O")], {"H": 1.0, "O": 2.0})


@pytest.mark.parametrize("method", ["least_squares", "mean"])
def test_energies_are_needed(method: str) -> None:
    with pytest.raises(InputError, match=r"no training frame has one"):
        statistics([structure("H2O")], method)


def test_frames_without_energy_do_not_count() -> None:
    fit = statistics([exact("H2"), structure("H2"), exact("H3")], "least_squares", ("H",)).atomic_energies
    assert fit.values["H"] == pytest.approx(E0["H"])


def test_force_rms_is_over_components() -> None:
    frames = [structure("H2", forces=np.full((2, 3), 2.0)), structure("H", forces=np.full((1, 3), 5.0)), structure("H")]
    assert statistics(frames, names=("H",)).forces_rms == pytest.approx(np.sqrt((6 * 4 + 3 * 25) / 9))
    assert statistics([structure("H")], names=("H",)).forces_rms is None


def test_energy_spread_is_without_atomic_energies() -> None:
    frames = [exact("H2O", 0.3), exact("CO2", -0.3)]
    result = statistics(frames, E0)
    assert result.per_atom_energy_std == pytest.approx(0.1)
    assert result.atomic_energies.residual_rms == pytest.approx(0.1)
    assert statistics([structure("H")], names=("H",)).per_atom_energy_std is None


def test_neighbours_by_receiver_with_lonely_atoms_in_the_middle() -> None:
    """O-H-H in a row with the distance between O and H within one of the two cut-offs only."""
    names = ("H", "O")
    lonely = Structure.from_ase(Atoms("HOH", positions=[[0, 0, 0], [40, 0, 0], [1, 0, 0]]))
    row = Structure.from_ase(Atoms("OHH", positions=[[0, 0, 0], [1.4, 0, 0], [2.4, 0, 0]]))
    cutoffs = np.array([[1.2, 1.2], [1.5, 1.2]])  # O sees H at 1.4 Å, H does not see O
    result = compute(Dataset([lonely, row], TypeMap(names, names), cutoffs, make_vesin(1.5)), "zero")
    assert (result.n_structures, result.n_atoms, result.n_edges) == (2, 6, 5)
    assert result.atoms_per_type == {"H": 4, "O": 2}
    assert result.avg_num_neighbors == pytest.approx(5 / 6)
    assert result.avg_num_neighbors_per_type == pytest.approx({"H": 1.0, "O": 0.5})


def test_json() -> None:
    text = json.dumps(statistics([exact("H2O"), exact("CO2")], "least_squares").to_json())
    assert json.loads(text)["atomic_energies"]["rank"] == 2


def test_residuals_by_composition() -> None:
    frames = [exact("H2O", 0.3), exact("H2O", -0.3), exact("CO2", 0.6)]
    fit = statistics(frames, E0).atomic_energies
    assert [(row["composition"], row["n"]) for row in fit.residuals] == [("H2O", 2), ("CO2", 1)]
    assert fit.residuals[0] == pytest.approx({"composition": "H2O", "n": 2, "mean": 0, "rms": 0.1, "max": 0.1})
    assert fit.residuals[1]["mean"] == pytest.approx(0.2)


def test_many_compositions_are_a_short_table() -> None:
    frames = [exact(f"H{n}C", 0.01 * n) for n in range(1, 31)]
    rows = statistics(frames, E0).atomic_energies.residuals
    assert len(rows) == 21
    assert rows[-1]["composition"] == "10 others"
    assert sum(row["n"] for row in rows) == 30


def test_the_rank_is_said_in_words() -> None:
    one = statistics([exact("CH3OH")], "least_squares")
    assert one.to_json()["atomic_energies"]["fit"] == "rank 1 of 3"
    assert statistics([exact("CH3OH")], "zero").atomic_energies.fit is None


def test_statistics_come_from_the_cache(tmp_path: Path) -> None:
    frames = [exact("H2O", 0.1), exact("CO2")]
    cutoffs, names = np.full((3, 3), 1.5), ("H", "C", "O")
    cache = Cache(tmp_path)

    def cached(structures: Sequence[Structure], method: Any = "least_squares") -> Statistics:
        data = Dataset(structures, TypeMap(names, names), cutoffs, make_vesin(1.5), cache=cache)
        return compute(data, method, cache=cache)

    first = cached(frames)
    assert first == statistics(frames, "least_squares")
    count = len(list(tmp_path.iterdir()))
    assert cached(frames) == first
    assert len(list(tmp_path.iterdir())) == count
    assert cached([exact("H2O", 0.2), exact("CO2")]).per_atom_energy_mean != first.per_atom_energy_mean
    assert cached(frames, "zero").atomic_energies.method == "zero"
    assert cached(frames, E0).atomic_energies.values == E0


def test_progress_is_told() -> None:
    names, told = ("H", "C", "O"), []
    data = Dataset([exact("H2O", 0.1), exact("CO2")], TypeMap(names, names), np.full((3, 3), 1.5), make_vesin(1.5))
    compute(data, "zero", progress=lambda *what: told.append(what))
    assert told == [("statistics", done, 3) for done in range(4)]
