"""The report of a run: every number is that of a source file, and the page needs nothing else."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from matplotlib.image import imread

from nequip_core.errors import InputError
from nequip_core.training.plots import read_parities
from nequip_core.training.report import number, significant, write_report

RNG = np.random.default_rng(7)
STATISTICS = {
    "n_structures": 9,
    "n_atoms": 27,
    "n_edges": 54,
    "atoms_per_type": {"H": 18, "O": 9},
    "avg_num_neighbors": 2.25,
    "avg_num_neighbors_per_type": {"H": 2.1, "O": 2.4},
    "forces_rms": 1.234,
    "per_atom_energy_mean": -10.0,
    "per_atom_energy_std": 0.5,
    "atomic_energies": {
        "method": "least_squares",
        "values": {"H": -13.5871234, "O": -2041.98},
        "rank": 1,
        "undetermined": ["H", "O"],
        "residual_rms": 0.0617,
        "fit": "rank 1 of 2",
        "residuals": [
            {"composition": "H2O", "n": 7, "mean": 0.0111, "rms": 0.0222, "max": 0.0333},
            {"composition": "<H4O2>", "n": 2, "mean": -0.0444, "rms": 0.0555, "max": 0.0666},
        ],
        "message": "Rank 1 of <2>.",
    },
}


class Numbers(HTMLParser):
    """The values of all <data> elements, and of those in the table rows that begin with a given heading."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []
        self.shown: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "data":
            self.values.append(float(dict(attrs)["value"] or "nan"))
            self.shown.append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "data"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.shown[-1] += data


def error(scale: float) -> dict[str, float | int]:
    mae = float(scale * RNG.uniform(0.5, 1.5))
    return {"mae": mae, "rmse": 1.3 * mae, "max": 4.0 * mae, "n": 12}


def evaluation(name: str) -> dict[str, object]:
    row = {"energy": error(0.05), "energy_per_atom": error(0.002), "forces": error(0.03), "stress": None}
    return {
        "schema": 1,
        "model": {"path": name, "kind": "checkpoint", "checkpoint": "best", "weights": "ema", "hash": "0" * 64},
        "data": {"path": f"{name}.xyz", "sha256": "0" * 64},
        "n_structures": 4,
        "n_atoms": 12,
        **row,
        "units": {"energy": "eV", "forces": "eV/Angstrom"},
        "per_element": {
            "H": {"n_atoms": 8, "forces": error(0.02)},
            "O": {"n_atoms": 4, "forces": error(0.04)},
            "He": {"n_atoms": 1, "forces": None},
        },
        "per_config_type": {
            "hot": {"n_structures": 3, "n_atoms": 9, **row},
            "<cold>": {"n_structures": 1, "n_atoms": 3, **row},
        },
        "device": "cpu",
        "dtype": "float32",
        "time_s": 0.5,
    }


def frames(path: Path, count: int = 4) -> None:
    collected = []
    for i in range(count):
        atoms = Atoms("OH2", RNG.normal(size=(3, 3)))
        atoms.info |= {"ref_energy": -10.0 - 0.1 * i, "config_type": "hot" if i else "cold"}
        atoms.arrays["ref_forces"] = RNG.normal(size=(3, 3))
        forces = atoms.arrays["ref_forces"] + 0.01 * RNG.normal(size=(3, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=-10.0 - 0.1 * i + 0.01 * RNG.normal(), forces=forces)
        collected.append(atoms)
    write(path, collected, format="extxyz")


def make_run(folder: Path) -> Path:
    """The files of a run, in a folder of theirs."""
    for name in ("evaluation", "data", "md"):
        (folder / name).mkdir(parents=True)
    manifest = {"name": "water", "state": "finished", "seed": 5, "best_epoch": 3, "versions": {"torch": "2.13"}}
    (folder / "run.json").write_text(json.dumps(manifest))
    (folder / "data" / "statistics.json").write_text(json.dumps(STATISTICS))
    quantities = ("energy", "energy_per_atom", "forces", "stress")
    columns = [f"val_{quantity}_{kind}" for quantity in quantities for kind in ("mae", "rmse")]
    with (folder / "metrics.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["epoch", "step", "time_s", "lr", "train_loss", "val_loss", *columns])
        for epoch in range(5):
            errors = ["" if "stress" in name else 0.1 / (1 + epoch) for name in columns]
            out.writerow([epoch, 10 * epoch, 1.5 * epoch, 0.01, 1 / (1 + epoch), 2 / (1 + epoch), *errors])
    for name in ("test_300K", "val"):
        (folder / "evaluation" / f"{name}.json").write_text(json.dumps(evaluation(name)))
        frames(folder / "evaluation" / f"{name}.extxyz")
    with (folder / "md" / "start.csv").open("w", newline="") as file:
        out = csv.writer(file)
        energies = ["potential_energy_eV", "kinetic_energy_eV", "total_energy_eV"]
        out.writerow(["step", "time_fs", "temperature_K", *energies, "volume_A3", "pressure_GPa"])
        out.writerows([i, 10.0 * i, 300.0 + i, -10.0, 0.1, -9.9 + 3e-6 * i, "", ""] for i in range(101))
    frames(folder / "md" / "start.extxyz", count=1)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "water")


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, which takes seconds: to be read only."""
    folder = make_run(tmp_path_factory.mktemp("reported") / "water")
    assert write_report(folder) == folder / "report.html"
    return folder


def test_every_number_is_that_of_a_source_file(reported: Path):
    page = (reported / "report.html").read_text()
    numbers = Numbers()
    numbers.feed(page)
    sources = [3, 5, 9, 27, 18, 2.25, 2.1, 2.4, 1.234, 0.0617, -13.5871234, -2041.98]  # run.json, statistics.json
    sources += [row[name] for row in STATISTICS["atomic_energies"]["residuals"] for name in ("n", "mean", "rms", "max")]
    for name in ("test_300K", "val"):
        result = json.loads((reported / "evaluation" / f"{name}.json").read_text())
        errors = [result, *result["per_element"].values(), *result["per_config_type"].values()]
        for row in errors:
            expected = [row.get("n_structures", row["n_atoms"])]
            for quantity in ("energy_per_atom", "forces"):
                if row.get(quantity):
                    expected += [row[quantity][kind] for kind in ("mae", "rmse", "max")]
            assert all(value in numbers.values for value in expected)
            sources += expected
        sources += [12, 4, 36]  # atoms; points of the parity plots: energies, force components
    drift = 3e-4  # eV/ps, of three atoms over a picosecond
    others = [value for value in numbers.values if not np.isclose(value, sources, rtol=1e-12, atol=0).any()]
    assert np.allclose(sorted(others), sorted([drift / 3, drift / 3, drift, 1000.0, 350.0]), rtol=1e-9)


def test_atomic_energies_with_rank_and_residuals(reported: Path):
    page = (reported / "report.html").read_text()
    assert "E0 by least squares (rank 1 of 2)" in page
    assert "&lt;H4O2&gt;" in page
    numbers = Numbers()
    numbers.feed(page)
    for row in STATISTICS["atomic_energies"]["residuals"]:
        assert {row["n"], row["mean"], row["rms"], row["max"]} <= set(numbers.values)


def test_figures_are_there_as_png_too(reported: Path):
    names = sorted(path.name for path in (reported / "plots").iterdir())
    assert names == ["energy.png", "learning.png", "parity_test_300K.png", "parity_val.png"]
    for path in (reported / "plots").iterdir():
        image = imread(path)
        assert image.shape[1] == 9 * 150
        assert image[..., :3].min() < 0.5  # not an empty sheet


def test_what_is_shown_is_the_value_rounded(reported: Path):
    numbers = Numbers()
    numbers.feed((reported / "report.html").read_text())
    for value, shown in zip(numbers.values, numbers.shown, strict=True):
        text = float(shown.replace("\N{MINUS SIGN}", "-").replace("\N{NARROW NO-BREAK SPACE}", ""))
        ratio = 0.0 if value == 0 else text / value
        assert any(np.isclose(ratio, scale, rtol=5e-3) for scale in (0, 1, 1e3, 1e-3)), (value, shown)


def test_the_page_needs_nothing_else(reported: Path):
    page = (reported / "report.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    numbers = Numbers()
    numbers.feed(page)
    sources = [attributes.get("src") or attributes.get("xlink:href") for _, attributes in numbers.tags]
    assert all(source.startswith(("data:", "#")) for source in sources if source)
    assert sum(tag == "svg" for tag, _ in numbers.tags) == 4
    assert "<cold>" not in page
    assert "of <2>" not in page


def test_parities_hold_every_point(run: Path):
    parities = read_parities(run / "evaluation" / "val.extxyz")
    assert {name: len(parity) for name, parity in parities.items()} == {"energy": 4, "forces": 36}
    assert set(parities["forces"].group) == {"O", "H"}
    assert np.isclose(np.abs(parities["energy"].reference).max(), 1e3 * 0.15 / 3, rtol=1e-6)


def test_labels_that_are_missing_make_no_points(tmp_path: Path):
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((2, 3)))
    write(tmp_path / "x.extxyz", atoms)
    assert read_parities(tmp_path / "x.extxyz") == {}


def test_stress_is_compared_by_nine_components(tmp_path: Path):
    atoms = Atoms("H", cell=3 * np.eye(3), pbc=True)
    stress = np.arange(9.0).reshape(3, 3) + np.arange(9.0).reshape(3, 3).T
    atoms.info["ref_stress"] = stress
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, stress=stress)
    write(tmp_path / "x.extxyz", atoms)
    parity = read_parities(tmp_path / "x.extxyz")["stress"]
    assert np.allclose(parity.reference, 1e3 * stress.ravel())
    assert np.allclose(parity.predicted, 1e3 * stress.ravel())


@pytest.mark.parametrize("missing", ["run.json", "metrics.csv", "data/statistics.json"])
def test_a_missing_file_is_named(run: Path, missing: str):
    (run / missing).unlink()
    with pytest.raises(InputError, match=re.escape(str(run / missing))):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_broken_file_is_named(run: Path):
    (run / "evaluation" / "val.json").write_text('{"schema": ')
    with pytest.raises(InputError, match=r"val\.json is no JSON"):
        write_report(run)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-6.11e-11, "−6.11e−11"),
        (0.0, "0"),
        (0.012345, "0.0123"),
        (12.345, "12.3"),
        (12345.6, "12346"),
        (-0.5, "\N{MINUS SIGN}0.500"),
    ],
)
def test_significant_digits(value: float, text: str):
    assert significant(value) == text


def test_what_is_unknown_is_a_dash():
    assert number(None) == number(float("nan")) == "–"
    assert number(12345) == '<data value="12345">12\N{NARROW NO-BREAK SPACE}345</data>'
