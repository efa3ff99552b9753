"""``nequip convert SOURCE OUT``: published checkpoints, packages and training configs into ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from nequip_core.cli.options import assignments, command_parser
from nequip_core.errors import InputError

MODELS = (".ckpt", ".nequip.zip")
CONFIGS = (".yaml", ".yml")


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = command_parser(
        "convert",
        "A checkpoint, package or training config of the published nequip (0.16 to 0.19) as one of ours. No code of "
        "the source is run.",
    )
    result.add_argument("source", metavar="SOURCE", type=Path, help="checkpoint (.ckpt), package (.nequip.zip) or YAML")
    result.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="OUT.ckpt: averaged (EMA) and raw weights; OUT.nequip.zip: the averaged ones if there are any; OUT.yaml",
    )
    result.add_argument(
        "--elements",
        metavar="TYPE=ELEMENT,...",
        type=assignments,
        default={},
        help="of types whose names are no element symbols, where the source does not say",
    )
    result.add_argument("--licence", metavar="TEXT", help="of the model; default: what the source states")
    return result


def run(argv: list[str]) -> int:
    """Convert and say what was made."""
    options = parser().parse_args(argv)
    source, out = options.source, options.out
    if source.suffix in CONFIGS and out.suffix in CONFIGS:
        return _config(source, out)
    if not out.name.endswith(MODELS) or source.suffix in CONFIGS:
        raise InputError(
            f"{source} can not become {out}. Expected a checkpoint or package and OUT.ckpt or OUT.nequip.zip, or "
            "a training config and OUT.yaml."
        )
    if out.exists() and out.samefile(source):
        raise InputError(f"{out} is the source itself. Choose another name.")
    return _model(source, out, options.elements, options.licence)


def _model(source: Path, out: Path, elements: dict[str, str], licence: str | None) -> int:
    from nequip_core.cli.loading import say
    from nequip_core.export.package import without_training, write_package
    from nequip_core.export.published import convert, read_published
    from nequip_core.plugins.manager import load_registry

    published = read_published(source)
    versions = ", ".join(f"{name} {version}" for name, version in published.versions.items())
    say(f"source: published {published.kind} {source} ({versions})")
    members = convert(published, load_registry(), elements=elements, licence=licence)
    if out.suffix == ".zip":
        if members.training is not None and members.training.raw:
            say("left out: the raw weights (OUT.ckpt keeps both)")
        members = without_training(members)
    write_package(out, members)
    if members.manifest["licence"] is None:
        say("licence: the source states none; --licence TEXT writes one into the file")
    print(out)
    return 0


def _config(source: Path, out: Path) -> int:
    from nequip_core.cli.loading import say
    from nequip_core.config.convert import convert_config
    from nequip_core.files import atomic_write

    text, left = convert_config(source)
    with atomic_write(out) as file:
        file.write(text)
    for line in left:
        say(f"no counterpart: {line}")
    print(out)
    return 0
