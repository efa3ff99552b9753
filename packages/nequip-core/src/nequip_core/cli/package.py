"""``nequip package ACTION ...``: make, read, compare, change and check the files that models are shared as."""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nequip_core.cli.imports import imports
from nequip_core.cli.info import show
from nequip_core.cli.options import add_device, add_json, add_model, assignments, command_parser
from nequip_core.errors import CheckError, InputError, NequipError

if TYPE_CHECKING:
    from nequip_core.export.verify import Deviation

SCHEMA = 1
"""Of the JSON that these commands print."""

SUFFIX = ".nequip.zip"

CONTENTS = {
    "manifest.json": "format, versions, hash, units, licence, citations, changes",
    "model.json": "types, atomic energies, cut-offs, the architecture's keys",
    "weights.safetensors": "weights",
    "data.json": "what it was trained on",
    "metrics.json": "its errors",
    "check.json": "structures that its predictions are checked with",
    "check.safetensors": "their predictions",
    "config.json": "training: the config",
    "state.json": "training: epoch, scheduler, random states",
    "state.safetensors": "training: their tensors",
    "raw.safetensors": "training: the weights that are trained",
    "optimizer.json": "training: the optimizer",
    "optimizer.safetensors": "training: its tensors",
}
"""What the members are."""

DIFFERENT = 3
"""Exit code of ``diff`` where anything differs."""


def parser() -> argparse.ArgumentParser:
    """The options of all actions."""
    result = command_parser("package", "Packages: the files (.nequip.zip) that models are shared as.")
    actions = result.add_subparsers(metavar="ACTION", required=True)

    def add(name: str, description: str, act: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        one = actions.add_parser(
            name,
            help=description,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        one.set_defaults(act=act)
        return one

    one = add("build", "A package of a run or checkpoint: what its training needs is left out.", build)
    add_model(one)
    add_out(one)
    add_about(one)

    one = add("info", "Types, cut-offs, layers, training data and versions: what `nequip info` prints.", info)
    add_model(one)
    add_json(one)

    one = add("list", "What a file holds, with sizes; of a folder, the packages in it.", list_)
    one.add_argument("path", metavar="FILE|DIR", type=Path, help="a package or checkpoint, or a folder of packages")
    add_json(one)

    one = add(
        "diff",
        "What differs: config, types, weights (and by how much), training data, licence. Exit code 0: nothing; 3: what "
        "is printed.",
        diff,
    )
    one.add_argument("a", metavar="A", type=Path, help="a run's folder, a checkpoint or a package")
    one.add_argument("b", metavar="B", type=Path, help="another one")
    add_json(one)

    one = add(
        "modify",
        "A changed copy. Each change is written into its manifest; hash and check predictions are made again.",
        modify,
    )
    one.add_argument("model", metavar="IN", type=Path, help="a package")
    add_out(one)
    add_about(one)
    one.add_argument(
        "--atomic-energies", metavar="TYPE=EV,...", type=numbers, default={}, help="of these types, the others stay"
    )
    one.add_argument(
        "--energy-scale", metavar="TYPE=EV,...", type=numbers, default={}, help="of these types, the others stay"
    )
    one.add_argument(
        "--rename", metavar="TYPE=NAME,...", type=assignments, default={}, help="names of types; their elements stay"
    )
    one.add_argument("--dtype", choices=["float32", "float64"], help="of weights and arithmetic")

    one = add(
        "verify",
        "Hash, and the predictions of the check structures computed again. Exit code 3: one is not what the file says.",
        verify,
    )
    one.add_argument("path", metavar="FILE", type=Path, help="a package, a checkpoint or a run's folder")
    add_device(one)
    add_json(one)
    one.set_defaults(device="cpu")
    return result


def add_out(one: argparse.ArgumentParser) -> None:
    """OUT, which must have the suffix of packages."""
    one.add_argument("out", metavar="OUT.nequip.zip", type=Path, help="the package to write")


def add_about(one: argparse.ArgumentParser) -> None:
    """``--licence``, ``--citation``."""
    one.add_argument("--licence", metavar="TEXT", help="of the model, such as MIT or CC-BY-4.0")
    one.add_argument(
        "--citation", metavar="DOI", action="append", default=[], help="what users should cite; may be repeated"
    )


def numbers(text: str) -> dict[str, float]:
    """``H=-13.6,O=-432.1`` as a dictionary."""
    try:
        return {name: float(value) for name, value in assignments(text).items()}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of NAME=NUMBER separated by commas") from None


def run(argv: list[str]) -> int:
    """The action that the command line names."""
    options = parser().parse_args(argv)
    code: int = options.act(options)
    return code


# ------------------------------------------------------------------------------------------------------ actions


def build(options: argparse.Namespace) -> int:
    """Drop the training state. Its check structures are recomputed first, and made where there are none."""
    check_out(options.out, options.model)
    with imports():
        from nequip_core.cli.loading import say
        from nequip_core.export.artifact import read_weights
        from nequip_core.export.edit import with_about, without_folders
        from nequip_core.export.package import read_package, without_training, write_package
        from nequip_core.export.verify import check_cases, verify, with_check
        from nequip_core.plugins.manager import load_registry

    path = file_of(options.model, options.checkpoint)
    registry, inside = load_registry(), read_package(path)
    cases = check_cases(path, inside)
    if cases:
        must_pass(path, verify(path, inside, registry))
    members, weights = read_weights(path, options.weights)
    say(f"model: {path} ({weights} weights)")
    if weights != inside.manifest["weights"]:
        members = replace(members, metrics={})
        say("left out: the metrics, which are those of the averaged weights")
    if not cases or weights != inside.manifest["weights"]:
        members = with_check(path, members, registry, [case.structure for case in cases])
    members = without_folders(without_training(members))
    members = with_about(members, options.licence, options.citation)
    write_package(options.out, members)
    if members.manifest["licence"] is None:
        say("licence: none is stated; --licence TEXT writes one into the file")
    print(options.out)
    return 0


def info(options: argparse.Namespace) -> int:
    """What `nequip info` prints."""
    return show(options)


def list_(options: argparse.Namespace) -> int:
    """The members of a file, or the packages of a folder."""
    with imports():
        from nequip_core.export.package import read_package

    path = options.path
    if path.is_dir():
        return list_folder(path, as_json=options.json)
    read_package(path)
    with zipfile.ZipFile(path) as archive:
        sizes = {one.filename: one.file_size for one in archive.infolist()}
    if options.json:
        print(json.dumps({"schema": SCHEMA, "path": str(path), "members": sizes}, indent=2))
        return 0
    width = max(map(len, sizes))
    for name, size in sizes.items():
        print(f"{name:{width}}  {size:>12,d}  {CONTENTS.get(name, '')}")
    print(f"{'total':{width}}  {sum(sizes.values()):>12,d}  bytes")
    return 0


def list_folder(folder: Path, *, as_json: bool) -> int:
    """One line for each package; those that can not be read are named on standard error, with exit code 2."""
    with imports():
        from nequip_core.cli.loading import say
        from nequip_core.export.package import read_package

    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if not paths:
        raise InputError(f"{folder} holds no packages (*{SUFFIX}). Name another folder, or a package to see inside it.")
    found, failed = [], 0
    for path in paths:
        try:
            members = read_package(path)
        except NequipError as error:
            say(f"nequip: {error}")
            failed = error.exit_code
            continue
        found.append(
            {
                "file": path.name,
                "name": members.model.get("name"),
                "types": members.model.get("types"),
                "cutoff_A": members.model.get("cutoff"),
                "dtype": members.model.get("dtype"),
                "licence": members.manifest["licence"],
                "hash": members.manifest["model_hash"],
            }
        )
    if as_json:
        print(json.dumps({"schema": SCHEMA, "path": str(folder), "packages": found}, indent=2))
        return failed
    width = max((len(one["file"]) for one in found), default=0)
    for one in found:
        print(
            f"{one['file']:{width}}  {one['name']}, {one['cutoff_A']} Å, {one['dtype']}, {', '.join(one['types'])}; "
            f"licence {one['licence'] or 'not stated'}; {one['hash'][:12]}"
        )
    return failed


def diff(options: argparse.Namespace) -> int:
    """What differs, and 3; or nothing, and 0."""
    with imports():
        from nequip_core.export.difference import difference, is_empty
        from nequip_core.export.package import read_package

    found = difference(*(read_package(file_of(path)) for path in (options.a, options.b)))
    if options.json:
        print(json.dumps({"schema": SCHEMA, "a": str(options.a), "b": str(options.b), **found}, indent=2))
    else:
        print("\n".join(differences(found)))
    return 0 if is_empty(found) else DIFFERENT


def differences(found: dict[str, Any]) -> Iterator[str]:
    """The lines for people."""
    yield "the same model" if found["same_model"] else "different models"
    for name in ("model", "manifest", "data", "metrics"):
        for key, (a, b) in found[name].items():
            yield f"{name:9s}  {key}: {json.dumps(a)} -> {json.dumps(b)}"
    for key, one in found["weights"].items():
        if "kind" in one:
            yield f"weights    {key}: {one['kind'][0]} -> {one['kind'][1]}"
            continue
        relative = "all were zero" if one["relative"] is None else f"{one['relative']:.2e} relative"
        values = f": {one['values'][0]} -> {one['values'][1]}" if "values" in one else ""
        yield f"weights    {key}: {relative}, at most {one['largest']:.3g}{values}"


def modify(options: argparse.Namespace) -> int:
    """Write a changed copy of a package that is what it says."""
    check_out(options.out, options.model)
    with imports():
        from nequip_core.cli.loading import say
        from nequip_core.export.edit import Changes, modified
        from nequip_core.export.package import is_checkpoint, read_package, write_package
        from nequip_core.export.verify import check_cases, verify
        from nequip_core.plugins.manager import load_registry

    path, registry = options.model, load_registry()
    if path.is_dir():
        raise InputError(f"{path} is a folder. Make a package of it first: nequip package build {path} OUT{SUFFIX}")
    members = read_package(path)
    if is_checkpoint(path):
        raise InputError(f"{path} is a checkpoint. Make a package of it first: nequip package build {path} OUT{SUFFIX}")
    if check_cases(path, members):
        must_pass(path, verify(path, members, registry))
    changes = Changes(
        licence=options.licence,
        citations=tuple(options.citation),
        atomic_energies=options.atomic_energies,
        energy_scale=options.energy_scale,
        rename=options.rename,
        dtype=options.dtype,
    )
    changed = modified(path, members, changes, registry)
    write_package(options.out, changed)
    for key, (before, after) in changed.manifest["modified"][-1]["changes"].items():
        say(f"{key}: {json.dumps(before)} -> {json.dumps(after)}")
    print(options.out)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Hash and predictions."""
    with imports():
        from nequip_core.cli.loading import say
        from nequip_core.export.artifact import resolve_device
        from nequip_core.export.package import ChangedError, is_checkpoint, read_package
        from nequip_core.export.verify import verify as recomputed
        from nequip_core.plugins.manager import load_registry

    path, device = file_of(options.path), resolve_device(options.device)
    try:
        members = read_package(path)
        read_package(path, training=is_checkpoint(path))
    except ChangedError as error:
        raise CheckError(str(error)) from error
    say(f"model: {path} on {device}")
    found = recomputed(path, members, load_registry(), device)
    report = {
        "schema": SCHEMA,
        "path": str(path),
        "hash": members.manifest["model_hash"],
        "passed": all(one.passed for one in found),
        "deviations": [one.to_json() for one in found],
    }
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print(f"hash  {report['hash']}")
        for one in found:
            if one.quantity != "norm" or not one.passed:
                print(f"{'ok  ' if one.passed else 'NOT '}  {one}")
    must_pass(path, found)
    return 0


# ------------------------------------------------------------------------------------------------------ helpers


def check_out(out: Path, source: Path) -> None:
    """Refuse a name that no package has, and the source's own.

    Raises:
        InputError: it is one of these.
    """
    if not out.name.endswith(SUFFIX):
        raise InputError(f"{out} can not be a package's name. Expected OUT{SUFFIX}.")
    if out.exists() and source.exists() and out.samefile(source):
        raise InputError(f"{out} is the source itself. Choose another name.")


def file_of(path: Path, checkpoint: str = "best") -> Path:
    """The file that a path means: of a run's folder, its checkpoint."""
    from nequip_core.export.artifact import checkpoint_file

    return checkpoint_file(path, checkpoint) if path.is_dir() else path


def must_pass(path: Path, found: Sequence[Deviation]) -> None:
    """Fail unless all predictions are as the file says.

    Raises:
        CheckError: some are not.
    """
    wrong = [str(one) for one in found if not one.passed]
    if wrong:
        raise CheckError(
            f"{path}: its weights do not give the predictions that were written beside them ({'; '.join(wrong)}). "
            "They are not the weights that were trained, or this machine computes wrongly: take another copy, or see "
            "`nequip doctor`."
        )
