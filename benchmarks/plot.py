"""The figure of the README, drawn from tables in results/.

python benchmarks/plot.py [--out docs/speed.svg]

Left: energies and forces of water by its size. Middle: each kernel's share of its floor, which is the time that memory
alone would take (decision 14). Right: a compiled training step.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


class Line(NamedTuple):
    """The other side of a table.

    Attributes:
        label: what it is.
        style: of matplotlib.
        model: its rows' model.
        other: its rows' side.
        table: in results/.
    """

    label: str
    style: str
    model: str
    other: str
    table: str


BEFORE, NOW = "inference_h100_202611.csv", "inference_h100_hidden_tables_202611.csv"
INFERENCE = (
    Line("Allegro, published, eager", "C0:", "allegro_2", "theirs_eager", BEFORE),
    Line("Allegro, published, their kernel", "C0--", "allegro_2", "theirs_kernels", BEFORE),
    Line("Allegro, ours", "C0o-", "allegro_2", "passed", NOW),
    Line("NequIP, published, eager", "C1:", "nequip_md", "theirs_eager", BEFORE),
    Line("NequIP, ours", "C1o-", "nequip_md", "tables", NOW),
)
KERNELS = "kernels_stages_h100_202611.csv"
LAYERS = {"first": "first layer", "middle": "second", "parity": "all parities"}
CASES = {f"allegro l{l_max} {layer}": f"l {l_max}, {name}" for l_max in (1, 2, 3) for layer, name in LAYERS.items()}
SWEEPS = ("forward", "backward", "double_backward")
TRAINING = "training_h100_202611.csv"


def read(table: str, **wanted: str) -> list[dict[str, str]]:
    """The rows of a table that hold these values; there are some."""
    with (RESULTS / table).open(newline="") as file:
        found = [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]
    if not found:
        raise SystemExit(f"{table} has no row with {wanted}: it was written anew, and this script reads the old one.")
    return found


def by_size(axes: Any) -> None:
    for line in INFERENCE:
        rows = read(line.table, figure="us_per_atom", model=line.model, other=line.other)
        points = sorted((int(row["system"].rpartition("_")[2]), float(row["other_median"])) for row in rows)
        axes.loglog(*zip(*points, strict=True), line.style, label=line.label)
    axes.set(xlabel="atoms of water", ylabel="µs per atom", title="energies and forces")
    axes.legend(fontsize="small")


def by_floor(axes: Any) -> None:
    for n, sweep in enumerate(SWEEPS):
        names = sweep, f"{sweep}_of_factors"  # a first layer's
        rows = {row["case"]: float(row["share_of_floor"]) for name in names for row in read(KERNELS, kernel=name)}
        places = [place + 0.27 * (n - 1) for place in range(len(CASES))]
        axes.barh(places, [100 * rows[case] for case in CASES], 0.25, label=sweep.replace("_", " "))
    axes.set_yticks(range(len(CASES)), CASES.values())
    axes.invert_yaxis()
    axes.set(xlabel="% of the floor", xlim=(0, 100), title="Allegro's contraction")
    axes.legend(fontsize="small", ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def training(axes: Any) -> None:
    names = {"allegro_64": "Allegro", "nequip_64": "NequIP"}
    rows = [read(TRAINING, date="2026-11-26", figure="train_ms", other="theirs", model=model)[0] for model in names]
    for n, (column, label) in enumerate((("ours_median", "ours"), ("other_median", "published, compiled"))):
        places = [place + 0.4 * n for place in range(len(names))]
        axes.bar(places, [float(row[column]) for row in rows], 0.38, label=label)
    axes.set_xticks([0.2, 1.2], names.values())
    axes.set(ylabel="ms", title="training step, 32 molecules")
    axes.legend(fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "speed.svg")
    options = parser.parse_args()
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "speed"})  # the same file each time, words as words
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    for draw, axes in zip((by_size, by_floor, training), figure.subplots(1, 3, width_ratios=(5, 5, 3)), strict=True):
        draw(axes)
    figure.savefig(options.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
