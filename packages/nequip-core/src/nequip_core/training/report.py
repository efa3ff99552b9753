"""A finished run as one page: learning curves, parity plots, tables of errors, energy drift.

The page is one HTML file without scripts and without network addresses. Every number on it is a ``<data>`` element
whose ``value`` is the number of the source file, unrounded, in the units of that file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import floor, isfinite, log10
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from matplotlib.figure import Figure

from nequip_core.errors import InputError
from nequip_core.files import atomic_write
from nequip_core.training import plots
from nequip_core.training.plots import Floats

MISSING = "–"
VALIDATION = "val"  # the name of that set, which comes last: it has chosen the weights

QUANTITIES = {  # of the evaluation files: heading, unit shown, factor to it
    "energy_per_atom": ("Energy", "meV/atom", 1e3),
    "forces": ("Forces", "meV/Å", 1e3),
    "stress": ("Stress", "meV/Å³", 1e3),
}

CSS = """
:root { --ink: #1c1f23; --soft: #5d656e; --line: #dfe3e8; --accent: #0072b2; --paper: #ffffff; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 63rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
header { border-bottom: 2px solid var(--ink); padding-bottom: 1rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .4rem; }
p { margin: .4rem 0; max-width: 46rem; }
.soft, figcaption { color: var(--soft); }
figcaption { font-size: .87rem; max-width: 46rem; }
figure { margin: .8rem 0 1.2rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.4rem 0 0; }
.card { flex: 1 1 11rem; border: 1px solid var(--line); border-top: 3px solid var(--accent); padding: .7rem .9rem; }
.card b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card b small { font-size: .9rem; font-weight: 400; color: var(--soft); }
.card span { font-size: .87rem; color: var(--soft); }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.2rem; align-items: flex-start; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .92rem; }
th, td { padding: .22rem 0 .22rem 1.1rem; text-align: right; vertical-align: baseline; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td, td data { font-variant-numeric: tabular-nums; }
thead th { font-weight: 600; }
thead tr:last-child th { border-bottom: 1px solid var(--ink); }
thead th[colspan] { text-align: right; border-bottom: 1px solid var(--line); }
tbody tr + tr td, tbody tr + tr th { border-top: 1px solid var(--line); }
tbody th { font-weight: 400; }
caption { text-align: left; font-weight: 600; padding-bottom: .2rem; }
dl { display: grid; grid-template-columns: 11rem 1fr; gap: .25rem 1rem; font-size: .92rem; margin: .5rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media print {
  @page { margin: 14mm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  figure, table, .card, .tables > * { break-inside: avoid; }
  h2, h3, .soft { break-after: avoid; }
  table { font-size: 8pt; }
  th, td { padding-left: .8rem; }
  .card b { font-size: 1.3rem; }
}
"""


def write_report(run_dir: Path) -> Path:
    """Write ``run_dir/report.html`` from the files of a run and return its path; ``run_dir/plots`` has its figures.

    Read are run.json, metrics.csv, data/statistics.json, evaluation/NAME.json with NAME.extxyz, and, where there are
    any, the logs md/NAME.csv of ``nequip md`` (with md/NAME.extxyz beside them, for the number of atoms).

    Raises:
        InputError: a file is missing or not what it should be.
    """
    run_dir = Path(run_dir)
    run = _read_json(run_dir / "run.json")
    metrics = _read_columns(run_dir / "metrics.csv")
    sets = sorted((run_dir / "evaluation").glob("*.json"), key=lambda path: (path.stem == VALIDATION, path.stem))
    evaluations = {path.stem: _read_json(path) for path in sets}
    logs = {path.stem: _read_columns(path) for path in sorted((run_dir / "md").glob("*.csv"))}
    drifts = {name: _drift(log, run_dir / "md" / f"{name}.extxyz") for name, log in logs.items()}
    statistics = _read_json(run_dir / "data" / "statistics.json")
    title = str(run["name"])
    figures = run_dir / "plots"
    figures.mkdir(exist_ok=True)
    body = [
        _header(title, run, evaluations, drifts),
        _overview(evaluations),
        _learning(metrics, run, figures),
        *(
            _evaluation(name, result, run_dir / "evaluation" / f"{name}.extxyz", figures)
            for name, result in evaluations.items()
        ),
        _simulations(logs, drifts, figures),
        _training_set(statistics),
        _facts(run),
    ]
    path = run_dir / "report.html"
    with atomic_write(path) as out:
        out.write(_page(title, "\n".join(part for part in body if part)))
    return path


# Reading


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing. Expected the folder of a run that nequip train made.") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}. Run nequip train again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, received {type(value).__name__}. Run nequip train again.")
    return value


def _read_columns(path: Path) -> dict[str, Floats]:
    """The columns of a CSV file of numbers; an empty cell is NaN."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing. Expected the folder of a run that nequip train made.") from error
    try:
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in (rows[0] if rows else ())}
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: expected a table of numbers with a line of names above. {error}.") from error


def _drift(log: Mapping[str, Floats], trajectory: Path) -> tuple[float, int | None]:
    """Slope of the line fitted to the total energy, eV/ps, and the number of atoms where the trajectory tells it."""
    time, energy = log["time_fs"] / 1e3, log["total_energy_eV"]
    slope = float(np.polyfit(time - time.mean(), energy - energy.mean(), 1)[0]) if len(time) > 1 else float("nan")
    return slope, len(ase.io.read(trajectory, index=0, format="extxyz")) if trajectory.exists() else None


# Numbers and tables


def number(value: float | int | None, scale: float = 1.0, digits: int = 3) -> str:
    """A number as a reader wants it (``digits`` significant ones), with its source's value in the element."""
    if value is None or not isfinite(value):
        return MISSING
    if isinstance(value, int) and scale == 1.0:
        return f'<data value="{value}">{value:,}</data>'.replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f'<data value="{value!r}">{significant(value * scale, digits)}</data>'


def significant(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits, whole ones never dropped; plain, but for what is only rounding."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - floor(log10(abs(value))))
    text = f"{value:.{decimals}f}" if abs(value) >= 1e-6 else f"{value:.{digits - 1}e}"
    return text.replace("-", "−")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", above: str = "") -> str:
    """A table; cells are HTML. ``above``: a row of headings over ``head``."""
    lines = [f"<caption>{caption}</caption>" if caption else "", "<thead>", above]
    lines += ["<tr>", *(f"<th>{cell}</th>" for cell in head), "</tr></thead><tbody>"]
    for first, *rest in rows:
        lines += [f'<tr><th scope="row">{first}</th>', *(f"<td>{cell}</td>" for cell in rest), "</tr>"]
    return f'<div class="wide"><table>{"".join(lines)}</tbody></table></div>'


def _error_table(
    first: str, count: str, rows: Mapping[str, Mapping[str, Any]], quantities: Sequence[str], caption: str = ""
) -> str:
    """Rows of error dictionaries ``{count: n, quantity: {mae, rmse, max, n} or null}``."""
    used = [name for name in quantities if any(row.get(name) for row in rows.values())]
    spans = [f'<th colspan="3">{QUANTITIES[name][0]} ({QUANTITIES[name][1]})</th>' for name in used]
    above = f"<tr><th></th><th></th>{''.join(spans)}</tr>"
    head = [first, count.removeprefix("n_"), *(["MAE", "RMSE", "max"] * len(used))]
    body = []
    for name, row in rows.items():
        cells = [_name(name), number(row[count])]
        for quantity in used:
            error = row[quantity] or {}
            cells += [number(error.get(kind), QUANTITIES[quantity][2]) for kind in ("mae", "rmse", "max")]
        body.append(cells)
    return _table(head, body, caption, above)


def _name(text: str) -> str:
    return escape(text.replace("_", " "))


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>"


def _figure(drawing: Figure, label: str, path: Path, caption: str) -> str:
    """A figure on the page, and its copy as PNG."""
    plots.save_png(drawing, path)
    return f"<figure>{plots.svg(drawing, label)}<figcaption>{caption}</figcaption></figure>"


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


# Parts of the page, from top to bottom


def _header(
    title: str, run: Mapping[str, Any], evaluations: Mapping[str, Any], drifts: Mapping[str, tuple[float, int | None]]
) -> str:
    cards = []
    for name, result in list(evaluations.items())[:1]:
        for quantity in ("forces", "energy_per_atom"):
            heading, unit, scale = QUANTITIES[quantity]
            if result.get(quantity):
                mae = number(result[quantity]["mae"], scale)
                cards.append(f"<b>{mae} <small>{unit}</small></b><span>{heading} MAE, {_name(name)}</span>")
    for name, (slope, atoms) in list(drifts.items())[:1]:
        if atoms:
            value = number(slope / atoms, 1e3)
            cards.append(f"<b>{value} <small>meV/atom/ps</small></b><span>Energy drift, {_name(name)}</span>")
    made = "".join(f'<div class="card">{card}</div>' for card in cards)
    state = f"A training run of nequip-core; state: {escape(str(run['state']))}."
    return f'<header><h1>{_name(title)}</h1><p class="soft">{state}</p><div class="cards">{made}</div></header>'


def _overview(evaluations: Mapping[str, Any]) -> str:
    if not evaluations:
        return ""
    return _section("Errors", _error_table("set", "n_structures", evaluations, tuple(QUANTITIES)))


def _learning(metrics: Mapping[str, Floats], run: Mapping[str, Any], folder: Path) -> str:
    if not metrics:
        return ""
    best = run.get("best_epoch")
    caption = "Axes are logarithmic."
    if best is not None:
        caption += f" The dashed line marks the epoch of best.ckpt, {number(best)}."
    drawing = plots.learning_figure(metrics, best)
    return _section("Learning curves", _figure(drawing, "learning curves", folder / "learning.png", caption))


def _evaluation(name: str, result: Mapping[str, Any], frames: Path, folder: Path) -> str:
    model = result["model"]
    said = (
        f'<p class="soft">{number(result["n_structures"])} structures, {number(result["n_atoms"])} atoms; '
        f"{escape(str(model['checkpoint']))} checkpoint, {escape(str(model['weights']))} weights.</p>"
    )
    parts = [said]
    parities = plots.read_parities(frames) if frames.exists() else {}
    if parities:
        points = ", ".join(f"{number(len(parity))} {key}" for key, parity in parities.items())
        caption = (
            f"Every labelled value of the set is a point ({points}). Energies are per atom, less a least-squares "
            "energy of each element. Below: how the errors are distributed; the last bins hold what lies beyond."
        )
        drawing = plots.parity_figure(parities)
        parts.append(_figure(drawing, f"parity plots of {escape(name)}", folder / f"parity_{name}.png", caption))
    tables = [_error_table("element", "n_atoms", result["per_element"], ("forces",), "By element")]
    if len(result["per_config_type"]) > 1:
        quantities = ("energy_per_atom", "forces", "stress")
        tables.append(_error_table("type", "n_structures", result["per_config_type"], quantities, "By config_type"))
    parts.append(f'<div class="tables">{"".join(tables)}</div>')
    return _section(f"Set: {_name(name)}", *parts)


def _simulations(
    logs: Mapping[str, Mapping[str, Floats]], drifts: Mapping[str, tuple[float, int | None]], folder: Path
) -> str:
    if not logs:
        return ""
    head = ["simulation", "atoms", "length (ps)", "mean temperature (K)", "drift (meV/ps)", "drift (meV/atom/ps)"]
    rows = []
    for name, log in logs.items():
        slope, atoms = drifts[name]
        length = float(log["time_fs"][-1])
        mean = float(log["temperature_K"].mean())
        per_atom = number(slope / atoms, 1e3) if atoms else MISSING
        rows.append([_name(name), number(atoms), number(length, 1e-3), number(mean), number(slope, 1e3), per_atom])
    drawing, label = plots.energy_figure(logs), "energy and temperature along the simulations"
    caption = "Drift is the slope of a line fitted to the total energy; it tells of forces that are no gradient only "
    caption += "where no thermostat works (NVE)."
    return _section("Simulation", _figure(drawing, label, folder / "energy.png", caption), _table(head, rows))


def _training_set(statistics: Mapping[str, Any]) -> str:
    """What data/statistics.json says: per type, and how the atomic energies were found."""
    fit = statistics["atomic_energies"]
    rows = [
        [
            escape(name),
            number(statistics["atoms_per_type"][name]),
            number(statistics["avg_num_neighbors_per_type"][name]),
            number(energy, digits=8),
        ]
        for name, energy in fit["values"].items()
    ]
    rank = f" ({escape(fit['fit'])})" if fit["fit"] else ""
    said = (
        f"{number(statistics['n_structures'])} structures, {number(statistics['n_atoms'])} atoms, "
        f"{number(statistics['avg_num_neighbors'])} neighbours per atom. "
        f"Forces have a root mean square of {number(statistics['forces_rms'])} eV/Å. "
        f"E0 by {_name(fit['method'])}{rank}: what they leave of the energies has a root mean square of "
        f"{number(fit['residual_rms'], 1e3)} meV/atom. {escape(fit['message'])}"
    )
    tables = [_table(["type", "atoms", "neighbours", "E0 (eV)"], rows)]
    if fit["residuals"]:
        left = [
            [escape(row["composition"]), number(row["n"]), *(number(row[name], 1e3) for name in ("mean", "rms", "max"))]
            for row in fit["residuals"]
        ]
        head = ["composition", "structures", "mean", "rms", "max"]
        tables.append(_table(head, left, "Energies without E0 (meV/atom)"))
    return _section("Training set", f'<p class="soft">{said}</p>', f'<div class="tables">{"".join(tables)}</div>')


def _facts(run: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{_name(key)}</dt><dd>{_value(value)}</dd>" for key, value in run.items())
    return _section("Run", f"<dl>{items}</dl>")


def _value(value: Any) -> str:
    """A value of run.json as text: nested dictionaries and lists on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{escape(str(key))} {_value(inner)}" for key, inner in value.items()) or MISSING
    if isinstance(value, list):
        return " ".join(_value(inner) for inner in value) or MISSING
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<data value="{value!r}">{value}</data>'
    return MISSING if value is None else escape(str(value))
