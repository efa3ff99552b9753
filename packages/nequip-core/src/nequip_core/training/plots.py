"""Figures of a run: learning curves, parity of predictions and labels, the energy along a simulation.

Each function returns a matplotlib Figure without touching matplotlib's global state; `svg` turns it into text that
stands inside a page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.io
import matplotlib as mpl
import numpy as np
from ase import Atoms
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nequip_core.errors import InputError
from nequip_core.files import atomic_write

Floats = NDArray[np.float64]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c5c5c", "#8f7a00")
"""Okabe and Ito's colours, which most colour-blind readers tell apart; more groups than colours share the last."""

STYLE: dict[Any, Any] = {  # matplotlib types its keys as a long union of literals
    "svg.fonttype": "none",
    "svg.hashsalt": "nequip",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "figure.dpi": 96,
}
WIDTH = 9.0  # inches: the page's column
PNG_DPI = 150
POINTS_DPI = 220  # resolution of the points of a parity plot, which are stored as an image


@dataclass
class Parity:
    """Labels and predictions of one quantity, each point in a named group.

    ``reference`` and ``predicted`` are [n], in the unit of the axis; ``group`` is [n].
    """

    reference: Floats
    predicted: Floats
    group: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.reference)


@dataclass
class _Columns:
    reference: list[Floats] = field(default_factory=list)
    predicted: list[Floats] = field(default_factory=list)
    group: list[NDArray[np.str_]] = field(default_factory=list)

    def add(self, reference: Any, predicted: Any, group: Sequence[str] | str) -> None:
        """Add the points whose label is known (not NaN)."""
        reference, predicted = np.ravel(reference).astype(float), np.ravel(predicted).astype(float)
        known = np.isfinite(reference)
        self.reference.append(reference[known])
        self.predicted.append(predicted[known])
        self.group.append(np.broadcast_to(np.asarray(group, dtype=np.str_), reference.shape)[known])

    def parity(self) -> Parity:
        if not self.reference:
            return Parity(np.empty(0), np.empty(0), np.empty(0, np.str_))
        return Parity(np.concatenate(self.reference), np.concatenate(self.predicted), np.concatenate(self.group))


def read_parities(path: Path) -> dict[str, Parity]:
    """Parities of a file that ``nequip evaluate --write`` made: energy (meV/atom), forces (meV/Å), stress (meV/Å³).

    Energies are those per atom less a least-squares energy per element, fitted to the labels of the file, so that the
    axis spans what a model has to learn. Quantities without labels are left out.
    """
    energy, forces, stress = _Columns(), _Columns(), _Columns()
    compositions: list[Counts] = []
    for atoms in _frames(path):
        if atoms.calc is None:
            raise InputError(f"{path} holds no predictions. Expected a file that nequip evaluate --write made.")
        predicted = atoms.calc.results
        group = str(atoms.info.get("config_type", ""))
        label = float(atoms.info.get("ref_energy", np.nan))
        if np.isfinite(label):
            energy.add(label / len(atoms), predicted["energy"] / len(atoms), group)
            compositions.append(_composition(atoms))
        if "ref_forces" in atoms.arrays:
            elements = np.repeat(np.array(atoms.get_chemical_symbols(), dtype=np.str_), 3)
            forces.add(1e3 * atoms.arrays["ref_forces"], 1e3 * predicted["forces"], elements.tolist())
        if "ref_stress" in atoms.info and "stress" in predicted:
            stress.add(1e3 * _full(atoms.info["ref_stress"]), 1e3 * _full(predicted["stress"]), group)
    parities = {"energy": energy.parity(), "forces": forces.parity(), "stress": stress.parity()}
    if compositions:
        offset = _least_squares_offset(compositions, parities["energy"].reference)
        parities["energy"].reference = 1e3 * (parities["energy"].reference - offset)
        parities["energy"].predicted = 1e3 * (parities["energy"].predicted - offset)
    return {name: parity for name, parity in parities.items() if len(parity)}


Counts = Mapping[int, float]


def _frames(path: Path) -> Iterable[Atoms]:
    return ase.io.iread(path, index=":", format="extxyz")


def _composition(atoms: Atoms) -> Counts:
    numbers, counts = np.unique(atoms.numbers, return_counts=True)
    return dict(zip(numbers.tolist(), (counts / len(atoms)).tolist(), strict=True))


def _full(stress: Any) -> Floats:
    """[3, 3] from itself or from Voigt's xx yy zz yz xz xy."""
    stress = np.asarray(stress, dtype=float)
    full: Floats = stress[np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])] if stress.shape == (6,) else stress.reshape(3, 3)
    return full


def _least_squares_offset(compositions: Sequence[Counts], energy_per_atom: Floats) -> Floats:
    """Energy per atom [n] that the best energy of each element explains."""
    elements = sorted({number for counts in compositions for number in counts})
    matrix = np.array([[counts.get(number, 0.0) for number in elements] for counts in compositions])
    return np.asarray(matrix @ np.linalg.lstsq(matrix, energy_per_atom, rcond=None)[0])


def parity_figure(parities: Mapping[str, Parity]) -> Figure:
    """For each quantity: predictions against labels, and below them the distribution of the errors."""
    titles = {
        "energy": ("Energy per atom, less E0", "meV/atom"),
        "forces": ("Force components", "meV/Å"),
        "stress": ("Stress components", "meV/Å³"),
    }
    with mpl.rc_context(STYLE):
        columns = max(2, len(parities))
        width = WIDTH / columns
        figure = Figure(figsize=(WIDTH, width * 1.32), layout="constrained")
        grid = figure.add_gridspec(2, columns, height_ratios=(width, 0.28 * width))
        for column, (name, parity) in enumerate(parities.items()):
            title, unit = titles[name]
            _scatter(figure.add_subplot(grid[0, column]), parity, title, unit)
            _errors(figure.add_subplot(grid[1, column]), parity, unit)
        return figure


def _scatter(axes: Axes, parity: Parity, title: str, unit: str) -> None:
    groups = np.unique(parity.group)
    colour_of = {group: COLORS[min(i, len(COLORS) - 1)] for i, group in enumerate(groups)}
    both = np.concatenate([parity.reference, parity.predicted])
    low, high = float(both.min()), float(both.max())
    margin = 0.04 * (high - low) or 1.0
    axes.plot([low - margin, high + margin], [low - margin, high + margin], color="#888888", linewidth=0.8, zorder=1)
    order = np.random.default_rng(0).permutation(len(parity))  # so that no group lies on top of all others
    axes.scatter(
        parity.reference[order],
        parity.predicted[order],
        s=float(np.clip(4000 / len(parity), 2.5, 14)),
        c=[colour_of[group] for group in parity.group[order]],
        alpha=float(np.clip(3000 / len(parity), 0.25, 0.8)),
        linewidths=0,
        rasterized=True,
        zorder=2,
    )
    for group, colour in colour_of.items():
        if len(groups) > 1 and len(groups) <= len(COLORS):
            axes.scatter([], [], s=14, color=colour, linewidths=0, label=str(group).replace("_", " "))
    if len(groups) > 1 and len(groups) <= len(COLORS):
        axes.legend(loc="upper left", handletextpad=0.2, borderaxespad=0.2)
    axes.set(
        title=title,
        xlabel=f"label ({unit})",
        ylabel=f"prediction ({unit})",
        xlim=(low - margin, high + margin),
        ylim=(low - margin, high + margin),
        aspect="equal",
    )


def _errors(axes: Axes, parity: Parity, unit: str) -> None:
    error = parity.predicted - parity.reference
    reach = float(np.quantile(np.abs(error), 0.995)) or 1.0
    axes.hist(np.clip(error, -reach, reach), bins=61, range=(-reach, reach), color=COLORS[0], alpha=0.75)
    axes.axvline(0.0, color="#888888", linewidth=0.8)
    axes.set(xlabel=f"prediction \N{MINUS SIGN} label ({unit})", yticks=[], xlim=(-reach, reach))
    axes.spines["left"].set_visible(False)
    axes.grid(False)


def learning_figure(metrics: Mapping[str, Floats], best_epoch: float | None) -> Figure:
    """Loss and validation errors by epoch; ``metrics`` are the columns of metrics.csv, NaN where a cell is empty."""
    panels: list[tuple[str, str, list[tuple[str, str, float]]]] = [
        ("Loss", "", [("train_loss", "training", 1.0), ("val_loss", "validation", 1.0)]),
        ("Forces, validation", "meV/Å", [("val_forces_rmse", "RMSE", 1e3), ("val_forces_mae", "MAE", 1e3)]),
        (
            "Energy, validation",
            "meV/atom",
            [("val_energy_per_atom_rmse", "RMSE", 1e3), ("val_energy_per_atom_mae", "MAE", 1e3)],
        ),
        ("Stress, validation", "meV/Å³", [("val_stress_rmse", "RMSE", 1e3), ("val_stress_mae", "MAE", 1e3)]),
    ]
    shown = [panel for panel in panels if any(np.isfinite(metrics[name]).any() for name, _, _ in panel[2])]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        for axes, (title, unit, curves) in zip(_row(figure, len(shown)), shown, strict=True):
            for (name, label, scale), colour in zip(curves, COLORS, strict=False):
                known = np.isfinite(metrics[name])
                marker = "o" if known.sum() < 3 else None
                values = scale * metrics[name][known]
                axes.plot(metrics["epoch"][known], values, label=label, color=colour, marker=marker, markersize=3)
            if best_epoch is not None:
                axes.axvline(best_epoch, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set(title=title, xlabel="epoch", yscale="log")
            axes.set_ylabel(unit)
            axes.yaxis.set_major_formatter(_plain)
            axes.yaxis.set_minor_formatter(_sparse)
            axes.tick_params(axis="y", which="minor", labelsize=7)
            axes.legend(loc="upper right")
        return figure


def _plain(value: float, position: float) -> str:
    return f"{value:g}"


def _sparse(value: float, position: float) -> str:
    """Labels at 2 and 5 between the powers of ten."""
    leading = value / 10.0 ** np.floor(np.log10(value))
    return f"{value:g}" if round(float(leading)) in (2, 5) else ""


def energy_figure(logs: Mapping[str, Mapping[str, Floats]]) -> Figure:
    """Total energy less its mean, and temperature, along each simulation; ``logs``: the columns of the md CSV files."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
        energy, temperature = _row(figure, 2)
        for (name, log), colour in zip(logs.items(), COLORS, strict=False):
            time = log["time_fs"] / 1e3
            total = log["total_energy_eV"]
            energy.plot(time, 1e3 * (total - total.mean()), color=colour, label=name, linewidth=1.0)
            temperature.plot(time, log["temperature_K"], color=colour, label=name, linewidth=1.0)
        energy.set(title="Total energy less its mean", xlabel="time (ps)", ylabel="meV")
        temperature.set(title="Temperature", xlabel="time (ps)", ylabel="K")
        if len(logs) > 1:
            energy.legend()
        return figure


def _row(figure: Figure, count: int) -> list[Axes]:
    return [figure.add_subplot(1, count, i + 1) for i in range(count)]


def svg(figure: Figure, label: str) -> str:
    """The figure as an ``<svg>`` element for a page: its text is text, its points an embedded image, no addresses."""
    out = io.StringIO()
    with mpl.rc_context(STYLE):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing, dpi=POINTS_DPI)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", text)  # a page needs no namespaces
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def save_png(figure: Figure, path: Path) -> None:
    """The figure as an image of its own, whole or not at all."""
    with mpl.rc_context(STYLE), atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=PNG_DPI)
