"""``nequip evaluate MODEL DATA``: errors of a model on labelled structures."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import closing, nullcontext
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nequip_core.cli.imports import imports
from nequip_core.cli.options import add_device, add_model, assignments, command_parser
from nequip_core.errors import InputError
from nequip_core.plugins.manager import load_registry

if TYPE_CHECKING:
    from nequip_core.training.ranks import Ranks


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = command_parser("evaluate", "Errors of a model on labelled structures.")
    add_model(result)
    result.add_argument("data", metavar="DATA", type=Path, help="labelled structures in any format that ASE reads")
    result.add_argument("--index", default=":", help="which frames, an ASE slice")
    result.add_argument("--keys", type=assignments, default={}, help="names of the labels: energy=REF_energy,...")
    result.add_argument("--json", metavar="OUT", type=Path, help="write the results as JSON")
    result.add_argument("--write", metavar="OUT.extxyz", type=Path, help="write predictions and labels of each frame")
    result.add_argument("--plots", metavar="DIR", type=Path, help="write parity plots")
    result.add_argument(
        "--batch-atoms",
        metavar="N",
        type=int,
        help="atoms per batch, in the place of batches as in the validation of the model's run",
    )
    add_device(result)
    return result


def run(argv: list[str]) -> int:
    """Evaluate, print a table, write what is asked for; as one of several processes where torchrun has started them."""
    options = parser().parse_args(argv)

    with imports():
        from nequip_core.training.ranks import ONE, place_of

    place = place_of(os.environ)
    if place.size == 1:
        return _evaluate(options, ONE)
    with imports():
        from nequip_core.cli.running import together

    return together(place, partial(_evaluate, options))


def _evaluate(options: argparse.Namespace, ranks: Ranks) -> int:
    with imports():
        from nequip_core.cli.loading import load, say
        from nequip_core.cli.terminal import RunConsole
        from nequip_core.data.read import Keys, Units, read
        from nequip_core.engines.evaluate import Share, evaluate, predictor
        from nequip_core.files import atomic_write, sha256

    registry = load_registry()
    keys = label_names(options.keys, Keys)
    loaded = load(options, device=_device(options.device, ranks), speaks=ranks.is_first)
    share = Share(ranks.rank, ranks.size, lambda value: ranks.gather(value, "the predictions"))
    model = predictor(loaded, registry, batch_atoms=options.batch_atoms, share=share)
    if not ranks.is_first:  # it predicts its share; the first one has all results, and speaks
        for _ in model.stream(read(options.data, index=options.index, keys=keys, readers=registry.readers)):
            pass
        return 0
    if (units := loaded.data.get("units", asdict(Units()))) != asdict(Units()):
        say(f"warning: the model was trained on a file in other units ({units}); {options.data} is read as eV and Å")

    # The file is opened first: that it can not be written is said before the work.
    json_file = atomic_write(options.json) if options.json else nullcontext(None)
    with closing(RunConsole(stderr=True)) as console, json_file as file:

        def warn(message: str) -> None:
            console.say(message, "warning")

        results = evaluate(
            model,
            read(options.data, index=options.index, keys=keys, readers=registry.readers, say=warn),
            data={"path": str(options.data), "sha256": sha256(options.data) if options.data.is_file() else None},
            write=options.write,
            plots=options.plots,
            warn=warn,
            progress=console.progress,
        )
        if file is not None:
            json.dump(results, file, indent=2, allow_nan=False)
            file.write("\n")
    print(table(results))
    for path in filter(None, (options.json, options.write, options.plots)):
        say(f"wrote {path}")
    return 0


def _device(device: str, ranks: Ranks) -> str:
    """Each of several processes on one machine takes its own GPU."""
    import torch

    if ranks.size == 1 or device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return device
    return f"cuda:{ranks.place.local_rank}"


def label_names(given: dict[str, str], keys: Any) -> Any:
    """The names of the labels; ``keys`` is the dataclass that holds them.

    Raises:
        InputError: ``--keys`` names something that is no label.
    """
    known = [field.name for field in fields(keys)]
    for name in given:
        if name not in known:
            raise InputError(f"--keys names {name!r}, which is no label. Expected NAME=KEY with NAME one of {known}.")
    return keys(**given)


COLUMNS = (("mae", "MAE"), ("rmse", "RMSE"), ("max", "max"))


def table(results: dict[str, Any]) -> str:
    """The errors as text: all structures, then elements and config types where there are several. Milli-units."""
    units = results["units"]
    lines = [f"{results['n_structures']} structures, {results['n_atoms']} atoms, {results['time_s']:.1f} s"]
    lines.append(f"{'':28s}" + "".join(f"{title:>12s}" for _, title in COLUMNS) + f"{'n':>10s}")

    def add(name: str, quantity: str, errors: dict[str, float] | None) -> None:
        label = f"{name} (m{units[quantity]})"
        if errors is None:
            lines.append(f"{label:28s}{'no labels':>12s}")
            return
        numbers = "".join(f"{1000 * errors[key]:12.4f}" for key, _ in COLUMNS)
        lines.append(f"{label:28s}{numbers}{errors['n']:10d}")

    for quantity in units:
        add(quantity.replace("_", " "), quantity, results[quantity])
    if len(results["per_element"]) > 1:
        for element, row in results["per_element"].items():
            add(f"  forces on {element}", "forces", row["forces"])
    for name, row in results["per_config_type"].items():
        lines.append(f"{name}: {row['n_structures']} structures")
        for quantity in ("energy_per_atom", "forces"):
            add(f"  {quantity.replace('_', ' ')}", quantity, row[quantity])
    return "\n".join(lines)
